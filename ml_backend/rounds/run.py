"""One round: read the labels, train, rank the pool, save the round, publish the ranking.

The live loop and the simulation call ``run_round`` with a ``Project`` of their own; ``replay`` repeats its selection.
"""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from ml_backend.analytics.few_labels import can_train, seeks, sought_classes
from ml_backend.config import ProjectOptions
from ml_backend.consensus.rules import Consensus
from ml_backend.errors import EmptyPool, UnusablePool, WorkerStopping
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds.cold_start import (
    Embedded,
    StartFeatures,
    candidates,
    random_order,
    unreadable_pool,
    with_rest,
)
from ml_backend.rounds.interfaces import ConsensusRule, LabelSource, Learner, Progress, Strategy
from ml_backend.rounds.reread import with_rereads
from ml_backend.rounds.split import Sides, can_split, mix_in_holdout, stable_split
from ml_backend.rounds.spread import spread_batches
from ml_backend.schemas import (
    Annotation,
    Exclusion,
    ImageRef,
    Label,
    PublishedRanking,
    Ranking,
    RoundReport,
    RoundRequest,
    Stage,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProjectData:
    """What a round reads from its project: the annotations, their consensus, and the pool.

    Attributes:
        unusable: images that cannot be part of the pool.
    """

    annotations: Sequence[Annotation]
    consensus: Consensus
    pool: Sequence[ImageRef]
    unusable: Sequence[Exclusion]

    @property
    def labels(self) -> tuple[Label, ...]:
        return self.consensus.labels

    def per_class(self, classes: Sequence[str]) -> dict[str, int]:
        """Number of labels of each class."""
        counts = Counter(label.value for label in self.labels)
        return {name: counts[name] for name in classes}

    def is_cold_start(self, request: RoundRequest) -> bool:
        """Whether fewer than two classes have the labels that a training needs, or no class has two patients."""
        return not (can_train(self.per_class(request.classes), request.min_labels_per_class) and can_split(self.labels))

    def sought_classes(self, request: RoundRequest) -> tuple[str, ...]:
        """The classes whose images are sought; with ``random``, and with untrained features, there are none."""
        order = request.cold_start if self.is_cold_start(request) else request.strategy
        if not seeks(order, request.options.get("weights")):
            return ()
        return sought_classes(self.per_class(request.classes), request.min_labels_per_class)


class Project(ABC):
    """Source of a round's labels, and target of its ranking.

    ``rounds.live.LiveProject`` is a project of Label Studio, ``simulation.run.SimulatedProject`` one whose labels are
    known. The defaults of the methods suit a project without waiting readers and without competing runs.

    Attributes:
        labels: the annotations and the pool.
        consensus: turns annotations into labels.
    """

    labels: LabelSource
    consensus: ConsensusRule

    @abstractmethod
    def publish(self, report: RoundReport) -> PublishedRanking:
        """Publish the ranking, so that its first image is the next one served.

        Raises:
            StaleRound: a newer run has begun; this one is not published.
        """

    def save(  # noqa: B027 - a simulation needs no more than the result of a round
        self,
        report: RoundReport,
        predictions: PoolPredictions | None,
        learner: Learner | None,
        data: ProjectData,
        start_features: StartFeatures | None = None,
    ) -> None:
        """Save a round, before it is published.

        Args:
            report: the round's.
            predictions: of the pool; None before the first training.
            learner: writes its network; None where none was trained.
            data: labels and pool of the round.
            start_features: location of the cached features behind a start that is not random, or behind seeking.
        """

    def read(self, classes: Sequence[str]) -> ProjectData:
        """Annotations, labels and pool as they are now."""
        annotations = self.labels.annotations()
        return ProjectData(annotations, self.consensus(annotations, classes), *self.labels.unlabelled())

    def split(self, labels: Sequence[Label], validation_share: float, seed: int) -> Sides:
        """Training and validation labels; see ``Splitter``."""
        return stable_split(labels, validation_share, seed)

    def unreadable(self, data: ProjectData) -> Sequence[Exclusion]:  # noqa: ARG002 - for subclasses
        """Images of the pool that earlier rounds could not read, and that still cannot be read."""
        return ()

    def find_copies(self, images: Sequence[ImageRef]) -> bool:  # noqa: ARG002 - for subclasses
        """Look for images with equal content; True if any were found and the labels must be read again."""
        return False

    def images_of_several_tasks(self) -> Set[str]:
        """Ids of the images that several tasks of the project hold."""
        return frozenset()

    def annotation_counts(self) -> Mapping[str, int]:
        """Number of annotations of each image, with skips and with those that count for no label.

        An image that is missing has those alone that were read.
        """
        return {}

    def report_progress(self, stage: Stage, done: int, total: int) -> None:  # noqa: B027 - reporting is optional
        """See ``Progress``."""

    def ensure_current(self) -> None:  # noqa: B027 - a project without competing runs has nothing to check
        """Raise StaleRound if a newer run of the project has begun."""

    def has_order(self) -> bool:
        """Whether readers already have a published order, so that a new one is not urgent."""
        return True

    def unpublished_round(self, digest: str) -> RoundReport | None:  # noqa: ARG002 - for subclasses
        """The last round, if it had these inputs (see ``inputs_digest``) and is not fully published."""
        return None

    def served_round(self, digest: str) -> tuple[RoundReport, PublishedRanking] | None:  # noqa: ARG002
        """The last round, if it had these inputs (see ``inputs_digest``) and its order is being served."""
        return None


@dataclass(frozen=True, slots=True)
class Training:
    """What a round's network was trained on, and what it predicted, without features and gradients."""

    train: Sequence[Label]
    validation: Sequence[Label]
    pool: Sequence[ImageRef]
    predictions: PoolPredictions


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A finished round.

    Attributes:
        report: of the round; of an earlier one if that is served, or remained to be published.
        published: its ranking as it is served.
        training: None if the round trained no network.
    """

    report: RoundReport
    published: PublishedRanking
    training: Training | None = None


class StageTimer:
    """Reports the stages of a round and measures their seconds."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        self._progress(name, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._progress(name, 1, 1)


def run_round(request: RoundRequest, project: Project, learner: Learner, strategy: Strategy) -> RoundResult:
    """Train on the labels so far, rank the pool, save the round, publish the ranking.

    Three cases end early or train nothing:

    - The round that readers are served had the same inputs, and only changed labels triggered this one: nothing to do.
    - The last round had the same inputs and was saved but not published: it is published, without another training.
    - Cold start, while fewer than two classes have ``request.min_labels_per_class`` labels, or each class those of one
      patient only, which leaves nothing to validate on: the ranking is a seeded random order, which is stable from
      round to round; after it is published, the learner fills its caches. With another ``request.cold_start``, and once
      readers have an order, the images are ordered by pretrained features: the ``CANDIDATES`` of a larger pool, with
      the others behind them in random order.

    Images that resemble a class with few labels come first in half of the places; see ``rounds.seek``.

    Args:
        request: the round's number, trigger, classes and options.
        project: where labels come from and rankings go.
        learner: trains a network and predicts the pool.
        strategy: ranks the predictions.

    Raises:
        EmptyPool: no image is without a label.
        UnusablePool: none of the images without a label can be read.
        TooFewLabels, WeightsError, SettingsError, RoundError: see ``Learner``. Those of ``prepare`` come after the
            random order was published: readers can work while the owner mends the cause.
        StaleRound: a newer run of the project has begun; nothing was published.
        LabelStudioError: labels could not be read or the ranking not published; a saved round is kept.
    """
    started_at = datetime.now(UTC)
    timer = StageTimer(project.report_progress)
    with timer.stage("labels"):
        data = project.read(request.classes)
        # Before the split: the copies of an image are one label, and never on both sides.
        if data.pool and not data.is_cold_start(request) and project.find_copies([one.image for one in data.labels]):
            data = project.read(request.classes)
    if not data.pool:
        raise empty_pool(request, data)

    is_cold_start = data.is_cold_start(request)
    digest = inputs_digest(request, data.labels, data.pool)
    if request.reason == "labels" and not is_cold_start and (served := project.served_round(digest)) is not None:
        log.info("no label has changed since the round that is served: its order stays", served=served[1].round_id)
        return RoundResult(*served)

    fit = predictions = training = start_features = None
    if (report := project.unpublished_round(digest)) is None:
        if is_cold_start:
            ranking, start_features = _rank_untrained(request, project, learner, data, timer)
        else:
            train, validation = project.split(data.labels, request.validation_share, request.seed)
            with timer.stage("train"):
                fit = learner.fit(train, validation, request.classes)
            predictions, ranking = _predict_and_rank(request, learner, strategy, data.pool, timer)
            ranking, start_features = seek_few_labels(request, learner, data, ranking, timer)
            passes = PoolPredictions(predictions.image_ids, predictions.classes, predictions.probs)
            training = Training(train, validation, data.pool, passes)
        ranking = mix_in_holdout(ranking, request.control_share, request.seed, request.round_id)
        ranking = spread_batches(request, ranking, data.pool, learner.embed)
        if fit is not None and predictions is not None and (share := request.options.get("reread_share")):
            ranking = with_rereads(
                ranking,
                float(str(share)),
                annotations=data.annotations,
                labels=data.labels,
                held_out=fit.held_out,
                predictions=predictions,
                ordered=ProjectOptions.model_validate(request.options).ordered(request.classes),
                counts=project.annotation_counts(),
                barred=project.images_of_several_tasks() | {one.image_id for one in fit.exclusions},
            )
        unreadable = fit.exclusions if fit else ()
        report = RoundReport(
            request=request,
            labels_per_class=data.per_class(request.classes),
            disputed=tuple(label.image.id for label in data.labels if label.disputed),
            fit=fit,
            ranking=ranking,
            exclusions=(*data.consensus.exclusions, *data.unusable, *ranking.exclusions, *unreadable),
            seconds=timer.seconds,
            started_at=started_at,
            inputs=digest,
        )
        # Saved before it is published: the report of every served order exists, and after a crash in between the
        # publishing is repeated and not the training.
        project.ensure_current()
        with timer.stage("save"):
            project.save(report, predictions, learner if fit else None, data, start_features)
    with timer.stage("publish"):
        published = project.publish(report)
    if is_cold_start:
        # Readers have their order: until the start set is complete, the caches fill for the first training.
        # A worker that is stopped meanwhile ends the round: what it has cached stays.
        # Where an order by features follows at once, it waits for its candidates alone.
        pool = candidates(data.pool, request.seed) if orders_again(report) else data.pool
        with timer.stage("features"), suppress(WorkerStopping):
            learner.prepare([*(label.image for label in data.labels), *pool])
    return RoundResult(report, published, training)


def orders_again(report: RoundReport) -> bool:
    """Whether an order by features follows a random one at once: readers have an order now, and these are cached."""
    is_random_start = not report.by_network and report.ranking.strategy == "random"
    return is_random_start and report.request.cold_start != "random" and report.request.has_trained_features


def _rank_untrained(
    request: RoundRequest, project: Project, learner: Learner, data: ProjectData, timer: StageTimer
) -> tuple[Ranking, StartFeatures | None]:
    if request.cold_start != "random" and not request.has_trained_features:
        log.warning("the order is random: an untrained backbone hardly distinguishes images; set the option weights")
    unreadable = project.unreadable(data)
    left_out = {one.image_id for one in unreadable}
    if request.cold_start == "random" or not (request.has_trained_features and project.has_order()):
        if not (ids := [image.id for image in data.pool if image.id not in left_out]):
            raise unreadable_pool(len(data.pool), unreadable)
        ranking = random_order(ids, request.batch_size, request.seed)
        return ranking.model_copy(update={"exclusions": tuple(unreadable)}), None
    with timer.stage("features"):
        embedded = Embedded.by(learner, data.labels, candidates(data.pool, request.seed))
        ranking = embedded.rank(request.cold_start, request.batch_size, request.seed)
        named = {one.image_id for one in ranking.exclusions}
        more = tuple(one for one in unreadable if one.image_id not in named)
        ranking = ranking.model_copy(update={"exclusions": ranking.exclusions + more})
        ranking = with_rest(ranking, [image.id for image in data.pool], request.seed)
        return embedded.seek(ranking, data.labels, data.sought_classes(request)), embedded.record()


def seek_few_labels(
    request: RoundRequest, learner: Learner, data: ProjectData, ranking: Ranking, timer: StageTimer
) -> tuple[Ranking, StartFeatures | None]:
    """The ranking with the images of the sought classes at the front, and where the features behind it are cached."""
    if not (sought := data.sought_classes(request)):
        return ranking, None
    log.info("classes with few labels are sought", classes=sought)
    with timer.stage("features"):
        embedded = Embedded.by(learner, data.labels, data.pool)
        return embedded.seek(ranking, data.labels, sought), embedded.record()


def _predict_and_rank(
    request: RoundRequest, learner: Learner, strategy: Strategy, pool: Sequence[ImageRef], timer: StageTimer
) -> tuple[PoolPredictions, Ranking]:
    with timer.stage("score"):
        predictions = learner.outputs(pool, strategy.needs)
    if not predictions.image_ids:
        raise unreadable_pool(len(pool), predictions.exclusions)
    with timer.stage("rank"):
        return predictions, strategy.rank(predictions, request.batch_size, request.seed)


def empty_pool(request: RoundRequest, data: ProjectData) -> EmptyPool:
    """The error of a pool without images: there are none, all are labelled, or none can be used."""
    project = f"project {request.project.id}"
    if without_image := [one for one in data.unusable if one.kind == "no image"]:
        return UnusablePool(
            f"{project} has no usable image: {len(without_image)} "
            f"{'was' if len(without_image) == 1 else 'were'} left out, the first: {without_image[0].reason}"
        )
    if not data.annotations and not data.unusable:
        return EmptyPool(f"{project} has no images yet: import images to begin")
    return EmptyPool(f"{project} has no unlabelled image: all are labelled or skipped")


def inputs_digest(request: RoundRequest, labels: Sequence[Label], pool: Sequence[ImageRef]) -> str:
    """SHA-256 of everything that decides a round's result; its number and its trigger are not part of it.

    Args:
        request: with all options.
        labels: to train on, in any order; their probabilities count only where ``soft_labels`` is set.
        pool: to rank, in any order.
    """
    without = {"round_id", "reason"} | ({"per_patient"} if request.per_patient is None else set())
    options = json.dumps(request.model_dump(mode="json", exclude=without), sort_keys=True)
    soft = bool(request.options.get("soft_labels"))
    trained = sorted(
        repr(
            (
                *_fields(one.image),
                one.value,
                one.raters,
                one.disputed,
                *sorted(one.probabilities.items() if soft else ()),
            )
        )
        for one in labels
    )
    ranked = sorted(repr(_fields(image)) for image in pool)
    text = "\n".join((options, str(len(trained)), *trained, *ranked))
    return hashlib.sha256(text.encode()).hexdigest()


def _fields(image: ImageRef) -> tuple[str, str, str | None]:
    return image.id, image.uri, image.patient_id
