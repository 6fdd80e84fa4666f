"""The runs of a study on several workers: a queue of their own, on a Valkey that we start or on any Redis."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from redis import Redis, RedisError
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from ml_backend.errors import QueueError, ServiceError
from ml_backend.processes import Service, Valkey, private_folder
from ml_backend.queueing import connect_redis

__all__ = ["JOB", "QUEUE_STUDY", "StudyQueue", "StudyWorker", "on_own_workers"]

QUEUE_STUDY: Final = "study"
JOB: Final = "ml_backend.study.job.run"
POLL_S: Final = 0.5
CLEANUP_EVERY_S: Final = 5.0
BETWEEN_S: Final = 15.0
RUN_TIMEOUT_S: Final = 7 * 24 * 3600
KEPT_S: Final = 24 * 3600
ATTEMPTS: Final = 3  # of a run whose worker dies
STARTS: Final = 5  # of a worker that dies


class StudyQueue:
    """The runs of one study as jobs, each at most once in the queue.

    Args:
        redis: a client that answers in bytes.
        out: folder of the study; names its jobs too.
    """

    def __init__(self, redis: Redis, out: Path) -> None:
        self._redis = redis
        self._out = str(out.absolute())
        self._key = hashlib.sha256(self._out.encode()).hexdigest()[:12]
        self._queue = Queue(QUEUE_STUDY, connection=redis, serializer=JSONSerializer)
        self._cleaned = time.monotonic()
        self._between: dict[str, float] = {}  # taken and not begun: since when

    def do(self, names: Sequence[str], watch: Callable[[], None]) -> None:
        """Have runs done, and wait for them.

        Args:
            names: of the runs.
            watch: called twice a second.

        Raises:
            QueueError: Redis does not answer, or a run came to nothing: with the worker's reason.
        """
        try:
            for name in names:
                self._forget(name)
                self._queue.enqueue_call(
                    JOB,
                    args=(self._out, name),
                    job_id=self._job_id(name),
                    description=f"run {name} of a study",
                    timeout=RUN_TIMEOUT_S,
                    result_ttl=KEPT_S,
                    failure_ttl=KEPT_S,
                    retry=Retry(max=ATTEMPTS - 1),
                )
            waiting = list(names)
            while waiting := [name for name in waiting if not self._is_done(name)]:
                self._free_the_dead()
                watch()
                time.sleep(POLL_S)
            watch()
        except RedisError as error:
            raise QueueError(
                f"Redis does not answer ({type(error).__name__}): start it, and give the same command again to go on"
            ) from error
        except BaseException:
            # Ours, so that no worker begins a run that nobody waits for.
            self._withdraw(names)
            raise

    def _job_id(self, name: str) -> str:
        # rq's names hold no other signs; a strategy's name may.
        return f"study-{self._key}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"

    def _is_done(self, name: str) -> bool:
        try:
            job = Job.fetch(self._job_id(name), connection=self._redis, serializer=JSONSerializer)
            status = job.get_status()
        except NoSuchJobError as error:
            raise QueueError(
                f"run {name} is gone from Redis, which was emptied: give the same command again"
            ) from error
        if status is JobStatus.FINISHED:
            if (reason := job.return_value()) is not None:
                raise QueueError(str(reason))
            return True
        if status in {JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}:
            result = job.latest_result()
            last = str(result.exc_string if result else "").strip().splitlines()
            raise QueueError(
                f"run {name} came to nothing {ATTEMPTS} times ({last[-1] if last else 'its worker died'}): look into "
                "the worker's log, and give the same command again to go on"
            )
        return False

    def _free_the_dead(self) -> None:
        """Give runs whose worker has died back to the queue; found out within half a minute."""
        if (now := time.monotonic()) - self._cleaned >= CLEANUP_EVERY_S:
            self._cleaned = now
            StartedJobRegistry(queue=self._queue).cleanup()
            self._put_back(now)

    def _put_back(self, now: float) -> None:
        """Runs that a worker took and did not begin: it died in between, and no other may be there to notice."""
        key = self._queue.intermediate_queue_key
        between = {str(job_id, "utf-8") for job_id in self._redis.lrange(key, 0, -1) if isinstance(job_id, bytes)}
        # A worker that lives leaves a run there for milliseconds.
        self._between = {job_id: self._between.get(job_id, now) for job_id in between}
        for job_id in [job_id for job_id, since in self._between.items() if now - since >= BETWEEN_S]:
            if self._redis.lrem(key, 1, job_id):
                self._queue.push_job_id(job_id)

    def _withdraw(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                if self._job_id(name) in self._queue.job_ids:
                    self._forget(name)
        except RedisError:
            return  # whoever stops us is not to wait for it

    def _forget(self, name: str) -> None:
        try:
            Job.fetch(self._job_id(name), connection=self._redis, serializer=JSONSerializer).delete()
        except NoSuchJobError:
            return


class StudyWorker(Service):
    """A worker of ours, ``ml-backend work --study --burst``: it ends when no run waits.

    Args:
        number: among the workers of a study.
        environ: of the worker.
        log: file that its output goes to.
    """

    grace_s = 1.0  # a run that is cut off goes on from its last whole round

    def __init__(self, number: int, environ: Mapping[str, str], log: Path) -> None:
        super().__init__(f"worker {number}")
        self._environ = environ
        self._log = log

    def start(self) -> Self:
        self._run([sys.executable, "-m", "ml_backend", "work", "--study", "--burst"], self._environ, self._log)
        return self

    def is_ready(self) -> bool:
        """Always: its runs are waited for, not itself."""
        return True

    def has_ended(self) -> bool:
        """Whether it has ended, because no run was left or by accident."""
        try:
            self.check()
        except ServiceError:
            return True
        return False


class _Staff:
    """Keeps as many workers as there is work for."""

    def __init__(self, workers: Sequence[StudyWorker], queue: Queue) -> None:
        self._workers = workers
        self._queue = queue
        self._starts = dict.fromkeys(range(len(workers)), 0)

    def watch(self) -> None:
        """Start a worker again that has ended, while runs wait.

        Raises:
            ServiceError: one does not stay; with the end of its log.
        """
        waiting = self._queue.count
        for number, worker in enumerate(self._workers):
            if not waiting:
                return
            if self._starts[number] and not worker.has_ended():
                continue
            if self._starts[number] >= STARTS:
                worker.check()
            self._starts[number] += 1
            worker.start()
            waiting -= 1


@contextmanager
def on_own_workers(count: int, out: Path, device: str) -> Iterator[tuple[StudyQueue, Callable[[], None]]]:
    """A Valkey and workers of ours, for as long as the block runs.

    Args:
        count: workers at most; each uses one thread.
        out: folder of the study; logs go to ``<out>/workers``.
        device: of the study.

    Yields:
        The queue, and what must be called now and then while it is waited for.

    Raises:
        ServiceError: one of them does not start.
    """
    folder = private_folder(out.absolute() / "workers")
    with Valkey(folder / "valkey").start().wait() as valkey, connect_redis(valkey.url, patient=True) as redis:
        # A run that stood there when the last call was killed stands in the journals too.
        redis.flushdb()
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environ = {**os.environ, **single, "AL_REDIS_URL": valkey.url, "AL_DEVICE": device}
        workers = [StudyWorker(n, environ, folder / f"worker-{n}.log") for n in range(1, count + 1)]
        staff = _Staff(workers, Queue(QUEUE_STUDY, connection=redis, serializer=JSONSerializer))
        try:
            yield StudyQueue(redis, out), staff.watch
        finally:
            for worker in workers:
                worker.stop()
