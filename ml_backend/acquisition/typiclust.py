"""TypiClust: the most typical image of every large group that has no label yet. Needs no labels: the cold start."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from ml_backend.acquisition.arrays import float_tensor
from ml_backend.acquisition.distances import computable
from ml_backend.acquisition.selection import Selection

__all__ = ["typiclust"]

_MOST_CLUSTERS = 500
_FULL_KMEANS = 50
"""Clusters up to which k-means sees every image in every step; beyond, it takes them in small batches."""
_SEEDING_ROWS = 64
"""Images a cluster that k-means++ draws its first centres from."""
_NEIGHBOURS = 20
_SMALL_CLUSTER = 5
"""Below it a cluster counts as a handful of outliers."""
_NO_DISTANCE = 1e-5
"""Added to distances, so that the typicality of copies stays a number."""
_FARTHEST = 2.0
"""Between features of length 1: what an image without any neighbour is given."""
_BLOCK_ELEMENTS = 1 << 22
"""Of a cluster's distances at once: 16 MiB of float32."""


def typiclust(
    features: Float[Tensor, "images dims"],
    batch_size: int,
    *,
    ties: Int64[npt.NDArray[np.int64], " images"],
    seed: int = 0,
    labelled_features: Float[Tensor, "labelled dims"] | None = None,
) -> Selection:
    """Cluster pool and labelled images together, and pick the most typical image of each cluster without a label.

    Features are brought to length 1 and clustered by k-means into as many clusters as there are labelled images and
    picks (500 at most). Clusters are visited by how few of their images are labelled or picked, then by size, those
    below 5 images last; from each, the image of highest typicality is taken: 1 over its mean distance to its 20
    nearest neighbours (or all, in a smaller cluster).

    Args:
        features: of the pool.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins. Images are clustered in that order,
            so that their order of arrival decides nothing.
        seed: of k-means.
        labelled_features: of the images that have a label; None or empty where there are none.

    Returns:
        Picks in order. Scores are the typicality of every image within its cluster, in 1 / distance: above 0, at most
        100,000, which is that of copies.

    Source:
        Hacohen, Dekel & Weinshall 2022, arXiv:2202.02794.
    """
    rows = _of_length_1(computable(features, "features"))
    images = len(rows)
    if not images:
        return Selection(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    order = np.argsort(ties)
    rows = rows[torch.from_numpy(order).to(rows.device)]
    labelled = rows[:0]
    if labelled_features is not None:
        labelled = _of_length_1(_in_one_order(float_tensor("labelled_features", labelled_features).to(rows)))
    with _one_thread():
        clusters = _clusters(torch.cat([rows, labelled]), min(batch_size, images) + len(labelled), seed)
        typicality = _typicality(rows, labelled, clusters)
    covered = np.bincount(clusters[images:], minlength=int(clusters.max()) + 1)
    picks = _visit(clusters[:images], typicality, covered, batch_size)
    scores = torch.empty(images, dtype=torch.float64)
    scores[torch.from_numpy(order)] = torch.from_numpy(typicality)
    return Selection(torch.from_numpy(order[picks]), scores)


@contextmanager
def _one_thread() -> Iterator[None]:
    """K-means adds up its centres thread by thread: with more than one, their number would change the result."""
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _of_length_1(rows: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows dims"]:
    return torch.nn.functional.normalize(rows, dim=1)


def _in_one_order(rows: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows dims"]:
    """Labelled images bear no ids here: ordered by their values."""
    values = rows.cpu().numpy()
    return rows[sorted(range(len(rows)), key=lambda i: values[i].tobytes())]


def _clusters(rows: Float[Tensor, "rows dims"], wanted: int, seed: int) -> Int64[npt.NDArray[np.int64], " rows"]:
    count = min(wanted, _MOST_CLUSTERS, len(rows))
    with warnings.catch_warnings():
        # Fewer distinct images than clusters: some clusters stay empty, and are never visited.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = _kmeans(rows.cpu().numpy(), count, seed % 2**32)
    return np.asarray(labels, dtype=np.int64)


def _kmeans(rows: Float[npt.NDArray[np.floating], "rows dims"], count: int, seed: int) -> npt.NDArray[np.integer]:
    labels: npt.NDArray[np.integer]
    if count > _FULL_KMEANS:
        labels = MiniBatchKMeans(count, n_init=1, random_state=seed).fit_predict(rows)
    else:
        # The first rows are images in seeded order, hence a random part of the pool. Seeding costs several times what
        # all of Lloyd's steps do, and needs no more than this.
        seeds, _ = kmeans_plusplus(rows[: _SEEDING_ROWS * count], count, random_state=seed)
        labels = KMeans(count, init=seeds, n_init=1).fit_predict(rows)
    return labels


def _typicality(
    rows: Float[Tensor, "images dims"],
    labelled: Float[Tensor, "labelled dims"],
    clusters: Int64[npt.NDArray[np.int64], " all"],
) -> Float[npt.NDArray[np.float64], " images"]:
    both = torch.cat([rows, labelled])
    mean_distance = np.full(len(both), _FARTHEST)
    for cluster in np.unique(clusters[: len(rows)]):
        members = np.flatnonzero(clusters == cluster)
        if len(members) > 1:
            mean_distance[members] = _to_neighbours(both[torch.from_numpy(members).to(both.device)]).cpu().numpy()
    typicality: npt.NDArray[np.float64] = 1.0 / (mean_distance[: len(rows)] + _NO_DISTANCE)
    return typicality


def _to_neighbours(members: Float[Tensor, "members dims"]) -> Float[Tensor, " members"]:
    """Mean distance to the nearest neighbours within one cluster."""
    neighbours = min(_NEIGHBOURS, len(members) - 1)
    # About their mean the products are small, and cancel less.
    about = members - members.mean(dim=0)
    lengths = about.square().sum(dim=1)
    parts = []
    size = max(1, _BLOCK_ELEMENTS // len(about))
    for start in range(0, len(about), size):
        part = about[start : start + size]
        squared = torch.addmm(lengths, part, about.T, alpha=-2.0) + lengths[start : start + size, None]
        squared.diagonal(start).fill_(torch.inf)  # no image is its own neighbour
        parts.append(squared.topk(neighbours, largest=False).values.clamp_(min=0.0).sqrt_().double().mean(dim=1))
    return torch.cat(parts)


def _visit(
    clusters: Int64[npt.NDArray[np.int64], " images"],
    typicality: Float[npt.NDArray[np.float64], " images"],
    covered: Int64[npt.NDArray[np.int64], " clusters"],
    batch_size: int,
) -> list[int]:
    """Picks in order; ``covered`` counts the labelled images of each cluster."""
    sizes = np.bincount(clusters, minlength=len(covered)) + covered
    # Stable: among equals, the image first in the order of ties.
    waiting: dict[int, list[int]] = {int(cluster): [] for cluster in np.unique(clusters)}
    for image in np.argsort(-typicality, kind="stable")[::-1].tolist():
        waiting[int(clusters[image])].append(image)
    taken = covered.copy()
    picks: list[int] = []
    while waiting and len(picks) < batch_size:
        cluster = min(waiting, key=lambda c: (sizes[c] < _SMALL_CLUSTER, taken[c], -sizes[c], c))
        picks.append(waiting[cluster].pop())
        taken[cluster] += 1
        if not waiting[cluster]:
            del waiting[cluster]
    return picks
