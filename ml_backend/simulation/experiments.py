"""What each experiment asks, does and expects, in words: its list opens without loading what runs them.

What an experiment stands on: tables of the user's own, or drawn films with the features of an untrained network.
What an experiment found: the record of it, and the statistics that its answers are made of.
Tables that an experiment makes of the ones it was given: of two centres, of a pool of a given size, of two sides.
How much more a profile gives for the same labels.
How the answer of every experiment is read off its studies: what was found, and what of it was not expected.
Whether a network doubts where readers disagree: its uncertainty about test images against the readers' answers.
The experiments that ship: each an outline, the studies that answer its question, and how these are read.
The story of ``ml-backend experiment``: what is expected, the studies, what they found.
"""

import csv
import io
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from scipy.stats import t as student
from threadpoolctl import threadpool_limits
from torch import Tensor

from ml_backend.acquisition import bald, entropy, least_confidence, margin, mean_std, seeded_order, variation_ratios
from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError
from ml_backend.images.cache import ImageCache
from ml_backend.images.source import FolderSource
from ml_backend.model.backbones import load_backbone
from ml_backend.model.features import FeatureExtractor
from ml_backend.model.hardware import Precision, one_thread
from ml_backend.registry import STRATEGIES
from ml_backend.schemas import Annotation, FrozenModel, ImageRef
from ml_backend.simulation.analysis import (
    LearningCurve,
    PairedDifference,
    by_name,
    few_seeds,
    labels_needed_table,
    paired_difference,
)
from ml_backend.simulation.dataset import DataSet, load_dataset, parse_task
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.simulation.options import SimulateOptions, make_plan
from ml_backend.simulation.outlines import OUTLINES, Outline
from ml_backend.simulation.plan import PROFILES, Run
from ml_backend.simulation.report import curves_of, difference_words, rarest, share_words
from ml_backend.simulation.run import Study, fit_on_all, open_study
from ml_backend.simulation.run_log import BatchRow, RoundRow, StudyResults
from ml_backend.simulation.study import simulate
from ml_backend.simulation.synthetic import write_synthetic_study
from ml_backend.simulation.tables import read_labels
from ml_backend.storage.atomic import write_atomically, write_record

PAPER_SHARES: Final = {"normal": 0.14, "moderate": 0.36, "severe": 0.50}
BINARY_TASK: Final = "normal=normal;diseased=moderate,severe"
# With it, and films of four centres, a network is right about two films of three after the start set, and about three
# of four with all labels.
DIFFICULTY: Final = 0.3
SIDE: Final = 64
QUICK_FILMS: Final = 400
QUICK_SIDE: Final = 32
QUICK_CENTRES: Final = 2
QUICK_INITIAL: Final = 3
QUICK_BATCH: Final = 4
QUICK_PASSES: Final = 10
QUICK_ROUNDS: Final = 2
BACKBONE: Final = "resnet18"


@dataclass(frozen=True, slots=True)
class Tables:
    """What is read.

    Attributes:
        task: classes, least severe first, as ``simulation.task.parse_task`` reads them.
        drawn: no patient's films.
    """

    labels: Path
    task: str
    images: Path | None = None
    ratings: Path | None = None
    features: Path | None = None
    drawn: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the task's classes."""
        return parse_task(self.task).classes

    def load(self) -> DataSet:
        """All of it, with its sides.

        Raises:
            SettingsError: see ``load_dataset``.
        """
        return load_dataset(
            self.images, self.labels, ratings=self.ratings, features=self.features, task=parse_task(self.task)
        )


@dataclass(frozen=True, slots=True)
class Arm:
    """One study of an experiment.

    Attributes:
        name: of its folder in the experiment's; empty where the experiment is this one study.
        title: as it is read.
        options: as ``ml-backend simulate`` takes them.
    """

    name: str
    title: str
    options: SimulateOptions


@dataclass(frozen=True, slots=True)
class Ground:
    """What all studies of an experiment have in common; where their options are made."""

    tables: Tables
    out: Path
    seeds: int
    quick: bool = False
    workers: int = 1
    device: str = "auto"
    backbone: str | None = None
    weights: str | None = None

    def initial(self, paper: int = 25, least: int = 1) -> int:
        """Labels of every class at the start; ``least`` however quick it is to be."""
        return max(QUICK_INITIAL, least) if self.quick else paper

    def paper_shares(self) -> str | None:
        """The imbalance of the paper for so many classes; None where the films are drawn so, or where it has none."""
        names = self.tables.classes
        if self.tables.drawn or len(names) not in {2, 3}:
            return None
        shares = PAPER_SHARES.values() if len(names) == 3 else [PAPER_SHARES["normal"]]
        return ",".join(f"{name}={share:g}" for name, share in zip(names, shares, strict=False))

    def arm(
        self,
        *,
        strategies: str,
        name: str = "",
        title: str = "",
        tables: Tables | None = None,
        initial: int = 25,
        least_initial: int = 1,
        one_round: bool = False,
        budget: str = "0.5",
        loss: str = "weighted",
        imbalance: str | None = None,
        profile: str = "paper",
    ) -> Arm:
        """A study; what is not said is as in the profile.

        Args:
            strategies: besides ``random``, with commas between them.
            name: see ``Arm``.
            title: see ``Arm``.
            tables: other than the experiment's.
            initial: labels of every class at the start.
            least_initial: of them, however quick it is to be.
            one_round: of the start set alone.
            budget: else, as ``SimulateOptions`` has it.
            loss: as ``SimulateOptions`` has it.
            imbalance: as ``SimulateOptions`` has it.
            profile: as ``SimulateOptions`` has it.
        """
        tables = tables or self.tables
        first = self.initial(initial, least_initial)
        start = first * len(tables.classes)
        if one_round or self.quick:
            budget = str(start if one_round else start + (QUICK_ROUNDS - 1) * QUICK_BATCH)
        options = SimulateOptions(
            labels=tables.labels,
            out=self.out / name,
            images=tables.images,
            ratings=tables.ratings,
            features=tables.features,
            strategies=strategies,
            seeds=str(self.seeds),
            profile=profile,
            task=tables.task,
            imbalance=imbalance,
            loss=loss,
            # Drawn films come as features, so that there is nothing else to train.
            finetune="head" if tables.drawn else None,
            backbone=self.backbone,
            weights=self.weights,
            passes=QUICK_PASSES if self.quick else None,
            batch_size=QUICK_BATCH if self.quick else None,
            initial=first,
            budget=budget,
            device=self.device,
            workers=self.workers,
        )
        return Arm(name, title, options)


