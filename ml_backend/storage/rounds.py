"""The rounds of every project: one folder a round, written under a temporary name and renamed into place.

A reader sees a whole round or none. ``report.json`` holds what pages and metrics need at every request, and does not
grow with the pool; what does is in columns next to it, ``ranking.npz`` and ``inputs.npz``. In a round of an older
version ``report.json`` is the whole report, and ``summary.json`` and ``head.json`` are made from it, once.
"""

import fcntl
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import structlog
from pydantic import AwareDatetime, Field
from pydantic_core import from_json

from ml_backend.errors import StaleRound, StorageError, UnknownProject, UnknownRound
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import (
    Connection,
    Exclusion,
    FitReport,
    FrozenModel,
    HandPick,
    ImageRef,
    ImportedVersion,
    Label,
    ProjectKey,
    PublishedRanking,
    PutOff,
    Reread,
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
    write_atomically,
    write_record,
)
from ml_backend.storage.outputs import (
    EVIDENCE,
    OUTPUTS,
    Embedding,
    Ids,
    SavesItself,
    id_column,
    ids_of,
    json_column,
    read_columns,
    read_embedding,
    read_evidence,
    read_outputs,
    write_columns,
    write_embedding,
    write_round_outputs,
)
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore, Thumbnails

KEPT_NETWORKS: Final = 3
"""Rounds that keep their network, the last that trained one; a warm start continues from the newest."""
KEPT_ORDERS: Final = 500
"""Orders that readers were served, and rounds that keep ranking and inputs where the number of rounds is bounded."""
HEAD_IMAGES: Final = 200
"""Images of a batch, and randomly drawn images behind it, that a page shows."""
NETWORK: Final = "model.*"
"""What a learner saves."""
LISTED: Final = 200
"""Images that a page lists with a reason: put off, left out, or for another reader."""
INPUTS: Final = "inputs.npz"
"""``RoundInputs``."""
RANKING: Final = "ranking.npz"
"""What of a report grows with the pool."""
HAND_PICKS: Final = "hand-picks"
"""Name of the record of a project that ``hand_picks`` reads."""
MANIFEST, _SUMMARY, _HEAD = "manifest", "summary", "head"
REMOVED: Final = "removed"
"""Name of the record ``RemovedFiles`` in a round's folder."""
_HEADER: Final = b'{"format":2,'
_COLUMNS: Final = {"image_ids", "scores", "suggestions", "confidences"}
_NO_RECORDS: Final[Mapping[str, FrozenModel]] = MappingProxyType({})
_CACHED_SUMMARIES = 20_000  # over all projects; about a kilobyte each
_CACHED_SUGGESTIONS = 4  # rounds; 18 bytes an image

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
        report_bytes: size of the file ``report.json``; a summary of an older version's report of another size is out of
            date.
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
    """The images of a round that a page shows.

    Attributes:
        strategy: that ordered them.
        batch: the first of the batch, in the order of the ranking.
        behind: the first of the holdout images behind the batch.
        disputed: the first images with a disputed label; the next three, the first of ``Ranking.rereads``, of
            ``Ranking.put_off``, and of the images that were left out: a skipped image has no label only.
        left_out_images: number of images that were left out; None in a file of an older version, without these lists.
    """

    strategy: str
    batch: tuple[RankedImage, ...]
    behind: tuple[RankedImage, ...] = ()
    disputed: tuple[str, ...] = ()
    rereads: tuple[Reread, ...] = ()
    put_off: tuple[PutOff, ...] = ()
    left_out: tuple[Exclusion, ...] = ()
    left_out_images: int | None = None

    @classmethod
    def of(cls, report: RoundReport) -> "RankingHead":
        """Cut the head off a report's ranking."""
        ranking = report.ranking
        control, ranked = set(ranking.control), set(ranking.image_ids)
        left_out = [one for one in report.exclusions if one.image_id not in ranked]
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
            disputed=report.disputed[:LISTED],
            rereads=ranking.rereads[:LISTED],
            put_off=ranking.put_off[:LISTED],
            left_out=tuple(left_out[:LISTED]),
            left_out_images=len(left_out),
        )


class _Header(FrozenModel):
    """``report.json`` of a round."""

    format: Literal[2] = 2
    summary: RoundSummary
    head: RankingHead


class Suggestions(NamedTuple):
    """The most probable class of images of a round's pool, and its probability; empty without a network."""

    classes: Mapping[str, str]
    confidences: Mapping[str, float]


