"""Reads the tables of a study: labels, readers' answers and features; refuses bad rows by line and column.

Read by ``csv``, not by pandas: an error names every bad row by its line in the file, and pandas neither counts the line
breaks in quoted cells nor goes on after the first row that is too long.
"""

import csv
import io
import posixpath
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.config import shown_address
from ml_backend.errors import SettingsError
from ml_backend.schemas import PATIENT_KEY, is_patient_key, patient_of

Side: TypeAlias = Literal["train", "val", "test"]
Row: TypeAlias = Mapping[str, str]
Parsed = TypeVar("Parsed")

SIDES: Final[tuple[Side, ...]] = get_args(Side)
SHOWN: Final = 10
UNREADABLE: Final = "unreadable"  # a reader's answer that is never a class
# What programs write for a missing value.
MISSING: Final = frozenset(
    {"nan", "none", "null", "na", "n/a", "<na>", "nat"}
    | {"#n/a", "#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!"}  # of spreadsheets
)
SEPARATORS: Final = (",", ";", "\t", "|")
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?[ ,;\t]*\r?\n', re.IGNORECASE)  # Excel's own first line
# Values and numbers in a problem's reason: what is left tells the kind of the problem.
_VALUES: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")
_OFFICE: Final = "an Excel file: save its sheet as `CSV UTF-8`"
_JSON: Final = "JSON, such as Label Studio's export: write one line an image, with its file and its class"
_OTHER_FILES: Final = {b"PK\x03\x04": _OFFICE, b"\xd0\xcf\x11\xe0": _OFFICE, b"[": _JSON, b"{": _JSON}
"""First bytes of other files -> what such a file is."""


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


def read_labels(table: Path, *, rated: bool = False, meant: Collection[str] = ()) -> list[LabelRow]:
    """Read a table of images: ``path,label[,patient_id][,split][,source]``, in any order, other columns ignored.

    Args:
        table: see ``read_rows``.
        rated: the images have readers' answers in another table, so that a label may be empty.
        meant: labels that the task names; these may read ``None``, or differ by case only.

    Returns:
        One row an image, in the order of the table. Paths have slashes for backslashes, and no ``./`` or ``//``.

    Raises:
        SettingsError: see ``read_rows``; an empty path or label, a repeated path, a ``split`` that is not train, val or
            test, or that only some rows have; labels that differ only by case or blanks.
    """

    def parse(line: int, row: Row) -> LabelRow:
        label, split = _label(row, meant), _value(row, "split")
        if label is None and not rated:
            way_out = f"; if it is a class, name it in --task, such as '{row['label']};...'" if row["label"] else ""
            raise ValueError(
                f"column label: {row['label']!r} is not a label, give the image's or remove the row{way_out}"
            )
        if split is not None and split not in SIDES:
            raise ValueError(f"column split: {split!r} is none of {', '.join(SIDES)}")
        return LabelRow(line, row["path"], label, patient_of(row.get("patient_id")), split, _value(row, "source"))

    def missing_splits(rows: Sequence[LabelRow]) -> Iterator[str]:
        missing = [f"line {row.line}" for row in rows if row.split is None]
        if 0 < len(missing) < len(rows):
            yield (
                f"column split: empty in {len(missing)} of {len(rows)} rows ({first_ten(missing, ', ')}): give every "
                f"image a side ({', '.join(SIDES)}), or remove the column and let the images be split by patient"
            )

    return read_rows(
        table,
        ("path", "label"),
        parse,
        key=("path",),
        whole=lambda rows: chain(
            unlike_spellings(((row.line, row.label) for row in rows), meant), missing_splits(rows)
        ),
    )