def own_tables(name: str, given: Mapping[str, Path | None], task: str | None, classes: int | None) -> Tables | None:
    """The user's own tables; None where there are none, and films are to be drawn.

    Args:
        name: of the experiment.
        given: labels, images, ratings and features, as far as they were given.
        task: of the tables.
        classes: that the experiment is about; None where any number will do.

    Raises:
        SettingsError: something is missing; says what to give.
    """
    labels = given.get("labels")
    if labels is None:
        if lone := [option for option, value in {**given, "task": task}.items() if value is not None]:
            raise SettingsError(
                f"--{lone[0]} without --labels: give the table with path,label, or draw films by neither"
            )
        return None
    tables = Tables(labels, task or "", given.get("images"), given.get("ratings"), given.get("features"))
    if tables.images is None and tables.features is None:
        raise SettingsError("--labels without --images or --features: give one of them, or none of the three")
    example = "'normal=normal;diseased=bacterial,viral'" if classes == 2 else "'normal;moderate;severe'"
    if task is None:
        raise SettingsError(f"--labels without --task: give the classes, least severe first, such as {example}")
    if classes is not None and len(tables.classes) != classes:
        raise SettingsError(
            f"{name} is about {classes} classes, but --task {task!r} names {len(tables.classes)}: "
            f"give, for example, {example}"
        )
    return tables


def drawn_tables(
    folder: Path,
    *,
    films: int,
    centres: int,
    binary: bool,
    quick: bool,
    tell: Callable[[str], None],
) -> Tables:
    """Films in the paper's shares, eight simulated readers, and the features of a network that nobody has trained.

    What is there already is left as it is.

    Args:
        folder: where drawn films are kept.
        films: how many; with ``quick`` a few hundred tiny ones.
        centres: that they come from.
        binary: two classes, the more severe two of three together.
        quick: for a trial of the experiment itself.
        tell: told what takes a while.
    """
    side = SIDE
    if quick:  # the same films for every experiment
        films, side, centres = QUICK_FILMS, QUICK_SIDE, QUICK_CENTRES
    # All that varies stands in the name, so that features always belong to the films beside them.
    place = folder / f"films-{films}-side-{side}-centres-{centres}"
    tell(f"{films} films of {side} x {side} pixels are drawn in {place}, unless they are there")
    study = write_synthetic_study(
        place, count=films, shares=PAPER_SHARES, seed=0, side=side, difficulty=DIFFICULTY, centres=centres
    )
    features = place / "features.npz"
    if not features.exists():
        paths = [row.path for row in read_labels(study.labels, rated=True)]
        write_atomically(features, _untrained_features(place, paths, side))
    task = BINARY_TASK if binary else ";".join(PAPER_SHARES)
    return Tables(study.labels, task, ratings=study.ratings, features=features, drawn=True)


def _untrained_features(folder: Path, paths: Sequence[str], side: int) -> bytes:
    """A table of features, see ``simulation.tables.read_features``."""
    images = ImageCache(FolderSource(folder), folder / "cache", side)
    precision = Precision(torch.device("cpu"))
    with one_thread():  # the same bits on any number of cores
        extractor = FeatureExtractor(load_backbone(BACKBONE, "none"), images, precision, None)
        batch = extractor.all([ImageRef(id=path, uri=path) for path in paths], lambda _done: None)
    content = io.BytesIO()
    np.savez(content, X=batch.features.numpy(), path=np.array([image.id for image in batch.images]))
    return content.getvalue()


CONFIDENCE: Final = 0.95
LUCK: Final = 0.05

ByRun: TypeAlias = dict[tuple[str, str], dict[int, float]]
"""Strategy and variant -> seed -> value."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A study of an experiment, and what it did."""

    arm: Arm
    results: StudyResults


