"""How every strategy ranks the pool. A new one is its function, one entry here and one in ``ml_backend.strategies``."""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition.evidence import Gradients, evidence_of, given
from ml_backend.acquisition.ranking import (
    AcquisitionRanking,
    Ranker,
    by_badge,
    by_batch_bald,
    by_chance,
    by_core_set,
    by_power_bald,
    by_score,
    by_typiclust,
)
from ml_backend.acquisition.scores import bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.strategies import strategy_spec

__all__ = ["RANKERS", "rank"]

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
