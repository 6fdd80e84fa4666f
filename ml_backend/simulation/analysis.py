"""Statistics of a study: learning curves, labels needed, areas under the curves, paired differences, and findings.

Curves are a data frame with one row a round of a run: ``strategy``, ``variant``, ``seed``, ``labels``, ``value``
(higher is better) and ``train_images``, ordered by strategy and variant as the study names them, seed and labels.
Runs of one seed share split and start set, and are compared in pairs.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import bootstrap, quantile_test, wilcoxon

from ml_backend.registry import PASSES_PER_PICK
from ml_backend.simulation.metrics import Metric, RoundMetrics
from ml_backend.simulation.plan import RANDOM
from ml_backend.simulation.run_log import AnyRound, BatchRow, RoundRow, StudyResults, to_frame

WINDOW: Final = 3  # rounds of the running median
RESAMPLES: Final = 9_999
CONFIDENCE: Final = 0.95
SHORTER: Final = 0.1  # of the rounds of the longest run of the same strategy
SEEDS_FOR_A_CLAIM: Final = 20
PAIRS_FOR_AN_INTERVAL: Final = 6  # fewer have no exact 95 % interval of the median, and no p below 0.05
EARLY: Final = 100  # labels
QUARTILES: Final = (0.25, 0.5, 0.75)
WIDE: Final = 0.5  # of the median
TOLERANCE: Final = 0.02
MEASURES: Final = ("precision", "recall", "specificity")

TARGETS: Final[Mapping[str, Callable[[float], float]]] = {
    "95 % of the baseline": lambda baseline: 0.95 * baseline,
    "baseline - 1 point": lambda baseline: baseline - 0.01,
    "baseline": lambda baseline: baseline,
}
"""Values to reach, given what training on all labels reaches; a point is 0.01 of a metric that is a fraction."""

Baselines: TypeAlias = Mapping[tuple[str, int], float]
"""The metric of training on all labels, by variant and seed."""


class Group(NamedTuple):
    """Runs that differ by their seed only: a strategy, and what else the study compares (empty without)."""

    strategy: str
    variant: str

    def __str__(self) -> str:
        return f"{self.strategy}, {self.variant}" if self.variant else self.strategy


class RunKey(NamedTuple):
    """A run of a study."""

    group: Group
    seed: int


class Quartiles(NamedTuple):
    """Quartiles over runs; ``inf`` where so many runs never got there."""

    q25: float
    median: float
    q75: float


def quartiles(values: Sequence[float] | npt.NDArray[np.float64]) -> Quartiles:
    """Quartiles with linear interpolation; between a number and infinity lies infinity.

    Source:
        Hyndman & Fan 1996, doi:10.2307/2684934, definition 7.
    """
    low, high = (np.quantile(values, QUARTILES, method=method) for method in ("lower", "higher"))
    between = (len(values) - 1) * np.array(QUARTILES) % 1
    with np.errstate(invalid="ignore"):  # inf - inf
        found = low + between * (high - low)
    return Quartiles(*np.where(np.isinf(high), math.inf, found).tolist())


def learning_curves(results: StudyResults, value: Callable[[RoundRow], float | None]) -> pd.DataFrame:
    """Curves of any quantity.

    Args:
        results: rounds in any order.
        value: of a round; rounds in which it is None or not finite are left out.
    """
    summary = results.summary
    strategies = list(dict.fromkeys([*summary.strategies, *(row.strategy for row in results.rounds)]))
    variants = list(dict.fromkeys([*summary.variants, *(row.variant for row in results.rounds)]))
    rows = [
        (row.strategy, row.variant, row.seed, labels, found, labels / row.share if row.share else labels)
        for row in sorted(
            results.rounds,
            key=lambda row: (strategies.index(row.strategy), variants.index(row.variant), row.seed, row.round),
        )
        if (found := value(row)) is not None and math.isfinite(found)
        for labels in [results.labels(row)]
    ]
    curves = pd.DataFrame(rows, columns=["strategy", "variant", "seed", "labels", "value", "train_images"])
    curves["train_images"] = curves["train_images"].astype(float).round()
    # A round without a new label repeats the one before.
    return curves.drop_duplicates(["strategy", "variant", "seed", "labels"], keep="last")


def tables(curves: pd.DataFrame) -> dict[Group, pd.DataFrame]:
    """Values by labels (rows) and seed (columns), NaN where a run has none, of every group in the order of curves."""
    return {
        Group(*key): runs.pivot(index="labels", columns="seed", values="value")
        for key, runs in curves.groupby(["strategy", "variant"], sort=False)
    }


def bands(curves: pd.DataFrame) -> dict[Group, pd.DataFrame]:
    """Quartiles over the seeds, by labels, at the label counts that all runs of a group have.

    Returns:
        Columns ``q25``, ``median``, ``q75`` and ``share`` (of the training images, whose number may differ by split);
        no entry for a group whose runs share no label count.
    """
    found = {}
    for group, table in tables(curves).items():
        shared = table.dropna()
        if shared.empty:
            continue
        band = shared.quantile(QUARTILES, axis=1).T.set_axis(["q25", "median", "q75"], axis=1)
        runs = curves[(curves["strategy"] == group.strategy) & (curves["variant"] == group.variant)]
        found[group] = band.assign(share=band.index / runs.groupby("seed")["train_images"].last().median())
    return found


def running_median(values: pd.Series, window: int = WINDOW) -> pd.Series:
    """Median over the ``window`` rounds around each round; at both ends, over those of them that there are."""
    return values.rolling(window, center=True, min_periods=1).median()


def labels_needed(values: pd.Series, target: float, window: int = WINDOW) -> float:
    """The first label count at which a run, smoothed by ``running_median``, reaches the target; ``inf`` for never.

    Smoothed, because of 40 noisy rounds some exceed the target by luck. Whether the curve stays above it is not
    considered, and counts between two rounds are not interpolated: labels come in batches.

    Args:
        values: of one run, indexed by labels.
        target: value to reach.
        window: odd number of rounds.
    """
    return _first_to_reach(running_median(values, window), target)


def _first_to_reach(values: pd.Series, target: float) -> float:
    reached = values.to_numpy() >= target
    return float(values.index[reached.argmax()]) if reached.any() else math.inf


@dataclass(frozen=True, slots=True)
class LabelsNeeded:
    """Labels that the runs of one group needed for one target.

    Attributes:
        target: a key of ``TARGETS``.
        labels: quartiles over all runs; a run that never got there counts as ``inf`` and is not dropped.
        share: likewise, as fractions of each run's training images.
        never: runs that did not get there, of ``runs``.
    """

    group: Group
    target: str
    labels: Quartiles
    share: Quartiles
    runs: int
    never: int


def labels_needed_by_run(
    curves: pd.DataFrame, baselines: Baselines, untrained: Collection[RunKey] = ()
) -> pd.DataFrame:
    """Labels needed by run and target; every run is compared with the baseline of its own variant and seed.

    Args:
        curves: of one metric; runs without a baseline are left out.
        baselines: of the same metric.
        untrained: runs without a curve, which never got there.

    Returns:
        Columns ``strategy``, ``variant``, ``seed``, ``train_images`` (NaN for an untrained run) and the targets.
    """
    rows = []
    for key, run in curves.groupby(["strategy", "variant", "seed"], sort=False):
        if (baseline := baselines.get(key[1:])) is not None:
            values = running_median(pd.Series(run["value"].to_numpy(), run["labels"].to_numpy()))
            needed = (_first_to_reach(values, value(baseline)) for value in TARGETS.values())
            rows.append((*key, run["train_images"].iloc[-1], *needed))
    for group, seed in untrained:
        if (group.variant, seed) in baselines:
            rows.append((*group, seed, math.nan, *[math.inf] * len(TARGETS)))
    columns = ["strategy", "variant", "seed", "train_images", *TARGETS]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(TARGETS, float))


def labels_needed_table(by_run: pd.DataFrame) -> tuple[LabelsNeeded, ...]:
    """Labels needed by group and target, from ``labels_needed_by_run``; no row for a group without any curve."""
    rows = []
    for key, runs in by_run.groupby(["strategy", "variant"], sort=False):
        if runs["train_images"].isna().all():
            continue
        for target in TARGETS:
            needed = runs[target].to_numpy()
            shares = np.where(np.isinf(needed), math.inf, needed / runs["train_images"])
            never = int(np.isinf(needed).sum())
            rows.append(LabelsNeeded(Group(*key), target, quartiles(needed), quartiles(shares), len(runs), never))
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class LabelsRatio:
    """Labels needed by one set of runs, divided by those of another; 1 where both need as many.

    Attributes:
        median: over the pairs; ``inf`` where the first did not get there in most of them, 0 where the second did not.
        low: lower end of the 95 % interval of the median; None where there are too few runs for one.
        high: its upper end.
        pairs: seeds; of unpaired runs, the smaller number of the two.
        never: pairs in which one of the two did not get there, and counts as infinitely many labels.
    """

    median: float
    low: float | None
    high: float | None
    pairs: int
    never: int = 0


def labels_ratio(first: pd.Series, second: pd.Series) -> LabelsRatio | None:
    """Median over the seeds of labels needed, first divided by second; None without a pair.

    The interval is exact for any distribution: two of the ordered ratios, by the binomial distribution. It needs 6
    pairs. Pairs in which neither run got there say nothing about the ratio, and are left out. With fewer than 6 pairs,
    of which one run did not get there, there is no ratio: it would be a bound at best.

    Args:
        first: labels needed by seed, ``inf`` for never.
        second: likewise; seeds of one side only are left out.

    Source:
        Conover 1999, Practical Nonparametric Statistics, section 3.2; SciPy.
    """
    one, other = first.align(second, join="inner")
    known = np.isfinite(one) | np.isfinite(other)
    ratios = (one[known] / other[known]).to_numpy()
    never = int((np.isinf(ratios) | (ratios == 0)).sum())
    if len(ratios) < (PAIRS_FOR_AN_INTERVAL if never else 1):
        return None
    # As between a number and infinity lies infinity, between 0 and a number lies 0.
    median = quartiles(ratios).median if np.quantile(ratios, 0.5, method="lower") else 0.0
    interval = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(CONFIDENCE)
    low, high = (None if math.isnan(end) else float(end) for end in (interval.low, interval.high))
    return LabelsRatio(median, low, high, len(ratios), never)


def labels_ratio_unpaired(first: pd.Series, second: pd.Series, seed: int = 0) -> LabelsRatio | None:
    """Ratio of the medians of independent runs, with its 95 % bootstrap interval; None where it is not defined.

    Args:
        first: labels needed by run, ``inf`` for never.
        second: likewise.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    sides = [side.to_numpy() for side in (first, second)]
    one, other = (np.median(rng.choice(side, (RESAMPLES, len(side))), axis=1) for side in sides)
    with np.errstate(invalid="ignore"):  # never / never
        ratio, ratios = np.median(sides[0]) / np.median(sides[1]), one / other
    if np.isnan(ratio):
        return None
    enough = min(map(len, sides)) > 1 and not np.isnan(ratios).any()
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(ratios, tails, method="nearest").tolist() if enough else (None, None)
    return LabelsRatio(float(ratio), low, high, min(map(len, sides)))


