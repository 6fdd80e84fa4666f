"""Live projects: rounds, re-rankings and top-ups of a project, and what a follower of a round takes part with."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch
from pydantic import ValidationError
from scipy.special import entr
from structlog.contextvars import bind_contextvars, bound_contextvars

from ml_backend.acquisition.pointwise import bald
from ml_backend.acquisition.strategy import CatalogStrategy, rank
from ml_backend.analytics import INSIGHT
from ml_backend.analytics.agreement import AGREEMENT, FIXED_SET, NOISE, prediction_snapshot, seed_noise_agreement
from ml_backend.analytics.history import (
    HELD_OUT,
    SHOWN_PREVIEW,
    HeldOutPredictions,
    ImageInsight,
    RoundInsight,
    StrategyPreviews,
)
from ml_backend.analytics.order_audit import RANKING_OPTIONS, OrderState, order_state
from ml_backend.config import ProjectOptions, Settings
from ml_backend.consensus.rules import adjudication, rule
from ml_backend.errors import (
    BackendError,
    EmptyPool,
    RequestRefused,
    StaleRound,
    StorageError,
    UnknownProject,
    WeightsError,
)
from ml_backend.images import ImageSource, QuarantinedSource
from ml_backend.images.cache import ImageCache, content_digests
from ml_backend.images.dataset import read_ahead
from ml_backend.images.source import with_plugins
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.disagreements import keep_tab
from ml_backend.label_studio.formats import parse_label_config, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.publisher import LabelStudioPublisher, is_lost, low_water, read_serving
from ml_backend.label_studio.sync import Counts, LabelStudioLabels, TaskCache, shared_digests
from ml_backend.model.backbones import input_side
from ml_backend.model.checkpoint import FILE_NAME
from ml_backend.model.distributed import SINGLE, Crew, Group
from ml_backend.model.distributed_learner import DistributedLearner
from ml_backend.model.ensemble import EnsembleLearner, make_learner
from ml_backend.model.inference import hardware_fingerprint
from ml_backend.model.learner import IMAGES, LearnerProgress, McDropoutLearner
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import STRATEGIES
from ml_backend.rounds.cold_start import START_FEATURES, StartFeatures
from ml_backend.rounds.embedding import keep_embedding
from ml_backend.rounds.interfaces import Learner, Progress, Scorer, assume_current, no_progress
from ml_backend.rounds.replay import make_manifest, round_inputs
from ml_backend.rounds.reuse import (
    StoredPasses,
    nothing_readable,
    rerank,
    run_periodically,
    served_round,
    top_up,
    unpublished_round,
)
from ml_backend.rounds.run import Project, ProjectData, RoundResult, Training, orders_again, run_round
from ml_backend.rounds.split import fold_split
from ml_backend.schemas import (
    Connection,
    Exclusion,
    FrozenModel,
    ImageRef,
    ProjectKey,
    PublishedRanking,
    RoundReport,
    RoundRequest,
    RoundTrigger,
    Stage,
    natural_order,
)
from ml_backend.seeding import derive, fixed_set
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore

CHECK_INTERVAL_S = 1.0  # between two looks at whether a measurement has to make way
PATIENCE_S = 90.0  # a restart of Label Studio takes 11 to 33 s, and must not cost the round its training
BYTES_PER_GB = 10**9

Served = tuple[RoundReport, PublishedRanking]
"""A round, and its ranking as readers are served it."""

log = structlog.get_logger(__name__)


def run_live_round(
    settings: Settings,
    key: ProjectKey,
    reason: RoundTrigger,
    progress: Progress = no_progress,
    ensure_current: Callable[[], None] = assume_current,
    *,
    crew: Callable[[], Crew] | None = None,
    raise_if_preempted: Callable[[], None] = assume_current,
    learn: Callable[[], RoundTrigger] = lambda: "forced",
) -> Served:
    """Run one round of a connected project, or what needs no training: a top-up, a reranking.

    From the moment that the round has a number, log lines name it, also after this returns.

    Args:
        settings: of the installation.
        key: of the project.
        reason: what triggers the round.
        progress: receives every stage.
        ensure_current: raises StaleRound where a newer run has begun.
        crew: makes the other processes of a round; None without any.
        raise_if_preempted: as ``ensure_current``, and also raises where another round is due: work that readers do
            not need is abandoned then.
        learn: called where a reranking continues as a round that trains; returns that round's trigger.

    Returns:
        The round and its published ranking; those of the last round where ``reason`` is ``topup`` or there was nothing
        to do.

    Raises:
        SettingsError: no API key, or an option of the project is wrong.
        UnknownProject: the project was never connected, or Label Studio has reused its id.
        EmptyPool: a top-up or a reranking of a project without any round.
        BackendError: see ``run_round``, ``rerank`` and ``top_up``.
    """
    with open_project(settings, key, crew=crew) as context:
        project = LiveProject(context, progress, ensure_current)
        if reason == "topup":
            return project.top_up_or_served()
        if reason == "rerank":
            if (reranked := rerank_live(project)) is not None:
                return reranked
            reason = learn()
        # Training may take longer than readers need for what is published.
        with run_periodically(project.top_up), context.quarantine.settled():
            result = train_live(project, reason, raise_if_preempted)
            if orders_again(result.report):
                result = train_live(project, reason, raise_if_preempted)
            return project.drop_useless() or (result.report, result.published)


@dataclass(frozen=True, slots=True)
class ProjectContext:
    """A connected project: its store, its Label Studio client, its images, and a factory of its learners."""

    settings: Settings
    key: ProjectKey
    installation: RoundStore
    store: ProjectStore
    connection: Connection
    client: LabelStudioClient
    images: ImageSource
    quarantine: Quarantine
    read_digests: Callable[[Iterable[ImageRef]], dict[str, str]]
    """Address -> digest of the content, of images that a round has read."""
    crew: Callable[[], Crew] | None = None
    """Makes the other processes of a round; None without any."""

    def learner(
        self,
        options: ProjectOptions,
        progress: LearnerProgress,
        warm_from: Path | None = None,
        *,
        group: Group = SINGLE,
        replicate: bool = False,
    ) -> McDropoutLearner | EnsembleLearner:
        """A learner with these options; a seed replicate has another seed and the same folds."""

        def make(options: ProjectOptions, seed: int, tell: LearnerProgress) -> McDropoutLearner:
            return McDropoutLearner(
                options=options,
                source=self.images,
                cache=self.installation.cache,
                device=self.settings.device,
                seed=seed,
                progress=tell,
                warm_from=warm_from,
                cache_limit_bytes=int(self.settings.cache_gb * BYTES_PER_GB),
                group=group,
            )

        folds = partial(fold_split, seed=options.seed)
        if replicate:
            options = options.model_copy(update={"seed": derive(options.seed, "twin")})
        return make_learner(make, options, folds, progress)

    def distributed(
        self, options: ProjectOptions, progress: Progress, warm_from: Path | None = None
    ) -> DistributedLearner:
        """A learner whose work the processes of the round share out; see ``follower_learner``."""
        task = FollowerTask(
            project=self.key, connection=self.connection, options=options.model_dump(mode="json"), warm_from=warm_from
        )
        return DistributedLearner(
            lambda group, tell: self.learner(options, tell, warm_from, group=group),
            self.crew and self.crew(),
            task.model_dump_json(),
            partial(hardware_fingerprint, self.settings.device),
            progress,
        )


class FollowerTask(FrozenModel):
    """What a follower needs to make the learner of a round: it may have another data folder."""

    project: ProjectKey
    connection: Connection
    options: dict[str, object]
    warm_from: Path | None


@contextmanager
def follower_learner(
    settings: Settings, group: Group, task: str
) -> Iterator[tuple[McDropoutLearner | EnsembleLearner, str]]:
    """The learner of a follower, and the fingerprint of its hardware; see ``DistributedLearner``.

    Args:
        settings: of the follower.
        group: of the round.
        task: a FollowerTask as JSON.

    Raises:
        SettingsError: no API key.
    """
    given = FollowerTask.model_validate_json(task)
    options = ProjectOptions.model_validate(given.options)
    with (
        bound_contextvars(project=str(given.project)),
        open_project(settings, given.project, connection=given.connection) as context,
    ):
        learner = context.learner(options, no_progress, given.warm_from, group=group)
        yield learner, hardware_fingerprint(settings.device)


@contextmanager
def open_project(
    settings: Settings,
    key: ProjectKey,
    *,
    crew: Callable[[], Crew] | None = None,
    connection: Connection | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[ProjectContext]:
    """Open a project: store, Label Studio client, image source, learner factory. Connections end with the block.

    Args:
        settings: of the installation.
        key: of the project.
        crew: makes the other processes of a round; None without any.
        connection: of the project; default: that of the data folder.
        patience_s: seconds to wait for a Label Studio that does not answer.

    Raises:
        UnknownProject: it was never connected.
        SettingsError: no API key.
    """
    installation = RoundStore(settings.data_dir)
    store = installation.project(key)
    connection = connection or store.connection()
    if connection is None:
        raise UnknownProject(f"project {key} is not connected: run `ml-backend connect --project {key.id}`")
    hostname = settings.trusted_hostname(connection.hostname)
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=patience_s) as client,
        closing(LabelStudioImages(client, connection.hostname, hosts=settings.allowed_image_hosts)) as images,
    ):
        quarantine = Quarantine(store.folder)
        everything = with_plugins(images)
        source = QuarantinedSource(everything, quarantine, version=images.version)
        digests = partial(content_digests, everything, installation.cache / IMAGES)
        yield ProjectContext(settings, key, installation, store, connection, client, source, quarantine, digests, crew)


class LiveProject(Project):
    """A project of Label Studio, with its label config and its owner's options as they are now.

    Args:
        context: the open project.
        progress: receives every stage of its rounds.
        ensure_current: raises StaleRound where a newer run has begun.

    Raises:
        SettingsError: an option is wrong.
        UnknownProject: Label Studio has deleted the project or reused its id.
        PayloadError, LabelStudioError: the label config cannot be read.
    """

    def __init__(
        self,
        context: ProjectContext,
        progress: Progress = no_progress,
        ensure_current: Callable[[], None] = assume_current,
    ) -> None:
        self.context = context
        self.store = context.store
        self.config = parse_label_config(read_label_config(context.client, context.key))
        self.options = ProjectOptions.resolve(context.connection.extra_params, self.config.attributes)
        self.classes = training_classes(self.config, self.options)
        self.consensus = rule(self.options.consensus)
        self.readings = ReadingStore(self.store.folder)
        self.labels: LabelStudioLabels = self._new_labels()
        self._publisher = LabelStudioPublisher(context.client, context.key.id, self.config, self.options, self.store)
        # The round and its top-ups publish from two threads.
        self._publishing = threading.RLock()
        self._disagreements: tuple[str, ...] | None = None  # of the round that was saved
        self._progress = progress
        self._ensure_current = ensure_current

    def _new_labels(self) -> LabelStudioLabels:
        return LabelStudioLabels(
            self.context.client,
            self.context.key.id,
            self.config,
            self.options,
            self.readings.folder,
            digests=self.readings.digests,
            wait=self._wait,
        )

    def _wait(self) -> None:
        self._progress("labels", 0, 1)
        self._ensure_current()

    def report_progress(self, stage: Stage, done: int, total: int) -> None:
        self._progress(stage, done, total)

    def ensure_current(self) -> None:
        self._ensure_current()

    def has_order(self) -> bool:
        return self.store.published() is not None

    def unpublished_round(self, digest: str) -> RoundReport | None:
        return unpublished_round(self.store, digest)

    def served_round(self, digest: str) -> Served | None:
        served = served_round(self.store, digest)
        # It may have been deleted or switched off in Label Studio since: a new round restores it then.
        if served is None or not self._is_held(self.labels, served[1]):
            return None
        # Otherwise a changed annotation with the same label would count as a change, and trigger rounds for ever.
        self.readings.keep_learned(served[1].round_id, self.labels.states())
        return served

    def save(
        self,
        report: RoundReport,
        predictions: PoolPredictions | None,
        learner: Learner | None,
        data: ProjectData,
        start_features: StartFeatures | None = None,
    ) -> None:
        """Save a round with its manifest, and note the annotations it learned from: changes count from there.

        A reranking has learned from no more than the round before it.
        """
        self._disagreements = adjudication(data.annotations, self.classes, self.options.ordered(self.classes))
        round_id = report.request.round_id
        if report.base is None:
            self.readings.keep_learned(round_id, self.labels.states())
        else:
            self.readings.keep_learned_of(self.store.round_ids()[-1], round_id)
        inputs = round_inputs(data)
        records: dict[str, FrozenModel] = {}
        if predictions is not None:
            records[INSIGHT] = round_insight(report, predictions)
            if (snapshot := prediction_snapshot(report, predictions)) is not None:
                records[AGREEMENT] = snapshot
        if report.fit is not None and report.fit.held_out:
            records[HELD_OUT] = HeldOutPredictions(images=report.fit.held_out)
        if start_features is not None:
            records[START_FEATURES] = start_features
        self.store.save(
            report,
            predictions,
            learner,
            records,
            seal=lambda folder: make_manifest(self.store, report, inputs, folder, self.context.settings.device),
            inputs=inputs,
        )

    def publish(self, report: RoundReport) -> PublishedRanking:
        """Publish with what the owner put next in front, which no stored round holds: it ranks as its strategy does.

        The number of annotations before is noted: their number later shows how much is used up.
        """
        with self._publishing:
            mirror = self.readings.mirror(TaskCache)
            skipped = set() if mirror is None else {str(n) for n, task in mirror.tasks.items() if task.annotations}
            # A skipped image is left for the other readers, last.
            ranking = report.ranking.with_first(one for one in self.store.hand_picked() if one not in skipped)
            report = report.model_copy(update={"ranking": ranking})
            before = Counts.of(self.context.client.project(self.context.key.id))
            published = self._publisher.publish(report, self.ensure_current)
            published = published.model_copy(update={"annotations": before.annotations + before.skips})
            self.ensure_current()
            self.store.set_published(published)
            return published

    def images_of_several_tasks(self) -> Set[str]:
        return self.labels.images_of_several_tasks()

    def annotation_counts(self) -> dict[str, int]:
        return {str(number): len(task.annotations) for number, task in self.labels.reading.cache.tasks.items()}

    def top_up(self) -> Served | None:
        """Publish more of the last ranking where it is needed; close re-reads that are off: see ``reuse.top_up``."""
        # A source of its own: the round's keeps what the round has read.
        labels = self._new_labels()
        served = self.store.published()
        with self._publishing, bound_contextvars(**({} if served is None else {"round": served.round_id})):
            is_held, unreadable = partial(self._is_held, labels), self.context.quarantine.current()
            low, picked = low_water(self.options), self.store.hand_picked()
            done = top_up(labels, self.store, low, self.publish, is_held, quarantined=unreadable, first=picked)
            if done is None and not self.options.reread_share:
                self._publisher.put_back((), self.ensure_current)
            return done

    def top_up_or_served(self) -> Served:
        """Top up where it is needed; otherwise the round and the ranking that readers are served.

        Raises:
            EmptyPool: nothing is published yet.
            BackendError: see ``reuse.top_up``.
        """
        if (done := self.top_up()) is not None:
            return done
        published = self.store.published()
        if published is None:
            raise EmptyPool(f"project {self.context.key.id} has no ranking to top up: run a round first")
        return self.store.report(published.round_id), published

    def find_copies(self, images: Sequence[ImageRef]) -> bool:
        """Read the images that no round has read yet, and note which of all images have equal content.

        Returns:
            Whether that differs from what was noted before.
        """
        known = self.context.read_digests(images)
        unread = [image for image in images if image.uri not in known]
        # An unreadable one is named by the training.
        for done, _ in enumerate(self._read(unread), start=1):
            self.report_progress("labels", done, len(unread))
        return self._note_copies()

    def unreadable(self, data: ProjectData) -> Sequence[Exclusion]:
        """See ``Project``; none where no image of the project could be read. Those due for another try are read."""
        listed = self.context.quarantine.current()
        if nothing_readable(listed, data.annotations, data.pool):
            return ()
        found = [one for _, one in self._read([image for image in data.pool if image.id in listed])]
        return [one.model_copy(update={"kind": "unreadable image"}) for one in found if isinstance(one, Exclusion)]

    def _read(self, images: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, str | Exclusion]]:
        """Read images into the cache; see ``read_ahead``."""
        context, side = self.context, input_side(self.options.backbone, self.options.image_side)
        limit = int(context.settings.cache_gb * BYTES_PER_GB)
        cache = ImageCache(context.images, context.installation.cache / IMAGES, side, limit)
        return read_ahead(images, lambda image: cache.read(image).key)

    def drop_useless(self) -> Served | None:
        """Remove from the order what a round has found after it was published: copies, and unreadable images.

        Errors are logged: the round is published, and a later top-up or round removes them as well.

        Returns:
            What is served instead; None where nothing had to be published.
        """
        try:
            published = self.store.published()
            served = set() if published is None else {*published.image_ids}
            if self._note_copies() or self.context.quarantine.current() & served:
                return self.top_up()
        except BackendError as error:
            log.warning("useless images stay in the order for now", error=str(error), kind=type(error).__name__)
        return None

    def show_disagreements(self) -> None:
        """Let the tab of the Data Manager show the images about which the readers of the last round disagree."""
        if self._disagreements is not None:
            keep_tab(self.context.client, self.context.key.id, self._disagreements, self.readings)

    def _note_copies(self) -> bool:
        images = self.labels.images()
        known = self.readings.digests()
        noted = {image.uri: known[image.uri] for image in images if image.uri in known}
        return self.readings.keep_digests(shared_digests(noted | self.context.read_digests(images)))

    def _is_held(self, labels: LabelStudioLabels, published: PublishedRanking) -> bool:
        """Whether Label Studio holds the ranking as it was published."""
        client, user = self.context.client, self.context.settings.basic_auth_user
        # The project as it is now: the labels may have been read when the round began.
        row = client.project(self.context.key.id)
        tasks = labels.reading.cache.tasks.keys()
        return not is_lost(read_serving(client, row, tasks, published, self.store.imported_versions, user=user))


def read_label_config(client: LabelStudioClient, key: ProjectKey) -> str:
    """The label config as it is now: the event of its change is lost where the web process was down.

    Raises:
        UnknownProject: Label Studio has deleted the project or reused its id.
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
        raise UnknownProject(f"project {key} is gone: Label Studio has reused its id for {key.id}.{created}")
    return str(project["label_config"])


