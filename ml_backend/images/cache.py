"""Cache of decoded images, by content: no image is fetched or decoded twice, whatever task or project has it."""

import contextlib
import hashlib
import logging
import os
import sqlite3
import tempfile
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

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

    def drop(self, key: str) -> None:
        """Delete an entry where there is one; a failure is only logged."""
        _drop(self._path(key))

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


TABLE: Final = "table.sqlite3"
"""Name of the file of a ``CacheTable`` in its folder."""

_SCHEMA = """
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = TRUNCATE;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, value BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS used (id INTEGER PRIMARY KEY, at INTEGER NOT NULL);
"""
_SIZES = ("page_size", "page_count", "freelist_count")
_FIND = "SELECT key, value, at FROM entry JOIN used USING (id) WHERE key IN ({})"
_PUT = "INSERT INTO entry (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_USE = "INSERT OR REPLACE INTO used SELECT id, {} FROM entry WHERE key IN ({})"
_KEYS = 512  # in one statement
_CHECK_BYTES = 4
_USE_EVERY_S = 3600  # the time of last use is exact to an hour: an order that is read each minute writes nothing
_BUSY_S = 60.0  # to wait for another process that writes

T = TypeVar("T")


class CacheTable:
    """Small entries by key in one SQLite file. Safe for several threads, processes and hosts, and for ``kill -9``.

    It has a rollback journal, since hosts that share a network drive cannot share a write-ahead log. A damaged file is
    renamed to ``table.damaged`` and begun anew; a disk that refuses is logged once and no error: what is cached can be
    computed again. Entries that an earlier version kept as files move into the table when they are read.

    Args:
        folder: of the file; made when something is first kept.
        limit_bytes: that the file may take, kept to by dropping those that were not used for longest; overshot by an
            eighth until it trims. None: no limit.
        page_bytes: of a new file, a power of 2: above the size of some entries, so that little of a page stays empty.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None, page_bytes: int = _BLOCK) -> None:
        self._path = folder / TABLE
        self._page_bytes = page_bytes
        self._limit_bytes = limit_bytes
        self._files = DiskCache(folder) if any(folder.glob("??/*")) else None
        self._lock = threading.Lock()
        self._waiting: deque[dict[bytes, bytes]] = deque()
        self._database: sqlite3.Connection | None = None
        self._warned = False

    def find(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The entries that there are and that are whole, of any number of keys."""
        key_of = {_digest(key): key for key in keys}
        found: dict[str, bytes] = {}
        with self._lock:
            none: list[tuple[bytes, bytes]] = []
            for name, stored in self._do(lambda database: _select(database, list(key_of)), none, make=False):
                if stored[:_CHECK_BYTES] == _check(name, value := stored[_CHECK_BYTES:]):
                    found[key_of[name]] = value
        if self._files is not None:
            files = {key: self._files.get(key) for key in key_of.values() if key not in found}
            moved = {key: value for key, value in files.items() if value is not None}
            with self._lock:
                kept = self._keep(_rows(moved))
            for key in moved if kept else ():
                self._files.drop(key)
            found |= moved
        return found

    def put(self, entries: Mapping[str, bytes]) -> None:
        """Keep entries."""
        self._waiting.append(_rows(entries))
        with self._lock:
            # In one transaction with what other threads have put meanwhile.
            rows: dict[bytes, bytes] = {}
            while self._waiting:
                rows |= self._waiting.popleft()
            self._keep(rows)

    def trim(self) -> None:
        """Drop the entries that were not used for longest, until the rest fits."""
        if (limit := self._limit_bytes) is None:
            return
        with self._lock:
            taken = self._do(lambda database: _make_room(database, limit, 0), 0, make=False)
        if self._files is not None:  # none of them was used since they are no longer written
            DiskCache(self._path.parent, max(limit - taken, 0)).trim()

    def _keep(self, rows: Mapping[bytes, bytes]) -> bool:
        """Whether the rows are kept. Called under the lock."""
        kept = not rows or self._do(lambda database: _insert(database, rows), False, make=True)
        if (limit := self._limit_bytes) is not None and kept:
            self._do(lambda database: _make_room(database, limit, limit // _OVERSHOOT), 0, make=False)
        return kept

    def _do(self, action: Callable[[sqlite3.Connection], T], otherwise: T, *, make: bool) -> T:
        """The action's result, else that of no database. Called under the lock."""
        try:
            for _ in range(2):
                try:
                    return otherwise if (database := self._open(make=make)) is None else action(database)
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError as error:
                    self._set_aside(error)
        except (sqlite3.Error, OSError) as error:
            if not self._warned:
                _LOG.warning("the cache %s cannot be used, continuing without it: %s", self._path, error)
            self._warned = True
        return otherwise

    def _open(self, *, make: bool) -> sqlite3.Connection | None:
        if self._database is None and (make or self._path.exists()):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, _BUSY_S, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._database.close)
            self._database.executescript(f"PRAGMA page_size = {self._page_bytes}; {_SCHEMA}")
        return self._database

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        _LOG.warning("the cache %s is damaged, and begun anew: %s", self._path, error)
        if self._database is not None:
            self._database.close()
        self._database = None
        self._path.with_name(f"{TABLE}-journal").unlink(missing_ok=True)
        self._path.replace(self._path.with_suffix(".damaged"))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:16]


def _rows(entries: Mapping[str, bytes]) -> dict[bytes, bytes]:
    named = ((_digest(key), value) for key, value in entries.items())
    return {name: _check(name, value) + value for name, value in named}


def _check(name: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(name)).to_bytes(_CHECK_BYTES, "little")