def areas(table: pd.DataFrame) -> pd.Series:
    """Mean height of every column: the trapezoid rule over the labels of the index, divided by their range.

    A constant curve c gives c, in the unit of the metric; a single row gives its values. Areas can be compared over
    the same label counts only.

    Args:
        table: at least one row, no NaN.
    """
    if len(table) == 1:
        return table.iloc[0]
    labels = table.index.to_numpy(dtype=float)
    return pd.Series(np.trapezoid(table, labels, axis=0) / (labels[-1] - labels[0]), table.columns)


@dataclass(frozen=True, slots=True)
class Areas:
    """Quartiles of the areas over the seeds, between the label counts ``first`` and ``last`` that all runs have."""

    first: int
    last: int
    by_group: Mapping[Group, Quartiles]


def areas_of(curves: pd.DataFrame) -> Areas | None:
    """Areas of every group over the label counts of all runs; None where these share none."""
    if curves.empty:
        return None
    found = tables(curves)
    shared = pd.concat(found.values(), axis=1, keys=[str(group) for group in found]).dropna()
    if shared.empty:
        return None
    of_runs = areas(shared)
    by_group = {group: quartiles(of_runs[str(group)].to_numpy()) for group in found}
    return Areas(int(shared.index.min()), int(shared.index.max()), by_group)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference between the areas under the curves of two groups, first minus second.

    Attributes:
        mean: over the pairs, in the unit of the metric; above 0 where the first is better.
        low: lower end of the 95 % bootstrap interval of the mean; None for fewer than 6 pairs.
        high: its upper end.
        p: two-sided, of Wilcoxon's signed-rank test; None for fewer than 6 pairs, and where every pair is equal. Not
            corrected for the number of strategies that were compared.
        pairs: seeds.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0) -> PairedDifference:
    """Mean difference of the areas, seed by seed, with an interval and a test.

    The areas of a pair are taken over the label counts that both runs have. The interval is the percentile bootstrap of
    the mean over seeds: too narrow for few of them, by ``sqrt((n - 1) / n)`` at least.

    Args:
        first: values by labels and seed, see ``tables``.
        second: likewise; seeds of one side only are left out.
        seed: of the resampling.

    Raises:
        ValueError: no seed in common, or none in which both have a value at the same labels.

    Source:
        Efron & Tibshirani 1993, chapter 13; Wilcoxon 1945, doi:10.2307/3001968 (equal pairs are left out).
    """
    found = paired_areas(first, second)
    if not found:
        raise ValueError(
            f"no pair of runs to compare: seeds {list(first.columns)} and {list(second.columns)} share no label count"
        )
    return mean_difference([of_first - of_second for of_first, of_second in found], seed)