def train_live(
    project: LiveProject, reason: RoundTrigger, raise_if_preempted: Callable[[], None] = assume_current
) -> RoundResult:
    """Run a round that trains, once the start set is complete; then measure its seed noise where that is due.

    Raises:
        BackendError: see ``run_round``.
    """
    context, options = project.context, project.options
    round_id = project.store.next_round_id(context.settings.keep_rounds)
    # Without an end: the caller, who logs how the round ended, names it too.
    bind_contextvars(round=round_id)
    warm_from = project.store.newest_network(FILE_NAME) if options.retrain == "warm" else None
    request = RoundRequest(
        project=context.key,
        round_id=round_id,
        reason=reason,
        classes=project.classes,
        strategy=options.strategy,
        batch_size=options.batch_size,
        min_labels_per_class=options.min_labels_per_class,
        cold_start=options.cold_start,
        control_share=options.control_share,
        per_patient=options.per_patient,
        validation_share=options.validation_share,
        seed=options.seed,
        options=options.model_dump(mode="json"),
    )
    store = project.store
    with context.distributed(options, project.report_progress, warm_from) as learner:
        result = run_round(request, project, learner, CatalogStrategy(options.strategy))
        project.show_disagreements()
        if request.has_trained_features and not orders_again(result.report):  # readers wait for the order that follows
            keep_embedding(store, request, learner, raise_if_preempted)
    measured = store.rounds_with(NOISE)
    if result.training and seed_noise_is_due(store.rounds_with(AGREEMENT), measured, options.noise_every):
        replicate = measure_seed_noise(
            result.training,
            lambda tell: context.learner(options, tell, warm_from, replicate=True),
            seed=options.seed,
            most=FIXED_SET,
            progress=project.report_progress,
            raise_if_preempted=raise_if_preempted,
        )
        try:
            if replicate is not None:
                store.set_record(round_id, NOISE, seed_noise_agreement(result.training.predictions, replicate))
        except StorageError as error:
            log.warning("the noise was measured and could not be kept", error=str(error))
    return result


