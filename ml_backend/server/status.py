"""``/``: what every project is doing."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

from ml_backend.analytics.history import KnownNetwork
from ml_backend.analytics.overview import KeptReading, Memory, Question, network_of, standing_of
from ml_backend.analytics.standing import Standing
from ml_backend.config import ProjectOptions
from ml_backend.errors import BackendError
from ml_backend.label_studio.connect import TITLE
from ml_backend.label_studio.formats import question, training_classes
from ml_backend.label_studio.publisher import Serving, ServingProblem, serving_problems
from ml_backend.scheduling import QueueStatus, RoundQueue
from ml_backend.scheduling.reconciler import configuration
from ml_backend.schemas import Connection, FitReport, PublishedRanking, RoundReport
from ml_backend.storage import RoundStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.project_state import Pause, Paused
from ml_backend.storage.quarantine import Quarantine, QuarantinedImage

TOLD_TWICE_SHOWN_S = 24 * 3600
LISTED_IMAGES = 100
"""Unreadable images that are told one by one; all of them stand in the project's ``quarantine.json``."""


State = Literal["working", "waiting", "failed", "blocked", "done", "paused", "idle"]
_STATES: Final[dict[str, State]] = {"unusable": "failed", "blocked": "done", "labelled": "done"}
"""What the standing of a project makes of it."""


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """One project: what is served, what runs, what went wrong."""

    connection: Connection
    queue: QueueStatus
    published: PublishedRanking | None
    report: RoundReport | None
    problem: str | None = None  # why the store or Redis could not tell
    options: ProjectOptions | None = None  # of the next round; None where there is a mistake in them
    mistake: str | None = None  # why the next round would refuse the label config or the options
    question: str | None = None  # what is learned of the label config, in words; None where there is a mistake in it
    unreadable: str | None = None  # why Label Studio could not be read when it was last looked at
    quarantined: tuple[QuarantinedImage, ...] = ()  # the images that could not be read, all of them
    serving: tuple[ServingProblem, ...] = ()  # why readers are not served the published ranking
    paused: Paused | None = None  # its owner holds the rounds
    network: KnownNetwork | None = None
    fit: FitReport | None = None  # of that network
    standing: Standing | None = None  # None where Label Studio was not read yet, or this was not asked for

    @property
    def lost(self) -> bool:
        """Whether Label Studio no longer holds the published ranking, so that it is published again."""
        return any(problem.mended for problem in self.serving)

    @property
    def busy(self) -> bool:
        """Whether a round runs or waits."""
        return self.queue.running is not None or self.queue.waiting is not None

    @property
    def state(self) -> State:
        """In a word. Where a round found nothing to rank, the images say whether that is a fault."""
        queue, standing = self.queue, self.standing
        if queue.running or queue.waiting:
            return "working" if queue.running else "waiting"
        if queue.last_error is not None and not queue.ran_out:
            return "failed"
        if standing is not None and standing.verdict == "blocked" and standing.mendable:
            return "blocked"  # the labels are there, and cannot be used
        if standing is not None and standing.verdict in _STATES:
            return _STATES[standing.verdict]
        if queue.failing:
            return "failed"
        return "paused" if self.paused else "idle"

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


def statuses(store: RoundStore, queue: RoundQueue, memory: Memory | None = None) -> list[ProjectStatus]:
    """Every connected project, oldest first. A project that cannot be read says so and hides no other.

    Args:
        store: of the installation.
        queue: its rounds.
        memory: of this process; without it, network and standing are not looked for.

    Raises:
        StorageError: the list of projects itself cannot be read.
    """
    return [status_of(connection, store, queue, memory) for connection in store.connections()]


def as_json(status: ProjectStatus) -> dict[str, object]:
    """The same for a machine; without the lists of images, except for the first that cannot be read."""
    report, published = status.report, status.published
    return {
        "project": str(status.connection.project),
        "state": status.state,
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
        "network": None
        if status.network is None
        else status.network.model_dump(mode="json")
        | {"validation_accuracy": None if status.fit is None else status.fit.validation_accuracy},
        "standing": None if status.standing is None else status.standing.model_dump(mode="json"),
        "unreadable": status.unreadable,
        "serving": [problem.model_dump() for problem in status.serving],
        "quarantined": {
            "images": len(status.quarantined),
            "listed": [image.model_dump(mode="json", exclude={"mark", "version"}) for image in status.listed],
        },
    }


def status_of(
    connection: Connection,
    store: RoundStore,
    queue: RoundQueue,
    memory: Memory | None = None,
    reading: KeptReading | None = None,
) -> ProjectStatus:
    """One project, as far as it can be read.

    Args:
        connection: of the project.
        store: of the installation.
        queue: its rounds.
        memory: of this process; without it, network and standing are not looked for.
        reading: by the project's question, where somebody needs it for more.
    """
    project = store.project(connection.project)
    readings = ReadingStore(project.folder)
    asked, mistake = question_of(connection)
    if reading is None and asked is not None:
        reading = KeptReading(project.folder, asked)
    lines = [] if memory is None else memory.lines.of(project)[0]
    network = network_of(lines)
    common = ProjectStatus(
        connection,
        QueueStatus(),
        published=None,
        report=None,
        options=None if asked is None else asked.options,
        mistake=mistake,
        question=None if asked is None else question(*asked),
        unreadable=readings.problem(),
        quarantined=Quarantine(project.folder).listed(),
        paused=Pause(project.folder).read(),
        network=network,
        fit=next((line.fit for line in lines if network is not None and line.round_id == network.round_id), None),
        standing=None if memory is None or reading is None else standing_of(project, memory, reading),
    )
    try:
        state, published, report = queue.status(connection.project), project.published(), project.latest()
    except BackendError as error:
        return replace(common, problem=str(error))
    serving = _serving(readings, published, common)
    return replace(common, queue=state, published=published, report=report, serving=serving)


def _serving(
    readings: ReadingStore, published: PublishedRanking | None, project: ProjectStatus
) -> tuple[ServingProblem, ...]:
    seen = readings.serving(Serving)
    # Of another version it is out of date: the reconciler asks again within a minute.
    options, standing = project.options, project.standing
    if options is None or seen is None or seen.version != (published.version if published else None):
        return ()
    return tuple(serving_problems(seen, options, TITLE, waits=standing is None or standing.waits))


def question_of(connection: Connection) -> tuple[Question | None, str | None]:
    """How answers are read; or None and the mistake in it."""
    try:
        asked = Question(*configuration(connection))
        training_classes(*asked)
    except BackendError as error:
        return None, str(error)
    return asked, None
