"""Who scores which shard of a pool, over Redis and rq. Every key expires by itself.

::

    al:scoring:<name>         the round that asks for help lives
    al:scoring:<name>:<n>     who has shard n, or that it is done

A job is a call for help and no shard: whoever follows it takes shards as long as there are any, so that PyTorch and
the network are loaded once.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from redis import Redis, RedisError
from rq import Queue, Worker, get_current_job
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.config import Settings
from ml_backend.errors import QueueError
from ml_backend.scheduling.queue import connect_redis, is_fresh
from ml_backend.schemas import ProjectKey

QUEUE_SHARDS = "shards"
SHARD_JOB = "ml_backend.worker.shards.run"

OPEN_S = 60
CLAIM_S = 30
DONE_S = 24 * 3600
JOB_KEPT_S = 3600

# KEYS: the scoring, the shard. ARGV: the claimant, seconds.
_IF_MINE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('EXPIRE', KEYS[2], ARGV[2])
"""
_IF_OPEN = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('SET', KEYS[2], 'done', 'EX', ARGV[2]) end
"""


class ShardQueue:
    """The board of one process, for one project. Satisfies ``engine.sharing.ShardBoard``.

    Args:
        redis: a client that answers in bytes, and gives up soon.
        project: whose pools are scored.
        timeout_s: the longest time that a helper may take.
        claim_s: a shard that is not kept this long is anybody's again.
        open_s: a scoring that is not kept open this long is nobody's any more.
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
        """The installation's queue. Impatient: without it a pool is scored all the same."""
        return cls(connect_redis(settings.redis_url), project, timeout_s=settings.round_timeout_s)

    def helpers(self) -> int:
        """Workers that are alive, busy ones too, apart from the one that runs this job.

        Raises:
            QueueError: Redis does not answer.
        """
        job = get_current_job()
        own = job.worker_name if job else None
        with self._reachable():
            return sum(is_fresh(one.last_heartbeat) and one.name != own for one in Worker.all(queue=self._jobs))

    def post(self, scoring: str, helpers: int) -> None:
        """Ask that many workers for help.

        Raises:
            QueueError: Redis does not answer.
        """
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
        """The round that asks for help lives.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            self.redis.set(_key(scoring), str(self._project), ex=self._open_s)

    def is_open(self, scoring: str) -> bool:
        """Whether the round that asked for help lives, and its pool is not scored yet.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            return bool(self.redis.exists(_key(scoring)))

    def claim(self, scoring: str, shard: int) -> bool:
        """Take a shard; False where somebody has it, or it is done.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            return bool(self.redis.set(_key(scoring, shard), self._token, nx=True, ex=self._claim_s))

    def keep(self, scoring: str, shard: int) -> bool:
        """Say that this process is still at it; False where the shard is lost, or the scoring closed.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            keys = [_key(scoring), _key(scoring, shard)]
            return bool(self._if_mine(keys=keys, args=[self._token, self._claim_s]))

    def release(self, scoring: str, shard: int) -> None:
        """Give a shard back.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            self._if_mine(keys=[_key(scoring), _key(scoring, shard)], args=[self._token, 0])

    def finish(self, scoring: str, shard: int) -> None:
        """A shard is done: nobody takes it again. Nothing is noted where the scoring is closed.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            self._if_open(keys=[_key(scoring), _key(scoring, shard)], args=[self._token, DONE_S])

    def forget(self, scoring: str) -> None:
        """Close a scoring: helpers stop at their next batch of images, calls that nobody followed are withdrawn.

        Raises:
            QueueError: Redis does not answer.
        """
        with self._reachable():
            calls = int(self.redis.get(f"{_key(scoring)}:jobs") or 0)
            for number in range(calls):
                # Followed already, or gone.
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


def _key(scoring: str, shard: int | None = None) -> str:
    return f"al:scoring:{scoring}" if shard is None else f"al:scoring:{scoring}:{shard}"


def _job_id(scoring: str, number: int) -> str:
    return f"shards-{scoring}-{number}"