def read_ratings(table: Path, *, meant: Collection[str] = ()) -> list[RatingRow]:
    """Read a table of readers' answers: ``path,rater,label``, in any order, other columns ignored.

    An empty label, or ``unreadable``, is a reader who gave the image no class.

    Raises:
        SettingsError: as ``read_labels``; a reader may answer about an image once.
    """

    def parse(line: int, row: Row) -> RatingRow:
        if _value(row, "rater") is None:
            raise ValueError(f"column rater: {row['rater']!r} is not a reader, give the reader's name")
        label = _label(row, meant)
        return RatingRow(line, row["path"], row["rater"], None if label == UNREADABLE else label)

    return read_rows(
        table,
        ("path", "rater", "label"),
        parse,
        key=("path", "rater"),
        whole=lambda rows: unlike_spellings(((row.line, row.label) for row in rows), meant),
    )


def read_features(file: Path) -> tuple[tuple[str, ...], Float32[npt.NDArray[np.float32], "images dims"]]:
    """Read an npz file with ``X``, floats of shape [images, dims], and ``path``, one text an image.

    Other arrays in it are ignored. Nothing is unpickled.

    Returns:
        The paths, each once, and the features, finite, in the same order.

    Raises:
        SettingsError: the file cannot be read, the shapes do not fit, a path is empty or repeated, or a feature is not
            finite; names the rows (counted from 0) and their paths.
    """
    values, paths = _arrays(file)
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.floating):
        raise SettingsError(f"{file}, X: expected floats of shape [images, dims], got {values.dtype} {values.shape}")
    if paths.ndim != 1 or paths.dtype.kind != "U" or len(paths) != len(values):
        raise SettingsError(
            f"{file}, path: expected one text for each of the {len(values)} rows of X, got {paths.dtype} {paths.shape}"
        )
    names = tuple(_normalized(path) for path in paths.tolist())
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused below
        floats = values.astype(np.float32)
    infinite = set(np.flatnonzero(np.logical_not(np.isfinite(floats)).any(axis=1)).tolist())
    problems: list[str] = []
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if not name:
            problems.append(f"row {row} has an empty path")
        elif (first := seen.setdefault(name, row)) != row:
            problems.append(f"rows {first} and {row} are both of {name!r}")
        elif row in infinite:
            problems.append(f"row {row} ({name!r}) has a feature that is not finite")
    if problems:
        raise SettingsError(f"{file} has bad rows: {first_ten(problems)}; compute these features again")
    return names, floats


