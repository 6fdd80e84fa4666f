"""Files that appear whole or not at all, and records in them."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel

ABANDONED_AFTER_S = 3600.0  # nothing is written for so long: whoever began it was killed

R = TypeVar("R", bound=FrozenModel)


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


def write_record(path: Path, record: FrozenModel) -> None:
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
        publish_folder(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish_folder(folder: Path, target: Path) -> None:
    """Give a finished folder its name, once all that is in it has reached the disk.

    Raises:
        OSError: the disk refuses, the folder is gone, or a folder that is not empty has that name.
    """
    # A rename can reach the disk before what is in the files: after a power cut a whole folder of empty files.
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    folder.rename(target)
    _sync(target.parent)


def remove_half_written(folder: Path) -> None:
    """Remove what killed processes left of the files that they were replacing there. Never raises."""
    before = time.time() - ABANDONED_AFTER_S
    for path in folder.glob(".*"):
        try:
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink()
        except OSError:  # gone meanwhile, or the next one's to remove
            continue


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
