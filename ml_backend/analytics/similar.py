"""Images that resemble another, by the embedding that a round has kept; see ``rounds.embedding``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

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
    embedding: Embedding, image_id: str, labels: Mapping[str, str], most: int
) -> tuple[list[Neighbour], list[Neighbour]]:
    """The nearest images without a label, and those with one, nearest first; of equal ones the earlier.

    Exact: the image is compared with all others, which takes 0.05 s at 100,000 images.

    Args:
        embedding: of the project.
        image_id: of an image in it.
        labels: image id -> label, of the labelled images.
        most: images of each kind at most.

    Raises:
        ValueError: the embedding does not hold the image.
    """
    row = embedding.image_ids.index(image_id)
    components = embedding.components.astype(np.float32)
    lengths = np.sqrt(np.square(components).sum(axis=1)) + np.finfo(np.float32).tiny
    likeness = components @ (components[row] / lengths[row]) / lengths
    found: tuple[list[Neighbour], list[Neighbour]] = [], []
    for other in np.argsort(-likeness, kind="stable").tolist():
        name = embedding.image_ids[other]
        side = found[name in labels]
        if other != row and len(side) < most:
            side.append(Neighbour(name, float(likeness[other].clip(-1, 1)), labels.get(name)))
        if min(map(len, found)) == most:
            break
    return found


def neighbours_of(embedding: Embedding, image_ids: Sequence[str], unlabelled: Iterable[str], most: int) -> list[str]:
    """The nearest images of several: the first of each, then the second of each, at most ``most`` of either kind."""
    known = {*embedding.image_ids}
    labelled = dict.fromkeys(known.difference(unlabelled), "")
    sides = [side for one in image_ids if one in known for side in nearest(embedding, one, labelled, most)]
    return list(dict.fromkeys(one.image_id for place in zip_longest(*sides) for one in place if one))
