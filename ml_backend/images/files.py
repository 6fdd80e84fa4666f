"""Finds the files of an import: in a folder, a ZIP archive, a table, or a bucket; reads each only when it is asked to.

Nothing is refused by raising: a file that must not be read is a ``RefusedFile``, and the walk goes on.
"""

import csv
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ml_backend.errors import ImageError, MissingExtra, SettingsError
from ml_backend.images.source import MAX_BYTES, FolderSource
from ml_backend.schemas import ImageRef

MAX_RATIO = 500
"""Of a ZIP member's size to its compressed size. Deflate reaches 1,032, radiographs stay far below 50."""

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "https")
"""Of addresses. Other schemes of fsspec read this machine's files, or its network without encryption."""

_SYMLINK = "a link that leads out of the folder: import from the folder that it leads to"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that can be read.

    Attributes:
        name: relative to the source, with ``/``; for people, since bytes that are no UTF-8 are replaced.
        size: in bytes; None where it is not known before it is read.
        fields: further columns of its row in a table.
        read: its bytes. Safe to call from another thread. Raises ImageError where it cannot be read, or is too large.
        address: its path on this machine, or its URL; empty for a member of an archive.
    """

    name: str
    size: int | None
    fields: dict[str, str] = field(repr=False)  # may identify a patient
    read: Callable[[], bytes]
    address: str = ""


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that is not read, and why, with the remedy."""

    name: str
    reason: str


Found = Iterator[SourceFile | RefusedFile]


def walk(source: str, *, max_bytes: int = MAX_BYTES) -> Found:
    """Walk over the files of a source, in the order of their names; a table keeps its own order.

    Memory does not grow with the number of files, except for the listing of a bucket and of each folder. A link is
    followed to a file inside the folder only. ZIP archives inside a folder are opened, archives inside archives not.

    Args:
        source: a folder, a ZIP archive, one file, a CSV file with the column ``path`` (relative to the CSV file, or a
            URL), or an address of ``SCHEMES``: ``s3://bucket/prefix``, or ``https://``, which is one file.
        max_bytes: of one file; a larger one is refused by its size.

    Raises:
        SettingsError: the source does not exist or cannot be listed, or the table has no column ``path``.
        MissingExtra: the address needs a package that is not installed.
    """
    if "://" in source:
        return _bucket(source, max_bytes)
    path = Path(source)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
            return _folder(path.resolve(), max_bytes)
    except (OSError, ValueError) as error:
        raise _unlisted(source, error) from error
    if path.suffix.lower() == ".csv":
        return _table(path, max_bytes)
    return _local(path.resolve(), path.name, max_bytes)


def _unlisted(source: str, error: Exception) -> SettingsError:
    why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return SettingsError(
        f"{source!r} cannot be listed: {why}; expected a folder, a ZIP archive, a CSV file with a column `path`, or an "
        "address such as s3://bucket/prefix"
    )


