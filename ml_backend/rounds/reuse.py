"""What a project can be served without another training.

- Resume: the last round, where a new one would have the same inputs.
- Top-up: more of the last ranking, before readers have used it up, or where Label Studio has lost it.
- Rerank: another strategy at once, on the stored passes or by the network of an earlier round.
"""

import contextvars
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate

import numpy as np
import structlog

from ml_backend.acquisition import seeded_order
from ml_backend.errors import BackendError, SettingsError, StorageError, WeightsError
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.cold_start import unreadable_pool
from ml_backend.rounds.interfaces import LabelSource, Learner, Scorer, Strategy
from ml_backend.rounds.run import Project, RoundResult, StageTimer, empty_pool, inputs_digest, seek_few_labels
from ml_backend.rounds.split import mix_in_holdout
from ml_backend.rounds.spread import spread_batches
from ml_backend.schemas import Annotation, ImageRef, Label, PublishedRanking, Ranking, Reread, RoundReport, RoundRequest
from ml_backend.storage import ProjectStore

CHECK_INTERVAL_S = 30.0

log = structlog.get_logger(__name__)


def unpublished_round(store: ProjectStore, digest: str) -> RoundReport | None:
    """The last round, where it had the same inputs and is not fully published.

    Args:
        store: of the project.
        digest: of the inputs of a new round; see ``inputs_digest``.
    """
    report, published = _last_round(store, digest)
    if report is None or (published is not None and published.completes(report.request.round_id)):
        return None
    log.info("the last round was saved but not published: it is published now", round=report.request.round_id)
    return report


def served_round(store: ProjectStore, digest: str) -> tuple[RoundReport, PublishedRanking] | None:
    """The last round and its published ranking, where it had the same inputs and is fully published.

    Args:
        store: of the project.
        digest: of the inputs of a new round; see ``inputs_digest``.
    """
    report, published = _last_round(store, digest)
    if report is None or published is None or not published.completes(report.request.round_id):
        return None
    return report, published


def _last_round(store: ProjectStore, digest: str) -> tuple[RoundReport | None, PublishedRanking | None]:
    """The last round, where it had the same inputs, and the published ranking of any round."""
    try:
        report, published = store.latest(), store.published()
    except StorageError as error:
        log.warning("the last round cannot be taken up", error=str(error))
        return None, None
    return (report if report is not None and report.inputs == digest else None), published


def remaining_ranking(
    report: RoundReport,
    annotations: Sequence[Annotation],
    pool: Sequence[ImageRef],
    barred: Set[str] = frozenset(),
) -> Ranking:
    """The ranking of a round, reduced to the images that are still without a label.

    The images that it scored come in its order, then images imported since, which have no score, in seeded order, and
    last those that a reader has skipped: they are for the other readers only. An image that the round could not read
    stays out until the next round tries again; one that it left out for its tasks or annotations counts as new.

    Args:
        report: of the round.
        annotations: every annotation now.
        pool: every image without a label now.
        barred: labelled images that are not asked again.
    """
    ranking = report.ranking
    skipped = {annotation.image.id for annotation in annotations}
    unlabelled = {image.id for image in pool}
    scored = [image_id for image_id in ranking.image_ids if image_id in unlabelled]
    known = {*scored, *report.unreadable()}
    new = [image.id for image in pool if image.id not in known]
    order = [*scored, *(new[index] for index in seeded_order(new, report.request.seed))]
    order.sort(key=lambda image_id: image_id in skipped)  # stable: the others keep their order
    scores = dict(zip(ranking.image_ids, ranking.scores, strict=True))
    lowest = min(ranking.scores, default=0.0)
    holdout = set(ranking.control)
    return ranking.model_copy(
        update={
            "image_ids": tuple(order),
            "scores": tuple(scores.get(image_id, lowest) for image_id in order),
            "control": tuple(image_id for image_id in order if image_id in holdout),
            "rereads": remaining_rereads(ranking, annotations, unlabelled, barred),
        }
    )


def remaining_rereads(
    ranking: Ranking, annotations: Sequence[Annotation], unlabelled: Set[str], barred: Set[str] = frozenset()
) -> tuple[Reread, ...]:
    """The re-reads of a ranking that no reader and no ground truth has answered since, at their places in what is left.

    Args:
        ranking: of a round.
        annotations: every annotation now.
        unlabelled: ids of the images without a label now.
        barred: images that are not asked again.
    """
    left_out = barred | {one.image.id for one in annotations if one.ground_truth}
    answers = Counter(one.image.id for one in annotations)
    before = [0, *accumulate(image_id in unlabelled for image_id in ranking.image_ids)]
    return tuple(
        one.model_copy(update={"after": before[min(one.after, len(before) - 1)]})
        for one in ranking.rereads
        if one.image_id not in left_out and answers[one.image_id] <= one.answers
    )


