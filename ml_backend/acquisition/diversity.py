"""Batches spread over the pool's features or gradients: core-set, BADGE and TypiClust.

Distances are bounded in memory, and equal to the last bit at any position in the pool.
"""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt64
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ml_backend.acquisition.inputs import (
    AcquisitionInputs,
    Gradients,
    Selection,
    float_tensor,
    given,
    largest,
    one_thread,
)
from ml_backend.registry import acquisition_function
from ml_backend.seeding import gumbel, redrawn, seeded_draws

_CHUNK_ELEMENTS = 1 << 18
"""Of the features at once: 1 MiB of float32 stays in the cache."""

_CENTRES = 1024
"""Centres in one matrix product."""


def computable(rows: Float[Tensor, "rows dims"], name: str = "rows") -> Float[Tensor, "rows dims"]:
    """The rows without a gradient, in float32 or better: squares of half precision overflow at 256."""
    rows = float_tensor(name, rows)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def squared_lengths(rows: Float[Tensor, "rows dims"]) -> Float[Tensor, " rows"]:
    """|x|² of each row, in float64."""
    return squared_distances(rows, rows.new_zeros(rows.shape[1]))


def squared_distances(rows: Float[Tensor, "rows dims"], centre: Float[Tensor, "*rows dims"]) -> Float[Tensor, " rows"]:
    """|x - c|² of each row to one centre, or to a centre of its own; in float64.

    By differences and row by row, not by the product ``|x|² - 2 x·c + |c|²``: copies lie at 0 exactly, and no thread
    count or place in the pool changes a bit.

    Args:
        rows: in float32 or float64.
        centre: one row, or as many as ``rows``.
    """
    size = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    centres = centre.expand_as(rows)
    distances = rows.new_empty(len(rows), dtype=torch.float64)
    apart = rows.new_empty(
        min(size, len(rows)), rows.shape[1]
    )  # one buffer: small results between many fragment memory
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        torch.sub(part, centres[start : start + size], out=apart[: len(part)])
        distances[start : start + size] = apart[: len(part)].square_().sum(dim=1)
    return distances


def nearest(rows: Float[Tensor, "rows dims"], centres: Float[Tensor, "centres dims"]) -> Float[Tensor, " rows"]:
    """Squared distance of each row to its nearest centre, in float64.

    Which centre is nearest comes from matrix products, how far it is from the difference: the product's last bit,
    which depends on the machine, decides only between centres that lie level.

    Args:
        rows: in float32 or float64.
        centres: 1 or more, of the same type.
    """
    # About the centres' mean the products are small, and cancel less.
    middle = centres.mean(dim=0)
    about = [(block - middle, start) for start, block in _blocks(centres)]
    size = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    distances = rows.new_empty(len(rows), dtype=torch.float64)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        least = part.new_full((len(part),), torch.inf)
        winner = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        for block, start in about:
            values, places = torch.addmm(block.square().sum(dim=1), part - middle, block.T, alpha=-2.0).min(dim=1)
            winner = torch.where(values < least, places + start, winner)
            least = torch.minimum(values, least)
        distances[first : first + size] = squared_distances(part, centres[winner])
    return distances


def _blocks(centres: Tensor) -> list[tuple[int, Tensor]]:
    return [(start, centres[start : start + _CENTRES]) for start in range(0, len(centres), _CENTRES)]


def core_set(
    features: Float[Tensor, "images dims"],
    batch_size: int,
    *,
    ties: Int64[npt.NDArray[np.int64], " images"],
    labelled_features: Float[Tensor, "labelled dims"] | None = None,
) -> Selection:
    """Select, one after another, the image farthest from all labelled images and earlier picks.

    With no labelled image, the first pick is the image nearest the pool's mean. Memory is a few numbers per image.

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


@acquisition_function(
    "core_set",
    summary="images that cover the pool, so that none is far from a labelled one; ignores predictions",
    unit="feature distance",
    range="0 or more: distance to the nearest labelled image or earlier pick; for the rest, after all picks",
    requires=frozenset({"features"}),
    source="Sener & Savarese 2018, arXiv:1708.00489",
    batch=True,
)
def rank_core_set(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``core_set``, then the rest, farthest from any centre first."""
    features = given(inputs.features, "features", "core_set")
    return core_set(features, batch_size, ties=inputs.ties(seed), labelled_features=inputs.labelled_features)