def paired_areas(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[float, float]]:
    """Areas of the two runs of every seed of both, over the label counts that both runs have; none without such."""
    found = []
    one, other = first.align(second, join="inner")
    for pair in np.stack([one, other]).T:
        shared = ~np.isnan(pair).any(axis=1)
        if shared.any():
            of_first, of_second = areas(pd.DataFrame(pair[shared], one.index[shared]))
            found.append((float(of_first), float(of_second)))
    return found


def mean_difference(found: Sequence[float], seed: int = 0) -> PairedDifference:
    """Mean of paired differences, at least one, as ``paired_difference`` has it."""
    differences = np.array(found)
    mean = float(differences.mean())
    if len(found) < PAIRS_FOR_AN_INTERVAL:
        return PairedDifference(mean, None, None, None, len(found))
    interval = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    # Without a difference there is nothing to rank, and SciPy would divide 0 by 0.
    p = float(wilcoxon(differences).pvalue) if differences.any() else None
    return PairedDifference(mean, float(interval.low), float(interval.high), p, len(found))


def differences_from_random(curves: pd.DataFrame) -> dict[Group, PairedDifference]:
    """Every group against ``random`` of its variant, over the seeds that can be paired; none for other groups."""
    found = tables(curves)
    compared = {}
    for group, table in found.items():
        reference = found.get(Group(RANDOM, group.variant))
        if group.strategy == RANDOM or reference is None:
            continue
        if (table * reference).notna().any(axis=None):
            compared[group] = paired_difference(table, reference)
    return compared


