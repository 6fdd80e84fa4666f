"""The rounds of every project: one folder a round, written under a temporary name and renamed into place.

A reader sees a whole round or none. ``report.json`` grows with the pool; what pages and metrics need at every request
is in two small files next to it, ``summary.json`` and ``head.json``. Both are written with the round; for a round that
an older version saved they are made from its report, once.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeVar

import structlog
from pydantic import AwareDatetime, Field
from pydantic_core import from_json

from ml_backend.errors import StaleRound, StorageError, UnknownProject
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import (
    Connection,
    FitReport,
    FrozenModel,
    HandPick,
    ImageRef,
    ImportedVersion,
    Label,
    ProjectKey,
    PublishedRanking,
    RoundReport,
    RoundRequest,
    RoundTrigger,
)
from ml_backend.storage.atomic import (
    FileState,
    file_state,
    publish_folder,
    read_cached,
    read_record,
    remove_half_written,
    write_record,
)
from ml_backend.storage.outputs import (
    EVIDENCE,
    OUTPUTS,
    Embedding,
    SavesItself,
    read_embedding,
    read_evidence,
    read_outputs,
    write_embedding,
    write_round_outputs,
)
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore, Thumbnails

KEPT_NETWORKS: Final = 3
"""Rounds that keep their network, the last that trained one; a warm start continues from the newest."""
KEPT_ORDERS: Final = 500
HEAD_IMAGES: Final = 200
"""Images of a batch, and randomly drawn images behind it, that a page shows."""
NETWORK: Final = "model.*"
"""What a learner saves."""
INPUTS: Final = "inputs"
"""Name of the record ``RoundInputs`` in a round's folder."""
HAND_PICKS: Final = "hand-picks"
"""Name of the record of a project that ``hand_picks`` reads."""
MANIFEST, _SUMMARY, _HEAD = "manifest", "summary", "head"
_NO_RECORDS: Final[Mapping[str, FrozenModel]] = MappingProxyType({})
_CACHED_SUMMARIES = 20_000  # over all projects; about a kilobyte each
_CACHED_SUGGESTIONS = 4  # rounds; about 25 MB each for a pool of 100,000

R = TypeVar("R", bound=FrozenModel)
log = structlog.get_logger(__name__)


class RoundSummary(FrozenModel, extra="ignore"):
    """A round without anything that grows with the pool.

    Attributes:
        strategy: that ordered the images; ``asked`` is the owner's, which waits for the first training.
        classes: ordinal, least severe first.
        images: number of images ranked.
        control: number of these that were drawn at random, as a holdout.
        put_off: number of these that were moved into a later batch; see ``rounds.spread``.
        excluded: number of images that could not be used.
        started_at: ISO 8601, UTC.
        seconds: stage -> wall time.
        base: the earlier round whose network ranked, where this one only ranked anew.
        report_bytes: size of the report that the summary was made from; of another report it is out of date.
    """

    request: RoundRequest
    round_id: str
    reason: RoundTrigger
    strategy: str
    asked: str
    classes: tuple[str, ...]
    batch_size: int
    min_labels_per_class: int
    images: int
    control: int
    put_off: int = 0
    labels_per_class: dict[str, int]
    disputed: int
    excluded: int
    fit: FitReport | None
    seconds: dict[str, float]
    started_at: str
    began: AwareDatetime
    base: str | None = None
    report_bytes: int = 0

    @property
    def labels(self) -> int:
        """Number of images with a label when the round began."""
        return sum(self.labels_per_class.values())

    @property
    def trained(self) -> bool:
        """Whether the round trained a network of its own; see ``RoundReport.trained``."""
        return self.fit is not None and self.base is None

    @property
    def by_network(self) -> bool:
        """Whether a network made the order; see ``RoundReport.by_network``."""
        return self.fit is not None or self.base is not None

    @classmethod
    def of(cls, report: RoundReport, report_bytes: int = 0) -> "RoundSummary":
        """Summarise a report."""
        request, ranking = report.request, report.ranking
        return cls(
            request=request,
            round_id=request.round_id,
            reason=request.reason,
            strategy=ranking.strategy,
            asked=request.strategy,
            classes=request.classes,
            batch_size=ranking.batch_size,
            min_labels_per_class=request.min_labels_per_class,
            images=len(ranking.image_ids),
            control=len(ranking.control),
            put_off=len({one.image_id for one in ranking.put_off}),
            labels_per_class=report.labels_per_class,
            disputed=len(report.disputed),
            excluded=len(report.exclusions),
            fit=None if report.fit is None else report.fit.model_copy(update={"exclusions": (), "held_out": ()}),
            seconds=dict(report.seconds),
            started_at=report.started_at.isoformat(timespec="seconds"),
            began=report.started_at,
            base=report.base,
            report_bytes=report_bytes,
        )


