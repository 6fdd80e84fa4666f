"""A project as a worker meets it: its store, its Label Studio, its images, and what learns from them.

A live round is kept with what it saw and a manifest of it.
What a round, a re-ranking and a top-up of a live project have in common.
A live re-ranking: another strategy at once, from the passes or by the network of an earlier round.
A live round, and what scores the shards of another worker's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
from pydantic import ValidationError
from structlog.contextvars import bind_contextvars, bound_contextvars

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.analytics import INSIGHT, round_insight
from ml_backend.analytics.agreement import AGREEMENT, FIXED_SET, NOISE, noise_of, round_marks, rounds_with
from ml_backend.analytics.order_audit import RANKING_OPTIONS, OrderStanding, order_standing
from ml_backend.config import ProjectOptions, Settings
from ml_backend.consensus.rules import RULES
from ml_backend.errors import (
    BackendError,
    EmptyPool,
    RequestRefused,
    RoundError,
    StorageError,
    UnknownProject,
    WeightsError,
)
from ml_backend.images import ImageSource, QuarantinedSource
from ml_backend.images.cache import ImageCache, content_digests
from ml_backend.images.dataset import read_ahead
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.publisher import LabelStudioPublisher, is_lost, low_water, read_serving
from ml_backend.label_studio.sync import Counts, LabelStudioLabels, shared_digests
from ml_backend.model import inference
from ml_backend.model.checkpoint import FILE_NAME
from ml_backend.model.ensemble import EnsembleLearner, make_learner
from ml_backend.model.inference import hardware_fingerprint
from ml_backend.model.learner import IMAGES, LearnerProgress, McDropoutLearner
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner, Progress, RoundParts, no_guard, no_progress
from ml_backend.rounds.replay import RecordingLabelSource, sealed
from ml_backend.rounds.reuse import LockedPublisher, RerankParts, Scorer, StoredPasses, TopUp, beside, rerank
from ml_backend.rounds.run import run_round, served_round, unpublished_round
from ml_backend.rounds.seed_noise import RecordingLearner, measure_seed_noise, seed_noise_is_due
from ml_backend.rounds.sharding import LayOut, ShardBoard, ShardedLearner
from ml_backend.rounds.split import fold_split
from ml_backend.rounds.start_features import START_FEATURES, StartFeatures
from ml_backend.schemas import (
    Connection,
    FrozenModel,
    ImageRef,
    ProjectKey,
    PublishedRanking,
    RoundReport,
    RoundRequest,
    RoundTrigger,
)
from ml_backend.seeding import derive
from ml_backend.storage import ProjectStore, RoundStore, ScoringFolder, ScoringTask
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.project_state import Pause
from ml_backend.storage.quarantine import Quarantine
from ml_backend.storage.rounds import INPUTS

PATIENCE_S = 90.0  # a restart of Label Studio takes 11 to 33 s, and must not cost the round its training
CACHE_GB = 10**9


@dataclass(frozen=True, slots=True)
class ProjectContext:
    """A project as a worker meets it."""

    settings: Settings
    key: ProjectKey
    store: RoundStore
    project: ProjectStore
    connection: Connection
    client: LabelStudioClient
    images: ImageSource
    quarantine: Quarantine
    read_digests: Callable[[Iterable[ImageRef]], dict[str, str]]
    """Address -> digest of the bytes there, of images that a round has read."""
    board: ShardBoard | None = None
    """Where other workers are asked to score shards; None where nobody is."""

    def image_cache(self, side: int) -> ImageCache:
        """The cache that the learners read images from, of this side."""
        return ImageCache(self.images, self.store.cache / IMAGES, side, int(self.settings.cache_gb * CACHE_GB))

    def learner(
        self, options: ProjectOptions, progress: Progress, warm_from: Path | None = None, *, twin: bool = False
    ) -> McDropoutLearner | EnsembleLearner:
        """What learns by these options; a twin differs by its seed alone, and tears labels apart as the other does."""

        def make(options: ProjectOptions, seed: int, tell: LearnerProgress) -> McDropoutLearner:
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

        folds = partial(fold_split, seed=options.seed)
        if twin:
            options = options.model_copy(update={"seed": derive(options.seed, "twin")})
        return make_learner(make, options, folds, progress)


@contextmanager
def open_project(
    settings: Settings, key: ProjectKey, *, board: ShardBoard | None = None, patience_s: float = PATIENCE_S
) -> Iterator[ProjectContext]:
    """A project, with connections that end with the block.

    Args:
        settings: of the installation.
        key: of the project.
        board: where other workers are asked to score shards; None where nobody is.
        patience_s: seconds for which a Label Studio that is away is waited for.

    Raises:
        UnknownProject: it was never connected.
        SettingsError: no API key.
    """
    store = RoundStore(settings.data_dir)
    project = store.project(key)
    connection = project.connection()
    if connection is None:
        raise UnknownProject(f"project {key} is not connected: run `ml-backend connect --project {key.id}`")
    hostname = settings.trusted_hostname(connection.hostname)
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=patience_s) as client,
        closing(LabelStudioImages(client, connection.hostname, hosts=settings.allowed_image_hosts)) as images,
    ):
        quarantine = Quarantine(project.folder)
        source = QuarantinedSource(images, quarantine, version=images.version)
        digests = partial(content_digests, images, store.cache / IMAGES)
        yield ProjectContext(settings, key, store, project, connection, client, source, quarantine, digests, board)


def lay_out(world: ProjectContext, round_id: str, options: ProjectOptions) -> LayOut:
    """What writes down, for a round's helpers, the network of these options and the shards."""

    def written(learner: Learner, shards: Sequence[Sequence[ImageRef]], needs: frozenset[Need]) -> ScoringFolder:
        task = ScoringTask(
            options=options, needs=needs, machine=hardware_fingerprint(world.settings.device), shards=len(shards)
        )
        return world.project.begin_scoring(round_id, task, shards, learner)

    return written


