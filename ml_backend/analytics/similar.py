"""Images that resemble another, by the embedding that a round has kept; see ``rounds.embedding``."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from ml_backend.storage.outputs import Embedding


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An image that resembles another.

    Attributes:
        likeness: cosine of the two images' components, -1 to 1; 1 where they look the same to the backbone.
        label: None where it has none yet.
    """

    image_id: str
    likeness: float
    label: str | None


def nearest(
    embedding: Embedding, image_id: str, labels: Mapping[str, str], most: int, left_out: Set[str] = frozenset()
) -> tuple[list[Neighbour], list[Neighbour]]:
    """The nearest images without a label, and those with one, nearest first; of equal ones the earlier.

    Exact: the image is compared with all others, which takes 0.03 s at 100,000 images.

    Args:
        embedding: of the project.
        image_id: of an image in it.
        labels: image id -> label, of the labelled images.
        most: images of each kind at most.
        left_out: ids of images that are not wanted.

    Raises:
        ValueError: the embedding does not hold the image.
    """
    [found] = _nearest(embedding, [embedding.image_ids.index(image_id)], labels, most, left_out)
    return found


def neighbours_of(embedding: Embedding, image_ids: Sequence[str], unlabelled: Iterable[str], most: int) -> list[str]:
    """The nearest images of several: the first of each, then the second of each, at most ``most`` of either kind."""
    rows = {name: row for row, name in enumerate(embedding.image_ids)}
    labelled = dict.fromkeys(rows.keys() - {*unlabelled}, "")
    found = _nearest(embedding, [rows[one] for one in image_ids if one in rows], labelled, most, frozenset())
    sides = [side for both in found for side in both]
    return list(dict.fromkeys(one.image_id for place in zip_longest(*sides) for one in place if one))


def _nearest(
    embedding: Embedding, rows: Sequence[int], labels: Mapping[str, str], most: int, left_out: Set[str]
) -> list[tuple[list[Neighbour], list[Neighbour]]]:
    """``nearest`` for the images of these rows."""
    ids = embedding.image_ids
    units = embedding.components.astype(np.float32)
    units /= np.sqrt(np.square(units).sum(axis=1, keepdims=True)) + np.finfo(np.float32).tiny
    kinds = np.array([-1 if name in left_out else name in labels for name in ids])

    def side(row: int, likeness: npt.NDArray[np.float32], kind: int) -> list[Neighbour]:
        others = np.flatnonzero(kinds == kind)
        others = others[others != row]
        if len(others) > most:
            least = np.partition(likeness[others], -most)[-most]
            others = others[likeness[others] >= least]
        others = others[np.argsort(-likeness[others], kind="stable")][:most]
        return [Neighbour(ids[one], float(likeness[one].clip(-1, 1)), labels.get(ids[one])) for one in others.tolist()]

    together = zip(rows, units[list(rows)] @ units.T, strict=True)
    return [(side(row, likeness, 0), side(row, likeness, 1)) for row, likeness in together]
