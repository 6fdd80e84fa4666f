"""The figures of a report: what is drawn of a study, with the same colour for the same strategy everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from markupsafe import Markup

from ml_backend.plot_parts import value_words
from ml_backend.simulation.compare import TARGETS
from ml_backend.simulation.curves import Band, LearningCurve, by_name
from ml_backend.study.plots import Interval, IntervalChart, Line, LineChart, Reference, interval_chart, line_chart
from ml_backend.study.report_answers import RANDOM, MetricAnswer, bands_of
from ml_backend.study.report_words import difference_words, share_words

__all__ = ["Figure", "Group", "Numbers", "Styles", "against_random", "differences", "group", "metric_group", "needed"]

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
