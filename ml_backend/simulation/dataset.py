"""The data of a study: tables in, one checked set of images, labels, sides and features out."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.consensus import median
from ml_backend.errors import SettingsError
from ml_backend.grouping import linked
from ml_backend.records import Annotation, ImageRef, Label, natural_order
from ml_backend.simulation.partition import check_sides, shares_reached, split_by_patient
from ml_backend.simulation.tables import (
    SIDES,
    LabelRow,
    RatingRow,
    Side,
    first_ten,
    read_features,
    read_labels,
    read_ratings,
)
from ml_backend.simulation.task import TaskMapping, parse_task

__all__ = ["DataSet", "load_dataset"]

SEARCHED = 100_000  # files of a folder, for one that is missing under its name
Row = TypeVar("Row", LabelRow, RatingRow)
READ_AT = datetime(2000, 1, 1, tzinfo=UTC)  # a fixed clock: a table of ratings has no times


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """Everything that a study knows about its images.

    Attributes:
        classes: ordinal, least severe first.
        images: in the order of their ids, each once.
        truth: image id -> class.
        split: image id -> side. No patient has images on two sides; train and test hold every class.
        ratings: answers of several readers, of which ``value`` is None where no class of the task was given; or none.
        features: one row an image, in the order of ``images``; None where the images themselves are to be read.
        source: image id -> where it comes from (a hospital, say); None where the table does not say.
        folder: that the images' uris start from; None where there are only features.
        digests: table -> SHA-256 of its bytes.
        notes: what was decided or left out on the way, in words, for the report.

    Raises:
        SettingsError: any of this does not hold; names the images or the patients.
    """

    classes: tuple[str, ...]
    images: tuple[ImageRef, ...]
    truth: Mapping[str, str]
    split: Mapping[str, Side]
    ratings: tuple[Annotation, ...] = ()
    features: Float32[npt.NDArray[np.float32], "images dims"] | None = None
    source: Mapping[str, str] | None = None
    folder: Path | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.features is not None and len(self.features) != len(self.images):
            raise SettingsError(f"{len(self.images)} images but features of {len(self.features)}")
        check_sides(self.images, self.truth, self.split, self.classes)

    def labels(self, side: Side) -> tuple[Label, ...]:
        """The true labels of one side, in the order of the image ids."""
        return tuple(
            Label(image=image, value=self.truth[image.id], raters=1)
            for image in self.images
            if self.split[image.id] == side
        )

    def counts(self) -> dict[Side, dict[str, int]]:
        """Images of every class on every side."""
        found = Counter((self.split[image.id], self.truth[image.id]) for image in self.images)
        return {side: {name: found[side, name] for name in self.classes} for side in SIDES}

    def keep(self, image_ids: Iterable[str]) -> "DataSet":
        """The same study of some of its images."""
        kept = set(image_ids)
        rows = [row for row, image in enumerate(self.images) if image.id in kept]
        images = tuple(self.images[row] for row in rows)
        return replace(
            self,
            images=images,
            truth={image.id: self.truth[image.id] for image in images},
            split={image.id: self.split[image.id] for image in images},
            ratings=tuple(rating for rating in self.ratings if rating.image.id in kept),
            features=None if self.features is None else self.features[rows],
            source=None if self.source is None else {i.id: self.source[i.id] for i in images if i.id in self.source},
        )


def load_dataset(
    images: Path | None,
    labels: Path,
    *,
    ratings: Path | None = None,
    features: Path | None = None,
    task: TaskMapping | None = None,
    imbalance: Mapping[str, float] | None = None,
    split_seed: int = 0,
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25),
) -> DataSet:
    """Read a study's tables and check them against each other.

    The truth of an image is its label where the table has one, else the median of its readers' answers.

    Args:
        images: folder that the paths start from; None where ``features`` are enough.
        labels: see ``tables.read_labels``.
        ratings: see ``tables.read_ratings``.
        features: see ``tables.read_features``.
        task: which labels make which class; without one every label is a class of its own.
        imbalance: class -> share that it shall have on every side, see ``partition.shares_reached``.
        split_seed: of the split and of the subsampling.
        shares: of the images, for train, validation and test, where the table has no column ``split``; the split is by
            patient and stratified, see ``partition.split_by_patient``.

    Raises:
        SettingsError: a table is wrong, tables do not fit each other, a class or a file is missing, a patient stands on
            two sides, or the imbalance cannot be reached; names the rows, images, patients or numbers.
    """
    if images is None and features is None:
        raise SettingsError("a study needs images or features, got neither: give --images, --features, or both")
    meant = frozenset() if task is None else frozenset(task.of)
    rows = _below(images, read_labels(labels, rated=ratings is not None, meant=meant), labels)
    answers = [] if ratings is None else _below(images, read_ratings(ratings, meant=meant), ratings)
    if ratings is not None:
        _check_same_images(labels, rows, ratings, answers)
    notes: list[str] = []
    if task is None:
        task = _task_of(labels, rows, notes, ordered=ratings is not None)
    paths = [row.path for row in rows]
    same = {path: path for path in paths} if images is None else _first_of_the_same(paths, images)
    drawn = not any(row.split is not None for row in rows)
    refs = {
        row.path: ImageRef(id=row.path, uri=same[row.path] if drawn else row.path, patient_id=row.patient_id)
        for row in rows
    }
    annotations = _annotations(answers, refs, task, notes)
    truth = _truth(rows, annotations, task, notes)
    kept = sorted((refs[path] for path in truth), key=lambda image: natural_order(image.id))
    if not any(image.patient_id for image in kept):
        notes.append("the labels table names no patient_id: every image counts as a patient of its own")
    if images is not None:
        _check_files(images, kept, labels, {row.path: row.line for row in rows})
    split = {row.path: row.split for row in rows if row.split is not None and row.path in truth}
    if not split:
        notes.append(f"split by patient, seed {split_seed}, shares {', '.join(f'{share:g}' for share in shares)}")
        split = split_by_patient(kept, truth, split_seed, shares)
    notes += _said_of_copies(kept, same, split)
    sources = {row.path: row.source for row in rows if row.source and row.path in truth}
    data = DataSet(
        classes=task.classes,
        images=tuple(kept),
        truth=truth,
        split=split,
        ratings=tuple(annotation for annotation in annotations if annotation.image.id in truth),
        features=None if features is None else _rows_of(features, kept, notes),
        source=sources or None,
        folder=images,
        digests={
            name: _sha256(table)
            for name, table in (("labels", labels), ("ratings", ratings), ("features", features))
            if table is not None
        },
    )
    if imbalance:
        ids = shares_reached(data.truth, data.split, data.classes, imbalance, split_seed)
        asked = ", ".join(f"{name}={share:g}" for name, share in imbalance.items())
        notes.append(f"for the shares {asked}, {len(ids)} of {len(kept)} images were kept")
        data = data.keep(ids)
    return replace(data, notes=(*notes, *_empty_places(data)))


def _check_same_images(labels: Path, rows: Sequence[LabelRow], ratings: Path, answers: Sequence[RatingRow]) -> None:
    labelled, rated = {row.path for row in rows}, {answer.path for answer in answers}
    for here, there, table, other in ((labelled, rated, labels, ratings), (rated, labelled, ratings, labels)):
        if lone := sorted(here - there, key=natural_order):
            raise SettingsError(
                f"{len(lone)} images stand in {table} but not in {other}: {first_ten(lone, ', ')}; "
                "every image needs a row in the labels and at least one in the ratings"
            )


def _task_of(table: Path, rows: Sequence[LabelRow], notes: list[str], *, ordered: bool) -> TaskMapping:
    """Every label is a class, in alphabetical order, for want of a better one."""
    names = sorted({row.label for row in rows if row.label is not None})
    example = ";".join(names) or "normal;moderate;severe"
    if len(names) < 2 and not ordered:
        raise SettingsError(
            f"{table}, column label: {first_ten([*map(repr, names)])} in every row; at least 2 classes are needed: add "
            "images of another class"
        )
    if odd := [name for name in names if {";", "="} & set(name)]:
        raise SettingsError(
            f"{table}, column label: {first_ten([*map(repr, odd)], ', ')} holds a ';' or '=', by which --task tells "
            "classes apart: write it without"
        )
    if ordered:
        raise SettingsError(
            "the median of readers' answers needs the order of the classes: give --task with the least severe first, "
            f"such as '{example}'"
        )
    notes.append(
        f"CLASSES IN ALPHABETICAL ORDER ({', '.join(names)}): no --task says which is least severe; quadratic-weighted "
        f"kappa is wrong unless that happens to be their order. Give --task '{example}', least severe first"
    )
    return parse_task(example)


def _annotations(
    answers: Sequence[RatingRow], refs: Mapping[str, ImageRef], task: TaskMapping, notes: list[str]
) -> list[Annotation]:
    unknown = Counter(answer.label for answer in answers if answer.label is not None and answer.label not in task.of)
    notes += [
        f"{times} answers {label!r} count as no class: the task does not mention it"
        for label, times in sorted(unknown.items())
    ]
    in_order = sorted(answers, key=lambda answer: (natural_order(answer.path), answer.rater))
    return [
        Annotation(
            image=refs[answer.path],
            rater=answer.rater,
            value=None if answer.label is None else task.of.get(answer.label),
            updated_at=READ_AT,
        )
        for answer in in_order
    ]


def _truth(
    rows: Sequence[LabelRow], annotations: Sequence[Annotation], task: TaskMapping, notes: list[str]
) -> dict[str, str]:
    consensus = {label.image.id: label.value for label in median(annotations, task.classes).labels}
    truth: dict[str, str] = {}
    dropped: Counter[str | None] = Counter()
    for row in rows:
        value = consensus.get(row.path) if row.label is None else task.of.get(row.label)
        if value is None:
            dropped[row.label] += 1
        else:
            truth[row.path] = value
    for label, times in sorted(dropped.items(), key=lambda item: item[0] or ""):
        what = (
            "that no reader gave a class" if label is None else f"labelled {label!r}, which the task does not mention,"
        )
        notes.append(f"{times} images {what} were left out")
    if lost := [name for name in task.classes if name not in truth.values()]:
        labels = ", ".join(sorted({row.label for row in rows if row.label is not None})) or "none"
        raise SettingsError(
            f"no image is of class {' or '.join(map(repr, lost))}; the labels in the table are: {labels}"
        )
    return truth


def _below(folder: Path | None, rows: list[Row], table: Path) -> list[Row]:
    """The rows with absolute paths of images in the folder written from the folder on.

    Raises:
        SettingsError: the same image stands there by its absolute path and by the other.
    """
    if folder is None or not any(row.path.startswith("/") for row in rows):
        return rows
    root = folder.resolve()
    moved = []
    for row in rows:
        path = Path(row.path).resolve() if row.path.startswith("/") else None
        inside = path is not None and path.is_relative_to(root)
        moved.append(replace(row, path=path.relative_to(root).as_posix()) if path is not None and inside else row)
    seen: dict[tuple[str, str], int] = {}
    twice = []
    for row in moved:
        first = seen.setdefault((row.path, getattr(row, "rater", "")), row.line)
        if first != row.line:
            twice.append(f"lines {first} and {row.line} ({row.path!r})")
    if twice:
        raise SettingsError(f"{table} has the same image by two paths: {first_ten(twice)}; remove one of each two rows")
    return moved


def _first_of_the_same(paths: Sequence[str], folder: Path) -> dict[str, str]:
    """Path -> the first path with the same bytes. A file that cannot be read is like no other; who reads it says why.

    One file has one path: ``read_labels`` refuses another spelling of it.
    """
    in_order = sorted(paths, key=natural_order)
    marks: dict[str, list[str]] = {path: [] for path in in_order}
    of_size: dict[int, list[str]] = {}
    for path in in_order:
        with suppress(OSError, ValueError):
            if _is_file(folder / path):
                of_size.setdefault((folder / path).stat().st_size, []).append(path)
    for alike in of_size.values():
        for path in alike if len(alike) > 1 else ():  # a file of a size of its own need not be read
            with suppress(OSError):
                marks[path].append(_sha256(folder / path))
    return linked(marks)


def _said_of_copies(images: Sequence[ImageRef], same: Mapping[str, str], split: Mapping[str, Side]) -> list[str]:
    sides: dict[str, set[Side]] = {}
    for image in images:
        sides.setdefault(same[image.id], set()).add(split[image.id])
    copies = [image.id for image in images if same[image.id] != image.id]
    if not copies:
        return []
    said = f"{len(copies)} rows hold the same image as another row: {first_ten(copies, ', ')}"
    if divided := sum(len(found) > 1 for found in sides.values()):
        return [f"{said}; THE TABLE PUTS {divided} IMAGES ON MORE THAN ONE SIDE, so that the figures are too good"]
    return [f"{said}; copies are on one side of the split"]


def _check_files(folder: Path, images: Sequence[ImageRef], table: Path, lines: Mapping[str, int]) -> None:
    if not folder.is_dir():
        raise SettingsError(
            f"--images {str(folder)!r} is no folder: name the one that the paths of the labels start from"
        )
    root = folder.resolve()

    def named(image: ImageRef) -> str:
        return f"{image.uri} (line {lines[image.id]})"

    if outside := [image for image in images if not (root / image.uri).resolve().is_relative_to(root)]:
        raise SettingsError(
            f"{len(outside)} paths of {table} lead out of {folder}: {first_ten([*map(named, outside)], ', ')}; give "
            "paths inside it"
        )
    if missing := [image for image in images if not _is_file(root / image.uri)]:
        raise SettingsError(
            f"{len(missing)} of {len(images)} images of {table} are not in {folder}: "
            f"{first_ten([*map(named, missing)], ', ')}; {_near(root, missing[0].uri)}"
            + (
                "give the folder that the paths of the labels start from"
                if len(missing) == len(images)
                else "put them there, mend their paths, or remove their rows"
            )
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False


def _near(root: Path, uri: str) -> str:
    """Where the first of the missing images seems to be instead."""
    name = _alike(Path(uri).name)
    for path in islice(root.rglob("*"), SEARCHED):
        if _alike(path.name) == name and path.is_file():
            return f"there is {path.relative_to(root).as_posix()!r} instead of {uri!r}; "
    return ""


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _rows_of(
    file: Path, images: Sequence[ImageRef], notes: list[str]
) -> Float32[npt.NDArray[np.float32], "images dims"]:
    features = read_features(file)
    row_of = {path: row for row, path in enumerate(features.paths)}
    if missing := [image.id for image in images if image.id not in row_of]:
        raise SettingsError(
            f"{len(missing)} of {len(images)} images have no features in {file}: {first_ten(missing, ', ')}; "
            "its paths must be written as those of the labels"
        )
    if more := len(row_of) - len(images):
        notes.append(f"{more} rows of the features belong to no image of the study")
    return features.values[[row_of[image.id] for image in images]]


def _empty_places(data: DataSet) -> list[str]:
    counts = data.counts()["val"]
    if not any(counts.values()):
        return ["there is no validation side"]
    return [f"no image of class {name!r} is on the validation side" for name, count in counts.items() if not count]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
