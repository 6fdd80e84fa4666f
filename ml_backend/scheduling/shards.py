"""Workers that score parts of another worker's pool. Every key in Redis expires by itself.

::

    al:scoring:<name>         the round that asks for help is alive
    al:scoring:<name>:<n>     claimant of shard n, or "done"

A job asks for help and names no shard: its worker takes shards as long as there are any, so that PyTorch and the
network are loaded once.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Self

import structlog
from redis import Redis, RedisError
from rq import Queue, Worker, get_current_job
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.config import Settings
from ml_backend.errors import BackendError, QueueError, StaleRound
from ml_backend.logs import set_up_logs
from ml_backend.predictions import PoolPredictions
from ml_backend.scheduling.queue import SHUTDOWN, connect_redis, is_fresh
from ml_backend.schemas import ProjectKey
from ml_backend.storage import RoundStore, ScoringFolder

QUEUE_SHARDS = "shards"
SHARD_JOB = "ml_backend.worker.shards.run"

OPEN_S = 60
CLAIM_S = 30
DONE_S = 24 * 3600
JOB_KEPT_S = 3600
KEEP_INTERVAL_S = 1.0

# KEYS: the scoring, the shard. ARGV: the claimant, seconds.
_IF_MINE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('EXPIRE', KEYS[2], ARGV[2])
"""
_IF_OPEN = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('SET', KEYS[2], 'done', 'EX', ARGV[2]) end
"""

Score = Callable[[int], PoolPredictions]

log = structlog.get_logger()


class ShardQueue:
    """The shards of one project's pools, as one process sees them. Every method raises QueueError without Redis.

    Satisfies ``rounds.sharding.ShardBoard``.

    Args:
        redis: a client that answers in bytes, and gives up soon.
        project: the project.
        timeout_s: the longest time that a helper may take.
        claim_s: a shard that its claimant does not keep for this time is free again.
        open_s: a scoring that its round does not keep open for this time is over.
    """

    def __init__(
        self,
        redis: Redis,
        project: ProjectKey,
        *,
        timeout_s: int = 24 * 3600,
        claim_s: int = CLAIM_S,
        open_s: int = OPEN_S,
    ) -> None:
        self.redis = redis
        self._project = project
        self._timeout_s = timeout_s
        self._claim_s = claim_s
        self._open_s = open_s
        self._token = secrets.token_hex(8)
        self._jobs = Queue(QUEUE_SHARDS, connection=redis, serializer=JSONSerializer)
        self._if_mine = redis.register_script(_IF_MINE)
        self._if_open = redis.register_script(_IF_OPEN)

    @classmethod
    def from_settings(cls, settings: Settings, project: ProjectKey) -> Self:
        """The installation's queue. It gives up soon: without Redis the round scores its pool alone."""
        return cls(connect_redis(settings.redis_url), project, timeout_s=settings.round_timeout_s)

    def helpers(self) -> int:
        """Number of workers that are alive, busy ones included, apart from the one that runs this job."""
        job = get_current_job()
        own = job.worker_name if job else None
        with self._reachable():
            return sum(is_fresh(one.last_heartbeat) and one.name != own for one in Worker.all(queue=self._jobs))

    def post(self, scoring: str, helpers: int) -> None:
        """Ask that many workers for help."""
        self.keep_open(scoring)
        with self._reachable():
            for number in range(helpers):
                self._jobs.enqueue_call(
                    SHARD_JOB,
                    args=(str(self._project), scoring),
                    job_id=_job_id(scoring, number),
                    description=f"help with the pool of project {self._project}",
                    timeout=self._timeout_s,
                    ttl=self._timeout_s,
                    result_ttl=JOB_KEPT_S,
                    failure_ttl=JOB_KEPT_S,
                )
            self.redis.set(f"{_key(scoring)}:jobs", helpers, ex=self._timeout_s)

    def keep_open(self, scoring: str) -> None:
        """Say that the round that asks for help is alive."""
        with self._reachable():
            self.redis.set(_key(scoring), str(self._project), ex=self._open_s)

    def is_open(self, scoring: str) -> bool:
        """Whether the round that asked for help is alive, and its pool not scored yet."""
        with self._reachable():
            return bool(self.redis.exists(_key(scoring)))

    def claim(self, scoring: str, shard: int) -> bool:
        """Take a shard; False if another process has it, or it is done."""
        with self._reachable():
            return bool(self.redis.set(_key(scoring, shard), self._token, nx=True, ex=self._claim_s))

    def keep(self, scoring: str, shard: int) -> bool:
        """Extend the claim of this process; False if the shard is lost, or the scoring closed."""
        with self._reachable():
            keys = [_key(scoring), _key(scoring, shard)]
            return bool(self._if_mine(keys=keys, args=[self._token, self._claim_s]))

    def release(self, scoring: str, shard: int) -> None:
        """Give a shard up."""
        with self._reachable():
            self._if_mine(keys=[_key(scoring), _key(scoring, shard)], args=[self._token, 0])

    def finish(self, scoring: str, shard: int) -> None:
        """Mark a shard as done, unless the scoring is closed."""
        with self._reachable():
            self._if_open(keys=[_key(scoring), _key(scoring, shard)], args=[self._token, DONE_S])

    def forget(self, scoring: str) -> None:
        """Close a scoring: helpers stop at their next batch of images, jobs that no worker began are withdrawn."""
        with self._reachable():
            calls = int(self.redis.get(f"{_key(scoring)}:jobs") or 0)
            for number in range(calls):
                # Begun already, or gone.
                with suppress(NoSuchJobError, InvalidJobOperation):
                    job = Job.fetch(_job_id(scoring, number), connection=self.redis, serializer=JSONSerializer)
                    if job.is_queued:
                        job.delete()
            self.redis.delete(_key(scoring), *self.redis.scan_iter(f"{_key(scoring)}:*", count=1000))

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise QueueError(f"Redis does not answer ({error}): the pool is scored without helpers") from error


