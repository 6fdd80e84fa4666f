"""What a study says: one row a round, one row a picked image, and what the study was.

What a run has done so far, on disk: a line a round, so that a stopped run goes on where it ended.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.storage.atomic import read_record, write_atomically, write_record


class RoundRow(FrozenModel):
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


class BatchRow(FrozenModel):
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


class BaselineRow(FrozenModel):
    """A network trained on every label of the training side."""

    variant: str
    seed: int
    labels: int
    metrics: RoundMetrics
    epochs: int
    train_seconds: float


class StudySummary(FrozenModel):
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


R = TypeVar("R", bound=FrozenModel)


class _Batch(FrozenModel):
    """What a round chose, in one line: whole or not there."""

    round: int
    rows: tuple[BatchRow, ...]


class Journal:
    """The folder of one run: ``rounds.jsonl``, ``batches.jsonl``, or ``baseline.json``; and ``done`` at its end.

    Args:
        folder: ``<out>/runs/<run>``; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rounds = folder / "rounds.jsonl"
        self._batches = folder / "batches.jsonl"
        self._baseline = folder / "baseline.json"
        self._done = folder / "done"

    @property
    def is_done(self) -> bool:
        return self._done.exists()

    def finish(self) -> None:
        """The run is over."""
        write_atomically(self._done, b"")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only one process writes a run: wait until another that does has ended. A killed one holds nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def append(self, row: RoundRow, batch: Sequence[BatchRow]) -> None:
        """Add a finished round. The batch is written first: a round that stands there has its batch.

        Raises:
            StorageError: the disk refuses.
        """
        _append(self._batches, _Batch(round=row.round, rows=tuple(batch)))
        _append(self._rounds, row)

    def read(self) -> tuple[tuple[RoundRow, ...], tuple[BatchRow, ...]]:
        """All finished rounds, and what they chose. What a crash left unfinished is passed over.

        Raises:
            StorageError: a line is damaged; names it.
        """
        rounds, batches = self._whole()
        return tuple(rounds), tuple(row for batch in batches for row in batch.rows)

    def mend(self) -> tuple[tuple[RoundRow, ...], tuple[BatchRow, ...]]:
        """The same, and what is passed over is removed, so that more can be appended.

        Raises:
            StorageError: a line is damaged, or the disk refuses.
        """
        rounds, batches = self._whole()
        _keep(self._rounds, rounds)
        _keep(self._batches, batches)
        return self.read()

    def _whole(self) -> tuple[list[RoundRow], list[_Batch]]:
        """Rounds that have both their lines."""
        rounds, batches = _lines(self._rounds, RoundRow), _lines(self._batches, _Batch)
        whole = min(len(rounds), len(batches))
        return rounds[:whole], batches[:whole]

    def forget(self) -> None:
        """Begin the run anew."""
        for path in (self._rounds, self._batches):
            path.unlink(missing_ok=True)

    def baseline(self) -> BaselineRow | None:
        """What a baseline reached; None where it has not."""
        return read_record(self._baseline, BaselineRow)

    def write_baseline(self, row: BaselineRow) -> None:
        """Keep what a baseline reached."""
        write_record(self._baseline, row)

    def rounds_done(self) -> int:
        """How many rounds stand there, without reading them; a baseline counts as one."""
        try:
            return self._rounds.read_bytes().count(b"\n")
        except FileNotFoundError:
            return int(self._baseline.exists())


def _as_line(row: FrozenModel) -> bytes:
    return row.model_dump_json().encode() + b"\n"


def _append(path: Path, row: FrozenModel) -> None:
    try:
        with path.open("ab", buffering=0) as file:  # in one piece
            file.write(_as_line(row))
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error}; make room, and give the same command again"
        ) from error


def _keep(path: Path, rows: Sequence[FrozenModel]) -> None:
    content = b"".join(map(_as_line, rows))
    if path.exists() and path.read_bytes() != content:
        write_atomically(path, content)


def _lines(path: Path, kind: type[R]) -> list[R]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}") from error
    rows: list[R] = []
    # What follows the last line end was torn by a crash.
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise StorageError(
                f"{path}, line {number} is damaged: remove the folder {path.parent}, and its run is done again"
            ) from error
    return rows
