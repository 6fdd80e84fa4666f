"""What earlier imports rendered, so that a repeated import need not render it again.

A cache, and not the record of what a project holds: that is the project itself, whose tasks name their pixels. So a
ledger that is lost, or a process that is killed between Label Studio's answer and the next line here, costs time alone.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from ml_backend.errors import SettingsError, StorageError

NEAR = 11
"""Of the 256 bits of a ``pictures.fingerprint``: of 800 chest radiographs, each re-encoded at quality 60, halved, 15 %
brighter, of 30 % more contrast or noisy by 5 levels, none moved by more; any two of them differ in 14 or more."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS rendered "
    "(file TEXT PRIMARY KEY, pixels TEXT, patient TEXT, fingerprint BLOB, notes TEXT)"
)
_BY_PATIENT = "CREATE INDEX IF NOT EXISTS by_patient ON rendered (patient)"


class Ledger:
    """Rendered files by the hash of their content. Holds no name of a file and no patient id but hashes.

    Safe to share between threads.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def find(self, file: str) -> tuple[str, list[str]] | None:
        """The hash of the pixels of a file that was rendered before, and what was noted of it."""
        found = self._database.execute("SELECT pixels, notes FROM rendered WHERE file = ?", (file,)).fetchone()
        return None if found is None else (found[0], json.loads(found[1]))

    def has_similar(self, patient: str, pixels: str, fingerprint: bytes, counts: Callable[[str], bool]) -> bool:
        """Whether another image of the patient looks like this one, of those whose hash counts."""
        bits, query = int.from_bytes(fingerprint), "SELECT pixels, fingerprint FROM rendered WHERE patient = ?"
        rows = self._database.execute(query, (patient,))
        return any(
            other != pixels and (bits ^ int.from_bytes(seen)).bit_count() <= NEAR and counts(other)
            for other, seen in rows
        )

    def add(self, file: str, pixels: str, patient: str, fingerprint: bytes, notes: Sequence[str] = ()) -> None:
        row = (file, pixels, patient, fingerprint, json.dumps(notes))
        self._database.execute("INSERT OR REPLACE INTO rendered VALUES (?, ?, ?, ?, ?)", row)


@contextmanager
def open_ledger(folder: Path | None) -> Iterator[Ledger]:
    """The ledger in a folder that one import uses at a time; the folder is made where there is none.

    Args:
        folder: of the ledger; None for one in memory.

    Raises:
        SettingsError: another import uses the folder.
        StorageError: it cannot be written, or the ledger in it is damaged.
    """
    path = ":memory:" if folder is None else str(folder / "ledger.sqlite3")
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(_locked(folder))
            Path(path).touch(mode=0o600)
        try:
            # Without transactions: each line is worth keeping by itself.
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            stack.enter_context(closing(database))
            for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", _TABLE, _BY_PATIENT):
                database.execute(statement)
            yield Ledger(database)
        except sqlite3.Error as error:
            raise StorageError(f"{path}: {error}: delete it, which costs time alone, and import again") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_WRONLY, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}: give another folder with --out") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"another import runs with --out {folder}: wait for it, or stop it") from None
        yield
    finally:
        os.close(lock)
