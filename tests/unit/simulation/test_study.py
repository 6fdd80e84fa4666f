"""The study from options to results, on a table of features and a real, tiny network."""

import inspect
import io
import linecache
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import ml_backend
from ml_backend.errors import SettingsError
from ml_backend.registry import STRATEGIES
from ml_backend.simulation import parallel, study
from ml_backend.simulation.options import SimulateOptions
from ml_backend.simulation.run import do_run as really_do_run
from ml_backend.simulation.run_log import StudySummary
from ml_backend.simulation.study import StudyProgress, print_table, simulate
from tests.unit.simulation.tiny import write_tables

QUIET = Console(file=io.StringIO())


def options_in(folder: Path) -> SimulateOptions:
    """Three rounds of two runs, and a baseline."""
    return SimulateOptions(
        **write_tables(folder),
        out=folder / "out",
        strategies="entropy",
        seeds="1",
        start="given",
        initial=2,
        batch_size=5,
        budget="16",
        passes=4,
        device="cpu",
        task="normal;moderate;severe",
    )


@pytest.fixture
def options(tmp_path: Path) -> SimulateOptions:
    return options_in(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tables of a study that nothing interrupted."""
    options = options_in(tmp_path_factory.mktemp("whole"))
    simulate(options, QUIET)
    return tables(options.out)


def tables(out: Path) -> dict[str, str]:
    """The tables without their seconds, the last columns."""
    return {
        name: "\n".join(",".join(line.split(",")[: -seconds or None]) for line in (out / name).read_text().splitlines())
        for name, seconds in {"rounds.csv": 2, "batches.csv": 0, "baselines.csv": 1}.items()
    }


def stopping(rounds: int) -> Callable[..., None]:
    """``do_run`` until so many rounds are done in all runs together; then Ctrl-C."""
    left = rounds

    def do_run(run: object, opened: object, log: object, on_round: Callable[[], None]) -> None:
        def counted() -> None:
            nonlocal left
            on_round()
            left -= 1
            if not left:
                raise KeyboardInterrupt

        really_do_run(run, opened, log, counted)  # type: ignore[arg-type]

    return do_run


class TestSimulate:
    def test_returns_and_writes_its_results_and_its_report(self, options):
        results = simulate(options, QUIET)

        assert [(row.run, row.labels) for row in results.rounds] == [
            (run, labels) for run in ("random-s0", "entropy-s0") for labels in (6, 11, 16)
        ]
        assert [row.labels for row in results.baselines] == [48]
        assert results.summary.seconds > 0
        assert results.summary.command.startswith("ml-backend simulate --labels ")
        assert StudySummary.model_validate_json((options.out / "summary.json").read_bytes()) == results.summary
        assert "<html" in (options.out / "report.html").read_text()

    def test_the_same_command_twice_gives_the_same_bits(self, options, whole):
        simulate(options, QUIET)

        assert tables(options.out) == whole
        assert re.search(r"\.\d{10}", tables(options.out)["rounds.csv"])

    @pytest.mark.parametrize("rounds", [4, 7])
    def test_goes_on_after_ctrl_c_to_the_same_bits(self, options, whole, monkeypatch, rounds):
        """7 rounds in all, the baseline among them; the last Ctrl-C comes when all is done."""
        text = io.StringIO()
        monkeypatch.setattr(study, "do_run", stopping(rounds))

        with pytest.raises(KeyboardInterrupt):
            simulate(options, Console(file=text))

        assert "the same command continues from here: ml-backend simulate --labels" in text.getvalue()
        assert not (options.out / "rounds.csv").exists()
        monkeypatch.undo()
        simulate(options, QUIET)
        assert tables(options.out) == whole

    def test_products_are_deterministic_for_a_caller_from_python_too(self, options, monkeypatch):
        """The command applies it at the start of its process; a caller of the function may not know of it."""
        applied = []
        monkeypatch.setattr(study, "enable_deterministic_blas", lambda: applied.append(True))

        with pytest.raises(SettingsError):
            simulate(replace(options, seeds="none"), QUIET)

        assert applied == [True]

    def test_grows_by_what_is_missing_to_the_same_bits(self, options, tmp_path, monkeypatch):
        """From two runs of two rounds, without a third strategy: four more runs, and a round more of the first two."""
        grown = replace(options, strategies="bald,entropy", seeds="2")
        simulate(replace(grown, out=tmp_path / "whole"), QUIET)
        simulate(replace(options, budget="11"), QUIET)
        done: list[str] = []

        def counted(run, opened, log, on_round):
            really_do_run(run, opened, log, lambda: done.append(run.name))

        monkeypatch.setattr(study, "do_run", counted)
        results = simulate(grown, QUIET)

        assert Counter(done) == {
            "random-s0": 1, "entropy-s0": 1, "bald-s0": 3,
            "random-s1": 3, "entropy-s1": 3, "bald-s1": 3, "baseline-s1": 1,
        }  # fmt: skip
        assert tables(options.out) == tables(tmp_path / "whole")
        assert (results.summary.command, results.summary.seeds) == (grown.command(), (0, 1))
        with pytest.raises(SettingsError, match=r"\(--seeds lacks 1; --budget: 16 then, 11 now\)"):
            simulate(replace(grown, seeds="1", budget="11"), QUIET)

    def test_a_folder_that_another_command_writes_to_is_refused(self, options):
        with study._locked(options.out), pytest.raises(SettingsError, match="another `ml-backend simulate` writes to"):
            simulate(options, QUIET)

    def test_both_losses_are_compared_on_the_same_start(self, options):
        results = simulate(replace(options, loss="weighted,unweighted", strategies="random", budget="6"), QUIET)

        assert results.summary.variants == ("weighted", "unweighted")
        assert [row.run for row in results.rounds] == ["random-weighted-s0", "random-unweighted-s0"]
        assert len(results.baselines) == 2


OWN = """
from ml_backend.acquisition import acquisition_function

@acquisition_function("x", summary="s", unit="u", range="r", source="o", requires={"features"})
def declared(features):
    return features[:, 0]

def plain(probs):
    return probs.mean(dim=1)[:, -1].tolist()

def of_two(probs, features):
    return probs
"""


class TestOwnFunctions:
    @pytest.fixture
    def own(self, tmp_path, monkeypatch):
        (tmp_path / "own_functions.py").write_text(OWN)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        yield tmp_path / "own_functions.py"
        for name in [name for name in STRATEGIES if ":" in name]:
            del STRATEGIES[name]
        sys.modules.pop("own_functions", None)

    def test_rank_by_module_and_name_in_any_process(self, own, options):
        chosen = replace(options, strategies="own_functions:declared,own_functions:plain", no_random=True, budget="6")
        results = simulate(chosen, QUIET)

        assert [row.strategy for row in results.rounds] == ["own_functions:declared", "own_functions:plain"]
        assert STRATEGIES["own_functions:declared"].needs == {"features"}
        data = np.load(options.features)
        first = dict(zip(data["path"], data["X"][:, 0], strict=True))
        picks = [row for row in results.batches if row.strategy == "own_functions:declared"]
        assert [row.score for row in picks] == pytest.approx([first[row.image_id] for row in picks])
        STRATEGIES.pop("own_functions:plain")
        assert parallel.run(str(options.out), "own_functions:plain-s0") is None

        own.write_text(OWN.replace("-1]", "0]"))
        linecache.checkcache()
        sys.modules.pop("own_functions")
        refused = parallel.run(str(options.out), "own_functions:plain-s0")
        assert refused is not None
        assert "the code of own_functions:plain has changed" in refused

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("own_functions:no", "module 'own_functions' has no attribute 'no'; expected module:function"),
            ("no_module:f", "No module named 'no_module'"),
            ("own_functions:of_two", "missing a required argument: 'features'"),
        ],
    )
    def test_name_what_is_wrong(self, own, options, name, message):
        with pytest.raises(SettingsError) as refused:
            simulate(replace(options, strategies=name), QUIET)

        assert message in str(refused.value)


class TestFromPython:
    def test_data_frames_of_the_engine_of_the_command(self, options, tmp_path):
        """The same tables as the command writes; two rounds of each run."""
        given = {field.name: getattr(options, field.name) for field in fields(options)}
        task = {name: [name] for name in ("normal", "moderate", "severe")}
        changed = {"seeds": (4, 7), "budget": 11, "option": {"epochs": 20}, "task": task, "quiet": True}
        found = ml_backend.simulate(**given | changed)
        text = {"seeds": "4,7", "budget": "11", "option": ("epochs=20",), "out": tmp_path / "command"}
        simulate(replace(options, **text, task="normal=normal;moderate=moderate;severe=severe"), QUIET)

        assert tables(options.out) == tables(tmp_path / "command")
        assert found.curves["run"].value_counts().unique().tolist() == [2]
        assert (len(found.labels_needed), len(found.summary), len(found.baselines)) == (3 * 4, 3 * 2, 2)
        entropy = found.summary.set_index(["metric", "strategy"]).loc["accuracy", "entropy"]
        area = found.curves.groupby(["strategy", "seed"])["accuracy"].mean()  # of two rounds, the trapezoid
        assert entropy["minus_random"] == pytest.approx((area["entropy"] - area["random"]).mean())
        assert entropy[["low", "high", "p"]].isna().all()  # of two seeds
        assert entropy["seeds"] == 2

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seeds": "x"}, r"^seeds 'x': expected how many"),
            ({"budget": -1}, r"^budget -1: expected labels \(200\) or a fraction of the 48 training images"),
            ({"min_labels_per_class": 2}, r"^min_labels_per_class 2: a given start has no .*or give start live"),
        ],
    )
    def test_errors_name_its_own_options(self, options, changes, message):
        given = {field.name: getattr(options, field.name) for field in fields(options)} | {"option": {}, "budget": 16}

        with pytest.raises(SettingsError, match=message):
            ml_backend.simulate(**given | changes)

    def test_options_are_those_of_the_command(self):
        theirs = {field.name for field in fields(SimulateOptions)}

        assert set(inspect.signature(ml_backend.simulate).parameters) == theirs | {"quiet"}

    def test_costs_nothing_until_it_is_used(self):
        code = "import ml_backend, sys; assert not {'pydantic', 'pandas', 'torch', 'numpy'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

        with pytest.raises(AttributeError, match="no attribute 'simulation_of'"):
            ml_backend.simulation_of  # noqa: B018


class Clock:
    """Time that the test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class TestStudyProgress:
    @pytest.fixture
    def clock(self, monkeypatch):
        clock = Clock()
        monkeypatch.setattr(study, "time", clock)
        return clock

    @pytest.mark.parametrize(
        ("rounds", "printed"),
        [
            # From 20 of 100, 10 rounds in 60 s: 70 more take 7 minutes.
            ([(10, 22), (50, 30)], "30 of 100 rounds, about 7 min left"),
            ([(60, 20)], "20 of 100 rounds"),
            ([(60, 99)], "99 of 100 rounds, less than a minute left"),
        ],
    )
    def test_prints_a_line_now_and_then_with_the_time_left(self, clock, rounds, printed):
        text = io.StringIO()
        with StudyProgress(Console(file=text), 100) as progress:
            progress.show(20)
            for seconds, done in rounds:
                clock.now += seconds
                progress.show(done)
            progress.say("note: [bold] is no markup")

        assert text.getvalue().splitlines() == [printed, "note: [bold] is no markup"]


def test_a_table_is_whole_in_a_file_and_folded_on_a_terminal():
    words = ["batch_bald", "0.530 [0.515–0.543] and more words than fit", "7" * 50]
    text = {terminal: io.StringIO() for terminal in (False, True)}
    for terminal, file in text.items():
        table = Table("strategy", "median [quartiles]", "number")
        table.add_row(*words)
        print_table(table, Console(file=file, width=80, force_terminal=terminal, no_color=True))

    assert all(word in text[False].getvalue() for word in [*words, "median [quartiles]"])
    lines = text[True].getvalue().splitlines()
    assert "…" not in text[True].getvalue()
    assert text[True].getvalue().count("7") == 50
    assert len(lines[-1]) <= 80
