"""Rows of a study -> learning curves: which metrics there are, and which runs can be held against each other.

A report's page: one HTML file with its style and figures inside, nothing loaded and no script.
What a study's learning curves say, metric by metric: bands, labels needed, areas, differences from random, wins.
A study in sentences: the headline, and how numbers are written. Honest where intervals overlap or seeds are few.
What the reader of a report should be told before believing it: the findings of a study, and what it lacks.
The figures of a report: what is drawn of a study, with the same colour for the same strategy everywhere.
The tables of a report: labels needed and areas by metric, wins, times, and what the run was.
The report of a study: one page that answers whether active learning pays on these images, and how sure that is.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ml_backend.charts import value_words
from ml_backend.simulation.analysis import (
    TARGETS,
    Band,
    Finding,
    LabelsNeeded,
    LearningCurve,
    PairedDifference,
    Spread,
    WinMatrix,
    area_under,
    band,
    by_name,
    few_passes,
    few_seeds,
    labels_needed_table,
    missed_classes,
    paired_difference,
    random_level,
    shared_labels,
    wide_spread,
    win_matrix,
)
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.simulation.plots import (
    Interval,
    IntervalChart,
    Line,
    LineChart,
    Reference,
    interval_chart,
    line_chart,
    swatch,
)
from ml_backend.simulation.run_log import BatchRow, RoundRow, StudyResults, StudySummary

PickedValue = Callable[[BatchRow], float]

SHORTER: Final = 0.1  # of the rounds of the longest run of the same strategy


@dataclass(frozen=True, slots=True)
class Metric:
    """What a learning curve shows.

    Attributes:
        name: short, for identifiers.
        title: as it is read.
        note: how it is defined, in a line or two.
        of: its value; None where it is not defined.
        higher_is_better: else it is drawn, but no strategy is held against another by it.
        axis: what stands at the axis where the title is too long for it.
    """

    name: str
    title: str
    note: str
    of: Callable[[RoundMetrics], float | None]
    higher_is_better: bool = True
    axis: str = ""


_METRICS: Final = (
    Metric("accuracy", "Accuracy", "Images predicted right. It hides a rare class.", lambda m: m.accuracy),
    Metric(
        "balanced_accuracy",
        "Balanced accuracy",
        "Mean of the recalls of the classes: a rare class counts as much as a common one.",
        lambda m: m.balanced_accuracy,
    ),
    Metric("macro_f1", "Macro F1", "Mean of the F1 scores of the classes.", lambda m: m.macro_f1),
    Metric(
        "auroc",
        "AU ROC",
        "Area under the ROC curve: two classes, the most severe against the other; more, the mean of each against the "
        "rest. 0.5 is chance.",
        lambda m: m.auroc,
    ),
    Metric(
        "auprc",
        "AU PRC",
        "Average precision, of the same classes as AU ROC. Chance is the class's prevalence, not 0.5.",
        lambda m: m.auprc,
    ),
)
_AFTER: Final = (
    Metric(
        "kappa",
        "Quadratic-weighted kappa",
        "Agreement beyond chance; a miss by two classes costs four times a miss by one. 0 is chance, 1 perfect.",
        lambda m: m.quadratic_weighted_kappa,
    ),
    Metric(
        "ece",
        "Calibration error (ECE)",
        "Lower is better: the gap between the prediction's probability and its accuracy, over 15 bins of probability.",
        lambda m: m.ece,
        higher_is_better=False,
    ),
)


def metrics_of(results: StudyResults) -> tuple[Metric, ...]:
    """Every metric that the report shows of this study: those that are defined in at least one round.

    AU PRC of the rarest class is among them, unless it is AU PRC itself: with two classes of which the last is rare.
    """
    classes = results.summary.classes
    rare = rarest(results)
    own: tuple[Metric, ...] = ()
    if rare is not None and not (len(classes) == 2 and rare == classes[-1]):
        note = f"Average precision of the rarest class of the training side ({rare}) against the rest."
        own = (Metric("auprc_rare", f"AU PRC of {rare}", note, partial(_precision_of, rare), axis="AU PRC"),)
    return tuple(
        metric
        for metric in (*_METRICS, *own, *_AFTER)
        if any(metric.of(row.metrics) is not None for row in results.rounds)
    )


def _precision_of(class_name: str, metrics: RoundMetrics) -> float | None:
    return metrics.average_precision.get(class_name)


def rarest(results: StudyResults) -> str | None:
    """The class with the fewest images on the training side, the least severe of several; None if nothing is known."""
    counts = results.summary.labels_per_class.get("train", {})
    known = [name for name in results.summary.classes if name in counts]
    return min(known, key=lambda name: counts[name]) if known else None


def finished_runs(results: StudyResults) -> tuple[StudyResults, tuple[str, ...]]:
    """Leave out runs that broke off: a tenth of the rounds shorter than the longest run of the same name, or more.

    A median over seeds can only be drawn where every seed has a value: one torn run would cut it short for all. Seeds
    may differ by a round, because their splits do.

    Returns:
        What is left, and in words what was left out: empty where nothing was.
    """
    rounds: dict[tuple[str, str], dict[int, int]] = {}
    for row in results.rounds:
        runs = rounds.setdefault((row.strategy, row.variant), {})
        runs[row.seed] = max(runs.get(row.seed, 0), row.round)
    words, torn = [], set()
    for (strategy, variant), runs in rounds.items():
        longest = max(runs.values())
        for seed, count in sorted(runs.items()):
            if count < longest - max(1.0, SHORTER * longest):
                torn.add((strategy, variant, seed))
                name = f"{strategy}, {variant}" if variant else strategy
                words.append(f"{name}, seed {seed}: {count} of {longest} rounds")
    kept = replace(
        results,
        rounds=tuple(row for row in results.rounds if (row.strategy, row.variant, row.seed) not in torn),
        batches=tuple(row for row in results.batches if (row.strategy, row.variant, row.seed) not in torn),
    )
    return kept, tuple(words)


def curves_of(results: StudyResults, value: Callable[[RoundRow], float | None]) -> tuple[LearningCurve, ...]:
    """One curve a run, of its rounds in which the value is defined; by strategy as the study names them, then variant.

    Args:
        results: rounds in any order.
        value: of a round; None, or not finite, where it is not defined.
    """
    runs: dict[tuple[int, int, int], list[RoundRow]] = {}
    strategies, variants = _places(results)
    for row in results.rounds:
        runs.setdefault((strategies[row.strategy], variants[row.variant], row.seed), []).append(row)
    found = []
    for _, rows in sorted(runs.items()):
        last = max(rows, key=lambda row: row.round)
        values = {row.labels: v for row in rows if (v := value(row)) is not None and math.isfinite(v)}
        if values:
            labels = sorted(values)
            found.append(
                LearningCurve(
                    strategy=last.strategy,
                    seed=last.seed,
                    labels=np.array(labels),
                    values=np.array([values[count] for count in labels]),
                    train_images=max(last.labels, round(last.labels / last.share) if last.share else last.labels),
                    variant=last.variant,
                )
            )
    return tuple(found)


def _places(results: StudyResults) -> tuple[dict[str, int], dict[str, int]]:
    """Where strategies and variants stand: as the study names them, then as they come."""
    strategies = dict.fromkeys([*results.summary.strategies, *(row.strategy for row in results.rounds)])
    variants = dict.fromkeys([*results.summary.variants, *(row.variant for row in results.rounds)])
    return {name: i for i, name in enumerate(strategies)}, {name: i for i, name in enumerate(variants)}


def picked_shares(results: StudyResults, class_name: str) -> tuple[LearningCurve, ...]:
    """Share of a class among all images that a run has picked so far, its start set left out; 0 to 1.

    The value at a round's labels is of the picks up to and with that round: it shows what the network of that round
    asked for.
    """
    picks = _by_round(results.batches)
    runs: dict[str, list[RoundRow]] = {}
    for row in results.rounds:
        runs.setdefault(row.run, []).append(row)
    shares: dict[tuple[str, int], float] = {}
    for run, rows in runs.items():
        of_class = of_all = 0
        for row in sorted(rows, key=lambda row: row.round):
            batch = picks.get((run, row.round), [])
            of_class += sum(pick.label == class_name for pick in batch)
            of_all += len(batch)
            if batch:
                shares[run, row.round] = of_class / of_all
    return curves_of(results, lambda row: shares.get((row.run, row.round)))


def picked_values(results: StudyResults, value: PickedValue) -> tuple[LearningCurve, ...]:
    """Median over the images that each round picked."""
    medians = {
        place: float(np.median([value(pick) for pick in batch])) for place, batch in _by_round(results.batches).items()
    }
    return curves_of(results, lambda row: medians.get((row.run, row.round)))


def _by_round(batches: Sequence[BatchRow]) -> Mapping[tuple[str, int], list[BatchRow]]:
    found: dict[tuple[str, int], list[BatchRow]] = {}
    for row in batches:
        found.setdefault((row.run, row.round), []).append(row)
    return found


@cache
def _templates() -> Environment:
    # StrictUndefined: a misspelt name in the template is an error of a test, not a hole in the page.
    return Environment(
        loader=PackageLoader("ml_backend.simulation"),
        autoescape=True,  # file names and class names come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(content: Mapping[str, object]) -> str:
    """Fill the report's template; every text is escaped, but for what is ``markupsafe.Markup`` already.

    Args:
        content: by the names that ``templates/report.html`` uses.

    Raises:
        jinja2.UndefinedError: a name of the template is missing.
    """
    return _templates().get_template("report.html").render(content).lstrip()


RANDOM: Final = "random"


@dataclass(frozen=True, slots=True)
class Areas:
    """Areas under the learning curves of one metric, all over the same label counts.

    Attributes:
        first, last: the counts that they are taken between, which every run has.
        by_name: over the seeds.
    """

    first: int
    last: int
    by_name: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class MetricAnswer:
    """One metric of a study.

    Attributes:
        metric: which.
        curves: one a run.
        bands: by name.
        baselines: what all labels reach, by variant and seed; only where it is defined.
        needed: labels needed, of the runs that have a baseline; by name, then by target.
        areas: None where the runs share no label count.
        against_random: by name: of the area under the curve, over the seeds that the strategy and ``random`` of its
            variant have in common; no entry for ``random`` itself, and where there is none.
        wins: over the seeds that all names have; None where that is no seed, or there is one name only.
    """

    metric: Metric
    curves: tuple[LearningCurve, ...]
    bands: Mapping[str, Band]
    baselines: Mapping[tuple[str, int], float]
    needed: tuple[LabelsNeeded, ...]
    areas: Areas | None
    against_random: Mapping[str, PairedDifference]
    wins: WinMatrix | None

    @property
    def names(self) -> tuple[str, ...]:
        """Strategy, and variant where there is one, in the order of the study."""
        return tuple(by_name(self.curves))

    def needed_for(self, name: str, target: str) -> LabelsNeeded | None:
        """One row of the table; None where no run of this name has a baseline."""
        return next((row for row in self.needed if (row.name, row.target) == (name, target)), None)

    def baseline_of(self, variant: str) -> float | None:
        """Median over the seeds."""
        values = [value for (of, _), value in self.baselines.items() if of == variant]
        return float(np.median(values)) if values else None


def answer(metric: Metric, results: StudyResults) -> MetricAnswer:
    """Everything that is said about one metric.

    Args:
        metric: where lower is better, only curves, bands and baselines are given.
        results: finished runs, at least one in which the metric is defined.
    """
    curves = curves_of(results, lambda row: metric.of(row.metrics))
    baselines = {
        (row.variant, row.seed): value for row in results.baselines if (value := metric.of(row.metrics)) is not None
    }
    compared = curves if metric.higher_is_better else ()
    with_baseline = [curve for curve in compared if (curve.variant, curve.seed) in baselines]
    return MetricAnswer(
        metric=metric,
        curves=curves,
        bands=bands_of(curves),
        baselines=baselines,
        needed=labels_needed_table(with_baseline, baselines),
        areas=_areas(compared),
        against_random={name: paired_difference(*pair) for name, pair in in_pairs(compared).items()},
        wins=_wins(compared),
    )


def bands_of(curves: Sequence[LearningCurve]) -> dict[str, Band]:
    """Bands by name; none for a name whose runs share no label count."""
    found = {}
    for name, runs in by_name(curves).items():
        if _share_labels(list(runs.values())):
            found[name] = band(list(runs.values()))
    return found


def in_pairs(curves: Sequence[LearningCurve]) -> dict[str, tuple[list[LearningCurve], list[LearningCurve]]]:
    """Runs of every strategy with those of ``random`` of the same variant and seeds.

    A seed that one side lacks is left out, and so is one in which the two share no label count.
    """
    chance = {(curve.variant, curve.seed): curve for curve in curves if curve.strategy == RANDOM}
    found = {}
    for name, runs in by_name(curves).items():
        pairs = [
            (curve, other)
            for curve in runs.values()
            if curve.strategy != RANDOM
            and (other := chance.get((curve.variant, curve.seed))) is not None
            and _share_labels((curve, other))
        ]
        if pairs:
            found[name] = ([curve for curve, _ in pairs], [other for _, other in pairs])
    return found


def _share_labels(curves: Sequence[LearningCurve]) -> bool:
    return bool(set.intersection(*(set(curve.labels.tolist()) for curve in curves)))


def _areas(curves: Sequence[LearningCurve]) -> Areas | None:
    if not curves or not _share_labels(curves):
        return None
    labels = shared_labels(curves)
    spreads = {}
    for name, runs in by_name(curves).items():
        q25, median, q75 = np.quantile([area_under(curve, labels) for curve in runs.values()], (0.25, 0.5, 0.75))
        spreads[name] = Spread(median=median, q25=q25, q75=q75)
    return Areas(first=int(labels[0]), last=int(labels[-1]), by_name=spreads)


def _wins(curves: Sequence[LearningCurve]) -> WinMatrix | None:
    grouped = by_name(curves)
    if len(grouped) < 2:
        return None
    common = set.intersection(*(set(runs) for runs in grouped.values()))
    seeds = [seed for seed in sorted(common) if _share_labels([runs[seed] for runs in grouped.values()])]
    return win_matrix([runs[seed] for runs in grouped.values() for seed in seeds]) if seeds else None


SEEDS_FOR_A_CLAIM: Final = 10
NAMED: Final = 3  # strategies of a sentence, besides random
REACHED: Final = {
    "95 % of the baseline": "to reach 95 % of the {} of all labels",
    "baseline - 1 point": "to come within a point of the {} of all labels",
}
"""Targets that a headline speaks of, the more telling last."""


def share_words(share: Spread) -> str:
    """``35 % [28–40]``: median and quartiles of shares; ``never`` where they are infinite."""

    def percent(value: float | None) -> str:
        if value is None:
            return "never"
        # Early on, half a per cent is a batch.
        return f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"

    if share.q25 is None:
        return "never"
    middle = "never" if share.median is None else f"{percent(share.median)} %"
    return f"{middle} [{percent(share.q25)}–{percent(share.q75)}]"


def difference_words(difference: PairedDifference) -> str:
    """``+0.021 [+0.012 to +0.030]``: mean and 95 % interval; one seed has none."""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.3f} (one seed)"
    return f"{difference.mean:+.3f} [{difference.low:+.3f} to {difference.high:+.3f}]"


def headline(answers: Sequence[MetricAnswer]) -> tuple[str, ...]:
    """What a study found, most important first: labels needed, whether that is more than luck, and by other metrics.

    The target is the baseline less one point, if any strategy got there in half of its runs; else 95 % of it.

    Args:
        answers: of the metrics to speak of, the most important first; at least one.
    """
    first = answers[0]
    target = next((name for name in reversed(REACHED) if _reached(first, name)), None)
    if not first.needed:
        begin = "There is no network trained on all labels yet, so that labels needed cannot be told."
    elif target is None:
        begin = (
            f"On these images no strategy came to 95 % of the {_title(first)} of all labels in half of its runs: label "
            "more of the pool before ending a run."
        )
    else:
        seeds = max(row.runs for row in first.needed)
        begin = f"On these images, {_needed_words(first, target)} (Median [quartiles] of {seeds} seeds.)"
    others = [f"Likewise, {_needed_words(one, target)}" for one in answers[1:] if one.needed and target]
    return (begin, verdict(first), *others)


def _title(answer: MetricAnswer) -> str:
    title = answer.metric.title
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _reached(answer: MetricAnswer, target: str) -> bool:
    return any(row.labels.median is not None for row in answer.needed if row.target == target)


def _needed_words(answer: MetricAnswer, target: str) -> str:
    """The best strategies, then random: no more of them than a sentence holds; whoever got there comes first."""
    rows = [row for row in answer.needed if row.target == target]
    informed = sorted((row for row in rows if not _is_random(row)), key=_median)
    named = [*informed[:NAMED], *(row for row in rows if _is_random(row))]
    first, *others = ordered = sorted(named, key=lambda row: row.labels.median is None)
    values = [answer.baseline_of(variant) for variant in dict.fromkeys(variant for variant, _ in answer.baselines)]
    reach = " and ".join(f"{value:.3f}" for value in values if value is not None)
    goal = f"{REACHED[target].format(_title(answer))} ({reach})"
    if first.labels.median is None:
        return f"no strategy managed in half of its runs {goal}."
    rest = "".join(f"; {_spoken(row.name)} {_got_there(row)}" for row in others)
    left = len(informed) - NAMED
    more = f" The other {left} needed as many or more." if left > 0 else ""
    begin = f"{_spoken(first.name)} needed {share_words(first.share)} of the labels {goal}"
    return f"{begin}{rest}.{more}{_overlap(ordered)}"


def _got_there(row: LabelsNeeded) -> str:
    if row.labels.median is None:
        return f"did not get there in {row.never} of {row.runs} runs"
    return f"needed {share_words(row.share)}"


def _overlap(ordered: Sequence[LabelsNeeded]) -> str:
    """Of the first strategy and its variant's random, in one sentence; empty where there is no pair."""
    best = ordered[0]
    variant = best.name.partition(", ")[2]
    chance = next((row for row in ordered if row.name == (f"{RANDOM}, {variant}" if variant else RANDOM)), None)
    if chance is None or chance is best or best.share.median is None or chance.share.q25 is None:
        return ""
    apart = best.share.q75 is not None and best.share.q75 < chance.share.q25
    return (
        f" The middle halves of {_spoken(best.name)} and {_spoken(chance.name)} {'lie apart' if apart else 'overlap'}."
    )


