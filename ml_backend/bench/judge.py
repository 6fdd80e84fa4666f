"""How much a batch tells about the network: one estimator for everybody's batches.

Written apart from ``acquisition.batches``, so that no mistake there can please the judge.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64

__all__ = ["Information", "joint_information"]

_CHUNK = 8192  # labellings at once: 6.5 MB a matrix at T = 100


class Information(NamedTuple):
    """Nats, with the standard error of the estimate: 0 where every labelling was enumerated."""

    nats: float
    standard_error: float


def joint_information(
    probs: Float64[npt.NDArray[np.floating], "picks passes classes"], configurations: int = 40_000, seed: int = 0
) -> Information:
    """Mutual information of the labels of a batch and the network, ``I(y_1 .. y_b; w)``.

    The T passes are T equally probable networks, so that ``I = log T - E_y H(w | y)``: what remains unknown about the
    network once a labelling is known. Exact where all ``classes ** picks`` labellings are no more than
    ``configurations``; otherwise equally many labellings are drawn from each network, which makes the estimate
    unbiased and keeps it between 0 and ``log T``.

    Args:
        probs: softmax outputs of the picked images; each row sums to 1.
        configurations: labellings to draw at least.
        seed: of the drawn labellings: judge all batches of a comparison by the same.

    Returns:
        The information in nats and its standard error.

    Raises:
        ValueError: no pick, or no configuration.
    """
    picks, passes, classes = probs.shape
    if picks < 1 or configurations < 1:
        raise ValueError(f"at least 1 pick and 1 configuration are needed, got {picks} and {configurations}")
    exact = np.asarray(probs, dtype=np.float64)
    exact = exact / exact.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_probs = np.log(exact)
    if classes**picks <= configurations:
        log_joint = _log_joint(log_probs, np.indices((classes,) * picks).reshape(picks, -1).T)
        doubt = _posterior_entropy(log_joint)
        shares = np.exp(log_joint).mean(axis=1)
        return Information(math.log(passes) - float(shares @ doubt), 0.0)
    each = -(-configurations // passes)
    labellings = _draw(exact, each, np.random.default_rng(seed))
    parts = [_posterior_entropy(_log_joint(log_probs, part)) for part in _chunks(labellings)]
    doubts = np.concatenate(parts).reshape(passes, each)
    # The strata are fixed: only the spread within a network's labellings is sampling error.
    error = math.sqrt(float(doubts.var(axis=1, ddof=1).mean()) / doubts.size) if each > 1 else math.inf
    return Information(math.log(passes) - float(doubts.mean()), error)


def _draw(
    probs: Float64[npt.NDArray[np.float64], "picks passes classes"], each: int, generator: np.random.Generator
) -> Int64[npt.NDArray[np.int64], "labellings picks"]:
    """``each`` labellings of every network, those of one network together."""
    picks, passes, classes = probs.shape
    thresholds = probs.cumsum(axis=-1)[..., :-1]
    uniform = generator.random((passes, each, picks))
    labels = np.zeros(uniform.shape, dtype=np.int64)
    for label in range(classes - 1):
        labels += uniform >= thresholds[:, :, label].T[:, None, :]
    return labels.reshape(-1, picks)


def _chunks(labellings: Int64[npt.NDArray[np.int64], "labellings picks"]) -> list[npt.NDArray[np.int64]]:
    return [labellings[start : start + _CHUNK] for start in range(0, len(labellings), _CHUNK)]


def _log_joint(
    log_probs: Float64[npt.NDArray[np.float64], "picks passes classes"],
    labellings: Int64[npt.NDArray[np.int64], "labellings picks"],
) -> Float64[npt.NDArray[np.float64], "labellings passes"]:
    total = np.zeros((len(labellings), log_probs.shape[1]))
    for pick, labels in enumerate(labellings.T):
        total += log_probs[pick].T[labels]
    return total


def _posterior_entropy(
    log_joint: Float64[npt.NDArray[np.float64], "labellings passes"],
) -> Float64[npt.NDArray[np.float64], " labellings"]:
    """``H(w | y)`` of each labelling; 0 for one that no network thinks possible, which weighs nothing."""
    best = log_joint.max(axis=1, keepdims=True)
    relative = np.where(np.isfinite(best), log_joint - np.where(np.isfinite(best), best, 0.0), 0.0)
    weights = np.exp(relative)
    total = weights.sum(axis=1)
    # Σ p log p with 0 log 0 = 0: where the weight underflows to 0 so does its share.
    spread = np.where(weights > 0, weights * np.where(weights > 0, relative, 0.0), 0.0).sum(axis=1)
    entropy: npt.NDArray[np.float64] = np.log(total) - spread / total
    return entropy
