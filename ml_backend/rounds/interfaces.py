"""Interfaces of what a round learns from, trains and ranks with.

In production Label Studio and a network implement them, in simulation an oracle, in tests ``tests/fakes.py``.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from ml_backend.consensus.rules import Consensus
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.schemas import Annotation, Exclusion, FitReport, ImageRef, Label, Ranking, Stage

Progress = Callable[[Stage, int, int], None]
"""Called with a stage, the units done and the units in all, after each step of seconds. Cheap to call often.

A worker that is asked to stop raises WorkerStopping from it where units are left."""


def no_progress(stage: Stage, done: int, total: int) -> None:
    """Report nothing."""


def assume_current() -> None:
    """The default of ``ensure_current``: every run is the newest."""


class ConsensusRule(Protocol):
    """Turns all annotations of a project into at most one label per image."""

    def __call__(self, annotations: Sequence[Annotation], classes: Sequence[str], /) -> Consensus:
        """``classes`` are ordinal, least severe first. A value that is not a class excludes its image by name."""
        ...


class LabelSource(Protocol):
    """The annotations of a project and its pool."""

    def annotations(self) -> Sequence[Annotation]:
        """Every annotation so far, skipped ones with ``value=None``."""
        ...

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The pool, and the images that cannot be part of it (a task without an image, for example)."""
        ...


class Splitter(Protocol):
    """Divides labels into those to train on and those that decide when training stops."""

    def __call__(
        self, labels: Sequence[Label], validation_share: float, seed: int, /
    ) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
        """Training and validation labels, each in the order of the image ids.

        Raises:
            TooFewLabels: one of the two would be empty.
        """
        ...


class Scorer(Protocol):
    """Predicts a pool with a trained network, or with what it predicted earlier."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Stochastic passes over the pool, and the other arrays of ``needs``.

        Images without a prediction are missing from the result; those that cannot be read are among its exclusions.
        """
        ...

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """Features of the backbone as loaded, whatever was fitted since; takes as long as ``prepare``.

        Raises:
            WeightsError, SettingsError: as ``prepare``.
            RoundError: the GPU's memory is too small.
        """
        ...


class Learner(Scorer, Protocol):
    """A network that is trained on labels; ``outputs`` predicts with the network of the last ``fit``."""

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """Train from scratch, or from the last round's network.

        Raises:
            TooFewLabels: no readable image is left in one of the two sets.
            WeightsError: the backbone's weights are not available.
            SettingsError: unknown backbone or device.
            RoundError: training diverged, or the GPU's memory is too small.
        """
        ...

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """Fill caches while the start set is incomplete. Unreadable images are ignored.

        Raises:
            WeightsError, SettingsError: as the first ``fit`` would, but before readers have labelled a start set.
        """
        ...

    def save(self, folder: str) -> None:
        """Write the fitted network into a folder of the round."""
        ...


class Strategy(Protocol):
    """Ranks the pool."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def rank(self, outputs: PoolPredictions, batch_size: int, seed: int) -> Ranking:
        """The whole pool, label first at the front; the first ``batch_size`` images are the batch."""
        ...