class _Suggested(NamedTuple):
    """The suggestions for a round's pool: in the order of the ids, the place of the class among the names, or -1."""

    ids: Ids
    places: npt.NDArray[np.int16]
    confidences: npt.NDArray[np.float64]
    names: Sequence[str]

    @classmethod
    def of_columns(cls, ids: Ids, places: Any, confidences: Any, names: npt.NDArray[np.uint8]) -> "_Suggested":
        """Sort the columns by the ids."""
        order = np.argsort(ids)
        return cls(ids[order], places[order], confidences[order], from_json(names.tobytes()))

    def of(self, image_ids: Iterable[str] | None) -> Suggestions:
        """Those of some images; None for all."""
        if image_ids is None:
            found, rows = ids_of(self.ids), list(range(len(self.ids)))
        else:
            numbers = self.ids.dtype.kind == "i"
            found = tuple(one for one in image_ids if not numbers or id_column([one]).dtype.kind == "i")
            asked = id_column(found) if numbers else np.array(found, dtype=np.str_)
            at = np.searchsorted(self.ids, asked).tolist()
            there = [n for n, row in enumerate(at) if row < len(self.ids) and self.ids[row] == asked[n]]
            found, rows = tuple(found[n] for n in there), [at[n] for n in there]
        places, shares = self.places[rows].tolist(), self.confidences[rows].tolist()
        return Suggestions(
            {one: self.names[place] for one, place in zip(found, places, strict=True) if place >= 0},
            {one: share for one, share in zip(found, shares, strict=True) if not math.isnan(share)},
        )


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


class ServedOrder(FrozenModel, extra="ignore"):
    """An order that readers were served, without its images; see ``PublishedRanking`` and ``order_ids``."""

    version: str
    round_id: str
    rereads: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    published_at: AwareDatetime

    @classmethod
    def of(cls, published: PublishedRanking) -> "ServedOrder":
        """The order without its images."""
        return cls.model_validate(published.model_dump(exclude={"image_ids"}))


