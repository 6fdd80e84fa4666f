"""The queue of rounds, over Redis and rq: at most one round of a project runs and one waits, and no change is lost."""

import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit, urlunsplit

import structlog
from redis import AuthenticationError, Redis, RedisError, SSLConnection
from redis import ConnectionError as NotConnected
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry as RedisRetry
from rq import Queue, RateLimit, Retry, Worker
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from ml_backend.config import Settings
from ml_backend.config.network import Server, explain_failure, trusted_certificates
from ml_backend.errors import QueueError, SettingsError, StaleRound, WorkerStopping
from ml_backend.scheduling.policy import (
    FIRST_PAUSE_S,
    IDLE_COOLDOWN_S,
    LONGEST_PAUSE_S,
    RULES,
    WAITS_FOR_EVENT,
    Action,
    LastError,
    Progress,
    ProjectState,
    QueueStatus,
    RoundEnded,
    Tick,
    decide,
)
from ml_backend.schemas import ProjectKey, RoundTrigger

QUEUE = "rounds"
JOB = "ml_backend.worker.job.run"
PROJECTS = "al:projects"
REDIS = Server("start it", "AL_REDIS_URL")
ATTEMPTS = 10
ANSWER_WITHIN_S = 0.8  # Label Studio waits one second for the answer to an event
DUPLICATE_WITHIN_S = 30  # Label Studio sends an event to one webhook after the other, and waits a second for each
WORKER_FRESH_S = 15.0  # three heartbeats, idle or busy; with the 15 s of a page, a dead one shows within 30 s
PROGRESS_INTERVAL_S = 0.2
RESULT_TTL_S = 24 * 3600
FAILURE_TTL_S = 7 * 24 * 3600

_RULES = json.dumps({reason: rule._asdict() for reason, rule in RULES.items()})
SCRIPT = (
    f"local rules, first_pause, longest_pause = cjson.decode('{_RULES}'), {FIRST_PAUSE_S}, {LONGEST_PAUSE_S}\n"
    f"local rq_queue, rq_job = '{Queue.redis_queue_namespace_prefix}{QUEUE}', '{Job.redis_job_namespace_prefix}'\n"
    f"local rq_started = '{StartedJobRegistry.key_template.format(QUEUE)}'\n"
    + files("ml_backend.scheduling").joinpath("state.lua").read_text()
)

log = structlog.get_logger()


class _LoggedBackoff(ExponentialBackoff):
    """Logs every attempt to reach Redis."""

    def __init__(self, url: str) -> None:
        super().__init__(cap=5.0, base=0.5)
        self._url = url

    def compute(self, failures: int) -> float:
        pause_s: float = super().compute(failures)
        log.warning("Redis does not answer", redis=self._url, attempt=failures, of=ATTEMPTS, next_in_s=pause_s)
        return pause_s


def connect_redis(url: str, *, patient: bool = False, answer_within_s: float = 5.0) -> Redis:
    """A client for the queue.

    Args:
        url: ``redis://[:password@]host:port/db``, ``rediss://`` or ``unix://``.
        patient: outlive a restart of Redis (about 40 s), as a round must, and log it; otherwise give up at once.
        answer_within_s: the longest wait for one answer. Only a ``patient`` client repeats a request that timed out;
            every client repeats one whose connection was lost.

    Raises:
        SettingsError: the URL is malformed, or an environment variable names no certificate.
    """
    shown = _without_password(url)
    # A connection that idled through a restart of Redis fails at its next use; one more attempt reconnects.
    retry = RedisRetry(_LoggedBackoff(shown), ATTEMPTS) if patient else RedisRetry(NoBackoff(), 1, (NotConnected,))
    tls = {
        "ssl_ca_certs" if Path(where).is_file() else "ssl_ca_path": where
        for where in reversed(trusted_certificates().values() if url.startswith("rediss://") else ())
    }
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=min(1.0, answer_within_s),
            socket_timeout=answer_within_s,
            retry=retry,
            health_check_interval=30,
            **tls,
        )
    except ValueError as error:
        raise SettingsError(f"AL_REDIS_URL={shown!r}: {error}; expected redis://host:6379/0") from None


def is_fresh(heartbeat: datetime | None) -> bool:
    """Whether a worker with this last heartbeat counts as alive."""
    return heartbeat is not None and time.time() - heartbeat.timestamp() < WORKER_FRESH_S


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    except ValueError:
        return "(unreadable)"


