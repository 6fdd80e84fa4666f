"""Settings and a connection in, the parts of a live round out: the only place that names concrete classes.

Imports torch, so only a worker imports this module, and where there may be a GPU only its work-horse.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.ports import Learner, Progress, RoundParts, no_guard, no_progress
from ml_backend.engine.resume import served_round, unpublished_round
from ml_backend.engine.round import run_round
from ml_backend.engine.sharing import LayOut, ShardedLearner
from ml_backend.engine.split import fold_split
from ml_backend.engine.topup import TopUp, TurnsPublisher, beside
from ml_backend.errors import EmptyPool, RoundError, UnknownProject
from ml_backend.images import ImageSource, QuarantinedSource
from ml_backend.insight import INSIGHT, round_insight
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.labels import LabelStudioLabels
from ml_backend.label_studio.mirror import Counts
from ml_backend.label_studio.publisher import LabelStudioPublisher
from ml_backend.label_studio.supply import low_water
from ml_backend.model import scoring
from ml_backend.model.checkpoint import FILE_NAME
from ml_backend.model.committee import CommitteeLearner, Tell, make_learner
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.machine import machine
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.queueing import ShardQueue
from ml_backend.records import Connection, ImageRef, ProjectKey, Published, Reason, RoundReport, RoundRequest
from ml_backend.settings import ProjectOptions, Settings
from ml_backend.storage import ProjectStore, RoundStore, ScoringFolder, ScoringTask
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.quarantine import Quarantine
from ml_backend.strategies import Need

__all__ = ["run_live_round", "shard_scorer"]

PATIENCE_S = 90.0  # a restart of Label Studio takes 11 to 33 s, and must not cost the round its training
CACHE_GB = 10**9


@dataclass(frozen=True, slots=True)
class _World:
    """A project as a worker meets it."""

    settings: Settings
    key: ProjectKey
    store: RoundStore
    project: ProjectStore
    connection: Connection
    client: LabelStudioClient
    images: ImageSource
    quarantine: Quarantine

    def learner(
        self, options: ProjectOptions, progress: Progress, warm_from: Path | None = None
    ) -> McDropoutLearner | CommitteeLearner:
        def make(options: ProjectOptions, seed: int, tell: Tell) -> McDropoutLearner:
            return McDropoutLearner(
                options=options,
                source=self.images,
                cache=self.store.cache,
                device=self.settings.device,
                seed=seed,
                progress=tell,
                warm_from=warm_from,
                cache_limit_bytes=int(self.settings.cache_gb * CACHE_GB),
            )

        return make_learner(make, options, partial(fold_split, seed=options.seed), progress)


def run_live_round(
    settings: Settings,
    key: ProjectKey,
    reason: Reason,
    progress: Progress = no_progress,
    guard: Callable[[], None] = no_guard,
) -> tuple[RoundReport, Published]:
    """Run one round of a project that Label Studio has connected, or only publish more of its last ranking.

    Returns:
        The round and what is served of it: the last round's where ``reason`` is ``topup``.

    Raises:
        SettingsError: no API key, or an option of the project is wrong.
        UnknownProject: the project was never connected, or Label Studio has given its id to another.
        EmptyPool: a top-up of a project without any round.
        BackendError: see ``run_round`` and ``TopUp``.
    """
    with _world(settings, key) as world:
        live = _live(world, guard)
        if reason == "topup":
            return _top_up(live)
        options = live.options
        round_id = world.project.next_round_id()
        warm_from = world.project.newest_network(FILE_NAME) if options.retrain == "warm" else None
        parts = RoundParts(
            labels=live.labels,
            consensus=RULES[options.consensus],
            learner=ShardedLearner(
                lambda tell: world.learner(options, tell, warm_from),
                ShardQueue.from_settings(settings, key),
                _lay_out(world, round_id, options),
                size=scoring.SHARD_IMAGES,
                progress=progress,
            ),
            strategy=CatalogStrategy(options.strategy),
            store=_NotesWhatIsLearned(world.project, live.readings, live.labels),
            publisher=live.publisher,
            progress=progress,
            guard=guard,
            unpublished=lambda inputs: unpublished_round(world.project, inputs),
            served=live.served,
        )
        request = RoundRequest(
            project=key,
            round_id=round_id,
            reason=reason,
            classes=training_classes(live.config, options),
            strategy=options.strategy,
            batch_size=options.batch_size,
            min_labels_per_class=options.min_labels_per_class,
            control_share=options.control_share,
            validation_share=options.validation_share,
            seed=options.seed,
            options=options.model_dump(mode="json"),
        )
        # Training may take longer than readers need for what is published.
        with beside(live.top_up), world.quarantine.settled():
            return run_round(request, parts)


@dataclass(frozen=True, slots=True)
class _Live:
    """What a round and a top-up of a project have in common."""

    world: _World
    config: LabelConfig
    options: ProjectOptions
    readings: ReadingStore
    labels: LabelStudioLabels
    publisher: TurnsPublisher
    guard: Callable[[], None]

    def top_up(self) -> tuple[RoundReport, Published] | None:
        project, options = self.world.project, self.options
        # Its own: the round's labels stay what the round has read.
        labels = LabelStudioLabels(self.world.client, self.world.key.id, self.config, options, self.readings)
        with self.publisher.turn():
            return TopUp(labels, self.publisher, project, low_water(options), self.guard).run()

    def served(self, inputs: str) -> tuple[RoundReport, Published] | None:
        """What readers are served, where a new round with these inputs would come to the same."""
        world = self.world
        found = served_round(world.project, inputs)
        # Somebody may have switched to another version since: then the round is what puts it right.
        if found is None or world.client.project(world.key.id).get("model_version") != found[1].version:
            return None
        # Another annotation of the same label counts as a change, and would call for a round again and again.
        self.readings.keep_learned(found[1].round_id, self.labels.states())
        return found


def _live(world: _World, guard: Callable[[], None]) -> _Live:
    client, key, project = world.client, world.key, world.project
    config = parse_label_config(_label_config(client, key))
    options = ProjectOptions.resolve(world.connection.extra_params, config.attributes)
    readings = ReadingStore(project.folder)
    return _Live(
        world=world,
        config=config,
        options=options,
        readings=readings,
        labels=LabelStudioLabels(client, key.id, config, options, readings),
        publisher=TurnsPublisher(
            _CountingPublisher(LabelStudioPublisher(client, key.id, config, options, project), client, project, key.id)
        ),
        guard=guard,
    )


def _top_up(live: _Live) -> tuple[RoundReport, Published]:
    if (done := live.top_up()) is not None:
        return done
    project = live.world.project
    published = project.published()
    if published is None:
        raise EmptyPool(f"project {live.world.key.id} has no ranking yet that could be topped up: a round makes one")
    return project.report(published.round_id), published


@dataclass(frozen=True, slots=True)
class _NotesWhatIsLearned:
    """A project's rounds, each with the annotations that it learned from: what differs from them is what changed."""

    project: ProjectStore
    readings: ReadingStore
    labels: LabelStudioLabels

    def save(self, report: RoundReport, outputs: PoolOutputs | None, learner: Learner | None) -> None:
        self.readings.keep_learned(report.request.round_id, self.labels.states())
        beside = {} if outputs is None else {INSIGHT: round_insight(report, outputs)}
        self.project.save(report, outputs, learner, beside)


