"""The runs of a study on several workers: processes of this machine, or rq workers of any that share its folders.

A worker reads the plan in the study's folder and appends to the log of the run: a run whose worker dies goes on from
its last round, on any other.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import structlog
from redis import Redis, RedisError
from rq import Queue, Retry
from rq.exceptions import InvalidJobOperation
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from ml_backend.config import Settings
from ml_backend.errors import BackendError, QueueError, RoundError, ServiceError, SettingsError
from ml_backend.logs import set_up_logs
from ml_backend.scheduling import connect_redis
from ml_backend.scheduling.worker import MAINTENANCE_S, MONITORING_S, WORKER_TTL_S, RoundWorker, preload
from ml_backend.simulation.plan import StudyPlan
from ml_backend.storage.atomic import read_record

QUEUE_STUDY: Final = "study"
JOB: Final = "ml_backend.simulation.parallel.run"
RUNS: Final = "ml_backend.simulation.run"
POLL_S: Final = 0.5
RUN_TIMEOUT_S: Final = 7 * 24 * 3600
KEPT_S: Final = 24 * 3600
ATTEMPTS: Final = 3  # of a run whose worker dies
HEARTBEAT_S: Final = 20  # without a heartbeat for so long, a run's worker counts as dead

log = structlog.get_logger()


def run(out: str, name: str) -> str | None:
    """Do the run of that name, or the rest of it.

    Args:
        out: folder of the study, as this machine sees it too.
        name: of the run.

    Returns:
        None where it is done, else the reason of the refusal, which any worker would give.
    """
    # Torch is loaded by the process that does the run, not by the worker that waits for one.
    from ml_backend.simulation.run import do_run, open_study  # noqa: PLC0415
    from ml_backend.simulation.run_log import RunLog  # noqa: PLC0415

    try:
        plan = read_record(Path(out) / "plan.json", StudyPlan)
        if plan is None:
            raise SettingsError(
                f"{out} holds no plan.json: workers need --out, the tables and images in a shared folder"
            )
        one = plan.run(name)
        do_run(one, open_study(plan, Path(out)), RunLog.of(one, plan, Path(out)))
    except BackendError as error:
        log.error("run failed", run=name, error=str(error))  # noqa: TRY400 - an expected error has no traceback
        return f"run {name}: {error}"
    return None


def run_in_processes(
    names: Sequence[str], out: Path, *, workers: int, watch: Callable[[], None], note: Callable[[str], None]
) -> None:
    """Do runs in processes of this machine, each on one thread, and wait for them.

    Where a process dies, the runs that are not done go on in new ones. The processes end with this one, however it
    ends.

    Args:
        names: of the runs.
        out: folder of the study; what a run prints goes to ``<out>/workers/<run>.log``.
        workers: processes at a time.
        watch: called twice a second.
        note: called with a sentence about a process that died.

    Raises:
        RoundError: a run was refused; with the reason.
        ServiceError: a process died ``ATTEMPTS`` times.
    """
    (out / "workers").mkdir(parents=True, exist_ok=True)
    left, died = list(names), 0
    while left:
        try:
            _do_in_pool(left, out, workers, watch)
        except BrokenProcessPool as error:
            died += 1
            death = f"a process died (out of memory?); not done yet: {', '.join(left)}"
            if died == ATTEMPTS:
                raise ServiceError(
                    f"{death}; {ATTEMPTS} times: see {out / 'workers'}, and give the same command again to go on"
                ) from error
            note(f"{death}; they go on from their last rounds")


def _do_in_pool(left: list[str], out: Path, workers: int, watch: Callable[[], None]) -> None:
    """Do the runs that are left, and take off the list what is done."""
    context = get_context("spawn")  # CUDA does not survive a fork
    held, lifeline = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, context, _exit_when_closed, (held,)) as pool:
        try:
            futures = {pool.submit(_run_logged, str(out.absolute()), name): name for name in left}
            while futures:
                for future in wait(futures, POLL_S, FIRST_COMPLETED).done:
                    if (reason := future.result()) is not None:
                        raise RoundError(reason)
                    left.remove(futures.pop(future))
                watch()
        finally:
            lifeline.close()
            pool.shutdown(cancel_futures=True)
            held.close()


def _exit_when_closed(held: Connection) -> None:
    """End this process as soon as the one that holds the other end of the pipe stops, or dies."""

    def exit_at_end() -> None:
        with suppress(EOFError, OSError):
            held.recv()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=exit_at_end, daemon=True).start()


def _run_logged(out: str, name: str) -> str | None:
    output = os.open(Path(out, "workers", f"{name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return run(out, name)


def run_on_workers(redis: Redis, names: Sequence[str], out: Path, watch: Callable[[], None]) -> None:
    """Have runs done by the rq workers of studies, and wait for them.

    A run that an earlier command left in the queue is harmless: its log is locked, and what is done is not done again.

    Args:
        redis: a client that answers in bytes.
        names: of the runs.
        out: folder of the study.
        watch: called twice a second.

    Raises:
        QueueError: Redis does not answer, or a run failed; with the worker's reason.
    """
    queue = Queue(QUEUE_STUDY, connection=redis, serializer=JSONSerializer)
    jobs: dict[str, Job] = {}
    try:
        for name in names:
            jobs[name] = queue.enqueue_call(
                JOB,
                args=(str(out.absolute()), name),
                description=f"run {name} of a study",
                timeout=RUN_TIMEOUT_S,
                result_ttl=KEPT_S,
                failure_ttl=KEPT_S,
                retry=Retry(max=ATTEMPTS - 1),
            )
        waiting = list(names)
        while waiting := [name for name in waiting if not _is_done(name, jobs[name])]:
            watch()
            time.sleep(POLL_S)
        watch()
    except RedisError as error:
        raise QueueError(
            f"Redis does not answer ({type(error).__name__}): start it, and give the same command again to continue"
        ) from error
    except BaseException:
        # So that no worker begins a run that this process no longer waits for; nor does it wait for Redis.
        with suppress(RedisError, InvalidJobOperation):
            for job in jobs.values():
                if job.get_status() is JobStatus.QUEUED:
                    job.delete()
        raise


def _is_done(name: str, job: Job) -> bool:
    try:
        status = job.get_status()
    except InvalidJobOperation as error:
        raise QueueError(f"run {name} is gone from Redis, which was emptied: give the same command again") from error
    if status is JobStatus.FINISHED:
        if (reason := job.return_value(refresh=True)) is not None:
            raise QueueError(str(reason))
        return True
    if status in {JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}:
        result = job.latest_result()
        last = str(result.exc_string if result else "").strip().splitlines()
        raise QueueError(
            f"run {name} failed {ATTEMPTS} times ({last[-1] if last else 'its worker died'}): look into the "
            "worker's log, and give the same command again to continue"
        )
    return False


class _RunWorker(RoundWorker):
    """Its death is noticed sooner. A run that is only slow to report is safe: its log is locked."""

    log_fields = ("study", "run")

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        del job, working_time
        return HEARTBEAT_S


def work_on_studies(settings: Settings, burst: bool = False) -> None:
    """Do runs of studies until stopped.

    Args:
        settings: where the queue is; the other options of a run are in its study's plan.
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
        import_module(RUNS)
    log.info("waiting for runs of studies")
    worker.work(burst=burst, logging_level="DEBUG" if settings.log_level == "DEBUG" else "WARNING")