class _Unusable(Exception):
    """Neither passes nor network of the last round can be used; the message says why."""


def rerank_live(project: LiveProject) -> Served | None:
    """Serve what the owner has chosen, where that takes no training; otherwise top up where it is needed.

    Returns:
        None where a round must train instead: passes and network exist but cannot be used, since they are damaged or of
        another version, for example, and the rounds are not paused.

    Raises:
        EmptyPool: nothing is published yet, or no image is without a label.
        BackendError: see ``rerank``.
    """
    store, options = project.store, project.options
    standing = order_state(store, options, project.classes)
    if standing.verdict == "next round":
        log.info("what the owner has chosen takes effect with the next round", why=standing.why)
    if standing.verdict == "saved" and standing.latest is not None:
        round_id = standing.latest.request.round_id
        log.info("the last round was saved but not published: it is published now", round=round_id)
        report = store.report(round_id)
        return report, project.publish(report)
    if not standing.due or standing.base is None:
        return project.top_up_or_served()
    base = store.report(standing.base.request.round_id)
    # The earlier round's request, with those of the owner's new choices that need no other network.
    chosen = {name: getattr(options, name) for name in RANKING_OPTIONS}
    round_id = store.next_round_id(project.context.settings.keep_rounds)
    numbered = {"round_id": round_id, "reason": "rerank"}
    request = base.request.model_copy(update={**chosen, "options": {**base.request.options, **chosen}, **numbered})
    followers = ExitStack()
    try:
        scorer = _scorer(project, standing, base, followers)
    except _Unusable as error:
        if Pause(store.folder).holds:
            log.warning("what the owner has chosen takes effect with the next round", why=str(error))
            return project.top_up_or_served()
        log.warning("the last network cannot rank again: a round with training takes its place", why=str(error))
        return None
    bind_contextvars(round=request.round_id)
    log.info("ranking again", strategy=request.strategy, base=base.request.round_id, by=standing.verdict)
    # A network may need an hour for the pool.
    with run_periodically(project.top_up), followers:
        learner = project.context.learner(ProjectOptions.model_validate(request.options), project.report_progress)
        result = rerank(request, base, project, scorer, CatalogStrategy(request.strategy), learner=learner)
    return result.report, result.published


