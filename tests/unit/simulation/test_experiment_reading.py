"""Statistics of an experiment, on numbers that can be worked by hand."""

import pytest

from ml_backend.errors import RoundError
from ml_backend.simulation.experiments import (
    Interval,
    interval,
    known,
    last_values,
    picked_share,
    run_means,
    spread_over_seeds,
)
from ml_backend.simulation.run_log import RoundRow
from tests.unit.simulation.drawn_results import drawn_results


def accuracy(row: RoundRow) -> float:
    return row.metrics.accuracy


class TestInterval:
    def test_hand_computed(self):
        """Mean 2, standard deviation 1, 3 values: 2 +- 4.3027 / sqrt 3, with t of 2 degrees of freedom."""
        found = interval([1.0, 2.0, 3.0])

        assert (found.mean, found.low, found.high) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)
        assert not found.is_above_zero
        assert str(found) == "2.000 [-0.484 to 4.484]"

    def test_equal_values_leave_no_doubt(self):
        assert interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5)
        assert interval([0.5, 0.5]).is_above_zero

    def test_one_seed_has_none_and_proves_nothing(self):
        assert str(interval([0.5])) == "0.500 (one seed)"
        assert not interval([0.5]).is_above_zero

    @pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
    def test_refuses_what_has_no_mean(self, values):
        with pytest.raises(ValueError, match="at least one value, all of them finite"):
            interval(values)


class TestByRun:
    def test_means_and_last_values_of_every_run(self):
        results = drawn_results(("random", "entropy"), seeds=2, rounds=3)
        mine = [row.metrics.accuracy for row in results.rounds if (row.strategy, row.seed) == ("entropy", 1)]

        assert run_means(results, accuracy)["entropy", ""][1] == pytest.approx(sum(mine) / 3)
        assert last_values(results, accuracy)["entropy", ""][1] == mine[-1]
        assert set(run_means(results, accuracy)) == {("random", ""), ("entropy", "")}

    def test_rounds_without_the_value_are_left_out(self):
        results = drawn_results(("random",), seeds=1, rounds=3)
        found = run_means(results, lambda row: None if row.round == 1 else float(row.round))

        assert found == {("random", ""): {0: 2.5}}

    def test_a_value_that_is_nowhere_is_told(self):
        with pytest.raises(RoundError, match="a metric is not defined"):
            run_means(drawn_results(("random",), seeds=1, rounds=1), lambda _row: None)
        with pytest.raises(RoundError, match="one class only"):
            known(None)

    def test_share_of_a_class_among_the_picks(self):
        results = drawn_results(("random",), seeds=1, rounds=2)
        normals = sum(row.label == "normal" for row in results.batches)

        assert picked_share(results, "normal") == {("random", ""): {0: normals / 40}}

    def test_spread_is_that_between_seeds_and_not_that_between_rounds(self):
        """Seeds 0 and 1 differ by 1 in every round: sqrt(1/2) each, however the rounds differ."""
        results = drawn_results(("random",), seeds=2, rounds=3)

        assert spread_over_seeds(results, "random", "", lambda row: row.seed + 10.0 * row.round) == pytest.approx(
            0.5**0.5
        )

    def test_one_seed_has_no_spread(self):
        assert spread_over_seeds(drawn_results(("random",), seeds=1), "random", "", accuracy) is None
