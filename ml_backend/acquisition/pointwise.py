"""Scores of single images: pure functions of the softmax outputs of the dropout passes.

Natural logarithms throughout, so information is in nats. Higher = label first. Never NaN: 0 log 0 = 0.
Every function returns float64, whatever the input: near its maximum the entropy is so flat that float32 ties images
which the margin still distinguishes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition.inputs import AcquisitionInputs, float_tensor
from ml_backend.registry import acquisition_function
from ml_backend.seeding import places, seeded_order

_CHUNK_ELEMENTS = 1 << 19
"""Of the passes at once: 2 MiB of float32 stay in the cache, and the memory needed does not grow with the pool."""

_CHUNK_IMAGES = 1 << 13
"""Mean predictions at once: small enough for the cache, large enough that starting a chunk costs nothing."""

_GROUP = 10
"""Passes from which a mean is subtracted at once: an inner loop over a few classes costs more than its work."""

_SMALL_STD = 1e-5
"""Below it the rounding of a float32 mean begins to count."""

_TINY = 1e-300
"""Stands in for 0 under a logarithm: finite, so that times 0 it is 0."""


@acquisition_function(
    "entropy",
    summary="uncertainty of the mean prediction, from the network and from ambiguous images alike",
    unit="nats",
    range="0 .. log C",
    source="Gal, Islam & Ghahramani 2017, arXiv:1703.02910",
)
def entropy(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Entropy of the mean prediction: total uncertainty, of the network and of ambiguous images.

    ``score(x) = H(p̄) = -Σ_c p̄_c log p̄_c``: of the mean over the passes, not the mean of their entropies.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in nats: 0 where p̄ is certain, at most ``log C`` for C classes.

    Source:
        Gal, Islam & Ghahramani 2017, arXiv:1703.02910, section 3 ("max entropy").
    """

    def of_mean(mean: Tensor) -> Tensor:
        information: Tensor = _sum_over_classes(mean.clamp(min=_TINY).log_().mul_(mean)).neg_()
        return information.clamp_(min=0.0)

    return _of_mean_prediction(probs, of_mean)