@dataclass(frozen=True, slots=True)
class Reading:
    """What an experiment found.

    Attributes:
        found: plain sentences.
        columns: of the table.
        rows: of the table, as written.
        surprises: what is not as expected; empty where all is.
    """

    found: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    surprises: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and its 95 % interval, which a single seed does not have."""

    mean: float
    low: float | None
    high: float | None

    @property
    def is_above_zero(self) -> bool:
        """Whether all of the interval is."""
        return self.low is not None and self.low > 0.0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} (one seed)"
        return f"{self.mean:.3f} [{self.low:.3f} to {self.high:.3f}]"


def interval(values: Sequence[float]) -> Interval:
    """Mean and Student's t interval, which is wide where seeds are few.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"an interval needs at least one value, all of them finite; got {list(values)}")
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, None, None)
    half = float(student.ppf(0.5 + CONFIDENCE / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)


def known(value: float | None) -> float:
    """A metric that is there.

    Raises:
        RoundError: it is not, because a class is missing among the test images that could be read.
    """
    if value is None:
        raise RoundError("a metric is not defined: the test side has images of one class only that could be read")
    return value


def run_means(results: StudyResults, value: Callable[[RoundRow], float | None]) -> ByRun:
    """Mean of a value over the rounds of every run, those left out in which it is not defined.

    Raises:
        RoundError: it is not defined in any round of a run.
    """
    runs: dict[tuple[str, str, int], list[float]] = {}
    for row in results.rounds:
        values = runs.setdefault((row.strategy, row.variant, row.seed), [])
        values += [v for v in [value(row)] if v is not None]
    means: ByRun = {}
    for (strategy, variant, seed), values in runs.items():
        means.setdefault((strategy, variant), {})[seed] = known(float(np.mean(values)) if values else None)
    return means


def last_values(results: StudyResults, value: Callable[[RoundRow], float | None]) -> ByRun:
    """A value in the last round of every run.

    Raises:
        RoundError: it is not defined there.
    """
    rows: dict[tuple[str, str, int], RoundRow] = {}
    for row in results.rounds:
        before = rows.setdefault((row.strategy, row.variant, row.seed), row)
        rows[row.strategy, row.variant, row.seed] = max(before, row, key=lambda one: one.round)
    last: ByRun = {}
    for (strategy, variant, seed), row in rows.items():
        last.setdefault((strategy, variant), {})[seed] = known(value(row))
    return last


def picked_share(results: StudyResults, class_name: str) -> ByRun:
    """Share of a class among the images that every run has picked, 0 to 1; the start set is not picked."""
    picks: dict[tuple[str, str, int], list[BatchRow]] = {}
    for row in results.batches:
        picks.setdefault((row.strategy, row.variant, row.seed), []).append(row)
    shares: ByRun = {}
    for (strategy, variant, seed), rows in picks.items():
        shares.setdefault((strategy, variant), {})[seed] = sum(row.label == class_name for row in rows) / len(rows)
    return shares


def spread_over_seeds(
    results: StudyResults, strategy: str, variant: str, value: Callable[[RoundRow], float]
) -> float | None:
    """Standard deviation over the seeds at the same number of labels, median over the rounds; None for one seed."""
    by_labels: dict[int, list[float]] = {}
    for row in results.rounds:
        if (row.strategy, row.variant) == (strategy, variant):
            by_labels.setdefault(row.labels, []).append(value(row))
    spreads = [float(np.std(values, ddof=1)) for values in by_labels.values() if len(values) > 1]
    return float(np.median(spreads)) if spreads else None


def is_no_luck(ahead: PairedDifference) -> bool:
    """By the interval and by the test: over few seeds the interval alone is soon above 0."""
    return ahead.low is not None and ahead.low > 0.0 and ahead.p is not None and ahead.p < LUCK


def p_words(ahead: PairedDifference) -> str:
    """The p of Wilcoxon's test, as it is read."""
    return "all equal" if ahead.p is None else f"p = {ahead.p:.3f}"


def needed_words(
    results: StudyResults,
    metric: Callable[[RoundMetrics], float | None],
    target: str,
    judge: StudyResults | None = None,
) -> Mapping[str, str]:
    """Share of the labels that a target took, by strategy, as it is read.

    Args:
        results: whose curves.
        metric: that is to reach the target.
        target: a key of ``simulation.compare.TARGETS``.
        judge: a study of the same seeds, whose baselines are the target's; the same by default.

    Raises:
        RoundError: the metric of a baseline is not defined.
    """
    baselines = {(row.variant, row.seed): known(metric(row.metrics)) for row in (judge or results).baselines}
    curves = curves_of(results, lambda row: metric(row.metrics))
    return {row.name: share_words(row.share) for row in labels_needed_table(curves, baselines) if row.target == target}


def two_centres(data: DataSet) -> tuple[str, str]:
    """The two sources with the most images, by name.

    Raises:
        SettingsError: there are fewer than two.
    """
    sizes = Counter((data.source or {}).values())
    if len(sizes) < 2:
        known = ", ".join(sizes) or "none at all"
        raise SettingsError(
            f"cross-centre needs images of two sources, and the labels name {known}: add a column `source` with the "
            "hospital or the machine of every image"
        )
    first, second = sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:2])
    return first, second


