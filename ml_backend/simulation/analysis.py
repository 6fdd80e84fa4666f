"""Learning curves: a metric over the labels, and what is read off them. Higher values are better throughout.

Which strategy needs fewer labels, and whether that is more than luck: statistics over paired seeds.
What a reader of a study should be told before believing it: warnings in words, each with what to check next.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64
from pydantic import Field
from scipy.stats import bootstrap, wilcoxon

from ml_backend.schemas import FrozenModel
from ml_backend.simulation.metrics import RoundMetrics

WINDOW = 3  # rounds

Counts: TypeAlias = Int64[npt.NDArray[np.int64], " rounds"]
Values: TypeAlias = Float64[npt.NDArray[np.float64], " rounds"]


@dataclass(frozen=True, slots=True, eq=False)
class LearningCurve:
    """One metric over the rounds of one run.

    Attributes:
        strategy: what picked the images.
        seed: of the run; runs of one seed share split and start set, and are compared in pairs.
        labels: images labelled at every round, strictly increasing.
        values: the metric on the test images, higher is better; finite.
        train_images: images that could be labelled in all: of which ``labels`` are a share.
        variant: what else the runs of a study differ in (the loss, say); empty where nothing.

    Raises:
        ValueError: no round, lengths that differ, labels that do not increase or are more than there are images, or a
            value that is not finite.
    """

    strategy: str
    seed: int
    labels: Counts
    values: Values
    train_images: int
    variant: str = ""

    def __post_init__(self) -> None:
        # Own copies that cannot be written: a frozen record is to stay as it was checked.
        for name, kind in (("labels", np.int64), ("values", np.float64)):
            array = np.array(getattr(self, name), dtype=kind)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        who = f"{self.name}, seed {self.seed}"
        if self.labels.ndim != 1 or self.labels.shape != self.values.shape or not len(self.labels):
            raise ValueError(f"{who}: {self.labels.shape} labels but {self.values.shape} values, give one a round")
        if self.labels[0] < 1 or self.labels[-1] > self.train_images or (np.diff(self.labels) <= 0).any():
            raise ValueError(f"{who}: labels must increase within 1 to {self.train_images}, got {self.labels.tolist()}")
        if not np.isfinite(self.values).all():
            first = int(np.isfinite(self.values).argmin())
            raise ValueError(
                f"{who}: value {self.values[first]} at {self.labels[first]} labels: leave out undefined rounds"
            )

    @property
    def name(self) -> str:
        """What the run is called next to others: ``"entropy"``, or ``"entropy, weighted"`` for a variant."""
        return f"{self.strategy}, {self.variant}" if self.variant else self.strategy

    @property
    def shares(self) -> Values:
        """Labels as a share of the training set, above 0 to 1."""
        return self.labels / self.train_images


Curves: TypeAlias = dict[str, dict[int, LearningCurve]]
"""Curves by name, then by seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """The middle half of several runs.

    Attributes:
        labels: counts at which every run has a value.
        median, q25, q75: over the runs, at each count.
        train_images: median over the runs, whose splits may differ by a patient.
        runs: how many there are.
    """

    labels: Counts
    median: Values
    q25: Values
    q75: Values
    train_images: float
    runs: int

    @property
    def shares(self) -> Values:
        """Labels as a share of the training set, above 0 to 1."""
        return self.labels / self.train_images


def by_name(curves: Iterable[LearningCurve]) -> Curves:
    """Sort curves by name and seed; names in the order in which they first come, seeds ascending.

    Raises:
        ValueError: a run stands there twice.
    """
    found: Curves = {}
    for curve in curves:
        runs = found.setdefault(curve.name, {})
        if curve.seed in runs:
            raise ValueError(f"{curve.name}, seed {curve.seed}: two curves, give one a run")
        runs[curve.seed] = curve
    return {name: dict(sorted(runs.items())) for name, runs in found.items()}