def _spoken(name: str) -> str:
    """``entropy (weighted)``: within a sentence the comma of a variant would divide it."""
    strategy, _, variant = name.partition(", ")
    return f"{strategy} ({variant})" if variant else strategy


def _is_random(row: LabelsNeeded) -> bool:
    return row.name == RANDOM or row.name.startswith(f"{RANDOM}, ")


def _median(row: LabelsNeeded) -> float:
    return float("inf") if row.share.median is None else row.share.median


def verdict(answer: MetricAnswer) -> str:
    """Whether choosing images beats random picks by this metric, and how sure that is.

    The strategy with the largest mean difference of the areas under the curves is named, and that it was the best of
    how many: its p-value does not know that.
    """
    differences = answer.against_random
    if not differences:
        return "Nothing was held against random, so that this study does not tell what choosing images is worth."
    name, best = max(differences.items(), key=lambda named: named[1].mean)
    among = f", the best of {len(differences)}" if len(differences) > 1 else ""
    p = "" if best.p is None else f", Wilcoxon p = {best.p:.2g}"
    seen = (
        f"the learning curve of {_spoken(name)}{among and among + ','} lies {difference_words(best)} from random's in "
        f"{_title(answer)}, on average over {best.pairs} {'seed' if best.pairs == 1 else 'seeds'}{p}"
    )
    if best.pairs < SEEDS_FOR_A_CLAIM:
        return f"Too few seeds for a claim ({SEEDS_FOR_A_CLAIM} are wanted): {seen}."
    if best.low is not None and best.low > 0:
        return f"Choosing images pays here: {seen}.{_luck(len(differences))}"
    if best.high is not None and best.high < 0:
        return f"Choosing images does not pay here, random picks are ahead of every strategy: {seen}."
    return f"Not shown that choosing images pays here, the interval holds 0: {seen}."


