"""Charts as inline SVG: lines with bands, intervals and bars, for the owner pages and for the report of a study.

Not matplotlib's SVG: colours come from the page's style sheet (``.s0`` to ``.s8``), so that charts follow dark mode;
values show on hover without a script; and the web process imports nothing large. Every line also has a dash pattern
and its name at its end, for readers who do not tell the colours apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final, Self
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

COLOURS: Final = 8  # besides the neutral one
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")
TICKS: Final = 5
WIDTH: Final = 388
NAME_HEIGHT: Final = 15  # of a name at the end of a line
NAME_LENGTH: Final = 16  # characters
ROW_HEIGHT: Final = 36  # of an interval
BAR_ROW_HEIGHT: Final = 46
MAP_WIDTH: Final = 720
MOST_POINTS: Final = 20_000  # about 10 bytes each
COLUMN_MM: Final = 85.0  # one of a journal's two columns
PRINT: Final[dict[Any, Any]] = {
    "font.size": 7, "lines.linewidth": 1.0, "axes.linewidth": 0.6, "svg.fonttype": "none", "pdf.fonttype": 42,
    "svg.hashsalt": "charts",
}  # fmt: skip
PRINT_COLOURS: Final = (
    "#555555", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8a6d00",
)  # fmt: skip
"""Okabe & Ito 2008, distinct for colour-blind readers too, after the neutral one."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line and the band around it.

    Attributes:
        style: colour and dash pattern, the same for the same thing in every chart of a page; 0 is neutral.
        name: label at the end of the line.
        x: ascending, at least one value.
        y: one value at every ``x``.
        low, high: edges of the band at the last of the ``x``; empty without a band.
        n: images that each of these is measured on; empty where they are not shown.
        meaning: text of the legend.
        hundredths: its values are written as 0.90, also where the others are in per cent.
    """

    style: int
    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    n: Sequence[int] = ()
    meaning: str = ""
    hundredths: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """One row of an interval chart: a median or mean with its interval. ``inf`` points off to the right."""

    style: int
    name: str
    low: float
    middle: float
    high: float
    words: str


def line_chart(
    name: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    references: Mapping[str, float] | None = None,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    percent_x: bool = False,
    percent: bool = False,
    dots: bool = False,
    width: float = WIDTH,
    names_width: float = 102,
) -> Markup:
    """Draw lines with their bands; the values at an ``x`` show on hover.

    Args:
        name: prefix of the element ids, unique on the page.
        title: accessible name.
        description: accessible description.
        lines: in drawing order.
        x_label: quantity with its unit.
        y_label: likewise.
        references: name -> height of a horizontal line.
        x_range: ends of the axis; from 0 to the last value by default.
        y_range: the axis spans at least this; fitted to the values by default.
        percent_x: x is a fraction, written in per cent; else a count.
        percent: y is a fraction, written in per cent.
        dots: mark every value, not only the last.
        width: of the chart, in its own units.
        names_width: of it, the space for the names.

    Raises:
        ValueError: no line, or a line without a value.
    """
    if not lines or not all(len(line.x) for line in lines):
        raise ValueError(f"{title}: a chart needs at least one line, and every line at least one value")
    marks = references or {}
    values = [*marks.values(), *(v for line in lines for v in chain(line.low, line.high, line.y))]
    low, high = y_range or (min(values), max(values))
    low, high = min(low, *values), max(high, *values)
    axes = Axes.around(
        x_range or (0.0, max(line.x[-1] for line in lines)),
        (low, high),
        box=(52, 12, width - names_width, 208),
    )
    root = _svg(name, title, description, width, 250)
    _axis_y(root, axes, y_label, percent=percent)
    _axis_x(root, axes, x_label, percent=percent_x)
    for line in lines:
        _draw_line(root, axes, line, dots=dots)
    for words, value in marks.items():
        y = axes.y(value)
        _add(root, "path", {"class": "reference", "d": path([(axes.left, y), (axes.right, y)])})
        # Below its line where the chart ends above it.
        lower = y - axes.top < 14
        _add(root, "text", {"class": "note", "x": axes.left + 4, "y": y + (12 if lower else -4)}, words)
    _draw_names(root, axes, lines)
    _draw_hover(root, axes, lines, "" if percent_x else x_label, percent=percent)
    return _markup(root)


def save_line_chart(
    stem: Path,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    references: Mapping[str, float] | None = None,
    width_mm: float = COLUMN_MM,
) -> None:
    """Write lines with their bands as ``<stem>.svg`` and ``<stem>.pdf``, for a paper; both axes span the data.

    Text stays text: an editor can change it. The same lines give the same bytes.

    Args:
        stem: path without a suffix; its folder must exist.
        lines: in drawing order.
        x_label: quantity with its unit.
        y_label: likewise.
        references: name -> height of a horizontal line.
        width_mm: of the figure; one column by default.

    Raises:
        OSError: a file cannot be written.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - the extra `simulate` alone brings it, and it takes a second
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context(PRINT):
        figure = Figure(figsize=(width_mm / 25.4, 0.75 * width_mm / 25.4), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            dash = tuple(map(float, _dash(line.style).get("stroke-dasharray", "").split()))  # type: ignore[union-attr]
            colour = PRINT_COLOURS[1 + (line.style - 1) % COLOURS if line.style else 0]
            axes.plot(line.x, line.y, color=colour, linestyle=(0, dash) if dash else "-", label=line.name)
            if len(line.low):
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        for words, value in (references or {}).items():
            axes.axhline(value, color="0.3", linestyle=":", label=words)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.02)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        for kind, undated in (("svg", "Date"), ("pdf", "CreationDate")):
            figure.savefig(stem.with_name(f"{stem.name}.{kind}"), metadata={undated: None})


