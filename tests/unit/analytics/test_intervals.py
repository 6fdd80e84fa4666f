"""Intervals of counted shares, against published figures and scipy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ml_backend.analytics.evaluation import newcombe, wilson


class TestWilson:
    def test_hand_worked(self):
        """40 of 50, from the formula by hand."""
        assert wilson(40, 50) == pytest.approx((0.6696, 0.8876), abs=5e-4)

    @given(n=st.integers(1, 400), data=st.data())
    def test_agrees_with_scipy(self, n, data):
        correct = data.draw(st.integers(0, n))
        interval = binomtest(correct, n).proportion_ci(method="wilson")

        assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-9)

    def test_of_nothing_everything_is_possible(self):
        assert wilson(0, 0) == (0.0, 1.0)


class TestNewcombe:
    @pytest.mark.parametrize(
        ("counted", "interval"),
        [
            ((56, 70, 48, 80), (0.0524, 0.3339)),
            ((9, 10, 3, 10), (0.1705, 0.8090)),
            ((6, 7, 2, 7), (0.0582, 0.8062)),
            ((5, 56, 0, 29), (-0.0381, 0.1926)),
            ((0, 10, 0, 10), (-0.2775, 0.2775)),
        ],
    )
    def test_the_examples_of_its_paper(self, counted, interval):
        """Newcombe 1998, table II, method 10."""
        assert newcombe(*counted) == pytest.approx(interval, abs=5e-5)

    @given(n=st.integers(1, 200), m=st.integers(1, 200), data=st.data())
    def test_holds_the_difference_and_turns_with_it(self, n, m, data):
        correct, before = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))

        low, high = newcombe(correct, n, before, m)

        assert -1 <= low <= correct / n - before / m <= high <= 1
        assert newcombe(before, m, correct, n) == pytest.approx((-high, -low))
