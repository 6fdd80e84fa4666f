"""Connections to Redis: how long to wait, and how often to try again; and who is connected besides.

What can be read about a project's rounds.
A round that has begun: may it still publish, where is it, how did it end.
The queue of rounds, over Redis and rq.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast
from urllib.parse import urlsplit, urlunsplit

import structlog
from redis import AuthenticationError, Redis, RedisError, SSLConnection
from redis import ConnectionError as NotConnected
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry as RedisRetry
from rq import Queue, RateLimit, Retry, Worker
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.config import Settings
from ml_backend.config.network import Server, explain_failure, trusted_certificates
from ml_backend.errors import EmptyPool, QueueError, SettingsError, StaleRound, TooFewLabels, UnknownProject
from ml_backend.schemas import FrozenModel, ProjectKey, RoundTrigger

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


class Counted(NamedTuple):
    """What a count of changes found."""

    changes: int  # since the last round took them
    due: bool  # they reached the threshold
    threshold_before: int  # what the threshold was; 0: rounds did not start by themselves


class LastError(FrozenModel):
    """Why the last round failed."""

    kind: str  # name of the error's class
    message: str
    at: float  # unix seconds


class Progress(FrozenModel):
    """Where the running round is."""

    generation: int
    stage: str
    done: int
    total: int
    started: float  # unix seconds: the round
    stage_started: float  # unix seconds: the stage
    updated: float  # unix seconds


class QueueStatus(FrozenModel):
    """Everything that the queue knows about a project."""

    changes: int = 0  # since the last round took them
    threshold: int = 0  # changes that start a round; 0: none starts by itself
    annotations: int | None = None  # as Label Studio counted them in its last event
    waiting: RoundTrigger | None = None
    running: RoundTrigger | None = None
    progress: Progress | None = None
    last_error: LastError | None = None  # of the last round, where it failed
    error_reason: RoundTrigger | None = None  # what that round was for
    failures: int = 0  # rounds that failed in a row
    next_attempt: float | None = None  # unix seconds; of a failed round that is tried again by itself
    rounds_finished: int = 0
    rounds_failed: int = 0
    told_twice_at: float | None = None  # unix seconds: when an event came to two addresses; None: none ever did

    @property
    def ran_out(self) -> bool:
        """Whether the last round found no image to rank. Whether that is a fault, the project's images say."""
        return self.last_error is not None and self.last_error.kind in ("EmptyPool", "UnusablePool")

    @property
    def failing(self) -> bool:
        """Whether there is something to mend: not so where the last round only found every image labelled."""
        return self.last_error is not None and self.last_error.kind != "EmptyPool"

    @property
    def learning_failed(self) -> bool:
        """Whether the last round came to nothing that would have learned from the labels."""
        return self.last_error is not None and self.error_reason not in ("topup", "rerank")


PROGRESS_INTERVAL_S = 0.2
# Time alone mends none of these: images, labels and a connection come with an event of their own.
WAITS_FOR_AN_EVENT = (EmptyPool, TooFewLabels, UnknownProject)


class _Queue(Protocol):
    def newest(self, project: ProjectKey) -> str | None: ...

    def status(self, project: ProjectKey) -> QueueStatus: ...

    def learn(self, project: ProjectKey, token: str, reason: RoundTrigger) -> int: ...

    def settle(self, project: ProjectKey, token: str, error: LastError | None, *, again: bool = True) -> None: ...

    def write_progress(self, project: ProjectKey, progress: Progress) -> None: ...