@acquisition_function(
    "least_confidence",
    summary="probability that the predicted class is wrong",
    unit="probability",
    range="0 .. 1 - 1/C",
    source="Lewis & Gale 1994, arXiv:cmp-lg/9407020",
)
def least_confidence(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Probability that the predicted class is wrong, according to the mean prediction.

    ``score(x) = 1 - max_c p̄_c``.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in probability units: 0 .. ``1 - 1/C``.

    Source:
        Lewis & Gale 1994, arXiv:cmp-lg/9407020.
    """
    return _of_mean_prediction(probs, lambda mean: 1.0 - _max_over_classes(mean))


@acquisition_function(
    "margin",
    summary="small difference between the probabilities of the two most probable classes",
    unit="probability",
    range="0 .. 1",
    source="Scheffer, Decomain & Wrobel 2001, doi:10.1007/3-540-44816-0_31",
)
def margin(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """One minus the difference between the probabilities of the two most probable classes.

    ``score(x) = 1 - (p̄_(1) - p̄_(2))``, with the two largest of the mean prediction.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in probability units: 0 if one class has probability 1, 1 if the two are equal.

    Source:
        Scheffer, Decomain & Wrobel 2001, doi:10.1007/3-540-44816-0_31.
    """

    def of_mean(mean: Tensor) -> Tensor:
        first, *others = mean.unbind(dim=0)
        second = torch.zeros_like(first)
        for column in others:
            second = torch.maximum(second, torch.minimum(first, column))
            first = torch.maximum(first, column)
        return 1.0 - (first - second)

    return _of_mean_prediction(probs, of_mean)


@acquisition_function(
    "mean_std",
    summary="disagreement of the passes: standard deviation of a class's probability, averaged over classes",
    unit="probability",
    range="0 .. sqrt(C - 1) / C",
    min_passes=2,
    source="Gal, Islam & Ghahramani 2017, arXiv:1703.02910",
)
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
    probs = _require_passes(probs, "mean_std")
    scores = []
    for chunk in _chunks(probs):
        deviations = _less_each(chunk, chunk.mean(dim=1))
        # Not E[p^2] - E[p]^2: it cancels below 0 in float32, and sqrt gives NaN.
        std = deviations.square_().mean(dim=1).T.double().sqrt_()
        mean = _sum_over_classes(std).div_(len(std))
        if (small := mean < _SMALL_STD).any():
            mean[small] = _small_mean_std(chunk[small])
        scores.append(mean)
    return torch.cat(scores)


def _small_mean_std(chunk: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    # Measured from the first pass: passes that agree give 0 exactly, which their rounded mean would not.
    deviations = chunk.double()
    deviations -= deviations[:, :1].clone()
    deviations -= deviations.mean(dim=1, keepdim=True)
    return _sum_over_classes(deviations.square_().mean(dim=1).T.sqrt()) / chunk.shape[2]


@acquisition_function(
    "bald",
    summary="mutual information between the label and the weights: confident passes that disagree",
    unit="nats",
    range="0 .. log C",
    min_passes=2,
    source="Houlsby, Huszár, Ghahramani & Lengyel 2011, arXiv:1112.5745",
)
def bald(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Mutual information between the label and the network's weights: large where confident passes disagree.

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
    probs = _require_passes(probs, "bald")
    scores = []
    for chunk in _chunks(probs, _CHUNK_ELEMENTS // 2):  # in float64 they take twice the cache
        # float32 would leave noise of 1e-7, as large as the information that many passes of a sure network hold.
        p = chunk.double()
        log_mean = p.mean(dim=1).clamp_(min=_TINY).log_()
        divergence = _less_each(p.clamp(min=_TINY).log_(), log_mean).mul_(p)
        scores.append(divergence.sum(dim=(1, 2)).div_(p.shape[1]).clamp_(min=0.0))
    return torch.cat(scores)


@acquisition_function(
    "variation_ratios",
    summary="fraction of the passes that disagree with the majority",
    unit="fraction of the passes",
    range="0 .. 1 - 1/C",
    min_passes=2,
    source="Freeman 1965; Gal, Islam & Ghahramani 2017, arXiv:1703.02910",
)
def variation_ratios(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """Fraction of the passes that disagree with the majority.

    ``score(x) = 1 - max_c (votes for c) / T``, where each pass votes for its most probable class. By votes: on the mean
    prediction it would equal ``least_confidence``. Classes that tie within a pass share its vote, so that the order
    of the classes has no influence.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores as a fraction of the passes: 0 if all agree, at most ``1 - 1/C``. T passes give few distinct values, so
        ties are common.

    Raises:
        ValueError: fewer than 2 passes; every score would be 0 and the ranking silently the pool's own order.

    Source:
        Freeman 1965, "Elementary Applied Statistics"; for dropout passes Gal, Islam & Ghahramani 2017,
        arXiv:1703.02910, section 3.
    """
    probs = _require_passes(probs, "variation_ratios")
    scores = []
    for chunk in _chunks(probs):
        columns = chunk.unbind(dim=-1)
        largest = _max_over_classes(columns)
        votes = torch.stack([(column == largest).sum(dim=1) for column in columns]).double()
        most = _max_over_classes(votes)
        if (shared := _sum_over_classes(votes) > chunk.shape[1]).any():
            level = (chunk[shared] == largest[shared][..., None]).double()
            most[shared] = (level / level.sum(dim=-1, keepdim=True)).sum(dim=1).amax(dim=-1)
        scores.append(1.0 - most / chunk.shape[1])
    return torch.cat(scores)


@acquisition_function(
    "random",
    summary="seeded random order, stable when images join or leave the pool; the baseline",
    unit="place",
    range="above 0 .. 1",
    requires=frozenset(),
    source="none (baseline)",
    batch=True,
)
def random(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Float[Tensor, " images"]:
    """Scores of the seeded random order of the ids; predictions are ignored."""
    del batch_size
    order = torch.from_numpy(seeded_order(inputs.ids, seed))
    scores = torch.empty(len(order), dtype=torch.float64)
    scores[order] = torch.from_numpy(places(len(order)))
    return scores


def _of_mean_prediction(
    probs: Float[Tensor, "images passes classes"],
    score: Callable[[Float[Tensor, "classes chunk"]], Float[Tensor, " chunk"]],
) -> Float[Tensor, " images"]:
    """Scores of the mean prediction, in float64 and its rounding made good: the classes sum to 1 to the last digit."""
    probs = _require_shape(probs)
    dtype = torch.promote_types(probs.dtype, torch.float32)
    scores = torch.empty(len(probs), dtype=torch.float64, device=probs.device)
    for chunk, place in zip(torch.split(probs, _CHUNK_IMAGES), torch.split(scores, _CHUNK_IMAGES), strict=True):
        total = chunk.sum(dim=1, dtype=dtype)
        mean = torch.empty(chunk.shape[2], len(chunk), dtype=torch.float64, device=probs.device).copy_(total.T)
        place.copy_(score(mean.div_(_sum_over_classes(mean))))
    return scores


# Class by class: over an axis this short, a reduction costs more than its work. Nor may an image's place in the pool
# decide in which order torch adds up its classes.


def _max_over_classes(columns: Sequence[Tensor] | Tensor) -> Tensor:
    return reduce(torch.maximum, columns)


def _sum_over_classes(columns: Sequence[Tensor] | Tensor) -> Tensor:
    return reduce(torch.add, columns)


def _less_each(
    passes: Float[Tensor, "images passes classes"], row: Float[Tensor, "images classes"]
) -> Float[Tensor, "images passes classes"]:
    """Each pass of an image, less one row of that image."""
    images, count, classes = passes.shape
    grouped = count - count % _GROUP
    less = torch.empty_like(passes, memory_format=torch.contiguous_format)
    if grouped:
        shape = images, grouped // _GROUP, _GROUP * classes
        rows = row[:, None].expand(-1, _GROUP, -1).reshape(images, 1, _GROUP * classes)
        torch.sub(passes[:, :grouped].reshape(shape), rows, out=less[:, :grouped].view(shape))
    torch.sub(passes[:, grouped:], row[:, None], out=less[:, grouped:])
    return less


def _chunks(
    probs: Float[Tensor, "images passes classes"], elements: int = _CHUNK_ELEMENTS
) -> Iterator[Float[Tensor, "chunk passes classes"]]:
    images = max(1, elements // (probs.shape[1] * probs.shape[2]))
    dtype = torch.promote_types(probs.dtype, torch.float32)
    return (chunk.to(dtype) for chunk in torch.split(probs, images))


def _require_passes(probs: Float[Tensor, "images passes classes"], name: str) -> Tensor:
    probs = _require_shape(probs)
    if (passes := probs.shape[1]) < 2:
        raise ValueError(f"{name} needs at least 2 passes, got {passes}: draw more, or rank by entropy")
    return probs


def _require_shape(probs: Tensor) -> Tensor:
    """The passes without a gradient, contiguous: what follows writes in place."""
    probs = float_tensor("probs", probs)
    if probs.ndim != 3 or probs.shape[1] < 1 or probs.shape[2] < 2:
        raise ValueError(
            f"probs must be [images, passes, classes] with 1 pass and 2 classes or more, got {list(probs.shape)}"
        )
    return probs
