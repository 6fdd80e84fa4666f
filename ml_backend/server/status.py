"""``/``: what every project is doing."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ml_backend.errors import BackendError
from ml_backend.label_studio.connect import TITLE
from ml_backend.label_studio.formats import question
from ml_backend.label_studio.serving import Serving, ServingProblem, serving_problems
from ml_backend.queueing import QueueStatus, RoundQueue
from ml_backend.records import Connection, Published, RoundReport
from ml_backend.server.connections import configuration
from ml_backend.settings import ProjectOptions
from ml_backend.storage import RoundStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.pause import Pause, Paused
from ml_backend.storage.quarantine import Quarantine, QuarantinedImage

__all__ = ["LISTED_IMAGES", "ProjectStatus", "as_json", "status_of", "statuses"]

TOLD_TWICE_SHOWN_S = 24 * 3600
LISTED_IMAGES = 100
"""Unreadable images that are told one by one; all of them stand in the project's ``quarantine.json``."""


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """One project: what is served, what runs, what went wrong."""

    connection: Connection
    queue: QueueStatus
    published: Published | None
    report: RoundReport | None
    problem: str | None = None  # why the store or Redis could not tell
    options: ProjectOptions | None = None  # of the next round; None where there is a mistake in them
    mistake: str | None = None  # why the next round would refuse the label config or the options
    question: str | None = None  # what is learned of the label config, in words; None where there is a mistake in it
    unreadable: str | None = None  # why Label Studio could not be read when it was last looked at
    quarantined: tuple[QuarantinedImage, ...] = ()  # the images that could not be read, all of them
    serving: tuple[ServingProblem, ...] = ()  # why readers are not served the published ranking
    paused: Paused | None = None  # its owner holds the rounds

    @property
    def lost(self) -> bool:
        """Whether Label Studio no longer holds the published ranking, so that it is published again."""
        return any(problem.mended for problem in self.serving)

    @property
    def busy(self) -> bool:
        """Whether a round runs or waits."""
        return self.queue.running is not None or self.queue.waiting is not None

    @property
    def next_attempt(self) -> datetime | None:
        """When a round that failed is tried again by itself."""
        moment = self.queue.next_attempt
        return None if moment is None else datetime.fromtimestamp(moment, UTC)

    @property
    def told_twice(self) -> datetime | None:
        """When an event came to two addresses, if that was within the last day."""
        moment = self.queue.told_twice_at
        if moment is None or time.time() - moment > TOLD_TWICE_SHOWN_S:
            return None
        return datetime.fromtimestamp(moment, UTC)

    @property
    def listed(self) -> tuple[QuarantinedImage, ...]:
        """Those of them that are told one by one."""
        return self.quarantined[:LISTED_IMAGES]


def statuses(store: RoundStore, queue: RoundQueue) -> list[ProjectStatus]:
    """Every connected project, oldest first. A project that cannot be read says so and hides no other.

    Raises:
        StorageError: the list of projects itself cannot be read.
    """
    return [status_of(connection, store, queue) for connection in store.connections()]


def as_json(status: ProjectStatus) -> dict[str, object]:
    """The same for a machine; without the lists of images, except for the first that cannot be read."""
    report, published = status.report, status.published
    return {
        "project": str(status.connection.project),
        "problem": status.problem,
        "mistake": status.mistake,
        "question": status.question,
        "paused": None if status.paused is None else status.paused.since.isoformat(timespec="seconds"),
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
        "unreadable": status.unreadable,
        "serving": [problem.model_dump() for problem in status.serving],
        "quarantined": {
            "images": len(status.quarantined),
            "listed": [image.model_dump(mode="json", exclude={"mark", "version"}) for image in status.listed],
        },
    }


def status_of(connection: Connection, store: RoundStore, queue: RoundQueue) -> ProjectStatus:
    """One project, as far as it can be read."""
    project = store.project(connection.project)
    readings = ReadingStore(project.folder)
    options, learned, mistake = _options(connection)
    common = ProjectStatus(
        connection,
        QueueStatus(),
        published=None,
        report=None,
        options=options,
        mistake=mistake,
        question=learned,
        unreadable=readings.problem(),
        quarantined=Quarantine(project.folder).listed(),
        paused=Pause(project.folder).read(),
    )
    try:
        state, published, report = queue.status(connection.project), project.published(), project.latest()
    except BackendError as error:
        return replace(common, problem=str(error))
    serving = _serving(readings, published, options)
    return replace(common, queue=state, published=published, report=report, serving=serving)


def _serving(
    readings: ReadingStore, published: Published | None, options: ProjectOptions | None
) -> tuple[ServingProblem, ...]:
    seen = readings.serving(Serving)
    # Of another version it is out of date: the reconciler asks again within a minute.
    if options is None or seen is None or seen.version != (published.version if published else None):
        return ()
    return tuple(serving_problems(seen, options, TITLE))


def _options(connection: Connection) -> tuple[ProjectOptions | None, str | None, str | None]:
    """The options, what is learned, and what is wrong with them."""
    try:
        config, options = configuration(connection)
        return options, question(config, options), None
    except BackendError as error:
        return None, None, str(error)
