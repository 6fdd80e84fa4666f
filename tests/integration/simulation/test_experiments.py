"""Every experiment from end to end, tiny, on synthetic images and real networks; the images are shared."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ml_backend.registry import STRATEGIES
from ml_backend.simulation import study as simulate
from ml_backend.simulation.experiments import ExperimentOptions, ExperimentReport, run_experiment
from ml_backend.simulation.run_log import StudySummary
from ml_backend.simulation.specs import EXPERIMENTS
from tests.manual import commands_run_by


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture
def experiment(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, ExperimentReport]]:
    """Run one with ``--quick``: what it printed, and its ``experiment.json``."""
    monkeypatch.chdir(workplace)

    def run(name: str) -> tuple[str, ExperimentReport]:
        text = io.StringIO()
        report = run_experiment(ExperimentOptions(name, quick=True, device="cpu"), Console(file=text, width=200))
        written = Path("experiments", f"{name}-quick", "experiment.json").read_bytes()
        assert ExperimentReport.model_validate_json(written) == report
        return text.getvalue(), report

    return run


def test_the_manual_names_those_that_are_run_here():
    """Without options, each once."""
    assert [one.text for one in commands_run_by(__file__)] == [f"ml-backend experiment {name}" for name in EXPERIMENTS]


class TestExperiments:
    @pytest.mark.parametrize("name", list(EXPERIMENTS))
    def test_says_what_it_expects_runs_and_says_what_it_found(self, experiment, name):
        printed, report = experiment(name)

        assert printed.startswith(f"{name}: {EXPERIMENTS[name].question}\n")
        assert f"command:  ml-backend experiment {name} --quick --device cpu\n" in printed
        assert f"expected: {EXPERIMENTS[name].expectation}\n" in printed
        verdict = "not judged: too few images or seeds to compare with the expectation"
        assert printed.rstrip().splitlines()[-1] == verdict
        assert all(sentence in printed for sentence in report.found)
        assert report.rows
        assert {len(row) for row in report.rows} == {len(report.columns)}
        assert report.drawn
        assert "say nothing about patients" in report.notes[0]
        for folder in report.studies.values():
            assert (Path("experiments") / f"{name}-quick" / folder / "report.html").exists()

    def test_the_same_command_again_repeats_the_answer_without_a_run(self, experiment):
        _, first = experiment("uncertainty-quality")
        rounds = Path("experiments/uncertainty-quality-quick/runs/entropy-s0/rounds.jsonl")
        before = rounds.stat().st_mtime_ns
        _, again = experiment("uncertainty-quality")

        assert again == first
        assert rounds.stat().st_mtime_ns == before

    def test_latency_is_of_the_pool_that_was_asked_for(self, experiment):
        _, report = experiment("acquisition-latency")

        assert report.found[0].startswith("A pool of 100 images, 20 passes, a batch of 4")
        assert len(report.rows) == len(STRATEGIES)

    def test_uncertainty_is_kept_image_by_image(self, experiment):
        """Two seeds, every test image that two readers have given a class."""
        experiment("uncertainty-quality")
        summary = read_summary("uncertainty-quality-quick")
        header, *lines = Path("experiments/uncertainty-quality-quick/uncertainty.csv").read_text().splitlines()

        assert header.startswith("seed,image_id,disagreement,bald,entropy,")
        assert len(lines) == 2 * summary.images["test"]

    def test_both_ways_are_judged_on_the_same_images(self, experiment):
        _, report = experiment("cross-centre")
        images = {name: read_summary(f"cross-centre-quick/{name}").images for name in report.studies.values()}

        assert sorted(images) == ["1-to-1", "1-to-2", "2-to-1", "2-to-2"]
        assert images["1-to-1"]["test"] == images["2-to-1"]["test"] != images["2-to-2"]["test"]
        assert images["1-to-1"]["train"] == images["1-to-2"]["train"] != images["2-to-2"]["train"]

    def test_on_the_users_tables_stopped_by_ctrl_c_it_says_how_to_go_on_and_does(self, experiment, monkeypatch):
        experiment("loss-ablation")
        [films] = Path("experiments/drawn").glob("films-*-centres-2")
        options = ExperimentOptions(
            "loss-ablation",
            labels=films / "labels.csv",
            features=films / "features.npz",
            task="normal;diseased=moderate,severe",
            out=Path("mine"),
            seeds=1,
            quick=True,
            device="cpu",
        )
        text = io.StringIO()
        with monkeypatch.context() as patched:
            patched.setattr(simulate, "do_run", pressing_ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                run_experiment(options, Console(file=text, width=200))

        assert f"to continue the experiment: {options.command()}" in text.getvalue()
        assert not Path("mine/experiment.json").exists()
        report = run_experiment(options, Console(file=text, width=200))
        assert not report.drawn
        assert report.notes[1].startswith("1 seed:")


def pressing_ctrl_c(*_args: object) -> None:
    raise KeyboardInterrupt


def read_summary(study: str) -> StudySummary:
    return StudySummary.model_validate_json(Path("experiments", study, "summary.json").read_bytes())
