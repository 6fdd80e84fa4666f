"""The tables of a report: labels needed and areas by metric, wins, times, and what the run was."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from ml_backend.simulation.compare import TARGETS, LabelsNeeded, Spread
from ml_backend.study.report_answers import MetricAnswer
from ml_backend.study.report_words import difference_words, share_words
from ml_backend.study.rows import RoundRow, StudyResults, StudySummary

__all__ = [
    "DEFINITIONS",
    "Cell",
    "Compared",
    "Listing",
    "Times",
    "Wins",
    "compared",
    "facts",
    "listings",
    "run_facts",
    "times",
    "wins",
]

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
