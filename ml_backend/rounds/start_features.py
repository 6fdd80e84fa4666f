"""The features that a typical order was made from: noted by where they are kept, and found again for a replay.

They are the backbone's as it was loaded, which the cache holds anyway: of 100,000 images of a ResNet50 they take
800 MB there, and the note of a round some 11 MB.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.images.cache import DiskCache
from ml_backend.model.features import FOLDER, cached_features
from ml_backend.predictions import ImageFeatures
from ml_backend.schemas import FrozenModel, natural_order

START_FEATURES: Final = "features"
"""The name under which the note stands in a round's folder."""


class FeaturesLost(Exception):
    """The features are no longer where they were, or others are; the message says of how many images."""


class Place(NamedTuple):
    """Where the features of an image are kept, and a digest of them."""

    key: str
    digest: str


class StartFeatures(FrozenModel):
    """Of every image that a typical order was made from, where its features are kept and what they were.

    Attributes:
        ending: what all keys end in after the image's own part: preprocessing, weights and arithmetic.
        kept: image id -> the rest of its key, a space, and the digest; pool and labelled images alike.
    """

    ending: str
    kept: dict[str, str]

    @classmethod
    def of(cls, places: Mapping[str, Place]) -> Self | None:
        """The note of these places; None where there are none."""
        if not places:
            return None
        endings = {"".join(place.key.partition("|")[1:]) for place in places.values()}
        ending = endings.pop() if len(endings) == 1 else ""
        in_order = sorted(places.items(), key=lambda one: natural_order(one[0]))
        return cls(
            ending=ending,
            kept={image_id: f"{place.key.removesuffix(ending)} {place.digest}" for image_id, place in in_order},
        )

    def place(self, image_id: str) -> Place:
        """Where the features of an image are kept.

        Raises:
            ValueError: the image is not noted, or not like that.
        """
        beginning, space, digest = self.kept.get(image_id, "").rpartition(" ")
        if not space:
            raise ValueError(f"image {image_id}: where its features are kept was not noted")
        return Place(beginning + self.ending, digest)


def places_of(seen: ImageFeatures) -> dict[str, Place]:
    """Where the features of images are kept; empty where they are not."""
    return {
        image_id: Place(key, _digest(row))
        for image_id, key, row in zip(seen.image_ids, seen.keys, seen.features, strict=bool(seen.keys))
    }


def found_again(
    note: StartFeatures, image_ids: Sequence[str], cache: Path
) -> Float32[npt.NDArray[np.float32], "images dims"]:
    """The features of noted images, to the bit as they were.

    Args:
        note: of the round.
        image_ids: at least one.
        cache: of the installation.

    Raises:
        FeaturesLost: some are not in the cache any more, or are others by now; all are looked at, and counted.
        ValueError: an image is not noted.
    """
    folder = DiskCache(cache / FOLDER)
    rows: list[npt.NDArray[np.float32]] = []
    gone: list[str] = []
    others: list[str] = []
    for image_id in image_ids:
        place = note.place(image_id)
        row = cached_features(folder, place.key)
        if row is None:
            gone.append(image_id)
        elif _digest(row) != place.digest:
            others.append(image_id)
        else:
            rows.append(row)
    if gone or others:
        told = [
            f"{len(ids)} of {len(image_ids)} {what} (image {ids[0]} first)"
            for ids, what in ((gone, "are not in the cache any more"), (others, "are others by now"))
            if ids
        ]
        raise FeaturesLost(" and ".join(told))
    return np.stack(rows)


def _digest(row: Float32[npt.NDArray[np.float32], " dims"]) -> str:
    return blake2b(np.ascontiguousarray(row, "<f4").data, digest_size=16).hexdigest()
