"""Figures: where values lie, what a reader of the SVG is told, and that nobody's names become markup."""

import re
from xml.etree import ElementTree as ET

import pytest

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


def line(name: str = "entropy", style: int = 1, *, middle: tuple[float, ...] = (0.5, 0.7)) -> Line:
    x = tuple(0.1 * place for place in range(1, len(middle) + 1))
    return Line(style, name, x, middle, [v - 0.1 for v in middle], [v + 0.1 for v in middle])


def chart(*lines: Line, **changes: object) -> LineChart:
    fields: dict[str, object] = {"id": "a", "title": "Accuracy", "description": "d", "y_label": "accuracy"}
    return LineChart(lines=lines, **(fields | changes))  # type: ignore[arg-type]


def interval(**changes: object) -> IntervalChart:
    row = Interval(1, "entropy", 0.2, 0.3, 0.5, "30 % [20–50]")
    fields: dict[str, object] = {"id": "b", "title": "Labels", "description": "d", "x_label": "%", "rows": [row]}
    return IntervalChart(**(fields | changes))  # type: ignore[arg-type]


def parts(drawing: str, tag: str, kind: str | None = None) -> list[ET.Element]:
    found = ET.fromstring(drawing).iter(tag)
    return [one for one in found if kind is None or kind in one.get("class", "").split()]


def points(element: ET.Element) -> list[tuple[float, float]]:
    pairs = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", element.get("d", ""))
    return [(float(x), float(y)) for x, y in pairs]


class TestLineChart:
    def test_higher_values_lie_higher(self):
        [drawn] = parts(line_chart(chart(line(middle=(0.5, 0.7)))), "path", "line")
        (left, low), (right, high) = points(drawn)

        assert left < right
        assert high < low

    def test_the_band_runs_along_the_upper_and_back_along_the_lower_quartile(self):
        [band] = parts(line_chart(chart(line(middle=(0.5, 0.7, 0.7)))), "path", "band")
        corners = points(band)

        assert len(corners) == 6
        assert [x for x, _ in corners[:3]] == [x for x, _ in reversed(corners[3:])]
        assert all(up < down for (_, up), (_, down) in zip(corners[:3], reversed(corners[3:]), strict=True))

    def test_one_round_is_a_point(self):
        drawing = line_chart(chart(line(middle=(0.5,))))

        assert parts(drawing, "path", "line") == []
        assert len(parts(drawing, "circle", "end")) == 1

    def test_reads_values_at_every_label_count_highest_first(self):
        low, high = line("random", 0, middle=(0.5, 0.6)), line("entropy", 1, middle=(0.55, 0.75))
        titles = [one.findtext("title") for one in parts(line_chart(chart(low, high)), "rect", "strip")]

        assert titles == [
            "10.0 % labelled\nentropy: 0.550 [0.450–0.650]\nrandom: 0.500 [0.400–0.600]",
            "20.0 % labelled\nentropy: 0.750 [0.650–0.850]\nrandom: 0.600 [0.500–0.700]",
        ]

    def test_lines_of_different_lengths(self):
        drawing = line_chart(chart(line(middle=(0.5, 0.6, 0.7)), line("random", 0, middle=(0.5,))))
        *_, last = (one.findtext("title") or "" for one in parts(drawing, "rect", "strip"))

        assert "entropy" in last
        assert "random" not in last

    def test_lines_differ_by_colour_and_by_dash(self):
        drawing = line_chart(chart(line("entropy", 1), line("bald", 2)))
        first, second = parts(drawing, "path", "line")

        assert first.get("stroke-dasharray") != second.get("stroke-dasharray")
        assert [one.get("class") for one in parts(drawing, "g")][:2] == ["s1 k1", "s2 k2"]

    def test_who_does_not_see_it_is_told(self):
        root = ET.fromstring(line_chart(chart(line(), description="rises")))

        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == "a-title a-desc"
        assert (root.findtext("title"), root.findtext("desc")) == ("Accuracy", "rises")

    def test_shows_the_reference_within_the_figure(self):
        drawing = line_chart(chart(line(), references=[Reference("all labels 0.950", 0.95)]))
        [reference] = parts(drawing, "path", "reference")

        assert "all labels 0.950" in [one.text for one in parts(drawing, "text", "note")]
        assert points(reference)[0][1] > 0

    def test_names_are_text(self):
        evil = "<script>alert(1)</script>"
        drawing = line_chart(chart(line(evil), title=evil, references=[Reference(evil, 0.5)]))

        assert "<script" not in drawing
        assert ET.fromstring(drawing).findtext("title") == evil

    def test_one_range_for_figures_side_by_side(self):
        near, far = (line_chart(chart(line(middle=(0.5, 0.5)), y_range=(0.0, top))) for top in (0.7, 7.0))

        assert points(parts(near, "path", "line")[0])[0][1] < points(parts(far, "path", "line")[0])[0][1]

    def test_refuses_what_cannot_be_drawn(self):
        with pytest.raises(ValueError, match="at least one line"):
            line_chart(chart())
        with pytest.raises(ValueError, match="entropy has no point"):
            line_chart(chart(line(middle=())))
        with pytest.raises(ValueError, match=r"no place for -0\.1"):
            line_chart(chart(line(middle=(0.0, 1.0)), logarithmic=True))


class TestIntervalChart:
    def test_hand_computed(self):
        """From 0 to 0.5, a twentieth of air: 0.2 and 0.5 on an axis of 0.525."""
        [drawn] = parts(interval_chart(interval(from_zero=True)), "path", "line")
        (low, _), (high, _) = points(drawn)

        assert (low, high) == pytest.approx((12 + 352 * 0.2 / 0.525, 12 + 352 * 0.5 / 0.525), abs=0.06)

    def test_an_infinite_end_points_off_to_the_right(self):
        row = Interval(1, "entropy", 0.2, None, None, "never [20–never]")
        drawing = interval_chart(interval(rows=[row]))

        assert len(parts(drawing, "path", "arrow")) == 1
        assert parts(drawing, "circle", "end") == []
        assert "never [20–never]" in [one.text for one in parts(drawing, "text", "value")]

    def test_never_in_any_run_is_words_only(self):
        drawing = interval_chart(interval(rows=[Interval(1, "entropy", None, None, None, "never")]))

        assert parts(drawing, "path", "line") == []
        assert "never" in [one.text for one in parts(drawing, "text", "value")]

    @pytest.mark.parametrize(("from_zero", "marks"), [(True, 0), (False, 1)])
    def test_marks_zero_where_it_is_what_counts(self, from_zero, marks):
        assert len(parts(interval_chart(interval(from_zero=from_zero)), "path", "reference")) == marks

    def test_who_does_not_see_it_is_told(self):
        root = ET.fromstring(interval_chart(interval(description="entropy 30 %.")))

        assert (root.get("role"), root.findtext("desc")) == ("img", "entropy 30 %.")


class TestSwatch:
    def test_a_line_like_the_figures(self):
        [drawn] = parts(swatch(2), "path", "line")
        [of_figure] = parts(line_chart(chart(line("bald", 2))), "path", "line")

        assert drawn.get("stroke-dasharray") == of_figure.get("stroke-dasharray")
        assert ET.fromstring(swatch(2)).get("aria-hidden") == "true"

    def test_no_two_of_thirteen_are_alike(self):
        """Thirteen strategies is more than there are: colour or dash differs always."""
        looks = set()
        for style in range(13):
            root = ET.fromstring(swatch(style))
            colour = root.get("class", "").split()[1]
            looks.add((colour, root[0].get("stroke-dasharray")))

        assert len(looks) == 13
