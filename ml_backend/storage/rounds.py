"""Numbers of rounds: the folder that a round is written in is the reservation of its number.

What a round was asked and whose network ranked, without its ranking: for whoever must answer in milliseconds.
The orders that readers were served, one after the other: what served images are held against.
What a round was made from, in hashes; each manifest names the one before it, so that none is replaced unseen.
One folder a round, written beside and renamed into place: a reader sees a whole round or none.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeVar

import structlog
from pydantic import Field

from ml_backend.errors import StaleRound, StorageError, UnknownProject
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import (
    Connection,
    FrozenModel,
    ImageRef,
    ImportedVersion,
    Label,
    ProjectKey,
    PublishedRanking,
    RoundReport,
    RoundRequest,
)
from ml_backend.storage.atomic import publish_folder, read_record, remove_half_written, write_record
from ml_backend.storage.outputs import EVIDENCE, OUTPUTS, keep_outputs, kept_evidence, read_outputs
from ml_backend.storage.scoring import ScoringFolder, ScoringTask


def reserve(rounds: Path) -> str:
    """Take the next number: of two runs that try at once, each gets one of its own.

    Args:
        rounds: the folder of a project's rounds, which is there.

    Raises:
        OSError: the disk refuses.
    """
    while True:
        round_id = f"r{_newest(rounds) + 1:06d}"
        try:
            # The folder that the round is written in, and the number's reservation: of two runs one makes it.
            (rounds / f".{round_id}").mkdir()
        except FileExistsError:
            continue
        if _newest(rounds) == int(round_id[1:]):
            return round_id
        # Looked up before a newer run came and swept the number away from under another one.
        with suppress(OSError):
            (rounds / f".{round_id}").rmdir()


def make_room(folder: Path, target: Path) -> None:
    """An empty folder for a round that nobody has saved, and no newer one has overtaken.

    Raises:
        StaleRound: a newer one has.
        OSError: it is saved already, or the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if _newest(target.parent) > _number(target):
        raise StaleRound(f"a newer round than {target.name} has begun: it is not saved")
    if target.exists():
        raise FileExistsError(f"{target.name} is there already")
    # What was left half written under a number that nobody had taken.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _newest(rounds: Path) -> int:
    """Number of the newest round that was begun, saved or not; 0 where there is none."""
    return max(map(_number, rounds.iterdir()), default=0)


def _number(folder: Path) -> int:
    name = folder.name.removeprefix(".")
    return int(name[1:]) if name[:1] == "r" and name[1:].isdecimal() else 0


def sweep(rounds: Path, round_id: str, large: Sequence[str], kept: int) -> None:
    """Remove what killed rounds left half-written, and large files but of the last rounds that have any.

    Args:
        rounds: folder of a project's rounds.
        round_id: of the round that begins.
        large: patterns of files, each counted by itself.
        kept: rounds that keep them.
    """
    for left in rounds.glob(".r*"):
        if left.name < f".{round_id}":
            shutil.rmtree(left, ignore_errors=True)
    saved = sorted(path.parent for path in rounds.glob("r*/report.json"))
    for pattern in large:
        having = [files for folder in saved if (files := list(folder.rglob(pattern)))]
        for path in (path for files in having[:-kept] for path in files):
            path.unlink(missing_ok=True)


BRIEF: Final = "brief"
"""The name under which it stands in a round's folder."""


class RoundBrief(FrozenModel):
    """A round's report without what grows with the pool.

    Attributes:
        trained: whether it trained a network.
        base: the earlier round whose network ranked, where this one only ranked anew.
    """

    request: RoundRequest
    trained: bool
    base: str | None

    @property
    def by_network(self) -> bool:
        """Whether a network made the order; see ``RoundReport.by_network``."""
        return self.trained or self.base is not None

    @classmethod
    def of(cls, report: RoundReport) -> "RoundBrief":
        """The brief of a report."""
        return cls(request=report.request, trained=report.trained, base=report.base)


KEPT = 500  # a batch and a reserve each

log = structlog.get_logger()


def keep_order(folder: Path, published: PublishedRanking) -> None:
    """Add an order, or complete the figures of one that is there. Never raises: it is served all the same."""
    try:
        # Of one version the moment stays the same, however often its other figures are completed.
        write_record(folder / f"{published.published_at:%Y%m%dT%H%M%S%f}.json", published)
        for old in sorted(folder.glob("2*.json"))[:-KEPT]:
            old.unlink(missing_ok=True)
    except (StorageError, OSError) as error:
        log.warning("the order is served, and will be missing where earlier orders are told", error=str(error))


