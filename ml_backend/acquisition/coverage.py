"""Batches that cover the pool, or its uncertain images: facility location, MaxHerding and Uncertainty Herding."""

import heapq
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ml_backend.acquisition.diversity import computable, in_one_order, nearest, of_length_1
from ml_backend.acquisition.inputs import AcquisitionInputs, Selection, float_tensor, given, one_thread
from ml_backend.acquisition.pointwise import margin
from ml_backend.registry import acquisition_function

MOST_IMAGES: Final = 8192
"""That are compared with each other: their kernel takes 256 MiB, and some seconds of one core at 2,048 dims."""
_BLOCK: Final = 512
"""Rows of the kernel in one matrix product."""
FIRST_WIDTH: Final = 1.0
"""Of the kernel, while no two labelled images differ: MaxHerding's, for features of length 1."""
_COPIES = 1e-5
"""Distance up to which two labelled images count as copies of each other."""
_MOST_LABELLED = 4096
"""Labelled images that are compared with each other."""
_SAMPLE: Final = 512
"""Images whose nearest neighbour is looked for."""
_LEAST_WIDTH: Final = 0.01
"""Where most images are copies."""


def facility_location(
    features: Float[Tensor, "images dims"],
    batch_size: int,
    *,
    ties: Int64[npt.NDArray[np.int64], " images"],
    width: float,
    weights: Float[npt.NDArray[np.floating], " images"] | None = None,
    covered: Float[Tensor, "covered dims"] | None = None,
) -> Selection:
    """Select, one after another, the image that adds most to the coverage of the pool.

    The gain of image x is ``sum_i w_i max(0, k(x_i, x) - m_i)``, with ``m_i`` the largest kernel value of image i with
    what is covered or picked already, and ``k(x, y) = exp(-|x - y|² / width²)`` on features of length 1. The gain of
    an image never grows from pick to pick, so that only the images at the top are computed anew (lazy greedy), with the
    same picks.

    In a pool above ``MOST_IMAGES``, a random part of that size, the first in ``ties``, stands for all: its images are
    compared with each other, and the others follow with the score 0.

    Args:
        features: of the pool; they are brought to length 1.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins. Images are added up in that order, so
            that their order of arrival has no influence.
        width: of the kernel, a distance between features of length 1 (0 to 2); above 0.
        weights: of the images in the gain, 0 or more; 1 by default.
        covered: features of the images that are covered from the start, such as the labelled ones; None or empty where
            there are none.

    Returns:
        Picks in order. Scores are the gains: of a pick when it was picked, of the others after the last pick; 0 to the
        sum of the weights.

    Raises:
        ValueError: the width is not above 0, or a weight is negative or not finite.

    Source:
        Bae, Noh & Sutherland 2024, arXiv:2407.12212 (MaxHerding); with weights, Bae, Sutherland & Oliveira 2025,
        arXiv:2412.20644 (UHerding). Lazy evaluation: Minoux 1978.
    """
    if not width > 0.0:
        raise ValueError(f"width must be above 0, got {width}: take a distance between features of length 1")
    rows = computable(features, "features")
    order = np.argsort(ties)[:MOST_IMAGES]
    part = of_length_1(rows[torch.from_numpy(order).to(rows.device)])
    shares = np.ones(len(part)) if weights is None else np.asarray(weights, dtype=np.float64)[order]
    if not (np.isfinite(shares).all() and (shares >= 0.0).all()):
        raise ValueError("weights must be finite and 0 or more")
    with one_thread():
        kernel = _kernel(part, width)
        most = np.zeros(len(part), dtype=np.float32)
        if covered is not None and len(covered) and len(part):
            known = of_length_1(in_one_order(float_tensor("covered", covered).to(part)))
            most = torch.exp(nearest(part, known) / -(width**2)).float().cpu().numpy()
        picks, gains = _greedy(kernel, most, shares, batch_size)
    scores = np.zeros(len(rows))
    scores[order] = gains
    return Selection(torch.from_numpy(order[picks]), torch.from_numpy(scores))


