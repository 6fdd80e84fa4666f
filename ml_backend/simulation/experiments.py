"""``ml-backend experiment``: runs the studies of a specification and draws the conclusions.

Without tables of the user, studies run on synthetic images with simulated readers, as features of an untrained network.
"""

import io
import math
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ml_backend.acquisition import seeded_order
from ml_backend.errors import RoundError, SettingsError, did_you_mean
from ml_backend.images.cache import ImageCache
from ml_backend.images.source import FolderSource
from ml_backend.model.backbones import load_backbone
from ml_backend.model.data import FeatureExtractor
from ml_backend.model.hardware import Precision, one_thread
from ml_backend.schemas import FrozenModel, ImageRef
from ml_backend.simulation.analysis import PAIRS_FOR_AN_INTERVAL, SEEDS_FOR_A_CLAIM, first_ranking
from ml_backend.simulation.conclusions import CONCLUSIONS, FinishedStudy
from ml_backend.simulation.dataset import DataSet, load_dataset, parse_task
from ml_backend.simulation.options import SimulateOptions, usable_device
from ml_backend.simulation.run_log import StudyResults
from ml_backend.simulation.specs import EXPERIMENTS, LEAST_READS, READS, ExperimentSpec, StudySpec
from ml_backend.simulation.study import print_line, print_table, simulate
from ml_backend.simulation.synthetic import write_synthetic_study
from ml_backend.simulation.tables import read_labels
from ml_backend.storage.atomic import write_atomically, write_record

FOLDER: Final = Path("experiments")
PAPER_SHARES: Final = {"normal": 0.14, "moderate": 0.36, "severe": 0.50}
BINARY_TASK: Final = "normal=normal;diseased=moderate,severe"
# With it, and images of four centres, a network predicts about two images of three correctly after the start set, and
# about three of four with all labels.
DIFFICULTY: Final = 0.3
SIDE: Final = 64
POOL: Final = 1_000
BACKBONE: Final = "resnet18"
NOT_PATIENTS: Final = "Synthetic images and an untrained network: these figures say nothing about patients."
STATISTICS: Final = "x [a–b]: median and quartiles of the seeds; x [a to b]: mean and 95 % interval."

# Of --quick, a trial of the experiment itself.
QUICK_IMAGES: Final = 400
QUICK_SIDE: Final = 32
QUICK_CENTRES: Final = 2
QUICK_INITIAL: Final = 3
QUICK_BATCH: Final = 4
QUICK_PASSES: Final = 20
QUICK_EPOCHS: Final = 5
QUICK_ROUNDS: Final = 2
QUICK_LIVE_BATCH: Final = 20
QUICK_LIVE_BUDGET: Final = "100"  # its start is found
QUICK_POOL: Final = 100
QUICK_SEEDS: Final = 2


@dataclass(frozen=True, slots=True)
class ExperimentOptions:
    """Options of ``ml-backend experiment``, as on the command line.

    Attributes:
        out: folder of the results; ``experiments/<name>`` by default, with the suffix ``-quick`` where it applies.
        seeds: number; by default that of the specification, two with ``quick``.
        quick: everything tiny: a trial of the experiment itself.
    """

    name: str
    labels: Path | None = None
    images: Path | None = None
    ratings: Path | None = None
    features: Path | None = None
    task: str | None = None
    backbone: str | None = None
    weights: str | None = None
    out: Path | None = None
    seeds: int | None = None
    quick: bool = False
    workers: int = 1
    device: str = "auto"

    def command(self) -> str:
        """The command that gives the same numbers, without options that only distribute the work."""
        words = ["ml-backend", "experiment", self.name]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.name != "workers" and value != field.default:
                words += [f"--{field.name}", *([] if value is True else [str(value)])]
        return shlex.join(words)


class ExperimentReport(FrozenModel):
    """``experiment.json``: question, expectation and conclusion."""

    name: str
    question: str
    command: str
    expectation: str
    drawn: bool  # synthetic images
    studies: dict[str, str]  # title -> folder, below the experiment's
    found: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    surprises: tuple[str, ...]  # differences from the expectation
    notes: tuple[str, ...]  # limits of the figures