def interval_chart(
    name: str,
    title: str,
    description: str,
    rows: Sequence[Interval],
    *,
    x_label: str,
    percent: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Draw intervals below each other, with name and numbers above each.

    Args:
        name: prefix of the element ids, unique on the page.
        title: accessible name.
        description: accessible description.
        rows: from top to bottom.
        x_label: quantity with its unit.
        percent: values are fractions, written in per cent.
        from_zero: the axis begins at 0; else 0 is marked.
    """
    finite = [v for row in rows for v in (row.low, row.middle, row.high) if math.isfinite(v)]
    low, high = (min(*finite, 0.0), max(*finite, 0.0)) if finite else (0.0, 1.0)
    air = 0.05 * (high - low)
    bottom = 4 + ROW_HEIGHT * len(rows)
    axes = Axes.around((low if from_zero else low - air, high + air), (0, 1), box=(12, 4, WIDTH - 24, bottom))
    root = _svg(name, title, description, WIDTH, bottom + 40)
    _axis_x(root, axes, x_label, percent=percent)
    for place, row in enumerate(rows):
        top = 4 + ROW_HEIGHT * place
        if not from_zero:  # between the texts
            line = [(axes.x(0), top + 17), (axes.x(0), top + ROW_HEIGHT)]
            _add(root, "path", {"class": "reference", "d": path(line)})
        group = _add(root, "g", {"class": _style(row.style)})
        _add(group, "text", {"class": "name", "x": axes.left, "y": top + 13}, row.name)
        _add(group, "text", {"class": "name value", "x": axes.right, "y": top + 13}, row.words)
        if math.isinf(row.low):
            continue
        y, endless = top + 23, math.isinf(row.high)
        end = axes.right + 10 if endless else axes.x(row.high)
        _add(group, "path", {"class": "line", "d": path([(axes.x(row.low), y), (end, y)])} | _dash(row.style))
        if endless:
            _add(group, "path", {"class": "arrow", "d": path([(end - 5, y - 4), (end, y), (end - 5, y + 4)])})
        if math.isfinite(row.middle):
            _add(group, "circle", {"class": "dot", "cx": axes.x(row.middle), "cy": y, "r": 5})
    return _markup(root)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with a link: its row, the address, and its name, which also shows on hover."""

    row: int
    href: str
    words: str


def scatter_chart(
    name: str,
    title: str,
    description: str,
    points: npt.NDArray[np.float64],
    *,
    styles: Sequence[str],
    kinds: Sequence[int],
    marks: Sequence[Mark],
) -> Markup:
    """Draw points of several kinds, the first kind below the others, and links over some of them.

    Points that would cover each other are drawn once: 100,000 take no more space than ``MOST_POINTS``. The links are
    for a pointer alone, since hundreds would be in the way of keyboard and screen reader: a page lists them as well.

    Args:
        name: prefix of the element ids, unique on the page.
        title: accessible name.
        description: accessible description.
        points: x and y of at least one point; both axes have one scale.
        styles: class of each kind: ``s0`` to ``s8``, ``u1`` to ``u4``.
        kinds: of each point, a place in ``styles``.
        marks: points with a link.
    """
    low, span = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-9)
    scale = (MAP_WIDTH - 20) / span.max()
    height = max(span[1] * scale + 20, 200.0)
    places = np.stack([10 + (points[:, 0] - low[0]) * scale, height - 10 - (points[:, 1] - low[1]) * scale], axis=1)
    of_kind = np.asarray(kinds)
    for step in (1, 2, 3, 4, 6, 8):
        shown = np.unique(np.column_stack([of_kind, (places / step).round() * step]).astype(np.int64), axis=0)
        if len(shown) <= MOST_POINTS:
            break
    root = _svg(name, title, description, MAP_WIDTH, height)
    for place, style in enumerate(styles):
        data = "".join(f"M{x} {y}h0" for _, x, y in shown[shown[:, 0] == place].tolist())
        _add(root, "path", {"class": f"points {style}", "d": data})
    root.set("role", "group")  # an img may hold no links
    links = _add(root, "g", {"aria-hidden": "true"})
    for mark in marks:
        link = _add(links, "a", {"href": mark.href, "tabindex": "-1"})
        x, y = places[mark.row].tolist()
        circle = _add(link, "circle", {"class": f"dot {styles[kinds[mark.row]]}", "cx": x, "cy": y, "r": 5})
        _add(circle, "title", {}, mark.words)
    return _markup(root)