class RankedImage(FrozenModel):
    """An image of a ranking.

    Attributes:
        place: in the ranking, from 1.
        control: whether it was drawn at random, as part of the holdout.
    """

    image_id: str
    place: int
    control: bool = False
    sought: str = ""


class RankingHead(FrozenModel, extra="ignore"):
    """The images of a ranking that a page shows.

    Attributes:
        strategy: that ordered them.
        batch: the first of the batch, in the order of the ranking.
        behind: the first of the holdout images behind the batch.
    """

    strategy: str
    batch: tuple[RankedImage, ...]
    behind: tuple[RankedImage, ...] = ()

    @classmethod
    def of(cls, report: RoundReport) -> "RankingHead":
        """Cut the head off a report's ranking."""
        ranking = report.ranking
        control = set(ranking.control)
        images = [
            RankedImage(
                image_id=image_id,
                place=place,
                control=image_id in control,
                sought="" if image_id in control else ranking.sought.get(image_id, ""),
            )
            for place, image_id in enumerate(ranking.image_ids, start=1)
            if place <= min(ranking.batch_size, HEAD_IMAGES) or image_id in control
        ]
        return cls(
            strategy=ranking.strategy,
            batch=tuple(one for one in images if one.place <= ranking.batch_size),
            behind=tuple(one for one in images if one.place > ranking.batch_size)[:HEAD_IMAGES],
        )


class Suggestions(NamedTuple):
    """The most probable class of each image of a round's pool, and its probability; empty without a network."""

    classes: Mapping[str, str]
    confidences: Mapping[str, float]


class RoundInputs(FrozenModel):
    """What a round learned from and ranked.

    Attributes:
        labels: in the order of the image ids.
        pool: likewise.
    """

    labels: tuple[Label, ...]
    pool: tuple[ImageRef, ...]


class Manifest(FrozenModel):
    """A round in hashes; each manifest names the one before it, so that none can be replaced unnoticed.

    All hashes are sha256, in hex.

    Attributes:
        files: of every file of the round's folder when it was saved, by its path there.
        labels: of the listing of labels, one line of JSON each; the pool likewise.
        code: of the package's .py files, and its version.
        versions: of the libraries that compute.
        machine: what decides a last bit, in words.
        weights: of the backbone's weights file; empty where there is none.
        weights_from: the network's name, and the source of its weights.
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


class _Run(FrozenModel):
    """The newest run of a project: only it may save and publish."""

    token: str


class _Imported(FrozenModel):
    """The model versions of a project that Label Studio may still hold."""

    versions: tuple[ImportedVersion, ...]


class _AskedAgain(FrozenModel):
    """The tasks of a project whose overlap in Label Studio may be another than its project's."""

    tasks: tuple[int, ...]


class _HandPicks(FrozenModel):
    """What the owner of a project put next in the order, oldest first."""

    picks: tuple[HandPick, ...] = ()


class RoundStore:
    """All projects of an installation.

    Args:
        root: the data folder; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def cache(self) -> Path:
        """Where images and features are kept across projects and rounds."""
        return self.root / "cache"

    def project(self, key: ProjectKey) -> "ProjectStore":
        return ProjectStore(self.root / "projects" / str(key))

    def predictions(self, key: ProjectKey) -> "ProjectStore":
        """What an exported model has written into a project that is not connected: its model versions."""
        return ProjectStore(self.root / "predictions" / str(key))

    def connect(self, connection: Connection) -> bool:
        """Save a connection; returns whether it is new or changed."""
        store = self.project(connection.project)
        if store.connection() == connection:
            return False
        write_record(store.folder / "connection.json", connection)
        return True

    def connection(self, project_id: int) -> Connection:
        """The connection of a project; of two projects with the same id, the later created.

        Raises:
            UnknownProject: ``/setup`` was never called for it.
            StorageError: its file is damaged.
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
        """Every connection that can be read, oldest project first; damaged ones are logged."""
        found: list[Connection] = []
        for folder in (self.root / "projects").glob("*.*"):
            try:
                connection = ProjectStore(folder).connection()
            except StorageError as error:
                # Its own setup reports it too; the other projects go on.
                log.error("a project is left out", error=str(error))  # noqa: TRY400 - no traceback: it is no bug
                continue
            if connection is not None:
                found.append(connection)
        return sorted(found, key=lambda c: (c.project.created, c.project.id))


