"""What a study says: one row a round, one row a picked image, and what the study was."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ml_backend.records import Record
from ml_backend.simulation.metrics import RoundMetrics

__all__ = ["BaselineRow", "BatchRow", "RoundRow", "StudyResults", "StudySummary"]


class RoundRow(Record):
    """One round of one run: the network that was trained on ``labels`` labels, judged on the test side."""

    run: str  # "<strategy>-<variant>-s<seed>"; the variant is left out where the study has only one
    strategy: str
    variant: str  # what else is compared: "weighted", "unweighted"; "" where nothing is
    seed: int
    round: Annotated[int, Field(ge=1)]
    labels: Annotated[int, Field(ge=1)]  # of the training side
    share: Annotated[float, Field(ge=0.0, le=1.0)]  # of the training side's images
    labels_per_class: dict[str, int]  # of the training side
    metrics: RoundMetrics
    epochs: Annotated[int, Field(ge=1)]
    train_seconds: float
    acquisition_seconds: float  # passes and ranking


class BatchRow(Record):
    """One image that a round chose."""

    run: str
    strategy: str
    variant: str
    seed: int
    round: Annotated[int, Field(ge=1)]
    rank: Annotated[int, Field(ge=1)]  # 1: picked first
    image_id: str
    label: str  # its true class, which the strategy did not know
    score: float
    epistemic: float  # nats: the passes' disagreement, H(mean) - mean H
    aleatoric: float  # nats: what every pass doubts, mean H


class BaselineRow(Record):
    """A network trained on every label of the training side."""

    variant: str
    seed: int
    labels: int
    metrics: RoundMetrics
    epochs: int
    train_seconds: float


class StudySummary(Record):
    """Everything that is needed to run a study again."""

    command: str
    started_at: str  # ISO 8601, UTC
    seconds: float
    classes: tuple[str, ...]  # ordinal: least severe first
    images: dict[str, int]  # train, val, test -> images
    labels_per_class: dict[str, dict[str, int]]  # train, val, test -> class -> images
    strategies: tuple[str, ...]
    variants: tuple[str, ...]  # ("",) where only one
    seeds: tuple[int, ...]
    rounds: int
    passes: int
    batch_size: int
    initial_per_class: int
    profile: str
    options: dict[str, object]  # ProjectOptions as JSON
    versions: dict[str, str]  # package -> version
    digests: dict[str, str]  # what was read (labels, ratings, features, weights) -> sha256
    notes: tuple[str, ...] = ()  # dropped rows, subsampling, whatever the reader should know


@dataclass(frozen=True, slots=True)
class StudyResults:
    """A finished study, or what there is of one."""

    summary: StudySummary
    rounds: tuple[RoundRow, ...]
    batches: tuple[BatchRow, ...]
    baselines: tuple[BaselineRow, ...]
