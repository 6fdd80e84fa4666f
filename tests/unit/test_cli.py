"""The command line: help, options, and errors as one line with exit status 1."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ml_backend import cli
from ml_backend.demo.options import DemoOptions
from ml_backend.errors import SettingsError
from ml_backend.simulation.experiments import ExperimentOptions
from ml_backend.simulation.options import SimulateOptions
from tests.command_line import run_cli

RUNNER = CliRunner()
COMMANDS = (
    "serve", "work", "connect", "doctor", "demo", "strategies", "proof", "replay", "simulate", "experiment"
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

    def run(options: object) -> int:
        seen.append(options)
        if stopped:
            raise KeyboardInterrupt
        return 0

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
        words = ["simulate", "--labels", "l.csv", "--out", "o", "--no-random"]
        given = {
            "images": "i", "ratings": "r.csv", "features": "f.npz", "strategies": "bald", "seeds": "3",
            "profile": "paper", "task": "a;b", "imbalance": "a=0.1", "loss": "unweighted", "finetune": "head",
            "backbone": "resnet18", "weights": "none", "passes": "7", "batch-size": "5", "initial": "4",
            "budget": "0.25", "workers": "2", "redis": "redis://h", "device": "cpu",
        }  # fmt: skip

        words += [word for name, value in given.items() for word in (f"--{name}", value)]

        result = RUNNER.invoke(cli.app, words)

        assert result.exit_code == 130
        [options] = seen
        assert options.no_random
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