def run_experiment(options: ExperimentOptions, console: Console | None = None) -> ExperimentReport:
    """Run an experiment, or the rest of one that was stopped.

    Args:
        options: as on the command line.
        console: for progress and conclusion; the terminal by default.

    Returns:
        The conclusion, as in ``experiment.json``.

    Raises:
        SettingsError: an option or a table is wrong.
        BackendError: a study failed, see ``simulate``.
        KeyboardInterrupt: Ctrl-C; the same command goes on from there.
    """
    console = console or Console()
    spec, say = _checked(options), partial(print_line, console)
    given = own_tables(options, spec.classes)
    if spec.name == "uncertainty-quality" and given is not None and given.ratings is None:
        raise SettingsError(
            f"{spec.name} compares a network with readers: give --ratings with columns path,rater,label"
        )
    say(f"{spec.name}: {spec.question}\ncommand:  {options.command()}\nruns:     {spec.runs}")
    say(f"time:     {'about a minute, at tiny sizes.' if options.quick else spec.time}\nexpected: {spec.expectation}")
    context = ExperimentContext(
        # Without a folder of the user, experiments share the images.
        tables=given or synthetic_tables(spec, (options.out or FOLDER) / "drawn", quick=options.quick, tell=say),
        out=options.out or FOLDER / f"{options.name}{'-quick' if options.quick else ''}",
        seeds=options.seeds or (QUICK_SEEDS if options.quick else spec.seeds),
        options=options,
    )
    finished = []
    for study in (one for one in spec.studies if one.in_quick or not options.quick):
        title, study_options = context.resolve(study)
        if title:
            say(f"\n{title}")
        try:
            results = simulate(study_options, console)
        except KeyboardInterrupt:
            say(f"to continue the experiment: {options.command()}")
            raise
        _check_trained(study_options.out, results)
        finished.append(FinishedStudy(study.name, title, study_options, results))
    conclusion = CONCLUSIONS[spec.name](finished)
    notes = [NOT_PATIENTS] if context.tables.synthetic else []
    notes += dict.fromkeys(one.results.summary.protocol for one in finished)
    if context.seeds < SEEDS_FOR_A_CLAIM:
        seeds = f"{context.seeds} {'seed' if context.seeds == 1 else 'seeds'}"
        notes.append(f"{seeds}: too few for a claim. Run {SEEDS_FOR_A_CLAIM} seeds or more.")
    report = ExperimentReport(
        name=options.name,
        question=spec.question,
        command=options.command(),
        expectation=spec.expectation,
        drawn=context.tables.synthetic,
        studies={one.title or options.name: one.name or "." for one in finished},
        found=conclusion.found,
        columns=conclusion.columns,
        rows=conclusion.rows,
        surprises=conclusion.surprises,
        notes=tuple(notes),
    )
    write_record(context.out / "experiment.json", report)
    table = Table(*report.columns, caption=Text(STATISTICS), caption_justify="left")
    for row in report.rows:
        table.add_row(*row)
    say("\n".join(("", *report.found)))
    print_table(table, console)
    verdict = f"not as expected: {'; '.join(report.surprises)}" if report.surprises else "as expected"
    if options.quick or context.seeds < min(spec.seeds, PAIRS_FOR_AN_INTERVAL):
        verdict = "not judged: too few images or seeds to compare with the expectation"
    say("\n".join((*(f"note: {note}" for note in report.notes), verdict)))
    return report


def _checked(options: ExperimentOptions) -> ExperimentSpec:
    """The experiment of this name; wrong options are refused before images are drawn."""
    spec = EXPERIMENTS.get(options.name)
    if spec is None:
        known = f"known are {', '.join(EXPERIMENTS)}{did_you_mean(options.name, EXPERIMENTS)}"
        raise SettingsError(f"there is no experiment {options.name!r}; {known}")
    if options.seeds is not None and options.seeds < 1:
        raise SettingsError(f"--seeds {options.seeds}: expected 1 or more")
    usable_device(options.device)
    return spec


def _check_trained(out: Path, results: StudyResults) -> None:
    if without := [run for run, labels in first_ranking(results).items() if math.isinf(labels)]:
        raise RoundError(
            f"{len(without)} runs of the study in {out} trained no network within the budget, the first: "
            f"{without[0].group}, seed {without[0].seed}; give tables with more images of the rarest class"
        )


@dataclass(frozen=True, slots=True)
class Tables:
    """Input files of a study.

    Attributes:
        task: classes, least severe first, see ``parse_task``.
        synthetic: not images of patients.
    """

    labels: Path
    task: str
    images: Path | None = None
    ratings: Path | None = None
    features: Path | None = None
    synthetic: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return parse_task(self.task).classes


