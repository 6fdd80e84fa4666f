"""Small things that the integration tests share."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_backend.schemas import ProjectKey

PROJECT = ProjectKey(id=2, created=1795384774)  # of the recorded payloads
PAYLOADS = Path(__file__).parent.parent / "data" / "payloads"
FAKE_WORKER = Path(__file__).parent / "worker_with_fake_rounds.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The first true answer of the condition."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)
    return found
