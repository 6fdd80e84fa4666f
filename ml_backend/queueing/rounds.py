"""The queue of rounds, over Redis and rq.

rq's rate limit lets one job of a project through at a time, so that with two workers the second round waits.
"""

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from typing import Any, NamedTuple, Self, cast
from urllib.parse import urlsplit, urlunsplit

import structlog
from redis import Redis, RedisError
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry as RedisRetry
from rq import Queue, RateLimit, Retry
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.errors import QueueError, SettingsError
from ml_backend.queueing.claim import Claim
from ml_backend.queueing.status import LastError, Progress, QueueStatus
from ml_backend.records import ProjectKey, Reason
from ml_backend.settings import Settings

__all__ = ["JOB", "QUEUE", "Counted", "RoundQueue", "connect_redis"]

QUEUE = "rounds"
JOB = "ml_backend.worker.job.run"

RESULT_TTL_S = 24 * 3600
FAILURE_TTL_S = 7 * 24 * 3600
SCRIPT = files("ml_backend.queueing").joinpath("state.lua").read_text()

log = structlog.get_logger()


class Counted(NamedTuple):
    """What a count of changes found."""

    changes: int  # since the last round took them
    due: bool  # they reached the threshold
    threshold_before: int  # what the threshold was; 0: rounds did not start by themselves


def connect_redis(url: str, *, patient: bool = False) -> Redis:
    """A client for the queue.

    Args:
        url: ``redis://[:password@]host:port/db``, ``rediss://`` or ``unix://``.
        patient: outlive a restart of Redis (about 40 s), as a round must; otherwise give up at once, since Label
            Studio waits one second for a webhook's answer.

    Raises:
        SettingsError: the URL is none.
    """
    retry = RedisRetry(ExponentialBackoff(cap=5.0, base=0.5), 10) if patient else RedisRetry(NoBackoff(), 1)
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=1.0,
            # Longer than Label Studio waits: it only hangs up, and the change is still counted.
            socket_timeout=5.0,
            retry=retry,
            health_check_interval=30,
        )
    except ValueError as error:
        raise SettingsError(
            f"AL_REDIS_URL={_without_password(url)!r}: {error}; wanted is redis://host:6379/0"
        ) from None


