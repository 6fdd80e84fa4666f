"""The check of a GPU runs to its end on a CPU, at sizes whose figures mean nothing."""

import json
import math
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ml_backend.model.hardware import one_thread
from tests.benchmarks import gpu_check
from tests.benchmarks.gpu_check import PARTS, TINY, Figures, Sizes, check
from tests.manual import ROOT, commands_run_by

[COMMAND] = [command for command in commands_run_by(__file__) if command.bare.startswith("python")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of the documented command."""
    path = tmp_path_factory.mktemp("gpu") / "report.json"
    line = COMMAND.run_as.replace("gpu-check.json", str(path))
    environ = os.environ | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        line, shell=True, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def values(figures: Any) -> Iterator[float]:
    for value in figures.values():
        if isinstance(value, dict):
            yield from values(value)
        elif isinstance(value, int | float):
            yield value


def test_every_part_has_figures(report: Any) -> None:
    assert report["parts"].keys() == PARTS.keys()
    for name, part in report["parts"].items():
        found = list(values(part["figures"]))
        assert found, name
        assert all(math.isfinite(value) and value >= 0 for value in found), (name, found)


def test_says_what_it_ran_on(report: Any) -> None:
    """No figure of a CPU can be taken for one of a GPU."""
    device = report["parts"]["device"]["figures"]

    assert report["tiny"] is True
    assert device["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device["torch"] == torch.__version__
    if device["device"] == "cpu":
        tests = report["parts"]["tests"]["figures"]
        assert tests["skipped"] == tests["tests"] > 0
        assert report["parts"]["uint8 cache"]["figures"]["ceiling, images/s"] is None
        assert report["parts"]["group"]["figures"] == {"batch": TINY.train_batch, "GPUs": 0}


def test_training_in_a_group_is_timed(tmp_path: Path) -> None:
    """By a group of one process, over gloo where no GPU is."""
    with one_thread():
        speed = gpu_check._train_in_group(TINY, 0, 1, f"file://{tmp_path}/store")

    assert 0 < speed < math.inf


def ends(_sizes: Sizes) -> Figures:
    os._exit(3)


def raises(_sizes: Sizes) -> Figures:
    raise ValueError("out of range")


def sleeps(_sizes: Sizes) -> Figures:
    time.sleep(600)
    return {}


def succeeds(sizes: Sizes) -> Figures:
    return {"side": sizes.side}


def test_a_part_that_fails_is_an_error_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = {"ends": (ends, 60.0), "sleeps": (sleeps, 0.1), "raises": (raises, 60.0), "succeeds": (succeeds, 60.0)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)

    check(tmp_path / "report.json", TINY)

    found = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert found["ends"]["error"] == "the process died with status 3"
    assert found["sleeps"]["error"] == "not done within 0 s"
    assert found["raises"]["error"] == "ValueError: out of range"
    assert found["succeeds"]["figures"] == {"side": 32}


def test_time_that_is_used_up_leaves_the_other_parts_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "PARTS", {"raises": (raises, 60.0)})
    monkeypatch.setattr(gpu_check, "LIMIT_S", 0.0)

    found = check(tmp_path / "report.json", TINY)

    assert found["parts"]["raises"]["error"] == "no time was left"
