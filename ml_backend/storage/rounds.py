"""One folder a round, written beside and renamed into place: a reader sees a whole round or none."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog

from ml_backend.errors import StorageError, UnknownProject
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Connection, ImageRef, ProjectKey, Published, RoundReport
from ml_backend.storage.files import folder_beside, read_record, write_record
from ml_backend.storage.outputs import read_outputs, write_outputs
from ml_backend.storage.scoring import ScoringFolder, ScoringTask

__all__ = ["ProjectStore", "RoundStore"]

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
        write_record(store.folder / "connection.json", connection)
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
        return read_record(self.folder / "connection.json", Connection)

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
            with folder_beside(target) as folder:
                if outputs is not None:
                    kept = PoolOutputs(outputs.image_ids, outputs.classes, outputs.probs)
                    write_outputs(folder / "outputs.npz", kept, compress=True)
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
        report = read_record(self.folder / "rounds" / round_id / "report.json", RoundReport)
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
        return read_outputs(self.folder / "rounds" / round_id / "outputs.npz")

    def newest_network(self, file_name: str) -> Path | None:
        """The folder of the newest round that holds a network; None where there is none.

        Args:
            file_name: under which the learner saves a network.
        """
        folders = (self.folder / "rounds" / round_id for round_id in reversed(self.round_ids()))
        return next((folder for folder in folders if (folder / file_name).is_file()), None)

    def begin_scoring(
        self, round_id: str, task: ScoringTask, shards: Sequence[Sequence[ImageRef]], learner: _SavesItself
    ) -> ScoringFolder:
        """Lay out what other workers need to score shards of a pool; removes what dead rounds left behind.

        Raises:
            StorageError: the disk refuses.
        """
        return ScoringFolder.begin(self.folder / "scoring", round_id, task, shards, learner)

    def scoring(self, name: str) -> ScoringFolder:
        """A pool that is being scored, or was."""
        return ScoringFolder(self.folder / "scoring" / name)

    def published(self) -> Published | None:
        """What Label Studio serves now, as far as we know."""
        return read_record(self.folder / "published.json", Published)

    def set_published(self, published: Published) -> None:
        write_record(self.folder / "published.json", published)
