"""Specifications of the acquisition functions, of this package and of installed ones."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ml_backend import registry
from ml_backend.acquisition import pointwise, rank
from ml_backend.consensus import rule
from ml_backend.errors import SettingsError
from ml_backend.registry import STRATEGIES, Need, StrategySpec, load_acquisition_function, load_plugin, strategy_spec

DECORATED = """
from ml_backend.registry import acquisition_function

@acquisition_function("ours", summary="first", unit="nats", range="0 .. 1", source="here", requires={"probs"})
def ours(probs):
    return probs[:, 0, 0]
"""


class TestStrategies:
    def test_holds_the_papers_functions_and_those_beyond(self):
        of_the_paper = {
            "batch_bald", "entropy", "least_confidence", "margin", "mean_std", "random", "variation_ratios",
        }  # fmt: skip

        beyond = {
            "badge", "bald", "class_balanced", "core_set", "epig", "herding", "power_bald", "typiclust", "uherding",
        }  # fmt: skip

        assert of_the_paper | beyond == set(STRATEGIES)

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_a_specification_is_complete_and_its_function_is_there(self, name):
        spec = STRATEGIES[name]

        assert spec.name == name
        assert spec.needs <= set(get_args(Need))
        assert spec.min_passes >= 1
        assert callable(load_acquisition_function(name))

    def test_are_in_the_order_of_their_names(self):
        assert list(STRATEGIES) == sorted(STRATEGIES)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"unknown strategy 'best': known are badge, .*variation_ratios"):
            strategy_spec("best")

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"summary": ""}, "summary .*must be one line"),
            ({"unit": "a|b"}, "unit .*must be one line"),
            ({"requires": {"labels"}}, "unknown requirement 'labels': known are probs, features, gradients"),
            ({"min_passes": 0}, "min_passes must be at least 1, got 0"),
        ],
    )
    def test_a_wrong_specification_is_refused(self, wrong, words):
        good = {"name": "ours", "summary": "first", "unit": "nats", "range": "0 .. 1", "source": "here"}

        with pytest.raises(ValueError, match=words):
            StrategySpec(**(good | wrong))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a package on the path, as an installer leaves it: modules and a folder of metadata."""

    def put(entry_points: str, **modules: str) -> None:
        metadata = tmp_path / "our_plugin-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: our-plugin\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)
        package = tmp_path / "our_plugin"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')\n" if not modules else "")
        for name, text in modules.items():
            (package / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))

    return put


@pytest.fixture
def added() -> Callable[[], dict[str, StrategySpec]]:
    """Specifications of installed packages, read anew."""
    return registry._added


