"""Connections to Redis: how long to wait, and how often to try again; and who is connected besides."""

import time
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import structlog
from redis import ConnectionError as NotConnected
from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry as RedisRetry

from ml_backend.errors import SettingsError
from ml_backend.settings.network import trusted_certificates

__all__ = ["connect_redis", "is_fresh"]

ATTEMPTS = 10
# A worker gives a sign of life every 5 s; longer than a restart of Redis keeps it from that.
WORKER_FRESH_S = 40.0

log = structlog.get_logger()


class _ToldBackoff(ExponentialBackoff):
    """Says that Redis is away while it waits; nobody else would."""

    def __init__(self, url: str) -> None:
        super().__init__(cap=5.0, base=0.5)
        self._url = url

    def compute(self, failures: int) -> float:
        pause_s: float = super().compute(failures)
        log.warning("Redis does not answer", redis=self._url, attempt=failures, of=ATTEMPTS, next_in_s=pause_s)
        return pause_s


def connect_redis(url: str, *, patient: bool = False, answer_within_s: float | None = None) -> Redis:
    """A client for the queue.

    Args:
        url: ``redis://[:password@]host:port/db``, ``rediss://`` or ``unix://``.
        patient: outlive a restart of Redis (about 40 s), as a round must, and log it; otherwise give up at once.
        answer_within_s: the longest wait for one answer; by default 5 s. A wait that was in vain is not repeated
            unless ``patient``, a connection that was lost is.

    Raises:
        SettingsError: the URL is none, or a variable of the environment names no certificate.
    """
    shown = _without_password(url)
    # A connection that idled through a restart of Redis is found lost by its next use: one more attempt mends that.
    retry = RedisRetry(_ToldBackoff(shown), ATTEMPTS) if patient else RedisRetry(NoBackoff(), 1, (NotConnected,))
    tls = {
        "ssl_ca_certs" if Path(where).is_file() else "ssl_ca_path": where
        for where in reversed(trusted_certificates().values() if url.startswith("rediss://") else ())
    }
    wait_s = 5.0 if answer_within_s is None else answer_within_s
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=min(1.0, wait_s),
            socket_timeout=wait_s,
            retry=retry,
            health_check_interval=30,
            **tls,
        )
    except ValueError as error:
        raise SettingsError(f"AL_REDIS_URL={shown!r}: {error}; wanted is redis://host:6379/0") from None


def is_fresh(heartbeat: datetime | None) -> bool:
    """Whether the worker of this last sign of life counts as alive."""
    return heartbeat is not None and time.time() - heartbeat.timestamp() < WORKER_FRESH_S


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    except ValueError:
        return "(unreadable)"
