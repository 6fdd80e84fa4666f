"""The results of a study as files: ``rounds.csv``, ``batches.csv``, ``baselines.csv``, ``summary.json``.

Numbers are written so that they read back to the last bit; what is not defined is an empty cell.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from pydantic import ValidationError

from ml_backend.errors import StorageError
from ml_backend.records import Record
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.storage.files import read_record, write_atomically, write_record
from ml_backend.study.rows import BaselineRow, BatchRow, RoundRow, StudyResults, StudySummary

__all__ = ["read_results", "write_results"]

Cells: TypeAlias = dict[str, object]
R = TypeVar("R", RoundRow, BatchRow, BaselineRow)

ROUNDS: Final = "rounds.csv"
BATCHES: Final = "batches.csv"
BASELINES: Final = "baselines.csv"
SUMMARY: Final = "summary.json"


def write_results(results: StudyResults, out: Path) -> None:
    """Write all tables, each whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    classes = results.summary.classes
    try:
        for name, kind, rows in (
            (ROUNDS, RoundRow, results.rounds),
            (BATCHES, BatchRow, results.batches),
            (BASELINES, BaselineRow, results.baselines),
        ):
            write_atomically(out / name, _table(_columns(kind, classes), rows))
    except OSError as error:
        raise StorageError(f"the results could not be written to {out}: {error}") from error
    write_record(out / SUMMARY, results.summary)


def read_results(out: Path) -> StudyResults:
    """Read what ``write_results`` wrote.

    Raises:
        StorageError: there is no study in that folder, or a table of it is damaged; names file and line.
    """
    summary = read_record(out / SUMMARY, StudySummary)
    if summary is None:
        raise StorageError(
            f"{out} holds no finished study: there is no {SUMMARY}; run `ml-backend simulate --out {out}`"
        )
    return StudyResults(
        summary=summary,
        rounds=tuple(_rows(out / ROUNDS, RoundRow, summary.classes)),
        batches=tuple(_rows(out / BATCHES, BatchRow, summary.classes)),
        baselines=tuple(_rows(out / BASELINES, BaselineRow, summary.classes)),
    )


def _columns(kind: type[Record], classes: Sequence[str], prefix: str = "") -> list[str]:
    """The fields of a record; those of the metrics among them, those by class one a class."""
    columns: list[str] = []
    for name, info in kind.model_fields.items():
        if info.annotation is RoundMetrics:
            columns += _columns(RoundMetrics, classes)
        elif _is_by_class(kind, name):
            columns += [f"{_rows_by_class(prefix + name)}_{one}" for one in classes]
        else:
            columns.append(name)
    return columns


def _is_by_class(kind: type[Record], field: str) -> bool:
    return getattr(kind.model_fields[field].annotation, "__origin__", None) is dict


def _rows_by_class(field: str) -> str:
    return "labels" if field == "labels_per_class" else field


def _table(columns: Sequence[str], rows: Iterable[Record]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in rows)
    return text.getvalue().encode()


def _cells(record: Record) -> Cells:
    cells: Cells = {}
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, RoundMetrics):
            cells |= _cells(value)
        elif isinstance(value, dict):
            cells |= {f"{_rows_by_class(name)}_{one}": number for one, number in value.items()}
        else:
            cells[name] = value
    return cells


def _rows(path: Path, kind: type[R], classes: Sequence[str]) -> list[R]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    found: list[R] = []
    for line, cells in enumerate(rows, start=2):
        try:
            found.append(kind.model_validate(_fields(cells, kind, classes)))
        except (KeyError, ValidationError) as error:
            raise StorageError(f"{path}, line {line} is no row of a study: {error}") from error
    return found


def _fields(cells: Mapping[str, str], kind: type[Record], classes: Sequence[str]) -> Cells:
    fields: Cells = {}
    for name, info in kind.model_fields.items():
        if info.annotation is RoundMetrics:
            fields[name] = _fields(cells, RoundMetrics, classes)
        elif _is_by_class(kind, name):
            fields[name] = {one: cells[f"{_rows_by_class(name)}_{one}"] or None for one in classes}
        else:
            # Only texts may be empty: the variant.
            fields[name] = cells[name] if info.annotation is str else cells[name] or None
    return fields