def badge(
    gradients: Gradients,
    batch_size: int,
    *,
    draws: UInt64[npt.NDArray[np.uint64], " images"],
    ties: Int64[npt.NDArray[np.int64], " images"],
) -> Selection:
    """Seed k-means++ on the last layer's gradients: long ones are likely, and none is near another.

    The first pick is the longest gradient; each pick after it is drawn with a probability proportional to the squared
    distance D² to the nearest pick before it. Drawn as the largest ``log D² + Gumbel noise``, each image with noise
    of its own: a running sum's last bit, which depends on the thread count, would move every draw behind it.

    The gradients are never written out, since ``<g_i, g_j> = <residuals_i, residuals_j> <hidden_i, hidden_j>``: memory
    is a few numbers an image.

    Args:
        gradients: of the pool, in factors.
        batch_size: images to pick; a smaller pool is picked whole.
        draws: one uniform draw an image, from which the noise of every pick is made.
        ties: place of each image in the order that settles ties; the lower wins. Once every gradient left is that of a
            pick, it alone decides.

    Returns:
        Picks in order. Scores are squared gradient lengths: of the first pick its own, of the others D² when picked,
        of the rest D² after the last pick.

    Source:
        Ash, Zhang, Krishnamurthy, Langford & Agarwal 2020, arXiv:1906.03671, algorithm 1; the longest first as in the
        authors' code.
    """
    residuals, hidden = computable(gradients.residuals, "residuals"), computable(gradients.hidden, "hidden")
    sizes = squared_lengths(residuals), squared_lengths(hidden)
    lengths = sizes[0] * sizes[1]
    values = lengths.cpu().numpy()
    least: npt.NDArray[np.float64] = np.full(len(values), np.inf)
    picks: list[int] = []
    gains: list[float] = []
    for step in range(min(batch_size, len(hidden))):
        pick = largest(values, ties)
        gains.append(float(least[pick] if picks else values[pick]))
        picks.append(pick)
        inner = torch.ones_like(lengths)
        for rows, size in ((residuals, sizes[0]), (hidden, sizes[1])):
            # From the distance, so that the gradient of a copy lies at 0 exactly.
            inner *= (size + size[pick] - squared_distances(rows, rows[pick])) / 2
        apart = (lengths + lengths[pick] - 2 * inner).clamp(min=0.0).cpu().numpy()
        least = np.minimum(least, apart)
        least[picks] = -1.0
        values = _log(least) + gumbel(redrawn(draws, step))
    scores = least.clip(min=0.0)
    scores[picks] = gains
    return Selection(torch.tensor(picks, dtype=torch.int64), torch.from_numpy(scores))


def _log(squared: Float[npt.NDArray[np.float64], " images"]) -> Float[npt.NDArray[np.float64], " images"]:
    """A copy of a pick is drawn only when nothing else is left, a pick never again."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: npt.NDArray[np.float64] = np.where(squared > 0, np.log(squared), np.where(squared < 0, -np.inf, -1e300))
    return logs


@acquisition_function(
    "badge",
    summary="images whose gradients of the last layer are large and point in different directions",
    unit="squared gradient length",
    range="0 or more: squared distance to the nearest earlier pick (of the first pick, its squared length); "
    "for the rest, to the nearest pick",
    requires=frozenset({"gradients"}),
    source="Ash, Zhang, Krishnamurthy, Langford & Agarwal 2020, arXiv:1906.03671",
    batch=True,
)
def rank_badge(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``badge``; then the rest, by its distance to the nearest pick."""
    gradients = given(inputs.gradients, "gradients", "badge")
    return badge(gradients, batch_size, draws=seeded_draws(inputs.ids, seed, "badge "), ties=inputs.ties(seed))


