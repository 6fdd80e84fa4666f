"""Figures of a study: which lines stand where, and that the numbers beside them are the same."""

from xml.etree import ElementTree as ET

import numpy as np

from ml_backend.simulation.analysis import LearningCurve
from ml_backend.simulation.report import (
    Figure,
    MetricAnswer,
    against_random,
    answer,
    differences,
    group,
    metric_group,
    metrics_of,
    needed,
)
from ml_backend.simulation.run_log import StudyResults
from tests.unit.simulation.drawn_results import drawn_results

STYLES = {"random": 0, "entropy": 1, "mean_std": 2}


def accuracy(results: StudyResults) -> MetricAnswer:
    return answer(metrics_of(results)[0], results)


def names(figure: Figure) -> list[str | None]:
    texts = ET.fromstring(figure.drawing).iter("text")
    return [one.text for one in texts if one.get("class") == "name"]


def notes(figure: Figure) -> list[str | None]:
    return [one.text for one in ET.fromstring(figure.drawing).iter("text") if one.get("class") == "note"]


def curve(strategy: str, seed: int, *values: float, variant: str = "") -> LearningCurve:
    return LearningCurve(strategy, seed, np.arange(10, 10 * len(values) + 1, 10), np.array(values), 100, variant)


class TestGroup:
    def test_numbers_are_medians_and_quartiles_of_the_runs(self):
        curves = [curve("random", 0, 0.1, 0.5), curve("random", 1, 0.2, 0.6), curve("random", 2, 0.4, 0.7)]
        found = group("x", "X", "", curves, STYLES)

        assert found.numbers.columns == ("10 labels", "20 labels")
        assert found.numbers.rows == (("random", ("0.200 [0.150–0.300]", "0.600 [0.550–0.650]")),)

    def test_a_strategy_that_ended_early_has_dashes(self):
        found = group("x", "X", "", [curve("random", 0, 0.1, 0.5), curve("entropy", 0, 0.1)], STYLES)

        assert dict(found.numbers.rows)["entropy"][1] == "-"

    def test_at_most_six_columns(self):
        found = group("x", "X", "", [curve("random", 0, *np.linspace(0, 1, 10).tolist())], STYLES)

        assert found.numbers.columns[0] == "10 labels"
        assert found.numbers.columns[-1] == "100 labels"
        assert len(found.numbers.columns) == 6

    def test_logarithmic_only_where_values_lie_far_apart(self):
        near = group("x", "X", "", [curve("random", 0, 1.0, 2.0)], STYLES, spread=True)
        far = group("x", "X", "", [curve("random", 0, 0.01, 5.0)], STYLES, spread=True)

        assert ">0.1<" not in near.figures[0].drawing
        assert all(f">{tick}<" in far.figures[0].drawing for tick in ("0.01", "0.1", "1"))

    def test_variants_stand_on_one_scale(self):
        low, high = curve("random", 0, 0.1, 0.2, variant="a"), curve("random", 0, 0.8, 0.9, variant="b")
        first, second = group("x", "X", "", [low, high], STYLES).figures

        for tick in ("0.2", "0.4", "0.6", "0.8"):
            assert f">{tick}<" in first.drawing
            assert f">{tick}<" in second.drawing

    def test_nothing_to_draw(self):
        found = group("x", "X", "", [], STYLES)

        assert (found.figures, found.numbers.rows) == ((), ())


class TestMetricGroup:
    def test_a_figure_a_variant_with_its_own_baseline(self):
        results = drawn_results(("random", "entropy"), variants=("weighted", "unweighted"))
        found = metric_group(accuracy(results), STYLES)

        assert [figure.title for figure in found.figures] == ["Accuracy, weighted", "Accuracy, unweighted"]
        assert [notes(figure) for figure in found.figures] == [["all labels 0.804"]] * 2
        assert {tuple(sorted(map(str, names(figure)))) for figure in found.figures} == {("entropy", "random")}


class TestAgainstRandom:
    def test_a_figure_a_strategy(self):
        found = against_random(accuracy(drawn_results()), STYLES)

        assert [figure.title for figure in found] == ["entropy against random", "mean_std against random"]
        assert [sorted(map(str, names(figure))) for figure in found] == [["entropy", "random"], ["mean_std", "random"]]

    def test_none_without_random(self):
        assert against_random(accuracy(drawn_results(("entropy",))), STYLES) == ()


class TestIntervals:
    def test_labels_needed(self):
        one = accuracy(drawn_results(rounds=20))
        figure = needed(one, "95 % of the baseline", STYLES)
        assert figure is not None

        assert figure.title == "Labels needed for 95 % of the baseline: Accuracy"
        assert names(figure) == ["random", "entropy", "mean_std"]

    def test_the_median_lies_between_the_quartiles(self):
        figure = needed(accuracy(drawn_results(seeds=10, rounds=20)), "95 % of the baseline", STYLES)
        assert figure is not None
        root = ET.fromstring(figure.drawing)
        lines = [one.get("d", "") for one in root.iter("path") if one.get("class") == "line"]
        dots = [float(one.get("cx", "")) for one in root.iter("circle")]

        assert len(lines) == len(dots) == 3
        for drawn, dot in zip(lines, dots, strict=True):
            low, high = (float(point.split()[0]) for point in drawn.removeprefix("M").split("L"))
            assert low < dot < high

    def test_differences(self):
        figure = differences(accuracy(drawn_results()), STYLES)
        assert figure is not None

        assert names(figure) == ["entropy", "mean_std"]

    def test_none_where_there_is_nothing_to_hold_against(self):
        one = accuracy(drawn_results(("entropy",), baseline=False))

        assert needed(one, "95 % of the baseline", STYLES) is None
        assert differences(one, STYLES) is None
