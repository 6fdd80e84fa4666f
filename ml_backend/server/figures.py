"""The figures of a project's page as inline SVG: lines over the labels, and bars side by side. Torch-free.

Every line has its name at its end and a dash pattern besides its colour, which is the page's (``.s1`` to ``.s8``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from markupsafe import Markup

from ml_backend.analytics.evaluation import WINDOW as CONTROL_WINDOW
from ml_backend.analytics.evaluation import HoldoutEstimate
from ml_backend.charts import Axes, add, axis_x, axis_y, figure, path, spread_out, to_text
from ml_backend.storage import RoundSummary

COLOURS: Final = 8
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")
WIDTH: Final = 420
NAME_HEIGHT: Final = 15
NAME_LENGTH: Final = 16  # characters
ROW: Final = 46
BARS_LEFT, BARS_RIGHT = 4, 372

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a share at each number of labels, ascending; and the interval around each where it is known.

    Attributes:
        name: at its end.
        told: what that is, for the legend.
    """

    name: str
    points: Sequence[Point]
    low: Sequence[Point] = ()
    high: Sequence[Point] = ()
    told: str = ""


def learning_series(lines: Sequence[RoundSummary], control: HoldoutEstimate | None = None) -> list[Series]:
    """How good the network is, over the labels.

    Accuracy and area under the ROC curve on the validation images, and accuracy on randomly drawn ones where they are
    enough.
    """
    fits = [(line.labels, line.fit) for line in lines if line.fit is not None and line.trained]
    accuracy = [(float(labels), fit.validation_accuracy) for labels, fit in fits]
    auroc = [(float(labels), fit.validation_auroc) for labels, fit in fits if fit.validation_auroc is not None]
    found = [
        Series("accuracy", accuracy, told="share right of the validation images"),
        Series("AU ROC", auroc, told="how well it tells the classes of the validation images apart"),
        _control_series(lines, control),
    ]
    return [series for series in found if series.points]


def _control_series(lines: Sequence[RoundSummary], control: HoldoutEstimate | None) -> Series:
    labels = {line.round_id: float(line.labels) for line in lines}
    rounds = [one for one in (control.running if control else ()) if one.round_id in labels]
    return Series(
        "random images",
        [(labels[one.round_id], one.accuracy) for one in rounds],
        [(labels[one.round_id], one.low) for one in rounds],
        [(labels[one.round_id], one.high) for one in rounds],
        f"share right of the last randomly drawn images, at most {CONTROL_WINDOW}, with its 95 % interval",
    )


def recall_series(lines: Sequence[RoundSummary]) -> list[Series]:
    """Recall of every class on the validation images, over the labels."""
    fits = [(line.labels, line.fit) for line in lines if line.fit is not None and line.trained]
    names = list(dict.fromkeys(name for _, fit in fits for name in fit.validation_recall))
    found = (
        Series(name, [(float(n), r) for n, fit in fits if (r := fit.validation_recall.get(name)) is not None])
        for name in names
    )
    return [series for series in found if series.points]


