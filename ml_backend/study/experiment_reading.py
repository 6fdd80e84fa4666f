"""What an experiment found: the record of it, and the statistics that its answers are made of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from scipy.stats import t as student

from ml_backend.errors import RoundError
from ml_backend.simulation.compare import PairedDifference, labels_needed_table
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.study.experiment_ground import Arm
from ml_backend.study.report_curves import curves_of
from ml_backend.study.report_words import share_words
from ml_backend.study.rows import BatchRow, RoundRow, StudyResults

__all__ = [
    "ByRun",
    "Finished",
    "Interval",
    "Reading",
    "interval",
    "is_no_luck",
    "known",
    "last_values",
    "needed_words",
    "p_words",
    "picked_share",
    "run_means",
    "spread_over_seeds",
]

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
