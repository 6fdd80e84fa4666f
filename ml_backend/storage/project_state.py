"""State of a project apart from its rounds: tasks as read, pause, thumbnails, and images that cannot be read."""

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Protocol, Self, TypeVar

import structlog
from pydantic import Field

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel, natural_order
from ml_backend.storage.atomic import FileState, file_state, new_folder, read_cached, read_record, write_record

KEPT_ROUNDS: Final = 20
"""Rounds whose annotations and pictures are kept. The served one is among them, even if later ones were not published.
"""
DRAWN, SQUASHED = "films", "thumbs"
"""Folders of a round's pictures; an earlier version drew every image as a square, in the second."""
# Label Studio's task ids are numbers; an id that is a path could lead out of the folder.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

R = TypeVar("R", bound=FrozenModel)
M = TypeVar("M", bound="Mirror")
log = structlog.get_logger(__name__)


class _Learned(FrozenModel):
    """The annotations of a project as a round read them: a digest of each, by its id."""

    states: dict[str, str]


class _SameContent(FrozenModel):
    """Addresses of images whose bytes equal those of another, with a digest of the bytes."""

    digests: dict[str, str]


class _ReaderNames(FrozenModel):
    """Names of Label Studio's users, by their ids."""

    names: dict[str, str]


class _Problem(FrozenModel):
    problem: str


class Mirror(Protocol):
    """The tasks of a project, which keep themselves in its folder; both methods raise a StorageError."""

    @classmethod
    def load(cls, folder: Path) -> Self | None: ...

    def save(self, folder: Path) -> None: ...