def nothing_readable(quarantined: Set[str], annotations: Sequence[Annotation], pool: Sequence[ImageRef]) -> bool:
    """Whether no image of a project could be read: then images are not to blame, and readers may go on labelling."""
    labelled = {one.image.id for one in annotations if one.value is not None}
    return quarantined >= labelled.union(image.id for image in pool)


def top_up(
    labels: LabelSource,
    store: ProjectStore,
    low: int,
    publish: Callable[[RoundReport], PublishedRanking],
    is_held: Callable[[PublishedRanking], bool],
    *,
    quarantined: Set[str] = frozenset(),
    first: Sequence[str] = (),
) -> tuple[RoundReport, PublishedRanking] | None:
    """Publish more of the last ranking where few images of it are left, or it serves others than it should.

    Args:
        labels: of the project.
        store: of the project.
        low: number of images that must be left.
        publish: publishes a ranking.
        is_held: whether Label Studio holds the ranking as it was published; called after the labels were read.
        quarantined: ids of images that could not be read.
        first: ids of the images that ``publish`` puts in front.

    Returns:
        The round and its published ranking; None where nothing had to be published, or no image is left.

    Raises:
        StaleRound, LabelStudioError: the old order stays.
        StorageError: the last round cannot be read.
    """
    published = store.published()
    if published is None:
        return None
    annotations = labels.annotations()
    pool, unusable = labels.unlabelled()
    report = store.report(published.round_id)
    unreadable = frozenset() if nothing_readable(quarantined, annotations, pool) else quarantined
    ranking = remaining_ranking(report, annotations, [one for one in pool if one.id not in unreadable], unreadable)
    annotated = {annotation.image.id for annotation in annotations}
    fresh = [image_id for image_id in ranking.image_ids if image_id not in annotated]
    served = set(published.image_ids)
    left = sum(image_id in served for image_id in fresh)
    # Served although it needs no answer, or can teach nothing: another task holds the same image, for example.
    needless = len(served & {*unreadable, *(one.image_id for one in unusable)} - annotated)
    picked = len({*first}.intersection(fresh).difference(published.by_hand))
    enough = (left >= low or left == len(fresh)) and not needless and not picked
    if not fresh or (enough and is_held(published)):
        return None
    log.info("topping up", left=left, low=low, waiting=len(fresh), needless=needless, picked=picked, lost=enough)
    return report, publish(report.model_copy(update={"ranking": ranking}))


@contextmanager
def run_periodically(check: Callable[[], object], every_s: float = CHECK_INTERVAL_S) -> Iterator[None]:
    """Call ``check`` at intervals while the block runs, in a thread; a BackendError is logged and ignored.

    What the thread logs has the project and the round of the block.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            try:
                check()
            except BackendError as error:
                log.warning("not topped up for now", error=str(error), kind=type(error).__name__)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), name="top-up", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class StoredPasses:
    """The stored passes of an earlier round. Satisfies ``Scorer``, for strategies that need nothing else.

    Args:
        base: the round. Images that it could not read are excluded again.
        predictions: its passes.
    """

    def __init__(self, base: RoundReport, predictions: PoolPredictions) -> None:
        self._exclusions = {one.image_id: one for one in (*base.exclusions, *base.ranking.exclusions)}
        self._predictions = predictions
        self._rows = {image_id: row for row, image_id in enumerate(predictions.image_ids)}

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Passes of the images that the round scored; later ones are missing.

        Raises:
            ValueError: something else than passes is needed.
        """
        if more := needs - {"probs"}:
            raise ValueError(f"a round stores its passes, and no {' or '.join(sorted(more))}: use its network")
        ids = [image.id for image in pool]
        known = [image_id for image_id in ids if image_id in self._rows]
        return PoolPredictions(
            image_ids=tuple(known),
            classes=self._predictions.classes,
            probs=self._predictions.probs[np.array([self._rows[image_id] for image_id in known], dtype=np.intp)],
            exclusions=tuple(
                self._exclusions[name] for name in ids if name not in self._rows and name in self._exclusions
            ),
        )