def running_median(values: Sequence[float] | Values, window: int = WINDOW) -> Values:
    """Median over the ``window`` rounds around each round.

    At both ends it is taken over the rounds that the window still holds: with a window of 3, the first and the last
    value are means of two rounds, so that one lucky round does not decide there either.

    Args:
        values: finite, one a round.
        window: odd, at least 1; 1 changes nothing.

    Raises:
        ValueError: an even window or one below 1, or no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"a window has an odd number of rounds around its middle, got {window}")
    if not len(array):
        raise ValueError("the running median of no round is not defined")
    # NaN stands for rounds outside, which nanmedian leaves out.
    padded = np.pad(array, window // 2, constant_values=np.nan)
    medians: Values = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
    return medians


def labels_needed(curve: LearningCurve, target: float, window: int = WINDOW) -> int | None:
    """The first label count at which the curve, smoothed by ``running_median``, reaches the target.

    Smoothed, because of 40 noisy rounds one is soon lucky. Whether the curve stays there is not asked. Counts between
    two rounds are not interpolated: labels come in batches.

    Returns:
        One of ``curve.labels``; None where the target is never reached.

    Raises:
        ValueError: see ``running_median``.
    """
    reached = running_median(curve.values, window) >= target
    return int(curve.labels[reached.argmax()]) if reached.any() else None


def area_under(curve: LearningCurve, labels: Counts | None = None) -> float:
    """Mean height of a curve: the area under it by the trapezoid rule over the share of labels, divided by the width.

    A constant curve c gives c, and the unit is the metric's. Only areas over the same label counts can be compared.

    Args:
        curve: of one run.
        labels: counts to take, all of them among the curve's (see ``shared_labels``); None takes the whole curve.

    Returns:
        Between the lowest and the highest value; of a single round, its value.

    Raises:
        ValueError: a count that the curve does not have, or none at all.
    """
    wanted = curve.labels if labels is None else np.unique(labels)
    chosen = np.isin(curve.labels, wanted)
    if not len(wanted) or chosen.sum() < len(wanted):
        raise ValueError(f"{curve.name}, seed {curve.seed}: has no value at each of the labels {wanted.tolist()}")
    shares, values = curve.shares[chosen], curve.values[chosen]
    if len(values) == 1:
        return float(values[0])
    return float(np.trapezoid(values, shares) / (shares[-1] - shares[0]))


def shared_labels(curves: Sequence[LearningCurve]) -> Counts:
    """Label counts at which every curve has a value, ascending.

    Raises:
        ValueError: there is no such count, or no curve.
    """
    if not curves:
        raise ValueError("no curve to compare: give at least one")
    shared: Counts = reduce(np.intersect1d, (curve.labels for curve in curves))
    if not len(shared):
        ranges = [f"{c.name}, seed {c.seed}: {c.labels[0]} to {c.labels[-1]}" for c in curves[:10]]
        raise ValueError(f"the curves share no label count ({'; '.join(ranges)}): use one start set and batch size")
    return shared


def band(curves: Sequence[LearningCurve]) -> Band:
    """Median and quartiles of several seeds, at the label counts that all of them have.

    Quantiles by linear interpolation between the ordered values, NumPy's default.

    Args:
        curves: runs of one name. A run that ended early ends the band.

    Raises:
        ValueError: no curve, different names, a seed twice, or no label count in common.

    Source:
        Hyndman & Fan 1996, doi:10.2307/2684934, definition 7.
    """
    labels = shared_labels(curves)
    if len(names := by_name(curves)) > 1:
        raise ValueError(f"a band is of one strategy and variant, got {', '.join(names)}")
    values = np.stack([curve.values[np.isin(curve.labels, labels)] for curve in curves])
    q25, median, q75 = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    return Band(
        labels=labels,
        median=median,
        q25=q25,
        q75=q75,
        train_images=float(np.median([curve.train_images for curve in curves])),
        runs=len(curves),
    )


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


class Spread(FrozenModel):
    """Median and quartiles over runs; None where it is infinite, because so many runs never got there."""

    median: float | None
    q25: float | None
    q75: float | None


class LabelsNeeded(FrozenModel):
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


class PairedDifference(FrozenModel):
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


Kind = Literal["random_ahead", "random_level", "wide_spread", "missed_class", "few_passes", "few_seeds"]
Measure = Literal["precision", "recall", "specificity"]
ClassCounts: TypeAlias = Mapping[str, int]
"""Images of every class."""

MEASURES: Final[tuple[Measure, ...]] = ("precision", "recall", "specificity")
CHANCE: Final = "random"
SEEDS_FOR_A_CLAIM: Final = 10
PASSES_PER_PICK: Final = 5
WIDE: Final = 0.5  # of the median
TOLERANCE: Final = 0.02


class Finding(FrozenModel):
    """A warning about a study.

    Attributes:
        kind: for grouping and for a reader of the JSON.
        message: what was seen, with its numbers.
        check: what to look at or to try next.
    """

    kind: Kind
    message: str
    check: str


def random_level(curves: Sequence[LearningCurve]) -> tuple[Finding, ...]:
    """Strategies that are not shown to be better than chance.

    ``random`` is ahead where the whole 95 % interval of the paired difference of areas lies below 0, and level where
    the interval holds 0. A single seed has no interval: there its difference alone decides.

    Args:
        curves: of one metric, of the same seeds for every strategy; a strategy's variant is held against ``random`` of
            the same variant. Without ``random`` there is nothing to say.

    Returns:
        One finding a strategy and variant, in the order of ``curves``.

    Raises:
        ValueError: a strategy and ``random`` have different seeds, see ``paired_difference``.
    """
    grouped = by_name(curves)
    chance = {curve.variant: curve.name for curve in curves if curve.strategy == CHANCE}
    found = []
    for name, runs in grouped.items():
        one = next(iter(runs.values()))
        if one.strategy == CHANCE or one.variant not in chance:
            continue
        difference = paired_difference(list(runs.values()), list(grouped[chance[one.variant]].values()))
        if (kind := _against_chance(difference)) is not None:
            found.append(_random_finding(kind, name, difference))
    return tuple(found)


def _against_chance(difference: PairedDifference) -> Kind | None:
    low, high = difference.low, difference.high
    if low is None or high is None:
        low = high = difference.mean
    if high < 0:
        return "random_ahead"
    return "random_level" if low <= 0 else None


def _random_finding(kind: Kind, name: str, difference: PairedDifference) -> Finding:
    interval = (
        "one seed, so no interval"
        if difference.low is None
        else f"95 % interval {difference.low:+.4f} to {difference.high:+.4f} over {difference.pairs} seeds"
    )
    seen = f"mean difference of the areas under the curves {difference.mean:+.4f}, {interval}"
    if kind == "random_ahead":
        return Finding(
            kind=kind,
            message=f"{name} learns more slowly than random picks: {seen}.",
            check="Take it for a fault until shown otherwise: do the scores differ from image to image, is dropout on "
            "while scoring, does the highest score come first? Then compare the classes that it picks with the pool's: "
            "a weak network may ask only for films that nobody can read. A larger start set helps against that.",
        )
    return Finding(
        kind=kind,
        message=f"{name} is not shown to be better than random picks: {seen}.",
        check="Run more seeds, or look at a metric that shows the minority class (balanced accuracy, AU ROC). If both "
        "stay level, the images may be alike enough that any choice will do: then random is the cheaper strategy.",
    )


def wide_spread(table: Sequence[LabelsNeeded], batch_size: int) -> tuple[Finding, ...]:
    """Strategies of which one run needs far more labels than the next.

    Wide is a range between the quartiles of more than half the median and of more than one batch (which is as finely
    as labels needed can be told). Where the lower quartile gets there and the upper one never does, it is infinite.
    Where even the lower one does not, nothing is said: ``never`` in the table already does.

    Args:
        table: see ``labels_needed_table``.
        batch_size: images labelled in a round.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"a batch holds at least 1 image, got {batch_size}")
    found = []
    for row in table:
        q25, median, q75 = (math.inf if v is None else v for v in (row.labels.q25, row.labels.median, row.labels.q75))
        if math.isinf(q25) or q75 - q25 <= batch_size:
            continue
        if math.isinf(q75) or q75 - q25 > WIDE * median:
            upper = "never" if math.isinf(q75) else f"{q75:.0f}"
            middle = "never" if math.isinf(median) else f"{median:.0f}"
            found.append(
                Finding(
                    kind="wide_spread",
                    message=f"{row.name}, labels needed for {row.target}: median {middle}, quartiles {q25:.0f} and "
                    f"{upper}; {row.never} of {row.runs} runs never get there: the result depends on the start.",
                    check="The start set may be too small: try more images of every class. A small validation set, "
                    "which stops training early or late by luck, does the same. Promise no median from this.",
                )
            )
    return tuple(found)