def label_config(client: LabelStudioClient, key: ProjectKey) -> str:
    """As it stands now: the event of its change is lost where the web process was down.

    Raises:
        UnknownProject: Label Studio has no such project any more, or has given its id to another.
        LabelStudioError: it does not answer, or refuses.
    """
    try:
        project = client.project(key.id)
    except RequestRefused as error:
        if error.status != 404 or not client.is_authenticated():
            raise
        raise UnknownProject(
            f"project {key} is gone: the Label Studio at {client.url} has no project {key.id} that the user of "
            "AL_LABEL_STUDIO_API_KEY may see"
        ) from error
    created = int(datetime.fromisoformat(str(project["created_at"])).timestamp())
    if created != key.created:
        raise UnknownProject(f"project {key} is gone: Label Studio has given its id to {key.id}.{created}")
    return str(project["label_config"])


def _nothing_seen() -> None:
    """No order was made from features alone."""


@dataclass(frozen=True, slots=True)
class ManifestWriter:
    """The rounds of a project.

    Attributes:
        project: where they are kept.
        inputs: what the round has seen when it is saved.
        device: that the installation asks for.
        features: where those are kept that an order before the first network was made from; None where there are none.
    """

    project: ProjectStore
    inputs: RecordingLabelSource
    device: Literal["auto", "cpu", "cuda"]
    features: Callable[[], StartFeatures | None] = _nothing_seen

    def save(
        self,
        report: RoundReport,
        outputs: PoolPredictions | None,
        learner: Learner | None,
        beside: Mapping[str, FrozenModel],
    ) -> None:
        """See ``ProjectStore.save``."""
        noted, features = self.inputs.noted(), self.features()
        seen: dict[str, FrozenModel] = {} if features is None else {START_FEATURES: features}
        self.project.save(
            report,
            outputs,
            learner,
            {**beside, INPUTS: noted, **seen},
            seal=lambda folder: sealed(self.project, report, noted, folder, self.device),
        )


