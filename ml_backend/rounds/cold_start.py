"""Rankings before the first network: a random order, or one by features of the pretrained backbone.

A round that ranks or seeks by such features records where the feature cache keeps them, with a digest of each, and
replay reads them from there: the features of 100,000 images take 800 MB, the record 11 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.acquisition import places, rank_by_features, seeded_order
from ml_backend.errors import UnusablePool
from ml_backend.images.cache import CacheTable
from ml_backend.model.data import FOLDER, cached_features
from ml_backend.predictions import ImageFeatures
from ml_backend.rounds.interfaces import Learner
from ml_backend.rounds.seek import seek
from ml_backend.schemas import Exclusion, FrozenModel, ImageRef, Label, Ranking, natural_order

START_FEATURES: Final = "features"
"""Name of the record of ``StartFeatures`` in a round's folder."""


CANDIDATES: Final = 10_000
"""Images that a start by features chooses from. The features of 100,000 images take hours on a CPU."""


def candidates(pool: Sequence[ImageRef], seed: int) -> list[ImageRef]:
    """The images that a start by features chooses from: the first ``CANDIDATES`` of the random order."""
    first = {int(row) for row in seeded_order([image.id for image in pool], seed)[:CANDIDATES]}
    return [image for row, image in enumerate(pool) if row in first]


def with_rest(ranking: Ranking, image_ids: Sequence[str], seed: int) -> Ranking:
    """A ranking of candidates, followed by the other images in the random order; their scores fall towards 0."""
    known = {*ranking.image_ids, *(one.image_id for one in ranking.exclusions)}
    if not (rest := [image_id for image_id in image_ids if image_id not in known]):
        return ranking
    order = random_order(rest, ranking.batch_size, seed)
    scores = (min(ranking.scores) * places(len(rest) + 1)[1:]).tolist()
    return ranking.model_copy(
        update={"image_ids": ranking.image_ids + order.image_ids, "scores": (*ranking.scores, *scores)}
    )


def random_order(image_ids: Sequence[str], batch_size: int, seed: int) -> Ranking:
    """A seeded random order of the pool, the same as that of the strategy ``random``.

    An image's place follows from the seed and its own id: the order does not depend on how the pool arrives, and images
    that are labelled or imported later leave the order of the others unchanged.

    Returns:
        Scores are places: distinct, falling, from 1 for the first, above 0.
    """
    return Ranking(
        strategy="random",
        image_ids=tuple(image_ids[i] for i in seeded_order(image_ids, seed)),
        scores=tuple(places(len(image_ids)).tolist()),
        batch_size=batch_size,
    )


@dataclass(frozen=True, slots=True)
class Embedded:
    """Features of the pretrained backbone: of the pool, and of the labelled images where there are any."""

    pool: ImageFeatures
    labelled: ImageFeatures | None

    @classmethod
    def by(cls, learner: Learner, labels: Sequence[Label], pool: Sequence[ImageRef]) -> Self:
        """Compute them, or read them from the learner's cache.

        Raises:
            UnusablePool: no image of the pool could be read.
            WeightsError, SettingsError, RoundError: see ``Learner.embed``.
        """
        embedded = learner.embed(pool)
        if not embedded.image_ids:
            raise unreadable_pool(len(pool), embedded.exclusions)
        return cls(embedded, learner.embed([label.image for label in labels]) if labels else None)

    def rank(self, strategy: str, batch_size: int, seed: int) -> Ranking:
        """The order of ``typiclust`` or ``herding``; what resembles a labelled image counts as covered."""
        covered = None if self.labelled is None else self.labelled.features
        return rank_by_features(strategy, self.pool, covered, batch_size, seed)

    def seek(self, ranking: Ranking, labels: Sequence[Label], sought: Sequence[str]) -> Ranking:
        """See ``rounds.seek``."""
        return ranking if self.labelled is None else seek(ranking, self.pool, self.labelled, labels, sought)

    def record(self) -> "StartFeatures | None":
        """Where the features are cached; None where the learner does not cache them."""
        return StartFeatures.of(self.pool, *([] if self.labelled is None else [self.labelled]))


def unreadable_pool(images: int, exclusions: Sequence[Exclusion]) -> UnusablePool:
    """The error of a pool of which no image could be read."""
    return UnusablePool(f"none of the {images} unlabelled images could be read; the first: {exclusions[0].reason}")


class FeaturesLost(Exception):
    """Cached features are gone or have changed; the message says of how many images."""


class StartFeatures(FrozenModel):
    """Where the features behind an order are cached, and their digests.

    Attributes:
        ending: common end of all cache keys, after the image's own part: preprocessing, weights and precision.
        kept: image id -> the rest of its key, a space, and the digest; pool and labelled images alike.
    """

    ending: str
    kept: dict[str, str]

    @classmethod
    def of(cls, *embedded: ImageFeatures) -> Self | None:
        """The record of these features; None where they are not cached."""
        rows = {
            image_id: (key, _digest(row))
            for features in embedded
            for image_id, key, row in zip(
                features.image_ids, features.keys, features.features, strict=bool(features.keys)
            )
        }
        if not rows:
            return None
        endings = {"".join(key.partition("|")[1:]) for key, _ in rows.values()}
        ending = endings.pop() if len(endings) == 1 else ""
        in_order = sorted(rows.items(), key=lambda one: natural_order(one[0]))
        return cls(
            ending=ending,
            kept={image_id: f"{key.removesuffix(ending)} {digest}" for image_id, (key, digest) in in_order},
        )

    def read(self, image_ids: Sequence[str], cache: Path) -> Float32[npt.NDArray[np.float32], "images dims"]:
        """The features of images, bit-identical to those of the round.

        Args:
            image_ids: at least one.
            cache: of the installation.

        Raises:
            FeaturesLost: some are gone from the cache or have changed; all are checked and counted.
            ValueError: the record does not name an image.
        """
        kept: dict[str, tuple[str, str]] = {}
        for image_id in image_ids:
            beginning, space, digest = self.kept.get(image_id, "").rpartition(" ")
            if not space:
                raise ValueError(f"image {image_id}: the round did not record where its features are cached")
            kept[image_id] = (beginning + self.ending, digest)
        rows = cached_features(CacheTable(cache / FOLDER), [key for key, _ in kept.values()])
        gone = [image_id for image_id, (key, _) in kept.items() if key not in rows]
        changed = [image_id for image_id, (key, digest) in kept.items() if key in rows and _digest(rows[key]) != digest]
        if gone or changed:
            lost = [
                f"{len(ids)} of {len(image_ids)} {verb} (first: image {ids[0]})"
                for ids, verb in ((gone, "are no longer in the cache"), (changed, "have changed"))
                if ids
            ]
            raise FeaturesLost(" and ".join(lost))
        return np.stack([rows[kept[image_id][0]] for image_id in image_ids])


def _digest(row: Float32[npt.NDArray[np.float32], " dims"]) -> str:
    return blake2b(np.ascontiguousarray(row, "<f4").data, digest_size=16).hexdigest()
