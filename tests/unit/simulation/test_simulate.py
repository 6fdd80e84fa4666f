"""The command from end to end, on a table of features and a real, tiny network."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ml_backend.errors import SettingsError
from ml_backend.simulation import study as simulate
from ml_backend.simulation.options import SimulateOptions
from ml_backend.simulation.run import do_run as really_do_run
from ml_backend.simulation.run import read_results
from ml_backend.simulation.study import run_study
from tests.unit.simulation.tiny import make_data

QUIET = Console(file=io.StringIO())


@pytest.fixture
def options(tmp_path: Path) -> SimulateOptions:
    """Three rounds of two runs, and a baseline."""
    data = make_data()
    assert data.features is not None
    rows = [f"{image.id},{data.truth[image.id]},{image.patient_id},{data.split[image.id]}" for image in data.images]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,patient_id,split", *rows]) + "\n")
    np.savez(tmp_path / "features.npz", X=data.features, path=np.array([image.id for image in data.images]))
    return SimulateOptions(
        labels=tmp_path / "labels.csv",
        features=tmp_path / "features.npz",
        out=tmp_path / "out",
        strategies="entropy",
        seeds="1",
        initial=2,
        batch_size=5,
        budget="16",
        passes=4,
        device="cpu",
        task="normal;moderate;severe",
    )


def tables(out: Path) -> dict[str, str]:
    """The tables without their seconds, which stand at the ends of the lines."""
    seconds = {"rounds.csv": 2, "batches.csv": 0, "baselines.csv": 1}
    found = {}
    for name, columns in seconds.items():
        lines = (out / name).read_text().splitlines()
        found[name] = "\n".join(",".join(line.split(",")[: -columns or None]) for line in lines)
    return found


class TestRunStudy:
    def test_writes_its_tables_and_its_report(self, options):
        assert run_study(options, QUIET) == 0

        results = read_results(options.out)
        assert [(row.run, row.labels) for row in results.rounds] == [
            (run, labels) for run in ("random-s0", "entropy-s0") for labels in (6, 11, 16)
        ]
        assert [row.labels for row in results.baselines] == [48]
        assert results.summary.seconds > 0
        assert results.summary.command.startswith("ml-backend simulate --labels ")
        assert "<html" in (options.out / "report.html").read_text()

    def test_the_same_command_twice_gives_the_same_bits(self, options, tmp_path):
        run_study(options, QUIET)
        run_study(replace(options, out=tmp_path / "again"), QUIET)

        assert tables(options.out) == tables(tmp_path / "again")
        assert re.search(r"\.\d{10}", tables(options.out)["rounds.csv"])

    @pytest.mark.parametrize("rounds", [1, 4, 7])
    def test_stopped_by_ctrl_c_it_says_how_to_go_on_and_does_to_the_same_bits(
        self, options, tmp_path, monkeypatch, rounds
    ):
        """7 rounds in all, the baseline among them; the last Ctrl-C comes when all is done."""
        run_study(replace(options, out=tmp_path / "whole"), QUIET)
        text = io.StringIO()
        monkeypatch.setattr(simulate, "do_run", stopping(rounds))

        status = run_study(options, Console(file=text))

        assert status == 130
        assert "stopped; the same command goes on from here: ml-backend simulate --labels" in text.getvalue()
        assert not (options.out / "rounds.csv").exists()
        monkeypatch.undo()
        assert run_study(options, QUIET) == 0
        assert tables(options.out) == tables(tmp_path / "whole")

    def test_another_command_in_the_same_folder_is_refused(self, options):
        run_study(options, QUIET)

        with pytest.raises(SettingsError, match=r"--out holds a study begun with another command \(seeds: 0 then, 0,1"):
            run_study(replace(options, seeds="2"), QUIET)

    def test_a_folder_that_another_command_writes_to_is_refused(self, options):
        with (
            simulate._only_one(options.out),
            pytest.raises(SettingsError, match="another `ml-backend simulate` writes to"),
        ):
            run_study(options, QUIET)

    def test_no_worker_at_all_is_refused(self, options):
        with pytest.raises(SettingsError, match="--workers 0: wanted 1 or more"):
            run_study(replace(options, workers=0), QUIET)

    def test_both_losses_are_compared_on_the_same_start(self, options):
        run_study(replace(options, loss="weighted,unweighted", strategies="random", budget="6"), QUIET)

        results = read_results(options.out)
        assert results.summary.variants == ("weighted", "unweighted")
        assert [row.run for row in results.rounds] == ["random-weighted-s0", "random-unweighted-s0"]
        assert len(results.baselines) == 2


def stopping(rounds: int) -> Callable[..., None]:
    """``do_run`` until so many rounds are done in all runs together; then Ctrl-C."""
    left = rounds

    def do_run(run: object, study: object, journal: object, on_round: Callable[[], None]) -> None:
        def counted() -> None:
            nonlocal left
            on_round()
            left -= 1
            if not left:
                raise KeyboardInterrupt

        really_do_run(run, study, journal, counted)  # type: ignore[arg-type]

    return do_run