def _scorer(project: LiveProject, standing: OrderState, base: RoundReport, followers: ExitStack) -> Scorer:
    """The stored passes of a round, else its network, with followers that the stack dismisses.

    Raises:
        _Unusable: neither can be used.
    """
    context, store, base_id = project.context, project.store, base.request.round_id
    reasons: list[str] = []
    try:
        # The round's own options: with others it would not be the same network.
        options = ProjectOptions.model_validate(base.request.options)
        if standing.verdict == "passes":
            try:
                if (passes := store.outputs(base_id)) is not None:
                    return StoredPasses(base, passes)
                reasons.append(f"the passes of round {base_id} are gone from {store.folder}")
            except StorageError as error:
                reasons.append(str(error))
        if (folder := store.network(base_id)) is None:
            raise StorageError(f"the network of round {base_id} is gone from {store.folder}")  # noqa: TRY301 - as damaged
        scorer = context.distributed(options, project.report_progress)
        scorer.restore(str(folder))
        followers.enter_context(scorer)
    except (StorageError, WeightsError) as error:
        raise _Unusable("; ".join([*reasons, str(error)])) from error
    except ValidationError as error:
        raise _Unusable(
            f"the options of round {base_id} are not those of this version ({error.error_count()} mistakes)"
        ) from error
    if reasons:
        log.warning("the network looks at the images once more, since its passes cannot be used", why=reasons[0])
    return scorer


