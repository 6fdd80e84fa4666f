"""From scores to an order of the whole pool: written once, for every strategy."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ml_backend.acquisition.badge import badge
from ml_backend.acquisition.batches import batch_bald
from ml_backend.acquisition.core_set import core_set
from ml_backend.acquisition.evidence import Evidence, given
from ml_backend.acquisition.power_bald import power_bald
from ml_backend.acquisition.scores import Score, bald
from ml_backend.acquisition.selection import Selection
from ml_backend.acquisition.typiclust import typiclust
from ml_backend.chance import places, seeded_draws, seeded_order

__all__ = [
    "AcquisitionRanking",
    "Ranker",
    "by_badge",
    "by_batch_bald",
    "by_chance",
    "by_core_set",
    "by_power_bald",
    "by_score",
    "by_typiclust",
]

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
