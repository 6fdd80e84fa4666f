"""Rows -> curves: values at their labels, runs that broke off, and what was picked."""

from dataclasses import replace

import pytest

from ml_backend.simulation.analysis import by_name
from ml_backend.simulation.report import (
    curves_of,
    finished_runs,
    metrics_of,
    picked_shares,
    picked_values,
    rarest,
)
from ml_backend.simulation.run_log import BatchRow, StudyResults
from tests.unit.simulation.drawn_results import TRAIN, drawn_results


def cut(results: StudyResults, strategy: str, seed: int, rounds: int) -> StudyResults:
    """One run that ended after so many rounds."""
    kept = [r for r in results.rounds if (r.strategy, r.seed) != (strategy, seed) or r.round <= rounds]
    return replace(results, rounds=tuple(kept))


def pick(round_number: int, label: str, aleatoric: float = 0.5) -> BatchRow:
    return BatchRow(
        run="random-s0",
        strategy="random",
        variant="",
        seed=0,
        round=round_number,
        rank=1,
        image_id="1",
        label=label,
        score=0.1,
        epistemic=0.2,
        aleatoric=aleatoric,
    )


class TestMetricsOf:
    def names(self, results: StudyResults) -> list[str]:
        return [metric.name for metric in metrics_of(results)]

    def test_three_classes(self):
        assert self.names(drawn_results()) == [
            "accuracy",
            "balanced_accuracy",
            "macro_f1",
            "auroc",
            "auprc",
            "auprc_rare",
            "kappa",
            "ece",
        ]

    def test_two_classes_of_which_the_first_is_rare(self):
        """AU PRC is of the last class: the rare one needs a curve of its own."""
        results = drawn_results(classes=("normal", "diseased"))
        [rare] = [metric for metric in metrics_of(results) if metric.name == "auprc_rare"]

        assert rare.title == "AU PRC of normal"
        assert rare.of(results.rounds[0].metrics) == results.rounds[0].metrics.average_precision["normal"]

    def test_two_classes_of_which_the_last_is_rare(self):
        results = drawn_results(classes=("normal", "diseased"))
        counts = {"train": {"normal": 900, "diseased": 100}}
        results = replace(results, summary=results.summary.model_copy(update={"labels_per_class": counts}))

        assert rarest(results) == "diseased"
        assert "auprc_rare" not in self.names(results)

    def test_leaves_out_what_is_never_defined(self):
        results = drawn_results()
        rows = [r.model_copy(update={"metrics": r.metrics.model_copy(update={"auroc": None})}) for r in results.rounds]

        assert "auroc" not in self.names(replace(results, rounds=tuple(rows)))


class TestFinishedRuns:
    def test_nothing_to_leave_out(self):
        results = drawn_results()

        assert finished_runs(results) == (results, ())

    def test_a_torn_run_is_left_out_and_named(self):
        results = cut(drawn_results(rounds=20), "entropy", 1, 7)
        kept, words = finished_runs(results)

        assert words == ("entropy, seed 1: 7 of 20 rounds",)
        assert {(r.strategy, r.seed) for r in kept.rounds} == {
            (s, n) for s in ("random", "entropy", "mean_std") for n in range(3)
        } - {("entropy", 1)}
        assert not [b for b in kept.batches if (b.strategy, b.seed) == ("entropy", 1)]

    def test_a_round_more_or_less_is_the_split(self):
        assert finished_runs(cut(drawn_results(), "entropy", 1, 5))[1] == ()

    def test_a_strategy_that_is_shorter_throughout_stays(self):
        results = drawn_results(("random", "entropy"), seeds=2, rounds=20)
        for seed in range(2):
            results = cut(results, "entropy", seed, 8)

        assert finished_runs(results)[1] == ()


class TestCurvesOf:
    def test_values_stand_at_their_labels(self):
        results = drawn_results(("random",), seeds=1, rounds=3)
        [curve] = curves_of(results, lambda row: row.metrics.accuracy)

        assert curve.labels.tolist() == [75, 95, 115]
        assert curve.values.tolist() == [row.metrics.accuracy for row in results.rounds]
        assert (curve.strategy, curve.seed, curve.train_images) == ("random", 0, TRAIN)

    def test_rounds_in_any_order(self):
        results = drawn_results()
        shuffled = replace(results, rounds=results.rounds[::-1])

        for one, other in zip(
            curves_of(results, lambda r: r.epochs), curves_of(shuffled, lambda r: r.epochs), strict=True
        ):
            assert (one.name, one.seed, one.values.tolist()) == (other.name, other.seed, other.values.tolist())

    def test_in_the_order_of_the_study(self):
        results = drawn_results(("random", "entropy"), variants=("weighted", "unweighted"))

        assert list(by_name(curves_of(results, lambda row: row.epochs))) == [
            "random, weighted",
            "random, unweighted",
            "entropy, weighted",
            "entropy, unweighted",
        ]

    def test_undefined_rounds_are_left_out_and_so_is_a_run_of_them(self):
        results = drawn_results(("random", "entropy"), seeds=1, rounds=3)

        def value(row):
            return None if row.strategy == "random" or row.round == 1 else 0.5

        [curve] = curves_of(results, value)
        assert (curve.strategy, curve.labels.tolist()) == ("entropy", [95, 115])


class TestPicked:
    RESULTS = drawn_results(("random",), seeds=1, rounds=3, batches=False)

    def test_shares_are_of_all_picks_so_far(self):
        """Round 1 picks a viral and a normal image, round 2 two viral ones, round 3 none: 1 of 2, then 3 of 4."""
        picks = (pick(1, "viral"), pick(1, "normal"), pick(2, "viral"), pick(2, "viral"))
        [curve] = picked_shares(replace(self.RESULTS, batches=picks), "viral")

        assert curve.labels.tolist() == [75, 95]
        assert curve.values.tolist() == [0.5, 0.75]

    def test_values_are_medians_of_a_round(self):
        picks = (pick(1, "viral", 0.1), pick(1, "viral", 0.2), pick(1, "viral", 0.9), pick(3, "viral", 0.4))
        [curve] = picked_values(replace(self.RESULTS, batches=picks), lambda one: one.aleatoric)

        assert curve.labels.tolist() == [75, 115]
        assert curve.values.tolist() == pytest.approx([0.2, 0.4])
