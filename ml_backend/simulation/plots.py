"""Two kinds of figure as inline SVG: lines with bands over the share of labels, and medians with their intervals.

Drawn here and not by a plotting library, because a page that brings one along is fifty times as large, and a phone on a
hospital's network opens this one. A figure knows nothing of studies; colours are the page's (``.s0`` to ``.s8``), so
that they follow dark mode, and every line has a dash pattern and its name at its end besides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final
from xml.etree import ElementTree as ET

from markupsafe import Markup

from ml_backend.charts import Axes, add, axis_x, axis_y, figure, path, spread_out, to_text, value_words

COLOURS: Final = 8  # besides the neutral one
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")
WIDTH: Final = 388
LINE_HEIGHT: Final = 13  # of a name at the end of a line
ROW_HEIGHT: Final = 36


@dataclass(frozen=True, slots=True)
class Line:
    """One line, and the band around it.

    Attributes:
        style: colour and dash pattern, the same for the same strategy in every figure; 0 is the neutral one.
        name: stands at the end of the line.
        x: share of labels, ascending, at least one.
        middle, low, high: one at every ``x``.
    """

    style: int
    name: str
    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, slots=True)
class Reference:
    """A horizontal line to hold the others against."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class LineChart:
    """Several lines over the share of labels.

    Attributes:
        id: unique on the page.
        title, description: for who does not see the figure; the title stands above it on the page, too.
        y_label: what is measured, with its unit.
        lines: drawn in this order.
        references: horizontal lines.
        y_range: lowest and highest value of the axis at least; None fits it to what is drawn.
        percent: values are shares, and written as percent.
        logarithmic: of the value axis; every value must be above 0.
    """

    id: str
    title: str
    description: str
    y_label: str
    lines: Sequence[Line]
    references: Sequence[Reference] = ()
    y_range: tuple[float, float] | None = None
    percent: bool = False
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """One row: a median, or a mean, and the interval around it. None is infinite: off to the right."""

    style: int
    name: str
    low: float | None
    middle: float | None
    high: float | None
    words: str


@dataclass(frozen=True, slots=True)
class IntervalChart:
    """Several intervals under each other.

    Attributes:
        id, title, description, percent: as of ``LineChart``.
        x_label: what is measured, with its unit.
        rows: from top to bottom.
        from_zero: the axis begins at 0, and no value lies below; else 0 is marked.
    """

    id: str
    title: str
    description: str
    x_label: str
    rows: Sequence[Interval]
    percent: bool = False
    from_zero: bool = False


def line_chart(chart: LineChart) -> Markup:
    """Draw lines with their bands; the values at a label count show where the pointer rests.

    Raises:
        ValueError: no line, a line without a point, or a value of 0 or less on a logarithmic axis.
    """
    if not chart.lines:
        raise ValueError(f"{chart.title}: a figure needs at least one line, leave it out")
    for line in chart.lines:
        if not len(line.x):
            raise ValueError(f"{chart.title}: the line of {line.name} has no point, leave it out")
    axes = _line_axes(chart)
    root = figure(chart.id, chart.title, chart.description, WIDTH, 250)
    axis_y(root, axes, chart.y_label, percent=chart.percent)
    axis_x(root, axes, "labelled, % of the training side", percent=True)
    for line in chart.lines:
        _draw_line(root, axes, line)
    for reference in chart.references:
        y = axes.y(reference.value)
        add(root, "path", {"class": "reference", "d": path([(axes.left, y), (axes.right, y)])})
        # Below its line where the figure ends above it.
        lower = y - axes.top < 14
        add(root, "text", {"class": "note", "x": axes.left + 4, "y": y + (12 if lower else -4)}, reference.name)
    _name_lines(root, axes, chart.lines)
    _strips(root, axes, chart)
    return to_text(root)


def _line_axes(chart: LineChart) -> Axes:
    values = [v for line in chart.lines for v in chain(line.low, line.high, line.middle)]
    values += [reference.value for reference in chart.references]
    low, high = chart.y_range or (min(values), max(values))
    low, high = min([low, *values]), max([high, *values])
    if chart.logarithmic and low <= 0:
        raise ValueError(f"{chart.title}: a logarithmic axis has no place for {low}")
    return Axes.around(
        (0.0, max(line.x[-1] for line in chart.lines)),
        (low, high),
        box=(52, 12, WIDTH - 102, 208),
        logarithmic=chart.logarithmic,
    )


def _draw_line(root: ET.Element, axes: Axes, line: Line) -> None:
    upper = [(axes.x(x), axes.y(v)) for x, v in zip(line.x, line.high, strict=True)]
    lower = [(axes.x(x), axes.y(v)) for x, v in zip(line.x, line.low, strict=True)]
    middle = [(axes.x(x), axes.y(v)) for x, v in zip(line.x, line.middle, strict=True)]
    group = add(root, "g", {"class": _style(line.style)})
    add(group, "path", {"class": "band", "d": path([*upper, *reversed(lower)]) + "Z"})
    if len(middle) > 1:
        add(group, "path", {"class": "line", "d": path(middle)} | _dash(line.style))
    add(group, "circle", {"class": "end", "cx": middle[-1][0], "cy": middle[-1][1], "r": 2.5})


