"""Files that appear whole or not at all, and records in them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ml_backend.errors import StorageError
from ml_backend.records import Record

__all__ = ["folder_beside", "read_record", "replace_file", "write_atomically", "write_record"]

R = TypeVar("R", bound=Record)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside and rename: a reader sees the old file or the new one, also after a crash.

    The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


def replace_file(path: Path, content: bytes) -> None:
    """The same in a folder that must be there: one that was removed is not made again."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_record(path: Path, record: Record) -> None:
    """Replace a record.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        write_atomically(path, record.model_dump_json(indent=1).encode())
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error}") from error


def read_record(path: Path, kind: type[R]) -> R | None:
    """A record; None where there is no such file.

    Raises:
        StorageError: it is damaged, or the disk refuses.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}") from error
    except ValidationError as error:
        raise StorageError(f"{path} is damaged ({error.error_count()} mistakes): move it away to go on") from error


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A new folder that takes its name when the block ends well, and is gone when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