@dataclass(frozen=True, slots=True)
class _CountingPublisher:
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


@contextmanager
def shard_scorer(
    settings: Settings, key: ProjectKey, folder: ScoringFolder, progress: Progress = no_progress
) -> Iterator[Callable[[int], PoolOutputs]]:
    """What scores the shards of another worker's round, by their numbers.

    Args:
        settings: of this worker.
        key: whose pool it is.
        folder: what the round has laid out.
        progress: told of each shard; unlike a round's it may raise, to stop.

    Raises:
        RoundError: the round is over, or this machine would give other bits than the round's.
        UnknownProject: the project was never connected.
        SettingsError: no API key.
        WeightsError: the network is gone or damaged.
    """
    task = folder.task()
    if task is None:
        raise RoundError(f"scoring {folder.name} is over")
    if (here := machine(settings.device)) != task.machine:
        raise RoundError(
            f"this worker would score to other bits ({here}) than the round ({task.machine}): "
            "run the workers of one installation on equal machines, or start one worker only"
        )
    with _world(settings, key) as world:
        learner = world.learner(task.options, progress)
        learner.restore(str(folder.folder))
        yield lambda number: learner.outputs(folder.images(number), task.needs)


@contextmanager
def _world(settings: Settings, key: ProjectKey) -> Iterator[_World]:
    store = RoundStore(settings.data_dir)
    project = store.project(key)
    connection = project.connection()
    if connection is None:
        raise UnknownProject(f"project {key} is not connected: run `ml-backend connect --project {key.id}`")
    # Where no password is asked for, anybody may call /setup, and name a host that the API key would then be sent to.
    hostname = connection.hostname if settings.basic_auth_user else None
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=PATIENCE_S) as client,
        closing(LabelStudioImages(client, connection.hostname, hosts=settings.allowed_image_hosts)) as images,
    ):
        quarantine = Quarantine(project.folder)
        source = QuarantinedSource(images, quarantine, version=images.version)
        yield _World(settings, key, store, project, connection, client, source, quarantine)


def _lay_out(world: _World, round_id: str, options: ProjectOptions) -> LayOut:
    def lay_out(learner: Learner, shards: Sequence[Sequence[ImageRef]], needs: frozenset[Need]) -> ScoringFolder:
        task = ScoringTask(options=options, needs=needs, machine=machine(world.settings.device), shards=len(shards))
        return world.project.begin_scoring(round_id, task, shards, learner)

    return lay_out


def _label_config(client: LabelStudioClient, key: ProjectKey) -> str:
    """As it stands now: the event of its change is lost where the web process was down."""
    project = client.project(key.id)
    created = int(datetime.fromisoformat(str(project["created_at"])).timestamp())
    if created != key.created:
        raise UnknownProject(f"project {key} is gone: Label Studio has given its id to {key.id}.{created}")
    return str(project["label_config"])