class ProjectStore:
    """One project: its rounds, and through ``readings``, ``pause``, ``thumbnails`` and ``quarantine`` all else.

    Every method that reads raises ``StorageError`` where the file is damaged, and every method that writes where the
    disk refuses or the round does not exist, unless it says otherwise. A record that does not exist is None.

    Args:
        folder: of the project.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def readings(self) -> ReadingStore:
        return ReadingStore(self.folder)

    @cached_property
    def pause(self) -> Pause:
        return Pause(self.folder)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        return Thumbnails(self.folder)

    def quarantine(self) -> Quarantine:
        """The list of unreadable images; one object a round."""
        return Quarantine(self.folder)

    def connection(self) -> Connection | None:
        return read_record(self.folder / "connection.json", Connection)

    def disconnect(self) -> None:
        """Remove the connection. The rounds stay, for a project with the same id and time of creation."""
        (self.folder / "connection.json").unlink(missing_ok=True)

    def begin_run(self, token: str) -> None:
        """Make every earlier run of the project out of date, and remove what it left half-written.

        Args:
            token: drawn for this run.
        """
        write_record(self.folder / "run.json", _Run(token=token))
        # Of version 0.2, whose idle workers helped with a round.
        shutil.rmtree(self.folder / "scoring", ignore_errors=True)
        remove_half_written(self.folder)

    def require_newest(self, token: str) -> None:
        """Make sure that no newer run has begun.

        Raises:
            StaleRound: one has.
        """
        newest = read_record(self.folder / "run.json", _Run)
        if newest is None or newest.token != token:
            raise StaleRound("a newer run of this project has begun: this one neither saves nor publishes")

    def round_ids(self) -> list[str]:
        """Every saved round, oldest first."""
        return self.rounds_with("report")

    def rounds_with(self, name: str) -> list[str]:
        """The saved rounds that hold a record of this name, oldest first."""
        return sorted(path.parent.name for path in self.folder.glob(f"rounds/r*/{name}.json"))

    def next_round_id(self) -> str:
        """Reserve the next number: ``r000001``, ``r000002``, ... No two live runs get the same.

        The number of a run that saves nothing stays unused. Half-written rounds of killed runs are removed, and large
        files of all but the last rounds that have any.
        """
        rounds = self.folder / "rounds"
        try:
            rounds.mkdir(parents=True, exist_ok=True)
            round_id = _reserve(rounds)
        except OSError as error:
            raise StorageError(f"no round can be begun in {rounds}: {error}") from error
        for left in rounds.glob(".r*"):
            if left.name < f".{round_id}":
                shutil.rmtree(left, ignore_errors=True)
        saved = [rounds / name for name in self.round_ids()]
        for pattern in (NETWORK, EVIDENCE):
            files = [found for folder in saved if (found := list(folder.rglob(pattern)))]
            for path in (path for found in files[:-KEPT_NETWORKS] for path in found):
                path.unlink(missing_ok=True)
        return round_id

    def save(
        self,
        report: RoundReport,
        outputs: PoolPredictions | None,
        learner: SavesItself | None,
        records: Mapping[str, FrozenModel] = _NO_RECORDS,
        seal: Callable[[Path], FrozenModel] | None = None,
    ) -> None:
        """Save a round: all of it, or nothing.

        Args:
            report: of the round.
            outputs: predictions of its network; the passes are kept for good, the rest as long as networks.
            learner: saves its network.
            records: further records of the round, by the name that ``record`` finds each under.
            seal: makes the manifest of the folder that holds all else.

        Raises:
            StorageError: the round exists already, or the disk refuses.
            StaleRound: a newer round has begun.
        """
        target = self._round(report.request.round_id)
        folder = target.with_name(f".{target.name}")
        try:
            _make_room(folder, target)
            if outputs is not None:
                write_round_outputs(folder, outputs)
            if learner is not None:
                learner.save(str(folder))
            for name, record in records.items():
                (folder / f"{name}.json").write_text(record.model_dump_json(indent=1))
            size = (folder / "report.json").write_bytes(report.model_dump_json(indent=1).encode())
            (folder / f"{_HEAD}.json").write_text(RankingHead.of(report).model_dump_json(indent=1))
            (folder / f"{_SUMMARY}.json").write_text(RoundSummary.of(report, size).model_dump_json(indent=1))
            if seal is not None:
                (folder / f"{MANIFEST}.json").write_text(seal(folder).model_dump_json(indent=1))
            publish_folder(folder, target)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.mkdir()  # the number stays reserved
            if isinstance(error, OSError):
                raise StorageError(f"round {target.name} could not be saved in {target}: {error}") from error
            raise

    def report(self, round_id: str) -> RoundReport:
        """The whole report of a round. Its size grows with the pool: ``summary`` and ``head`` cost a request less."""
        report = read_record(self._round(round_id) / "report.json", RoundReport)
        if report is None:
            raise StorageError(
                f"no round {round_id!r} in {self.folder}; known are {', '.join(self.round_ids()) or 'none'}"
            )
        return report

    def latest(self) -> RoundReport | None:
        """The report of the newest round."""
        return self.report(ids[-1]) if (ids := self.round_ids()) else None

    def summary(self, round_id: str) -> RoundSummary:
        """A round without anything that grows with the pool, cached for as long as its report stays the same."""
        folder = self._round(round_id)
        return _summary(folder, file_state(folder / "report.json"))

    def summaries(self) -> tuple[list[RoundSummary], list[str]]:
        """Every round that can be read, oldest first; and for each of the others what is wrong with it."""
        found: list[RoundSummary] = []
        damaged: list[str] = []
        for round_id in self.round_ids():
            try:
                found.append(self.summary(round_id))
            except StorageError as error:
                damaged.append(f"Round {round_id} cannot be shown: {error}")
        return found, damaged

    def latest_summary(self) -> RoundSummary | None:
        """That of the newest round."""
        return self.summary(ids[-1]) if (ids := self.round_ids()) else None

    def head(self, round_id: str) -> RankingHead:
        """The images of a round's ranking that a page shows."""
        self.summary(round_id)  # makes both files where an older version saved the round
        with suppress(StorageError):
            if (head := self.record(round_id, _HEAD, RankingHead)) is not None:
                return head
        return RankingHead.of(self.report(round_id))

    def suggestions(self, round_id: str) -> Suggestions:
        """Suggestions for all images of a round's pool, cached for as long as its report stays the same."""
        path = self._round(round_id) / "report.json"
        return _suggestions(path, file_state(path))

    def record(self, round_id: str, name: str, kind: type[R]) -> R | None:
        """A record of a round that was saved with it or later."""
        return read_record(self._round(round_id) / f"{name}.json", kind)

    def cached_record(self, round_id: str, name: str, kind: type[R]) -> R | None:
        """The same, cached for as long as its file stays the same: for a record that a page shows at every request."""
        return read_cached(self._round(round_id) / f"{name}.json", kind)

    def set_record(self, round_id: str, name: str, record: FrozenModel) -> None:
        """Add a record to a saved round."""
        if not (self._round(round_id) / "report.json").is_file():
            raise StorageError(f"no round {round_id!r} in {self.folder} to add {name} to")
        write_record(self._round(round_id) / f"{name}.json", record)

    def project_record(self, name: str, kind: type[R]) -> R | None:
        """A record of the project itself."""
        return read_record(self.folder / f"{name}.json", kind)

    def set_project_record(self, name: str, record: FrozenModel) -> None:
        """Write a record of the project itself."""
        write_record(self.folder / f"{name}.json", record)

    def states(self, names: Iterable[str], round_id: str | None = None) -> dict[str, FileState]:
        """The states of records of the project, or of a round, by name: of what is written anew they differ."""
        folder = self.folder if round_id is None else self._round(round_id)
        return {name: file_state(folder / f"{name}.json") for name in names}

    def has_outputs(self, round_id: str) -> bool:
        """Whether the passes of a round's network are kept."""
        return (self._round(round_id) / OUTPUTS).is_file()

    def outputs(self, round_id: str) -> PoolPredictions | None:
        """The passes of a round's network over its pool; None where it had none."""
        return read_outputs(self._round(round_id) / OUTPUTS)

    def evidence(self, round_id: str) -> PoolPredictions | None:
        """The same with the features and gradients that its strategy used, as long as these are kept."""
        return read_evidence(self._round(round_id))

    def embedding(self) -> Embedding | None:
        """Features of the project's images, which only the newest round keeps that computed them; None of no image."""
        found = read_embedding(self.folder / "embedding.npz")
        return found if found is not None and found.image_ids else None

    def set_embedding(self, embedding: Embedding) -> None:
        """Replace it."""
        try:
            write_embedding(self.folder / "embedding.npz", embedding)
        except OSError as error:
            raise StorageError(f"the embedding could not be kept in {self.folder}: {error}") from error

    def network(self, round_id: str) -> Path | None:
        """The folder of a round that still holds its network; None where it trained none, or it was removed since."""
        return folder if any((folder := self._round(round_id)).rglob(NETWORK)) else None

    def newest_network(self, file_name: str) -> Path | None:
        """The folder of the newest round that holds a network.

        Args:
            file_name: under which the learner saves a network.
        """
        folders = map(self._round, reversed(self.round_ids()))
        return next((folder for folder in folders if (folder / file_name).is_file()), None)

    def manifest(self, round_id: str) -> Manifest | None:
        """A round's manifest."""
        return self.record(round_id, MANIFEST, Manifest)

    def manifest_hash(self, round_id: str) -> str | None:
        """The sha256 of a round's manifest file, whether or not it can be parsed."""
        path = self._round(round_id) / f"{MANIFEST}.json"
        try:
            return sha256_of(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path} could not be read: {error}") from error

    def file_faults(self, round_id: str, files: Mapping[str, str]) -> list[str]:
        """Describe each file of a round that differs from its manifest. Networks and evidence may be gone by now."""
        return file_faults(self._round(round_id), files)

    def published(self) -> PublishedRanking | None:
        """The ranking that was published last."""
        return read_record(self.folder / "published.json", PublishedRanking)

    def set_published(self, published: PublishedRanking) -> None:
        """Record the published ranking, and add it to the orders that readers were served."""
        write_record(self.folder / "published.json", published)
        folder = self.folder / "orders"
        try:
            # The moment of a version stays the same, however often its other figures are completed.
            write_record(folder / f"{published.published_at:%Y%m%dT%H%M%S%f}.json", published)
            for old in sorted(folder.glob("2*.json"))[:-KEPT_ORDERS]:
                old.unlink(missing_ok=True)
        except (StorageError, OSError) as error:
            log.warning("the order is served, and is missing from the list of earlier orders", error=str(error))

    def orders(self) -> list[PublishedRanking]:
        """The orders that readers were served, oldest first; the last 500 are kept, damaged ones are logged."""
        found: list[PublishedRanking] = []
        for path in sorted((self.folder / "orders").glob("2*.json")):
            try:
                order = read_record(path, PublishedRanking)
            except StorageError as error:
                log.warning("an earlier order is left out", error=str(error))
                continue
            if order is not None:
                found.append(order)
        return found

    def imported_versions(self) -> tuple[ImportedVersion, ...]:
        """Model versions that this installation has imported and not deleted yet, oldest first."""
        noted = read_record(self.folder / "versions.json", _Imported)
        if noted is not None:
            return noted.versions
        # A data folder of version 0.1 holds only what was served.
        orders = self.orders()
        ended = [
            ImportedVersion(version=order.version, replaced_at=later.published_at) for order, later in pairwise(orders)
        ]
        return (*ended, *(ImportedVersion(version=order.version) for order in orders[-1:]))

    def set_imported_versions(self, versions: Sequence[ImportedVersion]) -> None:
        """Replace that list."""
        write_record(self.folder / "versions.json", _Imported(versions=tuple(versions)))

    def hand_picks(self) -> tuple[HandPick, ...]:
        """What the owner put next in the order, oldest first; a damaged record is logged and hinders no round."""
        try:
            found = read_record(self.folder / f"{HAND_PICKS}.json", _HandPicks)
        except StorageError as error:
            log.warning("the images put next by hand are not known", error=str(error))
            return ()
        return () if found is None else found.picks

    def hand_picked(self) -> tuple[str, ...]:
        """The images of all ``hand_picks``, those of the last in front; most have a label by now."""
        return tuple(image_id for pick in reversed(self.hand_picks()) for image_id in pick.image_ids)

    def add_hand_pick(self, pick: HandPick) -> None:
        """Add images that are to come next; for good, since a label's origin is read from here."""
        with (self.folder / f"{HAND_PICKS}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of two at once, the later keeps the earlier's
            found = read_record(self.folder / f"{HAND_PICKS}.json", _HandPicks) or _HandPicks()
            write_record(self.folder / f"{HAND_PICKS}.json", _HandPicks(picks=(*found.picks, pick)))

    def asked_again(self) -> tuple[int, ...]:
        """Tasks whose overlap this installation may have raised in Label Studio, so that they are read again."""
        noted = read_record(self.folder / "asked-again.json", _AskedAgain)
        return () if noted is None else noted.tasks

    def set_asked_again(self, tasks: Sequence[int]) -> None:
        """Replace that list."""
        write_record(self.folder / "asked-again.json", _AskedAgain(tasks=tuple(tasks)))

    def _round(self, round_id: str) -> Path:
        return self.folder / "rounds" / round_id


def sha256_of(path: Path) -> str:
    """The sha256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder and below, by its path there, without a manifest.

    Raises:
        OSError: one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths if path.name != f"{MANIFEST}.json"}


def file_faults(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Describe each file of a folder that is gone or differs from its sha256; see ``ProjectStore.file_faults``."""
    faults = []
    for name, wanted in files.items():
        try:
            seen = sha256_of(folder / name)
        except FileNotFoundError:
            if not Path(name).name.startswith(("model", "evidence")):
                faults.append(f"{name} is gone")
            continue
        except OSError as error:
            faults.append(f"{name} cannot be read: {error}")
            continue
        if seen != wanted:
            faults.append(f"{name} is not what was saved: its sha256 begins with {seen[:12]}, not {wanted[:12]}")
    return faults


@lru_cache(maxsize=_CACHED_SUMMARIES)
def _summary(folder: Path, report_state: FileState) -> RoundSummary:
    project, round_id = ProjectStore(folder.parents[1]), folder.name
    with suppress(StorageError):
        summary = project.record(round_id, _SUMMARY, RoundSummary)
        if summary is not None and summary.report_bytes == report_state.size:
            return summary
    report = project.report(round_id)
    made = RoundSummary.of(report, report_state.size)
    with suppress(StorageError):  # a folder that cannot be written to: made again by the next process
        project.set_record(round_id, _HEAD, RankingHead.of(report))
        project.set_record(round_id, _SUMMARY, made)
    return made


@lru_cache(maxsize=_CACHED_SUGGESTIONS)
def _suggestions(path: Path, _: FileState) -> Suggestions:
    try:
        ranking: dict[str, Any] = from_json(path.read_bytes())["ranking"]
        return Suggestions(ranking.get("suggestions", {}), ranking.get("confidences", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} could not be read: {error}") from error


def _reserve(rounds: Path) -> str:
    """Take the next number; the folder that the round is written in is its reservation.

    Raises:
        OSError: the disk refuses.
    """
    while True:
        round_id = f"r{_newest(rounds) + 1:06d}"
        try:
            # Of two runs that try at once, one makes the folder.
            (rounds / f".{round_id}").mkdir()
        except FileExistsError:
            continue
        if _newest(rounds) == int(round_id[1:]):
            return round_id
        # Looked up before a newer run came and swept the number away from under another one.
        with suppress(OSError):
            (rounds / f".{round_id}").rmdir()


def _make_room(folder: Path, target: Path) -> None:
    """An empty folder for a round that is not saved yet, and that no newer one has overtaken.

    Raises:
        StaleRound: a newer one has.
        OSError: it is saved already, or the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if _newest(target.parent) > _number(target):
        raise StaleRound(f"a newer round than {target.name} has begun: it is not saved")
    if target.exists():
        raise FileExistsError(f"{target.name} is there already")
    # What was left half-written under a number that was not reserved.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _newest(rounds: Path) -> int:
    """Number of the newest round that was begun, saved or not; 0 where there is none."""
    return max(map(_number, rounds.iterdir()), default=0)


def _number(folder: Path) -> int:
    name = folder.name.removeprefix(".")
    return int(name[1:]) if name[:1] == "r" and name[1:].isdecimal() else 0
