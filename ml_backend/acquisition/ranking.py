"""From scores to an order of the whole pool: written once, for every strategy."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ml_backend.acquisition.batches import batch_bald
from ml_backend.acquisition.chance import places, seeded_order
from ml_backend.acquisition.scores import Score, bald

__all__ = ["AcquisitionRanking", "Ranker", "by_batch_bald", "by_chance", "by_score"]

_log = structlog.get_logger(__name__)

_PASSES_PER_PICK = 5
"""A batch of 20 needs T = 100: T passes hold at most log T nats, so with fewer the last picks add nothing."""


class AcquisitionRanking(NamedTuple):
    """The whole pool ranked; both tensors lie on the CPU, whatever the device of the passes."""

    order: Int64[Tensor, " images"]
    """Positions in the pool, label first at the front; the first ``batch_size`` are the batch."""
    scores: Float[Tensor, " images"]
    """Acquisition values in the pool's own order (float64), in the unit that the strategy's entry states."""


Ranker = Callable[[Tensor, int, int, Sequence[str]], AcquisitionRanking]
"""Called with probs [images, passes, classes], the batch size, the seed and one id an image."""


def by_score(score: Score) -> Ranker:
    """The best score first; equal scores in the seeded order of their ids."""

    def ranker(probs: Tensor, batch_size: int, seed: int, ids: Sequence[str]) -> AcquisitionRanking:  # noqa: ARG001 - judged alone, the order is the same for every batch size
        scores = score(probs).cpu()
        return AcquisitionRanking(torch.from_numpy(_descending(scores.numpy(), _ties(ids, seed))), scores)

    return ranker


def by_batch_bald(probs: Tensor, batch_size: int, seed: int, ids: Sequence[str]) -> AcquisitionRanking:
    """The batch in the order of its picks, each scored by what it adds; then the rest by BALD alone."""
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
    ties = _ties(ids, seed)
    picks = batch_bald(probs, batch_size, seed=seed, ties=ties)
    scores = bald(probs).cpu()
    by_bald = _descending(scores.numpy(), ties)
    rest = by_bald[~np.isin(by_bald, picks.images.numpy())]
    scores[picks.images] = picks.gains
    return AcquisitionRanking(torch.cat([picks.images, torch.from_numpy(rest)]), scores)


def by_chance(probs: Tensor, batch_size: int, seed: int, ids: Sequence[str]) -> AcquisitionRanking:  # noqa: ARG001 - chance looks at nothing
    """The seeded order of the ids; an image's score is its place in it."""
    order = torch.from_numpy(seeded_order(ids, seed))
    scores = torch.empty(len(ids), dtype=torch.float64)
    scores[order] = torch.from_numpy(places(len(ids)))
    return AcquisitionRanking(order, scores)


def _ties(ids: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """The place of each image in the seeded order; the lower wins a tie."""
    return np.argsort(seeded_order(ids, seed))


def _descending(scores: npt.NDArray[np.float64], ties: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    order: npt.NDArray[np.int64] = np.lexsort((ties, -scores))
    return order