def bar_chart(name: str, title: str, description: str, rows: Mapping[str, Mapping[str, float]]) -> Markup:
    """Draw bars below each other, with the row's name above them.

    Args:
        name: prefix of the element ids, unique on the page.
        title: accessible name.
        description: accessible description.
        rows: name -> CSS class of the bar -> fraction, 0 to 1.
    """
    left, right = 4, 372
    root = _svg(name, title, description, 420, BAR_ROW_HEIGHT * len(rows) + 4)
    for place, (words, bars) in enumerate(rows.items()):
        top = place * BAR_ROW_HEIGHT
        _add(root, "text", {"class": "head", "x": left, "y": top + 12}, shorten(words, 48))
        for number, (kind, share) in enumerate(bars.items()):
            y, width = top + 17 + 13 * number, max(share, 0.0) * (right - left)
            _add(root, "rect", {"class": f"bar {kind}", "x": left, "y": y, "width": width, "height": 11})
            _add(root, "text", {"class": "tick", "x": left + width + 5, "y": y + 9.5}, value_words(share, percent=True))
    return _markup(root)


def legend(lines: Sequence[Line]) -> Markup:
    """A list of the lines of a chart: a piece of each, its name and its meaning."""
    root = ET.Element("ul", {"class": "legend"})
    for line in lines:
        item = _add(root, "li", {"class": _style(line.style)})
        sample = _add(item, "svg", {"viewBox": "0 0 32 12", "width": 32, "height": 12, "aria-hidden": "true"})
        if line.low:
            _add(sample, "rect", {"class": "band", "x": 0, "y": 0, "width": 32, "height": 12})
        _add(sample, "path", {"class": "line", "d": path([(0, 6), (32, 6)])} | _dash(line.style))
        _add(item, "b", {}, line.name).tail = f": {line.meaning}"
    return _markup(root)


def swatch(style: int) -> Markup:
    """A short piece of a line, hidden from screen readers: its name follows in the page's text."""
    root = ET.Element("svg", {"class": f"swatch {_style(style)}", "viewBox": "0 0 30 10", "aria-hidden": "true"})
    _add(root, "path", {"class": "line", "d": "M1 5H29"} | _dash(style))
    return _markup(root)


