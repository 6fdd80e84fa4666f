"""Rows of a study's results, in the log of a run, from which it goes on, and in CSV files."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.simulation.plan import Run, StudyPlan
from ml_backend.storage.atomic import read_record, write_atomically, write_record

if TYPE_CHECKING:
    import pandas as pd


class _RunRow(FrozenModel):
    run: str  # "<strategy>-<variant>-s<seed>"; without the variant where the study has only one
    strategy: str
    variant: str  # "weighted" or "unweighted"; "" where the study compares strategies only
    seed: int


class _Round(_RunRow):
    round: Annotated[int, Field(ge=1)]
    labels: Annotated[int, Field(ge=0)]  # of the training side
    share: Annotated[float, Field(ge=0.0, le=1.0)]  # of the training side's images
    labels_per_class: dict[str, int]  # of the training side
    reads: int | None = None  # answers about the labelled images; None: of an earlier version


class ColdRow(_Round):
    """One round of one run before its first network: the cold start ordered the pool."""


class RoundRow(_Round):
    """One round of one run: a network trained on ``labels`` labels, and its metrics on the test side."""

    label_accuracy: float | None = None  # share of the labels that are the true class; None: of an earlier version
    metrics: RoundMetrics
    epochs: Annotated[int, Field(ge=1)]
    train_seconds: float
    acquisition_seconds: float  # passes and ranking


class BatchRow(_RunRow):
    """One image that a round chose."""

    round: Annotated[int, Field(ge=1)]
    rank: Annotated[int, Field(ge=1)]  # 1: picked first
    image_id: str
    label: str  # its true class, which the strategy did not know
    score: float
    epistemic: float | None  # nats: the passes' disagreement, H(mean) - mean H; None before the first network
    aleatoric: float | None  # nats: the mean entropy of the passes, mean H; likewise


class BaselineRow(FrozenModel):
    """A network trained on every label of the training side."""

    variant: str
    seed: int
    labels: int
    metrics: RoundMetrics
    epochs: int
    train_seconds: float


class DifferenceSummary(FrozenModel):
    """A mean of paired differences, see ``analysis.PairedDifference``."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int


class EarlySummary(FrozenModel):
    """Mean balanced accuracy over the first ``labels`` labels, see ``analysis.early``; groups by name."""

    labels: int
    quartiles: dict[str, tuple[float, float, float]]
    minus_random: dict[str, DifferenceSummary]


class StudySummary(FrozenModel):
    """Everything needed to run a study again."""

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
    count: Literal["images", "reads"] = "images"  # what curves and labels needed count
    baseline: bool = True  # whether networks are trained on all labels
    start: Literal["live", "given"] = "given"
    protocol: str = ""  # how a run starts, and which labels count
    initial_per_class: int  # 0 in a live start
    # Labels until a network ranks: quartiles, None for never.
    first_ranking: dict[str, tuple[float | None, float | None, float | None]] = Field(default_factory=dict)
    early: EarlySummary | None = None
    profile: str
    options: dict[str, object]  # ProjectOptions as JSON
    versions: dict[str, str]  # package -> version
    digests: dict[str, str]  # labels, ratings, features, weights -> SHA-256
    notes: tuple[str, ...] = ()  # dropped rows, subsampling and the like

    @property
    def unit(self) -> str:
        """What curves and labels needed count, as a word."""
        return "reads" if self.count == "reads" else "labels"


AnyRound: TypeAlias = RoundRow | ColdRow
R = TypeVar("R", bound=FrozenModel)


class _Batch(FrozenModel):
    """The picks of a round, in one line: whole or missing."""

    round: int
    rows: tuple[BatchRow, ...]


