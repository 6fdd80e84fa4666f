"""What experiments read off results that were made by hand: the expected one, and one that is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ml_backend.registry import STRATEGIES
from ml_backend.simulation.experiments import (
    Arm,
    Finished,
    read_centres,
    read_imbalance,
    read_latency,
    read_losses,
    read_paper,
)
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.simulation.options import SimulateOptions
from ml_backend.simulation.run_log import RoundRow, StudyResults
from tests.unit.simulation.drawn_results import drawn_results

BINARY = ("normal", "diseased")


def finished(results: StudyResults, name: str = "", title: str = "") -> list[Finished]:
    return [Finished(Arm(name, title, SimulateOptions(labels=Path("labels.csv"), out=Path("out"))), results)]


def with_metrics(results: StudyResults, change: Callable[[RoundRow], dict[str, object]]) -> StudyResults:
    return replace(
        results,
        rounds=tuple(
            row.model_copy(update={"metrics": row.metrics.model_copy(update=change(row))}) for row in results.rounds
        ),
    )


def with_auroc(results: StudyResults, baseline: float) -> StudyResults:
    def changed(metrics: RoundMetrics, seed: int) -> RoundMetrics:
        return metrics.model_copy(update={"auroc": baseline + 0.001 * seed})

    return replace(
        results,
        baselines=tuple(
            row.model_copy(update={"metrics": changed(row.metrics, row.seed)}) for row in results.baselines
        ),
    )


class TestReadPaper:
    def test_the_papers_winner_ahead_in_every_seed_is_as_expected(self):
        """Ten seeds, entropy 0.05 above random everywhere: its interval is [0.05, 0.05], p of Wilcoxon 0.002."""
        results = with_metrics(
            drawn_results(("random", "entropy", "bald"), seeds=10),
            lambda row: {"auroc": 0.7 + 0.01 * row.round + 0.05 * (row.strategy == "entropy")},
        )
        reading = read_paper("entropy")(finished(results))

        assert reading.surprises == ()
        assert reading.found[1].startswith("Furthest ahead of random in AU ROC: entropy, +0.050 [+0.050 to +0.050]")
        assert "p = 0.002" in reading.found[2]
        assert [row[0] for row in reading.rows] == ["random", "entropy", "bald"]
        assert {len(row) for row in reading.rows} == {len(reading.columns)}

    def test_another_one_ahead_is_not(self):
        results = with_metrics(
            drawn_results(("random", "entropy", "bald"), seeds=10),
            lambda row: {"auroc": 0.7 + 0.05 * (row.strategy == "bald")},
        )
        reading = read_paper("entropy")(finished(results))

        assert reading.surprises == ("entropy is not ahead of random in AU ROC by more than luck",)
        assert "all equal" in reading.found[2]

    def test_two_seeds_prove_nothing(self):
        results = with_metrics(
            drawn_results(("random", "entropy"), seeds=2),
            lambda row: {"auroc": 0.7 + 0.05 * (row.strategy == "entropy")},
        )

        assert read_paper("entropy")(finished(results)).surprises


class TestReadLosses:
    def results(self, gain: float, noise: float, epochs: int) -> StudyResults:
        """Weighted against unweighted; seeds differ by 0.1 unweighted."""
        drawn = drawn_results(("random", "entropy"), seeds=3, variants=("weighted", "unweighted"))

        def change(row: RoundRow) -> dict[str, object]:
            weighted = row.variant == "weighted"
            return {
                "recall": {"normal": 0.5 + gain * weighted, "viral": 0.5, "bacterial": 0.5},
                "balanced_accuracy": 0.5 + row.seed * (noise if weighted else 0.1),
            }

        changed = with_metrics(drawn, change)
        return replace(
            changed,
            rounds=tuple(
                row.model_copy(update={"epochs": epochs if row.variant == "weighted" else 30}) for row in changed.rounds
            ),
        )

    def test_as_expected(self):
        reading = read_losses(finished(self.results(gain=0.2, noise=0.05, epochs=39)))

        assert reading.surprises == ()
        assert reading.found == (
            "Recall of the rarest class (normal), weighted minus unweighted: 0.200 [0.200 to 0.200].",
            "Epochs of a training, median: 39 weighted, 30 unweighted.",
            "Standard deviation of the balanced accuracy over seeds: 0.0500 weighted, 0.1000 unweighted.",
        )
        assert reading.rows[0] == (
            "random",
            "weighted",
            "39 [39–39]",
            "0.700 [0.700 to 0.700]",
            "0.550 [0.426 to 0.674]",
            "0.0500",
        )

    def test_every_difference_is_named(self):
        assert len(read_losses(finished(self.results(gain=-0.2, noise=0.2, epochs=60))).surprises) == 3


class TestReadLatency:
    def results(self, **seconds: float) -> StudyResults:
        drawn = drawn_results(tuple(STRATEGIES), seeds=3, rounds=1)
        rows = tuple(
            row.model_copy(update={"acquisition_seconds": seconds.get(row.strategy, 0.1 + 0.001 * row.seed)})
            for row in drawn.rounds
        )
        return replace(drawn, rounds=rows)

    def test_alike_but_for_batch_bald_is_as_expected(self):
        """75 of 1,336 are labelled, so 1,261 in the pool."""
        reading = read_latency(finished(self.results(batch_bald=0.15, random=0.001, badge=9.0)))

        assert reading.surprises == ()
        assert reading.found[0].startswith("A pool of 1,261 images, 50 passes, a batch of 20")
        assert reading.rows[0] == ("random", "0.0010", "0.0010 to 0.0010", "0.0008")
        assert reading.rows[-1][0] == "badge"

    def test_a_slow_function_and_a_slow_batch_are_named(self):
        assert read_latency(finished(self.results(batch_bald=0.202, bald=0.303))).surprises == (
            "bald takes 3.0 times as long as entropy",
            "batch_bald takes 2.0 times as long as most of them",
        )


class TestReadImbalance:
    def results(self, gain: float) -> StudyResults:
        drawn = drawn_results(("random", "entropy"), seeds=10, variants=("weighted", "unweighted"), classes=BINARY)
        picks = tuple(
            row.model_copy(
                update={"label": "normal" if row.rank <= 4 + row.seed % 2 and row.strategy == "entropy" else "diseased"}
            )
            for row in drawn.batches
        )
        changed = with_metrics(
            drawn, lambda row: {"recall": {"normal": 0.3 + gain * (row.variant == "weighted"), "diseased": 0.9}}
        )
        return replace(changed, batches=picks)

    def test_picked_and_found_as_expected_in_both_studies(self):
        """4 or 5 of 20 picks by entropy, none by random."""
        both = [*finished(self.results(0.2), title="5 / 95"), *finished(self.results(0.2), title="2 / 98")]
        reading = read_imbalance(both)

        assert reading.surprises == ()
        assert "entropy minus random: 0.225 [" in reading.found[0]
        assert "weighted minus unweighted: 0.200 [0.200 to 0.200]" in reading.found[1]
        assert reading.rows[2][:4] == ("5 / 95", "entropy", "weighted", "22.5 %")
        assert len(reading.rows) == 8

    def test_the_study_that_is_not_as_expected_is_named(self):
        both = [*finished(self.results(0.2), title="5 / 95"), *finished(self.results(0.0), title="2 / 98")]

        [surprise] = read_imbalance(both).surprises
        assert surprise == "2 / 98: the weighted loss does not find more of normal by more than luck"


class TestReadCentres:
    def four(self, across: float) -> list[Finished]:
        """Within a centre 0.9; in the second centre a network from the first one reaches ``across``."""
        aurocs = {"1-to-1": 0.9, "2-to-1": 0.8, "1-to-2": across, "2-to-2": 0.9}
        return [
            one
            for name, auroc in aurocs.items()
            for one in finished(with_auroc(drawn_results(seeds=3), auroc), name, name.replace("-to-", " -> "))
        ]

    def test_a_loss_both_ways_is_as_expected(self):
        reading = read_centres(self.four(across=0.7))

        assert reading.surprises == ()
        assert reading.found == (
            "2 -> 1: AU ROC lost against a network of the centre itself, with all labels: 0.100 [0.100 to 0.100].",
            "1 -> 2: AU ROC lost against a network of the centre itself, with all labels: 0.200 [0.200 to 0.200].",
        )
        assert [row[0] for row in reading.rows] == ["1 -> 1", "2 -> 1", "1 -> 2", "2 -> 2"]
        assert reading.rows[1][2] == pytest.approx("0.801 [0.799 to 0.803]")

    def test_the_way_without_a_loss_is_named(self):
        [surprise] = read_centres(self.four(across=0.95)).surprises

        assert surprise.startswith("1 -> 2: a network from elsewhere is as good as the centre's own (-0.050")