def first_ranking(results: StudyResults) -> dict[RunKey, float]:
    """Labels of every run when its first network ranked the pool; ``inf`` where none did."""
    found: dict[RunKey, float] = {}
    for row in results.all_rounds:
        key = RunKey(Group(row.strategy, row.variant), row.seed)
        labels = float(results.labels(row)) if isinstance(row, RoundRow) else math.inf
        found[key] = min(found.get(key, math.inf), labels)
    return found


def first_ranking_quartiles(results: StudyResults) -> dict[Group, Quartiles]:
    """Labels until the first ranking by a network: quartiles over the seeds, by group."""
    runs: dict[Group, list[float]] = {}
    for (group, _), labels in first_ranking(results).items():
        runs.setdefault(group, []).append(labels)
    return {group: quartiles(labels) for group, labels in runs.items()}


@dataclass(frozen=True, slots=True)
class Early:
    """Mean balanced accuracy of the groups over the first labels.

    Attributes:
        labels: from none to so many, at most ``EARLY``: fewer where a run ended earlier.
        by_group: quartiles over the seeds.
        differences: from ``random`` of the variant, over the seeds of both.
    """

    labels: int
    by_group: Mapping[Group, Quartiles]
    differences: Mapping[Group, PairedDifference]


def early(results: StudyResults) -> Early | None:
    """Mean balanced accuracy over the first labels, every label counted; None where a run ended without one.

    A step function of the labels: the network that was trained last, and chance level, 1 / C, before the first one.

    Args:
        results: complete runs.
    """
    runs: dict[RunKey, list[tuple[int, float]]] = {}
    chance = 1.0 / len(results.summary.classes)
    for row in results.all_rounds:
        value = row.metrics.balanced_accuracy if isinstance(row, RoundRow) else chance
        runs.setdefault(RunKey(Group(row.strategy, row.variant), row.seed), [(0, chance)]).append(
            (results.labels(row), value)
        )
    end = min([EARLY, *(steps[-1][0] for steps in runs.values())])
    if not runs or not end:
        return None
    means: dict[Group, dict[int, float]] = {}
    for (group, seed), steps in runs.items():
        begins = np.minimum([labels for labels, _ in steps], end)
        widths = np.diff(begins, append=end)
        means.setdefault(group, {})[seed] = float(widths @ np.array([value for _, value in steps]) / end)
    differences = {}
    for group, of_seed in means.items():
        reference = means.get(Group(RANDOM, group.variant), {})
        if group.strategy != RANDOM and (
            pairs := [of_seed[seed] - reference[seed] for seed in of_seed if seed in reference]
        ):
            differences[group] = mean_difference(pairs)
    return Early(end, {group: quartiles([*of_seed.values()]) for group, of_seed in means.items()}, differences)


