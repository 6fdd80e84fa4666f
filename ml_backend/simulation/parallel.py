"""How far a study is: a bar with the time left on a terminal, now and then a line elsewhere.

The runs of a study on several workers: a queue of their own, on a Valkey that we start or on any Redis.
What a worker does for a study: one of its runs, read from the plan in the shared folder.
A worker for the runs of studies, here or on another machine that sees the same folders.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog
from redis import Redis, RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from ml_backend.config import Settings
from ml_backend.errors import BackendError, QueueError, ServiceError, SettingsError
from ml_backend.logs import set_up_logs
from ml_backend.processes import Service, Valkey, private_folder
from ml_backend.scheduling import connect_redis
from ml_backend.scheduling.worker import MAINTENANCE_S, MONITORING_S, WORKER_TTL_S, RoundWorker, preload
from ml_backend.simulation.plan import StudyPlan
from ml_backend.storage.atomic import read_record

LINE_EVERY_S: Final = 30.0


class StudyProgress:
    """Tells of the rounds that are done, in all runs together.

    Args:
        console: where to tell it.
        total: rounds in all, at most: a run may use its pool up earlier.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._begun = time.monotonic()
        self._told = self._begun
        self._at_start: int | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("rounds"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("rounds", total=total)

    def show(self, done: int) -> None:
        """So many rounds are done."""
        if self._at_start is None:
            # What an earlier call has done tells nothing about the pace of this one.
            self._at_start = done
            if self._bar is not None:
                self._bar.reset(self._task, total=self._total, completed=done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._told >= LINE_EVERY_S:
            self._told = now
            self.say(
                f"{done} of {self._total} rounds{_left(done - self._at_start, self._total - done, now - self._begun)}"
            )

    def say(self, line: str) -> None:
        """Something that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _left(done: int, to_do: int, seconds: float) -> str:
    if done <= 0:
        return ""
    minutes = to_do * seconds / done / 60
    return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


QUEUE_STUDY: Final = "study"
JOB: Final = "ml_backend.simulation.parallel.run"
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


log = structlog.get_logger()


def run(out: str, name: str) -> str | None:
    """Do the run of that name, or what is left of it.

    Args:
        out: folder of the study, as this machine sees it too.
        name: of the run.

    Returns:
        None where it is done, else why it cannot be: the same would happen on any worker.
    """
    from ml_backend.simulation.options import open_study  # noqa: PLC0415 - torch: only the work-horse loads it
    from ml_backend.simulation.run import do_run, journal_of  # noqa: PLC0415

    try:
        plan = read_record(Path(out) / "plan.json", StudyPlan)
        if plan is None:
            raise SettingsError(
                f"{out} holds no plan.json: workers need --out, the tables and images in a shared folder"
            )
        one = plan.run(name)
        do_run(one, open_study(plan, Path(out)), journal_of(Path(out), one))
    except BackendError as error:
        log.error("run failed", run=name, error=str(error))  # noqa: TRY400 - told in words, not a bug of ours
        return f"run {name}: {error}"
    return None


PRELOADED: Final = "ml_backend.simulation.run"

HEARTBEAT_S: Final = 20  # without a sign of life for so long, a run's worker counts as dead


class _RunWorker(RoundWorker):
    """Its death is found out sooner. A run that is only slow to report is safe: its journal is held."""

    told_by = ("study", "run")

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        del job, working_time
        return HEARTBEAT_S


def work_on_studies(settings: Settings, burst: bool = False) -> None:
    """Do runs of studies until stopped.

    Args:
        settings: where the queue is; the rest of a run's settings stands in its study's plan.
        burst: end when no run waits.

    Raises:
        QueueError: Redis does not answer at the start.
    """
    set_up_logs(settings)
    try:
        with connect_redis(settings.redis_url) as impatient:
            impatient.ping()
    except RedisError as error:
        raise QueueError(f"Redis does not answer ({type(error).__name__}): start it, or set AL_REDIS_URL") from error
    worker = _RunWorker(
        [QUEUE_STUDY],
        connection=connect_redis(settings.redis_url, patient=True),
        serializer=JSONSerializer,
        job_monitoring_interval=MONITORING_S,
        maintenance_interval=MAINTENANCE_S,
        worker_ttl=WORKER_TTL_S,
    )
    preload(settings)
    if settings.device == "cpu":
        import_module(PRELOADED)
    log.info("waiting for runs of studies")
    worker.work(burst=burst, logging_level="DEBUG" if settings.log_level == "DEBUG" else "WARNING")
