"""Decoded images, kept by content: no image is fetched or decoded twice, whatever task or project it hangs in.

Two small tables in one folder: from the source's key to the hash of the bytes, and from that hash (with the
preprocessing and the side) to the pixels and the shape that the film had. Task ids stand in neither, because Label
Studio hands them out again. The raw bytes are not kept: they are some fifty times larger than the pixels, and only a
new ``image_side`` would ask for them.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ml_backend.errors import ImageError
from ml_backend.images.blobs import BlobFolder
from ml_backend.images.decode import PREPROCESSING, DecodedFilm, Pixels, decode_film
from ml_backend.images.quarantined import QuarantinedSource
from ml_backend.images.source import ImageSource
from ml_backend.images.troubles import UndecodableImage
from ml_backend.records import ImageRef
from ml_backend.settings import is_data_uri

__all__ = ["DecodedImage", "ImageCache", "content_digests"]

_HASHES_SHARE = 12  # one part in so many of the limit
_SIZE = struct.Struct("<II")  # width and height, behind the pixels
_SHOWN = 200  # characters of an address in an error
_HASHES = "hashes"


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An image as the network sees it.

    Attributes:
        key: names the pixels by what they were made from; the same film under two uris has one key.
        pixels: grey levels, 0 black to 255 white.
        size: width and height of the film, upright, before it was squashed to the square; None where a version kept the
            pixels that did not keep it.
    """

    key: str
    pixels: UInt8[Pixels, "side side"]
    size: tuple[int, int] | None = None


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
        self._hashes = BlobFolder(folder / _HASHES, for_hashes)
        self._pixels = BlobFolder(folder / "pixels", for_pixels)
        self._side = side

    def key(self, image: ImageRef) -> str | None:
        """``DecodedImage.key`` where it is known without fetching the image.

        Raises:
            ImageError: the source knows of no such image.
        """
        content_hash = self._hashes.get(self._source.cache_key(image))
        return None if content_hash is None else self._key(content_hash.decode())

    def read(self, image: ImageRef, *, sized: bool = False) -> DecodedImage:
        """The image from the cache, else fetched, decoded and kept.

        Args:
            image: what to read.
            sized: with its size, even where that takes fetching it again.

        Raises:
            ImageError: it cannot be fetched or decoded; never kept, because the next attempt may succeed.
        """
        known = self.key(image)
        found = None if known is None else self._find(known)
        if found is not None and not (sized and found.size is None):
            return found
        content = self._source.fetch(image)
        content_hash = hashlib.sha256(content).hexdigest()
        key = self._key(content_hash)
        decoded = self._find(key)
        if decoded is None or (sized and decoded.size is None):
            film = self._decode(image, content)
            decoded = DecodedImage(key, film.pixels, film.size)
            self._pixels.put(key, film.pixels.tobytes() + _SIZE.pack(*film.size))
        # Last, so that a hash is only known of an image that can be decoded.
        self._hashes.put(self._source.cache_key(image), content_hash.encode())
        return decoded

    def trim(self) -> None:
        """Drop what was not used for longest, until the rest fits into the limit."""
        self._pixels.trim()
        self._hashes.trim()

    def _decode(self, image: ImageRef, content: bytes) -> DecodedFilm:
        try:
            return decode_film(content, self._side, _name(image))
        except UndecodableImage as error:
            # Only here is it known that what was fetched is no picture.
            if isinstance(self._source, QuarantinedSource):
                self._source.undecodable(image, error)
            raise

    def _key(self, content_hash: str) -> str:
        return f"{content_hash}|{PREPROCESSING}|{self._side}"

    def _find(self, key: str) -> DecodedImage | None:
        payload, pixels = self._pixels.get(key), self._side**2
        if payload is None or len(payload) not in (pixels, pixels + _SIZE.size):
            return None
        size = _SIZE.unpack_from(payload, pixels) if len(payload) > pixels else None
        return DecodedImage(key, np.frombuffer(payload, np.uint8, pixels).reshape(self._side, self._side), size)


def content_digests(source: ImageSource, folder: Path, images: Iterable[ImageRef]) -> dict[str, str]:
    """Address -> SHA-256 of the bytes there, of the images that were read before; nothing is fetched.

    Args:
        source: of the images.
        folder: of their ``ImageCache``.
        images: an address that stands there twice is looked up once.
    """
    hashes = BlobFolder(folder / _HASHES)
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
