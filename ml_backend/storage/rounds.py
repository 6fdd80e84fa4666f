"""One folder a round, written beside and renamed into place: a reader sees a whole round or none.

What a killed run leaves behind is removed by the next one: half-written rounds and networks that are too old when it
takes its number, the rest when it begins.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

import structlog

from ml_backend.errors import StaleRound, StorageError, UnknownProject
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Connection, ImageRef, ImportedVersion, ProjectKey, Published, Record, RoundReport
from ml_backend.storage.briefs import BRIEF, RoundBrief
from ml_backend.storage.files import publish_folder, read_record, remove_half_written, write_record
from ml_backend.storage.manifests import MANIFEST
from ml_backend.storage.numbers import make_room, reserve, sweep
from ml_backend.storage.orders import keep_order, kept_orders
from ml_backend.storage.outputs import EVIDENCE, OUTPUTS, keep_outputs, kept_evidence, read_outputs
from ml_backend.storage.scoring import ScoringFolder, ScoringTask

__all__ = ["ProjectStore", "RoundStore"]

KEPT_NETWORKS = 3  # of the last rounds that trained one; a warm start goes on from the newest
NETWORK = "model.*"  # what a learner saves; the report and the outputs of every round stay

NOTHING: Final[Mapping[str, Record]] = MappingProxyType({})

R = TypeVar("R", bound=Record)
log = structlog.get_logger()


class _Run(Record):
    """The newest run of a project: only it may save and publish."""

    token: str


class _Imported(Record):
    """The model versions of a project that Label Studio may still hold."""

    versions: tuple[ImportedVersion, ...]


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

    def begin_run(self, token: str) -> None:
        """Outdate every earlier run of the project, whatever Redis remembers of it; remove what it left behind.

        Args:
            token: drawn for this run.

        Raises:
            StorageError: the disk refuses.
        """
        write_record(self.folder / "run.json", _Run(token=token))
        # Only one run at a time asks for help with a pool: what is here is a dead one's.
        shutil.rmtree(self.folder / "scoring", ignore_errors=True)
        remove_half_written(self.folder)

    def require_newest(self, token: str) -> None:
        """Make sure that no newer run has begun.

        Raises:
            StaleRound: one has.
            StorageError: the disk refuses.
        """
        newest = read_record(self.folder / "run.json", _Run)
        if newest is None or newest.token != token:
            raise StaleRound("a newer run of this project has begun: this one neither saves nor publishes")

    def round_ids(self) -> list[str]:
        """Every saved round, oldest first."""
        return sorted(path.parent.name for path in self.folder.glob("rounds/r*/report.json"))

    def next_round_id(self) -> str:
        """Take the next number: ``r000001``, ``r000002``, ... No two runs that live have the same.

        The number of a run that came to nothing stays unused.

        Raises:
            StorageError: the disk refuses.
        """
        rounds = self.folder / "rounds"
        try:
            rounds.mkdir(parents=True, exist_ok=True)
            round_id = reserve(rounds)
        except OSError as error:
            raise StorageError(f"no round can be begun in {rounds}: {error}") from error
        sweep(rounds, round_id, (NETWORK, EVIDENCE), KEPT_NETWORKS)
        return round_id

    def save(
        self,
        report: RoundReport,
        outputs: PoolOutputs | None,
        learner: _SavesItself | None,
        beside: Mapping[str, Record] = NOTHING,
        seal: Callable[[Path], Record] | None = None,
    ) -> None:
        """Keep a round: all of it, or nothing.

        Args:
            report: what it did.
            outputs: what its network said of the pool; the passes are kept for good, the rest like networks.
            learner: writes its network.
            beside: further records of the round, by the name under which ``record`` finds each.
            seal: makes the manifest of the folder with all else in it.

        Raises:
            StorageError: the round exists already, or the disk refuses.
            StaleRound: a newer round has begun.
        """
        target = self.folder / "rounds" / report.request.round_id
        folder = target.with_name(f".{target.name}")
        try:
            make_room(folder, target)
            if outputs is not None:
                keep_outputs(folder, outputs)
            if learner is not None:
                learner.save(str(folder))
            for name, record in {**beside, BRIEF: RoundBrief.of(report)}.items():
                (folder / f"{name}.json").write_text(record.model_dump_json(indent=1))
            (folder / "report.json").write_text(report.model_dump_json(indent=1))
            if seal is not None:
                (folder / f"{MANIFEST}.json").write_text(seal(folder).model_dump_json(indent=1))
            publish_folder(folder, target)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.mkdir()  # the number stays taken
            if isinstance(error, OSError):
                raise StorageError(f"round {target.name} could not be saved in {target}: {error}") from error
            raise

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

    def brief(self, round_id: str) -> RoundBrief:
        """The same, and refused the same, without what grows with the pool."""
        return self.record(round_id, BRIEF, RoundBrief) or RoundBrief.of(self.report(round_id))

    def record(self, round_id: str, name: str, kind: type[R]) -> R | None:
        """A record that was saved beside a round, or written later; None where there is none.

        Raises:
            StorageError: it is damaged.
        """
        return read_record(self.folder / "rounds" / round_id / f"{name}.json", kind)

    def set_record(self, round_id: str, name: str, record: Record) -> None:
        """Write a record beside a saved round.

        Raises:
            StorageError: there is no such round, or the disk refuses.
        """
        if not (self.folder / "rounds" / round_id / "report.json").is_file():
            raise StorageError(f"no round {round_id!r} in {self.folder} that {name} could stand beside")
        write_record(self.folder / "rounds" / round_id / f"{name}.json", record)

    def latest(self) -> RoundReport | None:
        return self.report(ids[-1]) if (ids := self.round_ids()) else None

    def outputs(self, round_id: str) -> PoolOutputs | None:
        """What the network said in that round; None where there was none.

        Raises:
            StorageError: the file is damaged.
        """
        return read_outputs(self.folder / "rounds" / round_id / OUTPUTS)

    def evidence(self, round_id: str) -> PoolOutputs | None:
        """The same with the features and gradients that its strategy looked at, as long as these are kept.

        Raises:
            StorageError: a file is damaged.
        """
        return kept_evidence(self.folder / "rounds" / round_id)

    def network(self, round_id: str) -> Path | None:
        """The folder of a round that still holds its network; None where it trained none, or too many came after it."""
        return folder if any((folder := self.folder / "rounds" / round_id).rglob(NETWORK)) else None

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
        """Note what is served from now on, and keep it among the orders that were.

        Raises:
            StorageError: the disk refuses.
        """
        write_record(self.folder / "published.json", published)
        keep_order(self.folder / "orders", published)

    def orders(self) -> list[Published]:
        """What readers were served, oldest first; the last are kept."""
        return kept_orders(self.folder / "orders")

    def imported_versions(self) -> tuple[ImportedVersion, ...]:
        """Model versions that this installation has imported and not deleted yet, oldest first.

        Raises:
            StorageError: the file is damaged.
        """
        noted = read_record(self.folder / "versions.json", _Imported)
        if noted is not None:
            return noted.versions
        # A data folder of version 0.1 notes only what was served.
        orders = self.orders()
        ended = [
            ImportedVersion(version=order.version, replaced_at=later.published_at) for order, later in pairwise(orders)
        ]
        return (*ended, *(ImportedVersion(version=order.version) for order in orders[-1:]))

    def set_imported_versions(self, versions: Sequence[ImportedVersion]) -> None:
        """Replace that list.

        Raises:
            StorageError: the disk refuses.
        """
        write_record(self.folder / "versions.json", _Imported(versions=tuple(versions)))