def _luck(tried: int) -> str:
    return f" With {tried} tried, the best is a little lucky: expect somewhat less." if tried > 1 else ""


@dataclass(frozen=True, slots=True)
class Caution:
    """Warnings that ask for the same: what was seen, and what to look at or to try next."""

    messages: tuple[str, ...]
    check: str


def cautions(results: StudyResults, primary: MetricAnswer, torn: Sequence[str]) -> tuple[Caution, ...]:
    """Every warning of a study, the gravest kind first.

    Args:
        results: finished runs.
        primary: the metric that strategies are held against ``random`` by.
        torn: runs that were left out, in words.
    """
    summary = results.summary
    found: list[Finding] = []
    found += few_seeds(min(len(runs) for runs in by_name(primary.curves).values()))
    for runs, chance in in_pairs(primary.curves).values():
        found += random_level([*runs, *chance])
    found += few_passes(summary.strategies, summary.passes, summary.batch_size)
    found += wide_spread(primary.needed, summary.batch_size)
    found += _missed(results)
    messages: dict[str, list[str]] = {}
    for message, check in (*_lacking(primary, torn), *((one.message, one.check) for one in found)):
        messages.setdefault(check, []).append(message)
    return tuple(Caution(tuple(of_check), check) for check, of_check in messages.items())


