"""What a round, a re-ranking and a top-up of a live project have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from structlog.contextvars import bound_contextvars

from ml_backend.assembly.sealing import SealedRounds
from ml_backend.assembly.world import World, label_config
from ml_backend.engine.ports import Learner
from ml_backend.engine.resume import served_round
from ml_backend.engine.topup import TopUp, TurnsPublisher
from ml_backend.errors import BackendError, EmptyPool
from ml_backend.images.dataset import read_ahead
from ml_backend.insight import INSIGHT, round_insight
from ml_backend.insight.agreement import AGREEMENT, round_marks
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.duplicates import shared_digests
from ml_backend.label_studio.formats import LabelConfig, parse_label_config
from ml_backend.label_studio.labels import LabelStudioLabels
from ml_backend.label_studio.mirror import Counts
from ml_backend.label_studio.publisher import LabelStudioPublisher
from ml_backend.label_studio.serving import is_lost, read_serving
from ml_backend.label_studio.supply import low_water
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import ImageRef, Published, Record, RoundReport
from ml_backend.settings import ProjectOptions
from ml_backend.storage import ProjectStore
from ml_backend.storage.annotations import ReadingStore

__all__ = ["CountingPublisher", "Live", "NotesWhatIsLearned", "live_of", "topped_up_or_served"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Live:
    """What a round and a top-up of a project have in common."""

    world: World
    config: LabelConfig
    options: ProjectOptions
    readings: ReadingStore
    labels: LabelStudioLabels
    publisher: TurnsPublisher
    guard: Callable[[], None]

    def top_up(self) -> tuple[RoundReport, Published] | None:
        project, options = self.world.project, self.options
        # Its own: the round's labels stay what the round has read.
        labels = LabelStudioLabels(
            self.world.client, self.world.key.id, self.config, options, self.readings, digests=self.readings.digests
        )
        served = project.published()
        about = {} if served is None else {"round": served.round_id}
        with self.publisher.turn(), bound_contextvars(**about):
            low, is_held = low_water(options), partial(self._is_held, labels)
            return TopUp(labels, self.publisher, project, low, self.guard, is_held=is_held).run()

    def drop_copies(self) -> tuple[RoundReport, Published] | None:
        """Note which images have equal content, now that a round has read them; take new copies out of the order.

        Nothing here makes the round that is published a failure: a later top-up, or round, sees to it as well.

        Returns:
            What is served instead; None where nothing had to be published.
        """
        try:
            if self._note_copies():
                return self.top_up()
        except BackendError as error:
            log.warning("copies of images stay in the order for now", error=str(error), kind=type(error).__name__)
        return None

    def find_copies(self, images: Sequence[ImageRef]) -> bool:
        """Read images that no round has read yet, and note which of all images have equal content.

        Returns:
            Whether other ones have than were known before.
        """
        known = self.world.read_digests(images)
        unread = [image for image in images if image.uri not in known]
        cache = self.world.image_cache(self.options.image_side)
        for _ in read_ahead(unread, lambda image: cache.read(image).key):
            pass  # one that cannot be read is named by the training
        return self._note_copies()

    def _note_copies(self) -> bool:
        images = self.labels.images()
        known = self.readings.digests()
        kept = {image.uri: known[image.uri] for image in images if image.uri in known}
        return self.readings.keep_digests(shared_digests(kept | self.world.read_digests(images)))

    def served(self, inputs: str) -> tuple[RoundReport, Published] | None:
        """What readers are served, where a new round with these inputs would come to the same."""
        world = self.world
        found = served_round(world.project, inputs)
        # Somebody may have deleted it or switched to another version since: then the round is what puts it right.
        if found is None or not self._is_held(self.labels, found[1]):
            return None
        # Another annotation of the same label counts as a change, and would call for a round again and again.
        self.readings.keep_learned(found[1].round_id, self.labels.states())
        return found

    def _is_held(self, labels: LabelStudioLabels, published: Published) -> bool:
        """Whether Label Studio holds what was published, as it was published."""
        # The row as it is now: the labels may have been read when the round began.
        row = self.world.client.project(self.world.key.id)
        tasks = labels.reading.mirror.tasks.keys()
        imported, user = self.world.project.imported_versions, self.world.settings.basic_auth_user
        return not is_lost(read_serving(self.world.client, row, tasks, published, imported, user=user))


def live_of(world: World, guard: Callable[[], None]) -> Live:
    """Read the project's question and its owner's options, as they stand now.

    Raises:
        SettingsError: an option is wrong.
        UnknownProject: Label Studio has given the project's id to another.
        PayloadError, LabelStudioError: the question cannot be read.
    """
    client, key, project = world.client, world.key, world.project
    config = parse_label_config(label_config(client, key))
    options = ProjectOptions.resolve(world.connection.extra_params, config.attributes)
    readings = ReadingStore(project.folder)
    return Live(
        world=world,
        config=config,
        options=options,
        readings=readings,
        labels=LabelStudioLabels(client, key.id, config, options, readings, digests=readings.digests),
        publisher=TurnsPublisher(
            CountingPublisher(LabelStudioPublisher(client, key.id, config, options, project), client, project, key.id)
        ),
        guard=guard,
    )


def topped_up_or_served(live: Live) -> tuple[RoundReport, Published]:
    """Publish more of the last ranking, if it is time; what is served, and the round that it is of.

    Raises:
        EmptyPool: nothing is served yet.
        BackendError: see ``TopUp``.
    """
    if (done := live.top_up()) is not None:
        return done
    project = live.world.project
    published = project.published()
    if published is None:
        raise EmptyPool(f"project {live.world.key.id} has no ranking yet that could be topped up: a round makes one")
    return project.report(published.round_id), published


@dataclass(frozen=True, slots=True)
class NotesWhatIsLearned:
    """A project's rounds, each with the annotations that it learned from: what differs from them is what changed."""

    rounds: SealedRounds
    readings: ReadingStore
    labels: LabelStudioLabels

    def save(self, report: RoundReport, outputs: PoolOutputs | None, learner: Learner | None) -> None:
        self.readings.keep_learned(report.request.round_id, self.labels.states())
        told: dict[str, Record] = {}
        if outputs is not None:
            told[INSIGHT] = round_insight(report, outputs)
            if (marks := round_marks(report, outputs)) is not None:
                told[AGREEMENT] = marks
        self.rounds.save(report, outputs, learner, told)


@dataclass(frozen=True, slots=True)
class CountingPublisher:
    """Notes how many annotations there were, so that an event tells how much of a ranking has been used up."""

    publisher: LabelStudioPublisher
    client: LabelStudioClient
    project: ProjectStore
    project_id: int

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> Published:
        before = Counts.of(self.client.project(self.project_id))
        published = self.publisher.publish(report, guard)
        noted = published.model_copy(update={"annotations": before.annotations + before.skips})
        guard()
        self.project.set_published(noted)
        return noted
