"""Sources of image files: the interface, and a folder on disk."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Protocol

from ml_backend.errors import ImageError
from ml_backend.schemas import ImageRef


class ImageSource(Protocol):
    """Fetches images. Called from several threads at once."""

    def fetch(self, image: ImageRef) -> bytes:
        """Bytes of the image file.

        Raises:
            ImageError: it cannot be fetched; the message names it.
        """
        ...

    def cache_key(self, image: ImageRef) -> str:
        """Key of the file in a cache: equal keys promise equal bytes, for any project and any task id.

        Raises:
            ImageError: there is no such image, where that is known without fetching it.
        """
        ...


MAX_BYTES = 256 * 2**20  # a chest X-ray has 10 to 40 MB


class FolderSource:
    """Reads ``ImageRef.uri`` as a path below one folder. Satisfies ``ImageSource``.

    Args:
        root: the folder; a uri that leads out of it (``..``, an absolute path, a link) is refused.
        max_bytes: of one image.
    """

    def __init__(self, root: Path, max_bytes: int = MAX_BYTES) -> None:
        self._root = root.resolve()
        self._max_bytes = max_bytes

    def fetch(self, image: ImageRef) -> bytes:
        path = self._path(image)
        try:
            # The path has no link in it any more: one that takes its place now is not followed; no pipe is waited for.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                kind = os.fstat(file.fileno())
                if not stat.S_ISREG(kind.st_mode):
                    raise ImageError(f"image {image.id}: {path} is a folder, a pipe or a device: give a file")
                if kind.st_size > self._max_bytes:
                    raise ImageError(f"image {image.id}: {path} has {kind.st_size} bytes, more than {self._max_bytes}")
                return file.read(self._max_bytes)
        except OSError as error:
            raise self._unreadable(image, path, error) from error

    def cache_key(self, image: ImageRef) -> str:
        """By path, size and time of the last change: a file that was replaced is read again."""
        path = self._path(image)
        try:
            status = path.stat()
        except OSError as error:
            raise self._unreadable(image, path, error) from error
        return hashlib.sha256(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()

    def _path(self, image: ImageRef) -> Path:
        try:
            path = (self._root / image.uri).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, a loop of links
            raise ImageError(f"image {image.id}: {image.uri!r} is no path: {error}") from error
        if not path.is_relative_to(self._root):
            raise ImageError(f"image {image.id}: {image.uri!r} leads out of {self._root}: give a path inside it")
        return path

    @staticmethod
    def _unreadable(image: ImageRef, path: Path, error: OSError) -> ImageError:
        return ImageError(
            f"image {image.id}: {path} cannot be read: {error.strerror or error}", ImageError.kind_of(error)
        )