def _kernel(rows: Float[Tensor, "images dims"], width: float) -> Float32[npt.NDArray[np.float32], "images images"]:
    # About their mean the products are small, and cancel less.
    about = rows - rows.mean(dim=0)
    lengths = about.square().sum(dim=1)
    kernel = np.empty((len(rows), len(rows)), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = about[start : start + _BLOCK]
        squared = torch.addmm(lengths, block, about.T, alpha=-2.0) + lengths[start : start + _BLOCK, None]
        kernel[start : start + _BLOCK] = squared.clamp_(min=0.0).div_(-(width**2)).exp_().float().cpu().numpy()
    np.fill_diagonal(kernel, 1.0)
    return kernel


def _greedy(
    kernel: Float32[npt.NDArray[np.float32], "images images"],
    most: Float32[npt.NDArray[np.float32], " images"],
    weights: Float[npt.NDArray[np.float64], " images"],
    batch_size: int,
) -> tuple[list[int], Float[npt.NDArray[np.float64], " images"]]:
    """Picks in order, and the gain of every image; of level ones the first is picked."""

    # Summed one row at a time, in one order: the gain of an image falls from pick to pick to the last bit.
    def gain(image: int) -> float:
        return float(np.sum(np.maximum(kernel[image] - most, 0.0) * weights))

    waiting = [(-gain(image), image) for image in range(len(kernel))]
    heapq.heapify(waiting)
    picks: list[int] = []
    gains = np.zeros(len(kernel))
    while waiting and len(picks) < batch_size:
        image = waiting[0][1]
        now = (-gain(image), image)
        heapq.heapreplace(waiting, now)
        if waiting[0] != now:
            continue
        heapq.heappop(waiting)
        picks.append(image)
        gains[image] = -now[0]
        most = np.maximum(most, kernel[image])
    for _, image in waiting:
        gains[image] = gain(image)
    return picks, gains


def neighbour_distance(features: Float[Tensor, "images dims"], ties: Int64[npt.NDArray[np.int64], " images"]) -> float:
    """Median distance of an image to its nearest neighbour, between features of length 1: 0.01 to 2.

    Of the first 512 images in ``ties``, to the first ``MOST_IMAGES``; 1 where there are fewer than two images.
    """
    rows = computable(features, "features")
    if len(rows) < 2:
        return 1.0
    part = of_length_1(rows[torch.from_numpy(np.argsort(ties)[:MOST_IMAGES]).to(rows.device)])
    # About their mean the products are small, and cancel less.
    about = part - part.mean(dim=0)
    with one_thread():
        lengths = about.square().sum(dim=1)
        squared = torch.addmm(lengths, about[:_SAMPLE], about.T, alpha=-2.0) + lengths[:_SAMPLE, None]
    squared.fill_diagonal_(torch.inf)  # no image is its own neighbour
    return max(float(squared.min(dim=1).values.clamp_(min=0.0).sqrt_().median()), _LEAST_WIDTH)


def herding(
    features: Float[Tensor, "images dims"],
    batch_size: int,
    *,
    ties: Int64[npt.NDArray[np.int64], " images"],
    labelled_features: Float[Tensor, "labelled dims"] | None = None,
) -> Selection:
    """Select the images that represent most of the pool that no labelled image represents.

    ``facility_location`` with a kernel as wide as the median image is far from its nearest neighbour.

    Args:
        features: of the pool; they are brought to length 1.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins.
        labelled_features: of the images that have a label; None or empty where there are none.

    Returns:
        Picks in order. Scores in images: the similarity, 0 to 1 each, that an image adds over the pool.

    Source:
        Bae, Noh & Sutherland 2024, arXiv:2407.12212; there the width is fixed at 1.
    """
    width = neighbour_distance(features, ties)
    return facility_location(features, batch_size, ties=ties, width=width, covered=labelled_features)


@acquisition_function(
    "herding",
    summary="images that represent most of the pool that no labelled image represents; needs no labels",
    unit="images",
    range="0 .. images of the pool: similarity that it adds, summed over the pool; for the rest, after all picks",
    requires=frozenset({"features"}),
    source="Bae, Noh & Sutherland 2024, arXiv:2407.12212",
    batch=True,
)
def rank_herding(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``herding``; then the rest, by what each would add."""
    features = given(inputs.features, "features", "herding")
    return herding(features, batch_size, ties=inputs.ties(seed), labelled_features=inputs.labelled_features)


@acquisition_function(
    "uherding",
    summary="uncertain images that together lie near to all other uncertain images",
    unit="covered images, each counted by its margin score",
    range="0 .. images of the pool: gain over labelled images and earlier picks; for the rest, after all picks",
    requires=frozenset({"probs", "features"}),
    source="Bae, Sutherland & Oliveira 2025, arXiv:2412.20644",
    batch=True,
)
def rank_uherding(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``uherding``, then the rest, by what each would add."""
    probs, features = given(inputs.probs, "probs", "uherding"), given(inputs.features, "features", "uherding")
    ties = inputs.ties(seed)
    return uherding(probs, features, batch_size, ties=ties, labelled_features=inputs.labelled_features)


def uherding(
    probs: Float[Tensor, "images passes classes"],
    features: Float[Tensor, "images dims"],
    batch_size: int,
    *,
    ties: Int64[npt.NDArray[np.int64], " images"],
    labelled_features: Float[Tensor, "labelled dims"] | None = None,
) -> Selection:
    """Select, one after another, the image that adds most to the coverage of the uncertain images.

    ``facility_location`` with ``margin`` as the weights and the labelled images covered. The kernel is as wide as the
    two most similar labelled images are apart: with few labels wide, so that the batch spreads over the pool; with many
    narrow, so that it nears the most uncertain images.

    Unlike the paper's, the probabilities are not scaled by a temperature: the mean over the passes is used as it is.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        features: of the pool; they are brought to length 1.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins.
        labelled_features: of the images that have a label; None or empty where there are none.

    Returns:
        Picks in order. Scores are gains, in images that are covered anew, each counted by its margin score: 0 to the
        number of images; see ``facility_location``, also for pools above ``coverage.MOST_IMAGES``.

    Source:
        Bae, Sutherland & Oliveira 2025, arXiv:2412.20644, algorithm 1.
    """
    width = FIRST_WIDTH if labelled_features is None else kernel_width(labelled_features)
    weights = margin(probs).cpu().numpy()
    return facility_location(features, batch_size, ties=ties, width=width, weights=weights, covered=labelled_features)


def kernel_width(labelled_features: Float[Tensor, "labelled dims"]) -> float:
    """Smallest distance between two labelled images that are not copies of each other, at length 1.

    Above 4,096 labelled images, an arbitrary part of that size stands for all.

    Returns:
        Above 0, at most 2; 1 where no two images differ.
    """
    # In float64, so that the product of two copies cancels.
    rows = of_length_1(in_one_order(computable(labelled_features, "labelled_features"))[:_MOST_LABELLED].double())
    least = torch.inf
    with one_thread():
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            squared = 2.0 - 2.0 * (block @ rows.T)
            apart = squared[squared > _COPIES**2]
            least = min(least, float(apart.min())) if len(apart) else least
    return float(np.sqrt(least)) if np.isfinite(least) else FIRST_WIDTH