def missed_classes(
    rounds: Mapping[str, Mapping[int, Sequence[RoundMetrics]]],
    baselines: Mapping[int, RoundMetrics],
    *,
    picked: Mapping[str, ClassCounts] | None = None,
    available: ClassCounts | None = None,
    tolerance: float = TOLERANCE,
) -> tuple[Finding, ...]:
    """Classes of which precision, recall or specificity never reaches what all labels reach, in half the runs or more.

    Smoothed by ``running_median``, so that one lucky round does not count. A round that has no precision of a class,
    because nothing was predicted so, counts as 0.

    Args:
        rounds: name of the strategy, seed, and the metrics of the run's rounds in their order.
        baselines: by seed, the metrics of training on all labels; so one call a variant of the study.
        picked: by the same names, classes of what was picked after the start set, over all runs.
        available: classes of the training set; with ``picked`` it tells whether the strategy passed a class over.
        tolerance: how far below the baseline still counts as there, 0 to 1. By default 2 points: a class of 100 test
            images moves by one with every image, and a report that warns of that is not read.

    Returns:
        One finding a name and class, the measures in it.

    Raises:
        ValueError: a run without rounds or without a baseline, or of other classes than the baseline.
    """
    found = []
    for name, runs in rounds.items():
        for seed, metrics in runs.items():
            _check_run(name, seed, metrics, baselines)
        for class_name in next(iter(runs.values()))[0].recall if runs else ():
            pairs = {m: [_best(m, class_name, rows, baselines[seed]) for seed, rows in runs.items()] for m in MEASURES}
            seen = [words for measure in MEASURES if (words := _missed(measure, pairs[measure], tolerance))]
            if seen:
                share = _share_picked(class_name, (picked or {}).get(name), available)
                found.append(_missed_finding(name, class_name, seen, share))
    return tuple(found)


