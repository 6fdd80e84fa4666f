"""How much each image would teach, judged alone: pure functions on the softmax outputs of the dropout passes.

Natural logarithms throughout, so information is in nats. Higher = label first. Never NaN: 0 log 0 = 0.
Every function returns float64, whatever comes in: near its maximum the entropy is so flat that float32 ties images
which the margin still tells apart.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["bald", "entropy", "least_confidence", "margin", "mean_std", "variation_ratios"]

Score = Callable[[Float[Tensor, "images passes classes"]], Float[Tensor, " images"]]

_CHUNK_ELEMENTS = 1 << 18
"""Of the passes at once: 1 MiB of float32 stays in the cache, and the memory needed does not grow with the pool."""

_TINY = 1e-300
"""Stands in for 0 under a logarithm: finite, so that times 0 it is 0."""


def entropy(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Uncertainty of the mean prediction, of whatever kind: the readers' doubt as well as the network's.

    ``score(x) = H(p̄) = -Σ_c p̄_c log p̄_c``: of the mean over the passes, not the mean of their entropies.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in nats: 0 where p̄ is certain, at most ``log C`` for C classes.

    Source:
        Gal, Islam & Ghahramani 2017, arXiv:1703.02910, section 3 ("max entropy").
    """
    terms: Tensor = torch.special.entr(_mean_over_passes(probs))
    return terms.sum(dim=-1)


def least_confidence(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Probability that the network's own answer is wrong, as the mean prediction has it.

    ``score(x) = 1 - max_c p̄_c``.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in probability units: 0 .. ``1 - 1/C``.

    Source:
        Lewis & Gale 1994, arXiv:cmp-lg/9407020.
    """
    return 1.0 - _mean_over_passes(probs).amax(dim=-1)


def margin(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """How close the two most probable classes lie.

    ``score(x) = 1 - (p̄_(1) - p̄_(2))``, with the two largest of the mean prediction.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in probability units: 0 where one class has all, 1 where the two lie level.

    Source:
        Scheffer, Decomain & Wrobel 2001, doi:10.1007/3-540-44816-0_31.
    """
    first, second = _mean_over_passes(probs).topk(2, dim=-1).values.unbind(dim=-1)
    return 1.0 - (first - second)


def mean_std(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Disagreement of the dropout passes, averaged over the classes.

    ``score(x) = mean_c std_w p(c | x, w)``, with the population std (divide by passes).

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in probability units: 0 where all passes agree, at most ``sqrt(C - 1) / C`` for C classes.

    Raises:
        ValueError: fewer than 2 passes; every score would be 0 and the ranking silently the pool's own order.

    Source:
        Gal, Islam & Ghahramani 2017, arXiv:1703.02910, section 3.
    """
    _require_passes(probs, "mean_std")
    scores = []
    for chunk in _chunks(probs):
        # Measured from the first pass: passes that agree give 0 exactly, which their rounded mean would not.
        deviations = chunk - chunk[:, :1]
        deviations -= deviations.mean(dim=1, keepdim=True)
        # Not E[p^2] - E[p]^2: it cancels below 0 in float32, and sqrt gives NaN.
        scores.append(deviations.square_().mean(dim=1).double().sqrt_().mean(dim=-1))
    return torch.cat(scores)


def bald(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """What the label would tell about the network's weights: large where single passes are sure but contradict.

    ``score(x) = I(y; w | x) = H(p̄) - mean_w H(p(· | x, w))``, computed as the mean divergence of the passes from
    their mean, ``mean_w Σ_c p_c (log p_c - log p̄_c)``: the same number, but nothing large is subtracted.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in nats: 0 where all passes agree, at most ``log C``, and at most ``log T`` for T passes.

    Raises:
        ValueError: fewer than 2 passes; every score would be 0 and the ranking silently the pool's own order.

    Source:
        Houlsby, Huszár, Ghahramani & Lengyel 2011, arXiv:1112.5745.
    """
    _require_passes(probs, "bald")
    scores = []
    for chunk in _chunks(probs):
        # float32 would leave noise of 1e-7, as large as the information that many passes of a sure network hold.
        p = chunk.double()
        log_mean = p.mean(dim=1, keepdim=True).clamp_(min=_TINY).log_()
        divergence = p.clamp(min=_TINY).log_().sub_(log_mean).mul_(p)
        scores.append(divergence.sum(dim=(1, 2)).div_(p.shape[1]).clamp_(min=0.0))
    return torch.cat(scores)


def variation_ratios(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Share of the passes that vote against the most voted class.

    ``score(x) = 1 - max_c (votes for c) / T``, where each pass votes for its most probable class. By votes: on the mean
    prediction it would be ``least_confidence`` again. Classes level within a pass share its vote, so that the order
    in which classes are listed decides nothing.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores as a share of the passes: 0 where all vote alike, at most ``1 - 1/C``. With T passes there are few
        distinct values, so that ties are the rule.

    Raises:
        ValueError: fewer than 2 passes; every score would be 0 and the ranking silently the pool's own order.

    Source:
        Freeman 1965, "Elementary Applied Statistics"; for dropout passes Gal, Islam & Ghahramani 2017,
        arXiv:1703.02910, section 3.
    """
    _require_passes(probs, "variation_ratios")
    scores = []
    for chunk in _chunks(probs):
        winners = chunk == _max_over_classes(chunk)[..., None]
        votes = torch.stack([won.sum(dim=1) for won in winners.unbind(dim=-1)], dim=-1).double()
        shared = votes.sum(dim=-1) > winners.shape[1]
        if shared.any():
            level = winners[shared].double()
            votes[shared] = (level / level.sum(dim=-1, keepdim=True)).sum(dim=1)
        scores.append(1.0 - votes.amax(dim=-1) / winners.shape[1])
    return torch.cat(scores)


def _mean_over_passes(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, "images classes"]:
    """The mean prediction in float64, its rounding made good: each row sums to 1 to the last digit."""
    _require_shape(probs)
    mean = probs.mean(dim=1, dtype=torch.promote_types(probs.dtype, torch.float32)).double()
    return mean / mean.sum(dim=-1, keepdim=True)


def _max_over_classes(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, "images passes"]:
    # amax over an axis this short is twice as slow as going class by class.
    columns = probs.unbind(dim=-1)
    largest = columns[0]
    for column in columns[1:]:
        largest = torch.maximum(largest, column)
    return largest


def _chunks(probs: Float[Tensor, "images passes classes"]) -> Iterator[Float[Tensor, "chunk passes classes"]]:
    images = max(1, _CHUNK_ELEMENTS // (probs.shape[1] * probs.shape[2]))
    dtype = torch.promote_types(probs.dtype, torch.float32)
    return (chunk.to(dtype) for chunk in torch.split(probs, images))


def _require_passes(probs: Float[Tensor, "images passes classes"], name: str) -> None:
    _require_shape(probs)
    if (passes := probs.shape[1]) < 2:
        raise ValueError(f"{name} needs at least 2 passes, got {passes}: draw more, or rank by entropy")


def _require_shape(probs: Tensor) -> None:
    if probs.ndim != 3 or probs.shape[1] < 1 or probs.shape[2] < 2:
        raise ValueError(
            f"probs must be [images, passes, classes] with 1 pass and 2 classes or more, got {list(probs.shape)}"
        )
