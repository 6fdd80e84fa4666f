"""Rows of a study -> learning curves: which metrics there are, and which runs can be held against each other."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from ml_backend.simulation.curves import LearningCurve
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.study.rows import BatchRow, RoundRow, StudyResults

__all__ = [
    "Metric",
    "PickedValue",
    "curves_of",
    "finished_runs",
    "metrics_of",
    "picked_shares",
    "picked_values",
    "rarest",
]

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
