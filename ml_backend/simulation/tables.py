"""The rows of a table file, whatever program wrote it: encoding, separator and header, or what the file is instead.

Tables in: labels, readers' answers and features, each refused with line and column where it is wrong.
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
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.config import shown_address
from ml_backend.errors import SettingsError
from ml_backend.schemas import PATIENT_KEY, is_patient_key, patient_of

SEPARATORS: Final = (",", ";", "\t", "|")
_LIKE_AN_IMAGE: Final = re.compile(r"[/\\]|\.(?:png|jpe?g|webp|gif|bmp|avif|tiff?|dcm)$", re.IGNORECASE)
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)

# The first bytes of what people give instead of a table -> what it is.
_OTHERS: Final = (
    (b"PK\x03\x04", "an Excel or another Office file, or an archive: save its sheet as `CSV UTF-8`"),
    (b"\xd0\xcf\x11\xe0", "an Excel file (.xls): save its sheet as `CSV UTF-8`"),
    (b"PAR1", "a Parquet file: write it by `pandas.DataFrame.to_csv(..., index=False)`"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"%PDF", "a PDF: export the table as `CSV UTF-8`"),
    (b"\x89PNG", "an image: give the table of the images' labels"),
    (b"\xff\xd8\xff", "an image: give the table of the images' labels"),
    (b"{\\rtf", "a text document: save the table as `CSV UTF-8`"),
)
_MARKUP: Final = (
    ("[", "JSON, such as Label Studio's export: write one line an image, with its file and its class"),
    ("{", "JSON, such as Label Studio's export: write one line an image, with its file and its class"),
    ("<", "an HTML or XML document: was it a login page? Download the table again"),
)


class TableRow(NamedTuple):
    """One row that holds something: the line where it ends, and its cells."""

    line: int
    cells: list[str]


class TableFile(NamedTuple):
    """A table as its file holds it.

    Attributes:
        header: the names of the columns, stripped, and in small letters where they are asked for so.
        separator: of the cells.
        rows: the rows below the header, without empty ones.
    """

    header: list[str]
    separator: str
    rows: list[TableRow]


def read_table_file(table: Path, required: Sequence[str]) -> TableFile:
    """Read the rows of a table.

    Args:
        table: separated by commas, semicolons, tabs or bars; in UTF-8, or in UTF-16 with a byte order mark; with line
            ends of any system. Cells may be quoted, and then hold separators and line breaks.
        required: columns that must be there; a name may be in any case.

    Raises:
        SettingsError: the file cannot be read, is no table, has a quote that is not closed, or lacks a column; names
            the line and what to do.
    """
    text = _text(table)
    hint = _SEPARATOR_LINE.fullmatch(text.split("\n", 1)[0])  # by which Excel tells itself
    separator = hint[1] if hint else _separator(text, required)
    rows = _rows(table, text, separator)[1 if hint else 0 :]
    header, *below = rows or [TableRow(1, [])]
    names = [name.strip() for name in header.cells]
    known = {name.casefold(): name for name in required} | {name: name for name in ("patient_id", "split", "source")}
    names = [known.get(name.casefold(), name) for name in names]
    if PATIENT_KEY not in names:
        names = [PATIENT_KEY if is_patient_key(name) else name for name in names]
    _check_header(table, header.line, names, required)
    return TableFile(names, separator, below)


def _text(table: Path) -> str:
    try:
        content = table.read_bytes()
    except IsADirectoryError:
        raise SettingsError(f"{str(table)!r} is a folder: give the table itself, a CSV file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{str(table)!r} cannot be read: {reason}; expected a CSV file in UTF-8") from error
    for start, words in _OTHERS:
        if content.startswith(start):
            raise SettingsError(f"{table} is no CSV file but {words}")
    text = _decoded(table, content)
    for mark, words in _MARKUP:
        if text.lstrip().startswith(mark):
            raise SettingsError(
                f"{table} is no CSV file but {words}: `path,label` above lines of `images/1.png,severe`"
            )
    return text


def _decoded(table: Path, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        encoding = "utf-32" if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) else "utf-16"
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            raise SettingsError(
                f"{table} begins as {encoding.upper()} but is cut off or damaged: {error.reason}; save it again"
            ) from error
    # Half of its bytes are zeros: UTF-16 without its mark.
    start = content[:400]
    if len(start) > 3 and start.count(0) * 5 > len(start) * 2:
        return content.decode("utf-16-le" if start[1:2] == b"\0" else "utf-16-be", errors="replace")
    try:
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError:
        lines = content.splitlines()
        wrong = [(number, line) for number, line in enumerate(lines, start=1) if not _is_utf8(line)]
        number, line = wrong[0]
        others = f", and {len(wrong) - 1} more lines" if len(wrong) > 1 else ""
        raise SettingsError(
            f"{table}, line {number}{others}: {line.decode('cp1252', errors='replace')[:80]!r} is not UTF-8 (read as "
            "Windows-1252 here): expected a CSV file in UTF-8; save the table as `CSV UTF-8`"
        ) from None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _separator(text: str, required: Sequence[str]) -> str:
    """That by which the header holds most of the wanted columns; of equal ones, that which it holds most often."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def fits(separator: str) -> tuple[int, int]:
        names = {name.strip().strip('"').strip().casefold() for name in header.split(separator)}
        return len(names & set(required)), header.count(separator)

    return max(SEPARATORS, key=fits)


def _rows(table: Path, text: str, separator: str) -> list[TableRow]:
    # Strict: a quote that is never closed would else swallow the rest of the table without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    rows, end = [], 0
    try:
        for cells in reader:
            end = reader.line_num
            if any(cell.strip() for cell in cells):
                rows.append(TableRow(end, cells))
    except csv.Error as error:
        raise SettingsError(
            f"{table}, line {end + 1}: a quote is opened there and not closed, or not followed by {separator!r} "
            f"({error}); write a quote within a quoted cell twice, and close the cell's own"
        ) from error
    return rows


def _check_header(table: Path, line: int, columns: Sequence[str], required: Sequence[str]) -> None:
    if missing := [name for name in required if name not in columns]:
        begin = f"begin it with `{','.join(required)}`"
        if any(_LIKE_AN_IMAGE.search(name) for name in columns):
            begin = f"this is a row and no header: put a line `{','.join(required)}` above it"
        elif len(columns) >= len(required):
            begin = f"{begin}, or give its columns these names"
        raise SettingsError(
            f"{table} has no column {' and no column '.join(missing)}; line {line} holds "
            f"{', '.join(map(repr, columns)) or 'nothing'}: {begin}"
        )
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise SettingsError(f"{table} has more than one column {' and '.join(map(repr, twice))}: keep one of each")


Side: TypeAlias = Literal["train", "val", "test"]
Row: TypeAlias = Mapping[str, str]
Parsed = TypeVar("Parsed")

SIDES: Final[tuple[Side, ...]] = get_args(Side)
SHOWN: Final = 10
UNREADABLE: Final = "unreadable"  # a reader's answer that is never a class
# What programs write for a value that is not there.
MISSING: Final = frozenset(
    {"nan", "none", "null", "na", "n/a", "<na>", "nat"}
    | {"#n/a", "#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!"}  # of spreadsheets
)
# Values and numbers in a problem's reason, which tell it from others of its kind.
_VALUES: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")


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


def read_labels(table: Path, *, rated: bool = False, meant: Collection[str] = ()) -> list[LabelRow]:
    """Read a table of images: ``path,label[,patient_id][,split][,source]``, in any order, other columns ignored.

    Args:
        table: see ``table_files.read_table_file``.
        meant: labels that the owner's task names; these may read ``None``, or differ by case only.
        rated: the images have readers' answers in another table, so that a label may be left empty.

    Returns:
        One row an image, in the order of the table. Paths are as written, but with slashes for backslashes, and without
        ``./`` and doubled slashes.

    Raises:
        SettingsError: the table cannot be read, lacks a column, has no rows, or has bad rows, named by line and column
            (the first ten of every kind): an empty path or label, a path that was there before, a ``split`` that is
            none of train, val, test, or that only some of the rows have; or labels that differ only by case or blanks.
    """
    return read_rows(
        table,
        ("path", "label"),
        lambda line, row: _label_row(line, row, rated, meant),
        key=("path",),
        whole=lambda rows: chain(unlike_spellings(((row.line, row.label) for row in rows), meant), _bare_sides(rows)),
    )


def _bare_sides(rows: Sequence[LabelRow]) -> Iterator[str]:
    if any(row.split for row in rows) and (bare := [row for row in rows if row.split is None]):
        problems = first_ten([f"line {row.line}" for row in bare], ", ")
        yield (
            f"column split: empty in {len(bare)} of {len(rows)} rows ({problems}): give every image a side "
            f"({', '.join(SIDES)}), or remove the column and let the images be split by patient"
        )


def read_ratings(table: Path, *, meant: Collection[str] = ()) -> list[RatingRow]:
    """Read a table of readers' answers: ``path,rater,label``, in any order, other columns ignored.

    An empty label, or ``unreadable``, is a reader who gave the image no class.

    Raises:
        SettingsError: as ``read_labels``; a reader may answer about an image once.
    """
    return read_rows(
        table,
        ("path", "rater", "label"),
        lambda line, row: _rating_row(line, row, meant),
        key=("path", "rater"),
        whole=lambda rows: unlike_spellings(((row.line, row.label) for row in rows), meant),
    )


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
    table: Path,
    required: Sequence[str],
    parse: Callable[[int, Row], Parsed],
    *,
    key: Sequence[str] = (),
    whole: Callable[[list[Parsed]], Iterable[str]] = lambda _: (),
) -> list[Parsed]:
    """Read any table that has a column ``path``, and name all its bad rows at once.

    Args:
        table: see ``table_files.read_table_file``. Cells are stripped of spaces around them; rows without any content
            are passed over.
        required: columns that must be there.
        parse: one row, given its line and its cells; its ValueError becomes a bad row's reason, so that it should begin
            with the column.
        key: columns that together stand only once; none where repetition does no harm.
        whole: what is wrong with the good rows together, one sentence each.

    Raises:
        SettingsError: the table cannot be read, lacks a column, has no rows or bad rows.
    """
    file = read_table_file(table, required)
    parsed: list[Parsed] = []
    problems: list[_Problem] = []
    seen: dict[tuple[str, ...], tuple[int, Row]] = {}
    for line, cells in file.rows:
        try:
            row = _row(cells, file, required)
            if key:
                _check_new(line, row, key, seen)
            parsed.append(parse(line, row))
        except ValueError as error:
            problems.append(_Problem(line, str(error)))
    together = list(whole(parsed))
    if problems:
        raise SettingsError(f"{table} has bad rows: {'; '.join([_by_kind(problems), *together])}")
    if together:
        raise SettingsError(f"{table}, {'; '.join(together)}")
    if not parsed:
        raise SettingsError(f"{table} has no rows: expected lines of {','.join(required)} below the header")
    return parsed


def unlike_spellings(labels: Iterable[tuple[int, str | None]], meant: Collection[str] | None = None) -> Iterator[str]:
    """Labels that differ only by case, blanks or the way a number is written: one class in two spellings.

    Args:
        labels: each with its line; None where a row has none.
        meant: labels that the owner's task names one by one, and which may differ by little; None where no task can
            be given.

    Yields:
        One sentence a class: its spellings, how many rows and which lines each has, and the way out.
    """
    lines: dict[str, list[int]] = {}
    for line, label in labels:
        if label is not None:
            lines.setdefault(label, []).append(line)
    alike: dict[str, list[str]] = {}
    for label in [*lines, *(label for label in meant or () if label not in lines)]:
        alike.setdefault(_folded(label), []).append(label)
    for name, spellings in alike.items():
        if len(spellings) < 2 or set(spellings) <= set(meant or ()):
            continue
        task = "" if meant is None else f", or name each spelling in --task, such as '{name}={','.join(spellings)};...'"
        counted = " and ".join(_spelling(spelling, lines.get(spelling, [])) for spelling in spellings)
        yield (
            f"column label: {counted} differ "
            f"only by case, blanks or the way a number is written: write them alike{task}"
        )


def _spelling(label: str, lines: Sequence[int]) -> str:
    if not lines:
        return f"{label!r} (in --task)"
    where = first_ten([str(line) for line in lines], ", ")
    return f"{label!r} ({len(lines)} row{'s' * (len(lines) > 1)}: line{'s' * (len(lines) > 1)} {where})"


def _folded(label: str) -> str:
    """What two spellings of one class have in common."""
    seen = "".join(mark for mark in label if unicodedata.category(mark) != "Cf")  # no blank that shows nothing
    words = " ".join(unicodedata.normalize("NFKC", seen).casefold().split())
    try:
        return f"{float(words.replace(',', '.')):g}"
    except ValueError:
        return words


class _Problem(NamedTuple):
    """What is wrong with a row."""

    line: int
    reason: str


def _by_kind(problems: Sequence[_Problem]) -> str:
    """The first ten of every kind, so that a thousand of one do not hide one of another."""
    kinds: dict[str, list[str]] = {}
    for line, reason in problems:
        kinds.setdefault(_VALUES.sub("", reason), []).append(f"line {line}, {reason}")
    return "; ".join(first_ten(rows) for rows in kinds.values())


def _check_new(line: int, row: Row, key: Sequence[str], seen: dict[tuple[str, ...], tuple[int, Row]]) -> None:
    names = tuple(row[column] for column in key)
    first, before = seen.setdefault(names, (line, row))
    if first == line:
        return
    if row == before:
        way_out = "with the same values: remove one of them"
    elif row.get("label") == before.get("label"):
        way_out = "with the same label and other values: keep the right one"
    else:
        way_out = f"with label {before.get('label')!r}, and here with {row.get('label')!r}: keep the right one"
    raise ValueError(f"column {key[0]}: {' with '.join(map(repr, names))} stands in line {first} already, {way_out}")


def _row(cells: Sequence[str], file: TableFile, required: Sequence[str]) -> Row:
    """The cells by column, stripped.

    Raises:
        ValueError: more cells than columns, a required cell is not there, or the path is none.
    """
    columns = len(file.header)
    # Spreadsheets leave empty cells beyond the last column.
    if extra := [cell for cell in cells[columns:] if cell.strip()]:
        raise ValueError(
            f"after column {columns}: {', '.join(map(repr, extra))} belongs to no column; put cells that hold "
            f"{file.separator!r} in quotes"
        )
    row = {name: cell.strip() for name, cell in zip(file.header, cells, strict=False)}
    if absent := [name for name in required if name not in row]:
        other = next(
            (mark for mark in SEPARATORS if mark != file.separator and any(mark in cell for cell in cells)), None
        )
        why = f"; its cells are separated by {other!r}, those of the header by {file.separator!r}" if other else ""
        raise ValueError(
            f"column {absent[0]}: '' is no {absent[0]}, the row has {len(cells)} of {columns} cells: "
            f"{file.separator.join(cells)[:80]!r}{why}"
        )
    row = {name: row.get(name, "") for name in file.header}
    return row | {"path": _path(row["path"])}


def _path(path: str) -> str:
    if not path or "\0" in path or path.casefold() in MISSING:
        raise ValueError(f"column path: {path!r} is no path, give the image's")
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        raise ValueError(f"column path: {path!r} begins with a drive of Windows; write it from the images' folder on")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", path):
        raise ValueError(f"column path: {shown_address(path)!r} is an address; download it, and give the file's path")
    return _plain(path)


def _plain(path: str) -> str:
    """The path with slashes, and without ``.``, ``..`` in the middle and doubled slashes."""
    return posixpath.normpath(path.replace("\\", "/")) if path else ""


def _given(row: Row, column: str) -> str | None:
    value = row.get(column, "")
    return None if value.casefold() in MISSING else value or None


def _label_row(line: int, row: Row, rated: bool, meant: Collection[str]) -> LabelRow:
    label = row["label"] if row["label"] in meant else _given(row, "label")
    split = _given(row, "split")
    if label is None and not rated:
        more = f"; if it is a class, name it in --task, such as '{row['label']};...'" if row["label"] else ""
        raise ValueError(f"column label: {row['label']!r} is no label, give the image's or remove the row{more}")
    if split is not None and split not in SIDES:
        raise ValueError(f"column split: {split!r} is none of {', '.join(SIDES)}")
    return LabelRow(
        line=line,
        path=row["path"],
        label=label,
        patient_id=patient_of(row.get("patient_id")),
        split=split,
        source=_given(row, "source"),
    )


def _rating_row(line: int, row: Row, meant: Collection[str]) -> RatingRow:
    if _given(row, "rater") is None:
        raise ValueError(f"column rater: {row['rater']!r} is nobody, give the reader's name")
    label = row["label"] if row["label"] in meant else _given(row, "label")
    return RatingRow(line, row["path"], row["rater"], None if label == UNREADABLE else label)


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