def run(project: str, scoring: str) -> dict[str, str | int]:
    """The job of a helper: score shards of a round's pool; rq keeps the result for an hour.

    A failure is logged and harmless: the round scores what no helper has.

    Args:
        project: ``"<id>.<unix seconds>"``.
        scoring: name of the folder with the round's shards.

    Raises:
        SettingsError: the environment is wrong.
        QueueError: Redis does not answer at the start.
    """
    settings = Settings.load()
    set_up_logs(settings)
    key = ProjectKey.parse(project)
    folder = RoundStore(settings.data_dir).project(key).scoring(scoring)
    with structlog.contextvars.bound_contextvars(project=project, round=folder.round_id, scoring=scoring):
        helper = _Helper(ShardQueue.from_settings(settings, key), folder)
        try:
            return helper.score(lambda: _scorer(settings, key, folder, helper.progress))
        except StaleRound as error:
            log.info("help ends", reason=str(error), shards=helper.done)
            return {"outcome": "called off", "shards": helper.done}
        except BackendError as error:
            log.warning("no help", error=str(error), kind=type(error).__name__, shards=helper.done)
            return {"outcome": "failed", "shards": helper.done, "error": str(error)}
        finally:
            helper.release()


class _Helper:
    """Takes one shard after the other; ``done`` is their number."""

    def __init__(self, board: ShardQueue, folder: ScoringFolder) -> None:
        self._board = board
        self._folder = folder
        self._shard: int | None = None
        self._kept = time.monotonic()
        self.done = 0

    def score(self, scorer: Callable[[], AbstractContextManager[Score]]) -> dict[str, str | int]:
        """Score the shards that no other process has.

        Raises:
            StaleRound: the round is over, or has scored this shard itself.
            BackendError: the network cannot be loaded, or scoring failed.
        """
        task = self._folder.task()
        if task is None or not self._board.is_open(self._folder.name):
            log.info("nothing to do: the pool is scored, or the worker of the round has another data folder")
            return {"outcome": "over", "shards": 0}
        if not self._take_next(task.shards):
            return {"outcome": "nothing left", "shards": 0}
        with scorer() as score:
            while self._shard is not None:
                outputs = score(self._shard)
                self._keep()
                self._folder.write(self._shard, outputs)
                self._board.finish(self._folder.name, self._shard)
                self.done += 1
                self._take_next(task.shards)
        log.info("helped", shards=self.done)
        return {"outcome": "helped", "shards": self.done}

    def progress(self, stage: str, done: int, total: int) -> None:
        """Extend the claim of the shard, once a second.

        Raises:
            StaleRound: it is lost: the round is over, or has scored it without this worker.
            WorkerStopping: this worker was asked to stop.
        """
        SHUTDOWN.raise_if_requested(stage, done, total)
        if time.monotonic() - self._kept >= KEEP_INTERVAL_S:
            self._keep()

    def release(self) -> None:
        """Give up a shard that was begun. Never raises: its claim expires by itself."""
        if self._shard is not None:
            try:
                self._board.release(self._folder.name, self._shard)
            except BackendError as error:
                log.warning("a shard could not be released", shard=self._shard, error=str(error))

    def _take_next(self, shards: int) -> bool:
        # The first is scored by the round itself.
        free = (n for n in range(1, shards) if not self._folder.has(n) and self._board.claim(self._folder.name, n))
        self._shard = next(free, None)
        return self._shard is not None

    def _keep(self) -> None:
        self._kept = time.monotonic()
        if self._shard is not None and not self._board.keep(self._folder.name, self._shard):
            shard, self._shard = self._shard, None
            raise StaleRound(
                f"shard {shard} is no longer this worker's: the pool is scored, or this worker was too slow"
            )


def _scorer(
    settings: Settings, key: ProjectKey, folder: ScoringFolder, progress: Callable[[str, int, int], None]
) -> AbstractContextManager[Score]:
    # Imports torch, which only the forked process may do if there is a GPU.
    from ml_backend.rounds.live import shard_scorer  # noqa: PLC0415

    return shard_scorer(settings, key, folder, progress)


def _key(scoring: str, shard: int | None = None) -> str:
    return f"al:scoring:{scoring}" if shard is None else f"al:scoring:{scoring}:{shard}"


def _job_id(scoring: str, number: int) -> str:
    return f"shards-{scoring}-{number}"