def value_words(value: float, *, percent: bool = False) -> str:
    """A value for a reader: three digits, or a whole percentage."""
    if percent:
        return f"{100 * value:.0f} %"
    return f"{value:.3f}" if 0.01 <= abs(value) < 10 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Axes:
    """Maps values to the SVG's coordinates, in which y points down.

    Attributes:
        x_range, y_range: lowest and highest value, not equal.
        left, top, right, bottom: box of the axes.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(
        cls,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        *,
        box: tuple[float, float, float, float],
    ) -> Self:
        """Axes that hold both ranges, with a margin in y; a range of a single value is widened.

        Args:
            x_range: lowest and highest value.
            y_range: likewise.
            box: left, top, right and bottom.
        """
        low, high = _widened(y_range)
        margin = 0.04 * (high - low)
        # Fractions, durations and information have no values below 0.
        y_range = (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin
        return cls(_widened(x_range), y_range, *box)

    def x(self, value: float) -> float:
        """Position from left to right."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Position from top to bottom."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def _widened(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    size = max(abs(low), abs(high))
    # A narrower span is rounding error.
    if high - low > 1e-9 * size and high - low > 1e-12:
        return span
    width = size if size > 1e-9 else 1.0
    return low - width / 2, high + width / 2


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers within a range: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: below ``high``.
        high: end of the range.
        count: how many, roughly; the result has 1 to ``2 * count``.

    Source:
        Heckbert 1990, "Nice numbers for graph labels", in Graphics Gems.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s for s in (power, 2 * power, 5 * power, 10 * power) if s >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded, because 3 * 0.1 is not 0.3.
    return [round(place * step, 12) for place in range(first, last + 1)]


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart to at least ``gap``, keeping their order, within ``low`` and ``high``.

    The result is the least-squares one. Places that do not all fit are spaced evenly.

    Args:
        places: in any order, at least one.
        gap: above 0.
        low: lowest allowed place.
        high: highest allowed place.

    Returns:
        In the order of ``places``.
    """
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    from scipy.optimize import isotonic_regression  # noqa: PLC0415 - not at the start of the web process

    # Less the steps, the places must only not decrease: isotonic regression.
    sorted_places = np.asarray(places, dtype=np.float64)[order]
    moved = isotonic_regression(sorted_places - steps).x.clip(low, high - steps[-1]) + steps
    found = np.empty(len(places))
    found[order] = moved
    return [float(place) for place in found]


def path(points: Sequence[tuple[float, float]]) -> str:
    """Path data of a line through points, to a tenth of a unit: more is invisible and makes the page larger."""
    return "M" + "L".join(f"{round(x, 1):g} {round(y, 1):g}" for x, y in points)


def _draw_line(root: ET.Element, axes: Axes, line: Line, *, dots: bool) -> None:
    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [(axes.x(x), axes.y(v)) for x, v in zip(line.x[-len(values) :], values, strict=True)]

    group = _add(root, "g", {"class": _style(line.style)})
    middle = points(line.y)
    if len(line.low):
        upper, lower = points(line.high), points(line.low)
        edge = path([*upper, *reversed(lower)]) + "Z"
        _add(group, "path", {"class": "band", "d": edge} | _dash(line.style))
        if len(upper) == 1:  # a band without a width
            _add(group, "path", {"class": "tie", "d": path([*upper, *lower])})
    if len(middle) > 1:
        _add(group, "path", {"class": "line", "d": path(middle)} | _dash(line.style))
    for x, y in middle if dots else middle[-1:]:
        _add(group, "circle", {"class": "dot", "cx": x, "cy": y, "r": 2.5})


def _draw_names(root: ET.Element, axes: Axes, lines: Sequence[Line]) -> None:
    """Names right of the axes, in the order of the lines' ends and without overlap, each tied to its line."""
    ends = [axes.y(line.y[-1]) for line in lines]
    for line, end, place in zip(lines, ends, spread_out(ends, NAME_HEIGHT, 8, axes.bottom + 8), strict=True):
        group = _add(root, "g", {"class": _style(line.style)})
        tie = [(axes.x(line.x[-1]) + 3, end), (axes.right + 4, end), (axes.right + 9, place)]
        _add(group, "path", {"class": "tie", "d": path(tie)})
        _add(group, "text", {"class": "name", "x": axes.right + 12, "y": place + 4}, shorten(line.name, NAME_LENGTH))


def _draw_hover(root: ET.Element, axes: Axes, lines: Sequence[Line], unit: str, *, percent: bool) -> None:
    """An invisible strip around every x, whose tooltip lists the values there, highest first; no unit: fractions."""
    places = sorted({x for line in lines for x in line.x})
    edges = [axes.left, *((axes.x(a) + axes.x(b)) / 2 for a, b in pairwise(places)), axes.right]
    group = _add(root, "g", {"fill": "none", "pointer-events": "all"})
    for x, (left, right) in zip(places, pairwise(edges), strict=True):
        here = [(line, list(line.x).index(x)) for line in lines if x in line.x]
        here.sort(key=lambda found: -found[0].y[found[1]])
        words = [f"{x:.0f} {unit}" if unit else f"{100 * x:.1f} % labelled"]
        for line, place in here:
            from_end = place - len(line.x)
            shown = [v[from_end] for v in (line.y, line.low, line.high) if -from_end <= len(v)]
            middle, *band = (f"{v:.2f}" if line.hundredths else value_words(v, percent=percent) for v in shown)
            of = f" of {line.n[from_end]} images" if -from_end <= len(line.n) else ""
            words.append(f"{line.name}: {middle}" + (f" [{'–'.join(band)}]" if band else "") + of)
        box: dict[str, str | float] = {"class": "strip", "x": left, "y": axes.top}
        size = {"width": max(right - left, 0.1), "height": axes.bottom - axes.top}
        _add(_add(group, "rect", box | size), "title", {}, "\n".join(words))


def _axis_x(root: ET.Element, axes: Axes, label: str, *, percent: bool) -> None:
    for value in ticks(*axes.x_range):
        x = axes.x(value)
        _add(root, "path", {"class": "grid", "d": path([(x, axes.top), (x, axes.bottom)])})
        _add(root, "text", {"class": "tick middle", "x": x, "y": axes.bottom + 15}, _tick(value, percent))
    _add(root, "text", {"class": "axis middle", "x": (axes.left + axes.right) / 2, "y": axes.bottom + 32}, label)


def _axis_y(root: ET.Element, axes: Axes, label: str, *, percent: bool) -> None:
    # Six, so that a whole axis from 0 to 100 % has steps of 20.
    count = 6 if percent else TICKS
    for value in ticks(*axes.y_range, count):
        y = axes.y(value)
        _add(root, "path", {"class": "grid", "d": path([(axes.left, y), (axes.right, y)])})
        _add(root, "text", {"class": "tick right", "x": axes.left - 5, "y": y + 4}, _tick(value, percent))
    turned = f"translate(9 {(axes.top + axes.bottom) / 2:g}) rotate(-90)"
    _add(root, "text", {"class": "axis middle", "transform": turned}, label)


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.4g}" if percent else f"{value:.4g}"