def line_figure(name: str, title: str, series: Sequence[Series]) -> Markup:
    """Draw shares over the number of labels.

    Args:
        name: unique on the page.
        title: what is shown; its last values are told to who does not see it.
        series: at least one, each with a point.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not series or not all(one.points for one in series):
        raise ValueError(f"{title}: a figure needs lines with a point each, leave it out")
    told = "; ".join(f"{one.name} {_point_words(one, -1)}" for one in series)
    xs = [x for one in series for x, _ in one.points]
    axes = Axes.around((min(xs), max(xs)), (0.0, 1.0), box=(46, 12, WIDTH - 122, 208))
    root = figure(name, title, f"Last values: {told}.", WIDTH, 250)
    axis_y(root, axes, "%", percent=True, count=6)
    axis_x(root, axes, "labels", percent=False)
    for place, one in enumerate(series, start=1):
        _draw(root, axes, one, place)
    ends = [axes.y(one.points[-1][1]) for one in series]
    for place, (one, end, y) in enumerate(
        zip(series, ends, spread_out(ends, NAME_HEIGHT, 8, axes.bottom + 8), strict=True), start=1
    ):
        group = add(root, "g", {"class": _style(place)})
        x = axes.x(one.points[-1][0])
        add(group, "path", {"class": "tie", "d": path([(x + 3, end), (axes.right + 4, end), (axes.right + 9, y)])})
        add(group, "text", {"class": "name", "x": axes.right + 12, "y": y + 4}, _short(one.name))
    return to_text(root)


def legend(series: Sequence[Series]) -> Markup:
    """What each line of a figure is, beside a piece of it."""
    root = ET.Element("ul", {"class": "legend"})
    for place, one in enumerate(series, start=1):
        item = add(root, "li", {"class": _style(place)})
        sample = add(item, "svg", {"viewBox": "0 0 32 12", "width": 32, "height": 12, "aria-hidden": "true"})
        if one.low:
            add(sample, "rect", {"class": "band", "x": 0, "y": 0, "width": 32, "height": 12})
        add(sample, "path", {"class": "line", "d": path([(0, 6), (32, 6)])} | _dash(place))
        add(item, "b", {}, one.name).tail = f": {one.told}"
    return to_text(root)


def balance_figure(name: str, labels: Mapping[str, int], expected: Mapping[str, float]) -> Markup:
    """Two bars a class: its share of the labels, and the model's estimate of its share of the images without one."""
    total = sum(labels.values())
    classes = list(dict.fromkeys((*labels, *expected)))
    told = "; ".join(
        f"{one}: {_percent(labels.get(one, 0), total)} of the labels, {100 * expected.get(one, 0.0):.0f} % of the pool"
        for one in classes
    )
    root = figure(name, "Class balance", told, WIDTH, ROW * len(classes) + 4)
    for place, one in enumerate(classes):
        top = place * ROW
        add(root, "text", {"class": "head", "x": BARS_LEFT, "y": top + 12}, _short(one, 48))
        of_labels = labels.get(one, 0) / total if total else 0.0
        for offset, kind, share in ((17, "of-labels", of_labels), (30, "of-pool", expected.get(one, 0.0))):
            width = max(share, 0.0) * (BARS_RIGHT - BARS_LEFT)
            add(root, "rect", {"class": f"bar {kind}", "x": BARS_LEFT, "y": top + offset, "width": width, "height": 11})
            text: dict[str, str | float] = {"class": "tick", "x": BARS_LEFT + width + 5, "y": top + offset + 9.5}
            add(root, "text", text, f"{100 * share:.0f} %")
    return to_text(root)


def _draw(root: ET.Element, axes: Axes, series: Series, place: int) -> None:
    group = add(root, "g", {"class": _style(place)})
    if series.low and series.high:
        around = [*series.high, *reversed(series.low)]
        add(group, "path", {"class": "band", "d": path([(axes.x(x), axes.y(y)) for x, y in around]) + "Z"})
        if len(series.points) == 1:  # a band of no width
            (x, low), (_, high) = series.low[0], series.high[0]
            add(group, "path", {"class": "tie", "d": path([(axes.x(x), axes.y(low)), (axes.x(x), axes.y(high))])})
    points = [(axes.x(x), axes.y(y)) for x, y in series.points]
    if len(points) > 1:
        add(group, "path", {"class": "line", "d": path(points)} | _dash(place))
    for number, (x, y) in enumerate(points):
        dot = add(group, "circle", {"class": "dot", "cx": x, "cy": y, "r": 2.6})
        add(dot, "title", {}, f"{series.name}: {_point_words(series, number)}")


def _point_words(series: Series, number: int) -> str:
    labels, share = series.points[number]
    told = f"{100 * share:.0f} % at {labels:.0f} labels"
    if not (series.low and series.high):
        return told
    return f"{told} (95 % interval {100 * series.low[number][1]:.0f} to {100 * series.high[number][1]:.0f} %)"


def _dash(place: int) -> dict[str, str | float]:
    dash = DASHES[(place - 1) % len(DASHES)]
    return {"stroke-dasharray": dash} if dash else {}


def _style(place: int) -> str:
    return f"s{(place - 1) % COLOURS + 1}"


def _short(name: str, length: int = NAME_LENGTH) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %" if total else "none"
