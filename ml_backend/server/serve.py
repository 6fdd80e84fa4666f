"""gunicorn around the app: one process, several threads, nothing loaded before the fork."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import structlog
from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from ml_backend.config import Settings
from ml_backend.errors import QueueError, SettingsError
from ml_backend.logs import set_up_logs
from ml_backend.scheduling import RoundQueue
from ml_backend.scheduling.reconciler import Reconciler
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore, check_writable

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - gunicorn makes a file of its own there and unlinks it

log = structlog.get_logger()


class _Logger(Logger):  # type: ignore[misc]
    """gunicorn's own log lines, in the format of all others."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        # Called in the process that serves, after the fork: a thread does not survive one.
        Reconciler(
            self._settings, RoundStore(self._settings.data_dir), RoundQueue.from_settings(self._settings)
        ).start()
        return create_app(self._settings)


def serve(settings: Settings, host: str, port: int, threads: int = 8) -> None:
    """Serve until stopped; SIGTERM and Ctrl-C let open requests end. Leaves by SystemExit.

    Args:
        settings: of the installation.
        host: address to listen on.
        port: port to listen on.
        threads: requests answered at the same time.

    Raises:
        SettingsError: the port is in use, or the address is not one of this machine.
        StorageError: the data folder cannot be written.
    """
    set_up_logs(settings)
    check_writable(settings.data_dir, make=True)
    _check_free(host, port)
    try:
        RoundQueue.from_settings(settings).ping()
    except QueueError as error:
        log.warning("events are refused until Redis answers", error=str(error))
    _Gunicorn(
        settings,
        {
            "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            # One process: the metrics of several would have to be merged, and threads are enough to wait.
            "workers": 1,
            "worker_class": "gthread",
            "threads": threads,
            "graceful_timeout": 10,
            "logger_class": _Logger,
            "loglevel": settings.log_level.lower(),
            "proc_name": "ml-backend",
            # Both default to places that a user without a home, or a read-only container, cannot write.
            "control_socket_disable": True,
            "worker_tmp_dir": str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None,
        },
    ).run()


def _check_free(host: str, port: int) -> None:
    """Listen once and let go: gunicorn would try for five seconds, and log each attempt twice.

    Raises:
        SettingsError: this process cannot listen there; says why, and the way out.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"--port {port} is in use at {host} (`ss -ltnp` lists by what): stop that, or give another --port"
        elif error.errno in (errno.EACCES, errno.EPERM):
            problem = f"--port {port} may not be listened on by user {os.geteuid()}: give one of 1024 or above"
        else:
            problem = (
                f"--host {host!r} is no address of this machine: give 127.0.0.1, which only this machine "
                "reaches, or 0.0.0.0 for all of its addresses"
            )
        raise SettingsError(problem) from None
