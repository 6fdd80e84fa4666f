"""Publishes the last ranking again: before readers have used it up, and where Label Studio has lost it.

Another strategy at once: what the last network said is ranked anew. Nothing is learned.
"""

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import structlog

from ml_backend.acquisition import seeded_order
from ml_backend.errors import BackendError, UnusablePool
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.holdout import mixed
from ml_backend.rounds.interfaces import (
    ConsensusRule,
    LabelSource,
    Progress,
    Publisher,
    ReportStore,
    Strategy,
    no_guard,
    no_progress,
)
from ml_backend.rounds.run import Clock, empty_pool, reranked_digest
from ml_backend.schemas import Annotation, ImageRef, Label, PublishedRanking, Ranking, RoundReport, RoundRequest

WATCH_INTERVAL_S = 30.0
# Kinds of exclusion for an image that was tried: learners give none.
UNREADABLE = frozenset({"", "unreadable image"})

log = structlog.get_logger(__name__)


class RoundArchive(Protocol):
    """Where rounds and what is served of them are kept."""

    def published(self) -> PublishedRanking | None: ...

    def report(self, round_id: str) -> RoundReport: ...


def topped_up(report: RoundReport, annotations: Sequence[Annotation], pool: Sequence[ImageRef]) -> Ranking:
    """The ranking of a round, of the images that still wait.

    Those that it scored come in its order, then those imported since, which have no score, in seeded order; and last
    what a reader has skipped, which is there for the other readers only. An image that the round could not read stays
    out until the next round has looked again; one that it left out for what its tasks or annotations were is like new.

    Args:
        report: of the round.
        annotations: every annotation now.
        pool: every image without a label now.
    """
    ranking = report.ranking
    skipped = {annotation.image.id for annotation in annotations}
    waiting = {image.id for image in pool}
    scored = [image_id for image_id in ranking.image_ids if image_id in waiting]
    excluded = (one for one in (*report.exclusions, *ranking.exclusions) if one.kind in UNREADABLE)
    known = {*scored, *(one.image_id for one in excluded)}
    new = [image.id for image in pool if image.id not in known]
    order = [*scored, *(new[index] for index in seeded_order(new, report.request.seed))]
    order.sort(key=lambda image_id: image_id in skipped)  # stable: the rest keeps its order
    scores = dict(zip(ranking.image_ids, ranking.scores, strict=True))
    lowest = min(ranking.scores, default=0.0)
    by_chance = set(ranking.control)
    return ranking.model_copy(
        update={
            "image_ids": tuple(order),
            "scores": tuple(scores.get(image_id, lowest) for image_id in order),
            "control": tuple(image_id for image_id in order if image_id in by_chance),
        }
    )


class TopUp:
    """Publishes more of the last ranking when little of it is left, or when it holds what readers need not answer.

    Args:
        labels: of the project.
        publisher: of the project.
        rounds: its rounds, and what is served of them.
        low: images that must be left.
        guard: raises StaleRound where a newer run has begun.
        is_held: whether Label Studio holds what was published, as it was published; asked after the labels.
    """

    def __init__(
        self,
        labels: LabelSource,
        publisher: Publisher,
        rounds: RoundArchive,
        low: int,
        guard: Callable[[], None],
        *,
        is_held: Callable[[PublishedRanking], bool] = lambda _: True,
    ) -> None:
        self._labels = labels
        self._publisher = publisher
        self._rounds = rounds
        self._low = low
        self._guard = guard
        self._is_held = is_held

    def run(self) -> tuple[RoundReport, PublishedRanking] | None:
        """Top up, if it is time; None where it is not, or nothing is left to publish.

        Raises:
            StaleRound: from the guard.
            LabelStudioError: the old order still stands.
            StorageError: the last round cannot be read.
        """
        published = self._rounds.published()
        if published is None:
            return None
        annotations = self._labels.annotations()
        pool, barred = self._labels.unlabelled()
        report = self._rounds.report(published.round_id)
        ranking = topped_up(report, annotations, pool)
        skipped = {annotation.image.id for annotation in annotations}
        fresh = [image_id for image_id in ranking.image_ids if image_id not in skipped]
        served = set(published.image_ids)
        left = sum(image_id in served for image_id in fresh)
        # The same image has been answered in another task, say.
        needless = len(served & {one.image_id for one in barred} - {one.image.id for one in annotations})
        enough = (left >= self._low or left == len(fresh)) and not needless
        if not fresh or (enough and self._is_held(published)):
            return None
        log.info("topping up", left=left, low=self._low, waiting=len(fresh), needless=needless, lost=enough)
        more = report.model_copy(update={"ranking": ranking})
        return report, self._publisher.publish(more, self._guard)


class LockedPublisher:
    """A publisher that two threads may call: one publishes at a time. Satisfies ``engine.ports.Publisher``."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._turn = threading.RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else publishes: what is read in here about what is served stays true."""
        with self._turn:
            yield

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> PublishedRanking:
        with self._turn:
            return self._publisher.publish(report, guard)


@contextmanager
def beside(check: Callable[[], object], every_s: float = WATCH_INTERVAL_S) -> Iterator[None]:
    """Call ``check`` now and then while the block runs, in a thread; what it refuses is logged and disturbs nothing.

    What the thread logs names the project and the round of the block.
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


class Scorer(Protocol):
    """What still knows the mind of an earlier round's network."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """What the network says; images that it cannot tell of are missing, or named among the exclusions."""
        ...