@dataclass(slots=True)
class Claim:
    """A round that has begun. ``progress`` and ``guard`` are what ``engine.ports`` wants under these names.

    Attributes:
        token: fences a run off from later ones; only the newest may publish.
        changes: that this round answers for.
        reason: what calls for the round; another than that of the request where a stronger one came while it waited.
        started: unix seconds.
    """

    queue: _Queue
    project: ProjectKey
    generation: int
    token: str
    changes: int
    reason: RoundTrigger = "labels"
    started: float = field(default_factory=time.time)
    _last: Progress | None = None

    def guard(self) -> None:
        """Make sure that no newer run of the project has begun, as far as Redis knows.

        Redis may be away, or emptied: it is no reason to lose a round. ``storage.ProjectStore.require_newest`` stands
        guard beside this.

        Raises:
            StaleRound: a newer run has begun.
        """
        try:
            newest = self.queue.newest(self.project)
        except QueueError as error:
            log.warning("the round goes on without Redis", error=str(error))
            return
        if newest is not None and newest != self.token:
            raise StaleRound(
                f"run {self.generation} of project {self.project} publishes nothing: a newer one has begun"
            )

    def raise_if_preempted(self) -> None:
        """Make sure that no other run of the project has begun or waits: for what readers can do without.

        Raises:
            StaleRound: one has begun, or waits for this one to end.
        """
        self.guard()
        try:
            waiting = self.queue.status(self.project).waiting
        except QueueError:
            return
        if waiting is not None:
            raise StaleRound(f"a round of project {self.project} waits ({waiting})")

    def learn(self) -> RoundTrigger:
        """Go on as a round that learns: what was asked for can be had in no other way.

        A Redis that is away is no reason to lose it; then the changes that it learns from may call for another round.

        Returns:
            The reason of the round from now on.
        """
        self.reason = "forced"
        try:
            self.changes = self.queue.learn(self.project, self.token, self.reason)
        except QueueError as error:
            log.warning("the round goes on without Redis", error=str(error))
        return self.reason

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show where the round is, at most five times a second within a stage. Never raises."""
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
        """The round came to nothing: its changes are given back, the error is kept, and time alone starts it again.

        What waits for images, for labels or for a connection comes again with these.

        Raises:
            QueueError: Redis does not answer.
        """
        kind, message = type(error).__name__, str(error) or repr(error)
        told = LastError(kind=kind, message=message, at=time.time())
        self.queue.settle(self.project, self.token, told, again=not isinstance(error, WAITS_FOR_AN_EVENT))


QUEUE = "rounds"
JOB = "ml_backend.worker.job.run"
PROJECTS = "al:projects"
ANSWER_WITHIN_S = 0.8  # Label Studio waits one second for the answer to an event

# Label Studio sends an event to one webhook after the other, and waits a second for each.
TOLD_AGAIN_WITHIN_S = 30
REDIS = Server("start it", "AL_REDIS_URL")
RESULT_TTL_S = 24 * 3600
FAILURE_TTL_S = 7 * 24 * 3600
SCRIPT = files("ml_backend.scheduling").joinpath("state.lua").read_text()


class RoundQueue:
    """The queue of rounds.

    Args:
        redis: a client that answers in bytes.
        round_timeout_s: the longest time that a round may take.
        grace_s: how long a reserved slot may stand without its job before it counts as lost.
        cooldown_s: how soon after any request one with ``only_if_idle`` is refused.
        progress: a client that gives up at once, for the progress bar; by default ``redis``.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        round_timeout_s: int = 24 * 3600,
        grace_s: float = 30.0,
        cooldown_s: float = 60.0,
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
            patient: outlive a restart of Redis, as a round must. Otherwise every answer comes within a second or not
                at all: Label Studio has hung up by then, and holds itself what was not counted here.
        """
        quick = connect_redis(settings.redis_url, answer_within_s=ANSWER_WITHIN_S)
        redis = connect_redis(settings.redis_url, patient=True) if patient else quick
        return cls(redis, round_timeout_s=settings.round_timeout_s, progress=quick)

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

    def told_before(self, project: ProjectKey, event: str, address: str) -> bool:
        """Whether an event has come to another address just now; notes it, and when one did.

        Args:
            project: the project.
            event: what names it among the project's others.
            address: that it came to.

        Raises:
            QueueError: Redis does not answer.
        """
        name = f"al:{project}:told:{event}"
        with self._reachable():
            if self.redis.set(name, address, nx=True, ex=TOLD_AGAIN_WITHIN_S):
                return False
            first = self.redis.get(name)
            if first is None or _text(cast(bytes, first)) == address:
                return False
            self.redis.hset(_keys(project)[0], "told_twice_at", f"{time.time():.3f}")
        return True

    def request_round(self, project: ProjectKey, reason: RoundTrigger, *, only_if_idle: bool = False) -> bool:
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
        reserved = self._run(project, "request", reason, int(only_if_idle), self._cooldown_s)
        return bool(reserved) and self._enqueue(project, *reserved)

    def request_due(self, held: Callable[[ProjectKey], bool] = lambda _project: False) -> int:
        """Ask for the rounds that nobody asks for, and say how many they are.

        They are the next attempts of failed rounds whose pause is over, and rounds whose request was lost. Meant to be
        called every few seconds, by however many workers. A project that is ``held`` is left alone.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            projects = [ProjectKey.parse(_text(name)) for name in self.redis.smembers(PROJECTS)]
        reserved = ((project, self._run(project, "tick")) for project in projects if not held(project))
        return sum(self._enqueue(project, *found) for project, found in reserved if found)

    def _enqueue(self, project: ProjectKey, generation: bytes, reason: bytes) -> bool:
        with self._reachable():
            self._jobs.enqueue_call(
                JOB,
                args=(str(project), int(generation), _text(reason)),
                job_id=f"{_job_prefix(project)}{int(generation)}",
                description=f"round of project {project} ({_text(reason)})",
                timeout=self._round_timeout_s,
                result_ttl=RESULT_TTL_S,
                failure_ttl=FAILURE_TTL_S,
                rate_limit=RateLimit(f"project-{project}", 1),
                # Of a killed process only: a round that failed in words is settled, and its retry finds no claim.
                retry=Retry(max=1),
            )
        return True

    def claim(self, project: ProjectKey, generation: int) -> Claim | None:
        """Begin a round: frees the waiting slot, takes the changes, and outdates every other run of the project.

        Returns:
            None where another round has taken the place of this one.

        Raises:
            QueueError: Redis does not answer.
        """
        # Drawn, not counted: a counter would begin anew in an emptied Redis, and an orphan would hold the same number.
        token = secrets.token_hex(8)
        if not (begun := self._run(project, "claim", generation, token)):
            return None
        changes, reason = begun
        return Claim(self, project, generation, token, int(changes), cast(RoundTrigger, _text(reason)))

    def learn(self, project: ProjectKey, token: str, reason: RoundTrigger) -> int:
        """Let the re-ranking of this token go on as a round that learns; gives the changes that the newest run takes.

        Raises:
            QueueError: Redis does not answer.
        """
        return int(self._run(project, "learn", token, reason))

    def abandon(self, project: ProjectKey, generation: int, message: str) -> None:
        """Fail a round whose process is dead, from outside of it; it is tried again after a pause.

        Raises:
            QueueError: Redis does not answer.
        """
        error = LastError(kind="WorkerLost", message=message, at=time.time())
        self._run(project, "abandon", generation, error.model_dump_json())

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
                "next_attempt": state.get("not_before") if "retry_reason" in state else None,
            }
        )

    def workers(self) -> int:
        """Workers that are alive, busy ones too.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            return sum(is_fresh(worker.last_heartbeat) for worker in Worker.all(queue=self._jobs))

    def forget(self, project: ProjectKey) -> None:
        """Drop everything about a project; a round that runs is refused by Label Studio, which has no such project.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            if waiting := self.redis.hget(_keys(project)[0], "waiting"):
                job_id = f"{_job_prefix(project)}{_text(waiting)}"
                # Gone or begun meanwhile: then its claim will be refused.
                with suppress(NoSuchJobError, InvalidJobOperation):
                    Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer).cancel()
            self.redis.delete(*_keys(project)[:2])
            self.redis.srem(PROJECTS, str(project))

    def settle(self, project: ProjectKey, token: str, error: LastError | None, *, again: bool = True) -> None:
        """End a round; asks for the next one where enough changed meanwhile.

        Args:
            project: the project.
            token: of the run; nothing is changed where it is not the newest.
            error: why it came to nothing; None for a round that was published.
            again: try again after a pause, and not only when something changes.

        Raises:
            QueueError: Redis does not answer.
        """
        if self._run(project, "settle", token, error.model_dump_json() if error else "", int(again)):
            self.request_round(project, "labels")

    def newest(self, project: ProjectKey) -> str | None:
        """Token of the project's newest run; None where none runs, or Redis was emptied.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            token = self.redis.hget(_keys(project)[0], "token")
        return None if token is None else _text(token)

    def write_progress(self, project: ProjectKey, progress: Progress) -> None:
        """Show where a round is. Never raises: a round does not fail for its progress bar."""
        fields: dict[Any, Any] = progress.model_dump()
        try:
            self._progress.hset(_keys(project)[1], mapping=fields)
        except RedisError as error:
            log.warning("progress not written", project=str(project), error=str(error))

    def _run(self, project: ProjectKey, command: str, *args: str | float) -> Any:
        job_prefix = f"{Job.redis_job_namespace_prefix}{_job_prefix(project)}"
        with self._reachable():
            return self._script(keys=_keys(project), args=[command, str(project), job_prefix, self._grace_s, *args])

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
            raise QueueError(
                f"Redis at {self.address} does not answer: {explain_failure(error, self._url, REDIS)}"
            ) from error

    @property
    def _url(self) -> str:
        scheme = "rediss" if issubclass(self.redis.connection_pool.connection_class, SSLConnection) else "redis"
        return f"{scheme}://{self.address}"

    @property
    def address(self) -> str:
        """Where Redis is, without its password."""
        where = self.redis.connection_pool.connection_kwargs
        host, port = where.get("host") or "localhost", where.get("port") or 6379
        return cast(str, where.get("path") or f"{host}:{port}/{where.get('db', 0)}")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _keys(project: ProjectKey) -> list[str]:
    return [f"al:{project}", f"al:{project}:progress", PROJECTS]


def _job_prefix(project: ProjectKey) -> str:
    return f"round-{project.id}-{project.created}-"  # rq takes no dot in a job's id
