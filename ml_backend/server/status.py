"""The state of every project, for ``/`` and ``/metrics``."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

from ml_backend.analytics.answers import accuracy_answer, labelled_answer, next_answer
from ml_backend.analytics.few_labels import can_train
from ml_backend.analytics.history import KnownNetwork, known_network
from ml_backend.analytics.overview import Analysis, ProjectConfig, analyse
from ml_backend.analytics.standing import Standing
from ml_backend.analytics.stopping import count
from ml_backend.config import ProjectOptions
from ml_backend.errors import BackendError
from ml_backend.label_studio.connect import TITLE
from ml_backend.label_studio.formats import question, training_classes
from ml_backend.label_studio.publisher import Serving, ServingProblem, large_reserve, serving_problems
from ml_backend.scheduling import QueueStatus, RoundQueue
from ml_backend.scheduling.connections import configuration
from ml_backend.schemas import Connection, FitReport, PublishedRanking
from ml_backend.storage import RoundStore, RoundSummary
from ml_backend.storage.project_state import Paused, QuarantinedImage

DUPLICATE_EVENT_SHOWN_S: Final = 24 * 3600
LISTED_IMAGES: Final = 100
"""Unreadable images that a page lists; all of them are in the project's ``quarantine.json``."""

State = Literal["working", "waiting", "failed", "blocked", "done", "paused", "idle"]
_STATES: Final[dict[str, State]] = {"unusable": "failed", "blocked": "done", "labelled": "done"}
"""By the verdict of a project's standing."""
REMEDIES: Final[dict[str, str]] = {
    "LabelStudioError": "Check that Label Studio runs and answers",
    "Unreachable": "Check that Label Studio runs, and that the worker can reach it",
    "RequestRefused": "Check the API key of the backend, and that its user may change the project",
    "PayloadError": "Correct the project in Label Studio",
    "SettingsError": "Correct the option or the label config",
    "TooFewLabels": "Label more images",
    "UnusablePool": "Correct what is left out, listed below",
    "WeightsError": "Ask your operator to provide the weights, or to set weights=none, which trains without them",
    "ImageError": "Check that the worker can read the images",
    "StorageError": "Ask your operator to check the data folder and its free space",
    "QueueError": "Ask your operator to check Redis",
}
"""What helps against a failed round, by the kind of its error."""


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """One project: what is served, what runs, what went wrong.

    Attributes:
        newest: round on disk.
        problem: why store or Redis could not be read.
        options: of the next round; None where they are wrong.
        mistake: why the next round would refuse the label config or the options.
        question: what is learned of the label config, in words; None where it is wrong.
        unreadable: why Label Studio could not be read at the last attempt.
        quarantined: the images that could not be read.
        serving: why readers are not served the published ranking.
        paused: the owner's pause.
        network: the newest; ``fit`` is its training.
        analysis: None where label config or options are wrong, or it was not asked for.
        workers: of the installation that are alive, busy ones included; a dead one counts for at most 20 s more. None
            where Redis does not answer.
        title: of the project in Label Studio, as it was last read; empty before.
    """

    connection: Connection
    queue: QueueStatus
    published: PublishedRanking | None = None
    newest: RoundSummary | None = None
    problem: str | None = None
    options: ProjectOptions | None = None
    mistake: str | None = None
    question: str | None = None
    unreadable: str | None = None
    quarantined: tuple[QuarantinedImage, ...] = ()
    serving: tuple[ServingProblem, ...] = ()
    paused: Paused | None = None
    network: KnownNetwork | None = None
    fit: FitReport | None = None
    analysis: Analysis | None = None
    workers: int | None = None
    title: str = ""

    @property
    def name(self) -> str:
        """See ``project_name``."""
        return project_name(self.connection, self.title)

    @property
    def sentence(self) -> str:
        """How good the network is, how much is labelled, when it trains next, and how many workers answer."""
        control = None if self.analysis is None else self.analysis.control
        parts = [accuracy_answer(self.fit, control) or self._until_first_network]
        standing = self.standing
        if standing is not None and standing.verdict != "no images":
            seconds = None if self.analysis is None else self.analysis.seconds_an_image
            parts.append(labelled_answer(standing, seconds))
        parts.append(self._next)
        if self.workers is not None:
            parts.append(f"{count(self.workers, 'worker')}." if self.workers else "No worker answers.")
        return " ".join(part for part in parts if part)

    @property
    def threshold(self) -> int:
        """Changes that start the next round; 0 where none starts by itself."""
        held = self.paused.threshold if self.paused else self.queue.threshold
        # Redis learns of a new number with the next event only.
        return self.options.retrain_after if held and self.options else held

    @property
    def _until_first_network(self) -> str:
        standing = self.standing
        if standing is not None and standing.verdict == "no images":
            return standing.sentence
        if standing is not None and standing.start is not None and standing.start.missing:
            return f"No network yet: {standing.start.sentence}"
        return "No network yet."

    @property
    def _next(self) -> str:
        """When the next round begins."""
        if self.problem:
            return ""
        if self.busy:
            return "A round runs now." if self.state == "working" else "A round waits for a worker."
        standing = self.standing
        if self.state in {"failed", "blocked", "done"} or (standing is not None and standing.verdict == "no images"):
            return "The last round failed." if self.queue.failing and self.state == "failed" else ""
        if self.paused:
            return "Paused: no round starts by itself."
        if not self.threshold:
            return "" if self.queue.annotations is None else "No round starts by itself."
        minimum = None if self.options is None else self.options.min_labels_per_class
        trains = self.network is not None
        if standing is not None and minimum is not None:
            trains = can_train(standing.labels_per_class, minimum)
        missing = max(self.threshold - self.queue.changes, 0)
        return next_answer(missing, None if standing is None else standing.left, trains=trains)

    @property
    def remedy(self) -> str | None:
        """What to do about the last round's failure, before its cause; None where the message says all there is."""
        error = self.queue.last_error
        return None if error is None else REMEDIES.get(error.kind)

    @property
    def standing(self) -> Standing | None:
        """The state of the labelling; None where Label Studio was not read yet."""
        return None if self.analysis is None else self.analysis.standing

    @property
    def other_classes(self) -> bool:
        """Whether the classes have changed since the newest network was trained."""
        if self.network is None or self.standing is None:
            return False
        return not self.network.knows(tuple(self.standing.labels_per_class))

    @property
    def large_reserve(self) -> str:
        """A warning where every round publishes very many images; empty otherwise."""
        return large_reserve(self.options, self.standing.left) if self.options and self.standing else ""

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
        """In a word. Where a round found nothing to rank, the standing decides whether that is a failure."""
        queue, standing = self.queue, self.standing
        if queue.running or queue.waiting:
            # The round of a worker that died waits for another one.
            return "working" if queue.running and self.workers != 0 else "waiting"
        if self.problem or (queue.last_error is not None and not queue.ran_out):
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
        """When a failed round is tried again by itself."""
        moment = self.queue.next_attempt
        return None if moment is None else datetime.fromtimestamp(moment, UTC)

    @property
    def told_twice(self) -> datetime | None:
        """When an event came to two addresses, within the last day."""
        moment = self.queue.told_twice_at
        if moment is None or time.time() - moment > DUPLICATE_EVENT_SHOWN_S:
            return None
        return datetime.fromtimestamp(moment, UTC)

    @property
    def listed(self) -> tuple[QuarantinedImage, ...]:
        """The unreadable images that a page lists."""
        return self.quarantined[:LISTED_IMAGES]

    def as_json(self) -> dict[str, object]:
        """The same for a program; without the lists of images, except for the first unreadable ones."""
        newest, published, network, fit = self.newest, self.published, self.network, self.fit
        last_round = published_json = network_json = None
        if newest is not None:
            last_round = {
                "round": newest.round_id,
                "reason": newest.reason,
                "strategy": newest.strategy,
                "labels_per_class": newest.labels_per_class,
                "trained": newest.fit is not None,
                "seconds": newest.seconds,
            }
        if published is not None:
            published_json = published.model_dump(mode="json", exclude={"image_ids", "rereads"})
            published_json["images"] = len(published.image_ids)
            if published.rereads:
                published_json["rereads"] = len(published.rereads)
        if network is not None:
            network_json = network.model_dump(mode="json")
            network_json["validation_accuracy"] = None if fit is None else fit.validation_accuracy
        return {
            "project": str(self.connection.project),
            "title": self.title,
            "sentence": self.sentence,
            "state": self.state,
            "problem": self.problem,
            "mistake": self.mistake,
            "question": self.question,
            "paused": None if self.paused is None else self.paused.since.isoformat(timespec="seconds"),
            "queue": self.queue.model_dump(mode="json"),
            "published": published_json,
            "last_round": last_round,
            "network": network_json,
            "standing": None if self.standing is None else self.standing.model_dump(mode="json"),
            "unreadable": self.unreadable,
            "workers": self.workers,
            "serving": [problem.model_dump() for problem in self.serving],
            "quarantined": {
                "images": len(self.quarantined),
                "listed": [image.model_dump(mode="json", exclude={"mark", "version"}) for image in self.listed],
            },
        }


