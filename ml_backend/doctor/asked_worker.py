"""Checks of what carries rounds to a worker, and of how they went."""

from datetime import UTC, datetime

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine

__all__ = ["CHECKS"]


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
    if (error := status.last_error) is not None:
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
    return fine(f"{running}, {waiting}{to_next}; {status.rounds_finished} done, {status.rounds_failed} failed")


CHECKS = (
    Check(
        "Redis",
        _redis,
        needs=("settings",),
        remedy="start redis-server or valkey-server, or set AL_REDIS_URL to the one that the backend uses",
    ),
    Check("worker", _worker, needs=("Redis",)),
    Check("rounds", _rounds, needs=("Redis", "project")),
)