@dataclass(frozen=True, slots=True, eq=False)
class MetricStatistics:
    """Statistics of one metric of a study; of a metric that is better low, curves, bands and baselines only.

    Attributes:
        curves: one a run.
        bands: see ``bands``.
        baselines: where they are defined.
        needed_by_run: see ``labels_needed_by_run``.
        needed: see ``labels_needed_table``.
        areas: None where the runs share no label count.
        differences: from ``random``, see ``differences_from_random``.
    """

    metric: Metric
    curves: pd.DataFrame
    bands: Mapping[Group, pd.DataFrame]
    baselines: Baselines
    needed_by_run: pd.DataFrame
    needed: tuple[LabelsNeeded, ...]
    areas: Areas | None
    differences: Mapping[Group, PairedDifference]

    @property
    def groups(self) -> tuple[Group, ...]:
        """In the order of the study."""
        return tuple(tables(self.curves))

    @property
    def targets(self) -> dict[bool, list[str]]:
        """Those that any group reached in more than half of its runs (True), and the others (False)."""
        found: dict[bool, list[str]] = {True: [], False: []}
        for target in dict.fromkeys(row.target for row in self.needed):
            found[any(math.isfinite(row.labels.median) for row in self.needed_for(target).values())].append(target)
        return found

    def needed_for(self, target: str) -> dict[Group, LabelsNeeded]:
        """Labels needed for one target."""
        return {row.group: row for row in self.needed if row.target == target}

    def labels_of(self, group: Group, target: str) -> pd.Series:
        """Labels that the runs of a group needed for one target, by seed."""
        runs = self.needed_by_run
        return runs[(runs["strategy"] == group.strategy) & (runs["variant"] == group.variant)].set_index("seed")[target]

    def baseline(self, variant: str) -> float | None:
        """Median of the baselines over the seeds."""
        values = [value for (of, _), value in self.baselines.items() if of == variant]
        return float(np.median(values)) if values else None


def metric_statistics(metric: Metric, results: StudyResults) -> MetricStatistics:
    """Statistics of a metric.

    Args:
        metric: defined in at least one round.
        results: complete runs, see ``complete_runs``.
    """
    curves = learning_curves(results, lambda row: metric.of(row.metrics))
    untrained = [run for run, labels in first_ranking(results).items() if math.isinf(labels)]
    compared = curves if metric.higher_is_better else curves.iloc[:0]
    baselines = {
        (row.variant, row.seed): value for row in results.baselines if (value := metric.of(row.metrics)) is not None
    }
    needed_by_run = labels_needed_by_run(compared, baselines, untrained=untrained)
    return MetricStatistics(
        metric=metric,
        curves=curves,
        bands=bands(curves),
        baselines=baselines,
        needed_by_run=needed_by_run,
        needed=labels_needed_table(needed_by_run),
        areas=areas_of(compared),
        differences=differences_from_random(compared),
    )


