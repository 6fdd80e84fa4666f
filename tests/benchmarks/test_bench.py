"""Every case runs at a tiny size, by the commands of docs/benchmarks.md; the figures mean nothing then."""

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.benchmarks.cases import CASES, SIZES
from tests.benchmarks.compare import main
from tests.manual import ROOT, commands_run_by

PEERS = ROOT / ".bench" / "peers" / ".ready"
REPORT = ROOT / ".bench" / "report.json"
WITH_PEERS, SOME = [command for command in commands_run_by(__file__) if "ARGS" in command.text]


def bench(line: str) -> str:
    """Run a command in the repository; returns what it printed."""
    # Nor is coverage measured there: it costs a process that loads PyTorch seconds.
    dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        ["bash", "-euc", line], cwd=ROOT, capture_output=True, text=True, timeout=540, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report() -> Any:
    """Of all cases, side by side with the peers."""
    bench(WITH_PEERS.text.replace('ARGS="', 'ARGS="--quick '))
    return json.loads(REPORT.read_text())


@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed: run `make bench` once")
class TestSideBySide:
    """Where `make bench` has installed the peers, which takes a second PyTorch."""

    def test_every_case_has_finite_figures(self, report):
        assert report["cases"].keys() == CASES.keys()
        for name, case in report["cases"].items():
            values = [value for figure in case["figures"] for value in (figure["ours"], figure["ratio"])]
            assert all(value is None or math.isfinite(value) for value in values), (name, values)

    def test_both_sides_run_on_one_thread(self, report):
        measured = [run for case in report["cases"].values() for runs in case["runs"].values() for run in runs]

        assert all(run["cpu_s"] < 1.2 * run["wall_s"] + 0.02 for run in measured)

    def test_every_target_is_compared(self, report):
        figures = [figure for case in report["cases"].values() for figure in case["figures"]]

        assert [figure["name"] for figure in figures if figure["target"] and figure["met"] is None] == []

    def test_both_sides_compute_the_same(self, report):
        """Scores to rounding; pixels to a few grey levels, as the libraries average differently."""
        cases = report["cases"]

        assert len(cases["pointwise"]["differences"]) == 9
        assert max(cases["pointwise"]["differences"].values()) < 1e-5
        assert len(cases["decode_jpeg"]["differences"]) == 7
        assert len(cases["decode_png"]["differences"]) == 4
        assert max((cases["decode_jpeg"]["differences"] | cases["decode_png"]["differences"]).values()) < 10
        information = {one["baseline"][0]: one["ratio"] for one in cases["batch_bald_1000_k2"]["figures"][1::2]}
        assert information.keys() == {"batchbald-redux", "Baal", "scikit-activeml"}
        assert all(0.9 < ratio < 1.1 for ratio in information.values())

    def test_arithmetic_is_the_same_on_both_sides(self, report):
        assert report["versions"]["peers"]["torch"] == report["versions"]["ours"]["torch"]


class TestChosenCases:
    def test_without_peers(self):
        printed = bench(SOME.text.replace('ARGS="', 'ARGS="--quick --no-peers '))

        assert [line for line in printed.splitlines() if line in CASES] == SOME.text.split('"')[1].split()
        assert "open" in printed
        assert "quick: figures mean nothing" in printed

    def test_an_unknown_one_is_refused(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["cases", "--no-peers", "speed"])
        with pytest.raises(SystemExit, match="2"):
            main(CASES, SIZES)

        assert "unknown case speed; known are mc_scoring" in capsys.readouterr().err
