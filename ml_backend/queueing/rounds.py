"""The queue of rounds, over Redis and rq.

rq's rate limit lets one job of a project through at a time, so that with two workers the second round waits.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from typing import Any, Self, cast

import structlog
from redis import AuthenticationError, Redis, RedisError, SSLConnection
from rq import Queue, RateLimit, Retry, Worker
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.errors import QueueError
from ml_backend.queueing.claim import Claim
from ml_backend.queueing.connection import connect_redis, is_fresh
from ml_backend.queueing.status import Counted, LastError, Progress, QueueStatus
from ml_backend.records import ProjectKey, Reason
from ml_backend.settings import Settings
from ml_backend.settings.network import Server, explain_failure

__all__ = ["JOB", "PROJECTS", "QUEUE", "RoundQueue"]

QUEUE = "rounds"
JOB = "ml_backend.worker.job.run"
PROJECTS = "al:projects"
ANSWER_WITHIN_S = 0.8  # Label Studio waits one second for the answer to an event

# Label Studio sends an event to one webhook after the other, and waits a second for each.
TOLD_AGAIN_WITHIN_S = 30
REDIS = Server("start it", "AL_REDIS_URL")
RESULT_TTL_S = 24 * 3600
FAILURE_TTL_S = 7 * 24 * 3600
SCRIPT = files("ml_backend.queueing").joinpath("state.lua").read_text()

log = structlog.get_logger()


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
        return Claim(self, project, generation, token, int(changes), cast(Reason, _text(reason)))

    def learn(self, project: ProjectKey, token: str, reason: Reason) -> int:
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
