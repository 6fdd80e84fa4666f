"""The worker's parent process: waits for the jobs of rounds and shards, and forks a work-horse for each.

If there may be a GPU it never imports torch: CUDA cannot be used in a fork of a process that has initialised it. With
``AL_DEVICE=cpu`` PyTorch is loaded here, once, instead of at the start of every round.
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
from ml_backend.scheduling.queue import QUEUE, RoundQueue
from ml_backend.scheduling.shards import QUEUE_SHARDS
from ml_backend.schemas import ProjectKey
from ml_backend.seeding import enable_deterministic_blas
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause

# With rq's own intervals a round whose machine died begins again after 13 minutes, with these within one.
MONITORING_S = 5
MAINTENANCE_S = 5
WORKER_TTL_S = 30
LOST_AFTER_S = 40  # without a heartbeat; a restart of Redis delays one for less than this
LOCK_S = 30  # of rq's maintenance, which takes milliseconds

# torchvision and torch's optimisers load the last two at their first use.
PRELOADED = ("ml_backend.rounds", "torchvision.models", "torch._dynamo")

PR_SET_PDEATHSIG = 1  # linux/prctl.h

log = structlog.get_logger()


class RoundWorker(Worker):
    """An rq worker whose work-horse dies with it, and which survives a Redis that restarts or is emptied.

    Otherwise the orphan of a killed worker would go on training next to the run that has replaced it.
    """

    log_fields: tuple[str, ...] = ("project",)
    """Names of a job's first arguments in every log line about it."""

    housekeeping: Callable[[], object] | None = None
    """Called every few seconds while no job runs."""

    @property
    def dequeue_timeout(self) -> int:
        """Seconds after which an idle worker does its maintenance."""
        return MAINTENANCE_S

    def execute_job(self, job: Job, queue: Queue) -> None:
        # The work-horse is forked inside, and rq's own lines about the job name its project too.
        try:
            fields = dict(zip(self.log_fields, job.args, strict=False))
        except DeserializationError:  # the work-horse refuses it and logs why
            fields = {}
        with structlog.contextvars.bound_contextvars(**fields):
            super().execute_job(job, queue)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.pid:  # it died before the line above
                os._exit(1)
        super().main_work_horse(job, queue)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds after a heartbeat until another worker begins the round again."""
        del job, working_time
        return LOST_AFTER_S

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        # Every time: in an emptied Redis an unlisted worker gets no shards, and counts as dead.
        connection: Any = self.connection if pipeline is None else pipeline
        if not self.is_horse and self.birth_date is not None:
            connection.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, connection)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            # rq would end the worker, and with it the round; the next heartbeat may get through.
            log.warning("the round goes on without Redis", error=str(error))

    def run_maintenance_tasks(self) -> None:
        for queue in self.queues:
            # A worker killed in its maintenance would block that of all others for 15 minutes.
            self.connection.expire(queue.registry_cleaning_key, LOCK_S, lt=True)
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call] # of rq
        if self.housekeeping is not None:
            self.housekeeping()


def work(settings: Settings, burst: bool = False) -> None:
    """Run rounds until stopped: SIGTERM or Ctrl-C lets the running round end, a second one kills it.

    Args:
        settings: of the installation; the work-horse reads the same environment again.
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
        # Shards of a round that has begun come before the next round.
        [QUEUE_SHARDS, QUEUE],
        connection=rounds.redis,
        serializer=JSONSerializer,
        job_monitoring_interval=MONITORING_S,
        maintenance_interval=MAINTENANCE_S,
        worker_ttl=WORKER_TTL_S,
        work_horse_killed_handler=lambda job, _pid, status, _usage: _report_killed(rounds, job, status),
    )
    store = RoundStore(settings.data_dir)
    worker.housekeeping = lambda: _request_due_rounds(rounds, store)
    preload(settings)
    log.info("waiting for rounds", redis=rounds.address)
    # rq logs its maintenance every five seconds.
    worker.work(burst=burst, logging_level="DEBUG" if settings.log_level == "DEBUG" else "WARNING")


def preload(settings: Settings) -> None:
    """Load what every round needs, if that cannot initialise a GPU."""
    if settings.device == "cpu":
        for name in PRELOADED:
            import_module(name)


def _request_due_rounds(rounds: RoundQueue, store: RoundStore) -> None:
    try:
        if count := rounds.request_due_rounds(lambda project: Pause(store.project(project).folder).holds):
            log.info("due rounds are requested", rounds=count)
    except QueueError as error:
        log.warning("due rounds are not requested", error=str(error))


def _report_killed(rounds: RoundQueue, job: Job, status: int) -> None:
    """Log why a work-horse died, and fail its round at the second time; rq begins it again after the first."""
    project = job.args[0]
    cause = (
        f"signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else f"exit status {os.waitstatus_to_exitcode(status)}"
    )
    if job.origin == QUEUE_SHARDS:
        log.warning("a helping process died; the round scores its shard itself", project=project, cause=cause)
        return
    log.error("work-horse gone", project=project, cause=cause, again=job.should_retry)
    if not job.should_retry:
        rounds.fail_lost_round(
            ProjectKey.parse(project),
            job.args[1],
            f"the process of the round ended twice with {cause}; signal 9 mostly means that memory ran out: "
            "choose a smaller train_batch or image_side",
        )
