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
import time
from pathlib import Path

__all__ = ["BlobFolder"]

_LOG = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_LEFTOVER_AGE_S = 3600.0  # a file beside, this old, belongs to a process that died


class BlobFolder:
    """Entries by key. The folder is made when something is first kept.

    Args:
        folder: where the entries lie; other files in it are left alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
            Path(beside).replace(path)
        except OSError as error:
            _LOG.warning("the cache in %s cannot be written, going on without it: %s", self._folder, error)
            if beside is not None:
                Path(beside).unlink(missing_ok=True)

    def trim(self, limit_bytes: int) -> int:
        """Drop the entries that were not used for longest, until the rest fits.

        Args:
            limit_bytes: the size that may stay.

        Returns:
            Bytes that were freed.
        """
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process dropped it
            if path.suffix != ".beside":
                entries.append((status.st_mtime, status.st_size, path))
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