def rerank(
    request: RoundRequest, base: RoundReport, project: Project, scorer: Scorer, strategy: Strategy, *, learner: Learner
) -> RoundResult:
    """Rank the unlabelled images by the predictions of an earlier round's network, save that as a round, publish it.

    Images without a prediction come last, in seeded order, until the next round scores them.

    Args:
        request: the earlier round's, with what the owner has chosen since.
        base: the round whose network ranks; the new round has learned from the same labels.
        project: where labels come from and rankings go.
        scorer: the stored passes of ``base``, or its network.
        strategy: ranks the predictions.
        learner: computes pretrained features, for classes that are sought and for near-duplicates; it needs no
            network.

    Raises:
        EmptyPool: no image is without a label.
        UnusablePool: none of the images without a label can be read.
        WeightsError, RoundError: see ``Learner``.
        StaleRound: a newer run of the project has begun; nothing was published.
        LabelStudioError: labels could not be read or the ranking not published; a saved round is kept.
    """
    started_at = datetime.now(UTC)
    timer = StageTimer(project.report_progress)
    with timer.stage("labels"):
        data = project.read(request.classes)
    if not data.pool:
        raise empty_pool(request, data)
    with timer.stage("score"):
        predictions = scorer.outputs(data.pool, strategy.needs)
        if "features" in strategy.needs and predictions.labelled_features is None:
            # A learner has them from its training; a restored network computes them again.
            labelled = scorer.outputs([label.image for label in data.labels], frozenset({"features"}))
            predictions = replace(predictions, labelled_features=labelled.features)
    with timer.stage("rank"):
        ranking = rank_all(request, strategy, predictions, [image.id for image in data.pool])
    if not ranking.image_ids:
        raise unreadable_pool(len(data.pool), predictions.exclusions)
    start_features = None
    try:
        ranking, start_features = seek_few_labels(request, learner, data, ranking, timer)
    except (SettingsError, WeightsError) as error:  # the passes are stored, and the backbone may be gone
        log.warning("classes with few labels are not sought", error=str(error))
    ranking = mix_in_holdout(ranking, request.control_share, request.seed, request.round_id)
    ranking = spread_batches(request, ranking, data.pool, learner.embed)
    if request.options.get("reread_share"):
        waiting, barred = {image.id for image in data.pool}, project.images_of_several_tasks()
        rereads = remaining_rereads(base.ranking, data.annotations, waiting, barred)
        ranking = ranking.model_copy(update={"rereads": rereads})
    report = RoundReport(
        request=request,
        labels_per_class=base.labels_per_class,
        disputed=base.disputed,
        fit=None,
        ranking=ranking,
        exclusions=(*data.consensus.exclusions, *data.unusable, *ranking.exclusions),
        seconds=timer.seconds,
        started_at=started_at,
        inputs=reranked_digest(request, base, data.labels, data.pool),
        base=base.request.round_id,
    )
    project.ensure_current()
    with timer.stage("save"):
        project.save(report, predictions, None, data, start_features)
    with timer.stage("publish"):
        return RoundResult(report, project.publish(report))


def rank_all(request: RoundRequest, strategy: Strategy, predictions: PoolPredictions, pool: Sequence[str]) -> Ranking:
    """Rank a pool; its images without a prediction come last, in seeded order.

    Args:
        request: seed and batch size of the ranking.
        strategy: ranks the predictions.
        predictions: of the network; the images that it could not read stay out.
        pool: image ids.
    """
    if predictions.image_ids:
        ranking = strategy.rank(predictions, request.batch_size, request.seed)
    else:
        ranking = Ranking(strategy=strategy.name, image_ids=(), scores=(), batch_size=request.batch_size)
    known = {*ranking.image_ids, *(exclusion.image_id for exclusion in predictions.exclusions)}
    new = [image_id for image_id in pool if image_id not in known]
    lowest = min(ranking.scores, default=0.0)
    return ranking.model_copy(
        update={
            "image_ids": (*ranking.image_ids, *(new[index] for index in seeded_order(new, request.seed))),
            "scores": (*ranking.scores, *(lowest for _ in new)),
            "exclusions": predictions.exclusions,
        }
    )


def reranked_digest(request: RoundRequest, base: RoundReport, labels: Sequence[Label], pool: Sequence[ImageRef]) -> str:
    """``inputs_digest`` of a round that ranks by an earlier round's network.

    Where labels and pool are those of the earlier round, a training with the new strategy would give the same order,
    and the digest is that of such a training.

    Args:
        request: of the new ranking.
        base: the earlier round.
        labels: as they are now, in any order.
        pool: to rank, in any order.
    """
    now = inputs_digest(request, labels, pool)
    if inputs_digest(base.request, labels, pool) == base.inputs:
        return now
    return hashlib.sha256(f"{base.inputs} ranked again as {now}".encode()).hexdigest()