def across_centres(tables: Tables, data: DataSet, trained: str, tested: str, file: Path) -> Tables:
    """Training and validation side of one centre, test side of one (the same or another).

    The sides are those of the whole table: no patient is on two of them, also one who was in both centres. Readers'
    answers are left out: the label is the truth.

    Args:
        tables: that ``data`` was read from.
        data: all centres.
        trained: whose images are learnt from.
        tested: whose images are judged.
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
    """A training side that is a start set and a pool of so many images; all of it where it is smaller.

    Which images stay follows from their ids. The other sides stay as they are.

    Args:
        tables: that ``data`` was read from.
        data: whose training side is cut.
        pool: images without a label.
        initial: labels of every class at the start: so many of every class stay, if there are.
        file: of the new table.
    """
    train = [image for image in data.images if data.split[image.id] == "train"]
    order = [train[place].id for place in seeded_order([f"pool of {image.id}" for image in train], 0)]
    first = {
        image_id
        for name in data.classes
        for image_id in [image_id for image_id in order if data.truth[image_id] == name][:initial]
    }
    in_turn = [*(i for i in order if i in first), *(i for i in order if i not in first)]
    stay = set(in_turn[: pool + initial * len(data.classes)])
    kept = [image for image in data.images if data.split[image.id] != "train" or image.id in stay]
    return _written(tables, data, kept, file)


def without_validation(tables: Tables, data: DataSet, file: Path) -> Tables:
    """The validation side joins the training side: validation is drawn from the labels then, as in a live loop.

    Args:
        tables: that ``data`` was read from.
        data: all sides.
        file: of the new table; where there is no validation side, none is needed.
    """
    if not data.labels("val"):
        return tables
    joined = {image: "train" if side == "val" else side for image, side in data.split.items()}
    return _written(tables, replace(data, split=joined), data.images, file)


def _written(tables: Tables, data: DataSet, images: Iterable[ImageRef], file: Path) -> Tables:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "patient_id", "split"))
    writer.writerows((image.id, data.truth[image.id], image.patient_id or "", data.split[image.id]) for image in images)
    write_atomically(file, text.getvalue().encode())
    return replace(tables, labels=file, ratings=None, task=";".join(data.classes))


PAPER: Final = "paper"
BEST: Final = "best"

Metric = Callable[[RoundMetrics], float | None]


def read_profiles(finished: Sequence[Finished]) -> Reading:
    """Both profiles against each other, seed by seed; both are held to the paper's baselines.

    Args:
        finished: one study of each profile, on the same tables and seeds.
    """
    studies = {one.arm.options.profile: one.results for one in finished}
    paper, best = studies[PAPER], studies[BEST]
    found, surprises = [], []
    for name, metric in (("AU ROC", _auroc_of_rows), ("Accuracy", _accuracy)):
        ours, theirs = (_by_strategy(study, metric) for study in (best, paper))
        for strategy in paper.summary.strategies:
            gain = paired_difference(ours[strategy], theirs[strategy])
            told = f"{difference_words(gain)}, {p_words(gain)}"
            found.append(f"{name} over the curve, {strategy}, best minus paper: {told}.")
            if metric is _auroc_of_rows and not is_no_luck(gain):
                surprises.append(f"with {strategy}, best is not ahead of paper in AU ROC by more than luck")
    found.append(
        "All labels: AU ROC "
        + ", ".join(
            f"{interval([known(row.metrics.auroc) for row in study.baselines])} {name}"
            for name, study in studies.items()
        )
        + "; accuracy "
        + ", ".join(
            f"{interval([row.metrics.accuracy for row in study.baselines])} {name}" for name, study in studies.items()
        )
        + "."
    )
    accuracy, area = (
        {name: needed_words(study, metric, target, judge=paper) for name, study in studies.items()}
        for metric, target in ((_accuracy, "95 % of the baseline"), (_auroc_of_rows, "baseline - 1 point"))
    )
    rows = tuple(
        (profile, strategy, accuracy[profile][strategy], area[profile][strategy])
        for strategy in paper.summary.strategies
        for profile in studies
    )
    columns = (
        "profile",
        "strategy",
        "labels for 95 % of the paper's baseline accuracy",
        "labels for the paper's baseline AU ROC - 1 point",
    )
    return Reading(tuple(found), columns, rows, tuple(surprises))


def _accuracy(metrics: RoundMetrics) -> float:
    return metrics.accuracy


def _auroc_of_rows(metrics: RoundMetrics) -> float | None:
    return metrics.auroc


def _by_strategy(study: StudyResults, metric: Metric) -> Mapping[str, list[LearningCurve]]:
    curves = curves_of(study, lambda row: metric(row.metrics))
    return {name: list(runs.values()) for name, runs in by_name(curves).items()}


NEAR: Final = 1.0 / 3.0  # epochs that differ by less are about as many
PAPERS_BATCH_BALD: Final = 1.5  # times a single-image function, in the paper
SAME_COST: Final = 2.0  # functions whose times differ by a smaller factor cost about the same
ALONE: Final = ("bald", "entropy", "least_confidence", "margin", "mean_std", "variation_ratios")
LOSSES: Final = ("weighted", "unweighted")


def read_paper(winner: str) -> Callable[[Sequence[Finished]], Reading]:
    """Labels needed and the area under the curve, by strategy.

    Args:
        winner: the strategy that the paper found best, expected ahead of ``random`` in AU ROC by more than luck.
    """

    def read(finished: Sequence[Finished]) -> Reading:
        results = finished[0].results
        needed = needed_words(results, lambda m: m.accuracy, "95 % of the baseline")
        within = needed_words(results, lambda m: m.auroc, "baseline - 1 point")
        curves = {name: list(runs.values()) for name, runs in by_name(curves_of(results, _auroc)).items()}
        ahead = {n: paired_difference(own, curves["random"]) for n, own in curves.items() if n != "random"}
        rows = tuple(
            (
                name,
                needed[name],
                within[name],
                "" if name == "random" else difference_words(ahead[name]),
                "" if name == "random" else p_words(ahead[name]),
            )
            for name in curves
        )
        best = max(ahead, key=lambda name: ahead[name].mean)
        found = (
            _baseline_words(results),
            f"Furthest ahead of random in AU ROC: {best}, {difference_words(ahead[best])} averaged over the curve.",
            f"{winner}, the best in the paper: {difference_words(ahead[winner])}, {p_words(ahead[winner])}.",
        )
        behind = f"{winner} is not ahead of random in AU ROC by more than luck"
        surprises = () if is_no_luck(ahead[winner]) else (behind,)
        columns = (
            "strategy",
            "labels for 95 % of the baseline's accuracy",
            "labels for the baseline's AU ROC - 1 point",
            "AU ROC over the curve, minus random's",
            "Wilcoxon",
        )
        return Reading(found, columns, rows, surprises)

    return read


def read_losses(finished: Sequence[Finished]) -> Reading:
    """Weighted against unweighted: epochs, the rarest class, and the spread over seeds."""
    results = finished[0].results
    rare = _rarest(results)
    recall = run_means(results, lambda row: row.metrics.recall[rare])
    balanced = run_means(results, lambda row: row.metrics.balanced_accuracy)
    spreads = {pair: spread_over_seeds(results, *pair, lambda row: row.metrics.balanced_accuracy) for pair in recall}
    rows = tuple(
        (
            strategy,
            loss,
            _epochs_words([row.epochs for row in results.rounds if (row.strategy, row.variant) == (strategy, loss)]),
            str(interval(list(recall[strategy, loss].values()))),
            str(interval(list(balanced[strategy, loss].values()))),
            "one seed" if (spread := spreads[strategy, loss]) is None else f"{spread:.4f}",
        )
        for strategy, loss in recall
    )
    columns = ("strategy", "loss", "epochs", f"recall of {rare}", "balanced accuracy", "its spread over seeds")
    gain = _weighted_minus_unweighted(recall)
    epochs = {loss: float(np.median([row.epochs for row in results.rounds if row.variant == loss])) for loss in LOSSES}
    noise = {loss: _mean([spreads[pair] for pair in spreads if pair[1] == loss]) for loss in LOSSES}
    found = (
        f"Recall of the rarest class ({rare}), weighted minus unweighted: {gain}.",
        f"Epochs of a training, median: {epochs['weighted']:.0f} weighted, {epochs['unweighted']:.0f} unweighted.",
        "Standard deviation of the balanced accuracy over seeds: "
        f"{noise['weighted']:.4f} weighted, {noise['unweighted']:.4f} unweighted.",
    )
    surprises = []
    if not gain.is_above_zero:
        surprises.append(f"the weighted loss does not find more of {rare} by more than luck ({gain})")
    if not noise["weighted"] <= noise["unweighted"]:
        surprises.append(f"its runs do not differ less ({noise['weighted']:.4f} against {noise['unweighted']:.4f})")
    if abs((ratio := epochs["weighted"] / epochs["unweighted"]) - 1.0) > NEAR:
        surprises.append(f"it needs {ratio:.2f} times the epochs")
    return Reading(found, columns, rows, tuple(surprises))


def read_latency(finished: Sequence[Finished]) -> Reading:
    """Passes and ranking of one batch, by function."""
    results = finished[0].results
    seconds: dict[str, list[float]] = {}
    for row in results.rounds:
        seconds.setdefault(row.strategy, []).append(row.acquisition_seconds)
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    pool = results.summary.images["train"] - results.rounds[0].labels
    from_table = finished[0].arm.options.features is not None
    backbone = "features are known, the backbone is not in it" if from_table else "the backbone is in it at first"
    alone = {name: middle[name] for name in ALONE}
    slowest, fastest = max(alone, key=lambda n: alone[n]), min(alone, key=lambda n: alone[n])
    rows = tuple(
        (name, f"{middle[name]:.4f}", f"{min(values):.4f} to {max(values):.4f}", f"{1e3 * middle[name] / pool:.4f}")
        for name, values in sorted(seconds.items(), key=lambda item: middle[item[0]])
    )
    found = (
        f"A pool of {pool:,} images, {results.summary.passes} passes, a batch of {results.summary.batch_size}, "
        f"one thread; {backbone}.",
        f"Functions that look at every image alone: {alone[fastest]:.3f} s ({fastest}) to {alone[slowest]:.3f} s "
        f"({slowest}); batch_bald: {middle['batch_bald']:.3f} s.",
    )
    surprises = []
    if alone[slowest] > SAME_COST * alone[fastest]:
        surprises.append(f"{slowest} takes {alone[slowest] / alone[fastest]:.1f} times as long as {fastest}")
    if middle["batch_bald"] > PAPERS_BATCH_BALD * (usual := float(np.median(list(alone.values())))):
        surprises.append(f"batch_bald takes {middle['batch_bald'] / usual:.1f} times as long as most of them")
    columns = ("function", "seconds a batch, median", "over the seeds", "ms an image")
    return Reading(found, columns, rows, tuple(surprises))


def read_imbalance(finished: Sequence[Finished]) -> Reading:
    """What entropy and the weighted loss do for a class that is hardly there."""
    rows: list[tuple[str, ...]] = []
    found, surprises = [], []
    for one in finished:
        results = one.results
        rare = _rarest(results)
        train = results.summary.labels_per_class["train"]
        recall = run_means(results, lambda row, rare=rare: row.metrics.recall[rare])  # type: ignore[misc]
        areas = run_means(results, lambda row, rare=rare: row.metrics.average_precision[rare])  # type: ignore[misc]
        picked = picked_share(results, rare)
        rows += [
            (
                one.arm.title,
                strategy,
                loss,
                f"{100 * np.mean(list(picked[strategy, loss].values())):.1f} %",
                str(interval(list(recall[strategy, loss].values()))),
                str(interval(list(areas[strategy, loss].values()))),
            )
            for strategy, loss in recall
        ]
        more = interval(
            [
                float(np.mean([picked["entropy", loss][seed] - picked["random", loss][seed] for loss in LOSSES]))
                for seed in results.summary.seeds
            ]
        )
        gain = _weighted_minus_unweighted(recall)
        found.append(
            f"{one.arm.title}: {train[rare]} of {sum(train.values())} training images are {rare}. Share of it among "
            f"the picks, entropy minus random: {more}. Its recall, weighted minus unweighted: {gain}."
        )
        if not more.is_above_zero:
            surprises.append(f"{one.arm.title}: entropy does not pick more of {rare} than random by more than luck")
        if not gain.is_above_zero:
            surprises.append(f"{one.arm.title}: the weighted loss does not find more of {rare} by more than luck")
    columns = ("shares", "strategy", "loss", "rare class among the picks", "its recall", "its AU PRC")
    return Reading(tuple(found), columns, tuple(rows), tuple(surprises))


def read_centres(finished: Sequence[Finished]) -> Reading:
    """Within a centre against across, judged on the same images. Arms are named ``<trained>-to-<tested>``."""
    rows: list[tuple[str, ...]] = []
    baseline: dict[str, dict[int, float]] = {}
    for one in finished:
        results = one.results
        baseline[one.arm.name] = {row.seed: known(row.metrics.auroc) for row in results.baselines}
        accuracy = [row.metrics.accuracy for row in results.baselines]
        last = last_values(results, _auroc)
        rows.append(
            (
                one.arm.title,
                str(results.summary.images["train"]),
                str(interval(list(baseline[one.arm.name].values()))),
                str(interval(accuracy)),
                str(interval(list(last["entropy", ""].values()))),
                str(interval(list(last["random", ""].values()))),
            )
        )
    found, surprises = [], []
    for one in finished:
        trained, tested = one.arm.name.split("-to-")
        if trained == tested:
            continue
        within = baseline[f"{tested}-to-{tested}"]
        lost = interval([within[seed] - value for seed, value in baseline[one.arm.name].items()])
        found.append(f"{one.arm.title}: AU ROC lost against a network of the centre itself, with all labels: {lost}.")
        if not lost.is_above_zero:
            surprises.append(f"{one.arm.title}: a network from elsewhere is as good as the centre's own ({lost})")
    columns = (
        "trained -> tested",
        "training images",
        "AU ROC, all labels",
        "accuracy, all labels",
        "AU ROC, entropy at the end",
        "AU ROC, random at the end",
    )
    return Reading(tuple(found), columns, tuple(rows), tuple(surprises))


def _auroc(row: RoundRow) -> float | None:
    return row.metrics.auroc


def _rarest(results: StudyResults) -> str:
    return rarest(results) or results.summary.classes[0]


def _baseline_words(results: StudyResults) -> str:
    accuracy = float(np.median([row.metrics.accuracy for row in results.baselines]))
    auroc = float(np.median([known(row.metrics.auroc) for row in results.baselines]))
    return (
        f"All {results.baselines[0].labels} labels: accuracy {accuracy:.3f}, AU ROC {auroc:.3f} "
        f"(median of {len(results.baselines)} seeds)."
    )


def _epochs_words(epochs: Sequence[int]) -> str:
    low, middle, high = np.quantile(epochs, (0.25, 0.5, 0.75))
    return f"{middle:.0f} [{low:.0f}–{high:.0f}]"


def _mean(values: Sequence[float | None]) -> float:
    """NaN where a value is not known: nothing is more or less than that."""
    return float(np.mean([np.nan if value is None else value for value in values]))


def _weighted_minus_unweighted(values: ByRun) -> Interval:
    """Seed by seed, averaged over the strategies."""
    strategies = sorted({strategy for strategy, _ in values})
    seeds = sorted(next(iter(values.values())))
    return interval(
        [
            float(np.mean([values[name, "weighted"][seed] - values[name, "unweighted"][seed] for name in strategies]))
            for seed in seeds
        ]
    )


TOP: Final = 0.1
MOST: Final = ("entropy", "least_confidence", "margin")  # total uncertainty
FUNCTIONS: Final[Mapping[str, Callable[[Float[Tensor, "images passes classes"]], Float[Tensor, " images"]]]] = {
    "bald": bald,
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "mean_std": mean_std,
    "variation_ratios": variation_ratios,
}
"""Every function that gives an image a score of its own, without chance in it."""

Values: TypeAlias = Float[npt.NDArray[np.floating[Any]], " images"]


def disagreement(ratings: Sequence[Annotation]) -> dict[str, float]:
    """Share of the pairs of readers of an image that gave it different classes, 0 to 1.

    By pairs, because the entropy of three answers is biased against that of six. Images with fewer than two readers who
    gave a class are left out.

    Args:
        ratings: answers; those without a class do not count.
    """
    answers: dict[str, list[str]] = {}
    for rating in ratings:
        if rating.value is not None:
            answers.setdefault(rating.image.id, []).append(rating.value)
    return {
        image_id: sum(a != b for a, b in combinations(values, 2)) / math.comb(len(values), 2)
        for image_id, values in answers.items()
        if len(values) > 1
    }


def rank_correlation(uncertainty: Values, disagreeing: Values) -> float:
    """Spearman's correlation, -1 to 1; 0 where one of the two is the same for all images.

    Raises:
        ValueError: fewer than 3 images, or not one value an image in both.

    Source:
        Spearman 1904, doi:10.2307/1412159; SciPy.
    """
    if len(uncertainty) != len(disagreeing) or len(uncertainty) < 3:
        raise ValueError(f"a correlation needs 3 images or more, got {len(uncertainty)} and {len(disagreeing)}")
    if np.ptp(uncertainty) == 0.0 or np.ptp(disagreeing) == 0.0:
        return 0.0
    return float(spearmanr(uncertainty, disagreeing).statistic)


def share_in_top(uncertainty: Values, disagreeing: Values, top: float = TOP) -> float:
    """How much of all disagreement the most uncertain images hold, 0 to 1; by chance it is ``top``.

    Of images that are equally uncertain at the border, each counts in part: the order of a table decides nothing.

    Args:
        uncertainty: one an image, higher is less sure.
        disagreeing: one an image, 0 or more.
        top: share of the images, above 0 to 1; at least one image.

    Raises:
        ValueError: lengths that differ, no disagreement at all, or a share out of its range.
    """
    if len(uncertainty) != len(disagreeing) or not 0.0 < top <= 1.0:
        raise ValueError(
            f"{len(uncertainty)} images and {len(disagreeing)} values, top {top}: give as many, 0 < top <= 1"
        )
    if not (total := float(disagreeing.sum())) > 0.0:
        raise ValueError("no two readers disagree about any image: there is nothing to hold")
    count = max(1, round(top * len(uncertainty)))
    border = np.sort(uncertainty)[-count]
    above, at = uncertainty > border, uncertainty == border
    held = disagreeing[above].sum() + disagreeing[at].sum() * (count - above.sum()) / at.sum()
    return float(held) / total


def quality_reading(
    correlations: Mapping[str, Sequence[float]], shares: Mapping[str, Sequence[float]], images: int, ceiling: float
) -> Reading:
    """The answer in words.

    Args:
        correlations: function -> one a seed.
        shares: function -> one a seed, of ``share_in_top``.
        images: on the test side.
        ceiling: what the images that readers disagree about most hold.
    """
    ranks: dict[str, Interval] = {name: interval(values) for name, values in correlations.items()}
    held = {name: interval(values) for name, values in shares.items()}
    order = sorted(ranks, key=lambda name: -ranks[name].mean)
    rows = tuple((name, str(ranks[name]), str(held[name])) for name in order)
    found = (
        f"{images} test images; closest to the readers: {order[0]}, Spearman correlation {ranks[order[0]]}.",
        f"The {TOP:.0%} of the images that {order[0]} is least sure of hold {held[order[0]]} of all disagreement; "
        f"by chance {TOP:.2f}, at most {ceiling:.3f}.",
        "Intervals are over seeds, that is over networks; the test images are the same ones.",
    )
    surprises = [
        f"the correlation of {name} is not above 0 by more than luck ({ranks[name]})"
        for name in MOST
        if not ranks[name].is_above_zero
    ]
    if held["entropy"].mean <= TOP:
        surprises.append(f"the top {TOP:.0%} by entropy hold no more disagreement than chance ({held['entropy']})")
    if ranks["entropy"].mean < ranks["bald"].mean:
        surprises.append(f"bald ({ranks['bald']}) is closer to the readers than entropy ({ranks['entropy']})")
    columns = ("function", "Spearman correlation", f"disagreement held by the top {TOP:.0%}")
    return Reading(found, columns, rows, tuple(surprises))


def read_uncertainty(finished: Sequence[Finished]) -> Reading:
    """Fit the baseline of every seed again, and hold its uncertainty about the test side against the readers.

    ``uncertainty.csv`` in the study's folder has every image and seed.

    Raises:
        SettingsError: there are no ratings, or no two readers disagree about a test image.
    """
    options = finished[0].arm.options
    plan, data = make_plan(options)
    test = {label.image.id for label in data.labels("test")}
    apart = {image_id: value for image_id, value in disagreement(data.ratings).items() if image_id in test}
    if len(apart) < 3 or not any(apart.values()):
        disputed = sum(value > 0.0 for value in apart.values())
        raise SettingsError(
            "uncertainty-quality needs 3 test images or more that two readers have rated, not all of them alike; there "
            f"are {len(apart)}, of which readers dispute {disputed}: give other --ratings"
        )
    study = open_study(plan, options.out, data)
    correlations: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    shares: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    lines: list[tuple[object, ...]] = []
    for run in (run for run in plan.runs() if run.is_baseline):
        image_ids, scores = _uncertainty(run, study)
        rows = [row for row, image_id in enumerate(image_ids) if image_id in apart]
        readers = np.array([apart[image_ids[row]] for row in rows])
        for name, values in scores.items():
            correlations[name].append(rank_correlation(values[rows], readers))
            shares[name].append(share_in_top(values[rows], readers))
        lines += [
            (run.seed, image_ids[row], apart[image_ids[row]], *(float(values[row]) for values in scores.values()))
            for row in rows
        ]
    _write(options.out / "uncertainty.csv", lines)
    everyone = np.array(list(apart.values()))
    return quality_reading(correlations, shares, len(apart), share_in_top(everyone, everyone))


def _uncertainty(run: Run, study: Study) -> tuple[tuple[str, ...], dict[str, Values]]:
    with one_thread(), threadpool_limits(1):  # as the study's own rounds
        learner, _, _ = fit_on_all(run, study)
        outputs = learner.predict_test([label.image for label in study.data.labels("test")])
        probs = torch.from_numpy(outputs.probs)
        return outputs.image_ids, {name: score(probs).double().numpy() for name, score in FUNCTIONS.items()}


def _write(file: Path, lines: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("seed", "image_id", "disagreement", *FUNCTIONS))
    writer.writerows(lines)
    write_atomically(file, text.getvalue().encode())


SEVEN: Final = "entropy,mean_std,bald,batch_bald,least_confidence,margin,variation_ratios"
POOL: Final = 1_000
QUICK_POOL: Final = 100
FEW_INITIAL: Final = 10  # of a class that is hardly there


@dataclass(frozen=True, slots=True)
class Experiment:
    """One of the experiments.

    Attributes:
        outline: what it asks and expects.
        arms: its studies.
        read: what they say.
        seeds: unless others are asked for.
        classes: that it is about; None where any number will do.
        films: that are drawn where there are no tables.
        centres: that they come from.
    """

    outline: Outline
    arms: Callable[[Ground], Iterable[Arm]]
    read: Callable[[Sequence[Finished]], Reading]
    seeds: int = 10
    classes: int | None = None
    films: int = 1_000
    centres: int = 4  # other machines make a pool harder to learn from few labels


def _paper(strategies: str) -> Callable[[Ground], Sequence[Arm]]:
    return lambda ground: [ground.arm(strategies=strategies, imbalance=ground.paper_shares())]


def _losses(ground: Ground) -> Sequence[Arm]:
    return [ground.arm(strategies="entropy", loss="weighted,unweighted", imbalance=ground.paper_shares())]


def _latency(ground: Ground) -> Sequence[Arm]:
    # Side by side they would wait for each other.
    ground = replace(ground, workers=1)
    pool, initial = (QUICK_POOL if ground.quick else POOL), ground.initial()
    tables = with_pool_of(
        ground.tables, ground.tables.load(), pool, initial, ground.out / "tables" / f"pool-{pool}.csv"
    )
    every = ",".join(name for name in STRATEGIES if name != "random")
    return [ground.arm(strategies=every, tables=tables, one_round=True)]


def _imbalance(ground: Ground) -> Iterator[Arm]:
    rare = ground.tables.classes[0]
    for percent in (5, 2):
        yield ground.arm(
            name=f"{percent:02d}-{100 - percent}",
            title=f"{percent} / {100 - percent}",
            strategies="entropy",
            initial=FEW_INITIAL,
            loss="weighted,unweighted",
            imbalance=f"{rare}={percent / 100:g}",
            budget="0.25",
        )


def _uncertainty_study(ground: Ground) -> Sequence[Arm]:
    if ground.tables.ratings is None:
        raise SettingsError("uncertainty-quality holds a network against readers: give --ratings with path,rater,label")
    return [ground.arm(strategies="entropy", one_round=True)]


def _centres(ground: Ground) -> Iterator[Arm]:
    data = ground.tables.load()
    centres = tuple(enumerate(two_centres(data), start=1))
    for (there, tested), (here, trained) in product(centres, repeat=2):
        name = f"{here}-to-{there}"
        yield ground.arm(
            name=name,
            title=f"{trained} -> {tested}",
            strategies="entropy",
            tables=across_centres(ground.tables, data, trained, tested, ground.out / "tables" / f"{name}.csv"),
        )


def _profiles(ground: Ground) -> Iterator[Arm]:
    data = ground.tables.load()
    tables = without_validation(ground.tables, data, ground.out / "tables" / "two-sides.csv")
    # Each network is validated on a label of every class.
    networks = ProjectOptions.model_validate(PROFILES[BEST].options).committee
    for profile in (PAPER, BEST):
        yield ground.arm(
            name=profile,
            title=profile,
            strategies="entropy",
            tables=tables,
            least_initial=networks,
            budget="0.25",
            profile=profile,
        )


def _by_name(experiments: Sequence[Experiment]) -> dict[str, Experiment]:
    return {one.outline.name: one for one in experiments}


EXPERIMENTS: Final = _by_name(
    [
        Experiment(
            OUTLINES["paper-binary"],
            arms=_paper("entropy,mean_std,bald,batch_bald"),
            read=read_paper("entropy"),
            classes=2,
        ),
        Experiment(
            OUTLINES["paper-multiclass"],
            arms=_paper(SEVEN),
            read=read_paper("mean_std"),
            classes=3,
        ),
        Experiment(
            OUTLINES["loss-ablation"],
            arms=_losses,
            read=read_losses,
        ),
        Experiment(
            OUTLINES["profiles"],
            arms=_profiles,
            read=read_profiles,
        ),
        Experiment(
            OUTLINES["acquisition-latency"],
            arms=_latency,
            read=read_latency,
            seeds=5,
            films=1_850,
        ),
        Experiment(
            OUTLINES["extreme-imbalance"],
            arms=_imbalance,
            read=read_imbalance,
            classes=2,
            films=2_000,
        ),
        Experiment(
            OUTLINES["uncertainty-quality"],
            arms=_uncertainty_study,
            read=read_uncertainty,
            centres=1,
        ),
        Experiment(
            OUTLINES["cross-centre"],
            arms=_centres,
            read=read_centres,
            films=1_200,
            centres=2,
        ),
    ]
)

FOLDER: Final = Path("experiments")
QUICK_SEEDS: Final = 2
NOT_PATIENTS: Final = "Drawn films and a network that nobody has trained: these figures say nothing about patients."


@dataclass(frozen=True, slots=True)
class ExperimentOptions:
    """The options of ``ml-backend experiment``, as they are typed.

    Attributes:
        out: folder of the results; ``experiments/<name>`` by default, with ``-quick`` after it where it is.
        seeds: how many; by default as the experiment has it, two with ``quick``.
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
        """The command that gives the same numbers; without what only spreads the work."""
        words = ["ml-backend", "experiment", self.name]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.name != "workers" and value != field.default:
                words += [f"--{field.name}", *([] if value is True else [str(value)])]
        return shlex.join(words)