class RunLog:
    """The folder of one run: ``rounds.jsonl`` and ``batches.jsonl``, or ``baseline.json``; and ``done`` at its end.

    Args:
        out: folder of the study.
        run: name of the run; its folder is made when something is written.
        budget: labels that a round trains on at most; 0 where the run does not depend on it.
    """

    def __init__(self, out: Path, run: str, budget: int = 0) -> None:
        self._budget = budget
        self._folder = out / "runs" / run
        self._rounds = self._folder / "rounds.jsonl"
        self._batches = self._folder / "batches.jsonl"
        self._baseline = self._folder / "baseline.json"
        self._done = self._folder / "done"

    @classmethod
    def of(cls, run: Run, plan: StudyPlan, out: Path) -> Self:
        """The log of a run of a study."""
        return cls(out, run.name, 0 if run.is_baseline else plan.budget)

    @property
    def is_done(self) -> bool:
        """Whether the run is done up to its budget; a worker may have done it under a smaller one."""
        try:
            budget = self._done.read_bytes()
        except FileNotFoundError:
            return False
        return not budget or int(budget) >= self._budget  # without a number: of an earlier version

    def finish(self) -> None:
        """Mark the run as done up to its budget."""
        write_atomically(self._done, str(self._budget).encode())

    def reopen(self) -> None:
        """Let the run go on to a larger budget."""
        self._done.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run against other processes: wait until another that writes it has ended."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a killed process holds nothing
            yield

    def append(self, row: AnyRound, batch: Sequence[BatchRow]) -> None:
        """Add a finished round. The batch is written first: every round in the log has its batch.

        Raises:
            StorageError: the disk refuses.
        """
        _append(self._batches, _Batch(round=row.round, rows=tuple(batch)))
        _append(self._rounds, row)

    def read(self) -> tuple[tuple[AnyRound, ...], tuple[BatchRow, ...]]:
        """All finished rounds and their picks. What a crash left incomplete is skipped.

        Raises:
            StorageError: a line is damaged; names it.
        """
        rounds, batches = self._complete()
        return tuple(rounds), tuple(row for batch in batches for row in batch.rows)

    def mend(self) -> tuple[tuple[AnyRound, ...], tuple[BatchRow, ...]]:
        """As ``read``, and remove what is skipped, so that more can be appended.

        Raises:
            StorageError: a line is damaged, or the disk refuses.
        """
        rounds, batches = self._complete()
        for path, lines in ((self._rounds, map(_line, rounds)), (self._batches, map(_line, batches))):
            content = b"".join(lines)
            if path.exists() and path.read_bytes() != content:
                write_atomically(path, content)
        return self.read()

    def _complete(self) -> tuple[list[AnyRound], list[_Batch]]:
        """Rounds that have both their lines."""
        rounds, batches = (
            _read_lines(self._rounds, TypeAdapter[AnyRound](AnyRound)),
            _read_lines(self._batches, TypeAdapter(_Batch)),
        )
        complete = min(len(rounds), len(batches))
        return rounds[:complete], batches[:complete]

    def clear(self) -> None:
        """Begin the run anew."""
        for path in (self._rounds, self._batches):
            path.unlink(missing_ok=True)

    def baseline(self) -> BaselineRow | None:
        """The row of a baseline; None where it is not done."""
        return read_record(self._baseline, BaselineRow)

    def write_baseline(self, row: BaselineRow) -> None:
        """Keep the row of a baseline."""
        write_record(self._baseline, row)

    def rounds_done(self) -> int:
        """The number of rounds in the log, without parsing them; a baseline counts as one."""
        try:
            return self._rounds.read_bytes().count(b"\n")
        except FileNotFoundError:
            return int(self._baseline.exists())


def _line(row: FrozenModel) -> bytes:
    return row.model_dump_json().encode() + b"\n"


def _append(path: Path, row: FrozenModel) -> None:
    try:
        with path.open("ab", buffering=0) as file:  # in one piece
            file.write(_line(row))
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error}; make room, and give the same command again"
        ) from error


def _read_lines(path: Path, kind: TypeAdapter[R]) -> list[R]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}") from error
    rows: list[R] = []
    # The rest after the last line end is a line that a crash cut off.
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            rows.append(kind.validate_json(line))
        except ValidationError as error:
            raise StorageError(
                f"{path}, line {number} is damaged: remove the folder {path.parent}, and its run is done again"
            ) from error
    return rows


@dataclass(frozen=True, slots=True)
class StudyResults:
    """The results of a study, finished or not.

    Attributes:
        rounds: those that trained a network, in the order of the runs.
        cold: those before the first network of a run, likewise.
    """

    summary: StudySummary
    rounds: tuple[RoundRow, ...]
    batches: tuple[BatchRow, ...]
    baselines: tuple[BaselineRow, ...]
    cold: tuple[ColdRow, ...] = ()

    def labels(self, row: AnyRound) -> int:
        """Labels of a round, or their reads where the study counts those."""
        return row.reads if self.summary.count == "reads" and row.reads is not None else row.labels

    @property
    def all_rounds(self) -> tuple[AnyRound, ...]:
        """Run by run in the order of the plan, each in the order of its rounds."""
        rows: tuple[AnyRound, ...] = (*self.rounds, *self.cold)
        summary = self.summary
        strategies = list(dict.fromkeys([*summary.strategies, *(row.strategy for row in rows)]))
        variants = list(dict.fromkeys([*summary.variants, *(row.variant for row in rows)]))
        seeds = list(dict.fromkeys([*summary.seeds, *(row.seed for row in rows)]))

        def place(row: AnyRound) -> tuple[int, ...]:
            return strategies.index(row.strategy), variants.index(row.variant), seeds.index(row.seed), row.round

        return tuple(sorted(rows, key=place))


def to_frame(rows: Sequence[FrozenModel]) -> "pd.DataFrame":
    """Convert rows of one kind to a data frame with one column per value; values by class are ``<name>_<class>``."""
    import pandas as pd  # noqa: PLC0415 - a worker that only does runs needs none

    return pd.DataFrame([_cells(row) for row in rows])


def _cells(record: FrozenModel) -> dict[str, object]:
    cells: dict[str, object] = {}
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, RoundMetrics):
            cells |= _cells(value)
        elif isinstance(value, dict):
            prefix = "labels" if name == "labels_per_class" else name
            cells |= {f"{prefix}_{one}": number for one, number in value.items()}
        else:
            cells[name] = value
    return cells


def write_results(results: StudyResults, out: Path) -> None:
    """Write ``rounds.csv``, ``batches.csv``, ``baselines.csv`` and ``summary.json``, each whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    tables = {"rounds": results.all_rounds, "batches": results.batches, "baselines": results.baselines}
    try:
        for name, rows in tables.items():
            write_atomically(out / f"{name}.csv", to_frame(rows).to_csv(index=False, lineterminator="\n").encode())
    except OSError as error:
        raise StorageError(f"the results could not be written to {out}: {error}") from error
    write_record(out / "summary.json", results.summary)
