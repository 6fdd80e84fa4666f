"""The command line: help, options, and errors as one line with exit status 1."""

import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ml_backend import cli
from ml_backend.demo.options import DemoOptions
from ml_backend.errors import SettingsError
from ml_backend.simulation.experiments import ExperimentOptions
from ml_backend.simulation.options import SimulateOptions
from ml_backend.simulation.specs import EXPERIMENTS
from tests.command_line import run_cli

RUNNER = CliRunner()
COMMANDS = (
    "serve", "work", "connect", "doctor", "demo", "strategies", "proof", "replay", "simulate", "compare", "experiment"
)  # fmt: skip


class TestHelp:
    def test_names_every_command(self):
        result = RUNNER.invoke(cli.app, ["--help"])

        assert result.exit_code == 0
        assert all(name in result.output for name in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command_opens(self, command):
        assert RUNNER.invoke(cli.app, [command, "--help"]).exit_code == 0


class TestConnect:
    @pytest.mark.parametrize("text", ["strategy", "=entropy", ""])
    def test_refuses_an_option_that_is_no_pair(self, text):
        result = RUNNER.invoke(cli.app, ["connect", "--project", "1", "--option", text])

        assert isinstance(result.exception, SettingsError)
        assert "NAME=VALUE" in str(result.exception)

    @pytest.mark.parametrize("url", ["127.0.0.1:9090", "backend:9090", "ftp://backend"])
    def test_refuses_an_address_that_is_no_url(self, url):
        """Label Studio answers it with 403, which would pass for a refused private address."""
        result = RUNNER.invoke(cli.app, ["connect", "--project", "1", "--url", url])

        assert isinstance(result.exception, SettingsError)
        assert f"--url is '{url}'; expected http://" in str(result.exception)

    def test_keeps_what_follows_the_first_equals_sign(self):
        assert cli._pairs(["weights=/models/a=b.pt", "seed=3"]) == {"weights": "/models/a=b.pt", "seed": "3"}


def calls_of(function: str, monkeypatch: pytest.MonkeyPatch, *, stopped: bool = False) -> list[Any]:
    """The options with which a command calls its function, from now on, instead of running it."""
    seen: list[Any] = []

    def run(options: object) -> object:
        seen.append(options)
        if stopped:
            raise KeyboardInterrupt
        return SimpleNamespace(rounds=("a round",)) if function == STUDY else 0

    monkeypatch.setattr(function, run)
    return seen


EXPERIMENT = "simulation.experiments.run_experiment"
STUDY = "ml_backend.simulation.study.simulate"


class TestSimulate:
    def test_refuses_in_words_and_writes_nothing(self, tmp_path):
        result = RUNNER.invoke(
            cli.app,
            ["simulate", "--labels", str(tmp_path / "no.csv"), "--out", str(tmp_path / "out"), "--seeds", "many"],
        )

        assert isinstance(result.exception, SettingsError)
        assert not (tmp_path / "out" / "plan.json").exists()

    def test_hands_every_option_on(self, tmp_path, monkeypatch):
        """Those of the command are those of the study, by the same names."""
        seen = calls_of(STUDY, monkeypatch, stopped=True)
        words = ["simulate", "--labels", "l.csv", "--out", "o", "--no-random", "--strategy", "bald"]
        given = {
            "images": "i", "ratings": "r.csv", "features": "f.npz", "seeds": "3",
            "profile": "paper", "task": "a;b", "imbalance": "a=0.1", "loss": "unweighted", "finetune": "head",
            "backbone": "resnet18", "weights": "none", "passes": "7", "batch-size": "5", "initial": "4",
            "budget": "0.25", "workers": "2", "redis": "redis://h", "device": "cpu",
        }  # fmt: skip

        words += [word for name, value in given.items() for word in (f"--{name}", value)]

        result = RUNNER.invoke(cli.app, words)

        assert result.exit_code == 130
        [options] = seen
        assert options.no_random
        assert options.strategies == "bald"
        assert {name: str(getattr(options, name.replace("-", "_"))) for name in given} == given

    def test_has_the_defaults_of_a_study(self, monkeypatch):
        seen = calls_of(STUDY, monkeypatch)

        assert RUNNER.invoke(cli.app, ["simulate", "--labels", "l.csv", "--out", "o"]).exit_code == 0

        assert seen == [SimulateOptions(labels=Path("l.csv"), out=Path("o"))]


@pytest.mark.parametrize(
    ("function", "words", "given", "expected"),
    [
        ("demo.run.run_demo", ["demo"], [], DemoOptions()),
        ("demo.run.run_demo", ["demo"], ["--readers", "5", "--stay"], DemoOptions(readers=5, stay=True)),
        (EXPERIMENT, ["experiment", "profiles"], [], ExperimentOptions(name="profiles")),
        (EXPERIMENT, ["experiment", "loss"], ["--seeds", "2"], ExperimentOptions(name="loss", seeds=2)),
    ],
)
def test_has_the_defaults_of_its_options_and_hands_them_on(monkeypatch, function, words, given, expected):
    seen = calls_of(f"ml_backend.{function}", monkeypatch)

    assert RUNNER.invoke(cli.app, [*words, *given]).exit_code == 0
    assert seen == [expected]


class TestServe:
    def test_refuses_an_address_of_redis_that_is_none(self, monkeypatch):
        monkeypatch.setattr("ml_backend.server.serve.serve", lambda *_args, **_options: pytest.fail("it serves"))
        monkeypatch.setenv("AL_REDIS_URL", "nonsense")

        result = RUNNER.invoke(cli.app, ["serve"])

        assert isinstance(result.exception, SettingsError)
        assert "AL_REDIS_URL='nonsense'" in str(result.exception)

    def test_refuses_a_port_that_is_in_use_in_one_line(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])

            done = run_cli(["serve", "--port", port], {"AL_DATA_DIR": str(tmp_path)})

        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"ml-backend: --port {port} is in use at 127.0.0.1 (`ss -ltnp` lists by what): stop that, or give another "
            "--port\n"
        )

    def test_refuses_a_host_of_another_machine(self, tmp_path):
        """192.0.2.0/24 is of no machine: RFC 5737."""
        done = run_cli(["serve", "--host", "192.0.2.1"], {"AL_DATA_DIR": str(tmp_path)})

        assert done.returncode == 1
        assert done.stderr.startswith("ml-backend: --host '192.0.2.1' is no address of this machine")


