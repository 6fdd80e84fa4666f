"""Core-set: images that leave no part of the pool far from a labelled one."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ml_backend.acquisition.arrays import float_tensor
from ml_backend.acquisition.distances import computable, nearest, squared_distances
from ml_backend.acquisition.selection import Selection, largest

__all__ = ["core_set"]


def core_set(
    features: Float[Tensor, "images dims"],
    batch_size: int,
    *,
    ties: Int64[npt.NDArray[np.int64], " images"],
    labelled_features: Float[Tensor, "labelled dims"] | None = None,
) -> Selection:
    """Pick, again and again, the image farthest from every labelled image and from every pick before it.

    With no labelled image, the first pick is the image nearest the pool's mean. Memory is a few numbers an image.

    Args:
        features: of the pool; distances are Euclidean.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins.
        labelled_features: of the images that have a label; None or empty where there are none.

    Returns:
        Picks in order. Scores in units of the features: a pick's distance to its nearest centre at the time (falling
        from pick to pick; for a first pick without labels, the distance of the image farthest from it), and the
        distance of every other image to its nearest centre after the last pick.

    Source:
        Sener & Savarese 2018, arXiv:1708.00489, algorithm 1 (k-center greedy): the largest distance is at most twice
        that of the best possible batch.
    """
    rows = computable(features, "features")
    images = len(rows)
    if labelled_features is None or not len(labelled_features):
        least: npt.NDArray[np.float64] = np.full(images, np.inf)
    else:
        least = nearest(rows, float_tensor("labelled_features", labelled_features).to(rows)).cpu().numpy()
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < min(batch_size, images):
        alone = not picks and np.isinf(least).all()
        pick = largest(-_from_mean(rows) if alone else least, ties)
        distances = squared_distances(rows, rows[pick]).cpu().numpy()
        gains.append(float(distances.max() if alone else least[pick]))
        least = np.minimum(least, distances)
        picks.append(pick)
        least[picks] = -1.0  # below an image that a centre covers exactly
    squared = least.clip(min=0.0)
    squared[picks] = gains
    return Selection(torch.tensor(picks, dtype=torch.int64), torch.from_numpy(np.sqrt(squared)))


def _from_mean(rows: Float[Tensor, "images dims"]) -> Float[npt.NDArray[np.float64], " images"]:
    # In float64: the mean must not depend on the order in which the images arrive.
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, 1024):
        total += part.double().sum(dim=0)
    return squared_distances(rows, (total / len(rows)).to(rows.dtype)).cpu().numpy()
