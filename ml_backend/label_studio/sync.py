"""Reads a project's tasks and annotations from Label Studio, at the cost of what changed since the last time.

``TaskStore`` keeps the tasks on disk, and ``sync`` brings them up to date. ``TaskCache`` is a copy of them in memory,
``TaskImages`` finds tasks that hold the same image, and ``LabelStudioLabels`` gives a round its annotations and its
pool.
"""

import fcntl
import json
import os
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, Literal, NamedTuple, Self

import structlog
from pydantic import AwareDatetime, ValidationError

from ml_backend.config import ProjectOptions
from ml_backend.errors import LabelStudioError, PayloadError, StorageError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, rater_of, read_annotation, read_image
from ml_backend.schemas import Annotation, Exclusion, FrozenModel, ImageRef, linked, natural_order

# Label Studio sets a task's time before its row can be seen, and a proxy's clock is not Label Studio's.
OVERLAP = timedelta(seconds=60)
WHOLE_EVERY = timedelta(days=1)  # limits the life of an error that no count shows
TRIES = 3  # while readers label, counts and tasks disagree for a moment
SEARCHES = 60  # requests for deleted tasks, about 0.1 s each; beyond them reading the whole is cheaper
SKIPPED_IS_DONE = "IGNORE_SKIPPED"  # the project's skip queue: a skipped task is never served again
ANSWER_FIELDS = ("id", "completed_by", "was_cancelled", "ground_truth", "result", "updated_at")
CACHED_FIELDS = (*ANSWER_FIELDS, "created_at", "lead_time", "parent_prediction")
NO_DIGESTS: Final[Mapping[str, str]] = MappingProxyType({})

Json = dict[str, Any]
log = structlog.get_logger(__name__)


class Counts(NamedTuple):
    """Size of a project, as Label Studio's project row counts it."""

    tasks: int
    annotations: int  # without skips
    skips: int

    @classmethod
    def of(cls, project: Mapping[str, object]) -> Self:
        """The counts of a project row.

        Raises:
            PayloadError: one is missing.
        """
        names = ("task_number", "total_annotations_number", "skipped_annotations_number")
        numbers = [number for name in names if isinstance(number := project.get(name), int)]
        if len(numbers) < len(names):
            raise PayloadError(f"project {project.get('id')} comes without {', '.join(names)}: is this Label Studio?")
        return cls(*numbers)


class CachedTask(FrozenModel):
    """The fields of a task that rounds read, under any label config."""

    data: Any = None
    annotations: tuple[Json, ...] = ()

    @classmethod
    def of(cls, task: Json) -> Self:
        """Read a task of the task list."""
        return cls(data=task.get("data"), annotations=tuple(map(_cached, task.get("annotations") or ())))

    @classmethod
    def from_json(cls, data: str, annotations: str) -> "CachedTask":
        """Read what ``TaskStore`` has written."""
        items = () if annotations == "[]" else tuple(json.loads(annotations))
        return cls.model_construct(data=json.loads(data), annotations=items)


