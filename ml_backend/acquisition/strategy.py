"""From scores to an order of the whole pool: written once, for every strategy.

How every strategy ranks the pool. A new one is its function, one entry here and one in ``ml_backend.strategies``.
The catalogue as the engine wants it: ids and records on the outside, tensors within.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import structlog
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ml_backend.acquisition.arrays import Selection
from ml_backend.acquisition.batch import batch_bald, power_bald
from ml_backend.acquisition.diversity import badge, core_set, typiclust
from ml_backend.acquisition.inputs import Evidence, Gradients, evidence_of, given
from ml_backend.acquisition.pointwise import Score, bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need, strategy_spec
from ml_backend.schemas import Ranking, natural_order
from ml_backend.seeding import places, seeded_draws, seeded_order

_log = structlog.get_logger(__name__)

_PASSES_PER_PICK = 5
"""A batch of 20 needs T = 100: T passes hold at most log T nats, so with fewer the last picks add nothing."""


class AcquisitionRanking(NamedTuple):
    """The whole pool ranked; both tensors lie on the CPU, whatever the device of the passes."""

    order: Int64[Tensor, " images"]
    """Positions in the pool, label first at the front; the first ``batch_size`` are the batch."""
    scores: Float[Tensor, " images"]
    """Acquisition values in the pool's own order (float64), in the unit that the strategy's entry states."""


Ranker = Callable[[Evidence, int, int], AcquisitionRanking]
"""Called with the evidence, the batch size and the seed."""


def by_score(score: Score) -> Ranker:
    """The best score first; equal scores in the seeded order of their ids."""

    def ranker(evidence: Evidence, batch_size: int, seed: int) -> AcquisitionRanking:  # noqa: ARG001 - judged alone, the order is the same for every batch size
        scores = score(given(evidence.probs, "probs", score.__name__)).cpu()
        return _best_first(scores, _ties(evidence.ids, seed))

    return ranker


def by_batch_bald(evidence: Evidence, batch_size: int, seed: int) -> AcquisitionRanking:
    """The batch in the order of its picks, each scored by what it adds; then the rest by BALD alone."""
    probs = given(evidence.probs, "probs", "batch_bald")
    images, passes, _ = probs.shape
    wanted = _PASSES_PER_PICK * min(batch_size, images)
    if passes < wanted:
        _log.warning(
            "few_passes_for_batch_bald",
            passes=passes,
            batch_size=batch_size,
            wanted=wanted,
            hint="the last picks of the batch add little that can be told from noise: raise passes or lower batch_size",
        )
    ties = _ties(evidence.ids, seed)
    picks = batch_bald(probs, batch_size, seed=seed, ties=ties)
    scores = bald(probs).cpu()
    scores[picks.images] = picks.gains
    return _picks_first(Selection(picks.images, scores), ties)


def by_power_bald(evidence: Evidence, batch_size: int, seed: int) -> AcquisitionRanking:  # noqa: ARG001 - the noise alone spreads the batch
    """The best noisy score first."""
    draws = seeded_draws(evidence.ids, seed, "power_bald ")
    return _best_first(power_bald(given(evidence.probs, "probs", "power_bald"), draws), _ties(evidence.ids, seed))


def by_core_set(evidence: Evidence, batch_size: int, seed: int) -> AcquisitionRanking:
    """The batch in the order of its picks; then the rest, farthest from any centre first."""
    features, ties = given(evidence.features, "features", "core_set"), _ties(evidence.ids, seed)
    chosen = core_set(features, batch_size, ties=ties, labelled_features=evidence.labelled_features)
    return _picks_first(chosen, ties)


def by_badge(evidence: Evidence, batch_size: int, seed: int) -> AcquisitionRanking:
    """The batch in the order of its picks; then the rest, by its distance to the nearest pick."""
    gradients, ties = given(evidence.gradients, "gradients", "badge"), _ties(evidence.ids, seed)
    draws = seeded_draws(evidence.ids, seed, "badge ")
    return _picks_first(badge(gradients, batch_size, draws=draws, ties=ties), ties)


def by_typiclust(evidence: Evidence, batch_size: int, seed: int) -> AcquisitionRanking:
    """The batch in the order of its picks; then the rest, most typical first."""
    features, ties = given(evidence.features, "features", "typiclust"), _ties(evidence.ids, seed)
    chosen = typiclust(features, batch_size, ties=ties, seed=seed, labelled_features=evidence.labelled_features)
    return _picks_first(chosen, ties)


def by_chance(evidence: Evidence, batch_size: int, seed: int) -> AcquisitionRanking:  # noqa: ARG001 - chance looks at nothing
    """The seeded order of the ids; an image's score is its place in it."""
    order = torch.from_numpy(seeded_order(evidence.ids, seed))
    scores = torch.empty(len(order), dtype=torch.float64)
    scores[order] = torch.from_numpy(places(len(order)))
    return AcquisitionRanking(order, scores)


