"""Tables in: labels, readers' answers and features, each refused with line and column where it is wrong.

The one CSV reader of the package: the demo reads a visitor's table with it too. Torch-free.
"""

import csv
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.errors import SettingsError
from ml_backend.records import patient_of

__all__ = [
    "SIDES",
    "Features",
    "LabelRow",
    "RatingRow",
    "Side",
    "first_ten",
    "read_features",
    "read_labels",
    "read_ratings",
    "read_rows",
]

Side: TypeAlias = Literal["train", "val", "test"]
Row: TypeAlias = Mapping[str, str]
Parsed = TypeVar("Parsed")

SIDES: Final[tuple[Side, ...]] = get_args(Side)
SHOWN: Final = 10
UNREADABLE: Final = "unreadable"  # a reader's answer that is never a class


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One image of a labels table. ``label`` is None where only the readers' answers are known."""

    line: int
    path: str
    label: str | None
    patient_id: str | None = None
    split: Side | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class RatingRow:
    """One reader's answer. ``label`` is None where the reader gave no class."""

    line: int
    path: str
    rater: str
    label: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of images, computed elsewhere.

    Attributes:
        paths: one an image, each once.
        values: finite; in the network's own unit.
    """

    paths: tuple[str, ...]
    values: Float32[npt.NDArray[np.float32], "images dims"]


def first_ten(problems: Sequence[str], separator: str = "; ") -> str:
    """The first ten, and how many more there are."""
    more = f"{separator}and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return separator.join(problems[:SHOWN]) + more


def read_labels(table: Path, *, rated: bool = False) -> list[LabelRow]:
    """Read a table of images: ``path,label[,patient_id][,split][,source]``, in any order, other columns ignored.

    Args:
        table: CSV in UTF-8 with a header, with or without a byte order mark.
        rated: the images have readers' answers in another table, so that a label may be left empty.

    Returns:
        One row an image, in the order of the table. Paths are as written, but without ``./`` and doubled slashes.

    Raises:
        SettingsError: the table cannot be read, lacks a column, has no rows, or has bad rows, named by line and column
            (the first ten of many): an empty path or label, a path that was there before, a ``split`` that is none of
            train, val, test, or that only some of the rows have.
    """
    rows = read_rows(table, ("path", "label"), lambda line, row: _label_row(line, row, rated), key=("path",))
    if any(row.split for row in rows) and (bare := [row for row in rows if row.split is None]):
        problems = first_ten([f"line {row.line}" for row in bare], ", ")
        raise SettingsError(
            f"{table}, column split: empty in {len(bare)} of {len(rows)} rows ({problems}): give every image a side "
            f"({', '.join(SIDES)}), or remove the column and let the images be split by patient"
        )
    return rows


def read_ratings(table: Path) -> list[RatingRow]:
    """Read a table of readers' answers: ``path,rater,label``, in any order, other columns ignored.

    An empty label, or ``unreadable``, is a reader who gave the image no class.

    Raises:
        SettingsError: as ``read_labels``; a reader may answer about an image once.
    """
    return read_rows(table, ("path", "rater", "label"), _rating_row, key=("path", "rater"))


def read_features(file: Path) -> Features:
    """Read an npz file with ``X``, floats of shape [images, dims], and ``path``, one text an image.

    Other arrays in it are ignored. Nothing is ever unpickled.

    Raises:
        SettingsError: it is no such file, the shapes do not fit, a path stands there twice, or a feature is no finite
            number; names the rows (counted from 0) and their paths.
    """
    values, paths = _arrays(file)
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.floating):
        raise SettingsError(f"{file}, X: wanted floats of shape [images, dims], got {values.dtype} {values.shape}")
    if paths.ndim != 1 or paths.dtype.kind != "U" or len(paths) != len(values):
        raise SettingsError(
            f"{file}, path: wanted one text for each of the {len(values)} rows of X, got {paths.dtype} {paths.shape}"
        )
    names = [_plain(path) for path in paths.tolist()]
    problems: list[str] = []
    seen: dict[str, int] = {}
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is named below
        floats = values.astype(np.float32)
    odd = set(np.flatnonzero(np.logical_not(np.isfinite(floats)).any(axis=1)).tolist())
    for row, name in enumerate(names):
        if not name:
            problems.append(f"row {row} has an empty path")
        elif (first := seen.setdefault(name, row)) != row:
            problems.append(f"rows {first} and {row} are both of {name!r}")
        elif row in odd:
            problems.append(f"row {row} ({name!r}) has a feature that is no finite number")
    if problems:
        raise SettingsError(f"{file} has bad rows: {first_ten(problems)}; compute these features again")
    return Features(tuple(names), floats)


def read_rows(
    table: Path, required: Sequence[str], parse: Callable[[int, Row], Parsed], *, key: Sequence[str] = ()
) -> list[Parsed]:
    """Read any table that has a column ``path``, and name all its bad rows at once.

    Args:
        table: CSV in UTF-8 with a header, with or without a byte order mark. Cells are stripped of spaces around them;
            rows without any content are passed over.
        required: columns that must be there.
        parse: one row, given its line and its cells; its ValueError becomes a bad row's reason, so that it should begin
            with the column.
        key: columns that together stand only once; none where repetition does no harm.

    Raises:
        SettingsError: the table cannot be read, lacks a column, has no rows or bad rows.
    """
    parsed: list[Parsed] = []
    problems: list[str] = []
    seen: dict[tuple[str, ...], int] = {}
    for line, cells in _lines(table, required):
        try:
            row = _row(cells)
            if key:
                _check_new(line, row, key, seen)
            parsed.append(parse(line, row))
        except ValueError as error:
            problems.append(f"line {line}, {error}")
    if problems:
        raise SettingsError(f"{table} has bad rows: {first_ten(problems)}")
    if not parsed:
        raise SettingsError(f"{table} has no rows: expected lines of {','.join(required)} below the header")
    return parsed


def _check_new(line: int, row: Row, key: Sequence[str], seen: dict[tuple[str, ...], int]) -> None:
    names = tuple(row[column] for column in key)
    if (first := seen.setdefault(names, line)) != line:
        raise ValueError(f"column {key[0]}: {' with '.join(map(repr, names))} stands in line {first} already")


def _lines(table: Path, required: Sequence[str]) -> list[tuple[int, dict[str | None, str | list[str] | None]]]:
    """Line number and cells of every row, as the csv module has them."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            # Strict: a quote that is never closed would else swallow the rest of the table without a word.
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            _check_header(table, columns, required)
            reader.fieldnames = columns
            return [
                (reader.line_num, cast("dict[str | None, str | list[str] | None]", row)) for row in reader if _any(row)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{str(table)!r} cannot be read: {error}; expected a CSV file in UTF-8") from error


def _check_header(table: Path, columns: Sequence[str], required: Sequence[str]) -> None:
    if missing := [name for name in required if name not in columns]:
        raise SettingsError(
            f"{table} has no column {' and no column '.join(missing)}; line 1 holds "
            f"{', '.join(map(repr, columns)) or 'nothing'}: begin it with `{','.join(required)}`"
        )
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise SettingsError(f"{table} has more than one column {' and '.join(map(repr, twice))}: keep one of each")


def _any(row: Mapping[object, object]) -> bool:
    return any(str(cell).strip() for cell in row.values() if cell is not None and cell != [""])


def _row(cells: Mapping[str | None, str | list[str] | None]) -> Row:
    """The cells by column, stripped.

    Raises:
        ValueError: more cells than columns, or no path.
    """
    # The csv module keeps what stands beyond the last column under None; spreadsheets leave empty cells there.
    if extra := [cell for cell in cells.get(None) or () if cell.strip()]:
        columns = len(cells) - 1
        raise ValueError(
            f"after column {columns}: {', '.join(map(repr, extra))} belongs to no column; quote its commas"
        )
    row = {column: str(cell or "").strip() for column, cell in cells.items() if column is not None}
    if not row["path"] or "\0" in row["path"]:
        raise ValueError(f"column path: {row['path']!r} is no path, give the image's")
    return row | {"path": _plain(row["path"])}


def _plain(path: str) -> str:
    return str(PurePosixPath(path)) if path else ""


def _label_row(line: int, row: Row, rated: bool) -> LabelRow:
    label, split = row["label"] or None, row.get("split") or None
    if label is None and not rated:
        raise ValueError("column label: '' is no label, give the image's")
    if split is not None and split not in SIDES:
        raise ValueError(f"column split: {split!r} is none of {', '.join(SIDES)}")
    return LabelRow(
        line=line,
        path=row["path"],
        label=label,
        patient_id=patient_of(row.get("patient_id")),
        split=split,
        source=row.get("source") or None,
    )


def _rating_row(line: int, row: Row) -> RatingRow:
    if not row["rater"]:
        raise ValueError("column rater: '' is nobody, give the reader's name")
    label = row["label"]
    return RatingRow(line, row["path"], row["rater"], None if label in {"", UNREADABLE} else label)


def _arrays(file: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """``X`` and ``path`` of an npz file."""
    wanted = (
        "expected an npz file with X [images, dims] and path [images], as `numpy.savez(file, X=..., path=...)` writes"
    )
    try:
        # Opened here: NumPy leaves its own file open where it is no zip archive.
        with file.open("rb") as content:
            arrays = np.load(content, allow_pickle=False)
            if not isinstance(arrays, Mapping):
                raise SettingsError(f"{file} holds a single array: {wanted}")
            return arrays["X"], arrays["path"]
    except KeyError as error:
        raise SettingsError(f"{file} has no array {error.args[0]!r}: {wanted}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SettingsError(f"{str(file)!r} cannot be read: {error}; {wanted}") from error