@pytest.mark.usefixtures("_no_trace")
class TestPlugins:
    @pytest.fixture
    def _no_trace(self):
        yield
        for name in [name for name in sys.modules if name.partition(".")[0] == "our_plugin"]:
            del sys.modules[name]

    def test_a_function_is_described_without_importing_its_module(self, install, added):
        install("[ml_backend.acquisition]\nours = our_plugin.scores:ours\n", scores=DECORATED)

        found = added()

        assert found["ours"].target == "our_plugin.scores:ours"
        assert found["ours"].needs == {"probs"}
        assert "our_plugin" not in sys.modules

    @pytest.mark.parametrize(
        "broken",
        [
            ("ours = our_plugin.nowhere:ours", DECORATED, "No such file"),
            ("ours = nowhere:ours", DECORATED, "there is no module nowhere"),
            ("ours = our_plugin.scores:other", DECORATED, "has no function other decorated with"),
            ("mine = our_plugin.scores:ours", DECORATED, "its decorator names it 'ours'"),
            ("bald = our_plugin.scores:ours", DECORATED, "ml_backend has an acquisition function of that name"),
            (
                "ours = our_plugin.scores:ours",
                DECORATED.replace('"nats"', "UNIT"),
                "argument unit .*be a literal",
            ),
            ("ours = our_plugin.scores:ours", DECORATED.replace('unit="nats", ', ""), "unit"),
            ("ours = our_plugin.scores:ours", DECORATED.replace("def ours", "def"), "invalid syntax"),
        ],
    )
    def test_a_broken_one_is_left_out_and_named(self, install, added, caplog, broken):
        point, module, words = broken
        install(f"[ml_backend.acquisition]\n{point}\n", scores=module)

        with caplog.at_level(logging.WARNING):
            assert added() == {}

        [line] = [record.getMessage() for record in caplog.records]
        assert point.partition(" ")[0] in line
        assert re.search(words, line)

    def test_a_consensus_rule_is_loaded_by_name(self, install):
        install(
            "[ml_backend.consensus]\nfirst = our_plugin.rules:first\n", rules="def first(annotations, classes): ..."
        )

        assert load_plugin("consensus", "first").__module__ == "our_plugin.rules"

    def test_a_module_that_fails_to_import_is_named(self, install):
        install("[ml_backend.consensus]\nfirst = our_plugin.rules:first\n", rules="raise RuntimeError('no GPU')")

        with pytest.raises(SettingsError, match=r"entry point first = our_plugin.rules:first cannot be loaded: no GPU"):
            load_plugin("consensus", "first")

    def test_none_of_that_name(self):
        with pytest.raises(SettingsError, match=r"no installed package has an entry point 'first' in"):
            load_plugin("consensus", "first")
        with pytest.raises(ValueError, match="unknown consensus rule 'first': known are median"):
            rule("first")


class TestExample:
    """The package of tests/plugin, installed as its users would."""

    def test_ranks_and_is_listed_without_torch(self, plugin: Path):
        listing = (
            "import sys\n"
            "from ml_backend.registry import STRATEGIES\n"
            "print('least_seen' in STRATEGIES, 'torch' in sys.modules)\n"
            "import torch\n"
            "from ml_backend.acquisition import rank\n"
            "probs = torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.3, 0.7]]])\n"
            "print(rank('least_seen', probs, 1).order.tolist()[0])\n"
            "from ml_backend.config import ProjectOptions\n"
            "from ml_backend.consensus import rule\n"
            "print(rule(ProjectOptions(consensus='most_severe').consensus).__name__)\n"
        )

        done = subprocess.run(
            [sys.executable, "-c", listing],
            env={"PYTHONPATH": str(plugin), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

        assert done.stdout.split() == ["True", "False", "2", "most_severe"], done.stderr

    def test_an_acquisition_function_must_return_one_score_an_image(self, monkeypatch: pytest.MonkeyPatch):
        probs = torch.full((3, 2, 2), 0.5)
        monkeypatch.setattr(pointwise, "entropy", lambda probs: probs[:2, 0, 0])
        with pytest.raises(ValueError, match=r"entropy must return one score an image, .* list \[3\], got \[2\]"):
            rank("entropy", probs, 1)
        monkeypatch.setattr(pointwise, "entropy", lambda **_: None)
        with pytest.raises(SettingsError, match=r"got NoneType"):  # the command prints one line
            rank("entropy", probs, 1)
        monkeypatch.setattr(pointwise, "entropy", lambda probs: probs[:, 0, 0] * torch.nan)
        with pytest.raises(ValueError, match="got nan for image 0 of the pool"):
            rank("entropy", probs, 1)

    @pytest.mark.parametrize(
        "found", [[0.1, 0.3, 0.2], np.array([0.2, 0.3, 0.1])[::-1], np.array([0.1, 0.3, 0.2], np.float16)]
    )
    def test_scores_may_be_a_list_or_an_array(self, monkeypatch: pytest.MonkeyPatch, found):
        monkeypatch.setattr(pointwise, "entropy", lambda **_: found)

        assert rank("entropy", torch.full((3, 2, 2), 0.5), 1).order.tolist() == [1, 2, 0]