class RoundQueue:
    """The queue of rounds.

    Args:
        redis: a client that answers in bytes.
        round_timeout_s: the longest time that a round may take.
        grace_s: how long a reserved slot may stand without its job before it counts as lost.
        cooldown_s: how soon after any request one with ``only_if_idle`` is refused.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        round_timeout_s: int = 24 * 3600,
        grace_s: float = 30.0,
        cooldown_s: float = 60.0,
    ) -> None:
        self.redis = redis
        self._round_timeout_s = round_timeout_s
        self._grace_s = grace_s
        self._cooldown_s = cooldown_s
        self._script = redis.register_script(SCRIPT)
        self._jobs = Queue(QUEUE, connection=redis, serializer=JSONSerializer)

    @classmethod
    def from_settings(cls, settings: Settings, *, patient: bool = False) -> Self:
        """The installation's queue; for ``patient`` see ``connect_redis``."""
        return cls(connect_redis(settings.redis_url, patient=patient), round_timeout_s=settings.round_timeout_s)

    def ping(self) -> None:
        """Make sure that Redis answers.

        Raises:
            QueueError: it does not.
        """
        with self._reachable():
            self.redis.ping()

    def count_changes(
        self, project: ProjectKey, n: int, threshold: int | None = None, annotations: int | None = None
    ) -> Counted:
        """Add changed annotations.

        Args:
            project: the project.
            n: how many changed; 0 only notes the rest.
            threshold: changes that start a round; 0 for none; None leaves it as it was.
            annotations: as Label Studio counts them now; None leaves it as it was.

        Raises:
            QueueError: Redis does not answer.
        """
        changes, due, before = self._run(
            project, "record", n, "" if threshold is None else threshold, "" if annotations is None else annotations
        )
        return Counted(changes, bool(due), before)

    def request_round(self, project: ProjectKey, reason: Reason, *, only_if_idle: bool = False) -> bool:
        """Ask for a round.

        Args:
            project: the project.
            reason: what called for it.
            only_if_idle: not while one runs either, nor soon after the last request.

        Returns:
            False where a round waits already; it will see everything that this one would have.

        Raises:
            QueueError: Redis does not answer.
        """
        generation = self._run(project, "request", reason, int(only_if_idle), self._cooldown_s)
        if not generation:
            return False
        with self._reachable():
            self._jobs.enqueue_call(
                JOB,
                args=(str(project), generation, reason),
                job_id=f"{_job_prefix(project)}{generation}",
                description=f"round of project {project} ({reason})",
                timeout=self._round_timeout_s,
                result_ttl=RESULT_TTL_S,
                failure_ttl=FAILURE_TTL_S,
                rate_limit=RateLimit(f"project-{project}", 1),
                # Of a killed process only: a round that failed in words is settled, and its retry finds no claim.
                retry=Retry(max=1),
            )
        return True

    def claim(self, project: ProjectKey, generation: int, reason: Reason) -> Claim | None:
        """Begin a round: frees the waiting slot, takes the changes, and outdates every other run of the project.

        Returns:
            None where another round has taken the place of this one.

        Raises:
            QueueError: Redis does not answer.
        """
        # Drawn, not counted: a counter would begin anew in an emptied Redis, and an orphan would hold the same number.
        token = secrets.token_hex(8)
        changes = self._run(project, "claim", generation, token, reason)
        return None if changes < 0 else Claim(self, project, generation, token, changes)

    def abandon(self, project: ProjectKey, generation: int, message: str) -> None:
        """Fail a round whose process is dead, from outside of it.

        Raises:
            QueueError: Redis does not answer.
        """
        error = LastError(kind="WorkerLost", message=message, at=time.time())
        if self._run(project, "abandon", generation, error.model_dump_json()) > 0:
            self.request_round(project, "labels")

    def status(self, project: ProjectKey) -> QueueStatus:
        """What is counted, waiting, running and wrong.

        Raises:
            QueueError: Redis does not answer.
        """
        flat = self._run(project, "state")
        state = {_text(key): _text(value) for key, value in zip(flat[::2], flat[1::2], strict=True)}
        with self._reachable():
            progress = {_text(k): _text(v) for k, v in self.redis.hgetall(_keys(project)[1]).items()}
        return QueueStatus.model_validate(
            {name: state[name] for name in QueueStatus.model_fields if name in state}
            | {
                "waiting": state.get("waiting_reason"),
                "running": state.get("running_reason"),
                "progress": progress if "running" in state and progress else None,
                "last_error": json.loads(state["last_error"]) if "last_error" in state else None,
            }
        )

    def forget(self, project: ProjectKey) -> None:
        """Drop everything about a project; a round that runs finds its token gone.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            if waiting := self.redis.hget(_keys(project)[0], "waiting"):
                job_id = f"{_job_prefix(project)}{_text(waiting)}"
                # Gone or begun meanwhile: then its claim will be refused.
                with suppress(NoSuchJobError, InvalidJobOperation):
                    Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer).cancel()
            self.redis.delete(*_keys(project))

    def settle(self, project: ProjectKey, token: str, error: LastError | None) -> None:
        """End a round; asks for the next one where enough changed meanwhile.

        Raises:
            QueueError: Redis does not answer.
        """
        due = self._run(project, "settle", token, error.model_dump_json() if error else "")
        if due > 0:
            self.request_round(project, "labels")

    def holds(self, project: ProjectKey, token: str) -> bool:
        """Whether no newer run of the project has begun.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            newest = self.redis.hget(_keys(project)[0], "token")
        return newest is not None and _text(newest) == token

    def write_progress(self, project: ProjectKey, progress: Progress) -> None:
        """Show where a round is. Never raises: a round does not fail for its progress bar."""
        fields: dict[Any, Any] = progress.model_dump()
        try:
            self.redis.hset(_keys(project)[1], mapping=fields)
        except RedisError as error:
            log.warning("progress not written", project=str(project), error=str(error))

    def _run(self, project: ProjectKey, command: str, *args: str | float) -> Any:
        job_prefix = f"{Job.redis_job_namespace_prefix}{_job_prefix(project)}"
        with self._reachable():
            return self._script(keys=_keys(project), args=[command, job_prefix, self._grace_s, *args])

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise QueueError(
                f"Redis at {self.address} does not answer ({error}): start it, or let AL_REDIS_URL name a running one"
            ) from error

    @property
    def address(self) -> str:
        """Where Redis is, without its password."""
        where = self.redis.connection_pool.connection_kwargs
        return cast(str, where.get("path") or f"{where.get('host')}:{where.get('port')}/{where.get('db', 0)}")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _keys(project: ProjectKey) -> list[str]:
    return [f"al:{project}", f"al:{project}:progress"]


def _job_prefix(project: ProjectKey) -> str:
    return f"round-{project.id}-{project.created}-"  # rq takes no dot in a job's id


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    except ValueError:
        return "(unreadable)"