def seed_noise_is_due(trained: Sequence[str], measured: Sequence[str], every: int) -> bool:
    """Whether the noise is to be measured after the last of these rounds.

    Args:
        trained: ids of every round that trained.
        measured: those of them that were measured; an abandoned measurement is repeated after the next round.
        every: trained rounds from one measurement to the next; 0 for never.
    """
    last = max(measured, default="")
    return every > 0 and sum(round_id > last for round_id in trained) >= every


def measure_seed_noise(
    training: Training,
    build: Callable[[Progress], Learner],
    *,
    seed: int,
    most: int,
    progress: Progress,
    raise_if_preempted: Callable[[], None],
) -> PoolPredictions | None:
    """Train a seed replicate of a round's network and predict a fixed set of the pool with it.

    Args:
        training: of the round.
        build: makes the replicate's learner, with the progress that it must call.
        seed: of the fixed set.
        most: images of the fixed set.
        progress: receives the whole measurement as the stage ``noise``.
        raise_if_preempted: raises where another round is due; called once a second at most.

    Returns:
        Predictions of the replicate; None where the measurement was abandoned or failed, which is logged.
    """
    checked = time.monotonic()

    def report(stage: Stage, done: int, total: int) -> None:
        nonlocal checked
        if stage == "train":
            progress("noise", done, total)
        if (now := time.monotonic()) - checked >= CHECK_INTERVAL_S:
            checked = now
            raise_if_preempted()

    try:
        raise_if_preempted()
        progress("noise", 0, 1)
        learner = build(report)
        learner.fit(training.train, training.validation, training.predictions.classes)
        chosen = set(fixed_set(training.predictions.image_ids, seed, most))
        replicate = learner.outputs([image for image in training.pool if image.id in chosen], frozenset({"probs"}))
        progress("noise", 1, 1)
    except StaleRound as reason:
        log.info("the noise is measured another time", reason=str(reason))
        return None
    except BackendError as error:
        log.warning("the noise could not be measured", error=str(error), kind=type(error).__name__)
        return None
    except Exception:
        log.exception("the noise could not be measured")
        return None
    return replicate