class RemovedFiles(FrozenModel):
    """Files that were removed from a round's folder since it was saved, since only the last rounds keep theirs."""

    files: tuple[str, ...] = ()


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

    def next_round_id(self, keep_rounds: int = 0) -> str:
        """Reserve the next number: ``r000001``, ``r000002``, ... No two live runs get the same.

        The number of a run that saves nothing stays unused. Half-written rounds of killed runs are removed, and large
        files of all but the last rounds that have any.

        Args:
            keep_rounds: rounds that keep their passes; rankings and inputs are kept of as many, and of ``KEPT_ORDERS``
                at least. 0: of all.
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
        try:
            self._remove_old_files(keep_rounds)
        except (StorageError, OSError) as error:
            log.warning("files of old rounds could not be removed", error=str(error))
        return round_id

    def _remove_old_files(self, keep_rounds: int) -> None:
        bounds = {NETWORK: KEPT_NETWORKS, EVIDENCE: KEPT_NETWORKS}
        if keep_rounds:
            bounds |= {OUTPUTS: keep_rounds} | dict.fromkeys((RANKING, "inputs.*"), max(keep_rounds, KEPT_ORDERS))
        files = [[path for path in self._round(name).rglob("*") if path.is_file()] for name in self.round_ids()]
        newest = self.summaries()[0][-1:]  # what it has ranked again is needed where another strategy is chosen
        spared = {one.base for one in newest}
        for pattern, keep in bounds.items():
            holders = [found for its in files if (found := [path for path in its if path.match(pattern)])]
            for path in (path for found in holders[:-keep] for path in found):
                if pattern not in (NETWORK, EVIDENCE):  # on record first: what is gone without a record is a fault
                    if (round_id := path.parent.name) in spared:
                        continue
                    log.info("removed, as AL_KEEP_ROUNDS says", file=path.name, of_round=round_id)
                    names = dict.fromkeys((*self.removed_files(round_id), path.name))
                    self.set_record(round_id, REMOVED, RemovedFiles(files=tuple(names)))
                path.unlink(missing_ok=True)

    def removed_files(self, round_id: str) -> tuple[str, ...]:
        """Files of a round that only the last rounds keep, and that were removed."""
        found = self.record(round_id, REMOVED, RemovedFiles)
        return () if found is None else found.files

    def save(
        self,
        report: RoundReport,
        outputs: PoolPredictions | None,
        learner: SavesItself | None,
        records: Mapping[str, FrozenModel] = _NO_RECORDS,
        *,
        seal: Callable[[Path], FrozenModel] | None = None,
        inputs: RoundInputs | None = None,
    ) -> None:
        """Save a round: all of it, or nothing.

        Args:
            report: of the round.
            outputs: predictions of its network; see ``next_round_id`` for how long they are kept.
            learner: saves its network.
            records: further records of the round, by the name that ``record`` finds each under.
            seal: makes the manifest of the folder that holds all else.
            inputs: labels and pool.

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
                (folder / f"{name}.json").write_text(record.model_dump_json())
            header = _Header(summary=RoundSummary.of(report), head=RankingHead.of(report))
            (folder / "report.json").write_text(header.model_dump_json())
            write_ranking(folder / RANKING, report)
            if inputs is not None:
                write_inputs(folder / INPUTS, inputs)
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
        folder = self._round(round_id)
        if not _is_whole(folder):
            self.summary(round_id)  # raises where report.json is damaged
            if RANKING in self.removed_files(round_id):
                raise UnknownRound(
                    f"the ranking of round {round_id} was removed: AL_KEEP_ROUNDS says how many are kept"
                )
            return read_ranking(folder / RANKING)
        if (report := read_record(folder / "report.json", RoundReport)) is None:
            raise StorageError(
                f"no round {round_id!r} in {self.folder}; known are {', '.join(self.round_ids()) or 'none'}"
            )
        return report

    def ranked(self, round_id: str) -> tuple[str, ...]:
        """The images of a round's ranking in their order; none where it was removed."""
        folder = self._round(round_id)
        if _is_whole(folder):
            return self.report(round_id).ranking.image_ids
        with suppress(FileNotFoundError):
            ids, scores = read_columns(folder / RANKING, "image_ids", "scores")
            return ids_of(ids[: len(scores)])
        return ()

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
        """The images of a round that a page shows."""
        self.summary(round_id)  # makes both files where an older version saved the round
        folder = self._round(round_id)
        if not _is_whole(folder) and (header := read_cached(folder / "report.json", _Header)) is not None:
            return header.head
        with suppress(StorageError):
            if (head := self.record(round_id, _HEAD, RankingHead)) is not None:
                return head
        return RankingHead.of(self.report(round_id))

    def suggestions(self, round_id: str, image_ids: Iterable[str] | None = None) -> Suggestions:
        """Suggestions for images of a round's pool, by default all; cached for as long as the file stays the same."""
        folder = self._round(round_id)
        path = folder / ("report.json" if _is_whole(folder) else RANKING)
        return _suggestions(path, file_state(path)).of(image_ids)

    def inputs(self, round_id: str) -> RoundInputs | None:
        """What a round learned from and ranked; None where it was not saved, or was removed."""
        folder = self._round(round_id)
        return read_inputs(folder / INPUTS) or read_record(folder / "inputs.json", RoundInputs)

    def record(self, round_id: str, name: str, kind: type[R]) -> R | None:
        """A record of a round that was saved with it or later."""
        return read_record(self._round(round_id) / f"{name}.json", kind)

    def raw_record(self, round_id: str, name: str) -> Any:
        """A record of a round as its JSON, not validated."""
        path = self._round(round_id) / f"{name}.json"
        try:
            return from_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} could not be read: {error}") from error

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
        folder, removed = self._round(round_id), self.removed_files(round_id)
        # On record as removed, a file may be gone; one that is there must be the one that was saved.
        expected = {name: one for name, one in files.items() if name not in removed or (folder / name).exists()}
        return file_faults(folder, expected)

    def published(self) -> PublishedRanking | None:
        """The ranking that was published last, cached for as long as its file stays the same."""
        return read_cached(self.folder / "published.json", PublishedRanking)

    def set_published(self, published: PublishedRanking) -> None:
        """Record the published ranking, and add it to the orders that readers were served."""
        write_record(self.folder / "published.json", published)
        path = self._order(published.published_at)
        try:
            # The moment of a version stays the same, however often its other figures are completed.
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, id_column(published.image_ids), allow_pickle=False)
            write_atomically(path.with_suffix(".npy"), buffer.getvalue())
            write_record(path, ServedOrder.of(published))
            files = sorted(path.parent.glob("2*.*"))  # a killed process may have left one of the two
            last = set(sorted({file.stem for file in files})[-KEPT_ORDERS:])
            for file in files:
                if file.stem not in last:
                    file.unlink(missing_ok=True)
        except (StorageError, OSError) as error:
            log.warning("the order is served, and is missing from the list of earlier orders", error=str(error))

    def orders(self) -> list[ServedOrder]:
        """The orders that readers were served, oldest first; the last 500 are kept, damaged ones are logged."""
        found: list[ServedOrder] = []
        for path in sorted((self.folder / "orders").glob("2*.json")):
            try:
                order = read_record(path, ServedOrder)
            except StorageError as error:
                log.warning("an earlier order is left out", error=str(error))
                continue
            if order is not None:
                found.append(order)
        return found

    def order_ids(self, order: ServedOrder) -> Ids:
        """The images of an order, in the order in which they were served; none of a damaged one, which is logged."""
        path = self._order(order.published_at)
        try:
            if (columns := path.with_suffix(".npy")).is_file():
                return np.load(columns, allow_pickle=False)  # type: ignore[no-any-return]
            return id_column(from_json(path.read_bytes())["image_ids"])  # as an older version wrote it
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("an earlier order is left out", file=str(path), error=str(error))
            return id_column(())

    def _order(self, published_at: datetime) -> Path:
        return self.folder / "orders" / f"{published_at:%Y%m%dT%H%M%S%f}.json"

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


