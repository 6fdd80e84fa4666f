"""Figures as records, as JSON and as a table."""

import io
import json
from datetime import UTC, datetime

import pytest
from rich.console import Console

from ml_backend.bench.cases.bench import versus
from ml_backend.bench.machine import describe_machine, load
from ml_backend.bench.report import BenchReport, CaseReport, Figure, Floor, Run, Timing, bench_table


def run(cpu_s: float) -> Run:
    return Run(cpu_s=cpu_s, wall_s=2 * cpu_s, extra_mib=None)


def case(*figures: Figure) -> CaseReport:
    return CaseReport(
        name="trial", figures=figures, timings=(Timing(name="ours", runs=(run(0.1), run(9.0), run(0.2))),)
    )


def shown(*cases: CaseReport, quick: bool = False, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(bench_table(cases, quick=quick))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


class TestFloor:
    @pytest.mark.parametrize(
        ("kind", "below", "equal", "above"),
        [
            ("at most", True, True, False),
            ("less than", True, False, False),
            ("at least", False, True, True),
            ("more than", False, False, True),
        ],
    )
    def test_is_met(self, kind, below, equal, above):
        floor = Floor(kind=kind, value=2.0)

        assert [floor.met_by(ratio) for ratio in (1.9, 2.0, 2.1)] == [below, equal, above]


class TestVersus:
    def test_times_faster(self):
        figure = versus("time", "s", 0.1, ("them", 9.0), floor=Floor(kind="at least", value=100), faster=True)

        assert figure.ratio == pytest.approx(90.0)
        assert figure.met is False

    def test_share_of_the_anchor(self):
        figure = versus("time", "s", 3.0, ("them", 4.0), floor=Floor(kind="at most", value=1))

        assert figure.ratio == 0.75
        assert figure.met is True

    def test_without_an_anchor_nothing_is_met_or_missed(self):
        figure = versus("time", "s", 3.0, None, floor=Floor(kind="at most", value=1))

        assert (figure.ratio, figure.met) == (None, None)


class TestReport:
    def test_median_is_not_thrown_by_one_slow_repeat(self):
        [timing] = case(Figure(name="time", unit="s", ours=0.2)).timings

        assert (timing.median_cpu_s, timing.median_wall_s) == (0.2, 0.4)

    def test_json_holds_every_repeat_and_the_machine(self):
        missed = versus("time", "s", 3.0, ("them", 2.0), floor=Floor(kind="at most", value=1))
        report = BenchReport(
            date=datetime(2026, 1, 1, tzinfo=UTC),
            quick=False,
            repeats=3,
            machine=describe_machine(),
            load_before=load(),
            load_after=None,
            versions={"ours": {"torch": "2"}},
            cases=(case(missed),),
        )
        told = json.loads(report.model_dump_json())

        assert report.missed == ("trial: time",)
        assert [one["cpu_s"] for one in told["cases"][0]["timings"][0]["runs"]] == [0.1, 9.0, 0.2]
        assert told["cases"][0]["timings"][0]["median_cpu_s"] == 0.2
        assert told["cases"][0]["figures"][0]["met"] is False
        assert told["machine"]["cores"] >= 1
        assert told["machine"]["cpu"]


class TestTable:
    def test_says_plainly_what_is_missed(self):
        floor = Floor(kind="at most", value=1)
        text = shown(
            case(
                versus("slow", "s", 0.003, ("them", 0.002), floor=floor),
                versus("quick", "s", 3e-5, ("them", 1.0), floor=floor),
                versus("alone", "s", 2.0, None, floor=floor),
                Figure(name="free", unit="MiB", ours=5.0),
            )
        )
        lines = [line for line in text.splitlines() if "them" in line]

        assert [("NO" in line, "yes" in line) for line in lines] == [(True, False), (False, True)]
        assert all(shown in text for shown in ("3 ms", "30 µs", "5 MiB", "open: its anchor was not measured"))

    def test_fits_into_80_columns(self):
        """With the longest names that there are, no number is cut."""
        figure = versus(
            "information", "nats", 4.021, ("batchbald-redux", 4.02), floor=Floor(kind="at least", value=0.995)
        )
        text = shown(case(figure), width=80)

        assert all(len(line) <= 80 for line in text.splitlines())
        assert all(number in text for number in ("4.021 nats", "4.020 nats", "1", "≥ 0.995", "yes"))

    def test_quick_says_that_it_means_nothing(self):
        assert "figures mean nothing" in shown(case(Figure(name="time", unit="s", ours=1.0)), quick=True)