def _check_run(name: str, seed: int, metrics: Sequence[RoundMetrics], baselines: Mapping[int, RoundMetrics]) -> None:
    if not metrics:
        raise ValueError(f"{name}, seed {seed}: no round, leave the run out")
    if seed not in baselines:
        raise ValueError(f"{name}, seed {seed}: no baseline, give the metrics of training on all labels")
    if others := [one for one in metrics if one.recall.keys() != baselines[seed].recall.keys()]:
        raise ValueError(
            f"{name}, seed {seed}: classes {', '.join(others[0].recall)}, "
            f"but its baseline has {', '.join(baselines[seed].recall)}"
        )


def _best(
    measure: Measure, class_name: str, metrics: Sequence[RoundMetrics], baseline: RoundMetrics
) -> tuple[float, float | None]:
    """The highest smoothed value of a run, and the baseline's; None where the baseline has none."""
    values = [getattr(one, measure)[class_name] or 0.0 for one in metrics]
    return float(running_median(values).max()), getattr(baseline, measure)[class_name]


def _share_picked(class_name: str, picked: ClassCounts | None, available: ClassCounts | None) -> str:
    if not (picked and available and sum(picked.values()) and sum(available.values())):
        return ""
    of_picks = picked.get(class_name, 0) / sum(picked.values())
    of_all = available.get(class_name, 0) / sum(available.values())
    return f" The class is {of_picks:.0%} of its picks and {of_all:.0%} of the training set."