class RoundQueue:
    """The queue of rounds. But for ``write_progress`` and ``round_waits``, each method raises QueueError without Redis.

    Args:
        redis: a client that answers in bytes.
        round_timeout_s: the longest time that a round may take.
        grace_s: a reserved slot without a job, and a job that a worker took and did not begin, count as lost after
            this time.
        cooldown_s: after any request, one with ``only_if_idle`` is refused for this time.
        progress: a client that gives up at once, for the progress bar; by default ``redis``.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        round_timeout_s: int = 24 * 3600,
        grace_s: float = 30.0,
        cooldown_s: float = IDLE_COOLDOWN_S,
        progress: Redis | None = None,
    ) -> None:
        self.redis = redis
        self._progress = progress or redis
        self._round_timeout_s = round_timeout_s
        self._grace_s = grace_s
        self._cooldown_s = cooldown_s
        self._script = redis.register_script(SCRIPT)
        self._jobs = Queue(QUEUE, connection=redis, serializer=JSONSerializer)

    @classmethod
    def from_settings(cls, settings: Settings, *, patient: bool = False) -> Self:
        """The installation's queue.

        Args:
            settings: of the installation.
            patient: outlive a restart of Redis, as a round must. Otherwise every call returns or fails within the
                second that Label Studio waits for the answer to an event.
        """
        quick = connect_redis(settings.redis_url, answer_within_s=ANSWER_WITHIN_S)
        redis = connect_redis(settings.redis_url, patient=True) if patient else quick
        return cls(redis, round_timeout_s=settings.round_timeout_s, progress=quick)

    def ping(self) -> None:
        """Make sure that Redis answers."""
        with self._reachable():
            self.redis.ping()

    def count_changes(
        self, project: ProjectKey, n: int, threshold: int | None = None, annotations: int | None = None
    ) -> QueueStatus:
        """Add changed annotations.

        Args:
            project: the project.
            n: how many changed; 0 only stores the rest.
            threshold: changes that start a round; 0 for none; None leaves it as it was.
            annotations: as Label Studio counts them now; None leaves it as it was.

        Returns:
            The status after it, without progress.
        """
        threshold_text = "" if threshold is None else threshold
        return _status(
            self._run(project, "record", n, threshold_text, "" if annotations is None else annotations), progress=None
        )

    def is_duplicate_event(self, project: ProjectKey, event: str, address: str) -> bool:
        """Whether an event arrived at another address just now, and remember this one.

        Args:
            project: the project.
            event: identifies it among the project's events.
            address: that it arrived at.
        """
        name = f"al:{project}:told:{event}"
        with self._reachable():
            if self.redis.set(name, address, nx=True, ex=DUPLICATE_WITHIN_S):
                return False
            first = self.redis.get(name)
            if first is None or _text(cast(bytes, first)) == address:
                return False
            self.redis.hset(_keys(project)[0], "told_twice_at", f"{time.time():.3f}")
        return True

    def perform(self, project: ProjectKey, action: Action) -> bool:
        """Request what ``policy.decide`` returned; whether a round was requested."""
        if action.request is None:
            return False
        if self.request_round(project, action.request, only_if_idle=action.only_if_idle):
            return True
        return action.otherwise is not None and self.perform(project, action.otherwise)

    def request_round(self, project: ProjectKey, reason: RoundTrigger, *, only_if_idle: bool = False) -> bool:
        """Request a round.

        Args:
            project: the project.
            reason: of the round.
            only_if_idle: refuse while one runs, in the pause after a failure, and soon after the last request.

        Returns:
            False if it was refused, or if a round waits already: that one covers this request.
        """
        return self._enqueue(project, self._run(project, "request", reason, int(only_if_idle), self._cooldown_s))

    def request_due_rounds(self, is_paused: Callable[[ProjectKey], bool] = lambda _project: False) -> int:
        """Request the rounds that time alone makes due, and return their number.

        They are retries of failed rounds after their pause, and rounds whose request was lost. Meant to be called every
        few seconds, by any number of workers.

        Args:
            is_paused: whether a project's owner has paused its rounds.
        """
        with self._reachable():
            projects = [ProjectKey.parse(_text(name)) for name in self.redis.smembers(PROJECTS)]
        requested = 0
        for project in projects:
            status = _status(self._run(project, "state"), progress=None)
            action = decide(ProjectState(status, paused=is_paused(project)), Tick())
            if action.request is not None:
                found = self._run(project, "request_due", action.request, status.generation, status.retry_reason or "")
                requested += self._enqueue(project, found)
        return requested

    def _enqueue(self, project: ProjectKey, reserved: list[bytes]) -> bool:
        if not reserved:
            return False
        generation, reason = int(reserved[0]), _text(reserved[1])
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
                # Of a killed process only: a round that failed with an error is settled, and its retry has no claim.
                retry=Retry(max=1),
            )
        return True

    def claim(self, project: ProjectKey, generation: int) -> "Claim | None":
        """Begin a round: frees the waiting slot, takes the changes, and outdates every other run of the project.

        Returns:
            None if another round has taken its place.
        """
        # Random: a counter would restart in an emptied Redis, and an orphaned run would hold the same number.
        token = secrets.token_hex(8)
        if not (begun := self._run(project, "claim", generation, token)):
            return None
        changes, reason = begun
        return Claim(self, project, generation, token, int(changes), cast(RoundTrigger, _text(reason)))

    def start_training(self, project: ProjectKey, token: str, reason: RoundTrigger) -> int:
        """Turn the re-ranking of this token into a round that trains; returns the changes that the newest run takes."""
        return int(self._run(project, "train", token, reason))

    def fail_lost_round(self, project: ProjectKey, generation: int, message: str) -> None:
        """Fail a round whose process is dead, from outside of it; it is retried after a pause."""
        error = LastError(kind="WorkerLost", message=message, at=time.time())
        self._run(project, "abandon", generation, error.model_dump_json())

    def status(self, project: ProjectKey) -> QueueStatus:
        """Everything that the queue holds about a project."""
        flat = self._run(project, "state")
        with self._reachable():
            progress = self.redis.hgetall(_keys(project)[1])
        return _status(flat, {_text(name): _text(value) for name, value in progress.items()})

    def workers(self) -> int:
        """Number of workers that are alive, busy ones included."""
        with self._reachable():
            return sum(is_fresh(worker.last_heartbeat) for worker in Worker.all(queue=self._jobs))

    def forget(self, project: ProjectKey) -> None:
        """Drop everything about a project; Label Studio refuses its running round, as it has no such project."""
        with self._reachable():
            if waiting := self.redis.hget(_keys(project)[0], "waiting"):
                job_id = f"{_job_prefix(project)}{_text(waiting)}"
                # Gone or begun meanwhile: then its claim will be refused.
                with suppress(NoSuchJobError, InvalidJobOperation):
                    Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer).cancel()
            self.redis.delete(*_keys(project)[:2])
            self.redis.srem(PROJECTS, str(project))

    def settle(self, project: ProjectKey, token: str, error: LastError | None, *, retry: bool = True) -> None:
        """End a round, and request the next one if it is due.

        Args:
            project: the project.
            token: of the run; nothing is changed if it is not the newest.
            error: why it failed; None for a round that was published.
            retry: whether it is retried after a pause, and not only when something changes.
        """
        flat = self._run(project, "settle", token, error.model_dump_json() if error else "", int(retry))
        if flat:
            self.perform(project, decide(ProjectState(_status(flat, progress=None)), RoundEnded()))

    def give_back(self, project: ProjectKey, token: str) -> None:
        """End a run whose worker stops; any worker can begin the round again at once.

        It is no failure: its changes count again, nothing is logged on the project's page, and no pause follows.

        Args:
            project: the project.
            token: of the run; nothing is changed if it is not the newest.
        """
        self._enqueue(project, self._run(project, "give_back", token))

    def newest_token(self, project: ProjectKey) -> str | None:
        """Token of the project's newest run; None if none runs, or Redis was emptied."""
        with self._reachable():
            token = self.redis.hget(_keys(project)[0], "token")
        return None if token is None else _text(token)

    def round_waits(self, project: ProjectKey) -> bool:
        """Whether a round of any project waits for a worker, or one of this project for its turn.

        Never raises: with a Redis that is away none waits.
        """
        try:
            return bool(self._progress.llen(self._jobs.key) or self._progress.hget(_keys(project)[0], "waiting"))
        except RedisError:
            return False

    def write_progress(self, project: ProjectKey, progress: Progress) -> None:
        """Store the position of a round. Never raises: a round does not fail for its progress bar."""
        fields: dict[Any, Any] = progress.model_dump()
        try:
            self._progress.hset(_keys(project)[1], mapping=fields)
        except RedisError as error:
            log.warning("progress not written", project=str(project), error=str(error))

    def _run(self, project: ProjectKey, command: str, *args: str | float) -> Any:
        words = [command, str(project), _job_prefix(project), self._grace_s, *args]
        with self._reachable():
            return self._script(keys=_keys(project), args=words)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise QueueError(
                f"Redis at {self.address} refuses our user or password ({error}): AL_REDIS_URL must hold them, as in "
                "redis://user:password@host:6379/0"
            ) from error
        except RedisError as error:
            tls = issubclass(self.redis.connection_pool.connection_class, SSLConnection)
            url = f"{'rediss' if tls else 'redis'}://{self.address}"
            raise QueueError(
                f"Redis at {self.address} does not answer: {explain_failure(error, url, REDIS)}"
            ) from error

    @property
    def address(self) -> str:
        """Address of Redis, without its password."""
        where = self.redis.connection_pool.connection_kwargs
        host, port = where.get("host") or "localhost", where.get("port") or 6379
        return cast(str, where.get("path") or f"{host}:{port}/{where.get('db', 0)}")