def _lacking(primary: MetricAnswer, torn: Sequence[str]) -> list[tuple[str, str]]:
    """Message and check."""
    found = []
    if torn:
        found.append(
            (
                f"{len(torn)} {'run' if len(torn) == 1 else 'runs'} broke off and are left out of every figure and "
                f"number: {'; '.join(torn)}.",
                "Give the command again with the same --out: it goes on where it stopped.",
            )
        )
    if lacking := [f"{c.name}, seed {c.seed}" for c in primary.curves if (c.variant, c.seed) not in primary.baselines]:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        found.append(
            (
                f"{len(lacking)} of {len(primary.curves)} runs have no baseline, a network trained on all labels: "
                f"{shown}. Labels needed are told without them.",
                "Let the study finish: the baselines are runs of their own.",
            )
        )
    if not any(curve.strategy == RANDOM for curve in primary.curves):
        found.append(
            (
                "random was not run, so that nothing tells what choosing images is worth at all.",
                "Run the study with random among its strategies.",
            )
        )
    return found


def _missed(results: StudyResults) -> list[Finding]:
    """By variant, because each is held against its own baseline."""
    found: list[Finding] = []
    for variant in dict.fromkeys(row.variant for row in results.rounds):
        baselines = {row.seed: row.metrics for row in results.baselines if row.variant == variant}
        runs: dict[str, dict[int, list[RoundMetrics]]] = {}
        for row in sorted(results.rounds, key=lambda row: row.round):
            if row.variant == variant and row.seed in baselines:
                runs.setdefault(_name(row.strategy, variant), {}).setdefault(row.seed, []).append(row.metrics)
        picked: dict[str, Counter[str]] = {}
        for pick in results.batches:
            if pick.variant == variant:
                picked.setdefault(_name(pick.strategy, variant), Counter())[pick.label] += 1
        available = results.summary.labels_per_class.get("train")
        found += missed_classes(runs, baselines, picked=picked, available=available)
    return found


