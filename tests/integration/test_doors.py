"""Closed doors, with the real parts: processes and logs, a real queue, hostile servers on loopback, planted files."""

import json
import os
import pickle
import socket
import socketserver
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from ml_backend.config import ImageHosts
from ml_backend.errors import ImageError, StorageError, WeightsError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.model.backbones import load_backbone
from ml_backend.model.checkpoint import load_checkpoint
from ml_backend.scheduling import RoundQueue
from ml_backend.schemas import ImageRef
from ml_backend.storage.outputs import read_outputs
from tests.integration.processes import PAYLOADS, PROJECT, free_port, wait_until

PNG = b"\x89PNG\r\n\x1a\n..."
SECRETS = {
    "AL_BASIC_AUTH_PASS": "pass-of-the-backend",
    "AL_LABEL_STUDIO_API_KEY": "key-of-label-studio",
    "AL_REDIS_URL": "redis://:pass-of-redis@127.0.0.1:1/0",
}
TOLD = ("pass-of-the-backend", "key-of-label-studio", "pass-of-redis", "token-in-the-body")


class TestSecrets:
    def test_are_in_no_answer_no_log_and_no_process_list(self, start, tmp_path):
        """Redis is away, so that every kind of answer and of error is among them."""
        port = free_port()
        server = start(
            *(sys.executable, "-m", "ml_backend", "serve", "--port", str(port)),
            **SECRETS,
            AL_BASIC_AUTH_USER="ls",
            AL_LOG_LEVEL="DEBUG",
        )
        url, auth = f"http://127.0.0.1:{port}", ("ls", "pass-of-the-backend")
        wait_until(lambda: server.poll() is not None or is_up(url))
        setup = json.loads((PAYLOADS / "setup.json").read_text()) | {"access_token": "token-in-the-body"}
        event = json.loads((PAYLOADS / "ANNOTATION_CREATED.json").read_text())

        with httpx.Client(base_url=url, timeout=10) as client:
            answers = [
                client.get("/", auth=auth),
                client.get("/?key=token-in-the-body"),
                client.get("/metrics", auth=auth),
                client.get("/openapi.json", auth=auth),
                client.get("/versions", auth=("ls", "token-in-the-body")),
                client.post("/setup", auth=auth, json=setup),
                client.post("/setup", auth=auth, json=setup | {"schema": 5}),
                client.post("/webhook", auth=auth, json=event),
                client.post("/webhook", auth=auth, content=b"{token-in-the-body"),
                client.post("/predict", auth=auth, json={}),
                client.get("/no-such-page?key=token-in-the-body", auth=auth),
            ]

        assert [answer.status_code for answer in answers] == [200, 401, 200, 200, 401, 503, 400, 503, 400, 400, 404]
        said = "".join(f"{answer.reason_phrase}\n{answer.headers}\n{answer.text}" for answer in answers)
        log = (tmp_path / "child-0.log").read_text()
        assert "refused" in log
        for secret in TOLD:
            assert secret not in said
            assert secret not in log
            assert secret not in command_lines(server.pid)
        assert "Traceback" not in said

    def test_a_server_without_credentials_says_so_in_its_log(self, start, tmp_path):
        port = free_port()
        server = start(sys.executable, "-m", "ml_backend", "serve", "--port", str(port))
        wait_until(lambda: server.poll() is not None or is_up(f"http://127.0.0.1:{port}"))

        assert "no credentials are set" in (tmp_path / "child-0.log").read_text()


class TestQueue:
    def test_holds_json_and_no_pickle(self, queue: RoundQueue, redis):
        """A pickle in Redis would run whatever its writer liked."""
        assert queue.request_round(PROJECT, "forced")

        [key] = [key for key in redis.keys("rq:job:*") if redis.type(key) == b"hash"]
        data = redis.hget(key, "data")
        assert json.loads(zlib.decompress(data))[0] == "ml_backend.worker.job.run"

    def test_a_planted_pickle_is_not_run(self, queue: RoundQueue, redis, start_worker, marker):
        queue.request_round(PROJECT, "forced")
        [key] = [key for key in redis.keys("rq:job:*") if redis.type(key) == b"hash"]
        redis.hset(key, "data", zlib.compress(pickle.dumps(Bomb(marker))))

        start_worker()

        wait_until(lambda: redis.hget(key, "status") == b"failed" or not redis.exists(key))
        assert not marker.exists()


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "something-ran"


