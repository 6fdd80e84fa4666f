"""Images by what their label would say about the predictions for the others: EPIG."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ml_backend.acquisition.inputs import AcquisitionInputs, float_tensor, given, one_thread
from ml_backend.registry import acquisition_function
from ml_backend.seeding import seeded_order

_TARGETS = 1024
"""Images that stand for the pool; constant, so that the ranking does not depend on the machine."""

_BLOCK_ELEMENTS = 1 << 17
"""Pairs of image and target at once: 512 KiB of float32 a matrix stay in the cache."""

_LEAST = 1e-7
"""Of a joint probability over the product of its margins: below it only rounding of float32 is left."""


@acquisition_function(
    "epig",
    summary="images whose label would say most about the labels of the other images of the pool",
    unit="nats",
    range="0 .. log C",
    min_passes=2,
    source="Bickford Smith, Kirsch, Farquhar, Gal, Foster & Rainforth 2023, arXiv:2304.08151",
    batch=True,
)
def rank_epig(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Float[Tensor, " images"]:
    """EPIG towards the pool, of which a uniform sample drawn by the ids stands for all; batch size has no influence."""
    del batch_size
    probs = given(inputs.probs, "probs", "epig")
    # In seeded order, however the pool arrives: a product's last bit depends on the place of its row.
    order = seeded_order(inputs.ids, seed)
    scores = torch.empty(len(probs), dtype=torch.float64)
    scores[torch.from_numpy(order)] = epig(probs, probs[order[:_TARGETS]], order=order)
    return scores


def epig(
    probs: Float[Tensor, "images passes classes"],
    targets: Float[Tensor, "targets passes classes"],
    *,
    order: Int64[npt.NDArray[np.int64], " images"] | None = None,
) -> Float[Tensor, " images"]:
    """Expected predictive information gain: what an image's label says about a target's, averaged over the targets.

    ``score(x) = mean_x* I(y; y* | x, x*)``, the mutual information of the joint prediction
    ``p(y, y*) = mean_t p_t(y | x) p_t(y* | x*)``. BALD counts everything that a label says about the weights; EPIG
    counts what changes a prediction that is wanted. An image unlike all others scores low.

    Computed as ``Σ_y,y* (p p* + k) log(1 + k / (p p*))`` with the covariance k of the two classes over the passes:
    of large numbers that nearly cancel, nothing is left in float32. One matrix product a pair of classes and block of
    images; memory beside the result is a few MiB.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1. Pass t must be the same network (one
            dropout mask) for every image, or their joint means nothing.
        targets: the same of the images whose predictions are wanted.
        order: in which the images are taken; scores come in this order. As they arrive by default.

    Returns:
        Scores in nats: 0 where the image's passes agree or say nothing about any target; at most the image's BALD
        score, and so ``log C`` for C classes. Errors of float32 stay below 1e-6.

    Raises:
        ValueError: fewer than 2 passes, no targets, or targets with other passes or classes.

    Source:
        Bickford Smith, Kirsch, Farquhar, Gal, Foster & Rainforth 2023, arXiv:2304.08151, equation 6.
    """
    probs, targets = float_tensor("probs", probs), float_tensor("targets", targets)
    if (passes := probs.shape[1]) < 2:
        raise ValueError(f"epig needs at least 2 passes, got {passes}: draw more, or rank by entropy")
    if targets.shape[1:] != probs.shape[1:] or (len(probs) and not len(targets)):
        needed = f"[1 or more, {passes} passes, {probs.shape[2]} classes]"
        raise ValueError(f"targets must be {needed} as probs, got {list(targets.shape)}")
    places = torch.arange(len(probs)) if order is None else torch.from_numpy(order)
    scores = torch.empty(len(probs), dtype=torch.float64)
    size = max(1, _BLOCK_ELEMENTS // max(1, len(targets)))
    with one_thread(), torch.inference_mode():
        wanted = _Predictions(targets)
        for start in range(0, len(probs), size):
            block = _Predictions(probs[places[start : start + size].to(probs.device)])
            scores[start : start + size] = _information(block, wanted).mean(dim=1, dtype=torch.float64).cpu()
    return scores.clamp_(min=0.0)


class _Predictions:
    """Predictions, laid out so that the covariances of two classes over the passes are one matrix product.

    Attributes:
        mean: [classes, images], over the passes.
        spread: [classes - 1, images, passes], distance of each pass from the mean, over the root of their number. That
            of the last class is what makes their sum 0.
    """

    def __init__(self, probs: Float[Tensor, "images passes classes"]) -> None:
        columns = probs.to(torch.promote_types(probs.dtype, torch.float32)).permute(2, 0, 1)
        self.mean = columns.mean(dim=2)
        spread = columns[:-1] - self.mean[:-1, :, None]
        self.spread = spread.div_(probs.shape[1] ** 0.5)


def _information(images: _Predictions, targets: _Predictions) -> Float[Tensor, "images targets"]:
    """Mutual information of every image with every target, in nats."""
    total = torch.zeros(images.mean.shape[1], targets.mean.shape[1], device=images.mean.device, dtype=images.mean.dtype)
    for mean, row in zip(images.mean, _covariances(images, targets), strict=True):
        for target_mean, covariance in zip(targets.mean, row, strict=True):
            independent = torch.outer(mean, target_mean).clamp_(min=torch.finfo(mean.dtype).tiny)
            ratio = (covariance / independent).clamp_(min=_LEAST - 1.0)
            total.addcmul_(independent.add_(covariance), ratio.log1p_())
    return total


def _covariances(images: _Predictions, targets: _Predictions) -> Iterator[Float[Tensor, "classes images targets"]]:
    """Of one class of the images after another with each class of the targets."""
    shape = len(targets.mean), images.mean.shape[1], targets.mean.shape[1]
    rest = torch.zeros(shape, dtype=images.mean.dtype, device=images.mean.device)
    for spread in images.spread:
        row = spread @ targets.spread.transpose(1, 2)
        row = torch.cat([row, -row.sum(dim=0, keepdim=True)])
        rest -= row
        yield row
    yield rest
