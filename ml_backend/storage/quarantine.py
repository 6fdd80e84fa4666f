"""The images of a project that cannot be read: why, since when, and when each is tried again.

One file a project, ``quarantine.json``, replaced at the end of a round. Where it is gone or damaged the list begins
anew: unreadable images are found again. Nothing here stops a round.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel, natural_order
from ml_backend.storage.atomic import read_record, write_record

FIRST_PAUSE_S = 60.0  # doubled with every further try
LONGEST_PAUSE_S = 24 * 3600.0
LONGEST_PASSING_PAUSE_S = 3600.0  # for errors that may pass without another file
MOST_COMPARED = 100  # images of a round whose host is asked whether the file has changed

log = structlog.get_logger()


class QuarantinedImage(FrozenModel):
    """An image that could not be read.

    Attributes:
        image_id: Label Studio's task id.
        trouble: kind of the error, one of a few stable words: missing, damaged, too-large, ...
        reason: for the owner.
        mark: digest of the address that was tried: another file is tried at once.
        version: digest of what its host reports of the file; empty where it reports nothing.
    """

    image_id: str
    trouble: str
    reason: str
    mark: str
    version: str = ""
    first_seen: datetime
    last_tried: datetime
    next_try: datetime
    times: Annotated[int, Field(ge=1)]


class _List(FrozenModel):
    images: tuple[QuarantinedImage, ...] = ()


class Quarantine:
    """One project's list, and what one round changes about it. Safe for several threads.

    Only the round writes it; workers that help to score call ``bars``. Satisfies ``images.QuarantineList``.

    Args:
        folder: of the project.
        now: the clock; for tests.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = folder / "quarantine.json"
        self._now = now
        self._lock = threading.Lock()
        self._begin()

    def listed(self) -> tuple[QuarantinedImage, ...]:
        """The list as the last round left it, in the order of the image ids; empty where it cannot be read."""
        try:
            found = read_record(self._path, _List)
        except StorageError as error:
            log.warning("the list of unreadable images begins anew", error=str(error))
            return ()
        return () if found is None else found.images

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A round: the list is written at its end.

        Images that could be read again, or are gone from the project, leave the list after a round that succeeded, and
        after no other.
        """
        self._begin()
        over = False
        try:
            yield
            over = True
        finally:
            self._settle(over=over)

    def bars(self, image_id: str, file: str, version: Callable[[], str] = lambda: "") -> str | None:
        """Why the image must not be tried now; None where it may be.

        Args:
            image_id: of the image.
            file: names the file behind it; another name is another file.
            version: asks its host for a version of the file, empty where it reports none; called for a hundred images
                of a round at most, once each.
        """
        with self._lock:
            self._asked.add(image_id)
            if image_id in self._new:
                return self._new[image_id].reason
            entry = self._known.get(image_id)
            if entry is None or image_id in self._on_trial:
                return None
            waits = entry.mark == _mark(file) and self._now() < entry.next_try
            compared = waits and self._may_compare(entry)
        # Not under the lock: a host may take its time.
        if waits and not (compared and (now := version()) and _mark(now) != entry.version):
            return f"{entry.reason} (not tried again before {entry.next_try:%Y-%m-%d %H:%M} UTC)"
        with self._lock:
            self._on_trial.add(image_id)
        return None

    def _may_compare(self, entry: QuarantinedImage) -> bool:
        if not entry.version or entry.image_id in self._compared or len(self._compared) >= MOST_COMPARED:
            return False
        self._compared.add(entry.image_id)
        return True

    def enter(self, image_id: str, file: str, trouble: str, reason: str, *, passing: bool, version: str = "") -> None:
        """Record an image that could not be read.

        Args:
            image_id: of the image.
            file: names the file behind it.
            trouble: kind of the error.
            reason: for the owner.
            passing: whether the error may pass without another file; it is tried again sooner.
            version: that its host reports of the file; empty where it reports none.
        """
        now, mark, of_host = self._now(), _mark(file), _mark(version) if version else ""
        with self._lock:
            before = self._known.get(image_id)
            if before is not None and before.mark == mark:
                of_host = of_host or before.version  # not reported this time
            same = before is not None and (before.mark, before.version or of_host) == (mark, of_host)
            times = before.times + 1 if before is not None and same else 1
            self._new[image_id] = QuarantinedImage(
                image_id=image_id,
                trouble=trouble,
                reason=reason,
                mark=mark,
                version=of_host,
                first_seen=before.first_seen if before is not None and same else now,
                last_tried=now,
                next_try=now + timedelta(seconds=_pause_s(times, passing=passing)),
                times=times,
            )

    def withdraw(self, image_ids: Iterable[str]) -> None:
        """Remove images that this round entered by mistake."""
        with self._lock:
            for image_id in image_ids:
                self._new.pop(image_id, None)
                self._on_trial.discard(image_id)

    def _begin(self) -> None:
        self._known = {entry.image_id: entry for entry in self.listed()}
        self._new: dict[str, QuarantinedImage] = {}
        self._asked: set[str] = set()
        self._compared: set[str] = set()
        self._on_trial: set[str] = set()  # tried again, because they are due or their file changed

    def _settle(self, *, over: bool) -> None:
        with self._lock:
            kept = dict(self._known)
            # A round that read no image at all, since it only publishes again, proves nothing about any.
            if over and self._asked:
                kept = {i: entry for i, entry in kept.items() if i in self._asked and i not in self._on_trial}
            kept |= self._new
            if kept == self._known:
                return
            images = tuple(kept[image_id] for image_id in sorted(kept, key=natural_order))
        try:
            write_record(self._path, _List(images=images))
        except StorageError as error:
            log.warning("the list of unreadable images stays as it was", error=str(error))


def _mark(file: str) -> str:
    # Hashed: an address may hold a signature, which must not be written to the disk.
    return hashlib.sha256(file.encode()).hexdigest()[:16]


def _pause_s(times: int, *, passing: bool) -> float:
    longest = LONGEST_PASSING_PAUSE_S if passing else LONGEST_PAUSE_S
    # Bounded before it is raised: 2 to the power of a large count is no float.
    return min(longest, FIRST_PAUSE_S * 2.0 ** min(times - 1, 30))