class StoredPasses:
    """The passes that an earlier round has kept. Satisfies ``Scorer``, for strategies that need no more.

    Args:
        base: the round. What it could not read is not asked for again.
        kept: what it has kept.
    """

    def __init__(self, base: RoundReport, kept: PoolPredictions) -> None:
        self._reasons = {one.image_id: one for one in (*base.exclusions, *base.ranking.exclusions)}
        self._kept = kept
        self._rows = {image_id: row for row, image_id in enumerate(kept.image_ids)}

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Of the images that the round has scored; those that came later are missing.

        Raises:
            ValueError: something else than passes is needed.
        """
        if more := needs - {"probs"}:
            raise ValueError(f"a round keeps the passes, and no {' or '.join(sorted(more))}: ask its network")
        ids = [image.id for image in pool]
        known = [image_id for image_id in ids if image_id in self._rows]
        return PoolPredictions(
            image_ids=tuple(known),
            classes=self._kept.classes,
            probs=self._kept.probs[np.array([self._rows[image_id] for image_id in known], dtype=np.intp)],
            exclusions=tuple(
                self._reasons[image_id] for image_id in ids if image_id not in self._rows and image_id in self._reasons
            ),
        )


@dataclass(frozen=True, slots=True)
class RerankParts:
    """The parts of one re-ranking, put together in ``assembly`` or by a test."""

    labels: LabelSource
    consensus: ConsensusRule
    scorer: Scorer
    strategy: Strategy
    store: ReportStore
    publisher: Publisher
    progress: Progress = field(default=no_progress)
    guard: Callable[[], None] = field(default=no_guard)


def rerank(request: RoundRequest, base: RoundReport, parts: RerankParts) -> tuple[RoundReport, PublishedRanking]:
    """Rank the images that wait by what an earlier round's network says of them, save that as a round, publish it.

    Images that the scorer knows nothing of come last, in seeded order, until the next round scores them.

    Args:
        request: the earlier round's, with what the owner has chosen since.
        base: the round whose network ranks; what it has learned is what this one knows, and no more.
        parts: of the project.

    Raises:
        EmptyPool: no image waits.
        UnusablePool: images wait, and none of them can be read.
        WeightsError, RoundError: see ``Learner``.
        StaleRound: a newer run of the project has begun; nothing was published.
        LabelStudioError: labels could not be read or the ranking not published; the saved round stays.
    """
    started_at = datetime.now(UTC)
    clock = Clock(parts.progress)
    with clock.stage("labels"):
        annotations = parts.labels.annotations()
        consensus = parts.consensus(annotations, request.classes)
        pool, unusable = parts.labels.unlabelled()
    if not pool:
        raise empty_pool(request, annotations, unusable)
    with clock.stage("score"):
        outputs = _outputs(parts, pool, consensus.labels)
    with clock.stage("rank"):
        ranking = ranked_anew(request, parts.strategy, outputs, [image.id for image in pool])
    if not ranking.image_ids:
        raise UnusablePool(
            f"none of the {len(pool)} unlabelled images could be read; the first: {outputs.exclusions[0].reason}"
        )
    report = RoundReport(
        request=request,
        labels_per_class=base.labels_per_class,
        disputed=base.disputed,
        fit=None,
        ranking=ranking,
        exclusions=(*consensus.exclusions, *unusable, *ranking.exclusions),
        seconds=clock.seconds,
        started_at=started_at,
        inputs=reranked_digest(request, base, consensus.labels, pool),
        base=base.request.round_id,
    )
    parts.guard()
    with clock.stage("save"):
        parts.store.save(report, outputs, None)
    with clock.stage("publish"):
        published = parts.publisher.publish(report, parts.guard)
    return report, published


def _outputs(parts: RerankParts, pool: Sequence[ImageRef], labels: Sequence[Label]) -> PoolPredictions:
    needs = parts.strategy.needs
    outputs = parts.scorer.outputs(pool, needs)
    if "features" not in needs or outputs.labelled_features is not None:
        return outputs
    # Whoever has trained a network has these at hand; a restored one looks at the images again.
    labelled = parts.scorer.outputs([label.image for label in labels], frozenset({"features"}))
    return replace(outputs, labelled_features=labelled.features)


def ranked_anew(request: RoundRequest, strategy: Strategy, outputs: PoolPredictions, pool: Sequence[str]) -> Ranking:
    """The images of a pool, those without outputs last in seeded order.

    Args:
        request: seed, batch size and control share of the ranking.
        strategy: that ranks.
        outputs: of the network; what it could not read stays out.
        pool: image ids.
    """
    if outputs.image_ids:
        ranking = strategy.rank(outputs, request.batch_size, request.seed)
    else:
        ranking = Ranking(strategy=strategy.name, image_ids=(), scores=(), batch_size=request.batch_size)
    known = {*ranking.image_ids, *(exclusion.image_id for exclusion in outputs.exclusions)}
    new = [image_id for image_id in pool if image_id not in known]
    lowest = min(ranking.scores, default=0.0)
    whole = ranking.model_copy(
        update={
            "image_ids": (*ranking.image_ids, *(new[index] for index in seeded_order(new, request.seed))),
            "scores": (*ranking.scores, *(lowest for _ in new)),
            "exclusions": outputs.exclusions,
        }
    )
    return mixed(whole, request.control_share, request.seed, request.round_id)
