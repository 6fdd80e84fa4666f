"""What the command refuses, and what it records."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ml_backend.bench.cases import CASES
from ml_backend.bench.machine import describe_machine
from ml_backend.bench.process import BenchError
from ml_backend.bench.report import BenchReport, CaseReport, Figure
from ml_backend.bench.run import BenchOptions, chosen_cases, recorded, run_bench

REDUX: dict[str, tuple[int, ...]] = {"ours": (1, 2), "batchbald-redux": (7, 3)}


def report(picks: dict[str, tuple[int, ...]], *, quick: bool = False) -> BenchReport:
    case = CaseReport(name="batch_bald_1000_k2", figures=(Figure(name="time", unit="s", ours=1.0),), picks=picks)
    return BenchReport(
        date=datetime(2026, 1, 1, tzinfo=UTC),
        quick=quick,
        repeats=1,
        machine=describe_machine(),
        load_before=None,
        load_after=None,
        versions={"ours": {}, "peers": {"batchbald-redux": "2.0.5"}},
        cases=(case,),
    )


class TestChosenCases:
    def test_all_by_default(self):
        assert chosen_cases(()) == CASES

    def test_some_in_their_own_order(self):
        first, second, *_ = CASES

        assert list(chosen_cases((second, first))) == [first, second]

    def test_an_unknown_one_is_named_with_the_known(self):
        with pytest.raises(BenchError, match="--only 'speed': known are mc_scoring, "):
            chosen_cases(("speed",))


class TestRefusals:
    def test_a_report_that_could_not_be_written_is_told_before_minutes_of_work(self, tmp_path):
        with pytest.raises(BenchError, match=r"there is no folder .*none: name a file in a folder"):
            run_bench(BenchOptions(json=tmp_path / "none" / "report.json"))

    def test_nothing_to_record_without_peers(self):
        with pytest.raises(BenchError, match="leave --no-peers out"):
            run_bench(BenchOptions(record=Path("picks.json"), peers=False))


class TestRecorded:
    def test_names_pool_library_and_picks(self):
        told = recorded(report(REDUX))

        assert told["picks"] == {"2": [7, 3]}
        assert told["library"] == "batchbald-redux 2.0.5"
        assert told["pool"] == {"generator": "near_duplicate_pool", "images": 1_000, "passes": 100, "seed": 0}

    @pytest.mark.parametrize("made", [report({"ours": (7, 3)}), report(REDUX, quick=True)])
    def test_refuses_what_is_no_record(self, made):
        with pytest.raises(BenchError, match="--record needs"):
            recorded(made)