class ExperimentReport(FrozenModel):
    """``experiment.json``: what was asked, expected and found."""

    name: str
    question: str
    command: str
    expectation: str
    drawn: bool  # no patient's films
    studies: dict[str, str]  # title -> folder, below the experiment's
    found: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    surprises: tuple[str, ...]  # what is not as expected; empty where all is
    notes: tuple[str, ...]  # what the figures cannot say


def run_experiment(options: ExperimentOptions, console: Console | None = None) -> int:
    """Do an experiment, or what is left of it: say what is expected, run its studies, say what they found.

    Args:
        options: what is asked for.
        console: where to tell it; the terminal by default.

    Returns:
        Exit status: 0, also where something was not as expected.

    Raises:
        SettingsError: an option or a table is wrong; names the value, what is wanted and the way out.
        BackendError: a study came to nothing, see ``simulate``.
    """
    console = console or Console()
    experiment = EXPERIMENTS.get(options.name)
    if experiment is None:
        raise SettingsError(f"there is no experiment {options.name!r}; known are {', '.join(EXPERIMENTS)}")
    if options.seeds is not None and options.seeds < 1:
        raise SettingsError(f"--seeds {options.seeds}: wanted 1 or more")

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    out = options.out or FOLDER / f"{options.name}{'-quick' if options.quick else ''}"
    given = {part: getattr(options, part) for part in ("labels", "images", "ratings", "features")}
    own = own_tables(options.name, given, options.task, experiment.classes)
    _introduce(experiment.outline, options, say)
    # Where the user names no folder, experiments share the films.
    ground = Ground(
        tables=own or _drawn(experiment, (options.out or FOLDER) / "drawn", options.quick, say),
        out=out,
        seeds=options.seeds or (QUICK_SEEDS if options.quick else experiment.seeds),
        quick=options.quick,
        workers=options.workers,
        device=options.device,
        backbone=options.backbone,
        weights=options.weights,
    )
    finished = []
    for arm in experiment.arms(ground):
        if arm.title:
            say(f"\n{arm.title}")
        try:
            finished.append(Finished(arm, simulate(arm.options, console)))
        except KeyboardInterrupt:
            say(f"the whole experiment goes on with: {options.command()}")
            raise
    reading = experiment.read(finished)
    report = ExperimentReport(
        name=options.name,
        question=experiment.outline.question,
        command=options.command(),
        expectation=experiment.outline.expectation,
        drawn=ground.tables.drawn,
        studies={one.arm.title or options.name: one.arm.name or "." for one in finished},
        found=reading.found,
        columns=reading.columns,
        rows=reading.rows,
        surprises=reading.surprises,
        notes=(
            *([NOT_PATIENTS] if ground.tables.drawn else []),
            *(f"{one.message} {one.check}" for one in few_seeds(ground.seeds)),
        ),
    )
    write_record(out / "experiment.json", report)
    _conclude(report, console, say)
    return 0


def _drawn(experiment: Experiment, folder: Path, quick: bool, say: Callable[[str], None]) -> Tables:
    return drawn_tables(
        folder,
        films=experiment.films,
        centres=experiment.centres,
        binary=experiment.classes == 2,
        quick=quick,
        tell=say,
    )


def _introduce(outline: Outline, options: ExperimentOptions, say: Callable[[str], None]) -> None:
    say(f"{outline.name}: {outline.question}")
    say(f"command:  {options.command()}")
    say(f"runs:     {outline.runs}")
    say(f"time:     {outline.time}")
    say(f"expected: {outline.expectation}")


def _conclude(report: ExperimentReport, console: Console, say: Callable[[str], None]) -> None:
    say("")
    for sentence in report.found:
        say(sentence)
    table = Table(*report.columns)
    for row in report.rows:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)
    for note in report.notes:
        say(f"note: {note}")
    say(f"not as expected: {'; '.join(report.surprises)}" if report.surprises else "as expected")