@dataclass(frozen=True)
class ExperimentContext:
    """Inputs that all studies of an experiment share."""

    tables: Tables
    out: Path
    seeds: int
    options: ExperimentOptions

    @cached_property
    def data(self) -> DataSet:
        """The given tables.

        Raises:
            SettingsError: see ``load_dataset``.
        """
        of = self.tables
        return load_dataset(of.images, of.labels, ratings=of.ratings, features=of.features, task=parse_task(of.task))

    def resolve(self, spec: StudySpec) -> tuple[str, SimulateOptions]:
        """Title and options of a study; derived tables are written.

        Raises:
            SettingsError: the tables do not hold what the study needs.
        """
        quick, used, title = self.options.quick, self.tables, spec.title
        initial = max(QUICK_INITIAL, spec.least_initial) if quick else spec.initial
        folder = self.out / "tables"
        if spec.tables == "pool":
            pool = QUICK_POOL if quick else POOL
            used = with_pool_of(used, self.data, pool, initial, folder / f"pool-{pool}.csv")
        elif spec.tables == "centres":
            trained, tested = (two_centres(self.data)[int(place) - 1] for place in spec.name.split("-to-"))
            used = across_centres(used, self.data, trained, tested, folder / f"{spec.name}.csv")
            title = f"{trained} -> {tested}"
        readers = spec.readers if self.options.ratings is None else None
        if readers is not None:
            used = replace(used, ratings=None)
        start, budget, batch = initial * len(used.classes), spec.budget, QUICK_BATCH
        if spec.start == "live":
            budget, batch = (self._quick_live_budget(), QUICK_LIVE_BATCH) if quick else (budget, batch)
        elif spec.one_round or quick:
            budget = str(start if spec.one_round else start + (QUICK_ROUNDS - 1) * QUICK_BATCH)
        if spec.reads is not None and not quick:
            budget, batch = self._of_reads(spec.reads)
        options = SimulateOptions(
            labels=used.labels,
            out=self.out / spec.name,
            images=used.images,
            ratings=used.ratings,
            features=used.features,
            strategies=spec.strategies,
            seeds=str(self.seeds),
            profile=spec.profile,
            task=used.task,
            imbalance=self._imbalance(spec),
            loss=spec.loss,
            # Synthetic images come as features, so that only the head can be trained.
            finetune="head" if used.synthetic else None,
            backbone=self.options.backbone,
            weights=self.options.weights,
            passes=QUICK_PASSES if quick else None,
            batch_size=batch if quick or spec.reads is not None else None,
            readers=readers,
            reads=spec.reads,
            count="images" if spec.reads is None else "reads",
            option=(*spec.option, *([f"epochs={QUICK_EPOCHS}"] if quick else [])),
            no_baseline=not spec.baseline,
            start=spec.start,
            initial=initial if spec.start == "given" else None,
            min_labels_per_class=initial if spec.start == "live" else None,
            budget=budget,
            device=self.options.device,
            workers=1 if spec.one_worker else self.options.workers,
        )
        return title, options

    def _quick_live_budget(self) -> str:
        return str(min(int(QUICK_LIVE_BUDGET), self._live_images()))

    def _live_images(self) -> int:
        images = self.data.counts()
        return sum(images["train"].values()) + sum(images["val"].values())

    def _of_reads(self, reads: int) -> tuple[str, int]:
        """Budget in reads, the same for any number an image, and the images of a round, a third of it."""
        if (images := self._live_images()) <= LEAST_READS:
            raise SettingsError(
                f"the experiment readers needs more than {LEAST_READS} images to train and validate on, there are "
                f"{images}: give larger tables, or --quick"
            )
        # Of one read an image, an image must be left to rank; and a third of 1, 2 and 3 reads is a whole number.
        budget = min(READS, (images - 1) // 18 * 18)
        return str(budget), budget // 3 // reads

    def _imbalance(self, spec: StudySpec) -> str | None:
        names = self.tables.classes
        if spec.imbalance != "paper":
            return None if spec.imbalance is None else f"{names[0]}={spec.imbalance:g}"
        # Synthetic images have these shares already; for other numbers of classes the paper has none.
        if self.tables.synthetic or len(names) not in {2, 3}:
            return None
        shares = PAPER_SHARES.values() if len(names) == 3 else [PAPER_SHARES["normal"]]
        return ",".join(f"{name}={share:g}" for name, share in zip(names, shares, strict=False))


def own_tables(options: ExperimentOptions, classes: int | None) -> Tables | None:
    """The user's own tables; None where there are none.

    Args:
        options: as on the command line.
        classes: number that the experiment requires; None for any.

    Raises:
        SettingsError: a table is missing.
    """
    if options.labels is None:
        for name in ("images", "ratings", "features", "task"):
            if getattr(options, name) is not None:
                raise SettingsError(
                    f"--{name} without --labels: give the table with path,label, or neither for synthetic images"
                )
        return None
    if options.images is None and options.features is None:
        raise SettingsError("--labels without --images or --features: give one of them, or none of the three")
    example = "'normal=normal;diseased=bacterial,viral'" if classes == 2 else "'normal;moderate;severe'"
    if options.task is None:
        raise SettingsError(f"--labels without --task: give the classes, least severe first, such as {example}")
    tables = Tables(options.labels, options.task, options.images, options.ratings, options.features)
    if classes is not None and len(tables.classes) != classes:
        raise SettingsError(
            f"{options.name} requires {classes} classes, but --task {options.task!r} names {len(tables.classes)}: "
            f"give, for example, {example}"
        )
    return tables


def synthetic_tables(spec: ExperimentSpec, folder: Path, *, quick: bool, tell: Callable[[str], None]) -> Tables:
    """Synthetic images in the paper's shares, eight simulated readers, and features of an untrained network.

    Existing files are reused.

    Args:
        spec: number of images and centres; of two classes, the more severe two of three are merged.
        folder: of the synthetic images.
        quick: a few hundred tiny ones instead, the same for every experiment.
        tell: reports what takes a while.
    """
    images, side, centres = spec.images, SIDE, spec.centres
    if quick:
        images, side, centres = QUICK_IMAGES, QUICK_SIDE, QUICK_CENTRES
    # All parameters are in the name, so that features belong to the images next to them.
    place = folder / f"films-{images}-side-{side}-centres-{centres}"
    task = BINARY_TASK if spec.classes == 2 else ";".join(PAPER_SHARES)
    tell(f"{images} synthetic images of {side} x {side} pixels in {place}; classes: --task '{task}'")
    study = write_synthetic_study(
        place, count=images, shares=PAPER_SHARES, seed=0, side=side, difficulty=DIFFICULTY, centres=centres
    )
    features = place / "features.npz"
    if not features.exists():
        paths = [row.path for row in read_labels(study.labels, rated=True)]
        write_atomically(features, _untrained_features(place, paths, side))
    return Tables(study.labels, task, ratings=study.ratings, features=features, synthetic=True)


def _untrained_features(folder: Path, paths: Sequence[str], side: int) -> bytes:
    """A table of features, see ``tables.read_features``."""
    images = ImageCache(FolderSource(folder), folder / "cache", side)
    with one_thread():  # bit-identical on any number of cores
        extractor = FeatureExtractor(load_backbone(BACKBONE, "none"), images, Precision(torch.device("cpu")), None)
        batch = extractor.all([ImageRef(id=path, uri=path) for path in paths], lambda _done: None)
    content = io.BytesIO()
    np.savez(content, X=batch.features.numpy(), path=np.array([image.id for image in batch.images]))
    return content.getvalue()


def two_centres(data: DataSet) -> tuple[str, str]:
    """The two sources with the most images, by name.

    Raises:
        SettingsError: there are fewer than two.
    """
    sizes = Counter((data.source or {}).values())
    if len(sizes) < 2:
        raise SettingsError(
            f"cross-centre needs images of two sources, the labels have {', '.join(sizes) or 'none'}: add a column "
            "`source` with the hospital or the machine of every image"
        )
    first, second = sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:2])
    return first, second


