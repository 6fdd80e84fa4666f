"""Image source that skips images known to be unreadable, and distinguishes a bad image from a host that is down.

An unreadable image is listed with its reason, and not tried again until its file changes or a growing pause is over.
Where one host does not answer for many images in a row, none of them is listed and the host is skipped for half a
minute, so that a dead host costs a round seconds and not hours. Where a host or bucket refuses access to many in a row
and serves none after them, none is listed either: a key that was rotated says nothing about the images. Of the further
ones every twentieth is asked for, until one is served: images that are gone may be refused too, with good ones behind.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol
from urllib.parse import urlsplit

from ml_backend.config import is_data_uri
from ml_backend.errors import ImageError, ImageErrorKind
from ml_backend.images.decode import FORMATS, PREPROCESSING
from ml_backend.images.source import ImageSource
from ml_backend.schemas import ImageRef

PASSING: frozenset[ImageErrorKind] = frozenset({"unreachable", "timed-out"})
"""Errors of the connection, which say little about the image itself."""

OF_THE_FILE: frozenset[ImageErrorKind] = frozenset({"too-large", "empty", "not-an-image", "unsupported", "damaged"})
"""Errors that stay until the file changes; the cause of the others is elsewhere: a setting, a right, a disk."""

STREAK = 20  # images in a row that a host does not serve: more than are asked for at once
SPARED_S = 30.0


class QuarantineList(Protocol):
    """Store of unreadable images. Called from several threads at once."""

    def bars(self, image_id: str, file: str, version: Callable[[], str]) -> str | None:
        """The reason not to try the image now, or None. Another ``file`` or ``version`` is another file."""
        ...

    def enter(self, image_id: str, file: str, trouble: str, reason: str, *, passing: bool, version: str = "") -> None:
        """Record a failed attempt to read an image."""
        ...

    def withdraw(self, image_ids: Iterable[str]) -> None:
        """Remove images that were recorded by mistake."""
        ...


class QuarantinedSource:
    """Source that does not fetch unreadable images again at every round. Implements ``ImageSource``.

    Args:
        source: where the images are.
        quarantine: of the project.
        now: seconds that only ever grow; for tests.
        version: identifies the file of an image whose cache key stays the same when the file is replaced; empty
            where its host sends nothing of the kind, None where the host did not answer.
    """

    def __init__(
        self,
        source: ImageSource,
        quarantine: QuarantineList,
        now: Callable[[], float] = time.monotonic,
        version: Callable[[ImageRef], str | None] = lambda _image: "",
    ) -> None:
        self._source = source
        self._quarantine = quarantine
        self._hosts = _Hosts(now)
        self._ask_version = version
        self._silent: set[str] = set()  # hosts that gave no answer about a file: they are not asked about another

    def fetch(self, image: ImageRef) -> bytes:
        """See ``ImageSource``.

        Raises:
            ImageError: it cannot be had, is known to be bad, or its host is down.
            LabelStudioError: as the source does where no image can be had at all.
        """
        key = self.cache_key(image)
        host = _host(image.uri)
        if self._hosts.is_spared(host):
            raise ImageError(
                f"image {image.id} was not asked for: {host or 'its source'} gave none of {STREAK} images in a row; "
                f"the next round asks again. The last error: {self._hosts.errors[host]}"
            )
        try:
            content = self._source.fetch(image)
        except ImageError as error:
            self._failed(image, key, host, error)
            raise
        self._answered(host)
        return content

    def cache_key(self, image: ImageRef) -> str:
        """See ``ImageSource``.

        Raises:
            ImageError: there is no such image, or it is known to be bad.
        """
        try:
            key = self._source.cache_key(image)
        except ImageError as error:
            # No pause: finding out costs nothing. When the image comes back it has a key.
            self._enter(image, "", error)
            raise
        if (reason := self._quarantine.bars(image.id, _file(key), lambda: self._version(image))) is not None:
            raise ImageError(reason)
        return key

    def undecodable(self, image: ImageRef, error: ImageError) -> None:
        """Record that the fetched bytes cannot be decoded."""
        self._enter(image, self._source.cache_key(image), error)

    def _failed(self, image: ImageRef, key: str, host: str, error: ImageError) -> None:
        self._enter(image, key, error)
        if error.kind in PASSING:
            self._quarantine.withdraw(self._hosts.gave_no_answer(host, image.id, error))
        elif error.kind == "forbidden":
            self._quarantine.withdraw(self._hosts.refused(host, (image, key, str(error))))
        else:
            # It answered, though not with the image.
            self._answered(host)

    def _answered(self, host: str) -> None:
        # It has not refused all: the images that it refused are named after all.
        for image, key, reason in self._hosts.answered(host):
            self._enter(image, key, ImageError(reason, "forbidden"))

    def _enter(self, image: ImageRef, key: str, error: ImageError) -> None:
        of_the_file = error.kind in OF_THE_FILE
        # All else is tried again within the hour, whether or not the file is another.
        version = self._version(image) if of_the_file else ""
        self._quarantine.enter(image.id, _file(key), error.kind, str(error), passing=not of_the_file, version=version)

    def _version(self, image: ImageRef) -> str:
        host = _host(image.uri)
        if not host or host in self._silent or self._hosts.is_spared(host):
            return ""
        version = self._ask_version(image)
        if version is None:
            self._silent.add(host)
        return version or ""


class _Hosts:
    """Hosts that did not answer or refused, with the images in a row that they failed for."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.errors: dict[str, ImageError] = {}
        self._unanswered: dict[str, list[str]] = {}
        self._refused: dict[str, list[tuple[ImageRef, str, str]]] = {}  # image, cache key, reason
        self._left_out: dict[str, int] = {}  # since one was asked for, of those after many refused ones
        self._spared_until: dict[str, float] = {}

    def is_spared(self, host: str) -> bool:
        with self._lock:
            if len(self._refused.get(host, ())) >= 2 * STREAK:
                self._left_out[host] = (self._left_out.get(host, 0) + 1) % STREAK
                if self._left_out[host]:
                    return True
            return self._now() < self._spared_until.get(host, float("-inf"))

    def answered(self, host: str) -> list[tuple[ImageRef, str, str]]:
        """Images that it refused before in a row long enough that they were not listed."""
        with self._lock:
            self._unanswered.pop(host, None)
            row = self._refused.pop(host, [])
            return row if len(row) >= STREAK else []

    def refused(self, host: str, failed: tuple[ImageRef, str, str]) -> list[str]:
        """Images that failed because of their host, and were not returned before."""
        with self._lock:
            self._unanswered.pop(host, None)
            row = self._refused.setdefault(host, [])
            row.append(failed)
            self.errors[host] = ImageError(failed[2])
            new = row if len(row) == STREAK else [failed] if len(row) > STREAK else []
            return [image.id for image, _, _ in new]

    def gave_no_answer(self, host: str, image_id: str, error: ImageError) -> list[str]:
        """Images that failed because of their host: the whole row, once it is long enough."""
        with self._lock:
            row = self._unanswered.setdefault(host, [])
            row.append(image_id)
            if len(row) < STREAK:
                return []
            self.errors[host] = error
            self._spared_until[host] = self._now() + SPARED_S
            return list(row)


def _file(key: str) -> str:
    # A file is tried again when our reading of files has changed as well.
    return f"{PREPROCESSING}|{','.join(FORMATS)}|{key}"


def _host(uri: str) -> str:
    """Of the address without its password; empty for what Label Studio itself, a folder or the task holds."""
    if "://" not in uri[:32] or is_data_uri(uri):
        return ""
    try:
        return urlsplit(uri).netloc.rpartition("@")[2]
    except ValueError:  # no address at all
        return ""
