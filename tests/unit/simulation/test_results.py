"""Tables are read back as they were written, to the last bit."""

import csv
from pathlib import Path

import pytest

from ml_backend.errors import StorageError
from ml_backend.simulation.plan import StudyPlan
from ml_backend.simulation.run import do_run, journal_of, read_results, write_results
from ml_backend.simulation.run_log import StudyResults
from ml_backend.simulation.study import collect
from tests.unit.simulation.tiny import make_data, make_plan, make_study


@pytest.fixture
def results(tmp_path: Path) -> StudyResults:
    plan = make_plan(losses=("weighted", "unweighted"))
    for run in plan.in_turn():
        do_run(run, make_study(plan), journal_of(tmp_path, run))
    return collect(plan, make_data(), tmp_path)


def with_gaps(results: StudyResults) -> StudyResults:
    """A class that was never predicted, and awkward names and numbers."""
    first, *others = results.rounds
    metrics = first.metrics.model_copy(
        update={"auroc": None, "precision": {"normal": None, "moderate": 1 / 3, "severe": 0.1 + 0.2}}
    )
    batch, *more = results.batches
    return StudyResults(
        results.summary,
        (first.model_copy(update={"metrics": metrics, "train_seconds": 1e-17}), *others),
        (batch.model_copy(update={"image_id": 'a,"b"\nü.png', "score": 2 / 3}), *more),
        results.baselines,
    )


class TestTables:
    def test_read_back_as_written(self, results, tmp_path):
        full = with_gaps(results)

        write_results(full, tmp_path)

        assert read_results(tmp_path) == full

    def test_have_one_row_a_round_and_one_a_picked_image(self, results, tmp_path):
        write_results(results, tmp_path)

        with (tmp_path / "rounds.csv").open(newline="") as file:
            rounds = list(csv.DictReader(file))
        with (tmp_path / "batches.csv").open(newline="") as file:
            batches = list(csv.DictReader(file))
        assert len(rounds) == 2 * 2 * 2 * 5
        assert len(batches) == 5 * len(rounds)
        assert rounds[0]["run"] == "random-weighted-s0"
        assert list(rounds[0])[5:10] == ["labels", "share", "labels_normal", "labels_moderate", "labels_severe"]
        assert {"accuracy", "precision_severe", "recall_severe", "specificity_severe", "auroc", "ece"} <= set(rounds[0])
        assert list(batches[0])[-5:] == ["image_id", "label", "score", "epistemic", "aleatoric"]

    def test_hold_the_runs_in_the_order_of_the_plan(self, results):
        runs = list(dict.fromkeys(row.run for row in results.rounds))

        assert runs == [
            f"{strategy}-{loss}-s{seed}"
            for strategy in ("random", "entropy")
            for loss in ("weighted", "unweighted")
            for seed in (0, 1)
        ]
        assert [(row.variant, row.seed) for row in results.baselines] == [
            (loss, seed) for loss in ("weighted", "unweighted") for seed in (0, 1)
        ]

    def test_of_an_unfinished_study_hold_what_there_is(self, tmp_path):
        plan = make_plan()
        first, *_ = plan.in_turn()
        do_run(first, make_study(plan), journal_of(tmp_path, first))

        results = collect(plan, make_data(), tmp_path)

        assert {row.run for row in results.rounds} == {first.name}
        assert results.baselines == ()
        write_results(results, tmp_path)
        assert read_results(tmp_path) == results

    def test_a_folder_without_a_study_is_said(self, tmp_path):
        with pytest.raises(StorageError, match=r"holds no finished study: there is no summary.json"):
            read_results(tmp_path)

    @pytest.mark.parametrize("change", [("0.125", "many"), ("labels_severe", "labels_sever")])
    def test_a_damaged_table_is_named_with_its_line(self, results, tmp_path, change):
        write_results(results, tmp_path)
        table = tmp_path / "rounds.csv"
        table.write_text(table.read_text().replace(*change, 1))

        with pytest.raises(StorageError, match=r"rounds.csv, line 2 is no row of a study"):
            read_results(tmp_path)


class TestSummary:
    def test_counts_every_side(self, results):
        assert results.summary.images == {"train": 48, "val": 9, "test": 12}
        assert results.summary.labels_per_class["test"] == {"normal": 4, "moderate": 4, "severe": 4}

    def test_says_what_the_study_was(self, results):
        plan: StudyPlan = make_plan()

        assert results.summary.command == plan.command
        assert (results.summary.rounds, results.summary.batch_size, results.summary.passes) == (5, 5, 4)
        assert results.summary.variants == ("weighted", "unweighted")
