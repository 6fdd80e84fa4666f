"""A folder of small binary entries that can be lost at any time: the ground that both caches stand on.

Safe for several processes without locks: an entry is written beside and renamed into place, carries its own
checksum, and a damaged or missing one is simply not there. Nothing is synced to disk; the checksum finds what a
power cut left behind.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

__all__ = ["BlobFolder"]

_LOG = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_LEFTOVER_AGE_S = 3600.0  # a file beside, this old, belongs to a process that died
_OVERSHOOT = 8  # an eighth of the limit may be put before the folder is walked again
_BLOCK = 4096  # bytes: what even a small entry takes on most disks
_MARK = "trimmed-to"  # beside the entries: the limit that they are known to fit into


class BlobFolder:
    """Entries by key. The folder is made when something is first kept.

    Args:
        folder: where the entries lie; other files in it are left alone.
        limit_bytes: the room on the disk that they may take, kept to by dropping those that were not used for
            longest; each process may overshoot it by an eighth until it trims. None: no limit.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._put_bytes = 0  # since the last walk
        self._walking = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The entry, or None where there is none or it is damaged."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        digest, payload = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        # The time of last use, by which `trim` chooses.
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Keep an entry. A disk that refuses is logged and no error: what is cached can be computed again."""
        path = self._path(key)
        beside: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".beside")
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).digest())
                file.write(payload)
            if not self._put_bytes:
                # Before the entry is there: if this process dies, the next one walks.
                self._mark.unlink(missing_ok=True)
            Path(beside).replace(path)
        except OSError as error:
            _LOG.warning("the cache in %s cannot be written, going on without it: %s", self._folder, error)
            if beside is not None:
                Path(beside).unlink(missing_ok=True)
            return
        self._put_bytes += -(-(_DIGEST_BYTES + len(payload)) // _BLOCK) * _BLOCK
        if self._limit_bytes is not None and self._put_bytes * _OVERSHOOT > self._limit_bytes:
            self.trim()

    def trim(self) -> int:
        """Drop the entries that were not used for longest, until the rest fits.

        The folder is walked only where something was put since it was last known to fit (a second or two for 100,000
        entries), and by one thread.

        Returns:
            Bytes that were freed.
        """
        if self._limit_bytes is None or self._fits(self._limit_bytes) or not self._walking.acquire(blocking=False):
            return 0
        try:
            self._put_bytes = 0
            freed = self._walk(self._limit_bytes)
            with contextlib.suppress(OSError):
                self._mark.write_text(str(self._limit_bytes))
        finally:
            self._walking.release()
        return freed

    def _fits(self, limit_bytes: int) -> bool:
        if self._put_bytes:
            return False
        try:
            return int(self._mark.read_text()) <= limit_bytes
        except (OSError, ValueError):  # none, or half written
            return False

    def _walk(self, limit_bytes: int) -> int:
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process dropped it
            if path.suffix != ".beside":
                # A small entry takes a whole block; what is not yet on the disk has none.
                size = max(status.st_size, status.st_blocks * 512)
                entries.append((status.st_mtime, size, path))
            elif status.st_mtime < time.time() - _LEFTOVER_AGE_S:
                _drop(path)
        excess = sum(size for _, size, _ in entries) - limit_bytes
        freed = 0
        for _, size, path in sorted(entries):
            if freed >= excess:
                break
            if _drop(path):
                freed += size
        return freed

    @property
    def _mark(self) -> Path:
        return self._folder / _MARK

    def _path(self, key: str) -> Path:
        # Hashed, so that any text is a safe file name.
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name[2:]


def _drop(path: Path) -> bool:
    """Whether it is gone. A disk that refuses is no error: a cache that is too large is better than no round."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _LOG.warning("%s cannot be dropped from the cache: %s", path, error)
        return False
    return True
