"""Sources of image files: the interface, and a folder on disk."""

import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Protocol

from ml_backend.errors import ImageError, SettingsError
from ml_backend.registry import build_plugin, plugins
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


def with_plugins(source: ImageSource) -> ImageSource:
    """The same source, with addresses of further schemes read by the sources that installed packages add.

    An entry point of the group ``ml_backend.image_sources`` is named as the scheme (``vault`` for ``vault://...``), and
    is called without arguments for an ``ImageSource``.
    """
    added = plugins("image_sources")
    return _BySchemes(source, frozenset(added)) if added else source


class _BySchemes:
    def __init__(self, default: ImageSource, schemes: frozenset[str]) -> None:
        self._default = default
        self._schemes = schemes
        self._loaded: dict[str, ImageSource] = {}
        self._lock = threading.Lock()

    def fetch(self, image: ImageRef) -> bytes:
        return self._source(image).fetch(image)

    def cache_key(self, image: ImageRef) -> str:
        return self._source(image).cache_key(image)

    def _source(self, image: ImageRef) -> ImageSource:
        scheme, separator, _ = image.uri.partition("://")
        if not separator or scheme not in self._schemes:
            return self._default
        with self._lock:
            if scheme not in self._loaded:
                try:
                    self._loaded[scheme] = build_plugin("image_sources", scheme)
                except SettingsError as error:
                    raise ImageError(f"image {image.id} ({scheme}://...): {error}") from error
            return self._loaded[scheme]


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
            raise ImageError(f"image {image.id}: {image.uri!r} is not a path: {error}") from error
        if not path.is_relative_to(self._root):
            raise ImageError(f"image {image.id}: {image.uri!r} leads out of {self._root}: give a path inside it")
        return path

    @staticmethod
    def _unreadable(image: ImageRef, path: Path, error: OSError) -> ImageError:
        return ImageError(
            f"image {image.id}: {path} cannot be read: {error.strerror or error}", ImageError.kind_of(error)
        )
