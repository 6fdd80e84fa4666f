"""The log of a run and the tables of a study are read back as they were written, and damage is named."""

import csv
import multiprocessing
import time
from pathlib import Path

import pytest

from ml_backend.errors import StorageError
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run import do_run
from ml_backend.simulation.run_log import RunLog, StudyResults, read_results, write_results
from ml_backend.simulation.study import collect
from tests.unit.simulation.tiny import make_data, make_plan, make_study

RUN = Run(strategy="entropy", variant="", seed=0, loss="weighted")


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    log = RunLog(tmp_path, RUN.name)
    do_run(RUN, make_study(), log)
    return log


def hold(out: Path, seconds: float) -> None:
    with RunLog(out, "r").held():
        (out / "runs/r/held").touch()
        time.sleep(seconds)
        (out / "runs/r/let go").touch()


class TestRunLog:
    def test_of_nothing_is_empty(self, tmp_path):
        log = RunLog(tmp_path / "none", "r")

        assert log.read() == log.mend() == ((), ())
        assert log.baseline() is None
        assert (log.rounds_done(), log.is_done) == (0, False)
        assert not (tmp_path / "none").exists()

    def test_counts_its_rounds(self, log):
        assert log.rounds_done() == len(log.read()[0]) == 5
        assert log.is_done

    def test_a_damaged_line_is_named_with_the_way_out(self, log):
        lines = log._rounds.read_bytes().splitlines(keepends=True)
        log._rounds.write_bytes(lines[0] + b"{}\n" + b"".join(lines[2:]))

        with pytest.raises(StorageError, match=r"rounds.jsonl, line 2 is damaged: remove the folder .*/entropy-s0"):
            log.read()

    def test_a_full_disk_is_an_error_in_words(self, log):
        [row, *_], batch = log.read()
        log._rounds.unlink()
        log._rounds.mkdir()

        with pytest.raises(StorageError, match=r"rounds.jsonl could not be written"):
            log.append(row, batch[:5])

    def test_only_one_process_at_a_time_holds_a_run(self, tmp_path):
        """The second waits until the first has let go."""
        other = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, 0.5))
        other.start()
        while not (tmp_path / "runs/r/held").exists():
            time.sleep(0.02)

        with RunLog(tmp_path, "r").held():
            assert (tmp_path / "runs/r/let go").exists()
        other.join()


@pytest.fixture
def results(tmp_path: Path) -> StudyResults:
    plan = make_plan(losses=("weighted", "unweighted"))
    for run in plan.in_turn():
        do_run(run, make_study(plan), RunLog(tmp_path, run.name))
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
        do_run(first, make_study(plan), RunLog(tmp_path, first.name))

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
        plan = make_plan()

        assert results.summary.command == plan.command
        assert (results.summary.rounds, results.summary.batch_size, results.summary.passes) == (5, 5, 4)
        assert results.summary.variants == ("weighted", "unweighted")
