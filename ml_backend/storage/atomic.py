"""Files that appear whole or not at all, and records in them."""

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel

ABANDONED_AFTER_S = 3600.0
"""After so long without a write, the process that was writing a temporary file is dead."""

PROBE_BYTES = 4096  # a block of most file systems

CACHED_RECORDS, CACHED_BYTES = 64, 16 * 2**20
"""Records in memory, the last that were read, and the size of their files; of a file only its newest content."""

R = TypeVar("R", bound=FrozenModel)
_CACHE: dict[tuple[Path, type[FrozenModel]], tuple["FileState", FrozenModel | None]] = {}  # least recently read first
_LOCK = threading.Lock()


class FileState(NamedTuple):
    """Tells one content of a file from the next; all 0 where there is no file."""

    mtime_ns: int = 0
    size: int = 0
    inode: int = 0


def file_state(path: Path) -> FileState:
    """The state of a file or folder."""
    try:
        found = path.stat()
    except OSError:
        return FileState()
    return FileState(found.st_mtime_ns, found.st_size, found.st_ino)


def write_atomically(path: Path, content: bytes, *, parents: bool = True) -> None:
    """Write a temporary file and rename it: a reader sees the old file or the new one, also after a crash.

    Args:
        path: of the file.
        content: all of it.
        parents: make the folder where it is missing; otherwise one that was removed is not made again.

    Raises:
        OSError: the disk refuses.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def check_writable(folder: Path, *, make: bool = False) -> None:
    """Write to the data folder and to the projects' folders in it, and leave nothing there.

    Args:
        folder: the data folder.
        make: make it where it is missing.

    Raises:
        StorageError: names the folder, the user of this process, and the way out.
    """
    place = folder
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *folder.glob("projects/"), *folder.glob("projects/*/")):
            # Nothing is written to those of the projects that may be written: there are many, and /health asks often.
            if place == folder or not os.access(place, os.W_OK | os.X_OK):
                with tempfile.TemporaryFile(dir=place) as file:
                    file.write(bytes(PROBE_BYTES))
    except OSError as error:
        user, inside = f"{os.geteuid()}:{os.getegid()}", "" if place == folder else f"{place.absolute()} in "
        raise StorageError(
            f"{inside}the data folder {folder.absolute()} cannot be written by user {user} "
            f"({error.strerror or error}): "
            f"{_way_out(error, folder, user)}, or let AL_DATA_DIR name another folder"
        ) from None


def _way_out(error: OSError, folder: Path, user: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on its disk"
    if error.errno == errno.EROFS:
        return "mount it for writing"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"`chown -R {user} {folder.absolute()}`"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file is in its place, move it away"
    return "make it"


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
    """Read a record; None where there is no such file.

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
        raise StorageError(f"{path} is damaged ({error.error_count()} errors): move it away to continue") from error


def read_cached(path: Path, kind: type[R]) -> R | None:
    """Read a record that this process may have read before: it is parsed again where its file has changed.

    Raises:
        StorageError: see ``read_record``.
    """
    state = file_state(path)
    with _LOCK:
        known = _CACHE.pop((path, kind), None)
    if known is None or known[0] != state:
        known = (state, read_record(path, kind))
    with _LOCK:
        _CACHE[path, kind] = known
        while len(_CACHE) > 1 and (
            len(_CACHE) > CACHED_RECORDS or sum(held.size for held, _ in _CACHE.values()) > CACHED_BYTES
        ):
            del _CACHE[next(iter(_CACHE))]
    return known[1]  # type: ignore[return-value]


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder, renamed to the target where the block succeeds and removed where it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield folder
        publish_folder(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish_folder(folder: Path, target: Path) -> None:
    """Rename a finished folder, once all that is in it has reached the disk.

    Raises:
        OSError: the disk refuses, the folder is gone, or a folder that is not empty has that name.
    """
    # A rename can reach the disk before the content of the files: after a power cut a whole folder of empty files.
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    folder.rename(target)
    _sync(target.parent)


def remove_half_written(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder. Never raises."""
    before = time.time() - ABANDONED_AFTER_S
    for path in folder.glob(".*"):
        try:
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink()
        except OSError:  # already gone, or for the next one to remove
            continue


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