log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Live:
    """What a round and a top-up of a project have in common."""

    world: ProjectContext
    config: LabelConfig
    options: ProjectOptions
    readings: ReadingStore
    labels: LabelStudioLabels
    publisher: LockedPublisher
    guard: Callable[[], None]

    def top_up(self) -> tuple[RoundReport, PublishedRanking] | None:
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

    def drop_copies(self) -> tuple[RoundReport, PublishedRanking] | None:
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

    def served(self, inputs: str) -> tuple[RoundReport, PublishedRanking] | None:
        """What readers are served, where a new round with these inputs would come to the same."""
        world = self.world
        found = served_round(world.project, inputs)
        # Somebody may have deleted it or switched to another version since: then the round is what puts it right.
        if found is None or not self._is_held(self.labels, found[1]):
            return None
        # Another annotation of the same label counts as a change, and would call for a round again and again.
        self.readings.keep_learned(found[1].round_id, self.labels.states())
        return found

    def _is_held(self, labels: LabelStudioLabels, published: PublishedRanking) -> bool:
        """Whether Label Studio holds what was published, as it was published."""
        # The row as it is now: the labels may have been read when the round began.
        row = self.world.client.project(self.world.key.id)
        tasks = labels.reading.cache.tasks.keys()
        imported, user = self.world.project.imported_versions, self.world.settings.basic_auth_user
        return not is_lost(read_serving(self.world.client, row, tasks, published, imported, user=user))


def live_of(world: ProjectContext, guard: Callable[[], None]) -> Live:
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
        publisher=LockedPublisher(
            CountingPublisher(LabelStudioPublisher(client, key.id, config, options, project), client, project, key.id)
        ),
        guard=guard,
    )


def topped_up_or_served(live: Live) -> tuple[RoundReport, PublishedRanking]:
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

    rounds: ManifestWriter
    readings: ReadingStore
    labels: LabelStudioLabels

    def save(self, report: RoundReport, outputs: PoolPredictions | None, learner: Learner | None) -> None:
        self.readings.keep_learned(report.request.round_id, self.labels.states())
        told: dict[str, FrozenModel] = {}
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

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> PublishedRanking:
        before = Counts.of(self.client.project(self.project_id))
        published = self.publisher.publish(report, guard)
        noted = published.model_copy(update={"annotations": before.annotations + before.skips})
        guard()
        self.project.set_published(noted)
        return noted


class _Unusable(Exception):
    """Nothing that the last network left behind can be used; the message says why."""


def rerank_live(live: Live, progress: Progress) -> tuple[RoundReport, PublishedRanking] | None:
    """Serve what the owner has chosen, if that takes no training; otherwise top up, if it is time.

    Returns:
        None where passes and network are there and cannot be used, since they are damaged or of another version, say:
        it takes a round that learns, and the rounds are not held.

    Raises:
        EmptyPool: nothing is served yet, or no image waits.
        BackendError: see ``rerank``.
    """
    standing = order_standing(live.world.project, live.options, training_classes(live.config, live.options))
    latest = standing.latest
    if standing.verdict == "next round":
        log.info("what the owner has chosen takes effect with the next round", why=standing.why)
    if standing.verdict == "saved" and latest is not None:
        log.info("the last round was saved but not published: it is published now", round=latest.request.round_id)
        report = live.world.project.report(latest.request.round_id)
        return report, live.publisher.publish(report, live.guard)
    if not standing.due or latest is None or standing.base is None:
        return topped_up_or_served(live)
    base = live.world.project.report(standing.base.request.round_id)
    request = _request(base.request, live.options, live.world.project.next_round_id())
    try:
        scorer = _scorer(live, standing, base, request.round_id, progress)
    except _Unusable as error:
        if Pause(live.world.project.folder).holds:
            log.warning("what the owner has chosen takes effect with the next round", why=str(error))
            return topped_up_or_served(live)
        log.warning("the last network cannot rank anew: a round that learns takes its place", why=str(error))
        return None
    structlog.contextvars.bind_contextvars(round=request.round_id)
    inputs = RecordingLabelSource(live.labels, RULES[live.options.consensus])
    rounds = ManifestWriter(live.world.project, inputs, live.world.settings.device)
    parts = RerankParts(
        labels=inputs,
        consensus=inputs.consensus,
        scorer=scorer,
        strategy=CatalogStrategy(request.strategy),
        store=_KnowsWhatItsBaseLearned(rounds, live.readings, latest.request.round_id),
        publisher=live.publisher,
        progress=progress,
        guard=live.guard,
    )
    log.info("ranking anew", strategy=request.strategy, base=base.request.round_id, by=standing.verdict)
    # A network may look at the pool for an hour.
    with beside(live.top_up):
        return rerank(request, base, parts)


