"""Axes and names: values lie where they belong, ticks are round, names do not lie over each other."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.charts import Axes, path, spread_out, ticks, ticks_logarithmic, value_words

numbers = st.floats(-1e6, 1e6)


class TestAxes:
    AXES = Axes((0.0, 2.0), (0.0, 10.0), left=10, top=20, right=110, bottom=120)

    def test_hand_computed(self):
        assert (self.AXES.x(0.5), self.AXES.y(2.5)) == (35, 95)

    def test_logarithmic(self):
        axes = Axes((0, 1), (1, 100), left=0, top=0, right=10, bottom=100, logarithmic=True)

        assert [axes.y(value) for value in (1, 10, 100)] == pytest.approx([100, 50, 0])

    @given(low=numbers, width=st.floats(0, 1e6))
    @settings(deadline=None)
    def test_holds_what_it_is_around(self, low, width):
        axes = Axes.around((low, low + width), (low, low + width), box=(0, 0, 100, 100))

        for value in (low, low + width):
            assert -1e-6 <= axes.x(value) <= 100 + 1e-6
            assert -1e-6 <= axes.y(value) <= 100 + 1e-6

    def test_shares_get_no_air_below_zero(self):
        assert Axes.around((0, 1), (0.0, 1.0), box=(0, 0, 1, 1)).y_range[0] == 0


class TestTicks:
    @pytest.mark.parametrize(
        ("low", "high", "wanted"),
        [
            (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (0.56, 0.83, [0.6, 0.7, 0.8]),
            (-0.012, 0.06, [0, 0.02, 0.04, 0.06]),
            (30.0, 610.0, [200, 400, 600]),
        ],
    )
    def test_hand_computed(self, low, high, wanted):
        assert ticks(low, high) == wanted

    @given(low=numbers, width=st.floats(1e-3, 1e6))
    @settings(deadline=None)
    def test_within_and_evenly_spaced(self, low, width):
        found = ticks(low, low + width)

        assert 1 <= len(found) <= 10
        assert low - 1e-6 * width <= found[0]
        assert found[-1] <= low + width * (1 + 1e-6)
        assert np.ptp(np.diff(found)) < 1e-6 * width if len(found) > 2 else True

    def test_logarithmic(self):
        assert ticks_logarithmic(0.004, 3) == [0.01, 0.1, 1]
        assert ticks_logarithmic(3, 60) == [5, 10, 20, 50]


class TestSpreadOut:
    def test_hand_computed(self):
        """Two at 50 move half a gap each; the third is far enough away."""
        assert spread_out([50, 10, 50], gap=12, low=0, high=100) == pytest.approx([44, 10, 56])

    def test_more_than_fit_share_the_room(self):
        assert spread_out([5, 5, 5], gap=12, low=0, high=10) == pytest.approx([0, 5, 10])

    def test_nothing(self):
        assert spread_out([], gap=12, low=0, high=10) == []

    @given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
    @settings(deadline=None)
    def test_apart_in_order_and_within(self, places):
        found = spread_out(places, gap=13, low=0, high=200)

        assert all(b - a >= min(13, 200 / max(len(places) - 1, 1)) - 1e-6 for a, b in pairwise(sorted(found)))
        assert np.argsort(found, kind="stable").tolist() == np.argsort(places, kind="stable").tolist()
        assert min(found) >= -1e-6
        assert max(found) <= 200 + 1e-6


class TestValueWords:
    @pytest.mark.parametrize(
        ("value", "percent", "wanted"),
        [
            (0.8049, False, "0.805"),
            (0.0, False, "0"),
            (0.0042, False, "0.0042"),
            (125.4, False, "125"),
            (0.354, True, "35 %"),
        ],
    )
    def test_hand_computed(self, value, percent, wanted):
        assert value_words(value, percent=percent) == wanted


class TestPath:
    def test_a_tenth_of_a_unit(self):
        assert path([(1, 2.26), (3.04, 4)]) == "M1 2.3L3 4"
