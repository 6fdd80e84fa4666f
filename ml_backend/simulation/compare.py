"""Which strategy needs fewer labels, and whether that is more than luck: statistics over paired seeds.

Runs of one seed share split and start set, so that strategies are compared seed by seed.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from pydantic import Field
from scipy.stats import bootstrap, wilcoxon

from ml_backend.records import Record
from ml_backend.simulation.curves import (
    WINDOW,
    LearningCurve,
    area_under,
    by_name,
    labels_needed,
    shared_labels,
)

__all__ = [
    "TARGETS",
    "Baselines",
    "LabelsNeeded",
    "PairedDifference",
    "Spread",
    "WinMatrix",
    "labels_needed_table",
    "paired_difference",
    "win_matrix",
]

RESAMPLES = 9_999
CONFIDENCE = 0.95

Count = Annotated[int, Field(ge=0)]

Baselines: TypeAlias = Mapping[tuple[str, int], float]
"""The metric of training on all labels, by variant (empty where the study has none) and seed."""

TARGETS: Final[dict[str, Callable[[float], float]]] = {
    "95 % of the baseline": lambda baseline: 0.95 * baseline,
    "baseline - 1 point": lambda baseline: baseline - 0.01,
    "baseline": lambda baseline: baseline,
}
"""What a run is to reach, by its baseline; a point is 0.01 of a metric that is a share."""


class Spread(Record):
    """Median and quartiles over runs; None where it is infinite, because so many runs never got there."""

    median: float | None
    q25: float | None
    q75: float | None


class LabelsNeeded(Record):
    """How many labels the runs of one name needed for one target.

    Attributes:
        name: strategy, and variant where there is one.
        target: a key of ``TARGETS``.
        labels: labels needed, over all runs.
        share: the same as a share of the training set, 0 to 1.
        runs: how many there were.
        never: of those, how many did not get there; they count as infinitely many labels and are not dropped.
    """

    name: str
    target: str
    labels: Spread
    share: Spread
    runs: Count
    never: Count


class PairedDifference(Record):
    """How far the areas under the curves of two strategies lie apart, first minus second.

    Attributes:
        mean: over the pairs, in the unit of the metric; above 0 where the first is better.
        low: lower end of the 95 % bootstrap interval of the mean; None for a single pair.
        high: its upper end.
        p: of Wilcoxon's signed-rank test, two-sided; None where every pair is equal. Of one comparison: it does not
            know how many strategies were tried.
        pairs: seeds.
    """

    mean: float
    low: float | None
    high: float | None
    p: Annotated[float, Field(ge=0.0, le=1.0)] | None
    pairs: Count


@dataclass(frozen=True, slots=True, eq=False)
class WinMatrix:
    """Who beats whom.

    Attributes:
        names: of rows and of columns.
        share: of the seeds in which the row has the larger area than the column, ties counting half; so 0.5 on the
            diagonal, and 1 where ``share`` and its transpose are added.
        seeds: how many there were.
    """

    names: tuple[str, ...]
    share: Float64[npt.NDArray[np.float64], "rows columns"]
    seeds: int


def labels_needed_table(
    curves: Sequence[LearningCurve], baselines: Baselines, window: int = WINDOW
) -> tuple[LabelsNeeded, ...]:
    """Labels needed for every target, for every strategy and variant.

    Args:
        curves: of one metric, one a run.
        baselines: of the same metric; every run is held against the baseline of its own variant and seed.
        window: rounds of the running median, see ``labels_needed``.

    Returns:
        Rows by name, in the order of ``curves``, then by target.

    Raises:
        ValueError: a run without a baseline, a baseline that is not finite, a run twice, or a bad window.
    """
    return tuple(
        _needed(name, target, list(runs.values()), baselines, window)
        for name, runs in by_name(curves).items()
        for target in TARGETS
    )


def _needed(name: str, target: str, runs: Sequence[LearningCurve], baselines: Baselines, window: int) -> LabelsNeeded:
    labels = np.full(len(runs), math.inf)
    for place, curve in enumerate(runs):
        baseline = baselines.get((curve.variant, curve.seed), math.nan)
        if not math.isfinite(baseline):
            raise ValueError(f"{name}, seed {curve.seed}: the baseline is {baseline}, give what all labels reach")
        count = labels_needed(curve, TARGETS[target](baseline), window)
        labels[place] = math.inf if count is None else count
    return LabelsNeeded(
        name=name,
        target=target,
        labels=_spread(labels),
        share=_spread(labels / [curve.train_images for curve in runs]),
        runs=len(runs),
        never=int(np.isinf(labels).sum()),
    )


def _spread(values: Float64[npt.NDArray[np.float64], " runs"]) -> Spread:
    """Quantiles as NumPy's default, but on the way from a number to infinity there is infinity, and no NaN."""
    ordered = np.sort(values)

    def quantile(share: float) -> float | None:
        place = share * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        if math.isinf(high):
            return None
        return float(low + (place - math.floor(place)) * (high - low))

    return Spread(median=quantile(0.5), q25=quantile(0.25), q75=quantile(0.75))