def _shown(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")


def _folder(root: Path, max_bytes: int) -> Found:
    source, waiting = FolderSource(root, max_bytes), [root]
    while waiting:
        path = waiting.pop()
        name = _shown(str(path.relative_to(root)))
        try:
            link, mode = path.is_symlink(), path.stat().st_mode
            if link and not path.resolve().is_relative_to(root):
                yield RefusedFile(name, _SYMLINK)
            elif not stat.S_ISDIR(mode):
                yield from _local(path, name, max_bytes, source)
            elif link:
                yield RefusedFile(name, "a link to a folder, which is not followed: import from that folder")
            else:
                with os.scandir(path) as entries:
                    # With its slash, so that all names are in order: "a.png" before "a/b.png".
                    ordered = sorted(
                        (f"{one.name}{'/' * one.is_dir(follow_symlinks=False)}" for one in entries), reverse=True
                    )
                waiting += (path / one for one in ordered)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            yield RefusedFile(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _local(path: Path, name: str, max_bytes: int, source: FolderSource | None = None) -> Found:
    """The file, or the members of the archive, at an absolute path."""
    source = source or FolderSource(Path("/"), max_bytes)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        yield RefusedFile(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return
    if not stat.S_ISREG(status.st_mode):
        yield RefusedFile(name, "a pipe, a socket, a device or a folder: give a file")
    elif path.suffix.lower() == ".zip":
        yield from _archive(path, name, max_bytes)
    elif status.st_size > max_bytes:
        yield RefusedFile(name, _too_large(status.st_size, max_bytes))
    else:
        # Unchecked: a path may hold bytes that are no UTF-8.
        read = partial(source.fetch, ImageRef.model_construct(id=name, uri=str(path)))
        yield SourceFile(name, status.st_size, {}, read, str(path))


def _too_large(size: int, max_bytes: int) -> str:
    return f"too large: {size:,} bytes, at most {max_bytes:,} are read: compress it"


def _archive(file: Path | BinaryIO, name: str, max_bytes: int) -> Found:
    try:
        # Closed with the last of its members, which are read later.
        archive = zipfile.ZipFile(file)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        yield RefusedFile(name, f"damaged, or no ZIP archive ({error}): pack it again")
        return
    for member in sorted(archive.infolist(), key=lambda one: one.filename):
        if member.is_dir():
            continue
        there = f"{name}/{member.filename}"
        if reason := _refusal(member, max_bytes):
            yield RefusedFile(there, reason)
        else:
            read = partial(_read, partial(archive.open, member), there, max_bytes)
            yield SourceFile(there, member.file_size, {}, read)


def _refusal(member: zipfile.ZipInfo, max_bytes: int) -> str:
    """Why a member of an archive is not read; empty where it is."""
    path, size = PurePosixPath(member.filename.replace("\\", "/")), member.file_size
    leads_out = path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])
    bomb = size > 2**20 and size > MAX_RATIO * member.compress_size
    problems = (
        (leads_out, "its name leads out of the archive"),
        (stat.S_ISLNK(member.external_attr >> 16), "a link in an archive: pack the file itself"),
        (member.flag_bits & 1, "encrypted: unpack the archive with its password first"),
        (
            member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
            "packed by another method than deflate: pack it again",  # zipfile unpacks the others without a limit
        ),
        (path.suffix.lower() == ".zip", "an archive inside an archive: unpack it first"),
        (size > max_bytes, _too_large(size, max_bytes)),
        (bomb, f"a decompression bomb: {member.compress_size:,} bytes that unpack to {size:,}"),
    )
    return next((reason for is_bad, reason in problems if is_bad), "")


def _read(open_file: Callable[[], Any], name: str, max_bytes: int) -> bytes:
    try:
        with open_file() as file:
            content: bytes = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError(f"{name} cannot be read: it is no longer there", "missing") from error
    except Exception as error:  # zlib, zipfile and each store raise errors of their own
        kind = ImageError.kind_of(error) if isinstance(error, OSError) else "damaged"
        why = re.sub(r"\?\S+", "?...", str(error))  # the query of an address may hold a signature
        raise ImageError(f"{name} cannot be read: {type(error).__name__}: {why}", kind) from error
    if len(content) > max_bytes:
        raise ImageError(f"{name} is {_too_large(len(content), max_bytes)}", "too-large")
    return content


def _bucket(source: str, max_bytes: int) -> Found:
    scheme = source.partition("://")[0]
    if scheme not in SCHEMES or "::" in source:  # which chains file systems of any scheme
        raise _unlisted(source, ValueError(f"{scheme}:// is none of {', '.join(SCHEMES)}"))
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingExtra(f"{source} needs fsspec: `pip install fsspec`") from error
    try:
        store, root = url_to_fs(source)
        listed = {root: {}} if scheme == "https" else store.find(root, detail=True)
    except ImportError as error:
        raise MissingExtra(f"{source}: {error}") from error
    except Exception as error:  # each store raises errors of its own
        raise _unlisted(source, error) from error
    if not listed:
        raise SettingsError(f"{source} holds no file: is the prefix right?")
    return _objects(store, scheme, root, listed, max_bytes)


def _objects(store: Any, scheme: str, root: str, listed: dict[str, dict[str, Any]], max_bytes: int) -> Found:
    for path in sorted(listed):
        # The query of a web address may hold a signature.
        there, size = path.partition("?")[0] if scheme == "https" else path, listed[path].get("size")
        name = path.removeprefix(root).lstrip("/") or PurePosixPath(there).name
        opened = partial(store.open, path, "rb")
        if there.lower().endswith(".zip"):
            try:
                yield from _archive(opened(), name, max_bytes)
            except Exception as error:  # noqa: BLE001 - each store raises errors of its own
                yield RefusedFile(name, f"cannot be read: {type(error).__name__}: {error}")
        elif size is not None and size > max_bytes:
            yield RefusedFile(name, _too_large(size, max_bytes))
        else:
            address = path if "://" in path else f"{scheme}://{path}"
            yield SourceFile(name, size, {}, partial(_read, opened, name, max_bytes), address)


def _table(path: Path, max_bytes: int) -> Found:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            columns = next(csv.reader([header], delimiter=separator), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unlisted(str(path), error) from error
    columns = [one.strip() for one in columns]
    if "path" not in columns:
        raise SettingsError(f"{path} has the columns {', '.join(columns) or '(none)'}: expected one called `path`")
    return _rows(path, columns, separator, max_bytes)


def _rows(path: Path, columns: list[str], separator: str, max_bytes: int) -> Found:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, columns, "", "", delimiter=separator)
        next(rows, None)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise SettingsError(f"{path}, after line {rows.line_num}: {error}: save it as CSV UTF-8") from error
            if not (name := row.pop("path").strip()):
                yield RefusedFile(f"line {rows.line_num}", "its path is empty")
                continue
            try:
                found = walk(name, max_bytes=max_bytes) if "://" in name else None
            except (SettingsError, MissingExtra) as error:
                yield RefusedFile(name, str(error))
                continue
            for one in found or _local(path.resolve().parent / name, name, max_bytes):
                if isinstance(one, SourceFile):
                    one.fields.update({key: value.strip() for key, value in row.items() if key and value})
                yield one