def _places(names: Sequence[bytes]) -> str:
    return ",".join("?" * len(names))


def _select(database: sqlite3.Connection, names: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Entries of these names, which have been used now."""
    found: list[tuple[bytes, bytes]] = []
    used, now = list[bytes](), int(time.time())
    for batch in (names[start : start + _KEYS] for start in range(0, len(names), _KEYS)):
        for name, value, at in database.execute(_FIND.format(_places(batch)), batch):
            found.append((name, value))
            if at < now - _USE_EVERY_S:
                used.append(name)
    if used:
        with database:
            database.execute("BEGIN IMMEDIATE")
            _use(database, used, now)
    return found


def _insert(database: sqlite3.Connection, rows: Mapping[bytes, bytes]) -> bool:
    with database:
        database.execute("BEGIN IMMEDIATE")
        database.executemany(_PUT, rows.items())
        _use(database, list(rows), int(time.time()))
    return True


def _make_room(database: sqlite3.Connection, limit: int, slack: int) -> int:
    """Where the entries take more than limit and slack, drop to 15/16 of the limit; returns the bytes they take."""
    size, pages, free = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
    if (taken := int(size * (pages - free))) <= limit + slack:
        return taken
    with database:
        database.execute("BEGIN IMMEDIATE")
        entries = database.execute("SELECT count(*) FROM used").fetchone()[0]
        most = entries - int(entries * limit * 15 / 16 / taken)
        ids = database.execute("SELECT id FROM used ORDER BY at, id LIMIT ?", (most,)).fetchall()
        database.executemany("DELETE FROM entry WHERE id = ?", ids)
        database.executemany("DELETE FROM used WHERE id = ?", ids)
    database.executescript(f"PRAGMA incremental_vacuum({max(pages - limit // size, 0)})")
    return limit


def _use(database: sqlite3.Connection, names: Sequence[bytes], now: int) -> None:
    for batch in (names[start : start + _KEYS] for start in range(0, len(names), _KEYS)):
        database.execute(_USE.format(now, _places(batch)), batch)


def warn_if_too_small(what: str, images: int, entry_bytes: int, limit_bytes: int | None) -> None:
    """Log, once a process, the ``AL_CACHE_GB`` that so many images need where the limit is below it."""
    if limit_bytes is not None and images * entry_bytes > limit_bytes:
        _warn_once(
            f"AL_CACHE_GB={limit_bytes / 1e9:g} holds the {what} of {limit_bytes // entry_bytes:,} of {images:,} "
            "images: the others are fetched and computed again in each round: set "
            f"AL_CACHE_GB={images * entry_bytes / 1e9 + 0.1:.1f} or more"
        )


@cache
def _warn_once(message: str) -> None:
    _LOG.warning(message)


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
        # Of a hash 120 bytes: at 224 pixels, or with 2,048 features, of many more images than the rest holds.
        for_hashes = None if limit_bytes is None else limit_bytes // _HASHES_SHARE
        for_pixels = None if limit_bytes is None else limit_bytes - limit_bytes // _HASHES_SHARE
        self._hashes = CacheTable(folder / _HASHES, for_hashes)
        self._pixels = DiskCache(folder / "pixels", for_pixels)
        self._side = side
        self._limit_bytes = for_pixels

    def warn_if_too_small(self, images: int) -> None:
        """See ``warn_if_too_small``."""
        entry_bytes = -(-(_DIGEST_BYTES + self._side**2) // _BLOCK) * _BLOCK
        warn_if_too_small("pixels", images, entry_bytes, self._limit_bytes)

    def key(self, image: ImageRef) -> str | None:
        """``DecodedImage.key`` where it is known without fetching the image.

        Raises:
            ImageError: the source knows of no such image.
        """
        address = self._source.cache_key(image)
        content_hash = self._hashes.find([address]).get(address)
        return None if content_hash is None else self._key(_hex(content_hash))

    def keys(self, images: Sequence[ImageRef]) -> list[str | ImageError | None]:
        """``key`` of each image, in one look-up; its error where the source knows of no such image."""
        addresses = [_address(self._source, image) for image in images]
        found = self._hashes.find(address for address in addresses if isinstance(address, str))
        return [
            address
            if isinstance(address, ImageError)
            else None
            if (content_hash := found.get(address)) is None
            else self._key(_hex(content_hash))
            for address in addresses
        ]

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
        self._hashes.put({self._source.cache_key(image): bytes.fromhex(content_hash)})
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
    addresses = {image.uri: _address(source, image) for image in images}
    found = CacheTable(folder / _HASHES).find(one for one in addresses.values() if isinstance(one, str))
    return {uri: _hex(found[one]) for uri, one in addresses.items() if isinstance(one, str) and one in found}


def _address(source: ImageSource, image: ImageRef) -> str | ImageError:
    try:
        return source.cache_key(image)
    except ImageError as error:
        return error


def _hex(content_hash: bytes) -> str:
    # Version 0.2 kept it as text.
    return content_hash.hex() if len(content_hash) == _DIGEST_BYTES else content_hash.decode()


def _name(image: ImageRef) -> str:
    """The id, and the address without what could open the image to others: a signature, or a password."""
    if is_data_uri(image.uri):
        return f"{image.id} (in its task)"
    address = image.uri.partition("?")[0]
    scheme, divider, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    uri = f"{scheme}{divider}{host.rpartition('@')[2]}{slash}{path}" if divider else address
    return f"{image.id} ({uri if len(uri) <= _SHOWN else uri[:_SHOWN] + '...'})"