def _name(strategy: str, variant: str) -> str:
    return f"{strategy}, {variant}" if variant else strategy


Styles: TypeAlias = Mapping[str, int]
"""Strategy -> its colour and dash pattern; 0 is random's."""

NUMBERS: Final = 6  # label counts of a table
SPREAD: Final = 50.0  # highest over lowest value from which an axis is logarithmic
ALL_LABELS: Final = "all labels"


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, with what stands above it."""

    title: str
    drawing: Markup


@dataclass(frozen=True, slots=True)
class Numbers:
    """The values of a figure at some label counts, for who cannot see it or wants to quote it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """One quantity: a figure a variant, side by side, on one scale."""

    id: str
    title: str
    note: str
    figures: tuple[Figure, ...]
    numbers: Numbers


def metric_group(answer: MetricAnswer, styles: Styles) -> Group:
    """Learning curves of a metric, with what all labels reach."""
    metric = answer.metric
    variants = dict.fromkeys(curve.variant for curve in answer.curves)
    references = {v: value for v in variants if (value := answer.baseline_of(v)) is not None}
    return group(metric.name, metric.title, metric.note, answer.curves, styles, references=references, axis=metric.axis)


def group(
    name: str,
    title: str,
    note: str,
    curves: Sequence[LearningCurve],
    styles: Styles,
    *,
    references: Mapping[str, float] | None = None,
    reference_name: str = ALL_LABELS,
    axis: str = "",
    percent: bool = False,
    spread: bool = False,
) -> Group:
    """Bands of any curves, a figure a variant.

    Args:
        name: for identifiers.
        title: what is shown.
        note: how it is defined.
        curves: one a run.
        styles: of the strategies.
        references: by variant.
        reference_name: what stands at the reference.
        axis: what stands at the value axis, with its unit; the title where empty.
        percent: the values are shares.
        spread: the value axis is logarithmic where the values are far apart.
    """
    bands, values = bands_of(curves), references or {}
    by_variant: dict[str, dict[str, Band]] = {}
    for curve in curves:
        if curve.name in bands:
            by_variant.setdefault(curve.variant, {})[curve.strategy] = bands[curve.name]
    ends = [float(v) for one in bands.values() for part in (one.q25, one.q75) for v in (part.min(), part.max())]
    ends += values.values()
    figures = [
        _line_figure(
            LineChart(
                id=f"{name}-{place}",
                title=f"{title}, {variant}" if variant else title,
                description=_described(of_variant, percent=percent),
                y_label=axis or title,
                lines=_lines(of_variant, styles),
                references=[
                    Reference(f"{reference_name} {value_words(values[variant], percent=percent)}", values[variant])
                ]
                if variant in values
                else [],
                y_range=(min(ends), max(ends)),
                percent=percent,
                logarithmic=spread and min(ends) > 0 and max(ends) > SPREAD * min(ends),
            )
        )
        for place, (variant, of_variant) in enumerate(by_variant.items())
    ]
    return Group(name, title, note, tuple(figures), _numbers(bands, percent=percent))


def _line_figure(chart: LineChart) -> Figure:
    return Figure(chart.title, line_chart(chart))


def _lines(bands: Mapping[str, Band], styles: Styles) -> list[Line]:
    """Random last: what all others are held against is not to be covered."""
    ordered = sorted(bands.items(), key=lambda named: named[0] == RANDOM)
    return [
        Line(styles[name], name, one.shares.tolist(), one.median.tolist(), one.q25.tolist(), one.q75.tolist())
        for name, one in ordered
    ]


