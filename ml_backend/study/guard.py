"""Keeps the sides of a study apart: what would be a leak stops the run instead of brightening its curve."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from ml_backend.engine.ports import Learner
from ml_backend.errors import RoundError
from ml_backend.pool_outputs import ImageFeatures, PoolOutputs
from ml_backend.records import FitReport, ImageRef, Label, Ranking
from ml_backend.simulation.dataset import DataSet
from ml_backend.strategies import Need

__all__ = ["GuardedLearner", "Leak"]

PROBS: Final[frozenset[Need]] = frozenset({"probs"})


class Leak(RoundError):
    """An image was used where its side of the study does not belong."""


class GuardedLearner:
    """A learner that is only shown what it may see. Satisfies ``engine.ports.Learner``.

    It learns from the training side, stops by the validation side (by the training side where there is none), ranks
    what is left of the training side, and meets the test side in ``judge`` alone. Features of validation images are
    kept from the strategy, to which they would look like labelled images of the pool.

    Args:
        learner: the learner itself.
        data: whose sides are kept apart.

    Raises:
        Leak: from any method, where an image is on a side that it must not be on; names the image.
    """

    def __init__(self, learner: Learner, data: DataSet) -> None:
        self._learner = learner
        self._train = frozenset(label.image.id for label in data.labels("train"))
        self._validation = frozenset(label.image.id for label in data.labels("val"))
        self._test = frozenset(label.image.id for label in data.labels("test"))
        self._labelled: frozenset[str] = frozenset()
        self._pool: frozenset[str] = frozenset()
        self._fit: FitReport | None = None

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """See ``engine.ports.Learner``."""
        trained, held_out = ({label.image.id for label in side} for side in (train, validation))
        _require("trained on", trained, self._train)
        _require("validated on", held_out, self._validation or self._train)
        _require("validated on, though it was trained on", held_out, held_out - trained)
        self._labelled = frozenset(trained | held_out)
        self._fit = self._learner.fit(train, validation, classes)
        return self._fit

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolOutputs:
        """Of the pool, for the strategy."""
        self._pool = frozenset(image.id for image in pool)
        _require("in the pool", self._pool, self._train)
        _require("in the pool, though it has a label", self._pool, self._pool - self._labelled)
        outputs = self._learner.outputs(pool, needs)
        _require("scored as of the pool", outputs.image_ids, self._pool)
        return self._without_validation(outputs)

    def check(self, ranking: Ranking) -> None:
        """Make sure that a ranking holds images of the last pool only."""
        _require("ranked", ranking.image_ids, self._pool)

    def judge(self, images: Sequence[ImageRef]) -> PoolOutputs:
        """Of the test side, for the metrics."""
        _require("tested on", (image.id for image in images), self._test)
        return self._learner.outputs(images, PROBS)

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """See ``engine.ports.Learner``."""
        self._learner.prepare(images)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """See ``engine.ports.Learner``."""
        return self._learner.embed(images)

    def save(self, folder: str) -> None:
        """See ``engine.ports.Learner``."""
        self._learner.save(folder)

    def _without_validation(self, outputs: PoolOutputs) -> PoolOutputs:
        features, fit = outputs.labelled_features, self._fit
        if features is None or fit is None or not self._validation:
            return outputs
        # They come in the order of the fit: training first.
        if len(features) != fit.train_images + fit.validation_images:
            raise Leak(
                f"features of {len(features)} labelled images, but {fit.train_images} were trained on and "
                f"{fit.validation_images} validated on: whose they are cannot be told"
            )
        return replace(outputs, labelled_features=features[: fit.train_images])


def _require(use: str, found: Iterable[str], allowed: Collection[str]) -> None:
    strangers = set(found).difference(allowed)
    if strangers:
        raise Leak(
            f"image {min(strangers)!r} (and {len(strangers) - 1} more) is {use}, and its side of the study forbids it: "
            "the results would be worth nothing; this is a bug of the learner, the strategy or the table's reader"
        )