def statuses(store: RoundStore, queue: RoundQueue, *, analysed: bool = True) -> list[ProjectStatus]:
    """Every connected project, oldest first. One that cannot be read has a ``problem`` and hides no other.

    Args:
        store: of the installation.
        queue: its rounds.
        analysed: with their analyses, which take seconds where they must be computed.

    Raises:
        StorageError: the list of projects itself cannot be read.
    """
    connections = store.connections()
    workers = _workers(queue) if connections else None
    return [replace(_status_of(one, store, queue, analysed=analysed), workers=workers) for one in connections]


def status_of(connection: Connection, store: RoundStore, queue: RoundQueue, *, analysed: bool = True) -> ProjectStatus:
    """One project, by default with its analysis, as far as it can be read; see ``statuses``."""
    return replace(_status_of(connection, store, queue, analysed=analysed), workers=_workers(queue))


def _workers(queue: RoundQueue) -> int | None:
    try:
        return queue.workers()
    except BackendError:
        return None


def _status_of(connection: Connection, store: RoundStore, queue: RoundQueue, *, analysed: bool) -> ProjectStatus:
    """One project, without the workers, which all projects share."""
    project = store.project(connection.project)
    configured, mistake = config_of(connection)
    rounds, _ = project.summaries()
    network = known_network(rounds)
    status = ProjectStatus(
        connection,
        QueueStatus(),
        options=None if configured is None else configured.options,
        mistake=mistake,
        question=None if configured is None else question(*configured),
        unreadable=project.readings.problem(),
        quarantined=project.quarantine().listed(),
        paused=project.pause.read(),
        title="" if (seen := project.readings.serving(Serving)) is None else seen.title,
        network=network,
        fit=next((one.fit for one in rounds if network is not None and one.round_id == network.round_id), None),
        analysis=analyse(project, *configured) if analysed and configured is not None else None,
    )
    try:
        status = replace(status, published=project.published(), newest=project.latest_summary())
        status = replace(status, queue=queue.status(connection.project))
    except BackendError as error:
        return replace(status, problem=str(error))
    published = status.published
    # Of another version it is out of date: the reconciler asks again within a minute.
    if status.options is None or seen is None or seen.version != (published.version if published else None):
        return status
    waits = status.standing is None or status.standing.waits
    return replace(status, serving=tuple(serving_problems(seen, status.options, TITLE, waits=waits)))


def project_name(connection: Connection, title: str) -> str:
    """The project's title in Label Studio, or its number where ``title`` is empty: before it was read."""
    return title or f"Project {connection.project.id}"


def config_of(connection: Connection) -> tuple[ProjectConfig | None, str | None]:
    """Label config and options of a project; or None and what is wrong with them."""
    try:
        configured = ProjectConfig(*configuration(connection))
        training_classes(*configured)
    except BackendError as error:
        return None, str(error)
    return configured, None