def _described(bands: Mapping[str, Band], *, percent: bool) -> str:
    parts = []
    for name, one in bands.items():
        first, last = (value_words(float(v), percent=percent) for v in (one.median[0], one.median[-1]))
        parts.append(f"{name} from {first} at {one.labels[0]} labels to {last} at {one.labels[-1]}")
    return f"Median over the seeds: {'; '.join(parts)}."


def _numbers(bands: Mapping[str, Band], *, percent: bool) -> Numbers:
    """Medians and quartiles at label counts that are spread over all there are."""
    counts = sorted({int(count) for one in bands.values() for count in one.labels})
    chosen = (
        [counts[i] for i in np.unique(np.linspace(0, len(counts) - 1, NUMBERS).round().astype(int))] if counts else []
    )
    rows = []
    for name, one in bands.items():
        at = {int(count): place for place, count in enumerate(one.labels)}
        cells = []
        for count in chosen:
            if (place := at.get(count)) is None:
                cells.append("-")
                continue
            middle, low, high = (value_words(float(v[place]), percent=percent) for v in (one.median, one.q25, one.q75))
            cells.append(f"{middle} [{low}–{high}]")
        rows.append((name, tuple(cells)))
    return Numbers(tuple(f"{count} labels" for count in chosen), tuple(rows))


def against_random(answer: MetricAnswer, styles: Styles) -> tuple[Figure, ...]:
    """A figure a strategy and variant: its band next to random's, where more than two would cover each other."""
    of_name = {name: next(iter(runs.values())) for name, runs in by_name(answer.curves).items()}
    ends = [float(v) for one in answer.bands.values() for part in (one.q25, one.q75) for v in (part.min(), part.max())]
    figures: list[Figure] = []
    for name, one in answer.bands.items():
        strategy, variant = of_name[name].strategy, of_name[name].variant
        chance = answer.bands.get(f"{RANDOM}, {variant}" if variant else RANDOM)
        if strategy == RANDOM or chance is None:
            continue
        bands = {strategy: one, RANDOM: chance}
        baseline = answer.baseline_of(variant)
        title = f"{name} against random"
        figures.append(
            _line_figure(
                LineChart(
                    id=f"pair-{len(figures)}",
                    title=title,
                    description=_described(bands, percent=False),
                    y_label=answer.metric.title,
                    lines=_lines(bands, styles),
                    references=[] if baseline is None else [Reference(f"{ALL_LABELS} {baseline:.3f}", baseline)],
                    y_range=(min(ends), max(ends)),
                )
            )
        )
    return tuple(figures)


def needed(answer: MetricAnswer, target: str, styles: Styles) -> Figure | None:
    """Labels needed for a target; None where no run has a baseline."""
    rows = [row for row in answer.needed if row.target == target]
    if not rows:
        return None
    strategies = _strategies(answer.curves)
    title = f"Labels needed for {target}: {answer.metric.title}"
    words = {row.name: share_words(row.share) for row in rows}
    intervals = [
        Interval(
            styles[strategies[row.name]], row.name, row.share.q25, row.share.median, row.share.q75, words[row.name]
        )
        for row in rows
    ]
    return _interval_figure(
        f"needed-{answer.metric.name}-{list(TARGETS).index(target)}",
        title,
        words,
        "labels needed, % of the training side: median and quartiles",
        intervals,
        percent=True,
    )


def differences(answer: MetricAnswer, styles: Styles) -> Figure | None:
    """Differences from random; None where nothing was held against it."""
    if not answer.against_random:
        return None
    strategies = _strategies(answer.curves)
    words = {name: difference_words(one) for name, one in answer.against_random.items()}
    intervals = [
        Interval(
            styles[strategies[name]],
            name,
            one.mean if one.low is None else one.low,
            one.mean,
            one.mean if one.high is None else one.high,
            words[name],
        )
        for name, one in answer.against_random.items()
    ]
    title = f"Difference from random: {answer.metric.title}"
    label = "area under the curve minus random's, 95 % interval"
    return _interval_figure(f"difference-{answer.metric.name}", title, words, label, intervals)


def _interval_figure(
    name: str, title: str, words: Mapping[str, str], label: str, rows: Sequence[Interval], *, percent: bool = False
) -> Figure:
    description = "; ".join(f"{row} {said}" for row, said in words.items()) + "."
    chart = IntervalChart(name, title, description, label, rows, percent=percent, from_zero=percent)
    return Figure(title, interval_chart(chart))


def _strategies(curves: Sequence[LearningCurve]) -> dict[str, str]:
    return {curve.name: curve.strategy for curve in curves}


Listing: TypeAlias = tuple[tuple[str, str], ...]
"""Names and what they are, in the order in which they are read."""

