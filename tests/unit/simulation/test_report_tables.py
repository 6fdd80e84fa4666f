"""Tables: the study's own numbers in the cell where they belong, with units, and dashes where there is none."""

import pytest

from ml_backend.simulation.analysis import TARGETS
from ml_backend.simulation.report import answer, compared, facts, listings, metrics_of, run_facts, times, wins
from ml_backend.simulation.run_log import RoundRow, StudyResults
from tests.unit.simulation.drawn_results import drawn_results


def rows_of(results: StudyResults) -> dict[str, tuple[tuple[str, str], ...]]:
    table = compared(answer(metrics_of(results)[0], results))
    return {name: tuple((cell.words, cell.below) for cell in cells) for name, cells in table.rows}


def timed(strategy: str, seed: int, number: int, train: float, acquisition: float) -> RoundRow:
    [row, *_] = drawn_results((strategy,), seeds=1, rounds=1).rounds
    changes = {"seed": seed, "round": number, "train_seconds": train, "acquisition_seconds": acquisition, "epochs": 40}
    return row.model_copy(update=changes)


class TestCompared:
    RESULTS = drawn_results(("random", "entropy"), seeds=10, rounds=25)

    def test_every_row_has_a_cell_a_column(self):
        one = answer(metrics_of(self.RESULTS)[0], self.RESULTS)
        table = compared(one)

        assert table.columns[: len(TARGETS)] == tuple(TARGETS)
        assert {len(cells) for _, cells in table.rows} == {len(table.columns)}
        assert table.over == "between 75 and 555 labels"

    def test_says_what_the_statistics_say(self):
        one = answer(metrics_of(self.RESULTS)[0], self.RESULTS)
        cells = rows_of(self.RESULTS)["entropy"]
        needed = one.needed_for("entropy", "95 % of the baseline")
        difference = one.against_random["entropy"]
        assert needed is not None
        assert needed.share.median is not None
        assert one.areas is not None

        assert cells[0][0].startswith(f"{100 * needed.share.median:.0f} % [")
        assert cells[0][1] == f"{needed.labels.median:.0f} labels; 0 of 10 never"
        assert cells[3][0].startswith(f"{one.areas.by_name['entropy'].median:.3f} [")
        assert cells[4] == (f"{difference.mean:+.3f} [{difference.low:+.3f} to {difference.high:+.3f}]", "10 pairs")
        assert cells[5][0] == f"{difference.p:.2g}"

    def test_random_is_not_held_against_itself(self):
        assert [words for words, _ in rows_of(self.RESULTS)["random"][4:]] == ["-", "-"]

    def test_without_a_baseline(self):
        cells = rows_of(drawn_results(("random", "entropy"), baseline=False))["entropy"]

        assert cells[:3] == (("-", "no baseline"),) * 3


class TestWins:
    def test_rows_against_columns(self):
        results = drawn_results(("random", "entropy"), seeds=4)
        matrix = wins(answer(metrics_of(results)[0], results))
        assert matrix is not None

        ((first, (own, chance)), (second, (ours, _))) = matrix.rows
        assert (first, second, matrix.seeds) == ("random", "entropy", 4)
        assert own is None
        assert chance is not None
        assert ours is not None
        assert ours == pytest.approx(1 - chance)
        assert ours > 0.5

    def test_one_strategy_beats_nobody(self):
        results = drawn_results(("random",))

        assert wins(answer(metrics_of(results)[0], results)) is None


class TestTimes:
    def test_hand_computed(self):
        """Two seeds of two rounds: training 1, 2, 3, 4 s; a run takes 3 or 7 s of it, and 0.04 s for two batches."""
        rows = [timed("entropy", seed, number, 2 * seed + number, 0.02) for seed in (0, 1) for number in (1, 2)]
        [one] = times(rows)

        assert (one.training, one.acquisition) == ("2.5 s [1.75–3.25]", "20 ms [20–20]")
        assert (one.epochs, one.rounds, one.whole) == ("40", "2", "5.04 s")

    @pytest.mark.parametrize(("seconds", "wanted"), [(95.4, "1 min 35 s"), (7260, "2 h 1 min")])
    def test_long_runs(self, seconds, wanted):
        [one] = times([timed("entropy", 0, 1, seconds, 0.0)])

        assert one.whole == wanted


class TestFacts:
    def test_what_the_study_was(self):
        results = drawn_results(variants=("weighted", "unweighted"))
        top, below = dict(facts(results)), dict(run_facts(results.summary))

        assert top["Images"] == "1336 train + 334 val + 562 test"
        assert top["Runs"] == "18"
        assert (top["Compared, too"], below["Variants"]) == ("weighted / unweighted", "weighted, unweighted")
        assert below["Took"] == "12 min 34 s"
        assert below["Seeds"] == "0, 1, 2"

    def test_options_versions_and_digests_are_whole(self):
        found = dict(listings(drawn_results().summary))

        assert dict(found["Options"])["backbone"] == '"mobilenet_v2"'
        assert dict(found["Versions"])["torch"] == "2.15.0"
        assert dict(found["Digests (SHA-256) of what was read"])["labels.csv"] == "9f" * 32