def complete_runs(results: StudyResults) -> tuple[StudyResults, dict[str, tuple[int, int]]]:
    """Leave out incomplete runs: a tenth of the rounds shorter than the longest run of their group, or more.

    A band needs a value of every seed, and a short run would end it for all. Seeds may differ by a round, as their
    splits do.

    Returns:
        The rest, and what was left out: run -> its rounds, and those of the longest.
    """
    rounds: dict[Group, Counter[int]] = {}
    for row in results.all_rounds:
        runs = rounds.setdefault(Group(row.strategy, row.variant), Counter())
        runs[row.seed] = max(runs[row.seed], row.round)
    left_out = {
        (group, seed): (count, max(runs.values()))
        for group, runs in rounds.items()
        for seed, count in sorted(runs.items())
        if count < max(runs.values()) - max(1.0, SHORTER * max(runs.values()))
    }

    def stays(row: AnyRound | BatchRow) -> bool:
        return (Group(row.strategy, row.variant), row.seed) not in left_out

    kept = replace(
        results,
        rounds=tuple(filter(stays, results.rounds)),
        batches=tuple(filter(stays, results.batches)),
        cold=tuple(filter(stays, results.cold)),
    )
    return kept, {f"{group}, seed {seed}": counts for (group, seed), counts in left_out.items()}


def rarest_class(results: StudyResults) -> str | None:
    """The class with the fewest training images, the least severe of several; None where no count is known."""
    counts = results.summary.labels_per_class.get("train", {})
    return min((name for name in results.summary.classes if name in counts), key=counts.__getitem__, default=None)


def picked_share_curves(results: StudyResults, class_name: str) -> pd.DataFrame:
    """Curves of the fraction of a class among all images that a run has picked so far, without its start set."""
    shares = {}
    if results.batches:
        picks = to_frame(results.batches)
        hits = (picks["label"] == class_name).groupby([picks["run"], picks["round"]]).agg(["sum", "count"])
        totals = hits.groupby(level="run").cumsum()
        shares = (totals["sum"] / totals["count"]).to_dict()
    return learning_curves(results, lambda row: shares.get((row.run, row.round)))


def picked_median_curves(results: StudyResults, column: Literal["epistemic", "aleatoric"]) -> pd.DataFrame:
    """Curves of the median over the images that each round picked."""
    medians = {}
    if results.batches:
        medians = to_frame(results.batches).astype({column: float}).groupby(["run", "round"])[column].median().to_dict()
    return learning_curves(results, lambda row: medians.get((row.run, row.round)))


Facts: TypeAlias = dict[str, Any]
"""Numbers and names of something to know before believing a study; ``templates/report.html`` has the words."""


def findings(
    results: StudyResults, primary: MetricStatistics, incomplete: Mapping[str, tuple[int, int]]
) -> dict[str, list[Facts]]:
    """Kind -> its findings in a study, the most serious kind first.

    Args:
        results: complete runs.
        primary: the metric by which strategies are compared with ``random``.
        incomplete: runs that were left out, see ``complete_runs``.
    """
    summary, groups = results.summary, primary.groups
    runs = [key for key, _ in primary.curves.groupby(["strategy", "variant", "seed"], sort=False)]
    without = [f"{Group(*key[:2])}, seed {key[2]}" for key in runs if key[1:] not in primary.baselines]
    seeds = min(table.shape[1] for table in tables(primary.curves).values())
    level = random_level(primary.differences)
    found: dict[str, list[Facts]] = {
        "incomplete_runs": [{"runs": incomplete}] if incomplete else [],
        "no_baseline": [{"without": without, "runs": len(runs)}] if without else [],
        "no_random": [] if any(group.strategy == RANDOM for group in groups) else [{}],
        # Wilcoxon's smallest p: of 2^n equally likely sign patterns the most extreme, on both sides.
        "few_seeds": [{"seeds": seeds, "p": 2.0 ** (1 - seeds)}] if seeds < SEEDS_FOR_A_CLAIM else [],
        "random_ahead": [one for one in level if one["ahead"]],
        "random_level": [one for one in level if not one["ahead"]],
        "few_passes": few_passes(summary.strategies, summary.passes, summary.batch_size),
        "wide_spread": wide_spread(primary.needed, summary.batch_size),
        "missed_class": missed_classes(results),
    }
    return {kind: facts for kind, facts in found.items() if facts}