MOST_IMAGES: Final = 100_000
"""Candidates of ``typiclust``: a random part of a larger pool."""
_MOST_CLUSTERS = 500
_FULL_KMEANS = 50
"""Clusters up to which k-means sees every image in every step; beyond, it takes them in small batches."""
_CLUSTERED = 1 << 15
"""Images of the pool that k-means sees; those of a larger pool go to the nearest centre."""
_PREDICTED = 1 << 13
"""Of these at once."""
_REFERENCES = 1 << 12
"""Images of a cluster among which neighbours are looked for; of a larger cluster, an even part."""
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
    """Cluster pool and labelled images together, and select the most typical image of each unlabelled cluster.

    Features are brought to length 1 and clustered by k-means into as many clusters as there are labelled images and
    picks (500 at most). Clusters are visited by how few of their images are labelled or picked, then by size, those
    below 5 images last; from each, the image of highest typicality is taken: 1 over its mean distance to its 20
    nearest neighbours (or all, in a smaller cluster). Beyond 32,768 images, k-means learns from a random part of that
    size; in a cluster of more than 4,096 images, the neighbours are those among an even part of that size. Beyond
    ``MOST_IMAGES``, a random part of the pool stands for all, the first in ``ties``; the others follow with score 0.

    Args:
        features: of the pool.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins. Images are clustered in that order,
            so that their order of arrival has no influence.
        seed: of k-means.
        labelled_features: of the images that have a label; None or empty where there are none.

    Returns:
        Picks in order. Scores are the typicality of every candidate within its cluster, in 1 / distance: above 0, at
        most 100,000, which is that of copies.

    Source:
        Hacohen, Dekel & Weinshall 2022, arXiv:2202.02794.
    """
    rows = computable(features, "features")
    if not len(rows):
        return Selection(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    order = np.argsort(ties)[:MOST_IMAGES]
    images = len(order)
    pool = _UnitRows(rows, order, rows[:0])
    if labelled_features is not None:
        pool.labelled = of_length_1(in_one_order(float_tensor("labelled_features", labelled_features).to(rows)))
    labelled = len(pool.labelled)
    with one_thread():
        clusters = _clusters(pool, min(batch_size, images) + labelled, seed)
        typicality = _typicality(pool, clusters)
    covered = np.bincount(clusters[images:], minlength=int(clusters.max()) + 1)
    picks = _visit(clusters[:images], typicality, covered, batch_size)
    scores = torch.zeros(len(rows), dtype=torch.float64)
    scores[torch.from_numpy(order)] = torch.from_numpy(typicality)
    return Selection(torch.from_numpy(order[picks]), scores)


@dataclass
class _UnitRows:
    """Rows of length 1, of the pool in one order and of the labelled images behind it; never all in memory at once."""

    rows: Float[Tensor, "images dims"]
    order: Int64[npt.NDArray[np.int64], " images"]
    labelled: Float[Tensor, "labelled dims"]

    def take(self, places: Int64[npt.NDArray[np.int64], " some"]) -> Float[Tensor, "some dims"]:
        """Those at these places, which rise."""
        images = len(self.order)
        split = int(np.searchsorted(places, images))
        rows = self.rows[torch.from_numpy(self.order[places[:split]]).to(self.rows.device)]
        return torch.cat([of_length_1(rows), self.labelled[places[split:] - images]])


def of_length_1(rows: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows dims"]:
    """The rows divided by their lengths; a row of zeros stays."""
    return torch.nn.functional.normalize(rows, dim=1)


def in_one_order(rows: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows dims"]:
    """Labelled images bear no ids here: ordered by their values."""
    values = rows.cpu().numpy()
    return rows[sorted(range(len(rows)), key=lambda i: values[i].tobytes())]


def _clusters(pool: _UnitRows, wanted: int, seed: int) -> Int64[npt.NDArray[np.int64], " all"]:
    images, every = len(pool.order), np.arange(len(pool.order) + len(pool.labelled))
    count = min(wanted, _MOST_CLUSTERS, len(every))
    # The first rows are images in seeded order, hence a random part of the pool.
    seen = every if images <= _CLUSTERED else np.append(every[:_CLUSTERED], every[images:])
    rows = pool.take(seen).cpu().numpy()
    if count > _FULL_KMEANS:
        model = MiniBatchKMeans(count, n_init=1, random_state=seed % 2**32)
    else:
        # Seeding costs several times what all of Lloyd's steps do, and needs no more than this.
        seeds, _ = kmeans_plusplus(rows[: _SEEDING_ROWS * count], count, random_state=seed % 2**32)
        model = KMeans(count, init=seeds, n_init=1)
    with warnings.catch_warnings():
        # Fewer distinct images than clusters: some clusters stay empty, and are never visited.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit(rows).labels_
    if len(seen) < len(every):
        blocks = np.split(every, range(_PREDICTED, len(every), _PREDICTED))
        labels = np.concatenate([model.predict(pool.take(block).cpu().numpy()) for block in blocks])
    return np.asarray(labels, dtype=np.int64)


def _typicality(
    pool: _UnitRows, clusters: Int64[npt.NDArray[np.int64], " all"]
) -> Float[npt.NDArray[np.float64], " images"]:
    images = len(pool.order)
    mean_distance = np.full(len(clusters), _FARTHEST)
    for cluster in np.unique(clusters[:images]):
        members = np.flatnonzero(clusters == cluster)
        if len(members) > 1:
            mean_distance[members] = _to_neighbours(pool, members)
    typicality: npt.NDArray[np.float64] = 1.0 / (mean_distance[:images] + _NO_DISTANCE)
    return typicality


def _to_neighbours(
    pool: _UnitRows, members: Int64[npt.NDArray[np.int64], " members"]
) -> Float[npt.NDArray[np.float64], " members"]:
    """Mean distance to the nearest neighbours within one cluster, or within an even part of a large one."""
    chosen = np.arange(0, len(members), max(1.0, len(members) / _REFERENCES)).astype(np.int64)[:_REFERENCES]
    about = pool.take(members[chosen])
    # About their mean the products are small, and cancel less.
    middle = about.mean(dim=0)
    about -= middle
    lengths = about.square().sum(dim=1)
    neighbours = min(_NEIGHBOURS, len(chosen) - 1)
    parts = []
    size = max(1, _BLOCK_ELEMENTS // len(about))
    for start in range(0, len(members), size):
        part = pool.take(members[start : start + size]) - middle
        squared = torch.addmm(lengths, part, about.T, alpha=-2.0) + part.square().sum(dim=1)[:, None]
        here = np.flatnonzero((chosen >= start) & (chosen < start + size))
        squared[chosen[here] - start, here] = torch.inf  # no image is its own neighbour
        parts.append(squared.topk(neighbours, largest=False).values.clamp_(min=0.0).sqrt_().double().mean(dim=1))
    return torch.cat(parts).cpu().numpy()


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


@acquisition_function(
    "typiclust",
    summary="the most typical image of each large cluster without a label; needs no labels",
    unit="1 / feature distance",
    range="0 .. 100,000: inverse of the mean distance to the nearest neighbours in its cluster",
    requires=frozenset({"features"}),
    source="Hacohen, Dekel & Weinshall 2022, arXiv:2202.02794",
    batch=True,
)
def rank_typiclust(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``typiclust``; then the rest, most typical first."""
    features = given(inputs.features, "features", "typiclust")
    ties = inputs.ties(seed)
    return typiclust(features, batch_size, ties=ties, seed=seed, labelled_features=inputs.labelled_features)