class ReadingStore:
    """What was read of a project, and what is computed from it. All can be read or computed again.

    Records of types that rooms above define come back as the type that is asked for. A damaged one counts as missing,
    and one that cannot be written is logged: it only costs time.

    Args:
        folder: of the project.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._learned = folder / "learned"
        self._problem = folder / "reading-problem.json"

    def mirror(self, kind: type[M]) -> M | None:
        """The tasks as they were last read; None where Label Studio must be read whole."""
        try:
            return kind.load(self.folder)
        except StorageError as error:
            log.warning("the tasks are ignored and read again", error=str(error))
            return None

    def keep_mirror(self, mirror: Mirror) -> None:
        """Replace the tasks. Never raises."""
        try:
            mirror.save(self.folder)
        except StorageError as error:
            log.warning("the tasks could not be written and will be read again", error=str(error))

    def serving(self, kind: type[R]) -> R | None:
        """What Label Studio was last seen to serve; None where that is not known."""
        return self._read("serving", kind)

    def keep_serving(self, serving: FrozenModel) -> None:
        """Replace that record where it changed. Never raises."""
        if serving != self.serving(type(serving)):
            self._write("serving", serving)

    def analysis(self, kind: type[R]) -> R | None:
        """What was last computed from the tasks and the rounds; None where there is nothing."""
        return self._read("analysis", kind, read_cached)

    def keep_analysis(self, analysis: FrozenModel) -> None:
        """Replace that record. Never raises."""
        self._write("analysis", analysis)

    def disagreements_tab(self, kind: type[R]) -> R | None:
        """The Data Manager's tab of disagreements; None where this installation has made none."""
        return self._read("disagreements-tab", kind)

    def keep_disagreements_tab(self, tab: FrozenModel) -> None:
        """Replace that record where it changed. Never raises."""
        if tab != self.disagreements_tab(type(tab)):
            self._write("disagreements-tab", tab)

    def reader_names(self) -> dict[str, str]:
        """User id -> name, where the owner asks for names."""
        found = self._read("reader-names", _ReaderNames, read_cached)
        return {} if found is None else found.names

    def keep_reader_names(self, names: Mapping[str, str]) -> None:
        """Replace them. Never raises."""
        if self.reader_names() != dict(names):
            self._write("reader-names", _ReaderNames(names=dict(names)))

    def digests(self) -> dict[str, str]:
        """Address -> digest of the bytes there, of images that equal another, as far as rounds have read them."""
        found = self._read("same-content", _SameContent)
        return {} if found is None else found.digests

    def keep_digests(self, digests: Mapping[str, str]) -> bool:
        """Replace ``digests``; returns whether they changed. Never raises: the next round finds them again."""
        return self.digests() != dict(digests) and self._write("same-content", _SameContent(digests=dict(digests)))

    def keep_learned(self, round_id: str, states: dict[str, str]) -> None:
        """Record what a round learns from, before it is saved, so that every served round has it.

        Raises:
            StorageError: the disk refuses.
        """
        write_record(self._learned / f"{round_id}.json", _Learned(states=states))
        for old in sorted(self._learned.glob("r*.json"))[:-KEPT_ROUNDS]:
            old.unlink(missing_ok=True)

    def keep_learned_of(self, earlier: str, round_id: str) -> None:
        """Record that a round learned from what an earlier one did, so that later changes still count.

        Does nothing where it was not recorded of the earlier one.

        Raises:
            StorageError: the disk refuses, or the record is damaged.
        """
        if (learned := read_record(self._learned / f"{earlier}.json", _Learned)) is not None:
            self.keep_learned(round_id, learned.states)

    def changes_since(self, round_id: str, states: dict[str, str]) -> int | None:
        """Number of annotations made, changed or deleted since a round; None where its own were not recorded.

        Args:
            round_id: of a saved round.
            states: of all annotations now.
        """
        try:
            learned = read_record(self._learned / f"{round_id}.json", _Learned)
        except StorageError as error:
            log.warning("the annotations that the last round learned from are not known", error=str(error))
            return None
        if learned is None:
            return None
        then = learned.states
        return sum(then.get(name) != states.get(name) for name in then.keys() | states.keys())

    def learned_state(self, round_id: str) -> FileState:
        """Differs whenever ``keep_learned`` has recorded other annotations for a round."""
        return file_state(self._learned / f"{round_id}.json")

    def note_problem(self, problem: str | None) -> None:
        """Record why the project cannot be read, or None where it can. Never raises: it is only shown."""
        try:
            if problem is None:
                self._problem.unlink(missing_ok=True)
            elif problem != self.problem():
                write_record(self._problem, _Problem(problem=problem))
        except (StorageError, OSError) as error:
            log.warning("a problem could not be recorded", problem=problem, error=str(error))

    def problem(self) -> str | None:
        """Why the project could not be read at the last attempt; None where it could."""
        try:
            noted = read_record(self._problem, _Problem)
        except StorageError as error:
            return str(error)
        return None if noted is None else noted.problem

    def _read(self, name: str, kind: type[R], read: Callable[[Path, type[R]], R | None] = read_record) -> R | None:
        try:
            return read(self.folder / f"{name}.json", kind)
        except StorageError as error:
            log.warning("a record is ignored and made again", error=str(error))
            return None

    def _write(self, name: str, record: FrozenModel) -> bool:
        try:
            write_record(self.folder / f"{name}.json", record)
        except (StorageError, ValueError) as error:  # ValueError: half a surrogate pair, which JSON lets through
            log.warning("a record could not be written and will be made again", name=name, error=str(error))
            return False
        return True


class Paused(FrozenModel):
    """The owner's pause.

    Attributes:
        since: when it began.
        threshold: number of changes that started a round until then; 0 where none started by itself.
    """

    since: datetime
    threshold: Annotated[int, Field(ge=0)] = 0


