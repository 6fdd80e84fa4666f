"""The demo's project in Label Studio: created, filled with images, labelled by readers, its rounds followed."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from ml_backend.demo.options import DemoImage
from ml_backend.demo.readers import ReadingRoom
from ml_backend.demo.summary import View, check_order
from ml_backend.errors import RoundError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, parse_label_config
from ml_backend.processes import Service
from ml_backend.scheduling import Progress, QueueStatus, RoundQueue
from ml_backend.schemas import AFTER_A_ROUND, STAGES, ProjectKey, PublishedRanking, RoundReport
from ml_backend.storage import RoundStore

BATCH = 40  # files of an upload: each request stays far below Label Studio's limit of 250 MB
PAUSE_S = 0.2
STALL_S = 300.0  # without progress: the slowest step of a demo round takes a tenth of that


def create_project(client: LabelStudioClient, title: str, label_config: str) -> tuple[int, LabelConfig]:
    """Create a project; returns its id, and its label config as Label Studio has stored it.

    Raises:
        LabelStudioError: Label Studio refused.
    """
    project = client.create_project({"title": title, "label_config": label_config})
    return int(project["id"]), parse_label_config(project["label_config"])


def upload_images(
    client: LabelStudioClient, token: str, project_id: int, image_key: str, images: Sequence[DemoImage]
) -> Iterator[int]:
    """Upload images and create a task for each, in their order, with the patient but without the label.

    Args:
        client: of the project's owner.
        token: legacy token of the owner.
        project_id: project without these images.
        image_key: key of the image in a task's data.
        images: with unique names.

    Yields:
        Number of images uploaded so far, after each batch.

    Raises:
        LabelStudioError: Label Studio refused, or stored fewer than were sent.
    """
    with LabelStudioClient(client.url, token) as owner:
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            uris = owner.upload(project_id, {image.name: image.content for image in batch})
            tasks = []
            for image in batch:
                patient = {} if image.patient_id is None else {"patient_id": image.patient_id}
                tasks.append({"data": {image_key: uris[image.name], **patient}})
            client.import_tasks(project_id, tasks)
            yield start + len(batch)


class RoundFollower:
    """Follows a project's rounds from outside: by the store, the queue and Label Studio.

    Args:
        client: of the project's owner.
        store: data folder of server and worker.
        queue: their Redis.
        project: to follow.
        clock: monotonic seconds.

    Attributes:
        rounds: the published rounds, oldest first.
        visible_at: version -> when Label Studio was first seen to serve it.
        claimed_at: version -> when the worker took its round from the queue.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        store: RoundStore,
        queue: RoundQueue,
        project: ProjectKey,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.project = project
        self.rounds: list[tuple[RoundReport, PublishedRanking]] = []
        self.visible_at: dict[str, datetime] = {}
        self.claimed_at: dict[str, datetime] = {}
        self._client = client
        self._queue = queue
        self._store = store.project(project)
        self._clock = clock
        self._moved_at = clock()
        self._last_seen: object = None
        self._claim: datetime | None = None

    @property
    def rankings(self) -> dict[str, tuple[str, ...]]:
        """Version -> image ids in the order in which they should be served."""
        return {published.version: published.image_ids for _, published in self.rounds}

    @property
    def rereads(self) -> dict[str, tuple[str, ...]]:
        """Version -> those of its images that have a label, and wait for another reader."""
        return {published.version: published.rereads for _, published in self.rounds}

    @property
    def trained(self) -> int:
        """Number of published rounds that trained a network."""
        return sum(report.trained for report, _ in self.rounds)

    def is_newer(self, progress: Progress) -> bool:
        """Whether the progress is that of a round after the newest published one."""
        return not self.rounds or progress.started > self.rounds[-1][0].started_at.timestamp()

    def version(self) -> str:
        """The model version that Label Studio serves now; empty where there is none."""
        version = str(self._client.project(self.project.id).get("model_version") or "")
        self.visible_at.setdefault(version, datetime.now(UTC))
        return version

    def poll(self, *, patient: bool = False) -> QueueStatus:
        """Read the state of the queue, and note a newly published round.

        Args:
            patient: accept that nothing happens: perhaps nobody is labelling.

        Raises:
            RoundError: the last round failed, or nothing has happened for five minutes.
            QueueError, StorageError: the queue or the store cannot be read.
        """
        status = self._queue.status(self.project)
        if status.last_error is not None and status.failing:
            raise RoundError(f"a round failed: {status.last_error.message} ({status.last_error.kind})")
        # First, since ``_claim`` is still that of this round.
        if (published := self._store.published()) is not None:
            self._note(published)
        if status.progress is not None:
            self._claim = datetime.fromtimestamp(status.progress.started, UTC)
        if (seen := (status, published)) != self._last_seen:
            self._last_seen, self._moved_at = seen, self._clock()
        elif not patient and self._clock() - self._moved_at > STALL_S:
            state = f"running: {status.running}, waiting: {status.waiting}, changes: {status.changes}"
            raise RoundError(f"no round has moved for {STALL_S:.0f} s ({state}): see the worker's log")
        return status

    def _note(self, published: PublishedRanking) -> None:
        if self.rounds and self.rounds[-1][1].version == published.version:
            # Stored a second time, with the time that the deletion of the old version took.
            self.rounds[-1] = (self.rounds[-1][0], published)
            return
        report = self._store.report(published.round_id)
        self.rounds.append((report, published))
        began = report.started_at
        self.claimed_at[published.version] = self._claim if self._claim and self._claim <= began else began


