"""Cache of decoded images, by content: no image is fetched or decoded twice, whatever task or project has it."""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ml_backend.config import is_data_uri
from ml_backend.errors import ImageError
from ml_backend.images.decode import PREPROCESSING, Pixels, UndecodableImage, decode_image
from ml_backend.images.quarantine import QuarantinedSource
from ml_backend.images.source import ImageSource
from ml_backend.schemas import ImageRef

_LOG = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_LEFTOVER_AGE_S = 3600.0  # a temporary file this old belongs to a process that died
_OVERSHOOT = 8  # an eighth of the limit may be put before the folder is walked again
_BLOCK = 4096  # bytes: what even a small entry takes on most disks
_MARK = "trimmed-to"  # a file among the entries: the limit that they are known to fit into


class DiskCache:
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
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".beside")
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).digest())
                file.write(payload)
            if not self._put_bytes:
                # Before the entry is there: if this process dies, the next one walks.
                self._mark.unlink(missing_ok=True)
            Path(temporary).replace(path)
        except OSError as error:
            _LOG.warning("the cache in %s cannot be written, continuing without it: %s", self._folder, error)
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
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
    """Delete a file and return whether it is gone; a failure is only logged."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _LOG.warning("%s cannot be dropped from the cache: %s", path, error)
        return False
    return True


_HASHES_SHARE = 12  # one part in so many of the limit
_SHOWN = 200  # characters of an address in an error
_HASHES = "hashes"


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An image as the network sees it.

    Attributes:
        key: names the pixels by what they were made from; the same image under two uris has one key.
        pixels: grey levels, 0 black to 255 white.
    """

    key: str
    pixels: UInt8[Pixels, "side side"]


class ImageCache:
    """Images of one source, decoded at one side. Safe for several threads and several processes.

    Args:
        source: where an image comes from that is not in the cache.
        folder: where pixels are kept; may be shared by any number of caches.
        side: side of the decoded square in pixels.
        limit_bytes: that both tables may take on the disk; None for no limit.
    """

    def __init__(self, source: ImageSource, folder: Path, side: int, limit_bytes: int | None = None) -> None:
        self._source = source
        # At 224 pixels both hold about as many images: 4,096 bytes on the disk against 53,248.
        for_hashes = None if limit_bytes is None else limit_bytes // _HASHES_SHARE
        for_pixels = None if limit_bytes is None else limit_bytes - limit_bytes // _HASHES_SHARE
        self._hashes = DiskCache(folder / _HASHES, for_hashes)
        self._pixels = DiskCache(folder / "pixels", for_pixels)
        self._side = side

    def key(self, image: ImageRef) -> str | None:
        """``DecodedImage.key`` where it is known without fetching the image.

        Raises:
            ImageError: the source knows of no such image.
        """
        content_hash = self._hashes.get(self._source.cache_key(image))
        return None if content_hash is None else self._key(content_hash.decode())

    def read(self, image: ImageRef) -> DecodedImage:
        """The image from the cache, else fetched, decoded and kept.

        Raises:
            ImageError: it cannot be fetched or decoded; never kept, because the next attempt may succeed.
        """
        known = self.key(image)
        if known is not None and (found := self._find(known)) is not None:
            return found
        content = self._source.fetch(image)
        content_hash = hashlib.sha256(content).hexdigest()
        key = self._key(content_hash)
        decoded = self._find(key)
        if decoded is None:
            decoded = DecodedImage(key, self._decode(image, content))
            self._pixels.put(key, decoded.pixels.tobytes())
        # Last, so that a hash is only known of an image that can be decoded.
        self._hashes.put(self._source.cache_key(image), content_hash.encode())
        return decoded

    def trim(self) -> None:
        """Drop what was not used for longest, until the rest fits into the limit."""
        self._pixels.trim()
        self._hashes.trim()

    def _decode(self, image: ImageRef, content: bytes) -> UInt8[Pixels, "side side"]:
        try:
            return decode_image(content, self._side, _name(image)).pixels
        except UndecodableImage as error:
            # Only here is it known that what was fetched is no picture.
            if isinstance(self._source, QuarantinedSource):
                self._source.undecodable(image, error)
            raise

    def _key(self, content_hash: str) -> str:
        return f"{content_hash}|{PREPROCESSING}|{self._side}"

    def _find(self, key: str) -> DecodedImage | None:
        payload, pixels = self._pixels.get(key), self._side**2
        # Version 0.2 kept the image's width and height behind the pixels.
        if payload is None or len(payload) not in (pixels, pixels + 8):
            return None
        return DecodedImage(key, np.frombuffer(payload, np.uint8, pixels).reshape(self._side, self._side))


def content_digests(source: ImageSource, folder: Path, images: Iterable[ImageRef]) -> dict[str, str]:
    """Address -> SHA-256 of the bytes there, of the images that were read before; nothing is fetched.

    Args:
        source: of the images.
        folder: of their ``ImageCache``.
        images: an address that occurs twice is looked up once.
    """
    hashes = DiskCache(folder / _HASHES)
    found: dict[str, str] = {}
    for uri, image in {image.uri: image for image in images}.items():
        try:
            digest = hashes.get(source.cache_key(image))
        except ImageError:
            continue
        if digest is not None:
            found[uri] = digest.decode()
    return found


def _name(image: ImageRef) -> str:
    """The id, and the address without what could open the image to others: a signature, or a password."""
    if is_data_uri(image.uri):
        return f"{image.id} (in its task)"
    address = image.uri.partition("?")[0]
    scheme, divider, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    uri = f"{scheme}{divider}{host.rpartition('@')[2]}{slash}{path}" if divider else address
    return f"{image.id} ({uri if len(uri) <= _SHOWN else uri[:_SHOWN] + '...'})"
