"""Pools of softmax outputs that both sides get: drawn, seeded, with near-duplicates."""

from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

__all__ = ["near_duplicate_pool", "plain_pool"]

Probs = npt.NDArray[np.float32]

# Images that show nearly the same: the films of one patient, or of one machine.
_COPIES = (1, 1, 2, 4, 8, 16, 32)
_NEARLY = 0.05  # distance of a copy from its original, in spreads between originals
_DIMS = 24


def near_duplicate_pool(
    images: int, passes: int, classes: int, seed: int, *, sharpness: float = 2.5
) -> Float32[Probs, "images passes classes"]:
    """Draw what T dropout networks say about a pool in which many images are nearly alike.

    Every pass is one linear network over 24 features, the same for the whole pool: ``softmax(sharpness * x W_t)`` with
    ``W_t = W + E_t``, where the shared ``W`` and the deviations ``E_t`` are standard normal: the passes disagree about
    as much as they agree. The images are 1 to 32 near copies of originals: the best by their own score are copies
    of one another, which only a batch-aware function sees.

    Args:
        images: size of the pool.
        passes: T.
        classes: C.
        seed: the same seed draws the same pool.
        sharpness: of the softmax.

    Returns:
        Probabilities; each row sums to 1 and none is 0.
    """
    generator = np.random.default_rng([4, seed])
    copies: list[int] = []
    while sum(copies) < images:
        copies.append(int(generator.choice(_COPIES)))
    originals = generator.standard_normal((len(copies), _DIMS))
    features = np.repeat(originals, copies, axis=0)[:images]
    features = features + _NEARLY * generator.standard_normal(features.shape)
    shared = generator.standard_normal((_DIMS, 1, classes))
    weights = (shared + generator.standard_normal((_DIMS, passes, classes))) / np.sqrt(2 * _DIMS)
    features = features[generator.permutation(images)]
    pool = np.empty((images, passes, classes), dtype=np.float32)
    for start in range(0, images, 4096):
        logits = sharpness * np.tensordot(features[start : start + 4096], weights, axes=1)
        pool[start : start + 4096] = _softmax(logits)
    return pool


def plain_pool(images: int, passes: int, classes: int, seed: int) -> Float32[Probs, "images passes classes"]:
    """Draw a pool in which every row is uniform over the simplex: for functions that judge images alone."""
    generator = np.random.default_rng([5, seed])
    pool = generator.standard_exponential((images, passes, classes), dtype=np.float32)
    pool /= pool.sum(axis=-1, keepdims=True)
    return pool


def _softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.floating[Any]] = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares
