"""The rows of a table file, whatever program wrote it: encoding, separator and header, or what the file is instead."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ml_backend.errors import SettingsError
from ml_backend.records import PATIENT_KEY, is_patient_key

__all__ = ["TableFile", "TableRow", "read_table_file"]

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