def shorten(text: str, length: int) -> str:
    """The text, cut to so many characters where it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _style(style: int) -> str:
    """Classes of the colour (``s``) and of the line itself (``k``), by which a page can hide it."""
    return f"s{1 + (style - 1) % COLOURS if style else 0} k{style}"


def _dash(style: int) -> dict[str, str | float]:
    # Shifted with every turn of the colours, so that a repeated colour gets another dash.
    turn, place = divmod(style - 1, COLOURS)
    pattern = DASHES[(place + turn) % len(DASHES)] if style else ""
    return {"stroke-dasharray": pattern} if pattern else {}


def _svg(name: str, title: str, description: str, width: float, height: float) -> ET.Element:
    labels = f"{name}-title {name}-desc"
    root = ET.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-labelledby": labels})
    _add(root, "title", {"id": f"{name}-title"}, title)
    _add(root, "desc", {"id": f"{name}-desc"}, description)
    return root


def _add(parent: ET.Element, tag: str, attributes: Mapping[str, str | float], text: str | None = None) -> ET.Element:
    """Add an element, with numbers to a tenth of a unit."""
    words = {k: v if isinstance(v, str) else f"{round(v, 1):g}" for k, v in attributes.items()}
    child = ET.SubElement(parent, tag, words)
    child.text = text
    return child


def _markup(root: ET.Element) -> Markup:
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - ElementTree escapes every text and attribute