def _missed(measure: Measure, pairs: Sequence[tuple[float, float | None]], tolerance: float) -> str:
    """What was seen of a measure in the runs, reached and wanted; empty where more than half of them got there."""
    defined = [(reached, wanted) for reached, wanted in pairs if wanted is not None]
    missed = [(reached, wanted) for reached, wanted in defined if reached < wanted - tolerance]
    if not missed or 2 * len(missed) < len(defined):
        return ""
    reached, wanted = max(missed, key=lambda pair: pair[1] - pair[0])
    return f"{measure} in {len(missed)} of {len(defined)} runs, at worst {reached:.3f} of {wanted:.3f}"


def _missed_finding(name: str, class_name: str, seen: Sequence[str], share: str) -> Finding:
    return Finding(
        kind="missed_class",
        message=f"{name} never reaches the baseline's figures of class {class_name!r}: {'; '.join(seen)}.{share}",
        check="If the class is rare, start with more of it, weight the loss, or pick by a strategy that asks for it. "
        "If only one figure falls short, the network trades it for the others: look at the class's AU PRC.",
    )


def few_passes(strategies: Sequence[str], passes: int, batch_size: int) -> tuple[Finding, ...]:
    """Whether ``batch_bald`` has passes enough for its batch: 5 a pick.

    T passes carry at most ``log T`` nats about the labels of a batch. Once the picks have used that up, the rest of the
    batch is picked by noise.

    Args:
        strategies: of the study.
        passes: T, for ``batch_bald``.
        batch_size: images picked in a round.

    Raises:
        ValueError: passes or batch size below 1.

    Source:
        Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158, for the bound; 5 a pick is our rule of thumb.
    """
    if passes < 1 or batch_size < 1:
        raise ValueError(f"give at least 1 pass and a batch of at least 1 image, got {passes} and {batch_size}")
    if "batch_bald" not in strategies or passes >= PASSES_PER_PICK * batch_size:
        return ()
    enough = passes // PASSES_PER_PICK
    smaller = f", or pick batches of {enough} or less" if enough else ""
    return (
        Finding(
            kind="few_passes",
            message=f"batch_bald picked batches of {batch_size} with {passes} passes, which tell at most "
            f"{math.log(passes):.1f} nats about a batch: its later picks may be little better than chance.",
            check=f"Draw {PASSES_PER_PICK * batch_size} passes or more{smaller}.",
        ),
    )


def few_seeds(seeds: int) -> tuple[Finding, ...]:
    """Whether a study has runs enough for a claim: 10 seeds, below which chance alone looks like a result.

    Args:
        seeds: that every strategy was run with.

    Raises:
        ValueError: no seed.
    """
    if seeds < 1:
        raise ValueError(f"a study has at least 1 seed, got {seeds}")
    if seeds >= SEEDS_FOR_A_CLAIM:
        return ()
    # The most extreme of 2^n equally likely signs, on both sides.
    smallest = 2.0 ** (1 - seeds)
    return (
        Finding(
            kind="few_seeds",
            message=f"{seeds} {'seed' if seeds == 1 else 'seeds'}: Wilcoxon's test cannot give less than "
            f"p = {smallest:.2g}, and intervals over so few runs are too narrow.",
            check=f"Run {SEEDS_FOR_A_CLAIM} seeds or more before choosing a strategy by these numbers.",
        ),
    )