def _name_lines(root: ET.Element, axes: Axes, lines: Sequence[Line]) -> None:
    """Names to the right, in the order of the lines' ends, none over another, each tied to its line."""
    ends = [axes.y(line.middle[-1]) for line in lines]
    for line, end, place in zip(lines, ends, spread_out(ends, LINE_HEIGHT, 4, axes.bottom + 8), strict=True):
        group = add(root, "g", {"class": _style(line.style)})
        tie = [(axes.x(line.x[-1]) + 3, end), (axes.right + 4, end), (axes.right + 9, place)]
        add(group, "path", {"class": "tie", "d": path(tie)})
        shown = line.name if len(line.name) <= 16 else f"{line.name[:15]}…"
        add(group, "text", {"class": "name", "x": axes.right + 12, "y": place + 4}, shown)


def _strips(root: ET.Element, axes: Axes, chart: LineChart) -> None:
    """A strip for every label count, which names the values at it when the pointer rests there: no script needed."""
    places = sorted({x for line in chart.lines for x in line.x})
    edges = [axes.left, *((axes.x(a) + axes.x(b)) / 2 for a, b in pairwise(places)), axes.right]
    at = [dict(zip(line.x, zip(line.middle, line.low, line.high, strict=True), strict=True)) for line in chart.lines]
    for place, (left, right) in zip(places, pairwise(edges), strict=True):
        here = [(line.name, values[place]) for line, values in zip(chart.lines, at, strict=True) if place in values]
        here.sort(key=lambda named: -named[1][0])
        words = [f"{100 * place:.1f} % labelled", *(_at(name, values, chart) for name, values in here)]
        box: dict[str, str | float] = {
            "class": "strip",
            "x": left,
            "y": axes.top,
            "width": max(right - left, 0.1),
            "height": axes.bottom - axes.top,
        }
        add(add(root, "rect", box), "title", {}, "\n".join(words))


def _at(name: str, values: tuple[float, float, float], chart: LineChart) -> str:
    middle, low, high = (value_words(value, percent=chart.percent) for value in values)
    return f"{name}: {middle} [{low}–{high}]"


def interval_chart(chart: IntervalChart) -> Markup:
    """Draw intervals under each other, name and numbers above each; an infinite end points off to the right."""
    finite = [v for row in chart.rows for v in (row.low, row.middle, row.high) if v is not None]
    # 0 is always in sight: it is what the labels begin at, and what no difference would be.
    low, high = (min(*finite, 0.0), max(*finite, 0.0)) if finite else (0.0, 1.0)
    air = 0.05 * (high - low)
    bottom = 4 + ROW_HEIGHT * len(chart.rows)
    axes = Axes.around((low if chart.from_zero else low - air, high + air), (0, 1), box=(12, 4, WIDTH - 24, bottom))
    root = figure(chart.id, chart.title, chart.description, WIDTH, bottom + 40)
    axis_x(root, axes, chart.x_label, percent=chart.percent)
    if not chart.from_zero:
        add(root, "path", {"class": "reference", "d": path([(axes.x(0), axes.top), (axes.x(0), axes.bottom)])})
    for place, row in enumerate(chart.rows):
        _draw_row(root, axes, row, top=4 + ROW_HEIGHT * place)
    return to_text(root)


def _draw_row(root: ET.Element, axes: Axes, row: Interval, top: float) -> None:
    group = add(root, "g", {"class": _style(row.style)})
    add(group, "text", {"class": "name", "x": axes.left, "y": top + 13}, row.name)
    add(group, "text", {"class": "name value", "x": axes.right, "y": top + 13}, row.words)
    y = top + 23
    beyond = axes.right + 10
    if row.low is None:
        return
    end = beyond if row.high is None else axes.x(row.high)
    add(group, "path", {"class": "line", "d": path([(axes.x(row.low), y), (end, y)])} | _dash(row.style))
    if row.high is None:
        add(group, "path", {"class": "arrow", "d": path([(end - 5, y - 4), (end, y), (end - 5, y + 4)])})
    if row.middle is not None:
        add(group, "circle", {"class": "end", "cx": axes.x(row.middle), "cy": y, "r": 5})


def swatch(style: int) -> Markup:
    """A short piece of a line, for the legend; silent, as the name stands beside it."""
    root = ET.Element("svg", {"class": f"swatch {_style(style)}", "viewBox": "0 0 30 10", "aria-hidden": "true"})
    add(root, "path", {"class": "line", "d": "M1 5H29"} | _dash(style))
    return to_text(root)


def _style(style: int) -> str:
    """Classes of its colour, and of itself (by which the page hides it)."""
    return f"s{1 + (style - 1) % COLOURS if style else 0} k{style}"


def _dash(style: int) -> dict[str, str | float]:
    # A step further with every turn of the colours, so that the same colour does not meet the same dash.
    turn, place = divmod(style - 1, COLOURS)
    pattern = DASHES[(place + turn) % len(DASHES)] if style else ""
    return {"stroke-dasharray": pattern} if pattern else {}
