"""``/``: what every project is doing."""

from dataclasses import dataclass

from ml_backend.errors import BackendError
from ml_backend.queueing import QueueStatus, RoundQueue
from ml_backend.records import Connection, Published, RoundReport
from ml_backend.storage import RoundStore

__all__ = ["ProjectStatus", "as_json", "statuses"]


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """One project: what is served, what runs, what went wrong."""

    connection: Connection
    queue: QueueStatus
    published: Published | None
    report: RoundReport | None
    problem: str | None = None  # why the store or Redis could not tell


def statuses(store: RoundStore, queue: RoundQueue) -> list[ProjectStatus]:
    """Every connected project, oldest first. A project that cannot be read says so and hides no other.

    Raises:
        StorageError: the list of projects itself cannot be read.
    """
    return [_status(connection, store, queue) for connection in store.connections()]


def as_json(status: ProjectStatus) -> dict[str, object]:
    """The same for a machine; without the lists of images."""
    report, published = status.report, status.published
    return {
        "project": str(status.connection.project),
        "problem": status.problem,
        "queue": status.queue.model_dump(mode="json"),
        "published": published.model_dump(mode="json", exclude={"image_ids"}) | {"images": len(published.image_ids)}
        if published
        else None,
        "last_round": {
            "round": report.request.round_id,
            "reason": report.request.reason,
            "strategy": report.ranking.strategy,
            "labels_per_class": report.labels_per_class,
            "trained": report.fit is not None,
            "seconds": dict(report.seconds),
        }
        if report
        else None,
    }


def _status(connection: Connection, store: RoundStore, queue: RoundQueue) -> ProjectStatus:
    project = store.project(connection.project)
    try:
        return ProjectStatus(connection, queue.status(connection.project), project.published(), project.latest())
    except BackendError as error:
        return ProjectStatus(connection, QueueStatus(), None, None, str(error))