def _is_whole(folder: Path) -> bool:
    """Whether a round's ``report.json`` is the whole report, as an older version saved it, or is damaged."""
    try:
        with (folder / "report.json").open("rb") as file:
            return file.read(len(_HEADER)) != _HEADER
    except OSError:
        return True


@lru_cache(maxsize=_CACHED_SUMMARIES)
def _summary(folder: Path, report_state: FileState) -> RoundSummary:
    project, round_id, size = ProjectStore(folder.parent.parent), folder.name, report_state.size
    if not _is_whole(folder) and (header := read_record(folder / "report.json", _Header)) is not None:
        return header.summary.model_copy(update={"report_bytes": size})
    with suppress(StorageError):
        summary = project.record(round_id, _SUMMARY, RoundSummary)
        if summary is not None and summary.report_bytes == size:
            return summary
    report = project.report(round_id)
    made = RoundSummary.of(report, size)
    with suppress(StorageError):  # a folder that cannot be written to: made again by the next process
        project.set_record(round_id, _HEAD, RankingHead.of(report))
        project.set_record(round_id, _SUMMARY, made)
    return made


def write_ranking(path: Path, report: RoundReport) -> None:
    """Write ``ranking.npz``; raises OSError where the disk refuses."""
    ranking = report.ranking
    ids = tuple(dict.fromkeys((*ranking.image_ids, *ranking.suggestions, *ranking.confidences)))
    names = list(dict.fromkeys(ranking.suggestions.values()))
    places = {image_id: names.index(name) for image_id, name in ranking.suggestions.items()}
    write_columns(
        path,
        image_ids=id_column(ids),
        scores=np.array(ranking.scores, dtype=np.float64),  # of the first images; the others are not ranked
        suggestions=np.array([places.get(one, -1) for one in ids], dtype=np.int16),
        confidences=np.array([ranking.confidences.get(one, math.nan) for one in ids], dtype=np.float64),
        classes=json_column(json.dumps(names)),
        report=json_column(report.model_dump_json(exclude={"ranking": _COLUMNS})),
    )


def read_ranking(path: Path) -> RoundReport:
    """Read ``ranking.npz``; raises StorageError where it is damaged or gone."""
    names = ("image_ids", "suggestions", "confidences", "classes", "scores", "report")
    try:
        *suggested, scores, report = read_columns(path, *names)
        found = from_json(report.tobytes())
        suggestions = _Suggested.of_columns(*suggested).of(None)
        found["ranking"] |= {
            "image_ids": ids_of(suggested[0][: len(scores)]),
            "scores": tuple(scores.tolist()),
            "suggestions": suggestions.classes,
            "confidences": suggestions.confidences,
        }
        return RoundReport.model_validate(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}): move it away to continue") from error


@lru_cache(maxsize=_CACHED_SUGGESTIONS)
def _suggestions(path: Path, _: FileState) -> _Suggested:
    try:
        if path.name == RANKING:
            return _Suggested.of_columns(*read_columns(path, "image_ids", "suggestions", "confidences", "classes"))
        ranking: dict[str, Any] = from_json(path.read_bytes())["ranking"]
        classes, shares = ranking.get("suggestions", {}), ranking.get("confidences", {})
        names = list(dict.fromkeys(classes.values()))
        places = np.array([*map(names.index, classes.values())], dtype=np.int16)
        confidences = np.array([shares.get(one, math.nan) for one in classes], dtype=np.float64)
        return _Suggested.of_columns(id_column(tuple(classes)), places, confidences, json_column(json.dumps(names)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} could not be read: {error}") from error


def write_inputs(path: Path, inputs: RoundInputs) -> None:
    """Write ``inputs.npz``; raises OSError where the disk refuses."""
    pool = {name: [getattr(image, name) for image in inputs.pool] for name in ImageRef.model_fields}
    labels = inputs.model_dump_json(include={"labels"})
    write_columns(path, labels=json_column(labels), pool=json_column(json.dumps(pool, ensure_ascii=False)))


def read_inputs(path: Path) -> RoundInputs | None:
    """Read ``inputs.npz``; None where there is none. Raises StorageError where it is damaged."""
    try:
        labels, pool = (from_json(one.tobytes()) for one in read_columns(path, "labels", "pool"))
        rows = zip(*pool.values(), strict=True)
        return RoundInputs.model_validate({**labels, "pool": [dict(zip(pool, row, strict=True)) for row in rows]})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is damaged ({error}): move it away to continue") from error


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
