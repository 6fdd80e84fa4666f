"""A worker for the runs of studies, here or on another machine that sees the same folders."""

from importlib import import_module
from typing import Final

import structlog
from redis import RedisError
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.errors import QueueError
from ml_backend.logs import set_up_logs
from ml_backend.queueing import connect_redis
from ml_backend.settings import Settings
from ml_backend.study.spread import QUEUE_STUDY
from ml_backend.worker.start import MAINTENANCE_S, MONITORING_S, WORKER_TTL_S, RoundWorker, preload

__all__ = ["work_on_studies"]

PRELOADED: Final = "ml_backend.study.run"

HEARTBEAT_S: Final = 20  # without a sign of life for so long, a run's worker counts as dead

log = structlog.get_logger()


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