def _request(base: RoundRequest, options: ProjectOptions, round_id: str) -> RoundRequest:
    """The earlier round's, with what the owner has chosen since of that which needs no other network."""
    chosen = {name: getattr(options, name) for name in RANKING_OPTIONS}
    return base.model_copy(
        update={**chosen, "options": {**base.options, **chosen}, "round_id": round_id, "reason": "rerank"}
    )


def _scorer(live: Live, standing: OrderStanding, base: RoundReport, round_id: str, progress: Progress) -> Scorer:
    """The passes, else the network.

    Raises:
        _Unusable: neither can be used.
    """
    why: list[str] = []
    try:
        # As it was made: with other options it would not be the same network.
        options = ProjectOptions.model_validate(base.request.options)
        if standing.verdict == "passes":
            try:
                return _passes(live.world.project, base)
            except StorageError as error:
                why.append(str(error))
        scorer = _network(live, base.request.round_id, options, round_id, progress)
    except (StorageError, WeightsError) as error:
        raise _Unusable("; ".join([*why, str(error)])) from error
    except ValidationError as error:
        said = f"the options of round {base.request.round_id} are not those of this version"
        raise _Unusable(f"{said} ({error.error_count()} mistakes)") from error
    if why:
        log.warning("the network looks at the images once more, since its passes cannot be used", why=why[0])
    return scorer


def _passes(project: ProjectStore, base: RoundReport) -> StoredPasses:
    if (kept := project.outputs(base.request.round_id)) is None:
        raise StorageError(f"the passes of round {base.request.round_id} are gone from {project.folder}")
    return StoredPasses(base, kept)


def _network(live: Live, earlier: str, options: ProjectOptions, round_id: str, progress: Progress) -> ShardedLearner:
    world = live.world
    if (folder := world.project.network(earlier)) is None:
        raise StorageError(f"the network of round {earlier} is gone from {world.project.folder}")

    def restored(tell: Progress) -> Learner:
        learner = world.learner(options, tell)
        learner.restore(str(folder))
        return learner

    return ShardedLearner(
        restored,
        world.board,
        lay_out(world, round_id, options),
        size=inference.SHARD_IMAGES,
        progress=progress,
    )


class _KnowsWhatItsBaseLearned:
    """A project's rounds, where one has learned from nothing but what an earlier one has."""

    def __init__(self, rounds: ManifestWriter, readings: ReadingStore, earlier: str) -> None:
        self._rounds = rounds
        self._readings = readings
        self._earlier = earlier

    def save(self, report: RoundReport, outputs: PoolPredictions | None, learner: Learner | None) -> None:
        self._readings.keep_learned_of(self._earlier, report.request.round_id)
        told = {} if outputs is None else {INSIGHT: round_insight(report, outputs)}
        self._rounds.save(report, outputs, learner, told)


def run_live_round(
    settings: Settings,
    key: ProjectKey,
    reason: RoundTrigger,
    progress: Progress = no_progress,
    guard: Callable[[], None] = no_guard,
    *,
    board: ShardBoard | None = None,
    raise_if_preempted: Callable[[], None] = no_guard,
    learn: Callable[[], RoundTrigger] = lambda: "forced",
) -> tuple[RoundReport, PublishedRanking]:
    """Run one round of a project that Label Studio has connected, or what learns nothing: a top-up, a re-ranking.

    What is logged from the moment that the round has a number names it, also after this.

    Args:
        settings: of the installation.
        key: of the project.
        reason: what calls for the round.
        progress: told of every stage.
        guard: raises StaleRound where a newer run has begun.
        board: where other workers are asked to score shards; None where nobody is.
        raise_if_preempted: the same, and also where another round waits: what readers do not need is given up then.
        learn: called where a re-ranking goes on as a round that learns; gives the reason that it has from then on.

    Returns:
        The round and what is served of it: the last round's where ``reason`` is ``topup``, or nothing was to be done. A
        re-ranking that can use nothing of the last network gives way to a round that learns.

    Raises:
        SettingsError: no API key, or an option of the project is wrong.
        UnknownProject: the project was never connected, or Label Studio has given its id to another.
        EmptyPool: a top-up or a re-ranking of a project without any round.
        BackendError: see ``run_round``, ``rerank`` and ``TopUp``.
    """
    with open_project(settings, key, board=board) as world:
        live = live_of(world, guard)
        if reason == "topup":
            return topped_up_or_served(live)
        if reason == "rerank":
            if (reranked := rerank_live(live, progress)) is not None:
                return reranked
            reason = learn()
        # Training may take longer than readers need for what is published.
        with beside(live.top_up), world.quarantine.settled():
            done = _round(live, reason, progress, raise_if_preempted)
            typical = live.options.cold_start == "typiclust"
            if typical and not done[0].by_network and done[0].ranking.strategy == "random":
                # Readers have an order now, and the features are there: a better one follows at once.
                done = _round(live, reason, progress, raise_if_preempted)
            return live.drop_copies() or done


