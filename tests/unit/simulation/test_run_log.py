"""The log of a run is read back as it was written, and damage is named; the tables hold every digit."""

import csv
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ml_backend.errors import StorageError
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run import do_run
from ml_backend.simulation.run_log import RunLog, StudyResults, write_results
from ml_backend.simulation.study import collect
from tests.unit.simulation.tiny import make_data, make_plan, make_study

RUN = Run(strategy="entropy", variant="", seed=0, loss="weighted")


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    log = RunLog(tmp_path, RUN.name)
    do_run(RUN, make_study(), log)
    return log


# In a process that does not load PyTorch, as one that imports this file would.
HOLD = """
import sys, time
from pathlib import Path
from ml_backend.simulation.run_log import RunLog

out = Path(sys.argv[1])
with RunLog(out, "r").held():
    (out / "held").touch()
    time.sleep(0.5)
    (out / "let go").touch()
"""


class TestRunLog:
    def test_of_nothing_is_empty(self, tmp_path):
        log = RunLog(tmp_path, "none")

        assert log.read() == log.mend() == ((), ())
        assert log.baseline() is None
        assert (log.rounds_done(), log.is_done) == (0, False)
        assert not (tmp_path / "runs").exists()

    def test_done_under_a_smaller_budget_is_not_done_under_a_larger_one(self, tmp_path):
        """A mark without a number is of an earlier version: done, until the study grows."""
        RunLog(tmp_path, "r", 20).finish()

        assert [RunLog(tmp_path, "r", budget).is_done for budget in (19, 20, 21)] == [True, True, False]
        (tmp_path / "runs" / "r" / "done").write_bytes(b"")
        assert RunLog(tmp_path, "r", 21).is_done
        RunLog(tmp_path, "r").reopen()
        assert not RunLog(tmp_path, "r").is_done

    def test_counts_its_rounds(self, log):
        assert log.rounds_done() == len(log.read()[0]) == 5
        assert log.is_done

    def test_a_damaged_line_is_named_with_the_way_out(self, log, tmp_path):
        rounds = tmp_path / "runs/entropy-s0/rounds.jsonl"
        lines = rounds.read_bytes().splitlines(keepends=True)
        rounds.write_bytes(lines[0] + b"{}\n" + b"".join(lines[2:]))

        with pytest.raises(StorageError, match=r"rounds.jsonl, line 2 is damaged: remove the folder .*/entropy-s0"):
            log.read()

    def test_a_full_disk_is_a_storage_error(self, log, tmp_path):
        [row, *_], batch = log.read()
        (tmp_path / "runs/entropy-s0/rounds.jsonl").unlink()
        (tmp_path / "runs/entropy-s0/rounds.jsonl").mkdir()

        with pytest.raises(StorageError, match=r"rounds.jsonl could not be written"):
            log.append(row, batch[:5])

    def test_only_one_process_at_a_time_holds_a_run(self, tmp_path):
        """The second waits until the first has let go."""
        with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)]) as other:
            while not (tmp_path / "held").exists():
                assert other.poll() is None
                time.sleep(0.02)

            with RunLog(tmp_path, "r").held():
                assert (tmp_path / "let go").exists()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    plan, out = make_plan(losses=("weighted", "unweighted")), tmp_path_factory.mktemp("study")
    for run in plan.in_turn():
        do_run(run, make_study(plan), RunLog(out, run.name))
    return collect(plan, make_data(), out)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestResults:
    def test_are_written_with_every_digit_and_gap(self, results, tmp_path):
        [row, *_], [pick, *_] = results.rounds, results.batches
        precision = {"normal": None, "moderate": 1 / 3, "severe": 0.1 + 0.2}
        metrics = row.metrics.model_copy(update={"auroc": None, "precision": precision})
        row = row.model_copy(update={"metrics": metrics, "train_seconds": 1e-17})
        pick = pick.model_copy(update={"image_id": 'a,"b"\nü.png', "score": 2 / 3})

        write_results(replace(results, rounds=(row,), batches=(pick,)), tmp_path)

        [row_cells], [pick_cells] = table(tmp_path / "rounds.csv"), table(tmp_path / "batches.csv")
        names = ("auroc", "precision_normal", "precision_moderate", "precision_severe", "train_seconds", "labels")
        assert [row_cells[name] for name in names] == ["", "", repr(1 / 3), repr(0.1 + 0.2), "1e-17", "6"]
        assert (pick_cells["image_id"], pick_cells["score"]) == ('a,"b"\nü.png', repr(2 / 3))
        assert pick_cells["epistemic"] == repr(pick.epistemic)

    def test_have_one_row_a_round_and_one_a_picked_image(self, results, tmp_path):
        write_results(results, tmp_path)

        rounds, batches = table(tmp_path / "rounds.csv"), table(tmp_path / "batches.csv")
        assert len(rounds) == 2 * 2 * 2 * 5
        assert len(batches) == 5 * len(rounds)
        assert rounds[0]["run"] == "random-weighted-s0"
        assert list(rounds[0])[5:10] == ["labels", "share", "labels_normal", "labels_moderate", "labels_severe"]
        assert {"accuracy", "precision_severe", "recall_severe", "specificity_severe", "auroc", "ece"} <= set(rounds[0])
        assert list(batches[0])[-5:] == ["image_id", "label", "score", "epistemic", "aleatoric"]