def paired_difference(a: Sequence[LearningCurve], b: Sequence[LearningCurve], seed: int = 0) -> PairedDifference:
    """Mean difference of the areas under the curves, seed by seed, with an interval and a test.

    The two areas of a pair are taken over the label counts that both have, so that a run that ended early is compared
    over its own part of the other. The interval is the percentile bootstrap of the mean over seeds: too narrow for few
    of them, by ``sqrt((n - 1) / n)`` at least.

    Args:
        a: runs of one name, one a seed.
        b: runs of another, of the same seeds.
        seed: of the resampling.

    Raises:
        ValueError: no run, several names on one side, a seed twice, or a seed on one side only.

    Source:
        Efron & Tibshirani 1993, chapter 13; Wilcoxon 1945, doi:10.2307/3001968 (equal pairs are left out, as there).
    """
    first, second = _one_name(a), _one_name(b)
    seeds = _paired([(a[0].name, first), (b[0].name, second)])
    differences = np.empty(len(seeds))
    for place, number in enumerate(seeds):
        pair = (first[number], second[number])
        labels = shared_labels(pair)
        differences[place] = area_under(pair[0], labels) - area_under(pair[1], labels)
    low, high = _interval(differences, seed)
    # Without a difference there is nothing to rank: SciPy would divide 0 by 0.
    p = float(wilcoxon(differences).pvalue) if differences.any() else None
    return PairedDifference(mean=differences.mean(), low=low, high=high, p=p, pairs=len(seeds))


def _interval(differences: Float64[npt.NDArray[np.float64], " pairs"], seed: int) -> tuple[float | None, float | None]:
    if len(differences) < 2:
        return None, None
    interval = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def win_matrix(curves: Sequence[LearningCurve]) -> WinMatrix:
    """In which share of the seeds every strategy beats every other, by the area under the curve.

    The areas of one seed are taken over the label counts that all its curves have.

    Args:
        curves: of one metric, of the same seeds for every name.

    Raises:
        ValueError: no curve, a run twice, or a seed that one name lacks.
    """
    grouped = by_name(curves)
    seeds = _paired(grouped.items())
    areas = np.empty((len(grouped), len(seeds)))
    for place, number in enumerate(seeds):
        runs = [of_name[number] for of_name in grouped.values()]
        labels = shared_labels(runs)
        areas[:, place] = [area_under(curve, labels) for curve in runs]
    row, column = areas[:, None], areas[None]
    share = ((row > column) + 0.5 * (row == column)).mean(axis=-1)
    return WinMatrix(names=tuple(grouped), share=share, seeds=len(seeds))


def _one_name(curves: Sequence[LearningCurve]) -> dict[int, LearningCurve]:
    grouped = by_name(curves)
    if len(grouped) != 1:
        raise ValueError(f"each side of a comparison is one strategy and variant, got {', '.join(grouped) or 'no run'}")
    return next(iter(grouped.values()))


def _paired(sides: Collection[tuple[str, Mapping[int, LearningCurve]]]) -> tuple[int, ...]:
    if not sides:
        raise ValueError("no curve to compare: give at least one")
    seeds = {seed for _, runs in sides for seed in runs}
    for name, runs in sides:
        if missing := sorted(seeds - runs.keys()):
            raise ValueError(
                f"{name} has no run of seed {', '.join(map(str, missing))}: strategies are compared seed by seed, "
                "so run it or leave that seed out everywhere"
            )
    return tuple(sorted(seeds))