DEFINITIONS: Final[Listing] = (
    (
        "Labels needed",
        "The first label count of a run at which its curve, smoothed by a running median of three rounds, reaches the "
        "target of its own seed's baseline. A run that never gets there counts as infinitely many, and is not dropped.",
    ),
    (
        "Baseline",
        "A network of the same settings, trained on every label of the training side: one a seed and variant. One "
        "point is 0.01 of the metric.",
    ),
    (
        "Area under the curve",
        "Mean height of a learning curve over the share of labels (trapezoid rule), over the label counts that all "
        "runs have. In the unit of the metric.",
    ),
    (
        "Difference from random",
        "Runs of one seed share split and start set, and are compared in pairs: mean of the differences of the areas, "
        "its 95 % bootstrap interval over the seeds (percentile; too narrow for few seeds).",
    ),
    (
        "p",
        "Of Wilcoxon's signed-rank test of these differences, two-sided. Of one comparison: it does not know how many "
        "strategies were tried.",
    ),
    (
        "Epistemic, aleatoric",
        "H(mean of the passes) minus the mean of H(pass), and the mean of H(pass), in nats: together the entropy of "
        "the mean prediction.",
    ),
    (
        "Time",
        "Seconds of work only: training; passes over the pool and ranking. Reading files and drawing are not in it.",
    ),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: the number that counts, and what stands small below it."""

    words: str
    below: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """Strategies held against baseline and random by one metric."""

    title: str
    over: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Wins:
    """A win matrix; None where a strategy meets itself."""

    title: str
    seeds: int
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Times:
    """What a strategy costs, in words with units."""

    name: str
    training: str
    acquisition: str
    epochs: str
    rounds: str
    whole: str


def compared(answer: MetricAnswer) -> Compared:
    """The row of every strategy and variant: three targets, area, difference from random, p."""
    over = "" if answer.areas is None else f"between {answer.areas.first} and {answer.areas.last} labels"
    columns = (*TARGETS, "area under the curve", "minus random [95 % interval]", "p")
    return Compared(answer.metric.title, over, columns, tuple((name, _cells(answer, name)) for name in answer.names))


def _cells(answer: MetricAnswer, name: str) -> tuple[Cell, ...]:
    targets = tuple(_needed_cell(answer.needed_for(name, target)) for target in TARGETS)
    area = Cell("-") if answer.areas is None else Cell(_spread_words(answer.areas.by_name[name]))
    difference = answer.against_random.get(name)
    if difference is None:
        return (*targets, area, Cell("-"), Cell("-"))
    p = "-" if difference.p is None else f"{difference.p:.2g}"
    seeds = f"{difference.pairs} {'pair' if difference.pairs == 1 else 'pairs'}"
    return (*targets, area, Cell(difference_words(difference), seeds), Cell(p))


def _needed_cell(row: LabelsNeeded | None) -> Cell:
    if row is None:
        return Cell("-", "no baseline")
    labels = "" if row.labels.median is None else f"{row.labels.median:.0f} labels; "
    return Cell(share_words(row.share), f"{labels}{row.never} of {row.runs} never")


def _spread_words(spread: Spread) -> str:
    low, middle, high = ("-" if v is None else f"{v:.3f}" for v in (spread.q25, spread.median, spread.q75))
    return f"{middle} [{low}–{high}]"


def wins(answer: MetricAnswer) -> Wins | None:
    """The win matrix of a metric, where there is one."""
    matrix = answer.wins
    if matrix is None:
        return None
    rows = tuple(
        (name, tuple(None if i == j else float(share) for j, share in enumerate(matrix.share[i])))
        for i, name in enumerate(matrix.names)
    )
    return Wins(answer.metric.title, matrix.seeds, matrix.names, rows)


def times(rounds: Sequence[RoundRow]) -> tuple[Times, ...]:
    """What every strategy and variant costs, in the order of the rows."""
    grouped: dict[str, dict[int, list[RoundRow]]] = {}
    for row in rounds:
        name = f"{row.strategy}, {row.variant}" if row.variant else row.strategy
        grouped.setdefault(name, {}).setdefault(row.seed, []).append(row)
    found = []
    for name, runs in grouped.items():
        rows = [row for of_seed in runs.values() for row in of_seed]
        whole = [sum(row.train_seconds + row.acquisition_seconds for row in of_seed) for of_seed in runs.values()]
        found.append(
            Times(
                name=name,
                training=_seconds(row.train_seconds for row in rows),
                acquisition=_seconds(row.acquisition_seconds for row in rows),
                epochs=f"{np.median([row.epochs for row in rows]):.0f}",
                rounds=f"{np.median([len(of_seed) for of_seed in runs.values()]):.0f}",
                whole=_duration(float(np.median(whole))),
            )
        )
    return tuple(found)


def _seconds(values: Iterable[float]) -> str:
    q25, median, q75 = np.quantile(list(values), (0.25, 0.5, 0.75))
    scale, unit = (1000, "ms") if median < 0.1 else (1, "s")
    return f"{scale * median:.3g} {unit} [{scale * q25:.3g}–{scale * q75:.3g}]"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def facts(results: StudyResults) -> Listing:
    """What stands at the top of the page."""
    summary = results.summary
    runs = len({(row.strategy, row.variant, row.seed) for row in results.rounds})
    variants = [name for name in summary.variants if name]
    found = [
        ("Images", " + ".join(f"{count} {side}" for side, count in summary.images.items())),
        ("Classes", " / ".join(summary.classes)),
        ("Strategies", str(len(summary.strategies))),
        ("Seeds", str(len(summary.seeds))),
        ("Runs", str(runs)),
        ("Start, then a round", f"{summary.initial_per_class} a class, then {summary.batch_size}"),
    ]
    if variants:
        found.append(("Compared, too", " / ".join(variants)))
    return tuple(found)


def run_facts(summary: StudySummary) -> Listing:
    """What a study was, besides its command."""
    variants = ", ".join(name for name in summary.variants if name)
    return (
        ("Started", summary.started_at),
        ("Took", _duration(summary.seconds)),
        ("Profile", summary.profile),
        ("Strategies", ", ".join(summary.strategies)),
        *((("Variants", variants),) if variants else ()),
        ("Seeds", ", ".join(map(str, summary.seeds))),
        ("Rounds of a run", str(summary.rounds)),
        ("Passes", str(summary.passes)),
        ("Start set", f"{summary.initial_per_class} images of every class"),
        ("Batch", f"{summary.batch_size} images"),
    )


def listings(summary: StudySummary) -> tuple[tuple[str, Listing], ...]:
    """Options, versions and digests, whole: what a second run is compared by."""
    options = tuple((name, json.dumps(value, ensure_ascii=False)) for name, value in summary.options.items())
    return (
        ("Options", options),
        ("Versions", _listing(summary.versions)),
        ("Digests (SHA-256) of what was read", _listing(summary.digests)),
    )


def _listing(words: Mapping[str, str]) -> Listing:
    return tuple(sorted(words.items()))


SPOKEN_OF: Final = ("accuracy", "balanced_accuracy")  # in the headline; the first is what warnings go by


def write_report(results: StudyResults, path: Path) -> None:
    """Write the report of a study, whole or not at all: a reader's browser never sees half a page.

    Args:
        results: a finished study, or what there is of one.
        path: of the HTML file; its folder must exist.

    Raises:
        ValueError: no round yet, see ``report_page``.
        OSError: the file cannot be written.
    """
    page = report_page(results)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # errors: a file name that is no UTF-8 must not cost the report.
        beside.write_text(page, encoding="utf-8", errors="replace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def report_page(results: StudyResults) -> str:
    """The report as HTML: self-contained, without a script.

    Raises:
        ValueError: there is no round to report on yet.
    """
    if not results.rounds:
        raise ValueError("a report needs at least one finished round, got none: let the study run for longer")
    kept, torn = finished_runs(results)
    answers = [answer(metric, kept) for metric in metrics_of(kept)]
    compared_by = [one for one in answers if one.metric.higher_is_better]
    spoken_of = [one for name in SPOKEN_OF for one in answers if one.metric.name == name]
    primary = spoken_of[0]
    styles = _styles(results)
    return render_page(
        {
            "summary": results.summary,
            "several": len({row.variant for row in kept.rounds}) > 1,
            "styles": list(styles.values()),
            "legend": [{"name": name, "style": style, "swatch": swatch(style)} for name, style in styles.items()],
            "headline": headline(spoken_of),
            "primary": primary.metric.title,
            "facts": facts(kept),
            "pairs": against_random(primary, styles),
            "metrics": [metric_group(one, styles) for one in answers],
            "forests": _forests(spoken_of, styles),
            "comparisons": [(compared(one), wins(one)) for one in compared_by],
            "balance": _balance(kept, styles),
            "uncertainty": _uncertainty(kept, styles),
            "times": times(kept.rounds),
            "seconds": _seconds_by_strategy(kept, styles),
            "cautions": cautions(kept, primary, torn),
            "run": run_facts(results.summary),
            "listings": listings(results.summary),
            "definitions": DEFINITIONS,
        }
    )


def _styles(results: StudyResults) -> Styles:
    """Random is the neutral one; the others in the order of the study."""
    names = dict.fromkeys([*results.summary.strategies, *(row.strategy for row in results.rounds)])
    informed = [name for name in names if name != RANDOM]
    return {name: 0 if name == RANDOM else 1 + informed.index(name) for name in names}


def _forests(answers: list[MetricAnswer], styles: Styles) -> list[Figure]:
    drawn = [figure for one in answers for target in list(TARGETS)[:2] if (figure := needed(one, target, styles))]
    return [*drawn, *(figure for one in answers if (figure := differences(one, styles)))]


def _balance(results: StudyResults, styles: Styles) -> list[Group]:
    """A group a class; of two classes the rare one, as the other says the same again."""
    classes = results.summary.classes
    if not results.batches:
        return []
    rare = rarest(results)
    counts = results.summary.labels_per_class.get("train", {})
    total = sum(counts.values())
    variants = {row.variant for row in results.rounds}
    groups = []
    for place, name in enumerate(classes):
        if len(classes) == 2 and rare is not None and name != rare:
            continue
        share = counts[name] / total if total and name in counts else None
        groups.append(
            group(
                f"picked-{place}",
                f"Picks of class {name}",
                "Of all images picked so far, %.",
                picked_shares(results, name),
                styles,
                references={} if share is None else dict.fromkeys(variants, share),
                reference_name="training side",
                axis="of the picks, %",
                percent=True,
            )
        )
    return groups


def _uncertainty(results: StudyResults, styles: Styles) -> list[Group]:
    if not results.batches:
        return []
    epistemic = picked_values(results, lambda pick: pick.epistemic)
    aleatoric = picked_values(results, lambda pick: pick.aleatoric)
    return [
        group(
            "epistemic",
            "Epistemic part of the picks",
            "The passes' disagreement (BALD).",
            epistemic,
            styles,
            axis="nats",
        ),
        group("aleatoric", "Aleatoric part of the picks", "The passes' mean entropy.", aleatoric, styles, axis="nats"),
    ]


def _seconds_by_strategy(results: StudyResults, styles: Styles) -> list[Group]:
    training = curves_of(results, lambda row: row.train_seconds)
    acquisition = curves_of(results, lambda row: row.acquisition_seconds)
    return [
        group(
            "training",
            "Training of a round",
            "Seconds, on the work only.",
            training,
            styles,
            axis="seconds",
            spread=True,
        ),
        group(
            "acquisition",
            "Acquisition of a batch",
            "Seconds: passes and ranking.",
            acquisition,
            styles,
            axis="seconds",
            spread=True,
        ),
    ]