def random_level(differences: Mapping[Group, PairedDifference]) -> list[Facts]:
    """Groups that are not shown to be better than ``random``: their interval holds 0, or lies below it (``ahead``).

    Without an interval, the difference itself decides, and ``random`` is not ahead.
    """
    return [
        {"group": group, "difference": one, "ahead": one.high is not None and one.high < 0}
        for group, one in differences.items()
        if (one.mean if one.low is None else one.low) <= 0
    ]


def few_passes(strategies: Sequence[str], passes: int, batch_size: int) -> list[Facts]:
    """Too few passes for ``batch_bald``: fewer than ``PASSES_PER_PICK``, our rule of thumb.

    T passes carry at most ``log T`` nats about the labels of a batch. Once the picks have used that up, the rest of the
    batch is picked by noise.

    Source:
        Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158, for the bound.
    """
    enough = PASSES_PER_PICK * batch_size
    if "batch_bald" not in strategies or passes >= enough:
        return []
    smaller = passes // PASSES_PER_PICK
    return [
        {"passes": passes, "batch_size": batch_size, "nats": math.log(passes), "enough": enough, "smaller": smaller}
    ]


def wide_spread(needed: Sequence[LabelsNeeded], batch_size: int) -> list[Facts]:
    """Groups whose quartiles of labels needed lie more than half the median and more than one batch apart."""
    return [
        {"row": row}
        for row in needed
        for q25, median, q75 in [row.labels]
        if math.isfinite(q25) and q75 - q25 > batch_size and (math.isinf(q75) or q75 - q25 > WIDE * median)
    ]


def missed_classes(results: StudyResults, tolerance: float = TOLERANCE) -> list[Facts]:
    """Classes whose precision, recall or specificity stays below that of the baseline, in half the runs or more.

    Smoothed by ``running_median``. A round without a precision of a class, because no image was predicted as it, counts
    as 0. A measure that the baseline lacks is left out.

    Args:
        results: complete runs; those without a baseline are left out.
        tolerance: how far below the baseline still counts as reached. With 100 test images of a class, a measure moves
            by a point with every image.

    Returns:
        One finding a group and class, with the measures that are missed.
    """
    baselines = {(row.variant, row.seed): row.metrics for row in results.baselines}
    rounds: dict[Group, dict[int, list[RoundMetrics]]] = {}
    variants = list(dict.fromkeys(row.variant for row in results.rounds))
    for row in sorted(results.rounds, key=lambda row: (variants.index(row.variant), row.round)):
        if (row.variant, row.seed) in baselines:
            of_group = rounds.setdefault(Group(row.strategy, row.variant), {})
            of_group.setdefault(row.seed, []).append(row.metrics)
    available = Counter(results.summary.labels_per_class.get("train", {}))
    found = []
    for group, runs in rounds.items():
        picked = Counter(pick.label for pick in results.batches if Group(pick.strategy, pick.variant) == group)
        for class_name in next(chain.from_iterable(runs.values())).recall:
            missed = []
            for measure in MEASURES:
                gaps = _gaps(measure, class_name, runs, {seed: baselines[group.variant, seed] for seed in runs})
                below = gaps[gaps["best"] < gaps["wanted"] - tolerance]
                if len(below) and 2 * len(below) >= len(gaps):
                    worst = below.loc[(below["wanted"] - below["best"]).idxmax()]
                    missed.append((measure, len(below), len(gaps), worst["best"], worst["wanted"]))
            if missed:
                shares = [counts[class_name] / counts.total() for counts in (picked, available) if counts.total()]
                found.append({"group": group, "class_name": class_name, "missed": missed, "shares": shares})
    return found


def _gaps(
    measure: str, class_name: str, runs: Mapping[int, Sequence[RoundMetrics]], baselines: Mapping[int, RoundMetrics]
) -> pd.DataFrame:
    """By seed, the highest smoothed value of a run and the value of its baseline, where it has one."""
    rows = {
        seed: (
            running_median(pd.Series([getattr(one, measure)[class_name] or 0.0 for one in metrics])).max(),
            getattr(baselines[seed], measure)[class_name],
        )
        for seed, metrics in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["best", "wanted"]).astype(float).dropna()
