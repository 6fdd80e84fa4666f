"""Checks of what carries rounds to a worker, and of how they went."""

from datetime import UTC, datetime

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine
from ml_backend.errors import BackendError
from ml_backend.queueing import QueueStatus

__all__ = ["WORKER_CHECKS"]


def _redis(case: Case) -> Outcome:
    case.queue.ping()
    return fine(case.queue.address)


def _worker(case: Case) -> Outcome:
    alive = case.queue.workers()
    if not alive:
        return failed(
            f"nobody waits for rounds at {case.queue.address}",
            "start `ml-backend work` with the same AL_REDIS_URL and AL_DATA_DIR; what waits is run then",
        )
    return fine(f"{alive} alive")


def _rounds(case: Case) -> Outcome:
    status = case.queue.status(case.key)
    # Where every image is labelled, or there is none yet, a round that ranked nothing is no failure of the round.
    if (error := status.last_error) is not None and not (status.ran_out and _nothing_to_mend(case, status)):
        at = datetime.fromtimestamp(error.at, UTC)
        again = datetime.fromtimestamp(status.next_attempt, UTC) if status.next_attempt else None
        tried = f"; it is tried again by itself at {again:%H:%M} UTC" if again else ""
        return failed(
            f"the last one failed at {at:%Y-%m-%d %H:%M} UTC: {error.kind}: {error.message}",
            f"mend what it names, then press Start Training in the backend's menu{tried}",
        )
    running = f"runs: {status.running}" if status.running else "none runs"
    if status.progress is not None:
        running += f" ({status.progress.stage}, {status.progress.done} of {status.progress.total})"
    waiting = f"waits: {status.waiting}" if status.waiting else "none waits"
    to_next = f"; {status.changes} of {status.threshold} labels to the next" if status.threshold else ""
    if error is not None:
        to_next += f"; the last one found no image to rank: {error.message}"
    return fine(f"{running}, {waiting}{to_next}; {status.rounds_finished} done, {status.rounds_failed} failed")


def _nothing_to_mend(case: Case, status: QueueStatus) -> bool:
    try:
        standing = case.standing
    except BackendError:  # a check of its own tells it
        standing = None
    return not status.failing if standing is None else standing.verdict != "unusable"


WORKER_CHECKS = (
    Check(
        "Redis",
        _redis,
        needs=("settings",),
        remedy="start redis-server or valkey-server, or set AL_REDIS_URL to the one that the backend uses",
    ),
    Check("worker", _worker, needs=("Redis",)),
    Check("rounds", _rounds, needs=("Redis", "project")),
)
