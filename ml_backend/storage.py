"""One folder a round, written beside and renamed into place: a reader sees a whole round or none.

::

    <root>/projects/<id>.<created>/
        connection.json               what /setup told us
        published.json                what Label Studio serves now
        rounds/r000001/report.json    RoundReport
                       outputs.npz    ids, classes, probs (only with a network)
                       model.*        what the learner saved (only with a network)
    <root>/cache/                     images and features, shared by all projects
"""

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import structlog
from pydantic import ValidationError

from ml_backend.errors import StorageError, UnknownProject
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Connection, ProjectKey, Published, Record, RoundReport

__all__ = ["ProjectStore", "RoundStore", "write_atomically"]

R = TypeVar("R", bound=Record)

log = structlog.get_logger()


class _SavesItself(Protocol):
    def save(self, folder: str) -> None: ...


class RoundStore:
    """All projects of an installation.

    Args:
        root: the data folder; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def cache(self) -> Path:
        """Where images and features are kept across projects and rounds."""
        return self.root / "cache"

    def project(self, key: ProjectKey) -> "ProjectStore":
        return ProjectStore(self.root / "projects" / str(key))

    def connect(self, connection: Connection) -> bool:
        """Remember a connection; True when it is new or says something new."""
        store = self.project(connection.project)
        if store.connection() == connection:
            return False
        _write_record(store.folder / "connection.json", connection)
        return True

    def connection(self, project_id: int) -> Connection:
        """The connection of a project; of two projects under one id, the later created.

        Raises:
            UnknownProject: no ``/setup`` ever came for it.
            StorageError: what it told is damaged.
        """
        folders = (self.root / "projects").glob(f"{project_id}.*")
        found = [c for folder in folders if (c := ProjectStore(folder).connection()) is not None]
        if not found:
            raise UnknownProject(
                f"project {project_id} is not connected to this backend: "
                f"run `ml-backend connect --project {project_id}`"
            )
        return max(found, key=lambda c: c.project.created)

    def connections(self) -> list[Connection]:
        """Every connection that can be read, oldest project first; the log names the others."""
        found: list[Connection] = []
        for folder in (self.root / "projects").glob("*.*"):
            try:
                connection = ProjectStore(folder).connection()
            except StorageError as error:
                # Its own setup says so too; the other projects go on.
                log.error("a project is left out", error=str(error))  # noqa: TRY400 - not a bug of ours
                continue
            if connection is not None:
                found.append(connection)
        return sorted(found, key=lambda c: (c.project.created, c.project.id))


class ProjectStore:
    """The rounds of one project. Satisfies ``engine.ports.ReportStore``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def connection(self) -> Connection | None:
        return _read_record(self.folder / "connection.json", Connection)

    def round_ids(self) -> list[str]:
        """Every saved round, oldest first."""
        return sorted(path.parent.name for path in self.folder.glob("rounds/r*/report.json"))

    def next_round_id(self) -> str:
        """The id after the last saved one: ``r000001``, ``r000002``, ..."""
        ids = self.round_ids()
        return f"r{int(ids[-1][1:]) + 1 if ids else 1:06d}"

    def save(self, report: RoundReport, outputs: PoolOutputs | None, learner: _SavesItself | None) -> None:
        """Keep a round: all of it, or nothing.

        Raises:
            StorageError: the round exists already, or the disk refuses.
        """
        target = self.folder / "rounds" / report.request.round_id
        # What a killed run left half written under this number; each holds a network.
        for left in target.parent.glob(f".{target.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            with _folder_beside(target) as folder:
                if outputs is not None:
                    np.savez_compressed(
                        folder / "outputs.npz",
                        image_ids=np.array(outputs.image_ids),
                        classes=np.array(outputs.classes),
                        probs=outputs.probs,
                    )
                if learner is not None:
                    learner.save(str(folder))
                (folder / "report.json").write_text(report.model_dump_json(indent=1))
        except OSError as error:
            raise StorageError(f"round {report.request.round_id} could not be saved in {target}: {error}") from error

    def report(self, round_id: str) -> RoundReport:
        """What one round did.

        Raises:
            StorageError: there is no such round, or its report is damaged.
        """
        report = _read_record(self.folder / "rounds" / round_id / "report.json", RoundReport)
        if report is None:
            raise StorageError(
                f"no round {round_id!r} in {self.folder}; known are {', '.join(self.round_ids()) or 'none'}"
            )
        return report

    def latest(self) -> RoundReport | None:
        ids = self.round_ids()
        return self.report(ids[-1]) if ids else None

    def outputs(self, round_id: str) -> PoolOutputs | None:
        """What the network said in that round; None where there was none.

        Raises:
            StorageError: the file is damaged.
        """
        path = self.folder / "rounds" / round_id / "outputs.npz"
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                ids, classes = arrays["image_ids"].tolist(), arrays["classes"].tolist()
                return PoolOutputs(tuple(ids), tuple(classes), arrays["probs"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StorageError(f"{path} is damaged ({error}): move the round away to go on") from error

    def published(self) -> Published | None:
        """What Label Studio serves now, as far as we know."""
        return _read_record(self.folder / "published.json", Published)

    def set_published(self, published: Published) -> None:
        _write_record(self.folder / "published.json", published)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside and rename: a reader sees the old file or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _write_record(path: Path, record: Record) -> None:
    try:
        write_atomically(path, record.model_dump_json(indent=1).encode())
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error}") from error


def _read_record(path: Path, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}") from error
    except ValidationError as error:
        raise StorageError(f"{path} is damaged ({error.error_count()} mistakes): move it away to go on") from error


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