@dataclass(slots=True)
class Claim:
    """A round that has begun.

    Attributes:
        token: fences a run off from later ones; only the newest may publish.
        changes: that this round takes.
        reason: of the round; a stronger one than its request's if that arrived while it waited.
        started: unix seconds.
    """

    queue: RoundQueue
    project: ProjectKey
    generation: int
    token: str
    changes: int
    reason: RoundTrigger = "labels"
    started: float = field(default_factory=time.time)
    _last: Progress | None = None

    def ensure_current(self) -> None:
        """Make sure that no newer run of the project has begun, as far as Redis holds it.

        A Redis that is away or emptied does not stop a round: ``storage.ProjectStore.require_newest`` checks as well.

        Raises:
            StaleRound: a newer run has begun.
        """
        try:
            newest = self.queue.newest_token(self.project)
        except QueueError as error:
            log.warning("the round continues without Redis", error=str(error))
            return
        if newest is not None and newest != self.token:
            raise StaleRound(
                f"run {self.generation} of project {self.project} publishes nothing: a newer one has begun"
            )

    def raise_if_preempted(self) -> None:
        """Make sure that no other run of the project has begun or waits: for work that readers can do without.

        Raises:
            StaleRound: one has begun, or waits for this one to end.
        """
        self.ensure_current()
        try:
            waiting = self.queue.status(self.project).waiting
        except QueueError:
            return
        if waiting is not None:
            raise StaleRound(f"a round of project {self.project} waits ({waiting})")

    def start_training(self) -> RoundTrigger:
        """Turn a re-ranking into a round that trains, if nothing else yields the requested order.

        Without Redis it goes on; the changes that it learns from may then start another round.

        Returns:
            The reason of the round from now on.
        """
        self.reason = "forced"
        try:
            self.changes = self.queue.start_training(self.project, self.token, self.reason)
        except QueueError as error:
            log.warning("the round continues without Redis", error=str(error))
        return self.reason

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show the position of the round, at most five times a second within a stage. Never raises."""
        now, last = time.time(), self._last
        same_stage = last is not None and last.stage == stage
        if last is not None and same_stage and done < total and now - last.updated < PROGRESS_INTERVAL_S:
            return
        self._last = Progress(
            generation=self.generation,
            stage=stage,
            done=done,
            total=total,
            started=self.started,
            stage_started=last.stage_started if last is not None and same_stage else now,
            updated=now,
        )
        self.queue.write_progress(self.project, self._last)

    def finish(self) -> None:
        """The ranking is published.

        Raises:
            QueueError: Redis does not answer.
        """
        self.queue.settle(self.project, self.token, None)

    def fail(self, error: BaseException) -> None:
        """The round failed: its changes are returned, the error is kept, and the round is retried if time may help.

        Raises:
            QueueError: Redis does not answer.
        """
        kept = LastError(kind=type(error).__name__, message=str(error) or repr(error), at=time.time())
        self.queue.settle(self.project, self.token, kept, retry=not isinstance(error, WAITS_FOR_EVENT))

    def give_back(self) -> None:
        """Leave the round to any worker, at once, since this one stops; no failure is counted.

        Raises:
            QueueError: Redis does not answer; the round begins again once its job has missed its heartbeats.
        """
        self.queue.give_back(self.project, self.token)


class Shutdown:
    """Whether the process of a job was asked to stop; the job looks at it between two steps.

    The signal's handler does not raise itself: it may interrupt any line, also one between two halves of a write.

    Attributes:
        signal: that asked for it; None if none did.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def request(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self.signal = signal.Signals(number)

    def raise_if_requested(self, stage: str, done: int, total: int) -> None:
        """Stop the job, unless the stage is done: what comes after the last stage is short.

        Raises:
            WorkerStopping: a signal has come, and a part of the stage is left.
        """
        if self.signal is not None and done < total:
            raise WorkerStopping(f"{self.signal.name} at stage '{stage}', {done} of {total}")


SHUTDOWN: Final = Shutdown()
"""Of this process."""


def _status(flat: list[bytes], progress: dict[str, str] | None) -> QueueStatus:
    """Of the hash's names and values in turn, also as earlier versions have written it."""
    state = {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return QueueStatus.model_validate(
        {name: state[name] for name in QueueStatus.model_fields if name in state}
        | {
            "waiting": state.get("waiting_reason"),
            "running": state.get("running_reason"),
            "progress": progress if "running" in state and progress else None,
            "last_error": json.loads(state["last_error"]) if "last_error" in state else None,
            "next_attempt": state.get("not_before") if "retry_reason" in state else None,
        }
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _keys(project: ProjectKey) -> list[str]:
    return [f"al:{project}", f"al:{project}:progress", PROJECTS]


def _job_prefix(project: ProjectKey) -> str:
    return f"round-{project.id}-{project.created}-"  # rq takes no dot in a job's id
