"""The figures of a project's page, and what they tell to who does not see them."""

import csv
from xml.etree import ElementTree as ET

import pytest

from ml_backend.analytics.evaluation import HoldoutEstimate, holdout_estimate, wilson
from ml_backend.server.figures import Series, learning_series, legend, line_figure
from ml_backend.server.views import rounds_csv
from ml_backend.storage import RoundSummary
from tests.fakes import make_fit, make_report
from tests.unit.analytics.test_evaluation import answered

SVG_TEXTS = ("title", "desc", "text")


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in root.iter() if element.get("class") == name]


def line(number: int, labels: int) -> RoundSummary:
    report = make_report(f"r{number:06d}")
    return RoundSummary.of(report.model_copy(update={"fit": make_fit(), "labels_per_class": {"normal": labels}}))


LINES = [line(1, 100), line(2, 200), line(3, 300)]


def by_chance(*rounds: str) -> HoldoutEstimate | None:
    return holdout_estimate(answered(*rounds), ("normal", "severe"))


ENOUGH = by_chance("y" * 20, "y" * 10 + "n" * 10, "y" * 10)
"""After round 2 30 of 40, after round 3 40 of 50; after round 1 there are too few."""


def texts(markup: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(markup).iter() if element.tag in SVG_TEXTS]


class TestLearningSeries:
    def test_control_images_are_a_line_with_its_interval(self):
        accuracy, control = learning_series(LINES, ENOUGH)

        assert [accuracy.name, control.name] == ["accuracy", "random images"]
        assert control.points == [(200.0, 0.75), (300.0, 0.8)]
        assert control.low == [(200.0, wilson(30, 40)[0]), (300.0, wilson(40, 50)[0])]
        assert control.high == [(200.0, wilson(30, 40)[1]), (300.0, wilson(40, 50)[1])]

    @pytest.mark.parametrize("control", [None, by_chance(), by_chance("y" * 29)])
    def test_too_few_are_no_line(self, control):
        assert [one.name for one in learning_series(LINES, control)] == ["accuracy"]

    def test_a_round_that_cannot_be_read_has_no_point(self):
        _, control = learning_series([LINES[0], LINES[2]], ENOUGH)

        assert control.points == [(300.0, 0.8)]


class TestLineFigure:
    def test_tells_its_last_values_to_who_does_not_see_it(self):
        told = texts(line_figure("learning", "Accuracy", learning_series(LINES, ENOUGH)))

        low, high = (100 * end for end in wilson(40, 50))
        assert (
            "Last values: accuracy 50 % at 300 labels; random images 80 % at 300 labels "
            f"(95 % interval {low:.0f} to {high:.0f} %)."
        ) in told
        assert "accuracy" in told
        assert "random images" in told

    def test_the_interval_is_drawn_around_its_line_and_no_other(self):
        figure = ET.fromstring(line_figure("learning", "Accuracy", learning_series(LINES, ENOUGH)))

        assert [len(of_class(group, "band")) for group in of_class(figure, "s2")] == [1, 0]  # the second is its name
        [band] = of_class(figure, "band")
        assert str(band.get("d")).count("L") == 3

    def test_of_one_point_the_interval_is_seen_too(self):
        """A band has no width there."""
        alone = Series("x", [(5.0, 0.5)], [(5.0, 0.25)], [(5.0, 1.0)])

        group = next(ET.fromstring(line_figure("x", "X", [alone])).iter("g"))
        [across] = [str(part.get("d")) for part in of_class(group, "tie")]
        (x, top), (x_again, bottom) = (map(float, one.split()) for one in across[1:].split("L"))
        assert x == x_again
        assert abs(top - bottom) > 100

    def test_nothing_to_draw(self):
        with pytest.raises(ValueError, match="leave it out"):
            line_figure("x", "X", [])


class TestLegend:
    def test_says_what_each_line_is_beside_a_piece_of_it(self):
        series = learning_series(LINES, ENOUGH)

        items = list(ET.fromstring(legend(series)).iter("li"))

        assert ["".join(one.itertext()) for one in items] == [f"{one.name}: {one.told}" for one in series]
        assert [one.get("class") for one in items] == ["s1", "s2"]
        assert [of_class(one, "line")[0].get("stroke-dasharray") for one in items] == [None, "7 3"]
        assert [len(of_class(one, "band")) for one in items] == [0, 1]
        assert "95 % interval" in series[1].told

    def test_a_hostile_name_stays_text(self):
        assert "<script>" not in legend([Series("<script>", [(1.0, 0.5)], told="<script>")])


class TestRoundsCsv:
    def rows(self, control: HoldoutEstimate | None) -> list[dict[str, str]]:
        return list(csv.DictReader(rounds_csv(LINES, control).splitlines()))

    def test_has_the_curve_of_what_came_by_chance(self):
        first, second, third = self.rows(ENOUGH)

        assert (second["control_images"], second["control_accuracy"]) == ("40", "0.75")
        assert (float(third["control_low"]), float(third["control_high"])) == wilson(40, 50)
        assert first["control_images"] == first["control_accuracy"] == first["control_low"] == ""

    @pytest.mark.parametrize("control", [None, by_chance("y" * 29)])
    def test_is_empty_where_there_is_too_little_to_tell(self, control):
        assert {row["control_accuracy"] for row in self.rows(control)} == {""}