class TaskCache(FrozenModel):
    """A project's tasks, as they were last read, in memory.

    Attributes:
        format: of ``tasks.json``, in which earlier versions kept them.
        read_at: time of the last request, by Label Studio's clock. All earlier changes are included.
        whole_at: time when the project was last read whole, by the same clock.
        tasks: by id.
        skip_queue: of the project; None in a file of an older version.
        generation: of the ``TaskStore`` that they come from; another one means other tasks.
    """

    format: Literal[2] = 2
    read_at: AwareDatetime
    whole_at: AwareDatetime
    tasks: dict[int, CachedTask]
    skip_queue: str | None = None
    generation: int = 0

    @classmethod
    def load(cls, folder: Path) -> "TaskCache | None":
        """The tasks that are kept in a project's folder, of this version or an earlier one; None where there are none.

        Raises:
            StorageError: they cannot be read.
        """
        if (folder / TASKS_FILE).is_file():
            with TaskStore.open(folder, create=False) as store:
                return None if store.state is None else store.snapshot()
        return cls.earlier(folder)

    @classmethod
    def earlier(cls, folder: Path) -> "TaskCache | None":
        """The tasks that an earlier version kept; None where there are none that can be used."""
        try:
            return cls.model_validate_json((folder / EARLIER_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("the tasks of an earlier version are read again", error=type(error).__name__)
            return None

    def save(self, folder: Path) -> None:
        """Replace the tasks that are kept in a project's folder.

        Raises:
            StorageError: the disk refuses.
        """
        with TaskStore.open(folder) as store:
            store.replace(self)

    @property
    def skips_are_final(self) -> bool:
        """Whether a skipped task is never served again."""
        return self.skip_queue == SKIPPED_IS_DONE

    def annotated(self) -> Iterator[Json]:
        """Every task with an annotation or a skip, by ascending id, in the form of the task list."""
        for number in sorted(self.tasks):
            if annotations := self.tasks[number].annotations:
                yield {"id": number, "data": self.tasks[number].data, "annotations": list(annotations)}

    def unlabelled(self) -> list[int]:
        """Ids of the tasks without an annotation, ascending; a skip counts as one only where skips are final."""
        return [
            number
            for number in sorted(self.tasks)
            if not (annotations := self.tasks[number].annotations)
            or (not self.skips_are_final and all(item.get("was_cancelled") for item in annotations))
        ]

    def states(self, ground_truth: str = "override") -> dict[str, str]:
        """A digest of the answer and its time for each annotation, by task id and annotation id.

        Args:
            ground_truth: the owner's option; another value changes the digest of every ground truth.
        """
        marker = "" if ground_truth == "override" else f" {ground_truth}"  # the form of older versions
        return {
            f"{number}.{item.get('id')}": _digest(item) + (marker if item.get("ground_truth") else "")
            for number, task in self.tasks.items()
            for item in task.annotations
        }


def _digest(item: Json) -> str:
    answer = {name: value for name, value in item.items() if name in ANSWER_FIELDS}
    if isinstance(result := answer.get("result"), list):
        answer["result"] = [*filter(_is_read, result)]
    return blake2b(json.dumps(answer, sort_keys=True).encode(), digest_size=8).hexdigest()


def _cached(item: Json) -> Json:
    """An annotation without what no round reads: outlines that a reader drew may be megabytes.

    Where no choice is left, the names and types of the other answers stay.
    """
    cached = {name: item[name] for name in CACHED_FIELDS if name in item}
    if isinstance(result := cached.get("result"), list):
        others = dict.fromkeys((part.get("from_name"), part.get("type")) for part in result if not _is_read(part))
        cached["result"] = [*filter(_is_read, result)] or [{"from_name": name, "type": kind} for name, kind in others]
    return cached


def _is_read(part: object) -> bool:
    return not isinstance(part, dict) or part.get("type") == "choices"


@contextmanager
def _reading(folder: Path, wait: Callable[[], object] | None = None) -> Iterator[bool]:
    """See ``TaskStore.reading``."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context((folder / "reading.lock").open("w"))
            while not (held := _locked(file)) and wait is not None:
                wait()
                time.sleep(0.5)
        except OSError as error:
            raise StorageError(f"{folder}/reading.lock cannot be locked: {error}") from error
        yield held


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _set_aside(folder: Path) -> bool:
    """Move damaged tasks away, unless another process reads the project, and meets the damage itself."""
    try:
        with _reading(folder) as free:
            if free:
                (folder / f"{TASKS_FILE}-journal").unlink(missing_ok=True)
                (folder / TASKS_FILE).replace(folder / f"{TASKS_FILE}.damaged")
            return free
    except (OSError, StorageError):
        return False


# On disk


class StoreState(NamedTuple):
    """The row of a ``TaskStore`` about its project; see ``TaskCache``."""

    read_at: datetime
    whole_at: datetime
    skip_queue: str | None
    generation: int
    counts: Counts


TASKS_FILE: Final = "tasks.sqlite"
EARLIER_FILE: Final = "tasks.json"
FORMAT: Final = 1
BUSY_S: Final = 120.0  # a reader of a million tasks holds a writer up for seconds
DAMAGES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
REFUSALS: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)
INDEXED_AT_ONCE: Final = 5_000
COLUMNS: Final = "id INTEGER PRIMARY KEY, answers INT, skips INT, changed INT, image BLOB, data TEXT, annotations TEXT"
SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS tasks ({COLUMNS});
CREATE INDEX IF NOT EXISTS images ON tasks (image);
CREATE INDEX IF NOT EXISTS annotated ON tasks (answers, skips) WHERE answers + skips > 0;
CREATE INDEX IF NOT EXISTS unanswered ON tasks (id) WHERE answers + skips = 0;
CREATE TABLE IF NOT EXISTS project (read_at TEXT, whole_at TEXT, skip_queue TEXT, generation INTEGER DEFAULT 0,
    tasks INTEGER, answers INTEGER, skips INTEGER, image_key TEXT, digests TEXT DEFAULT '{{}}');
INSERT INTO project (read_at) SELECT NULL WHERE NOT EXISTS (SELECT 1 FROM project);
PRAGMA user_version = {FORMAT};
"""
# An image leaves the pool with the first of its tasks that does; until then the lowest of them represents it.
BARRED: Final = """EXISTS (SELECT 1 FROM tasks other WHERE other.image = tasks.image AND other.id <> tasks.id
    AND (other.id < tasks.id OR other.answers > 0
         OR (other.skips > 0 AND (SELECT skip_queue FROM project) IS 'IGNORE_SKIPPED')))"""
UNANSWERED: Final = "answers + skips = 0 AND image > x''"  # and with an image


class TaskStore:
    """A project's tasks in SQLite: what did not change is neither parsed nor written again.

    The journal is SQLite's rollback journal: write-ahead logging needs memory shared by processes, which a network
    file system does not offer. A process that is killed while it writes leaves the earlier state.

    Args:
        folder: of the project; None keeps the tasks in memory.
        create: make the file where there is none, and take over the file of an earlier version.

    Raises:
        sqlite3.Error: use ``open``, which raises a StorageError.
    """

    def __init__(self, folder: Path | None, *, create: bool = True) -> None:
        self._folder = folder
        self._staged = False
        name = ":memory:" if folder is None else f"{(folder / TASKS_FILE).absolute().as_uri()}?mode=rw"
        self._db = sqlite3.connect(name, timeout=BUSY_S, isolation_level=None, uri=folder is not None)
        [[version]] = self._db.execute("PRAGMA user_version")
        if create and version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT")
        elif version == 0:
            raise sqlite3.OperationalError("another process makes it now")
        elif version != FORMAT:
            raise StorageError(f"{folder}/{TASKS_FILE} is of format {version}, and this version reads format {FORMAT}")
        if create and folder is not None and (folder / EARLIER_FILE).exists():
            if self.state is None and (earlier := TaskCache.earlier(folder)) is not None:
                self.replace(earlier)
            (folder / EARLIER_FILE).unlink(missing_ok=True)

    @classmethod
    @contextmanager
    def open(cls, folder: Path | None, *, create: bool = True) -> Iterator[Self]:
        """Open the tasks of a project, and close them after the block.

        Raises:
            StorageError: the disk refuses, or the file is damaged or of another version. A damaged file is moved aside
                where one may be made, so that the next reading is whole.
        """
        store = None
        try:
            if folder is not None and create:
                _make(folder / TASKS_FILE)
            store = cls(folder, create=create)
            yield store
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            more = "; is there room on the disk, and may this user write it?" if code in REFUSALS else ""
            if store is not None:
                store._db.close()
            if code in DAMAGES and folder is not None and create and _set_aside(folder):
                more = "; it was moved aside, and the project is read again"
            raise StorageError(f"{folder}/{TASKS_FILE}: {error}{more}") from error
        finally:
            if store is not None:
                store._db.close()

    @contextmanager
    def reading(self, wait: Callable[[], object] | None = None) -> Iterator[bool]:
        """Hold the lock of the one process that reads this project from Label Studio; it ends with the process.

        Args:
            wait: called twice a second while another process reads; may raise. None: the block is entered with False.
        """
        if self._folder is None:
            yield True
            return
        with _reading(self._folder, wait) as held:
            yield held

    @property
    def state(self) -> StoreState | None:
        """None before the first reading."""
        columns = "read_at, whole_at, skip_queue, generation, tasks, answers, skips"
        [[read_at, whole_at, skip_queue, generation, *counts]] = self._db.execute(f"SELECT {columns} FROM project")
        if read_at is None:
            return None
        times = datetime.fromisoformat(read_at), datetime.fromisoformat(whole_at)
        return StoreState(*times, skip_queue, generation, Counts(*counts))

    def receive(self, rows: Iterable[Json]) -> Counts:
        """Set tasks of the task list aside for ``merge``. They need not fit in memory."""
        self._stage()
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT OR REPLACE INTO incoming VALUES (?, ?, ?, NULL, NULL, ?, ?)", map(_values, rows)
            )
        return self._counts("incoming")

    def _stage(self) -> None:
        """Make an empty table beside the project's tasks: a temporary one would take them out of the data folder."""
        if self._staged:
            self._db.execute("DETACH staging")
            self._staged = False
        name = ":memory:"
        if self._folder is not None:
            try:
                handle, name = tempfile.mkstemp(prefix=".incoming-", dir=self._folder)
            except OSError as error:
                raise StorageError(f"{self._folder} cannot be written: {error}") from error
            os.close(handle)
        try:
            self._db.execute("ATTACH ? AS staging", [name])
            self._staged = True
            self._db.execute("PRAGMA staging.journal_mode = MEMORY")
            self._db.execute("PRAGMA staging.synchronous = OFF")
            self._db.execute(f"CREATE TABLE staging.incoming ({COLUMNS})")
        finally:
            if self._folder is not None:
                Path(name).unlink()  # it lives as long as it is open

    def merge(self, read_at: datetime, *, whole: bool = False, gone: Iterable[int] = ()) -> None:
        """Take over what ``receive`` has set aside, all of it or nothing.

        Args:
            read_at: time of the request, by Label Studio's clock.
            whole: whether these are all tasks of the project.
            gone: ids of deleted tasks.
        """
        self._db.execute("PRAGMA cache_spill = OFF")  # a full cache would shut readers out before the end
        with self._db as db:
            db.execute("BEGIN IMMEDIATE")
            generation = self._next_generation()
            changes = db.total_changes
            db.execute(
                """INSERT INTO tasks SELECT id, answers, skips, ?, NULL, data, annotations FROM incoming
                    WHERE NOT EXISTS (SELECT 1 FROM tasks old WHERE (old.id, old.data, old.annotations)
                        = (incoming.id, incoming.data, incoming.annotations))
                ON CONFLICT (id) DO UPDATE SET image = CASE WHEN data = excluded.data THEN image END,
                    data = excluded.data, annotations = excluded.annotations, answers = excluded.answers,
                    skips = excluded.skips, changed = excluded.changed""",
                [generation],
            )
            if whole:
                db.execute("DELETE FROM tasks WHERE id NOT IN (SELECT id FROM incoming)")
            db.executemany("DELETE FROM tasks WHERE id = ?", ((number,) for number in gone))
            if db.total_changes > changes or self.state is None:
                names = "generation, tasks, answers, skips"
                db.execute(f"UPDATE project SET ({names}) = (?, ?, ?, ?)", [generation, *self._counts("tasks")])
            at = read_at.isoformat()
            db.execute(
                "UPDATE project SET read_at = ?1, whole_at = CASE WHEN ?2 THEN ?1 ELSE whole_at END", [at, whole]
            )

    def replace(self, cache: TaskCache) -> None:
        """Keep these tasks and no other."""
        self.receive({"id": number, **dict(task)} for number, task in cache.tasks.items())
        self.merge(cache.whole_at, whole=True)
        self._db.execute("UPDATE project SET read_at = ?", [cache.read_at.isoformat()])
        self.set_skip_queue(cache.skip_queue)

    def set_skip_queue(self, skip_queue: str | None) -> None:
        """Keep the project's skip queue, which decides whether a skipped task still waits."""
        self._db.execute(
            "UPDATE project SET skip_queue = ?1, generation = ?2 WHERE skip_queue IS NOT ?1",
            [skip_queue, self._next_generation()],
        )

    def snapshot(self, *, answered: bool = False) -> TaskCache:
        """The tasks in memory, as they are at this moment.

        Args:
            answered: only those with an annotation or a skip.
        """
        where = "WHERE answers + skips > 0" if answered else ""
        with self._db:
            self._db.execute("BEGIN")
            state = self.state
            if state is None:
                raise StorageError("the tasks have not been read yet")
            rows = self._db.execute(f"SELECT id, data, annotations FROM tasks {where} ORDER BY id")
            tasks = {number: CachedTask.from_json(data, annotations) for number, data, annotations in rows}
        # Without validation: these were read and written by this class.
        return TaskCache.model_construct(
            format=2, tasks=tasks, read_at=state.read_at, whole_at=state.whole_at,
            skip_queue=state.skip_queue, generation=state.generation,
        )  # fmt: skip

    @property
    def version(self) -> int:
        """Differs whenever another task, annotation or skip queue is kept."""
        return 0 if self.state is None else self.state.generation

    @property
    def counts(self) -> Counts:
        """Size of the project as it is stored."""
        return Counts(0, 0, 0) if self.state is None else self.state.counts

    def ids(self) -> list[int]:
        """Of all tasks, ascending."""
        return [number for [number] in self._db.execute("SELECT id FROM tasks ORDER BY id")]

    def existing(self, ids: Iterable[str]) -> set[int]:
        """Those of the tasks that the project has."""
        rows = self._db.execute("SELECT id FROM tasks WHERE id IN (SELECT value FROM json_each(?))", [_numbers(ids)])
        return {number for [number] in rows}

    def raters(self) -> set[str]:
        """Everybody who has answered or skipped a task."""
        rows = self._db.execute("SELECT annotations FROM tasks WHERE answers + skips > 0")
        return {rater_of(item) for [annotations] in rows for item in json.loads(annotations)}

    # The same as TaskImages.waiting, by queries: the cost does not grow with the project.

    def index_images(self, config: LabelConfig, digests: Mapping[str, str]) -> None:
        """Note the image of every task that has changed, for the queries below; see ``TaskImages.of``."""
        [[key, known]] = self._db.execute("SELECT image_key, digests FROM project")
        before = json.loads(known)
        if key != config.image_key or before != digests:
            others = [uri for uri in before.keys() | digests.keys() if before.get(uri) != digests.get(uri)]
            with self._db as db:
                db.execute("BEGIN IMMEDIATE")
                if key != config.image_key:
                    db.execute("UPDATE tasks SET image = NULL")
                marks = ([_mark(before.get(uri, uri))] for uri in others)
                db.executemany("UPDATE tasks SET image = NULL WHERE image = ?", marks)
                new = [config.image_key, json.dumps(dict(digests))]
                db.execute("UPDATE project SET image_key = ?, digests = ?", new)
        stale = f"SELECT id, data FROM tasks WHERE image IS NULL LIMIT {INDEXED_AT_ONCE}"
        while rows := self._db.execute(stale).fetchall():
            marks = ([_image_mark(number, data, config, digests), number] for number, data in rows)
            with self._db as db:
                db.execute("BEGIN IMMEDIATE")
                db.executemany("UPDATE tasks SET image = ? WHERE id = ?", marks)

    def waiting_among(self, ids: Iterable[str]) -> tuple[set[str], set[str]]:
        """Those of the tasks that nobody has answered or skipped, with an image.

        Returns:
            The tasks that readers may be served, and those whose image another task represents or has an answer to.
        """
        found = self._db.execute(
            f"SELECT id, {BARRED} FROM tasks WHERE {UNANSWERED} AND id IN (SELECT value FROM json_each(?))",
            [_numbers(ids)],
        ).fetchall()
        return {str(number) for number, barred in found if not barred}, {str(n) for n, barred in found if barred}

    def waits(self, apart_from: Iterable[str] = (), *, changed_after: int = -1) -> bool:
        """Whether a task waits that nobody has answered or skipped, except for some.

        Args:
            apart_from: ids of tasks that do not count.
            changed_after: a generation; only tasks count that have changed since.
        """
        [[found]] = self._db.execute(
            f"""SELECT EXISTS (SELECT 1 FROM tasks INDEXED BY unanswered WHERE {UNANSWERED} AND changed > ?
                AND id NOT IN (SELECT value FROM json_each(?)) AND NOT {BARRED})""",
            [changed_after, _numbers(apart_from)],
        )
        return bool(found)

    def _counts(self, table: str) -> Counts:
        [[tasks]] = self._db.execute(f"SELECT count(*) FROM {table}")
        [skips] = self._db.execute(f"SELECT total(answers), total(skips) FROM {table} WHERE answers + skips > 0")
        return Counts(tasks, *map(int, skips))

    def _next_generation(self) -> int:
        """By the clock, so that a file that is made again repeats none of its predecessor."""
        [[last]] = self._db.execute("SELECT generation FROM project")
        return max(int(last) + 1, time.time_ns() // 1_000_000)


def tasks_version(folder: Path) -> tuple[int, int]:
    """A number that differs whenever other tasks are kept in a project's folder, and the number of these tasks."""
    if not (folder / TASKS_FILE).is_file():
        earlier = folder / EARLIER_FILE
        return (earlier.stat().st_mtime_ns if earlier.is_file() else 0), 0
    try:
        with TaskStore.open(folder, create=False) as store:
            return store.version, store.counts.tasks
    except StorageError as error:
        log.warning("the tasks cannot be read", error=str(error))
        return 0, 0


def _make(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # SQLite would let everybody read it
    except OSError as error:
        raise StorageError(f"{file} cannot be made: {error}") from error


def _values(row: Json) -> tuple[object, ...]:
    task = CachedTask.of(row)
    skips = sum(bool(item.get("was_cancelled")) for item in task.annotations)
    answers = len(task.annotations) - skips
    return int(row["id"]), answers, skips, json.dumps(task.data), json.dumps(task.annotations)


def _numbers(ids: Iterable[str]) -> str:
    return json.dumps([int(name) for name in ids if name.isdecimal()])


def _mark(image: str) -> bytes:
    return blake2b(image.encode(errors="surrogatepass"), digest_size=16).digest()


def _image_mark(number: int, data: str, config: LabelConfig, digests: Mapping[str, str]) -> bytes:
    """Equal for tasks with the same image; empty for one without."""
    try:
        uri = read_image({"id": number, "data": json.loads(data)}, config).uri
    except PayloadError:
        return b""
    return _mark(digests.get(uri, uri))


# Reading


class SyncedProject(NamedTuple):
    """A project after a reading: its tasks, and its row in Label Studio."""

    cache: TaskCache
    project: Json


def read_project(client: LabelStudioClient, project_id: int, cache: TaskCache | None) -> SyncedProject:
    """Read what changed since ``cache`` was read, or everything where there is none; nothing is written to disk.

    Raises:
        LabelStudioError: see ``sync``.
    """
    with TaskStore.open(None) as store:
        if cache is not None:
            store.replace(cache)
        project = sync(client, project_id, store)
        return SyncedProject(store.snapshot(), project)


def sync(
    client: LabelStudioClient,
    project_id: int,
    store: TaskStore,
    check: Callable[[Json], None] = lambda _: None,
) -> Json:
    """Bring the stored tasks up to date: with what changed, or with everything where that does not suffice.

    Args:
        client: of Label Studio.
        project_id: the project.
        store: its tasks; the caller holds its lock.
        check: receives the project's row before anything is stored, and may raise.

    Returns:
        The project's row.

    Raises:
        LabelStudioError: see ``LabelStudioClient``; or Label Studio lists fewer tasks or annotations than it counts and
            than are stored, which stay as they were.
    """
    project = _read_changes(client, project_id, store, check) or _read_whole(client, project_id, store, check)
    store.set_skip_queue(project.get("skip_queue"))
    return project


def _read_changes(
    client: LabelStudioClient, project_id: int, store: TaskStore, check: Callable[[Json], None]
) -> Json | None:
    """None where the stored tasks cannot be brought to the project's counts."""
    counts = None
    for _ in range(TRIES):
        if (state := store.state) is None:
            return None
        project, clock = client.project_and_clock(project_id)
        check(project)
        # A clock that was set back gives changes a time before the last reading.
        if clock is None or not (state.read_at <= clock and state.whole_at <= clock < state.whole_at + WHOLE_EVERY):
            return None
        counts = Counts.of(project)
        if store.receive(client.changed_tasks(project_id, state.read_at - OVERLAP)).tasks:
            # Otherwise the time stays: there is nothing to write, and no more to read next time.
            store.merge(clock)
        if (known := store.counts) == counts:
            return project
        if known.tasks > counts.tasks:
            gone = _find_deleted(client, project_id, store.ids())
            if gone is None:
                return None
            store.receive(())
            store.merge(clock, gone=gone)
    log.info("reading whole: the counts differ", read=store.counts, counted=counts)
    return None


def _read_whole(client: LabelStudioClient, project_id: int, store: TaskStore, check: Callable[[Json], None]) -> Json:
    for _ in range(TRIES):
        project, clock = client.project_and_clock(project_id)
        check(project)
        before = Counts.of(project)
        read = store.receive(client.changed_tasks(project_id))
        # While it is read, readers label and owners import or delete.
        after = before if read == before else Counts.of(client.project(project_id))
        known = store.counts  # all that it lists for this user, if that is less than it counts
        least = min(before.tasks, after.tasks, known.tasks), min(sum(before[1:]), sum(after[1:]), sum(known[1:]))
        if read.tasks >= least[0] and sum(read[1:]) >= least[1]:
            # Without Label Studio's clock later changes cannot be told: the next reading is whole again.
            store.merge(clock or datetime(1970, 1, 1, tzinfo=UTC), whole=True)
            return project
        log.warning("Label Studio lists less than it counts", listed=read, counted=after)
    raise LabelStudioError(
        f"Label Studio at {client.url} lists {read.tasks} tasks and {sum(read[1:])} annotations of project "
        f"{project_id}, and counts {after.tasks} and {sum(after[1:])}; what was read before is kept. Open the project "
        "in Label Studio as the user of AL_LABEL_STUDIO_API_KEY: does its task list show all tasks?"
    )


def _find_deleted(client: LabelStudioClient, project_id: int, ids: Sequence[int]) -> set[int] | None:
    """Bisect for those of the tasks, in ascending order, that are deleted; None where it takes too many requests."""
    searches = 0
    gone: set[int] = set()
    ranges = [(ids, client.count_tasks(project_id, ids[0], ids[-1]))]
    while ranges:
        known, count = ranges.pop()
        if count == 0:
            gone.update(known)
        elif count != len(known):
            searches += 1
            # More tasks than are known, or fewer than none: tasks are imported or deleted at this moment.
            if searches > SEARCHES or not 0 <= count < len(known):
                return None
            left, right = known[: len(known) // 2], known[len(known) // 2 :]
            in_left = client.count_tasks(project_id, left[0], left[-1])
            ranges += [(left, in_left), (right, count - in_left)]
    return gone


# The images of tasks


class Duplicates(FrozenModel):
    """Images that two or more tasks hold.

    Attributes:
        images: their number.
        tasks: number of the tasks that hold them.
        sentence: for the owner; empty where there are none.
    """

    images: int
    tasks: int
    sentence: str


@dataclass(frozen=True, slots=True)
class TaskImages:
    """The images of a project's tasks, and which tasks hold the same one.

    The same image is in several tasks where it was imported twice, uploaded twice, or exported and imported again.

    Attributes:
        images: by task. Where an image has several patients, or one of its tasks names none, all of its tasks have
            the first patient, and so have the other images of these patients.
        refused: by task, why it has no image.
        first: by task, the lowest task of the same image; only of images that several tasks hold.
    """

    images: Mapping[int, ImageRef]
    refused: Mapping[int, str]
    first: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: TaskCache, config: LabelConfig, digests: Mapping[str, str] = NO_DIGESTS) -> Self:
        """Read every task.

        Args:
            cache: the tasks.
            config: the project's question.
            digests: address -> digest of the bytes there, where it is known; see ``shared_digests``.
        """
        images: dict[int, ImageRef] = {}
        refused: dict[int, str] = {}
        for number in sorted(cache.tasks):
            try:
                images[number] = read_image({"id": number, "data": cache.tasks[number].data}, config)
            except PayloadError as error:
                refused[number] = str(error)
        keys = {
            number: [("uri", image.uri), *([("content", digests[image.uri])] if image.uri in digests else [])]
            for number, image in images.items()
        }
        copies: dict[int, list[int]] = {}
        for number, first in linked(keys).items():
            copies.setdefault(first, []).append(number)
        several = {first: numbers for first, numbers in copies.items() if len(numbers) > 1}
        return cls(
            images | _with_one_patient(images, list(several.values())),
            refused,
            {number: first for first, numbers in several.items() for number in numbers},
        )

    def copies(self, number: int) -> int:
        """The lowest of the tasks that hold the same image as this task."""
        return self.first.get(number, number)

    def waiting(self, cache: TaskCache) -> tuple[list[int], dict[int, str]]:
        """The tasks that readers may be served, and those that need no answer, with the reason.

        An image leaves the pool with the first of its tasks that does; until then the lowest of them represents it.

        Args:
            cache: the tasks that these images belong to.

        Returns:
            Both by ascending id; tasks without an image are in neither.
        """
        unlabelled = [number for number in cache.unlabelled() if number in self.images]
        open_tasks = set(unlabelled)
        done: dict[int, int] = {}  # image -> the lowest of its tasks with an answer
        for number, image in self.first.items():
            if number not in open_tasks:
                done[image] = min(number, done.get(image, number))
        served: dict[int, int] = {}  # image -> the task that represents it
        pool: list[int] = []
        barred: dict[int, str] = {}
        for number in unlabelled:
            image = self.copies(number)
            if image in done:
                barred[number] = (
                    f"task {number} holds the same image as task {done[image]}, which has an answer or a skip"
                )
            elif (other := served.setdefault(image, number)) != number:
                barred[number] = f"task {number} holds the same image as task {other}, which represents both"
            else:
                pool.append(number)
        return pool, barred

    def count(self) -> Duplicates:
        """Number of images that two or more tasks hold."""
        images, tasks = len(set(self.first.values())), len(self.first)
        are, it = ("image is", "it") if images == 1 else ("images are", "each of them")
        sentence = (
            f"{images} {are} in two or more tasks ({tasks} in all): {it} is served once, and counts once, with the "
            "answers of all its tasks."
        )
        return Duplicates(images=images, tasks=tasks, sentence=sentence if images else "")


def shared_digests(digests: Mapping[str, str]) -> dict[str, str]:
    """The addresses whose digest another address shares: only these need to be kept."""
    addresses: dict[str, list[str]] = {}
    for address, digest in digests.items():
        addresses.setdefault(digest, []).append(address)
    return {address: digest for digest, found in addresses.items() if len(found) > 1 for address in sorted(found)}


def _with_one_patient(images: Mapping[int, ImageRef], several: Sequence[list[int]]) -> dict[int, ImageRef]:
    """The images whose patient another of their tasks names, or that have two names for it."""
    patients = [
        [patient for number in numbers if (patient := images[number].patient_id) is not None] for numbers in several
    ]
    shared: dict[str, list[Any]] = {}
    for place, names in enumerate(patients):
        for name in names:
            shared.setdefault(name, []).append(place)
    alias = linked({name: shared[name] for name in sorted(shared, key=natural_order)})
    changed = {
        number: image.model_copy(update={"patient_id": alias[image.patient_id]})
        for number, image in images.items()
        if image.patient_id is not None and alias.get(image.patient_id, image.patient_id) != image.patient_id
    }
    for numbers, names in zip(several, patients, strict=True):
        for number in numbers if names else ():
            changed[number] = images[number].model_copy(update={"patient_id": alias[names[0]]})
    return changed


# Annotations and pool


class LabelStudioLabels:
    """Annotations and pool of a Label Studio project. Satisfies ``rounds.interfaces.LabelSource``.

    Args:
        client: of Label Studio.
        project_id: the project.
        config: its question.
        options: of the project.
        folder: of the project, where the tasks are kept, so that the next reading requests changes only; None reads
            everything each time.
        digests: reads which addresses hold the same bytes, see ``TaskImages``.
        wait: called twice a second while another process reads the project; may raise, to stop.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        config: LabelConfig,
        options: ProjectOptions,
        folder: Path | None = None,
        *,
        digests: Callable[[], Mapping[str, str]] = lambda: NO_DIGESTS,
        wait: Callable[[], object] = lambda: None,
    ) -> None:
        self._client = client
        self._project_id = project_id
        self._config = config
        self._options = options
        self._folder = folder
        self._digests = digests
        self._wait = wait
        self._read_last: SyncedProject | None = None
        self._images = TaskImages({}, {})
        self._unreadable: list[Exclusion] = []

    def annotations(self) -> Sequence[Annotation]:
        """Read every annotation of the project. Unreadable ones are among the exclusions of ``unlabelled``."""
        found, self._unreadable = annotations_in(self._read().cache, self._config, self._options, self._images)
        return found

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The images without an annotation when the annotations were read, each once, and what is excluded.

        Excluded is a task without an image, and one whose image another task represents or has an answer to.
        """
        cache = self.reading.cache
        pool, barred = self._images.waiting(cache)
        refused = {
            number: self._images.refused[number] for number in cache.unlabelled() if number in self._images.refused
        }
        return [self._images.images[number] for number in pool], [
            *self._unreadable,
            *(Exclusion(image_id=str(number), reason=why, kind="no image") for number, why in refused.items()),
            *(Exclusion(image_id=str(number), reason=why, kind="same image") for number, why in barred.items()),
        ]

    def images(self) -> Sequence[ImageRef]:
        """The image of every task that has one."""
        if self._read_last is None:
            self._read()
        return list(self._images.images.values())

    def images_of_several_tasks(self) -> frozenset[str]:
        """Ids of the images that two tasks or more held when the annotations were read."""
        return frozenset(map(str, self._images.first))

    def states(self) -> dict[str, str]:
        """A digest of each annotation that was read last, by its id, whatever question it answers."""
        return self.reading.cache.states(self._options.ground_truth)

    @property
    def reading(self) -> SyncedProject:
        """The project as ``annotations`` read it last."""
        return self._read_last or self._read()

    def _read(self) -> SyncedProject:
        try:
            synced = self._synced(self._folder)
        except StorageError as error:
            log.warning("the tasks cannot be kept, and are read whole", error=str(error))
            synced = self._synced(None)
        self._read_last = synced
        self._images = TaskImages.of(synced.cache, self._config, self._digests())
        return synced

    def _synced(self, folder: Path | None) -> SyncedProject:
        with TaskStore.open(folder) as store, store.reading(self._wait):
            project, last = sync(self._client, self._project_id, store), self._read_last
            if folder is not None and last is not None and last.cache.generation == store.version:
                return SyncedProject(last.cache, project)
            return SyncedProject(store.snapshot(), project)


class _Answer(NamedTuple):
    task: int
    annotation: Annotation


def annotations_in(
    cache: TaskCache, config: LabelConfig, options: ProjectOptions, images: TaskImages | None = None
) -> tuple[list[Annotation], list[Exclusion]]:
    """Every annotation that counts, and the images that get no label, with the reason.

    The answers in all tasks of one image are answers about the lowest of these tasks. The option ``ground_truth``
    decides what an annotation marked as ground truth counts as.

    Args:
        cache: the tasks.
        config: the project's question.
        options: of the project.
        images: of the tasks; by default told apart by their addresses.
    """
    images = TaskImages.of(cache, config) if images is None else images
    answers: dict[int, list[_Answer]] = {}
    unreadable: list[Exclusion] = []
    for task in cache.annotated():
        number = int(task["id"])
        if number in images.refused:
            reason = images.refused[number]
            unreadable.append(Exclusion(image_id=str(number), reason=reason, kind="label without image"))
            continue
        for item in task["annotations"]:
            try:
                annotation = read_annotation(item, images.images[number], config, options)
            except PayloadError as error:  # the other answers of the task count all the same
                unreadable.append(Exclusion(image_id=str(number), reason=str(error), kind="unreadable answer"))
                continue
            # The lowest task that has answers comes first, and gives the image its id.
            of_image = answers.setdefault(images.copies(number), [])
            image = of_image[0].annotation.image if of_image else annotation.image
            of_image.append(_Answer(number, annotation.model_copy(update={"image": image})))
    found: list[Annotation] = []
    for of_image in answers.values():
        counted = _with_ground_truth(of_image, options)
        found += _told_apart(counted)
        if not counted:
            image = of_image[0].annotation.image
            reason = (
                f"image {image.id} has no answer but {len(of_image)} marked as ground truth, which "
                "ground_truth=ignore leaves out: let readers answer it, or set ground_truth to override or reader"
            )
            unreadable.append(Exclusion(image_id=image.id, kind="ignored truth", reason=reason))
    return found, unreadable


def _with_ground_truth(answers: Sequence[_Answer], options: ProjectOptions) -> list[_Answer]:
    """The answers about one image that count.

    As readers' answers, several ground truths of one user count each: Label Studio gives imported annotations without
    ``completed_by`` to the user who imports them.
    """
    if options.ground_truth == "override":
        return list(answers)
    if options.ground_truth == "ignore":
        return [one for one in answers if not one.annotation.ground_truth]
    truths = Counter(one.annotation.rater for one in answers if one.annotation.ground_truth)
    counted: list[_Answer] = []
    for place, (task, annotation) in enumerate(answers, start=1):
        rater = annotation.rater
        if annotation.ground_truth and truths[rater] > 1:
            rater = f"{rater}, ground truth {place}"
        counted.append(_Answer(task, annotation.model_copy(update={"rater": rater, "ground_truth": False})))
    return counted


def _told_apart(answers: Sequence[_Answer]) -> list[Annotation]:
    """The answers about one image; different answers of one reader in several tasks count each.

    A later answer in another task corrects nothing.
    """
    latest: dict[str, dict[int, Annotation]] = {}
    for task, annotation in sorted(answers, key=lambda one: one.annotation.updated_at):
        latest.setdefault(annotation.rater, {})[task] = annotation
    differing = {rater for rater, by_task in latest.items() if len({one.value for one in by_task.values()}) > 1}
    return [
        annotation.model_copy(update={"rater": f"{annotation.rater}, task {task}"})
        if annotation.rater in differing
        else annotation
        for task, annotation in answers
    ]
