"""Another strategy at once: what the last network said is ranked anew. Nothing is learned.

The owner has chosen anew, and the next training may be twenty labels away. A strategy that looks at nothing but the
passes finds them stored with the round; for any other the round's network looks at the pool once more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np

from ml_backend.acquisition import seeded_order
from ml_backend.engine.clock import Clock
from ml_backend.engine.control import mixed
from ml_backend.engine.ports import (
    ConsensusRule,
    LabelSource,
    Progress,
    Publisher,
    ReportStore,
    Strategy,
    no_guard,
    no_progress,
)
from ml_backend.engine.resume import reranked_digest
from ml_backend.engine.round import empty_pool
from ml_backend.errors import UnusablePool
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import ImageRef, Label, Published, Ranking, RoundReport, RoundRequest
from ml_backend.strategies import Need

__all__ = ["RerankParts", "Scorer", "StoredPasses", "ranked_anew", "rerank"]


class Scorer(Protocol):
    """What still knows the mind of an earlier round's network."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolOutputs:
        """What the network says; images that it cannot tell of are missing, or named among the exclusions."""
        ...


class StoredPasses:
    """The passes that an earlier round has kept. Satisfies ``Scorer``, for strategies that need no more.

    Args:
        base: the round. What it could not read is not asked for again.
        kept: what it has kept.
    """

    def __init__(self, base: RoundReport, kept: PoolOutputs) -> None:
        self._reasons = {one.image_id: one for one in (*base.exclusions, *base.ranking.exclusions)}
        self._kept = kept
        self._rows = {image_id: row for row, image_id in enumerate(kept.image_ids)}

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolOutputs:
        """Of the images that the round has scored; those that came later are missing.

        Raises:
            ValueError: something else than passes is needed.
        """
        if more := needs - {"probs"}:
            raise ValueError(f"a round keeps the passes, and no {' or '.join(sorted(more))}: ask its network")
        ids = [image.id for image in pool]
        known = [image_id for image_id in ids if image_id in self._rows]
        return PoolOutputs(
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


def rerank(request: RoundRequest, base: RoundReport, parts: RerankParts) -> tuple[RoundReport, Published]:
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


def _outputs(parts: RerankParts, pool: Sequence[ImageRef], labels: Sequence[Label]) -> PoolOutputs:
    needs = parts.strategy.needs
    outputs = parts.scorer.outputs(pool, needs)
    if "features" not in needs or outputs.labelled_features is not None:
        return outputs
    # Whoever has trained a network has these at hand; a restored one looks at the images again.
    labelled = parts.scorer.outputs([label.image for label in labels], frozenset({"features"}))
    return replace(outputs, labelled_features=labelled.features)


def ranked_anew(request: RoundRequest, strategy: Strategy, outputs: PoolOutputs, pool: Sequence[str]) -> Ranking:
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