def round_insight(report: RoundReport, outputs: PoolPredictions) -> RoundInsight:
    """Compute a round's insight.

    The entropy of the mean prediction is the sum of two parts: the mutual information of label and weights
    (epistemic), and the mean entropy of the passes (aleatoric).

    Args:
        report: with the ranking.
        outputs: predictions that it ranked, of two passes or more; images of the ranking without one are left out.

    Source:
        Depeweg et al. 2018, arXiv:1710.07283.
    """
    ranking, known, control = report.ranking, set(outputs.image_ids), set(report.ranking.control)
    images = _image_insights(
        outputs,
        [
            (place, image_id, score)
            for place, (image_id, score) in enumerate(zip(ranking.image_ids, ranking.scores, strict=True), start=1)
            if image_id in known and (place <= ranking.batch_size or image_id in control)
        ],
        control,
    )
    pool = outputs.probs.mean(axis=1, dtype=np.float64)
    expected = pool.mean(axis=0).clip(0.0, 1.0) if len(pool) else np.zeros(len(outputs.classes))
    predicted = Counter(outputs.classes[index] for index in pool.argmax(axis=1).tolist())
    return RoundInsight(
        images=len(outputs.image_ids),
        expected=dict(zip(outputs.classes, expected.tolist(), strict=True)),
        predicted={name: predicted[name] for name in outputs.classes},
        batch=tuple(one for one in images if one.place <= ranking.batch_size),
        control=tuple(one for one in images if one.control),
    )