def across_centres(tables: Tables, data: DataSet, trained: str, tested: str, file: Path) -> Tables:
    """Training and validation side of one centre, test side of one (the same or another).

    The sides are those of the whole table, so that no patient is on two of them. Ratings are left out: the label is the
    truth.

    Args:
        tables: files of ``data``.
        data: all centres.
        trained: source of the training and validation images.
        tested: source of the test images.
        file: of the new table.
    """
    source = data.source or {}
    kept = [
        image
        for image in data.images
        if source.get(image.id) == (tested if data.split[image.id] == "test" else trained)
    ]
    return _written(tables, data, kept, file)


def with_pool_of(tables: Tables, data: DataSet, pool: int, initial: int, file: Path) -> Tables:
    """A training side of a start set and a pool of a given size, chosen by image id; all of it where it is smaller.

    Args:
        tables: files of ``data``.
        data: whose training side is reduced.
        pool: number of images without a label.
        initial: labels of every class in the start set.
        file: of the new table.
    """
    train = [image.id for image in data.images if data.split[image.id] == "train"]
    order = [train[place] for place in seeded_order([f"pool of {image_id}" for image_id in train], 0)]
    by_class = {name: [image_id for image_id in order if data.truth[image_id] == name] for name in data.classes}
    first = {image_id for ids in by_class.values() for image_id in ids[:initial]}
    stay = set(sorted(order, key=lambda image_id: image_id not in first)[: pool + initial * len(data.classes)])
    kept = [image for image in data.images if data.split[image.id] != "train" or image.id in stay]
    return _written(tables, data, kept, file)


def _written(tables: Tables, data: DataSet, images: Sequence[ImageRef], file: Path) -> Tables:
    rows = [(image.id, data.truth[image.id], image.patient_id or "", data.split[image.id]) for image in images]
    table = pd.DataFrame(rows, columns=["path", "label", "patient_id", "split"])
    write_atomically(file, table.to_csv(index=False, lineterminator="\n").encode())
    return replace(tables, labels=file, ratings=None, task=";".join(data.classes))
