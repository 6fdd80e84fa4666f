"""What a round needs from the world: by Label Studio in the live loop, by an oracle in simulation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ml_backend.consensus.rules import Consensus
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.split import stable_split
from ml_backend.schemas import (
    Annotation,
    Exclusion,
    FitReport,
    ImageRef,
    Label,
    PublishedRanking,
    Ranking,
    RoundReport,
    Stage,
)

Progress = Callable[[Stage, int, int], None]
"""Called with a stage, what of it is done and what there is in all. Cheap to call often; never raises."""


class ConsensusRule(Protocol):
    """Turns all annotations of a project into at most one label an image."""

    def __call__(self, annotations: Sequence[Annotation], classes: Sequence[str], /) -> Consensus:
        """``classes`` are ordinal, least severe first. A value that is no class excludes the image by name."""
        ...


class LabelSource(Protocol):
    """Where annotations and the pool come from."""

    def annotations(self) -> Sequence[Annotation]:
        """Every annotation so far, skipped ones with ``value=None``."""
        ...

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The pool, and the images that cannot be in it (a task without an image, say)."""
        ...


class Splitter(Protocol):
    """Says which labels are trained on, and which tell when to stop."""

    def __call__(
        self, labels: Sequence[Label], validation_share: float, seed: int, /
    ) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
        """Training and validation labels, each in the order of the image ids.

        Raises:
            TooFewLabels: one of the two would be empty.
        """
        ...


class Learner(Protocol):
    """A network that learns from labels and tells its mind about the pool."""

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """Train from scratch, or from the last round's network.

        Raises:
            TooFewLabels: no readable image is left in one of the two sets.
            WeightsError: the backbone's weights cannot be had.
            SettingsError: there is no such backbone, or no such device.
            RoundError: training diverged, or the GPU's memory is too small.
        """
        ...

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Draw the stochastic passes over the pool, with the network of the last ``fit``."""
        ...

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """Fill caches while the start set still grows. An unreadable image is no error here.

        Raises:
            WeightsError, SettingsError: as the first ``fit`` would, but before anybody has labelled in vain.
        """
        ...

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """What the backbone as it was loaded sees in images, whatever was fitted since; takes as long as ``prepare``.

        Raises:
            WeightsError, SettingsError: as ``prepare``.
            RoundError: the GPU's memory is too small.
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
        """The whole pool, label first at the front; the first ``batch_size`` are the batch."""
        ...


class ReportStore(Protocol):
    """Where a round is kept before it is published."""

    def save(self, report: RoundReport, outputs: PoolPredictions | None, learner: Learner | None) -> None: ...


class Publisher(Protocol):
    """Makes the reader's next image the first of the ranking."""

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> PublishedRanking:
        """``guard`` is called before each step that readers would notice; it raises StaleRound."""
        ...


def nothing_unpublished(inputs: str) -> RoundReport | None:
    """No earlier round is left to be published."""


def nothing_served(inputs: str) -> tuple[RoundReport, PublishedRanking] | None:
    """What is served came from something else."""


def no_copies(_: Sequence[ImageRef]) -> bool:
    """Which images are copies of one another is known."""
    return False


def no_progress(stage: Stage, done: int, total: int) -> None:
    """Tell nobody."""


def nobody_waits() -> bool:
    """No reader is idle until an order is published."""
    return True


def no_guard() -> None:
    """Nobody else can run this project's rounds."""


@dataclass(frozen=True, slots=True)
class RoundParts:
    """The parts of one round, put together in ``assembly`` or by a test."""

    labels: LabelSource
    consensus: ConsensusRule
    learner: Learner
    strategy: Strategy
    store: ReportStore
    publisher: Publisher
    split: Splitter = field(default=stable_split)
    progress: Progress = field(default=no_progress)
    guard: Callable[[], None] = field(default=no_guard)
    serving: Callable[[], bool] = field(default=nobody_waits)
    """Whether readers have an order to go on with, so that a better one may take its time."""
    unpublished: Callable[[str], RoundReport | None] = field(default=nothing_unpublished)
    """A saved round that would come to the same as this one, by ``resume.inputs_digest``, and is not published yet."""
    served: Callable[[str], tuple[RoundReport, PublishedRanking] | None] = field(default=nothing_served)
    """The round that readers are served, where this one would come to the same, by ``resume.inputs_digest``."""
    find_copies: Callable[[Sequence[ImageRef]], bool] = field(default=no_copies)
    """Reads labelled images; whether that has shown copies, by which the labels have to be asked for again."""