KEPT_PREVIEW = 100
"""Images of a strategy's preview at most: a page shows the first of them that have no answer yet."""
CHEAP_BATCHES = frozenset({"class_balanced", "power_bald", "random"})
"""Strategies that choose a batch together, and take no longer than those that score one image at a time."""


def strategy_previews(
    outputs: PoolPredictions,
    seed: int,
    batch_size: int,
    chosen: str = "",
    make_way: Callable[[], None] = assume_current,
) -> StrategyPreviews:
    """The first images by each strategy that ranks a pool by its probabilities within seconds.

    The others need features, gradients or minutes. Of plug-ins only the chosen one is asked, which may take long; one
    that fails is logged and left out.

    Args:
        outputs: predictions of the pool.
        seed: of ties, as in the round.
        batch_size: of the round; two batches more than are shown are kept, since readers answer the first ones.
        chosen: strategy of the round.
        make_way: called before each strategy; raises where the worker is needed elsewhere.
    """
    most = min(SHOWN_PREVIEW + 2 * batch_size, KEPT_PREVIEW)
    arrival = sorted(range(len(outputs.image_ids)), key=lambda i: natural_order(outputs.image_ids[i]))
    ids, probs = [outputs.image_ids[i] for i in arrival], torch.from_numpy(outputs.probs[arrival])
    found = {}
    for spec in STRATEGIES.values():
        slow = spec.batch and spec.name not in CHEAP_BATCHES
        added = not spec.target.startswith("ml_backend.") and spec.name != chosen
        if added or slow or spec.needs - {"probs"} or probs.shape[1] < spec.min_passes:
            continue
        make_way()
        try:
            ranking = rank(spec.name, probs, most, seed, ids=ids)
            first = enumerate(ranking.order[:most].tolist(), start=1)
            found[spec.name] = _image_insights(
                outputs, [(place, ids[row], float(ranking.scores[row])) for place, row in first]
            )
        except Exception as error:  # noqa: BLE001 - a preview is no reason for a round to fail
            log.warning("a strategy has no preview", strategy=spec.name, error=str(error))
    return StrategyPreviews(first=found)


def _image_insights(
    outputs: PoolPredictions, shown: Sequence[tuple[int, str, float]], control: Set[str] = frozenset()
) -> tuple[ImageInsight, ...]:
    """Insights of these places, images and scores, each of the images with a prediction."""
    row_of = {name: row for row, name in enumerate(outputs.image_ids)}
    probs = outputs.probs[[row_of[image_id] for _, image_id, _ in shown]]
    epistemic = bald(torch.from_numpy(probs)).numpy()
    aleatoric = entr(probs.astype(np.float64)).sum(axis=2).mean(axis=1)
    means = probs.mean(axis=1, dtype=np.float64).clip(0.0, 1.0)
    return tuple(
        ImageInsight(
            image_id=image_id,
            place=place,
            probs=dict(zip(outputs.classes, means[row].tolist(), strict=True)),
            score=score,
            aleatoric=float(aleatoric[row]),
            epistemic=float(epistemic[row]),
            control=image_id in control,
        )
        for row, (place, image_id, score) in enumerate(shown)
    )
