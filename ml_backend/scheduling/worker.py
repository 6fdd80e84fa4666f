"""The worker's parent process: waits for rounds, and for those that ask for help, and forks a work-horse for each.

It stays free of torch wherever there may be a GPU: CUDA cannot be used in a fork of a process that has touched it.
With ``AL_DEVICE=cpu`` nothing ever does, and PyTorch is loaded here, once, instead of at the start of every round.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import structlog
from redis import RedisError
from redis.client import Pipeline
from rq import Queue, Worker, worker_registration
from rq.exceptions import DeserializationError
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.config import Settings
from ml_backend.errors import QueueError
from ml_backend.logs import set_up_logs
from ml_backend.scheduling import QUEUE, QUEUE_SHARDS, RoundQueue
from ml_backend.schemas import ProjectKey
from ml_backend.seeding import enable_deterministic_blas
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause

# With rq's own intervals a round whose machine died begins again after 13 minutes, with these within one.
MONITORING_S = 5
MAINTENANCE_S = 5
WORKER_TTL_S = 30
LOST_AFTER_S = 40  # without a sign of life: longer than a restart of Redis keeps a worker from giving one
LOCK_S = 30  # of rq's maintenance, which takes milliseconds

# The last two are what torchvision and torch's optimisers load at their first use.
PRELOADED = ("ml_backend.rounds", "torchvision.models", "torch._dynamo")

PR_SET_PDEATHSIG = 1  # linux/prctl.h

log = structlog.get_logger()


class RoundWorker(Worker):
    """An rq worker whose work-horse dies with it, and who outlives a Redis that restarts or is emptied.

    Otherwise the orphan of a killed worker would train on beside the run that takes its place.
    """

    told_by: tuple[str, ...] = ("project",)
    """What the first arguments of a job are called in every line about it."""

    housekeeping: Callable[[], object] | None = None
    """Called every few seconds while no job runs."""

    @property
    def dequeue_timeout(self) -> int:
        """Seconds after which an idle worker looks up from the queue."""
        return MAINTENANCE_S

    def execute_job(self, job: Job, queue: Queue) -> None:
        # In the work-horse too, which is forked inside; and so rq's own lines about the job name its project.
        try:
            told = dict(zip(self.told_by, job.args, strict=False))
        except DeserializationError:  # planted, say: the work-horse refuses it and tells why
            told = {}
        with structlog.contextvars.bound_contextvars(**told):
            super().execute_job(job, queue)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.pid:  # it died before the line above
                os._exit(1)
        super().main_work_horse(job, queue)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds after a sign of life until another worker begins the round again."""
        del job, working_time
        return LOST_AFTER_S

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        # Every time, since Redis may have been emptied: who is not listed there gets no helper's job, and looks dead.
        connection: Any = self.connection if pipeline is None else pipeline
        if not self.is_horse and self.birth_date is not None:
            connection.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, connection)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            # rq would end the worker, and with it the round; the next sign of life may get through.
            log.warning("the round goes on without Redis", error=str(error))

    def run_maintenance_tasks(self) -> None:
        for queue in self.queues:
            # A worker killed in the middle of its maintenance would keep all others from theirs for 15 minutes.
            self.connection.expire(queue.registry_cleaning_key, LOCK_S, lt=True)
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call] # of rq
        if self.housekeeping is not None:
            self.housekeeping()


def work(settings: Settings, burst: bool = False) -> None:
    """Run rounds until stopped: SIGTERM or Ctrl-C lets the running round end, a second one kills it.

    Args:
        settings: of the parent; the work-horse reads the same environment again.
        burst: end when the queue is empty.

    Raises:
        QueueError: Redis does not answer at the start; later the worker waits for it.
    """
    enable_deterministic_blas()
    set_up_logs(settings)
    impatient = RoundQueue.from_settings(settings)
    impatient.ping()
    impatient.redis.close()
    rounds = RoundQueue.from_settings(settings, patient=True)
    worker = RoundWorker(
        # A round that has begun is helped before the next one begins.
        [QUEUE_SHARDS, QUEUE],
        connection=rounds.redis,
        serializer=JSONSerializer,
        job_monitoring_interval=MONITORING_S,
        maintenance_interval=MAINTENANCE_S,
        worker_ttl=WORKER_TTL_S,
        work_horse_killed_handler=lambda job, _pid, status, _usage: _report_killed(rounds, job, status),
    )
    store = RoundStore(settings.data_dir)
    worker.housekeeping = lambda: _request_due(rounds, store)
    preload(settings)
    log.info("waiting for rounds", redis=rounds.address)
    # rq tells of its own housekeeping every five seconds; what matters is logged here and by the job.
    worker.work(burst=burst, logging_level="DEBUG" if settings.log_level == "DEBUG" else "WARNING")


def preload(settings: Settings) -> None:
    """Load what every round needs, where that cannot touch a GPU."""
    if settings.device == "cpu":
        for name in PRELOADED:
            import_module(name)


def _request_due(rounds: RoundQueue, store: RoundStore) -> None:
    try:
        if count := rounds.request_due(lambda project: Pause(store.project(project).folder).holds):
            log.info("rounds are tried again", rounds=count)
    except QueueError as error:
        log.warning("nobody looked for rounds to try again", error=str(error))


def _report_killed(rounds: RoundQueue, job: Job, status: int) -> None:
    """Say why a work-horse is gone, since nobody else lives to tell; rq begins its round once more, then gives up."""
    project = job.args[0]
    cause = (
        f"signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else f"exit status {os.waitstatus_to_exitcode(status)}"
    )
    if job.origin == QUEUE_SHARDS:
        log.warning("a helper is gone, and the round does without", project=project, cause=cause)
        return
    log.error("work-horse gone", project=project, cause=cause, again=job.should_retry)
    if not job.should_retry:
        rounds.abandon(
            ProjectKey.parse(project),
            job.args[1],
            f"the process of the round ended twice with {cause}; signal 9 mostly means that memory ran out: "
            "choose a smaller train_batch or image_side",
        )