class TestVersion:
    def test_is_that_of_the_package(self):
        done = run_cli(["--version"], {})

        assert (done.returncode, done.stdout) == (0, f"ml-backend {version('label-studio-active-learning')}\n")


class TestOldNames:
    @pytest.mark.parametrize("given", [["--folder", "x"], ["--folder=x"]])
    def test_work_and_say_the_new_one(self, given, monkeypatch):
        seen = calls_of("ml_backend.demo.run.run_demo", monkeypatch)

        done = RUNNER.invoke(cli.app, ["demo", *given, "--json", "j"])

        assert seen == [DemoOptions(folder=Path("x"), json=Path("j"))]
        assert done.stderr.splitlines() == [
            "ml-backend: --folder is deprecated: it is called --out now",
            "ml-backend: --json is deprecated: it is called --summary now",
        ]

    def test_are_not_in_the_help_and_new_ones_are_silent(self, monkeypatch):
        seen = calls_of(STUDY, monkeypatch)
        given = ["simulate", "--labels", "l", "--out", "o", "--strategy", "bald"]

        assert RUNNER.invoke(cli.app, given).stderr == ""
        assert RUNNER.invoke(cli.app, ["simulate", "--help"]).output.count("--strategies") == 0
        assert RUNNER.invoke(cli.app, [*given[:5], "--strategies", "bald"]).exit_code == 0
        assert seen[0] == seen[1]

    def test_are_told_apart_by_their_command(self):
        """`--json` of `doctor` is another option."""
        assert "deprecated" not in RUNNER.invoke(cli.app, ["doctor", "--json"]).stderr


class TestCompletion:
    @pytest.mark.parametrize(
        ("typed", "expected"),
        [
            ("simulate --strategy entropy,mea", ["entropy,mean_std"]),
            ("connect -o committ", ["committee="]),
            ("experiment paper-m", ["paper-multiclass"]),
            ("strat", ["strategies"]),
        ],
    )
    def test_of_bash(self, typed, expected):
        asked = {"COMP_WORDS": f"ml-backend {typed}", "COMP_CWORD": str(len(typed.split()))}

        # A process of its own: the completion's variable is named after the program.
        program = Path(sys.executable).with_name("ml-backend")
        done = subprocess.run(
            [program],
            env=os.environ | {"_ML_BACKEND_COMPLETE": "complete_bash"} | asked,
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.stdout.split() == expected

    def test_is_installed_for_the_shell_that_asks(self, tmp_path):
        line = f"{Path(sys.executable).parent}/ml-backend --install-completion; exit $?"  # bash stays the parent
        subprocess.run(["bash", "-c", line], env={**os.environ, "HOME": str(tmp_path)}, check=True, capture_output=True)

        [script] = tmp_path.rglob("ml-backend.sh")
        assert "complete -o default -F _ml_backend_completion ml-backend" in script.read_text()


class TestExperiment:
    def test_without_a_name_prints_a_table(self):
        done = run_cli(["experiment"], {"COLUMNS": "100"})

        assert done.returncode == 0
        rows = [line.split() for line in done.stdout.splitlines()]
        assert ["20", "60"] in [row[-2:] for row in rows if row[:1] == ["profiles"]]
        assert set(EXPERIMENTS) <= {row[0] for row in rows if row}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-o", "committee=zero"], "-o committee='zero': input should be a valid integer"),
        (["-o", "comittee=3"], "-o comittee: no such option; did you mean 'committee'?"),
        (["--passes", "1"], "--passes=1: input should be greater than or equal to 2"),
        (["--finetune", "heads"], "--finetune='heads': input should be 'auto', 'head' or 'full'; did you mean 'head'?"),
        (["--strategy", "Entropie"], "or module:function; did you mean 'entropy'?"),
        (["--profile", "papr"], "known are paper, best; did you mean 'paper'?"),
    ],
)
def test_a_wrong_value_is_named_as_it_was_typed(given, expected, tmp_path):
    done = run_cli(["simulate", "--labels", "l.csv", "--out", str(tmp_path / "out"), *given], {})

    assert done.returncode == 1
    assert expected in done.stderr
    assert done.stderr.startswith("ml-backend: -")


class TestMain:
    def test_turns_our_errors_into_one_line(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["ml-backend", "connect", "--project", "1", "--option", "nonsense"])

        with pytest.raises(SystemExit) as stop:
            cli.main()

        assert stop.value.code == 1
        assert capsys.readouterr().err == (
            "ml-backend: --option 'nonsense': expected NAME=VALUE, for example strategy=entropy\n"
        )

    def test_names_a_bad_setting(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["ml-backend", "work"])
        monkeypatch.setenv("AL_TIMEOUT_S", "soon")

        with pytest.raises(SystemExit) as stop:
            cli.main()

        assert stop.value.code == 1
        assert "AL_TIMEOUT_S='soon'" in capsys.readouterr().err
