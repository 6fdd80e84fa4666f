"""The experiments in words: the page that lists them, and what is refused before anything runs."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.errors import SettingsError
from ml_backend.registry import STRATEGIES
from ml_backend.simulation.experiments import EXPERIMENTS, SEVEN, ExperimentOptions, run_experiment
from ml_backend.simulation.outlines import OUTLINES, markdown
from tests.manual import commands_run_by

PAGE = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text()


class TestCatalog:
    def test_the_page_lists_it_word_for_word(self):
        assert markdown() in PAGE

    def test_the_page_names_nothing_that_is_gone(self):
        assert re.findall(r"^### `ml-backend experiment ([a-z-]+)`", PAGE, re.MULTILINE) == list(EXPERIMENTS)

    def test_the_command_prints_it(self):
        [command] = commands_run_by(__file__)
        printed = CliRunner().invoke(app, command.words[1:])

        assert printed.exit_code == 0
        assert printed.stdout.strip() == markdown()
        assert CliRunner().invoke(app, ["experiment"]).stdout == printed.stdout

    def test_the_papers_seven_functions_are_seven_that_we_have(self):
        names = SEVEN.split(",")

        assert len(set(names)) == 7
        assert set(names) <= STRATEGIES.keys() - {"random"}

    @pytest.mark.parametrize("outline", OUTLINES.values(), ids=list(OUTLINES))
    def test_every_one_asks_and_expects(self, outline):
        assert outline.question.endswith("?")
        assert outline.runs.endswith(".")
        assert outline.expectation.endswith(".")
        assert re.search(r"\d+ (seconds|minutes)", outline.time)

    def test_every_outline_has_its_studies(self):
        assert list(EXPERIMENTS) == list(OUTLINES)


class TestOptions:
    def test_the_command_leaves_out_what_only_spreads_the_work(self):
        options = ExperimentOptions(
            "loss-ablation", labels=Path("l.csv"), features=Path("f.npz"), task="a;b", seeds=3, quick=True, workers=2
        )

        assert options.command() == (
            "ml-backend experiment loss-ablation --labels l.csv --features f.npz --task 'a;b' --seeds 3 --quick"
        )


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (ExperimentOptions("paper"), "there is no experiment 'paper'; known are paper-binary, paper-multiclass"),
            (ExperimentOptions("paper-binary", seeds=0), "--seeds 0: wanted 1 or more"),
            (ExperimentOptions("paper-binary", task="a;b"), "--task without --labels"),
            (
                ExperimentOptions("uncertainty-quality", labels=Path("l.csv"), features=Path("f.npz"), task="a;b"),
                "holds a network against readers: give --ratings",
            ),
        ],
    )
    def test_in_words_and_before_anything_is_written(self, options, words, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        with pytest.raises(SettingsError, match=words):
            run_experiment(options, Console(file=io.StringIO()))
        assert list(tmp_path.iterdir()) == []
