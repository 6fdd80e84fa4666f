"""The lines and charts of the owner pages, and the same numbers as CSV."""

import csv
from xml.etree import ElementTree as ET

import pytest

from ml_backend.analytics.evaluation import HoldoutEstimate, holdout_estimate, wilson
from ml_backend.server.figures import balance_chart, learning_lines, recall_lines, shares_chart
from ml_backend.server.views import rounds_csv
from ml_backend.storage import RoundSummary
from tests.fakes import make_fit, make_report
from tests.unit.analytics.test_answers import PROOF
from tests.unit.analytics.test_evaluation import answered


def summary(number: int, labels: int) -> RoundSummary:
    report = make_report(f"r{number:06d}")
    return RoundSummary.of(report.model_copy(update={"fit": make_fit(), "labels_per_class": {"normal": labels}}))


ROUNDS = [summary(1, 100), summary(2, 200), summary(3, 300)]


def holdout(*rounds: str) -> HoldoutEstimate | None:
    return holdout_estimate(answered(*rounds), ("normal", "severe"))


ENOUGH = holdout("y" * 20, "y" * 10 + "n" * 10, "y" * 10)
"""After round 2 30 of 40, after round 3 40 of 50; after round 1 there are too few."""


class TestLearningLines:
    def test_holdout_is_a_line_with_its_interval(self):
        accuracy, control = learning_lines(ROUNDS, ENOUGH)

        assert [(one.name, one.style) for one in (accuracy, control)] == [("accuracy", 1), ("random images", 2)]
        assert (control.x, control.y) == ([200.0, 300.0], [0.75, 0.8])
        assert list(zip(control.low, control.high, strict=True)) == [wilson(30, 40), wilson(40, 50)]
        assert (control.n, accuracy.n) == ([40, 50], [2, 2, 2])
        assert list(zip(accuracy.low, accuracy.high, strict=True)) == [wilson(1, 2)] * 3

    def test_random_labels_are_one_point(self):
        """Of five folds of 40 to 44 labels each, 25 of 40 right."""
        proof = PROOF.model_copy(update={"labels": (40, 41, 42, 43, 44)})
        line = learning_lines(ROUNDS, None, proof)[-1]

        assert (line.name, line.x, line.y) == ("random labels", [42.0], [0.625])
        assert (line.low[0], line.high[0]) == wilson(25, 40)

    @pytest.mark.parametrize("control", [None, holdout(), holdout("y" * 29)])
    def test_too_few_are_no_line(self, control):
        assert [one.name for one in learning_lines(ROUNDS, control)] == ["accuracy"]

    def test_a_round_that_cannot_be_read_has_no_point(self):
        _, control = learning_lines([ROUNDS[0], ROUNDS[2]], ENOUGH)

        assert control.x == [300.0]


def test_recall_has_a_line_a_class_of_the_rounds_that_have_one():
    fits = [{"normal": 0.5, "severe": None}, {"normal": 0.6, "severe": 0.2}]
    rounds = [
        RoundSummary.of(
            make_report(f"r{number:06d}").model_copy(
                update={"fit": make_fit().model_copy(update={"validation_recall": recall})}
            )
        )
        for number, recall in enumerate(fits, start=1)
    ]

    assert [(one.name, one.style, one.y) for one in recall_lines(rounds)] == [
        ("normal", 1, [0.5, 0.6]),
        ("severe", 2, [0.2]),
    ]


def test_recall_has_an_interval_where_its_images_were_counted():
    """The first round is of a version that counted none; 3 of 4 in the second, 6 of 8 in the third."""
    confusions = {
        f"r{number:06d}": {"normal": {"normal": 3 * n, "severe": n}, "severe": {"normal": 0, "severe": 0}}
        for number, n in ((2, 1), (3, 2))
    }
    fit = make_fit().model_copy(update={"validation_recall": {"normal": 0.5, "severe": None}})
    rounds = [one.model_copy(update={"fit": fit}) for one in ROUNDS]
    [normal] = recall_lines(rounds, confusions)

    assert (normal.y, normal.n) == ([0.5, 0.75, 0.75], [4, 8])
    assert list(zip(normal.low, normal.high, strict=True)) == [wilson(3, 4), wilson(6, 8)]
    root = ET.fromstring(shares_chart("recall", "Recall", [normal]))
    band, dots = root.find(".//path[@class='band']"), root.findall(".//circle")
    assert band is not None
    assert float(str(band.get("d"))[1:].split()[0]) == float(str(dots[1].get("cx")))
    assert recall_lines(rounds, confusions | {"r000003": {}})[0].n == []
    assert [str(one.text).rpartition(" of ")[2] for one in root.iter("title")][-2:] == ["4 images", "8 images"]


class TestSharesChart:
    def test_description_has_the_last_values(self):
        root = ET.fromstring(shares_chart("learning", "Accuracy", learning_lines(ROUNDS, ENOUGH)))

        (low, high), own = (100 * end for end in wilson(40, 50)), [100 * end for end in wilson(1, 2)]
        assert root.findtext("desc") == (
            f"Last values: accuracy 50 % of 2 images at 300 labels (95 % interval {own[0]:.0f} to {own[1]:.0f} %); "
            f"random images 80 % of 50 images at 300 labels (95 % interval {low:.0f} to {high:.0f} %)."
        )

    def test_the_intervals_are_drawn_and_on_hover_how_many_images_they_are_of(self):
        root = ET.fromstring(shares_chart("learning", "Accuracy", learning_lines(ROUNDS, ENOUGH)))

        bands = [group.get("class") for group in root.iter("g") if group.find("path[@class='band']") is not None]
        assert bands == ["s1 k1", "s2 k2"]
        assert "random images: 80 % [67 %–89 %] of 50 images" in str([*root.iter("title")][-1].text)


def test_au_roc_is_written_in_hundredths_everywhere():
    fit = make_fit().model_copy(update={"validation_auroc": 0.876})
    root = ET.fromstring(
        shares_chart("learning", "Accuracy", learning_lines([summary(1, 40).model_copy(update={"fit": fit})]))
    )

    assert "; AU ROC 0.88 at 40 labels." in str(root.findtext("desc"))
    assert [*root.iter("title")][-1].text == "40 labels\nAU ROC: 0.88\naccuracy: 50 % [9 %–91 %] of 2 images"


@pytest.mark.parametrize(("labels", "share"), [({"normal": 30, "severe": 10}, 75), ({}, 0)])
def test_balance_chart_describes_both_shares(labels, share):
    described = ET.fromstring(balance_chart(labels, {"normal": 0.5})).findtext("desc")

    assert str(described).startswith(f"normal: {share} % of the labels, 50 % of the pool")


class TestRoundsCsv:
    def rows(self, control: HoldoutEstimate | None) -> list[dict[str, str]]:
        return list(csv.DictReader("".join(rounds_csv(ROUNDS, control)).splitlines()))

    def test_has_the_curve_of_the_holdout(self):
        first, second, third = self.rows(ENOUGH)

        assert (second["control_images"], second["control_accuracy"]) == ("40", "0.75")
        assert (float(third["control_low"]), float(third["control_high"])) == wilson(40, 50)
        assert first["control_images"] == first["control_accuracy"] == first["control_low"] == ""

    @pytest.mark.parametrize("control", [None, holdout("y" * 29)])
    def test_is_empty_where_there_are_too_few(self, control):
        assert {row["control_accuracy"] for row in self.rows(control)} == {""}
