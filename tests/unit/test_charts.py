"""Charts: positions, ticks, names without overlap, accessible text, and names of users that stay text."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.charts import (
    Axes,
    Interval,
    Line,
    Mark,
    bar_chart,
    interval_chart,
    legend,
    line_chart,
    path,
    scatter_chart,
    spread_out,
    swatch,
    ticks,
    value_words,
)

EVIL = "<script>alert(1)</script>"
numbers = st.floats(-1e6, 1e6)


def line(name: str = "entropy", style: int = 1, *, y: tuple[float, ...] = (0.5, 0.7)) -> Line:
    x = tuple(0.1 * place for place in range(1, len(y) + 1))
    return Line(style, name, x, y, [v - 0.1 for v in y], [v + 0.1 for v in y])


def chart(*lines: Line, **changes: object) -> ET.Element:
    fields: dict[str, object] = {"x_label": "labels", "y_label": "accuracy", "percent_x": True}
    return ET.fromstring(line_chart("a", "Accuracy", "rises", lines, **(fields | changes)))  # type: ignore[arg-type]


def intervals(*rows: Interval, from_zero: bool = False) -> ET.Element:
    return ET.fromstring(interval_chart("b", "Labels", "30 %", rows, x_label="%", from_zero=from_zero))


def parts(root: ET.Element, tag: str, kind: str | None = None) -> list[ET.Element]:
    return [one for one in root.iter(tag) if kind is None or kind in one.get("class", "").split()]


def texts(root: ET.Element, kind: str) -> list[str | None]:
    return [one.text for one in parts(root, "text", kind)]


def points(element: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", element.get("d", ""))]


class TestLineChart:
    def test_higher_values_lie_higher(self):
        [drawn] = parts(chart(line(y=(0.5, 0.7))), "path", "line")
        (left, low), (right, high) = points(drawn)

        assert left < right
        assert high < low

    def test_band_runs_along_the_upper_and_back_along_the_lower_edge(self):
        [band] = parts(chart(line(y=(0.5, 0.7, 0.7))), "path", "band")
        corners = points(band)

        assert len(corners) == 6
        assert [x for x, _ in corners[:3]] == [x for x, _ in reversed(corners[3:])]
        assert all(up < down for (_, up), (_, down) in zip(corners[:3], reversed(corners[3:]), strict=True))

    def test_line_without_a_band(self):
        assert parts(chart(Line(1, "x", [0.1, 0.2], [0.5, 0.6])), "path", "band") == []

    def test_single_value_is_a_dot_with_its_interval(self):
        drawing = chart(Line(1, "x", [5.0], [0.5], [0.25], [1.0]))
        (x, top), (x_again, bottom) = points(parts(drawing, "path", "tie")[0])

        assert parts(drawing, "path", "line") == []
        assert len(parts(drawing, "circle", "dot")) == 1
        assert x == x_again
        assert bottom - top > 100

    def test_dots_mark_every_value(self):
        assert [len(parts(chart(line(), dots=dots), "circle", "dot")) for dots in (False, True)] == [1, 2]

    def test_hover_lists_the_values_highest_first(self):
        drawing = chart(line("random", 0, y=(0.5, 0.6, 0.7)), line("entropy", 1, y=(0.55, 0.75)))

        assert [one.findtext("title") for one in parts(drawing, "rect", "strip")] == [
            "10.0 % labelled\nentropy: 0.550 [0.450–0.650]\nrandom: 0.500 [0.400–0.600]",
            "20.0 % labelled\nentropy: 0.750 [0.650–0.850]\nrandom: 0.600 [0.500–0.700]",
            "30.0 % labelled\nrandom: 0.700 [0.600–0.800]",
        ]

    def test_hover_over_counts_and_percentages_without_a_band(self):
        drawing = chart(Line(1, "recall", [200], [0.756]), percent=True, percent_x=False)

        assert parts(drawing, "rect", "strip")[0].findtext("title") == "200 labels\nrecall: 76 %"

    def test_lines_differ_by_colour_and_by_dash(self):
        drawing = chart(line("entropy", 1), line("bald", 2))
        first, second = parts(drawing, "path", "line")

        assert first.get("stroke-dasharray") != second.get("stroke-dasharray")
        assert [one.get("class") for one in parts(drawing, "g")][:2] == ["s1 k1", "s2 k2"]

    def test_accessible_text(self):
        root = chart(line())

        assert (root.get("role"), root.get("aria-labelledby")) == ("img", "a-title a-desc")
        assert (root.findtext("title"), root.findtext("desc")) == ("Accuracy", "rises")

    def test_reference_lies_within_the_chart(self):
        drawing = chart(line(), references={"all labels 0.950": 0.95})
        [reference] = parts(drawing, "path", "reference")

        assert texts(drawing, "note") == ["all labels 0.950"]
        assert points(reference)[0][1] > 0

    def test_names_are_text_and_long_ones_are_shortened(self):
        drawing = line_chart("a", EVIL, EVIL, [line(EVIL)], x_label=EVIL, y_label=EVIL, references={EVIL: 0.5})

        assert "<script" not in drawing
        assert ET.fromstring(drawing).findtext("title") == EVIL
        assert texts(chart(line("a strategy with a long name")), "name") == ["a strategy with…"]

    def test_one_range_for_charts_side_by_side(self):
        near, far = (chart(line(y=(0.5, 0.5)), y_range=(0.0, top)) for top in (0.7, 7.0))

        assert points(parts(near, "path", "line")[0])[0][1] < points(parts(far, "path", "line")[0])[0][1]

    @pytest.mark.parametrize(
        ("lines", "changes", "message"),
        [
            ((), {}, "at least one line"),
            ((line(y=()),), {}, "at least one value"),
        ],
    )
    def test_refuses_what_cannot_be_drawn(self, lines, changes, message):
        with pytest.raises(ValueError, match=message):
            chart(*lines, **changes)


class TestIntervalChart:
    def test_hand_computed(self):
        """From 0 to 0.5 with a twentieth of air: 0.2 and 0.5 on an axis of 0.525."""
        [drawn] = parts(intervals(Interval(1, "entropy", 0.2, 0.3, 0.5, ""), from_zero=True), "path", "line")
        (low, _), (high, _) = points(drawn)

        assert (low, high) == pytest.approx((12 + 352 * 0.2 / 0.525, 12 + 352 * 0.5 / 0.525), abs=0.06)

    @pytest.mark.parametrize(("low", "arrows"), [(0.2, 1), (math.inf, 0)])
    def test_infinite_end_points_to_the_right_and_an_infinite_interval_is_words_only(self, low, arrows):
        drawing = intervals(Interval(1, "entropy", low, math.inf, math.inf, "never [20–never]"))

        assert len(parts(drawing, "path", "arrow")) == len(parts(drawing, "path", "line")) == arrows
        assert parts(drawing, "circle", "dot") == []
        assert texts(drawing, "value") == ["never [20–never]"]

    @pytest.mark.parametrize(("from_zero", "marks"), [(True, 0), (False, 1)])
    def test_zero_is_marked_where_the_axis_does_not_begin_there(self, from_zero, marks):
        drawing = intervals(Interval(1, "entropy", 0.2, 0.3, 0.5, ""), from_zero=from_zero)

        assert len(parts(drawing, "path", "reference")) == marks
        assert (drawing.get("role"), drawing.findtext("desc")) == ("img", "30 %")


class TestBarChart:
    def test_widths_are_the_shares(self):
        drawing = ET.fromstring(
            bar_chart("c", "Balance", "d", {"normal": {"of-labels": 0.25, "of-pool": 0.5}, EVIL: {}})
        )
        first, second = (float(one.get("width", "")) for one in parts(drawing, "rect", "bar"))

        assert second == 2 * first == 184
        assert [texts(drawing, "tick"), texts(drawing, "head")] == [["25 %", "50 %"], ["normal", EVIL]]


class TestLegend:
    def test_a_piece_of_each_line_with_name_and_meaning(self):
        lines = [Line(1, "accuracy", [1], [1], meaning="on the test images"), line(EVIL, 2)]
        items = list(ET.fromstring(legend(lines)).iter("li"))

        assert ["".join(one.itertext()) for one in items] == ["accuracy: on the test images", f"{EVIL}: "]
        assert [parts(one, "path", "line")[0].get("stroke-dasharray") for one in items] == [None, "7 3"]
        assert [len(parts(one, "rect", "band")) for one in items] == [0, 1]


class TestSwatch:
    def test_a_line_like_that_of_the_chart(self):
        [drawn] = parts(ET.fromstring(swatch(2)), "path", "line")
        [of_chart] = parts(chart(line("bald", 2)), "path", "line")

        assert drawn.get("stroke-dasharray") == of_chart.get("stroke-dasharray")
        assert ET.fromstring(swatch(2)).get("aria-hidden") == "true"

    def test_thirteen_styles_differ_in_colour_or_dash(self):
        roots = [ET.fromstring(swatch(style)) for style in range(13)]

        assert len({(root.get("class", "").split()[1], root[0].get("stroke-dasharray")) for root in roots}) == 13


class TestAxes:
    AXES = Axes((0.0, 2.0), (0.0, 10.0), left=10, top=20, right=110, bottom=120)

    def test_hand_computed(self):
        assert (self.AXES.x(0.5), self.AXES.y(2.5)) == (35, 95)

    @given(low=numbers, width=st.floats(0, 1e6))
    @settings(deadline=None)
    def test_holds_what_it_is_around(self, low, width):
        axes = Axes.around((low, low + width), (low, low + width), box=(0, 0, 100, 100))

        for value in (low, low + width):
            assert -1e-6 <= axes.x(value) <= 100 + 1e-6
            assert -1e-6 <= axes.y(value) <= 100 + 1e-6

    def test_fractions_get_no_margin_below_zero(self):
        assert Axes.around((0, 1), (0.0, 1.0), box=(0, 0, 1, 1)).y_range[0] == 0


class TestTicks:
    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [
            (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (0.56, 0.83, [0.6, 0.7, 0.8]),
            (-0.012, 0.06, [0, 0.02, 0.04, 0.06]),
            (30.0, 610.0, [200, 400, 600]),
        ],
    )
    def test_hand_computed(self, low, high, expected):
        assert ticks(low, high) == expected

    @given(low=numbers, width=st.floats(1e-3, 1e6))
    @settings(deadline=None)
    def test_within_and_evenly_spaced(self, low, width):
        found = ticks(low, low + width)

        assert 1 <= len(found) <= 10
        assert low - 1e-6 * width <= found[0]
        assert found[-1] <= low + width * (1 + 1e-6)
        assert np.ptp(np.diff(found)) < 1e-6 * width if len(found) > 2 else True


class TestSpreadOut:
    def test_hand_computed(self):
        """Two at 50 move half a gap each; the third is far enough away. Those that do not fit are spaced evenly."""
        assert spread_out([50, 10, 50], gap=12, low=0, high=100) == pytest.approx([44, 10, 56])
        assert spread_out([5, 5, 5], gap=12, low=0, high=10) == pytest.approx([0, 5, 10])

    @given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
    @settings(deadline=None)
    def test_apart_in_order_and_within(self, places):
        found = spread_out(places, gap=13, low=0, high=200)

        assert all(b - a >= min(13, 200 / max(len(places) - 1, 1)) - 1e-6 for a, b in pairwise(sorted(found)))
        assert np.argsort(found, kind="stable").tolist() == np.argsort(places, kind="stable").tolist()
        assert min(found) >= -1e-6
        assert max(found) <= 200 + 1e-6


@pytest.mark.parametrize(
    ("value", "percent", "expected"),
    [
        (0.8049, False, "0.805"),
        (0.0, False, "0"),
        (0.0042, False, "0.0042"),
        (125.4, False, "125"),
        (0.354, True, "35 %"),
    ],
)
def test_value_words(value, percent, expected):
    assert value_words(value, percent=percent) == expected


def test_path_has_a_tenth_of_a_unit():
    assert path([(1, 2.26), (3.04, 4)]) == "M1 2.3L3 4"


def test_a_scatter_chart_has_one_scale_and_draws_what_coincides_once():
    """The wider axis, 0 to 7, takes 700 of 720 units; the other ends at 3.5, half of that."""
    points = np.array([[0, 0], [7, 3.5], [7, 3.501], [3.5, 0]])

    chart = ET.fromstring(
        scatter_chart(
            "m", "Map", "words", points, styles=["s0", "s1"], kinds=[0, 1, 1, 0], marks=[Mark(3, "a", "Task 3")]
        )
    )

    paths = [one.get("d") for one in chart if one.tag.endswith("path")]
    assert paths == ["M10 360h0M360 360h0", "M710 10h0"]
    [circle] = [one for one in chart.iter() if one.tag.endswith("circle")]
    assert (circle.get("cx"), circle.get("cy")) == ("360", "360.1")