def _round(
    live: Live, reason: RoundTrigger, progress: Progress, raise_if_preempted: Callable[[], None]
) -> tuple[RoundReport, PublishedRanking]:
    world, options = live.world, live.options
    round_id = world.project.next_round_id()
    # Not only in here: who tells how the round has ended names it too.
    bind_contextvars(round=round_id)
    warm_from = world.project.newest_network(FILE_NAME) if options.retrain == "warm" else None
    learner = RecordingLearner(
        ShardedLearner(
            lambda tell: world.learner(options, tell, warm_from),
            world.board,
            lay_out(world, round_id, options),
            size=inference.SHARD_IMAGES,
            progress=progress,
        )
    )
    inputs = RecordingLabelSource(live.labels, RULES[options.consensus])
    sealed = ManifestWriter(world.project, inputs, world.settings.device, learner.start_features)
    parts = RoundParts(
        labels=inputs,
        consensus=inputs.consensus,
        learner=learner,
        strategy=CatalogStrategy(options.strategy),
        store=NotesWhatIsLearned(sealed, live.readings, live.labels),
        publisher=live.publisher,
        progress=progress,
        guard=live.guard,
        serving=lambda: world.project.published() is not None,
        unpublished=lambda digest: unpublished_round(world.project, digest),
        served=live.served,
        find_copies=live.find_copies,
    )
    request = RoundRequest(
        project=world.key,
        round_id=round_id,
        reason=reason,
        classes=training_classes(live.config, options),
        strategy=options.strategy,
        batch_size=options.batch_size,
        min_labels_per_class=options.min_labels_per_class,
        cold_start=options.cold_start,
        control_share=options.control_share,
        validation_share=options.validation_share,
        seed=options.seed,
        options=options.model_dump(mode="json"),
    )
    done = run_round(request, parts)
    _measure_noise(
        live, round_id, learner, warm_from=warm_from, progress=progress, raise_if_preempted=raise_if_preempted
    )
    return done


def _measure_noise(
    live: Live,
    round_id: str,
    witness: RecordingLearner,
    *,
    warm_from: Path | None,
    progress: Progress,
    raise_if_preempted: Callable[[], None],
) -> None:
    """Now and then: how much a twin of the round's network differs from it. Readers have their order already."""
    project, options = live.world.project, live.options
    if not seed_noise_is_due(rounds_with(project, AGREEMENT), rounds_with(project, NOISE), options.noise_every):
        return
    found = measure_seed_noise(
        witness,
        lambda tell: live.world.learner(options, tell, warm_from, twin=True),
        seed=options.seed,
        most=FIXED_SET,
        progress=progress,
        raise_if_preempted=raise_if_preempted,
    )
    if found is None:
        return
    try:
        project.set_record(round_id, NOISE, noise_of(*found))
    except StorageError as error:
        log.warning("the noise was measured and could not be kept", error=str(error))


@contextmanager
def shard_scorer(
    settings: Settings, key: ProjectKey, folder: ScoringFolder, progress: Progress = no_progress
) -> Iterator[Callable[[int], PoolPredictions]]:
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
    if (here := hardware_fingerprint(settings.device)) != task.machine:
        raise RoundError(
            f"this worker would score to other bits ({here}) than the round ({task.machine}): "
            "run the workers of one installation on equal machines, or start one worker only"
        )
    with open_project(settings, key) as world:
        learner = world.learner(task.options, progress)
        learner.restore(str(folder.folder))
        yield lambda number: learner.outputs(folder.images(number), task.needs)
