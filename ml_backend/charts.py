"""What every figure is made of: axes with round ticks, paths, and names that do not lie over each other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from scipy.optimize import isotonic_regression

TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Axes:
    """Where values lie in the figure: units of the SVG's own coordinates, y downwards.

    Attributes:
        x_range, y_range: lowest and highest value; not equal.
        left, top, right, bottom: the box that they span.
        logarithmic: of y.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float
    logarithmic: bool = False

    @classmethod
    def around(
        cls,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        *,
        box: tuple[float, float, float, float],
        logarithmic: bool = False,
    ) -> Self:
        """Axes that hold both ranges with some air; a range of one value gets a width of its own.

        Args:
            x_range: lowest and highest value.
            y_range: likewise.
            box: left, top, right and bottom of the figure's inner part.
            logarithmic: of y; then both ends of ``y_range`` are above 0.
        """
        if logarithmic:
            ratio = max((y_range[1] / y_range[0]) ** 0.06, 1.05)
            y_range = (y_range[0] / ratio, y_range[1] * ratio)
        else:
            y_range = _wider(y_range)
        return cls(_widened(x_range), y_range, *box, logarithmic)

    def x(self, value: float) -> float:
        """Where a value lies from left to right."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a value lies from top to bottom."""
        low, high = self.y_range
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def _widened(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    size = max(abs(low), abs(high))
    # Narrower, and the difference is that of rounding.
    if high - low > 1e-9 * size and high - low > 1e-12:
        return span
    width = size if size > 1e-9 else 1.0
    return low - width / 2, high + width / 2


def _wider(span: tuple[float, float]) -> tuple[float, float]:
    low, high = _widened(span)
    air = 0.04 * (high - low)
    # Nothing lies below 0 that is a share, a duration or an information.
    return (max(low - air, 0.0) if low >= 0 else low - air), high + air


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers within a range: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: below ``high``.
        high: end of the range.
        count: about how many; at most twice as many come, and at least one.

    Source:
        Heckbert 1990, "Nice numbers for graph labels", in Graphics Gems.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s for s in (power, 2 * power, 5 * power, 10 * power) if s >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded, because 3 * 0.1 is not 0.3.
    return [round(place * step, 12) for place in range(first, last + 1)]


def ticks_logarithmic(low: float, high: float) -> list[float]:
    """Powers of ten within a range; where it holds fewer than three, 2 and 5 times them, too.

    Args:
        low: above 0.
        high: above ``low``.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(whole) >= 3:
        return whole
    return [v for p in powers for s in (1, 2, 5) if low <= (v := s * 10.0**p) <= high]


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until none is nearer to the next than ``gap``, keeping their order, within low and high.

    They move as little as they can, by least squares. Where they do not all fit, they are as far apart as they can be.

    Args:
        places: in any order.
        gap: above 0.
        low: where the first may lie.
        high: where the last may.

    Returns:
        In the order of ``places``.
    """
    if not places:
        return []
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    # Without the steps they need only not decrease, and that is isotonic regression.
    moved = (
        isotonic_regression(np.asarray(places, dtype=np.float64)[order] - steps).x.clip(low, high - steps[-1]) + steps
    )
    found = np.empty(len(places))
    found[order] = moved
    return [float(place) for place in found]


def value_words(value: float, *, percent: bool = False) -> str:
    """A value as it is read: three digits, or a whole percentage."""
    if percent:
        return f"{100 * value:.0f} %"
    return f"{value:.3f}" if 0.01 <= abs(value) < 10 else f"{value:.3g}"


def path(points: Sequence[tuple[float, float]]) -> str:
    """A line through points, to a tenth of a unit: more is not seen, and only makes the page larger."""
    return "M" + "L".join(f"{round(x, 1):g} {round(y, 1):g}" for x, y in points)


def figure(name: str, title: str, description: str, width: float, height: float) -> ET.Element:
    """An SVG that says what it shows to who does not see it."""
    root = ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {width:g} {height:g}",
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
        },
    )
    add(root, "title", {"id": f"{name}-title"}, title)
    add(root, "desc", {"id": f"{name}-desc"}, description)
    return root


def add(parent: ET.Element, tag: str, attributes: Mapping[str, str | float], text: str | None = None) -> ET.Element:
    """Add an element; numbers to a tenth of a unit. Names of users stay text: the library escapes them."""
    words = {k: v if isinstance(v, str) else f"{round(v, 1):g}" for k, v in attributes.items()}
    child = ET.SubElement(parent, tag, words)
    child.text = text
    return child


def axis_x(root: ET.Element, axes: Axes, label: str, *, percent: bool) -> None:
    """Ticks and their values below the box, and what they are of."""
    for value in ticks(*axes.x_range):
        x = axes.x(value)
        add(root, "path", {"class": "grid", "d": path([(x, axes.top), (x, axes.bottom)])})
        add(root, "text", {"class": "tick middle", "x": x, "y": axes.bottom + 15}, _tick(value, percent))
    add(root, "text", {"class": "axis middle", "x": (axes.left + axes.right) / 2, "y": axes.bottom + 32}, label)


def axis_y(root: ET.Element, axes: Axes, label: str, *, percent: bool, count: int = TICKS) -> None:
    """Ticks and their values left of the box, about so many, and what they are of, written upwards."""
    for value in ticks_logarithmic(*axes.y_range) if axes.logarithmic else ticks(*axes.y_range, count):
        y = axes.y(value)
        add(root, "path", {"class": "grid", "d": path([(axes.left, y), (axes.right, y)])})
        add(root, "text", {"class": "tick right", "x": axes.left - 5, "y": y + 4}, _tick(value, percent))
    middle = (axes.top + axes.bottom) / 2
    turned = {"class": "axis middle", "transform": f"translate(9 {middle:g}) rotate(-90)"}
    add(root, "text", turned, label)


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.4g}" if percent else f"{value:.4g}"


def to_text(root: ET.Element) -> Markup:
    """The SVG as it stands in a page: safe, because the library escaped every text and attribute."""
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - escaped by ElementTree