class Pause:
    """The pause of one project; on disk, since Redis may be emptied.

    Args:
        folder: of the project.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "paused.json"

    def read(self) -> Paused | None:
        """The pause; None where rounds start by themselves.

        A file that cannot be read is a pause as well: the owner wanted one, and "resume" removes it.
        """
        try:
            return read_record(self._path, Paused)
        except StorageError as error:
            log.warning("a pause that cannot be read holds the rounds", error=str(error))
            return Paused(since=datetime.now(UTC))

    @property
    def holds(self) -> bool:
        """Whether no round may start by itself."""
        return self.read() is not None

    def begin(self, threshold: int) -> None:
        """Hold the rounds; a pause that has begun stays as it is.

        Args:
            threshold: number of changes that started a round until now.

        Raises:
            StorageError: the disk refuses.
        """
        if not self.holds:
            write_record(self._path, Paused(since=datetime.now(UTC), threshold=threshold))

    def end(self) -> Paused | None:
        """Let rounds start again; returns the pause that ended, None where there was none.

        Raises:
            StorageError: the disk refuses.
        """
        ended = self.read()
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self._path} could not be removed: {error}") from error
        return ended


class Thumbnails:
    """Small pictures of the images that rounds chose, ``rounds/<round>/films/<image>.jpg``. They are only shown.

    Args:
        folder: of the project.
    """

    def __init__(self, folder: Path) -> None:
        self._rounds = folder / "rounds"

    def keep(self, round_id: str, pictures: Iterable[tuple[str, bytes]]) -> int:
        """Write those of a saved round, and remove those of old rounds; returns the number written.

        Args:
            round_id: of the round.
            pictures: image ids, each with a JPEG file; an id that cannot be a file name is left out.

        Raises:
            OSError: the disk refuses.
        """
        target = self._rounds / round_id / DRAWN
        if not (target.parent / "report.json").is_file():
            return 0
        shutil.rmtree(target, ignore_errors=True)
        count = 0
        with new_folder(target) as folder:
            for image_id, content in pictures:
                if _ID.fullmatch(image_id):
                    (folder / f"{image_id}.jpg").write_bytes(content)
                    count += 1
        shutil.rmtree(target.parent / SQUASHED, ignore_errors=True)
        for old in self._with_pictures()[:-KEPT_ROUNDS]:
            for name in (DRAWN, SQUASHED):
                shutil.rmtree(old / name, ignore_errors=True)
        return count

    def squashed(self) -> list[str]:
        """The rounds whose pictures an earlier version drew, newest first."""
        return [folder.name for folder in reversed(self._with_pictures()) if not (folder / DRAWN).is_dir()]

    def rounds(self) -> list[str]:
        """The rounds that keep pictures, newest first."""
        return [folder.name for folder in reversed(self._with_pictures())]

    def of_round(self, round_id: str) -> frozenset[str]:
        """The images of a round that have a picture."""
        if not _ID.fullmatch(round_id):
            return frozenset()
        return frozenset(path.stem for path in self._folder(round_id).glob("*.jpg"))

    def read(self, round_id: str, image_id: str) -> bytes | None:
        """One picture; None where there is none, or an id cannot be a file name."""
        if not (_ID.fullmatch(round_id) and _ID.fullmatch(image_id)):
            return None
        try:
            return (self._folder(round_id) / f"{image_id}.jpg").read_bytes()
        except OSError:
            return None

    def _folder(self, round_id: str) -> Path:
        """The folder of a round's pictures; until they are drawn again, that of the earlier version."""
        drawn = self._rounds / round_id / DRAWN
        return drawn if drawn.is_dir() else drawn.with_name(SQUASHED)

    def _with_pictures(self) -> list[Path]:
        """Folders of the rounds that have any, oldest first."""
        return sorted({path.parent for name in (DRAWN, SQUASHED) for path in self._rounds.glob(f"r*/{name}")})


FIRST_PAUSE_S = 60.0  # doubled with every further try
LONGEST_PAUSE_S = 24 * 3600.0
LONGEST_PASSING_PAUSE_S = 3600.0  # for errors that may pass without another file
MOST_COMPARED = 100  # images of a round whose host is asked whether the file has changed


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
            log.warning("the list of unreadable images starts empty", error=str(error))
            return ()
        return () if found is None else found.images

    def current(self) -> frozenset[str]:
        """Images that this round could not read, and listed ones that it has not tried again."""
        with self._lock:
            return frozenset(self._new) | (self._known.keys() - self._on_trial)

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