class RoundProgress:
    """Shows the stages of the running round as bars, and each published round as a line."""

    def __init__(self, view: View, announced: int = 0) -> None:
        self._view = view
        self._stage: tuple[str, int] | None = None  # name, total
        self._announced = announced

    def show(self, follower: RoundFollower, status: QueueStatus) -> bool:
        """Show the current state; True when a ranking was published since the last call."""
        new = follower.rounds[self._announced :]
        if new:
            self._end_stage()
            self._view.clear()
        for number, (report, published) in enumerate(new, start=self._announced + 1):
            self._view.print(_announcement(number, report, published))
        self._announced += len(new)
        progress = status.progress
        # What a published round does afterwards is not shown, except what the first training would wait for.
        if progress is None or not (follower.is_newer(progress) or progress.stage in AFTER_A_ROUND):
            self._end_stage()
            return bool(new)
        name = STAGES.get(progress.stage, progress.stage)
        if self._stage is not None and self._stage[0] != name:
            self._end_stage()
        self._stage = (name, progress.total)
        self._view.step(name, progress.done, progress.total)
        return bool(new)

    def _end_stage(self) -> None:
        # The last progress seen is seldom the end: training stops early, and the queue is read only now and then.
        if self._stage is not None:
            name, total = self._stage
            self._view.step(name, total, total)
        self._stage = None


def _announcement(number: int, report: RoundReport, published: PublishedRanking) -> str:
    labels = ", ".join(f"{count} {name}" for name, count in report.labels_per_class.items())
    if report.fit is not None:
        how = f"validation accuracy {report.fit.validation_accuracy:.2f}"
    elif report.base is not None:
        how = f"ranked again by {report.ranking.strategy}, with the network of {report.base}"
    else:
        how = "random order, since a class has too few labels for a network"
    return f"round {number} published: labels {labels}; {how}; the next {len(published.image_ids)} images are in order"


def label_until(
    rounds: int,
    *,
    retrain_after: int,
    room: ReadingRoom,
    follower: RoundFollower,
    services: Sequence[Service],
    view: View,
) -> None:
    """Let the readers label until ``rounds`` rankings of a trained network are published and have been served from.

    While a round runs the readers go on under the old order, but by at most half of what starts the next one: every
    ranking shall be served from.

    Raises:
        RoundError: a round failed or hangs, or the images ran out before the rounds were through.
        ServiceError: a service has ended.
    """
    bars = RoundProgress(view)
    while True:
        status = follower.poll()
        for service in services:
            service.check()
        if bars.show(follower, status):
            room.new_ranking()
        # One label short of the next round: the last ranking has been served from, and no round runs at the end.
        if follower.trained >= rounds and not status.running and status.changes >= retrain_after - 1:
            return
        # The worker resets the changes when it takes a round.
        most = retrain_after // 2 + (0 if status.running else retrain_after)
        if not follower.rounds or status.changes >= most:
            time.sleep(PAUSE_S)
            continue
        if not room.turn():
            raise RoundError(
                f"the images ran out after {follower.trained} of {rounds} rounds: give more images or fewer ROUNDS"
            )
        show_labels(view, status.changes, retrain_after)
        if view.is_live:
            checks = check_order(room.served, follower.rankings, follower.rereads).values()
            in_order, served = sum(one.in_order for one in checks), sum(one.served for one in checks)
            view.step("served in exactly the chosen order", in_order, served)


def show_labels(view: View, changes: int, retrain_after: int) -> None:
    """Show how many of the labels that start the next round are given; not in a log, since it changes constantly."""
    if view.is_live:
        view.step("labels until the next round", min(changes, retrain_after), retrain_after)
