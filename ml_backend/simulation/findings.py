"""What a reader of a study should be told before believing it: warnings in words, each with what to check next."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

from ml_backend.records import Record
from ml_backend.simulation.compare import LabelsNeeded, PairedDifference, paired_difference
from ml_backend.simulation.curves import LearningCurve, by_name, running_median
from ml_backend.simulation.metrics import RoundMetrics

__all__ = [
    "ClassCounts",
    "Finding",
    "Kind",
    "few_passes",
    "few_seeds",
    "missed_classes",
    "random_level",
    "wide_spread",
]

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


class Finding(Record):
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