def kept_orders(folder: Path) -> list[PublishedRanking]:
    """All that are kept, oldest first. One that is damaged is left out, and logged."""
    found: list[PublishedRanking] = []
    for path in sorted(folder.glob("2*.json")):
        try:
            order = read_record(path, PublishedRanking)
        except StorageError as error:
            log.warning("an earlier order is left out", error=str(error))
            continue
        if order is not None:
            found.append(order)
    return found


MANIFEST: Final = "manifest"
INPUTS: Final = "inputs"
"""The names under which these records stand in a round's folder."""
_SWEPT = ("model", "evidence")  # how files begin that are kept of the last rounds only


class RoundInputs(FrozenModel):
    """What a round learned from and ranked.

    Attributes:
        labels: in the order of the image ids.
        pool: likewise.
    """

    labels: tuple[Label, ...]
    pool: tuple[ImageRef, ...]


class Manifest(FrozenModel):
    """A round in hashes; all of them sha256, in hex.

    Attributes:
        files: of every file of the round's folder when it was saved, by its path there.
        labels: of the listing of labels, one line of JSON each; the pool likewise.
        code: of the package's .py files, and its version.
        versions: of what computes.
        machine: what decides a last bit, in words.
        weights: of the backbone's weights file; empty where there is none.
        weights_from: the network's name, and whence its weights.
        previous: hash of the manifest of the round ``previous_round``; None in a chain's first.
    """

    format: Literal[1] = 1
    round_id: str
    files: dict[str, str]
    labels: str
    pool: str
    code: str
    version: str
    versions: dict[str, str]
    machine: str
    weights: str
    weights_from: str
    seed: int
    options: dict[str, object] = Field(default={})
    previous: str | None = None
    previous_round: str | None = None


def sha256_of(path: Path) -> str:
    """Of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path) -> dict[str, str]:
    """Of every file in a folder and below, by its path there; a manifest is left out.

    Raises:
        OSError: one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths if path.name != f"{MANIFEST}.json"}


def read_manifest(folder: Path) -> tuple[Manifest, str] | None:
    """A round's manifest, and the hash of its file; None where the round has none.

    Raises:
        StorageError: it is damaged.
    """
    path = folder / f"{MANIFEST}.json"
    manifest = read_record(path, Manifest)
    if manifest is None:
        return None
    try:
        return manifest, sha256_of(path)
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}") from error


def file_faults(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Each file of a round that is not what its manifest says, in words. Networks and evidence may be gone by now."""
    faults = []
    for name, wanted in files.items():
        try:
            seen = sha256_of(folder / name)
        except FileNotFoundError:
            if not Path(name).name.startswith(_SWEPT):
                faults.append(f"{name} is gone")
            continue
        except OSError as error:
            faults.append(f"{name} cannot be read: {error}")
            continue
        if seen != wanted:
            faults.append(f"{name} is not what was saved: its sha256 begins with {seen[:12]}, not {wanted[:12]}")
    return faults


KEPT_NETWORKS = 3  # of the last rounds that trained one; a warm start goes on from the newest
NETWORK = "model.*"  # what a learner saves; the report and the outputs of every round stay

NOTHING: Final[Mapping[str, FrozenModel]] = MappingProxyType({})

R = TypeVar("R", bound=FrozenModel)


class _Run(FrozenModel):
    """The newest run of a project: only it may save and publish."""

    token: str


class _Imported(FrozenModel):
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
        outputs: PoolPredictions | None,
        learner: _SavesItself | None,
        beside: Mapping[str, FrozenModel] = NOTHING,
        seal: Callable[[Path], FrozenModel] | None = None,
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

    def set_record(self, round_id: str, name: str, record: FrozenModel) -> None:
        """Write a record beside a saved round.

        Raises:
            StorageError: there is no such round, or the disk refuses.
        """
        if not (self.folder / "rounds" / round_id / "report.json").is_file():
            raise StorageError(f"no round {round_id!r} in {self.folder} that {name} could stand beside")
        write_record(self.folder / "rounds" / round_id / f"{name}.json", record)

    def latest(self) -> RoundReport | None:
        return self.report(ids[-1]) if (ids := self.round_ids()) else None

    def outputs(self, round_id: str) -> PoolPredictions | None:
        """What the network said in that round; None where there was none.

        Raises:
            StorageError: the file is damaged.
        """
        return read_outputs(self.folder / "rounds" / round_id / OUTPUTS)

    def evidence(self, round_id: str) -> PoolPredictions | None:
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

    def published(self) -> PublishedRanking | None:
        """What Label Studio serves now, as far as we know."""
        return read_record(self.folder / "published.json", PublishedRanking)

    def set_published(self, published: PublishedRanking) -> None:
        """Note what is served from now on, and keep it among the orders that were.

        Raises:
            StorageError: the disk refuses.
        """
        write_record(self.folder / "published.json", published)
        keep_order(self.folder / "orders", published)

    def orders(self) -> list[PublishedRanking]:
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