def _arrays(file: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """``X`` and ``path`` of an npz file."""
    expected = (
        "expected an npz file with X [images, dims] and path [images], as `numpy.savez(file, X=..., path=...)` writes"
    )
    try:
        with file.open("rb") as content:  # NumPy leaves its own file open where it is no zip archive
            arrays = np.load(content, allow_pickle=False)
            if not isinstance(arrays, Mapping):
                raise SettingsError(f"{file} holds a single array: {expected}")
            return arrays["X"], arrays["path"]
    except KeyError as error:
        raise SettingsError(f"{file} has no array {error.args[0]!r}: {expected}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SettingsError(f"{str(file)!r} cannot be read: {error}; {expected}") from error


def read_rows(
    table: Path,
    required: Sequence[str],
    parse: Callable[[int, Row], Parsed],
    *,
    key: Sequence[str] = (),
    whole: Callable[[list[Parsed]], Iterable[str]] = lambda _: (),
) -> list[Parsed]:
    """Read any table that has a column ``path``, and name all its bad rows at once.

    Args:
        table: separated by commas, semicolons, tabs or bars; in UTF-8, or in UTF-16 with a byte order mark;
            with line ends of any system. Cells may be quoted, and then hold separators and line breaks. They are
            stripped; rows without content are skipped.
        required: columns that must be there; a name may be in any case.
        parse: parses a row, given its line and its cells; its ValueError becomes the row's reason, so that the message
            should begin with the column.
        key: columns whose values together must be unique; none by default.
        whole: yields what is wrong with the good rows together, one sentence each.

    Raises:
        SettingsError: the file cannot be read, is not a table, has an unclosed quote, lacks a column, or has no rows or
            bad rows, named by line and column (the first ten of every kind).
    """
    header, separator, lines = _read_table(table, required)
    parsed: list[Parsed] = []
    problems: dict[str, list[str]] = {}  # by kind, so that a thousand of one do not hide one of another
    seen: dict[tuple[str, ...], tuple[int, Row]] = {}
    for line, cells in lines:
        try:
            row = _row(cells, header, separator, required)
            if key:
                _check_unique(line, row, key, seen)
            parsed.append(parse(line, row))
        except ValueError as error:
            problems.setdefault(_VALUES.sub("", str(error)), []).append(f"line {line}, {error}")
    sentences = list(whole(parsed))
    if problems:
        raise SettingsError(f"{table} has bad rows: {'; '.join([*map(first_ten, problems.values()), *sentences])}")
    if sentences:
        raise SettingsError(f"{table}, {'; '.join(sentences)}")
    if not parsed:
        raise SettingsError(f"{table} has no rows: expected lines of {','.join(required)} below the header")
    return parsed


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long for any file has none."""
    try:
        return path.is_file()
    except OSError:
        return False


def first_ten(problems: Sequence[str], separator: str = "; ") -> str:
    """The first ten, and how many more there are."""
    more = f"{separator}and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return separator.join(problems[:SHOWN]) + more


def unlike_spellings(labels: Iterable[tuple[int, str | None]], meant: Collection[str] | None = None) -> Iterator[str]:
    """Find labels that differ only by case, blanks or the way a number is written: one class in two spellings.

    Args:
        labels: each with its line; None where a row has none.
        meant: labels that the task names one by one, and which may differ by little; None where no task can be given.

    Yields:
        One sentence a class: its spellings, the number and lines of their rows, and the way out.
    """
    lines: dict[str, list[str]] = {}
    for line, label in labels:
        if label is not None:
            lines.setdefault(label, []).append(str(line))
    alike: dict[str, list[str]] = {}
    for label in dict.fromkeys([*lines, *(meant or ())]):
        alike.setdefault(_folded(label), []).append(label)

    def counted(label: str) -> str:
        if (count := len(lines.get(label, ()))) == 0:
            return f"{label!r} (in --task)"
        plural = "s" * (count > 1)
        return f"{label!r} ({count} row{plural}: line{plural} {first_ten(lines[label], ', ')})"

    for name, spellings in alike.items():
        if len(spellings) > 1 and not set(spellings) <= set(meant or ()):
            task = f", or name each spelling in --task, such as '{name}={','.join(spellings)};...'"
            yield (
                f"column label: {' and '.join(map(counted, spellings))} differ only by case, blanks or the way a "
                f"number is written: write them alike{'' if meant is None else task}"
            )


def _folded(label: str) -> str:
    """The common form of all spellings of one class."""
    visible = "".join(mark for mark in label if unicodedata.category(mark) != "Cf")
    words = " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
    try:
        return f"{float(words.replace(',', '.')):g}"
    except ValueError:
        return words


def _label(row: Row, meant: Collection[str]) -> str | None:
    return row["label"] if row["label"] in meant else _value(row, "label")


def _value(row: Row, column: str) -> str | None:
    value = row.get(column, "")
    return None if value.casefold() in MISSING else value or None


def _check_unique(line: int, row: Row, key: Sequence[str], seen: dict[tuple[str, ...], tuple[int, Row]]) -> None:
    names = tuple(row[column] for column in key)
    first, before = seen.setdefault(names, (line, row))
    if first == line:
        return
    both = f"with label {before.get('label')!r}, and here with {row.get('label')!r}: keep the right one"
    way_out = "with the same values: remove one of them" if row == before else both
    raise ValueError(f"column {key[0]}: {' with '.join(map(repr, names))} is in line {first} already, {way_out}")


def _row(cells: Sequence[str], header: Sequence[str], separator: str, required: Sequence[str]) -> Row:
    """The cells by column, stripped.

    Raises:
        ValueError: more cells than columns, a required cell is missing, or the path is not one.
    """
    columns = len(header)
    # Spreadsheets leave empty cells beyond the last column.
    if extra := [cell for cell in cells[columns:] if cell.strip()]:
        raise ValueError(
            f"after column {columns}: {', '.join(map(repr, extra))} belongs to no column; put cells that hold "
            f"{separator!r} in quotes"
        )
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    if absent := [name for name in required if name not in row]:
        raise ValueError(
            f"column {absent[0]}: '' is not a {absent[0]}, the row has {len(cells)} of {columns} cells: "
            f"{separator.join(cells)[:80]!r}"
        )
    path = row["path"]
    if not path or "\0" in path or path.casefold() in MISSING:
        raise ValueError(f"column path: {path!r} is not a path, give the image's")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", path):
        raise ValueError(f"column path: {shown_address(path)!r} is an address; download it, and give the file's path")
    return dict.fromkeys(header, "") | row | {"path": _normalized(path)}


def _normalized(path: str) -> str:
    """The path with slashes, and without ``.``, ``..`` in the middle and doubled slashes."""
    return posixpath.normpath(path.replace("\\", "/")) if path else ""


def _read_table(table: Path, required: Sequence[str]) -> tuple[list[str], str, list[tuple[int, list[str]]]]:
    """The names of the columns, the separator, and the rows below the header, each with the line where it ends."""
    text = _text(table)
    if hint := _SEPARATOR_LINE.match(text):
        text = "\n" + text[hint.end() :]  # the numbers of the lines stay
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = hint[1] if hint else max(SEPARATORS, key=lambda mark: _fit(header, mark, required))
    rows: list[tuple[int, list[str]]] = []
    end = 0
    # Strict: otherwise an unclosed quote swallows the rest of the table silently.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            end = reader.line_num
            if any(cell.strip() for cell in cells):
                rows.append((end, cells))
    except csv.Error as error:
        raise SettingsError(
            f"{table}, line {end + 1}: a quote is opened there and not closed, or not followed by {separator!r} "
            f"({error}); write a quote within a quoted cell twice, and close the cell's own"
        ) from error
    (line, cells), *below = rows or [(1, [])]
    known = {name.casefold(): name for name in (*required, "patient_id", "split", "source")}
    names = [known.get(cell.strip().casefold(), cell.strip()) for cell in cells]
    if PATIENT_KEY not in names:
        names = [PATIENT_KEY if is_patient_key(name) else name for name in names]
    _check_header(table, line, names, required)
    return names, separator, below


def _fit(header: str, separator: str, required: Sequence[str]) -> tuple[int, int]:
    """How many required columns the separator yields, then how often the header holds it."""
    names = {name.strip().strip('"').strip().casefold() for name in header.split(separator)}
    return len(names & set(required)), header.count(separator)


def _check_header(table: Path, line: int, columns: Sequence[str], required: Sequence[str]) -> None:
    if missing := [name for name in required if name not in columns]:
        raise SettingsError(
            f"{table} has no column {' and no column '.join(missing)}; line {line} holds "
            f"{', '.join(map(repr, columns)) or 'nothing'}: begin it with `{','.join(required)}`, or give its columns "
            "these names"
        )
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise SettingsError(f"{table} has more than one column {' and '.join(map(repr, twice))}: keep one of each")


def _text(table: Path) -> str:
    try:
        content = table.read_bytes()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{str(table)!r} cannot be read: {error}; expected a CSV file in UTF-8") from error
    for start, kind in _OTHER_FILES.items():
        if content.startswith(start):
            raise SettingsError(f"{table} is not a CSV file but {kind}")
    try:
        # Spreadsheets write byte order marks.
        return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        wrong = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if not _is_utf8(line)]
        number, line = wrong[0]
        others = f", and {len(wrong) - 1} more lines" if len(wrong) > 1 else ""
        raise SettingsError(
            f"{table}, line {number}{others}: {line.decode('cp1252', errors='replace')[:80]!r} is not UTF-8 (read "
            "as Windows-1252 here): expected a CSV file in UTF-8; save the table as `CSV UTF-8`"
        ) from None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
