"""The data of a study: tables in, one checked set of images, classes, sides and features out."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.consensus import median
from ml_backend.errors import SettingsError
from ml_backend.schemas import Annotation, ImageRef, Label, groups_of, natural_order
from ml_backend.seeding import seeded_order
from ml_backend.simulation.tables import (
    SIDES,
    LabelRow,
    RatingRow,
    Side,
    first_ten,
    is_file,
    read_features,
    read_labels,
    read_ratings,
)

SHARES: Final = (0.6, 0.15, 0.25)  # of the images on train, val and test, where the table has no column ``split``
Row = TypeVar("Row", LabelRow, RatingRow)
READ_AT: Final = datetime(2000, 1, 1, tzinfo=UTC)  # a fixed clock: a table of ratings has no times


@dataclass(frozen=True, slots=True)
class TaskMapping:
    """The classes of a study.

    Attributes:
        classes: ordinal, least severe first.
        of: label of the table -> class; a label that is not in it belongs to no class.
    """

    classes: tuple[str, ...]
    of: Mapping[str, str]


def parse_task(text: str) -> TaskMapping:
    """Parse ``normal=normal;diseased=bacterial,viral``: classes from least to most severe, each with its labels.

    A class without ``=`` is the label of that name: ``normal;moderate;severe`` only states the order.

    Raises:
        SettingsError: fewer than two classes, an empty name, or a class or a label that is mentioned twice.
    """

    def refused(reason: str) -> SettingsError:
        return SettingsError(
            f"task {text!r}: {reason}; write it as 'normal=normal;diseased=bacterial,viral', least severe class first"
        )

    of: dict[str, str] = {}
    classes: list[str] = []
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, listed = (piece.strip() for piece in part.partition("="))
        labels = [label.strip() for label in listed.split(",")] if equals else [name]
        if not name or not all(labels):
            raise refused(f"{part!r} has an empty name")
        if name in classes:
            raise refused(f"class {name!r} is there twice")
        classes.append(name)
        for label in labels:
            if of.setdefault(label, name) != name or labels.count(label) > 1:
                raise refused(f"label {label!r} is there twice")
    if len(classes) < 2:
        raise refused(f"expected 2 classes or more, got {len(classes)}")
    return TaskMapping(tuple(classes), of)


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """The images of a study, with their true classes and sides.

    Attributes:
        classes: ordinal, least severe first.
        images: in the order of their ids, each once.
        truth: image id -> class.
        split: image id -> side. No patient has images on two sides; train and test hold every class.
        ratings: answers of several readers, ``value`` None where no class of the task was given; may be empty.
        features: one row an image, in the order of ``images``; None where the images themselves are to be read.
        source: image id -> where it comes from (a hospital, say); None where the table does not name it.
        folder: that the images' uris start from; None where there are only features.
        digests: table -> SHA-256 of its bytes.
        notes: decisions and omissions, in words, for the report.

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
        ids = [image.id for image in self.images]
        repeated = {image_id for image_id, times in Counter(ids).items() if times > 1}
        if odd := set(ids) ^ set(self.truth) | set(ids) ^ set(self.split) | repeated:
            raise SettingsError(
                f"images, true classes and sides do not belong together: {first_ten(sorted(odd), ', ')}"
            )
        self._check_sides()

    def _check_sides(self) -> None:
        """The sides share no patient, and train and test hold every class."""
        group_of = groups_of(self.images)
        sides_of: dict[str, set[Side]] = {}
        for image in self.images:
            sides_of.setdefault(group_of[image.id], set()).add(self.split[image.id])
        if divided := sorted(group for group, sides in sides_of.items() if len(sides) > 1):
            where = [f"{group} ({', '.join(side for side in SIDES if side in sides_of[group])})" for group in divided]
            raise SettingsError(
                f"{len(divided)} patients have images on more than one side: {first_ten(where, ', ')}; put all images "
                "of a patient on one side, or remove the column split"
            )
        for side, counts in self.counts().items():
            lost = [name for name in self.classes if not counts[name]]
            if lost and side != "val":
                patients = len({group_of[image.id] for image in self.images if self.truth[image.id] in lost})
                raise SettingsError(
                    f"the {side} side has no image of class {' or '.join(map(repr, lost))}, of which there are images "
                    f"of {patients} patients in all: give more of them, another split, or leave the class out of --task"
                )

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
        """The same study with some of its images."""
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
    join_validation: bool = False,
) -> DataSet:
    """Read a study's tables and check them against each other.

    The truth of an image is its label where the table has one, else the median of its readers' answers. Where the table
    has no column ``split``, ``split_by_patient`` draws the sides.

    Args:
        images: folder that the paths start from; None where ``features`` suffice.
        labels: see ``tables.read_labels``.
        ratings: see ``tables.read_ratings``.
        features: see ``tables.read_features``.
        task: which labels make which class; without one every label is a class of its own.
        imbalance: class -> its share on every side, see ``subsample_to_prevalence``.
        split_seed: of the split and of the subsampling.
        join_validation: count the validation side as training side.

    Raises:
        SettingsError: a table is wrong, tables do not fit each other, a class or a file is missing, a reader gives no
            class, a patient has images on two sides, or the imbalance cannot be reached; names the rows, readers,
            images, patients or numbers.
    """
    if images is None and features is None:
        raise SettingsError("a study needs images or features, got neither: give --images, --features, or both")
    meant = frozenset() if task is None else frozenset(task.of)
    rows = _relative(images, read_labels(labels, rated=ratings is not None, meant=meant), labels)
    answers: list[RatingRow] = []
    if ratings is not None:
        answers = _relative(images, read_ratings(ratings, meant=meant), ratings)
        _check_same_images(labels, rows, ratings, answers)
    notes: list[str] = []
    if task is None:
        task = _task_of(labels, rows, notes, ordered=ratings is not None)
    same = {row.path: row.path for row in rows} if images is None else _first_copies([row.path for row in rows], images)
    is_split = any(row.split is not None for row in rows)
    refs = {
        row.path: ImageRef(id=row.path, uri=row.path if is_split else same[row.path], patient_id=row.patient_id)
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
        notes.append(f"split by patient, seed {split_seed}, shares {', '.join(f'{share:g}' for share in SHARES)}")
        split = split_by_patient(kept, truth, split_seed, SHARES)
    notes += _note_copies(kept, same, split)
    notes += _join_validation(split) if join_validation else []
    sources = {row.path: row.source for row in rows if row.source and row.path in truth}
    tables = {"labels": labels, "ratings": ratings, "features": features}
    data = DataSet(
        classes=task.classes,
        images=tuple(kept),
        truth=truth,
        split=split,
        ratings=tuple(annotation for annotation in annotations if annotation.image.id in truth),
        features=None if features is None else _features_of(features, kept, notes),
        source=sources or None,
        folder=images,
        digests={name: sha256(table) for name, table in tables.items() if table is not None},
    )
    if imbalance:
        ids = subsample_to_prevalence(data.truth, data.split, data.classes, imbalance, split_seed)
        notes.append(f"for the shares {_listed(imbalance)}, {len(ids)} of {len(kept)} images were kept")
        data = data.keep(ids)
    notes += ["validation is drawn from the labels"] if join_validation else _note_validation(data)
    return replace(data, notes=tuple(notes))


def _join_validation(split: dict[str, Side]) -> list[str]:
    """Put the validation side on the training side; what to note about it."""
    joined = [path for path, side in split.items() if side == "val"]
    split |= dict.fromkeys(joined, "train")
    return [f"{len(joined)} images of the validation side count as training side"] if joined else []


def _note_validation(data: DataSet) -> list[str]:
    counts = data.counts()["val"]
    if not any(counts.values()):
        return ["there is no validation side"]
    return [f"no image of class {name!r} is on the validation side" for name, n in counts.items() if not n]


def split_by_patient(
    images: Sequence[ImageRef], truth: Mapping[str, str], seed: int, shares: tuple[float, float, float]
) -> dict[str, Side]:
    """Draw a side for every patient (every image where the patient is unknown), stratified by class.

    The patients come in a random order that follows from the seed and their names, those with many images first, since
    they fit least well at the end. Each goes where it brings the images of its classes nearest to the side's quota, by
    ``sum_c (have_c - wanted_c)^2 / wanted_c``, under which all sides fill at one pace.

    Args:
        images: in any order.
        truth: image id -> class.
        seed: the same seed draws the same sides, however the images are arranged.
        shares: of the images, for train, val and test; val may be 0.

    Returns:
        Image id -> side.

    Raises:
        SettingsError: the shares do not sum to 1, or train or test has none.
    """
    if min(shares[0], shares[2]) <= 0 or shares[1] < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise SettingsError(
            f"shares of train, val and test are {shares}: they must sum to 1, train and test above 0, val 0 or above"
        )
    used = [(side, share) for side, share in zip(SIDES, shares, strict=True) if share > 0]
    classes = {name: column for column, name in enumerate(sorted(set(truth.values())))}
    group_of = groups_of(images)
    groups: dict[str, list[ImageRef]] = {}
    for image in images:
        groups.setdefault(group_of[image.id], []).append(image)
    names = list(groups)
    in_turn = [names[place] for place in seeded_order([f"side of {name}" for name in names], seed)]
    in_turn.sort(key=lambda name: -len(groups[name]))
    counts = {
        name: np.bincount([classes[truth[image.id]] for image in members], minlength=len(classes))
        for name, members in groups.items()
    }
    wanted = np.outer([share for _, share in used], np.sum(list(counts.values()), axis=0))
    have = np.zeros_like(wanted)
    split: dict[str, Side] = {}
    for name in in_turn:
        more = counts[name]
        # What the group adds to the sum: ((have + more - wanted)^2 - (have - wanted)^2) / wanted.
        worse = ((more * more + 2 * more * (have - wanted)) / wanted).sum(axis=1)
        row = int(worse.argmin())
        have[row] += more
        split.update(dict.fromkeys([image.id for image in groups[name]], used[row][0]))
    return split


def subsample_to_prevalence(
    truth: Mapping[str, str],
    split: Mapping[str, Side],
    classes: Sequence[str],
    imbalance: Mapping[str, float],
    seed: int,
) -> list[str]:
    """Choose the largest set of images in which some classes have a given share of every side.

    Classes without a given share keep their proportions among each other. Where a class has too many images, some of
    it go; where it has too few, some of the others. Which ones follows from the seed and their ids alone, and a smaller
    share keeps a subset of what a larger one keeps.

    Args:
        truth: image id -> class.
        split: image id -> side.
        classes: all of them.
        imbalance: class -> share on each side, above 0 and below 1.
        seed: of the subsampling.

    Returns:
        Ids of the images that stay, on each side within half an image a class of the shares.

    Raises:
        SettingsError: a class is unknown, the shares do not sum to 1 (or leave nothing for the other classes), or a
            class would have no image left on a side; gives the counts.
    """
    _check_shares(classes, imbalance)
    kept: list[str] = []
    for side in SIDES:
        members = {name: [i for i, value in truth.items() if value == name and split[i] == side] for name in classes}
        if not any(members.values()):
            continue
        counts = {name: len(ids) for name, ids in members.items()}
        quotas = _quotas(counts, imbalance)
        if gone := [name for name in classes if not quotas[name] and (counts[name] or name in imbalance)]:
            there = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise SettingsError(
                f"the shares {_listed(imbalance)} cannot be reached on the {side} side, which holds {there}: no image "
                f"of {' and '.join(gone)} would be left; ask for a share nearer to what is there"
            )
        for name, ids in members.items():
            # Not by the bare ids: the strategy `random` orders by those, and would find what stays all at the front.
            order = seeded_order([f"kept {image_id}" for image_id in ids], seed)
            kept += [ids[place] for place in order[: quotas[name]]]
    return kept


def _check_shares(classes: Sequence[str], imbalance: Mapping[str, float]) -> None:
    if unknown := [name for name in imbalance if name not in classes]:
        raise SettingsError(f"imbalance of {', '.join(map(repr, unknown))}: the classes are {', '.join(classes)}")
    total, free = sum(imbalance.values()), [name for name in classes if name not in imbalance]
    fits = total < 1.0 - 1e-6 if free else math.isclose(total, 1.0, abs_tol=1e-6)
    if not fits or not all(0.0 < share < 1.0 for share in imbalance.values()):
        expected = f"sum to less than 1, to leave room for {', '.join(free)}" if free else "sum to 1"
        raise SettingsError(f"imbalance {_listed(imbalance)}: shares must lie above 0 and below 1 and {expected}")


def _quotas(counts: Mapping[str, int], imbalance: Mapping[str, float]) -> dict[str, int]:
    """Images of each class that may stay: as many as the scarcest class, measured by its share, allows."""
    free = sum(count for name, count in counts.items() if name not in imbalance)
    left = 1.0 - sum(imbalance.values())
    shares = {name: imbalance.get(name, left * count / max(free, 1)) for name, count in counts.items()}
    total = min(count / shares[name] for name, count in counts.items() if shares[name] > 0)
    if not free and left > 1e-6:  # no class takes the rest
        total = 0.0
    return {name: min(counts[name], math.floor(total * share + 0.5)) for name, share in shares.items()}


def _listed(imbalance: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={share:g}" for name, share in imbalance.items())


def _relative(folder: Path | None, rows: list[Row], table: Path) -> list[Row]:
    """The rows with absolute paths of images in the folder made relative to it: ids are the same on any machine.

    Raises:
        SettingsError: the table has the same image by its absolute path and by the other.
    """
    if folder is None or not any(row.path.startswith("/") for row in rows):
        return rows
    root = folder.resolve()
    absolute = {row.path: Path(row.path).resolve() for row in rows if row.path.startswith("/")}
    inside = {path: of.relative_to(root).as_posix() for path, of in absolute.items() if of.is_relative_to(root)}
    moved = [replace(row, path=inside.get(row.path, row.path)) for row in rows]
    times = Counter((row.path, getattr(row, "rater", "")) for row in moved)
    if twice := [path for (path, _), count in times.items() if count > 1]:
        raise SettingsError(
            f"{table} has the same image by two paths: {first_ten(twice, ', ')}; remove one of each two rows"
        )
    return moved


def _check_same_images(labels: Path, rows: Sequence[LabelRow], ratings: Path, answers: Sequence[RatingRow]) -> None:
    labelled, rated = {row.path for row in rows}, {answer.path for answer in answers}
    for here, there, table, other in ((labelled, rated, labels, ratings), (rated, labelled, ratings, labels)):
        if lone := sorted(here - there, key=natural_order):
            raise SettingsError(
                f"{len(lone)} images are in {table} but not in {other}: {first_ten(lone, ', ')}; "
                "every image needs a row in the labels and at least one in the ratings"
            )


def _task_of(table: Path, rows: Sequence[LabelRow], notes: list[str], *, ordered: bool) -> TaskMapping:
    """Every label as a class, in alphabetical order."""
    names = sorted({row.label for row in rows if row.label is not None})
    example = ";".join(names) or "normal;moderate;severe"
    if len(names) < 2 and not ordered:
        raise SettingsError(
            f"{table}, column label: {first_ten([*map(repr, names)])} in every row; at least 2 classes are needed: add "
            "images of another class"
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
    counts = Counter(answer.rater for answer in answers)
    if mute := counts.keys() - {answer.rater for answer in answers if answer.label in task.of}:
        names = ", ".join(f"{name!r} (rows: {counts[name]})" for name in sorted(mute))
        raise SettingsError(
            f"the ratings have readers without an answer: {names}; expected a class of the task at least once, "
            f"{', '.join(map(repr, task.of))}: correct their labels, or remove their rows"
        )
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
    dropped: Counter[str] = Counter()
    for row in rows:
        value = consensus.get(row.path) if row.label is None else task.of.get(row.label)
        if value is None:
            dropped[row.label or ""] += 1
        else:
            truth[row.path] = value
    for label, times in sorted(dropped.items()):
        which = f"labelled {label!r}, which the task does not mention," if label else "that no reader gave a class"
        notes.append(f"{times} images {which} were left out")
    if lost := [name for name in task.classes if name not in truth.values()]:
        labels = ", ".join(sorted({row.label for row in rows if row.label is not None})) or "none"
        raise SettingsError(
            f"no image is of class {' or '.join(map(repr, lost))}; the labels in the table are: {labels}"
        )
    return truth


def _first_copies(paths: Sequence[str], folder: Path) -> dict[str, str]:
    """Path -> the first path with the same bytes. A file that cannot be read has no copies."""
    same = {path: path for path in paths}
    by_size: dict[int, list[str]] = {}
    for path in sorted(paths, key=natural_order):
        with suppress(OSError, ValueError):
            if (folder / path).is_file():
                by_size.setdefault((folder / path).stat().st_size, []).append(path)
    first: dict[str, str] = {}
    for alike in by_size.values():
        for path in alike if len(alike) > 1 else ():  # a file with a size of its own need not be read
            with suppress(OSError):
                same[path] = first.setdefault(sha256(folder / path), path)
    return same


def _note_copies(images: Sequence[ImageRef], same: Mapping[str, str], split: Mapping[str, Side]) -> list[str]:
    copies = [image.id for image in images if same[image.id] != image.id]
    if not copies:
        return []
    sides: dict[str, set[Side]] = {}
    for image in images:
        sides.setdefault(same[image.id], set()).add(split[image.id])
    note = f"{len(copies)} rows hold the same image as another row: {first_ten(copies, ', ')}"
    if divided := sum(len(found) > 1 for found in sides.values()):
        return [f"{note}; THE TABLE PUTS {divided} IMAGES ON MORE THAN ONE SIDE, so that the figures are too good"]
    return [f"{note}; copies are on one side of the split"]


def _check_files(folder: Path, images: Sequence[ImageRef], table: Path, lines: Mapping[str, int]) -> None:
    if not folder.is_dir():
        raise SettingsError(
            f"--images {str(folder)!r} is not a folder: name the one that the paths of the labels start from"
        )
    root = folder.resolve()

    def named(wrong: Sequence[ImageRef]) -> str:
        return first_ten([f"{image.uri} (line {lines[image.id]})" for image in wrong], ", ")

    if outside := [image for image in images if not (root / image.uri).resolve().is_relative_to(root)]:
        raise SettingsError(
            f"{len(outside)} paths of {table} lead out of {folder}: {named(outside)}; give paths inside it"
        )
    if missing := [image for image in images if not is_file(root / image.uri)]:
        way_out = "put them there, correct their paths, or remove their rows"
        if len(missing) == len(images):
            way_out = "give the folder that the paths of the labels start from"
        raise SettingsError(
            f"{len(missing)} of {len(images)} images of {table} are not in {folder}: {named(missing)}; {way_out}"
        )


def _features_of(
    file: Path, images: Sequence[ImageRef], notes: list[str]
) -> Float32[npt.NDArray[np.float32], "images dims"]:
    paths, features = read_features(file)
    row_of = {path: row for row, path in enumerate(paths)}
    if missing := [image.id for image in images if image.id not in row_of]:
        raise SettingsError(
            f"{len(missing)} of {len(images)} images have no features in {file}: {first_ten(missing, ', ')}; "
            "its paths must be written as those of the labels"
        )
    if more := len(row_of) - len(images):
        notes.append(f"{more} rows of the features belong to no image of the study")
    return features[[row_of[image.id] for image in images]]


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