def _ties(ids: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """The place of each image in the seeded order; the lower wins a tie."""
    return np.argsort(seeded_order(ids, seed))


def _best_first(scores: Float[Tensor, " images"], ties: npt.NDArray[np.int64]) -> AcquisitionRanking:
    return AcquisitionRanking(torch.from_numpy(np.lexsort((ties, -scores.numpy()))), scores)


def _picks_first(chosen: Selection, ties: npt.NDArray[np.int64]) -> AcquisitionRanking:
    best_first = _best_first(chosen.scores, ties).order
    rest = best_first[~torch.isin(best_first, chosen.picks)]
    return AcquisitionRanking(torch.cat([chosen.picks, rest]), chosen.scores)


Array: TypeAlias = Tensor | npt.NDArray[np.floating[Any]]

RANKERS: Final[dict[str, Ranker]] = {
    "badge": by_badge,
    "bald": by_score(bald),
    "batch_bald": by_batch_bald,
    "core_set": by_core_set,
    "entropy": by_score(entropy),
    "least_confidence": by_score(least_confidence),
    "margin": by_score(margin),
    "mean_std": by_score(mean_std),
    "power_bald": by_power_bald,
    "random": by_chance,
    "typiclust": by_typiclust,
    "variation_ratios": by_score(variation_ratios),
}


def rank(
    name: str,
    probs: Float[Array, "images passes classes"] | None,
    batch_size: int,
    seed: int = 0,
    *,
    ids: Sequence[str] | None = None,
    features: Float[Array, "images dims"] | None = None,
    labelled_features: Float[Array, "labelled dims"] | None = None,
    gradients: Gradients | None = None,
) -> AcquisitionRanking:
    """Rank the whole pool by one strategy.

    Ties are broken by a seeded draw from each image's id: the same on every device, whatever the thread count.

    Every array may be a torch tensor, of float16, bfloat16, float32 or float64, with a gradient or without, on any
    device and of any strides, or a NumPy array of a floating type. It is detached and never changed.

    Args:
        name: of an entry of ``STRATEGIES``, which says what the strategy needs of the following.
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        batch_size: images that will be labelled together; only a batch-aware strategy looks at it.
        seed: of ties, of chance, of noise, of drawn labellings and of k-means.
        ids: one distinct id an image, a text or a number; positions count as ids where none are given.
        features: pooled backbone features of the pool.
        labelled_features: the same of the images that have a label; none where there are none.
        gradients: of the last layer, in factors.

    Returns:
        ``order``, the positions of the whole pool, label first at the front, and ``scores`` in the pool's own order.

    Raises:
        ValueError: an unknown name, a batch size below 1, something missing that the strategy needs, fewer passes
            than it needs, ids or shapes that do not fit, an array that is not of a floating type, probabilities that
            are none, or a NaN, with the first bad image named.
    """
    spec = strategy_spec(name)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    values = {"probs": probs, "features": features, "gradients": gradients}
    for need in sorted(spec.needs):
        given(values[need], need, name)
    evidence = evidence_of(
        ids, probs=probs, features=features, labelled_features=labelled_features, gradients=gradients
    )
    if "probs" in spec.needs and (passes := given(evidence.probs, "probs", name).shape[1]) < spec.min_passes:
        raise ValueError(f"{name} needs at least {spec.min_passes} passes, got {passes}: draw more")
    return RANKERS[name](evidence, batch_size, seed)


@dataclass(frozen=True, slots=True)
class CatalogStrategy:
    """A strategy of the catalogue. Satisfies ``engine.ports.Strategy``.

    Raises:
        ValueError: the catalogue has no such name.
    """

    name: str

    def __post_init__(self) -> None:
        strategy_spec(self.name)

    @property
    def needs(self) -> frozenset[Need]:
        """What the learner must compute for it."""
        return strategy_spec(self.name).needs

    def rank(self, outputs: PoolPredictions, batch_size: int, seed: int) -> Ranking:
        """The whole pool, label first at the front; the same however the pool arrives.

        Raises:
            ValueError: see ``catalog.rank``.
        """
        arrival = sorted(range(len(outputs.image_ids)), key=lambda i: natural_order(outputs.image_ids[i]))
        ids = [outputs.image_ids[i] for i in arrival]
        gradients = outputs.gradients
        ranking = rank(
            self.name,
            torch.from_numpy(outputs.probs[arrival]),
            batch_size,
            seed,
            ids=ids,
            features=None if outputs.features is None else torch.from_numpy(outputs.features[arrival]),
            labelled_features=None if outputs.labelled_features is None else torch.tensor(outputs.labelled_features),
            gradients=None
            if gradients is None
            else Gradients(torch.from_numpy(gradients.residuals[arrival]), torch.from_numpy(gradients.hidden[arrival])),
        )
        return Ranking(
            strategy=self.name,
            image_ids=tuple(ids[i] for i in ranking.order.tolist()),
            scores=tuple(ranking.scores[ranking.order].tolist()),
            batch_size=batch_size,
            suggestions=outputs.suggestions(),
            confidences=outputs.confidences(),
            exclusions=outputs.exclusions,
        )


def rank_by_features(
    name: str,
    images: ImageFeatures,
    labelled: Float32[npt.NDArray[np.float32], "labelled dims"] | None,
    batch_size: int,
    seed: int,
) -> Ranking:
    """Rank by a strategy that needs features and no network; the same however the images arrive.

    Args:
        name: of the strategy.
        images: the pool, those that could be read.
        labelled: features of the images that have a label; None where there are none.
        batch_size: images that are chosen together.
        seed: of ties and of k-means.

    Raises:
        ValueError: the strategy needs more than features; or see ``catalog.rank``.
    """
    arrival = sorted(range(len(images.image_ids)), key=lambda i: natural_order(images.image_ids[i]))
    ids = [images.image_ids[i] for i in arrival]
    ranking = rank(
        name,
        None,
        batch_size,
        seed,
        ids=ids,
        features=torch.from_numpy(images.features[arrival]),
        labelled_features=None if labelled is None else torch.tensor(labelled),
    )
    return Ranking(
        strategy=name,
        image_ids=tuple(ids[i] for i in ranking.order.tolist()),
        scores=tuple(ranking.scores[ranking.order].tolist()),
        batch_size=batch_size,
        exclusions=images.exclusions,
    )
