"""``ml-backend compare``: two finished studies side by side, or the strategies of one beside one of them.

Runs are paired where they ran the same seeds on the same data.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from ml_backend.errors import SettingsError, did_you_mean
from ml_backend.schemas import FrozenModel
from ml_backend.simulation.analysis import (
    CONFIDENCE,
    PAIRS_FOR_AN_INTERVAL,
    SEEDS_FOR_A_CLAIM,
    TARGETS,
    Group,
    LabelsRatio,
    PairedDifference,
    areas,
    complete_runs,
    labels_needed_by_run,
    labels_ratio,
    labels_ratio_unpaired,
    learning_curves,
    mean_difference,
    metric_statistics,
    paired_areas,
    tables,
)
from ml_backend.simulation.metrics import METRICS, Metric
from ml_backend.simulation.plan import StudyPlan, differences
from ml_backend.simulation.report import difference_words, p_words, ratio_words
from ml_backend.simulation.run_log import StudyResults
from ml_backend.simulation.study import print_line, print_table, read_study

COMPARED: Final = ("accuracy", "balanced_accuracy", "auroc")
SAME_DATA: Final = ("--task", "--imbalance", "content of --labels")  # what decides the sides and the true classes


class AreaComparison(FrozenModel):
    """Areas under the learning curves of one strategy, over the label counts of both studies; ``second - first``."""

    metric: str
    strategy: str
    variant: str
    first: float  # mean over the seeds, in the unit of the metric
    second: float
    difference: float
    low: float | None  # of the 95 % interval; None for a single seed
    high: float | None
    p: float | None  # Wilcoxon's signed-rank test of pairs, Welch's t test otherwise
    seeds: tuple[int, int]  # compared, of each study


class LabelsComparison(FrozenModel):
    """Labels that one strategy needed for one target, ``second / first``; None for a number that is not finite.

    A ``high`` of None beside a ``low`` is infinite: the interval has no upper end.
    """

    target: str
    strategy: str
    variant: str
    first: float | None  # median over the seeds
    second: float | None
    ratio: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, int]


class Comparison(FrozenModel):
    """Two studies side by side.

    Attributes:
        studies: folders.
        commands: of the studies.
        paired: whether runs of one seed are compared in pairs.
        unpaired_because: why not; empty where they are.
        differences: option -> its values in both studies.
        only_in: folder -> strategies that the other study does not have.
        unit: what labels needed and curves count: ``labels`` or ``reads``.
        has_targets: whether the baselines, from which the targets follow, were trained.
        reference: strategy of one study with which its others are compared; empty for two studies.
    """

    studies: tuple[str, str]
    commands: tuple[str, str]
    protocol: str
    paired: bool
    unpaired_because: str
    differences: dict[str, tuple[str, str]]
    only_in: dict[str, tuple[str, ...]]
    areas: tuple[AreaComparison, ...]
    labels_needed: tuple[LabelsComparison, ...]
    unit: str = "labels"
    has_targets: bool = True
    reference: str = ""


def compare_strategies(study: Path, reference: str) -> Comparison:
    """Compare the strategies of a finished study with one of them, seed by seed; no run is repeated.

    Args:
        study: its ``--out``.
        reference: strategy that takes the place of the first study.

    Raises:
        SettingsError: the folder holds no finished study with a network, or it has no such strategy, or no other.
    """
    _, results = _read(study)
    kept, _ = complete_runs(results)
    names = dict.fromkeys(row.strategy for row in kept.rounds)
    if reference not in names:
        raise SettingsError(
            f"--reference {reference!r}: {study} has no rounds of it; expected one of {', '.join(names)}"
            f"{did_you_mean(reference, names)}"
        )
    if len(names) < 2:
        raise SettingsError(
            f"{study} has no strategy besides {reference}: run it with more of --strategy, or give two studies"
        )
    statistics = [metric_statistics(metric, kept) for metric in METRICS if metric.name in COMPARED]
    pairs = [(group, Group(reference, group.variant)) for group in statistics[0].groups if group.strategy != reference]
    return Comparison(
        studies=(str(study), str(study)),
        commands=(results.summary.command, results.summary.command),
        protocol=results.summary.protocol,
        paired=True,
        unpaired_because="",
        differences={},
        only_in={},
        areas=tuple(
            row
            for one in statistics
            for curves in [tables(one.curves)]
            for group, other in pairs
            if {group, other} <= curves.keys()
            for row in _area_row(one.metric, group, curves[other], curves[group], paired=True)
        ),
        labels_needed=tuple(
            row
            for group, other in pairs
            for target in TARGETS
            for sides in [(statistics[0].labels_of(one, target) for one in (other, group))]
            for row in _labels_row(group, target, *sides, paired=True)
        ),
        unit=results.summary.unit,
        has_targets=bool(kept.baselines),
        reference=reference,
    )


def compare(first: Path, second: Path) -> Comparison:
    """Compare two finished studies, strategy by strategy.

    Where both have the same labels, task and prevalence, and a seed in common, runs of one seed are compared in pairs,
    with the baselines of the first study as targets of both. Otherwise samples are independent, and each study has its
    own baselines.

    Args:
        first: ``--out`` of the study that is the reference.
        second: of the other.

    Raises:
        SettingsError: a folder holds no finished study with a network, both are the same, the studies have no strategy
            in common, or their figures cannot be compared: other classes, or another way of counting labels.
    """
    (plan, one), (other_plan, other) = (_read(folder) for folder in (first, second))
    if first.resolve() == second.resolve():
        raise SettingsError(
            f"{first} is compared with itself: give another study, or this one alone to compare its strategies"
        )
    for option, mine, theirs in (
        ("--task", one.summary.classes, other.summary.classes),
        ("--start", plan.start, other_plan.start),
        ("--count", plan.count, other_plan.count),
    ):
        if mine != theirs:
            raise SettingsError(
                f"{first} and {second} cannot be compared: {option} gives {_words(mine)} in the first and "
                f"{_words(theirs)} in the second; run one of them again with the {option} of the other"
            )
    differ = {name: (_words(mine), _words(theirs)) for name, mine, theirs in differences(plan, other_plan)}
    reason = _unpaired_because(plan, other_plan, differ)
    kept = [complete_runs(results)[0] for results in (one, other)]
    groups = [{row.strategy for row in results.rounds} for results in kept]
    only = ((first, groups[0] - groups[1]), (second, groups[1] - groups[0]))
    if not groups[0] & groups[1]:
        lists = " and ".join(", ".join(sorted(names)) for names in groups)
        raise SettingsError(
            f"{first} and {second} have no strategy in common ({lists}): run one of them again with more of --strategy"
        )
    metrics = [metric for metric in METRICS if metric.name in COMPARED]
    return Comparison(
        studies=(str(first), str(second)),
        commands=(one.summary.command, other.summary.command),
        protocol=one.summary.protocol,
        paired=not reason,
        unpaired_because=reason,
        differences=differ,
        only_in={str(folder): tuple(sorted(names)) for folder, names in only if names},
        areas=tuple(row for metric in metrics for row in _areas(metric, kept[0], kept[1], paired=not reason)),
        labels_needed=tuple(_labels(metrics[0], kept[0], kept[1], paired=not reason)),
        unit=one.summary.unit,
        has_targets=bool(one.baselines and (other.baselines or not reason)),
    )


def _read(study: Path) -> tuple[StudyPlan, StudyResults]:
    plan, results = read_study(study)
    if not results.rounds:
        raise SettingsError(f"no network was trained in {study}: run it again with a larger --budget")
    return plan, results


def _unpaired_because(plan: StudyPlan, other: StudyPlan, differ: Mapping[str, object]) -> str:
    if unlike := [name for name in differ if name.startswith(SAME_DATA)]:
        return f"{' and '.join(unlike)} {'differs' if len(unlike) == 1 else 'differ'}"
    return "" if set(plan.seeds) & set(other.seeds) else "no seed is in both studies"


def _areas(metric: Metric, first: StudyResults, second: StudyResults, *, paired: bool) -> list[AreaComparison]:
    found = [tables(learning_curves(results, lambda row: metric.of(row.metrics))) for results in (first, second)]
    groups = [group for group in found[0] if group in found[1]]
    return [
        row for group in groups for row in _area_row(metric, group, *(side[group] for side in found), paired=paired)
    ]


def _area_row(
    metric: Metric, group: Group, one: pd.DataFrame, other: pd.DataFrame, *, paired: bool
) -> list[AreaComparison]:
    if paired:
        if not (pairs := paired_areas(one, other)):
            return []
        mine, theirs = np.array(pairs).T
        ahead = mean_difference(theirs - mine)
    else:
        shared = one.index.intersection(other.index)
        shared = shared[(one.loc[shared].notna().all(axis=1) & other.loc[shared].notna().all(axis=1)).to_numpy()]
        if shared.empty or not one.shape[1]:
            return []
        mine, theirs = (areas(side.loc[shared]).to_numpy() for side in (one, other))
        ahead = _welch(mine, theirs)
    return [
        AreaComparison(
            metric=metric.name,
            strategy=group.strategy,
            variant=group.variant,
            first=mine.mean(),
            second=theirs.mean(),
            difference=ahead.mean,
            low=ahead.low,
            high=ahead.high,
            p=ahead.p,
            seeds=(len(mine), len(theirs)),
        )
    ]


def _welch(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> PairedDifference:
    """Difference of the means of independent samples, with Welch's interval; without one for a single seed."""
    difference, pairs = float(second.mean() - first.mean()), min(len(first), len(second))
    if pairs < 2 or not (np.ptp(first) or np.ptp(second)):
        return PairedDifference(difference, None, None, None, pairs)
    test = stats.ttest_ind(second, first, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    return PairedDifference(difference, float(interval.low), float(interval.high), float(test.pvalue), pairs)


def _labels(metric: Metric, first: StudyResults, second: StudyResults, *, paired: bool) -> list[LabelsComparison]:
    by_group = []
    for results in (first, second):
        source = first if paired else results
        levels = {(r.variant, r.seed): v for r in source.baselines if (v := metric.of(r.metrics)) is not None}
        needed = labels_needed_by_run(learning_curves(results, lambda row: metric.of(row.metrics)), levels)
        by_group.append({Group(*key): runs.set_index("seed") for key, runs in needed.groupby(["strategy", "variant"])})
    return [
        row
        for group in by_group[0]
        if group in by_group[1]
        for target in TARGETS
        for row in _labels_row(group, target, *(side[group][target] for side in by_group), paired=paired)
    ]


def _labels_row(
    group: Group, target: str, mine: "pd.Series[float]", theirs: "pd.Series[float]", *, paired: bool
) -> list[LabelsComparison]:
    if paired:
        mine, theirs = mine.align(theirs, join="inner")
    if not len(mine) or (np.isinf(mine.median()) and np.isinf(theirs.median())):
        return []
    ratio = (labels_ratio if paired else labels_ratio_unpaired)(theirs, mine)
    medians = (None if np.isinf(side.median()) else float(side.median()) for side in (mine, theirs))
    return [
        LabelsComparison(
            target=target,
            strategy=group.strategy,
            variant=group.variant,
            **dict(zip(("first", "second"), medians, strict=True)),
            **{name: _finite(getattr(ratio, name, None)) for name in ("low", "high")},
            ratio=_finite(ratio.median if ratio else None),
            seeds=(len(mine), len(theirs)),
        )
    ]


def print_comparison(found: Comparison, console: Console) -> None:
    """Print a comparison for a reader."""
    say, sides, reference = partial(print_line, console), ("study 1", "study 2"), found.reference
    minus, by = "2 minus 1", "2 / 1"
    if reference:
        sides, minus, by = (reference, "this one"), f"minus {reference}", f"/ {reference}"
        say(f"study: {found.studies[0]}")
    else:
        for place, folder in enumerate(found.studies, start=1):
            say(f"study {place}: {folder}")
    say(found.protocol)
    for name, (mine, theirs) in found.differences.items():
        say(f"{name}: {mine} | {theirs}")
    for folder, names in found.only_in.items():
        say(f"only in {folder}: {', '.join(names)}")
    if reference:
        say(f"Every strategy against {reference}; runs of one seed are compared.")
    elif found.paired:
        say("Paired: the same data; runs of one seed are compared, with the baselines of study 1 as targets.")
    else:
        say(f"Not paired, since {found.unpaired_because}: the intervals are those of independent runs, and wider.")
    _print_tables(found, console, sides, minus, by)
    if not found.has_targets:
        whose = "the study has" if reference else "study 1 has" if found.paired else "one of the studies has"
        say(
            f"{found.unit.capitalize()} needed: not known, since {whose} no baseline, a network trained on all labels; "
            "repeat its command without --no-baseline."
        )
    elif not found.labels_needed:
        say(
            f"{found.unit.capitalize()} needed: no strategy reached a target of accuracy in more than half of its runs."
        )
    for answer in _answers(found):
        say(answer)


def _answers(found: Comparison) -> Iterator[str]:
    """A sentence for each strategy: whether its curve of accuracy is higher or lower, as far as the interval shows."""
    for row in found.areas:
        if row.metric != COMPARED[0]:
            continue
        one, other = f"{_name(row)} of study 2", f"{_name(row)} of study 1"
        if found.reference:
            one, other = _name(row), str(Group(found.reference, row.variant))
        ahead = PairedDifference(row.difference, row.low, row.high, row.p, min(row.seeds))
        measured = f"{difference_words(ahead)}, averaged over the learning curve, {ahead.pairs} seeds."
        if row.low is None or row.high is None or row.low <= 0 <= row.high:
            yield f"Answer: no difference in accuracy between {one} and {other} is shown: {measured}"
        else:
            is_higher = "higher" if row.low > 0 else "lower"
            yield f"Answer: the accuracy of {one} is {is_higher} than that of {other}: {measured}"


def _print_tables(found: Comparison, console: Console, sides: tuple[str, str], minus: str, by: str) -> None:
    means, medians = ([f"{side}, {name}" for side in sides] for name in ("mean", "median"))
    about = "Area: mean height of the learning curve, in the unit of the metric; 0.01 is one point."
    curves = Table("area under the curve of", "strategy", *means, f"{minus}, mean, 95 % interval", "p", "seeds",
                   caption=Text(about), caption_justify="left")  # fmt: skip
    for area in found.areas:
        ahead = PairedDifference(area.difference, area.low, area.high, area.p, area.seeds[0])
        named, ends = _name(area), (f"{area.first:.3f}", f"{area.second:.3f}")
        curves.add_row(area.metric, named, *ends, difference_words(ahead), p_words(ahead), _seeds(area.seeds))
    print_table(curves, console)
    needed = Table(f"{found.unit} for (accuracy)", "strategy", *medians, f"{by}, median, 95 % interval", "seeds")
    for row in found.labels_needed:
        labels = tuple("never" if one is None else f"{one:.0f}" for one in (row.first, row.second))
        high = math.inf if row.high is None and row.low is not None else row.high
        ratio = None if row.ratio is None else LabelsRatio(row.ratio, row.low, high, min(row.seeds))
        needed.add_row(row.target, _name(row), *labels, ratio_words(ratio) if ratio else "-", _seeds(row.seeds))
    if found.labels_needed:
        print_table(needed, console)
    if (seeds := min((min(area.seeds) for area in found.areas), default=SEEDS_FOR_A_CLAIM)) < SEEDS_FOR_A_CLAIM:
        need = "" if seeds >= PAIRS_FOR_AN_INTERVAL else f" An interval and a p of pairs need {PAIRS_FOR_AN_INTERVAL}."
        claim = f"Few seeds: {seeds} of the {SEEDS_FOR_A_CLAIM} that a claim needs."
        print_line(console, f"{claim}{need} A larger --seeds adds to a study.")


def _name(row: AreaComparison | LabelsComparison) -> str:
    return str(Group(row.strategy, row.variant))


def _seeds(seeds: tuple[int, int]) -> str:
    return " and ".join(map(str, dict.fromkeys(seeds)))


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