class TestPlantedFiles:
    def test_the_bomb_is_live(self, marker):
        pickle.loads(pickle.dumps(Bomb(marker)))

        assert marker.exists()

    @pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
    def test_a_checkpoint(self, tmp_path, marker, name):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Bomb(marker)))

        with pytest.raises(WeightsError, match="cannot be read"):
            load_checkpoint(path)
        assert not marker.exists()

    @pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_the_weights_of_a_backbone(self, tmp_path, marker, name, wrapped):
        """As torch writes files, with the bomb inside, and as a bare pickle."""
        path = tmp_path / name
        if wrapped:
            torch.save({"state_dict": {"conv1.weight": Bomb(marker)}}, path)
        else:
            path.write_bytes(pickle.dumps(Bomb(marker)))

        with pytest.raises(WeightsError, match=r"hold more than tensors|cannot be read"):
            load_backbone("resnet18", str(path))
        assert not marker.exists()

    def test_pool_outputs(self, tmp_path, marker):
        path = tmp_path / "outputs.npz"
        bomb = np.empty(1, dtype=object)
        bomb[0] = Bomb(marker)
        np.savez(path, image_ids=bomb, classes=bomb, probs=bomb)

        with pytest.raises(StorageError, match=r"damaged .*allow_pickle"):
            read_outputs(path)
        assert not marker.exists()


class TestHostileHosts:
    """Servers on loopback, which here the operator allows."""

    @pytest.fixture
    def fetch(self) -> Iterator[Callable[..., bytes]]:
        opened: list[LabelStudioImages | LabelStudioClient] = []

        def fetch_from(port: int, hosts: str | None = None, host: str = "127.0.0.1", timeout_s: float = 10.0) -> bytes:
            allowed = ImageHosts.parse(f"127.0.0.1:{port}" if hosts is None else hosts)
            client = LabelStudioClient("http://127.0.0.1:1", "key-of-label-studio", retries=1)
            source = LabelStudioImages(client, hosts=allowed, max_bytes=2**20, timeout_s=timeout_s)
            opened.extend([source, client])
            return source.fetch(ImageRef(id="12", uri=f"http://{host}:{port}/a.png"))

        yield fetch_from
        for one in opened:
            one.close()

    def test_an_image(self, fetch):
        with serving(lambda line: answer(line, PNG)) as (port, asked):
            assert fetch(port) == PNG
        assert b"key-of-label-studio" not in asked[0]

    def test_not_allowed(self, fetch):
        with serving(lambda line: answer(line, PNG)) as (port, asked):
            refused = pytest.raises(ImageError, match=f"127.0.0.1:{port} is not among the hosts.*AL_IMAGE_HOSTS")
            with refused:
                fetch(port, hosts="")
        assert asked == []

    @pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "169.254.169.254", "10.0.0.1", "0.0.0.0"])
    def test_a_redirect_into_the_own_network(self, fetch, host):
        with serving(lambda line: answer(line, PNG)) as (secret_port, secret_asked):
            there = f"http://{host}:{secret_port}/latest/meta-data/"
            with (
                serving(lambda line: redirect(line, there)) as (port, asked),
                pytest.raises(ImageError, match=r"leads to .* is not among the hosts"),
            ):
                fetch(port)
        assert len(asked) == 1
        assert secret_asked == []

    def test_an_allowed_name_that_means_this_machine(self, fetch):
        """A name that leads to a private address, as a rebound one would; with its network it is allowed."""
        with serving(lambda line: answer(line, PNG)) as (port, asked):
            with pytest.raises(ImageError, match=r"localhost lies at .*, which is private"):
                fetch(port, hosts=f"localhost:{port}", host="localhost")
            assert asked == []
            assert fetch(port, hosts=f"localhost:{port}, 127.0.0.0/8", host="localhost") == PNG

    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\nx: ", b"body"])
    def test_one_that_never_ends(self, fetch, part):
        """Nothing, a header, or a body that comes byte by byte: each wait is short, all of them together are not."""
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 9999\r\n\r\n" if part == b"body" else part
        )

        def drip(line: socket.socket) -> None:
            line.sendall(head)
            while True:
                time.sleep(0.05)
                line.sendall(b"" if part == b"" else b"x")

        with serving(drip) as (port, _):
            began = time.monotonic()
            with pytest.raises(ImageError, match="no complete answer came in time"):
                fetch(port, timeout_s=1.0)
        assert time.monotonic() - began < 30

    def test_one_that_never_stops_sending(self, fetch):
        def flood(line: socket.socket) -> None:
            line.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
            while True:
                line.sendall(bytes(65536))

        with serving(flood) as (port, _), pytest.raises(ImageError, match="larger than 1048576 bytes"):
            fetch(port)


def answer(line: socket.socket, content: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: {len(content)}\r\n\r\n"
    line.sendall(head.encode() + content)


def redirect(line: socket.socket, location: str) -> None:
    line.sendall(f"HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode())


@contextmanager
def serving(respond: Callable[[socket.socket], None]) -> Iterator[tuple[int, list[bytes]]]:
    """A server on loopback that answers every request by ``respond``; yields its port and what it was sent."""
    asked: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.append(self.request.recv(65536))
            try:
                respond(self.request)
            except OSError:  # hung up on
                return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_address[1], asked
        server.shutdown()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def command_lines(pid: int) -> str:
    """Of a process and of all that it started, as everybody on the machine can read them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return "\n".join(Path(f"/proc/{one}/cmdline").read_text() for one in (str(pid), *children))
