"""`ml-backend bench` runs through; what its figures are is nobody's business here."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.manual import ROOT, told_to

COMMAND = Path(sys.executable).parent / "ml-backend"
# With the uv of `make setup`, which has the wheels of the peers' environment already: pip takes minutes.
PLACES = (str(COMMAND.parent), str(ROOT / ".tools" / "uv" / "bin"))
CASES = {
    "mc_scoring",
    "batch_bald_1000_k2",
    "batch_bald_1000_k3",
    "batch_bald_100000",
    "batch_bald_share",
    "pointwise",
    "decode_jpeg",
    "decode_png",
    "others",
    "training",
}


def bench(folder: Path, line: str) -> tuple[dict[str, Any], str]:
    """The report that a line typed in that folder writes, and what it printed."""
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, capture_output=True, text=True, timeout=540, check=False,
        env={**os.environ, "COLUMNS": "160", "PATH": os.pathsep.join([*PLACES, os.environ["PATH"]])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads((folder / "bench.json").read_text()), "folder": folder}, done.stdout


def require_finite(report: dict[str, Any]) -> None:
    for case in report["cases"]:
        for figure in case["figures"]:
            values = [figure[field] for field in ("ours", "anchor", "ratio") if figure[field] is not None]
            assert values, (case["name"], figure)
            assert all(math.isfinite(value) for value in values), (case["name"], figure)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """By the manual's command for some cases, and so all of them: tiny, and without the peers."""
    some = next(command for command in told_to(__file__) if "--only" in command.words)
    rest = CASES - set(some.words)
    assert {"--only", *CASES - rest} < set(some.words)
    return bench(
        tmp_path_factory.mktemp("alone"), " ".join([some.run_as, *(f"--only {case}" for case in sorted(rest))])
    )


class TestAlone:
    def test_every_case_has_finite_figures(self, alone):
        report, _ = alone

        assert {case["name"] for case in report["cases"]} == CASES
        require_finite(report)

    def test_every_repeat_is_kept(self, alone):
        report, _ = alone

        assert report["repeats"] == 1
        runs = [run for case in report["cases"] for timing in case["timings"] for run in timing["runs"]]
        assert all(run["cpu_s"] >= 0 and run["wall_s"] > 0 for run in runs)

    def test_says_what_it_was_measured_on(self, alone):
        report, _ = alone

        assert report["machine"]["cpu"]
        assert "torch" in report["versions"]["ours"]
        assert "peers" not in report["versions"]

    def test_says_that_quick_figures_mean_nothing(self, alone):
        report, printed = alone

        assert report["quick"] is True
        assert "quick: figures mean nothing" in printed

    def test_leaves_nothing_but_its_logs(self, alone):
        """No environment of the peers either."""
        report, _ = alone

        assert sorted(path.name for path in (report["folder"] / ".bench").iterdir()) == ["logs"]


class TestBesidePeers:
    def test_every_floor_is_compared(self, tmp_path):
        """In an environment of their own, built on the way; the project's stays as it is."""
        whole = next(command for command in told_to(__file__) if "--only" not in command.words)
        before = sorted(path.name for path in Path(sys.prefix, "lib").rglob("*.dist-info"))
        try:
            report, _ = bench(tmp_path, whole.run_as)

            require_finite(report)
            figures = {case["name"]: case["figures"] for case in report["cases"]}
            floors = [figure for case in figures.values() for figure in case if figure["floor"]]
            assert [figure["name"] for figure in floors if figure["met"] is None] == []
            assert {figure["anchor_name"] for figure in figures["batch_bald_1000_k2"]} == {
                "batchbald-redux", "Baal", "scikit-activeml"
            }  # fmt: skip
            assert report["versions"]["peers"]["baal"] == "2.1.0"
            assert report["versions"]["peers"]["torch"] == report["versions"]["ours"]["torch"]
        finally:
            shutil.rmtree(tmp_path / ".bench", ignore_errors=True)  # gigabytes, which pytest would keep
        assert sorted(path.name for path in Path(sys.prefix, "lib").rglob("*.dist-info")) == before


class TestRefusals:
    def test_an_unknown_case_is_one_line_and_status_1(self, tmp_path):
        done = subprocess.run(
            [COMMAND, "bench", "--only", "speed"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

        assert done.returncode == 1
        assert done.stderr.startswith("ml-backend: --only 'speed': known are mc_scoring")
        assert done.stderr.count("\n") == 1
