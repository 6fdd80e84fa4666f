import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.analytics.stopping import CurvePoint, expected_gain, slope

curves = st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1)), min_size=0, max_size=8)


class TestSlope:
    def test_hand_computed(self):
        """Through 1 2 4 goes 1.5 a round; off by 1/6, -1/3, 1/6: squares 1/6, one degree of freedom, over 2."""
        found = slope([1.0, 2.0, 4.0])

        assert found is not None
        assert found.per_round == pytest.approx(1.5)
        assert found.error == pytest.approx((1 / 6 / 2) ** 0.5)

    def test_as_numpy_has_it(self):
        values = [0.5, 0.7, 0.65, 0.8, 0.78]
        (expected, _), covariance = np.polyfit(range(5), values, 1, cov="unscaled")
        left = np.asarray(values) - np.polyval(np.polyfit(range(5), values, 1), range(5))
        found = slope(values)

        assert found is not None
        assert found.per_round == pytest.approx(expected)
        assert found.error == pytest.approx((covariance[0, 0] * (left @ left) / 3) ** 0.5)

    def test_two_points_say_nothing(self):
        assert slope([0.1, 0.9]) is None


class TestExpectedGain:
    @pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
    def test_a_power_law_is_found_again(self, exponent):
        """Error 0.1 + 2 n^-c: what the next 20 labels take off it."""

        def error(labels):
            return 0.1 + 2 * labels**-exponent

        curve = [CurvePoint(labels, 1 - error(labels)) for labels in (50, 70, 90, 110, 150)]

        assert expected_gain(curve, 20) == pytest.approx(error(150) - error(170), rel=0.02)

    def test_a_level_curve_gains_nothing(self):
        assert expected_gain([CurvePoint(n, 0.8) for n in (50, 70, 90, 110)], 20) == pytest.approx(0.0, abs=1e-6)

    def test_few_points_make_a_line(self):
        """0.1 accuracy in 40 labels: 0.05 in the next 20."""
        assert expected_gain([CurvePoint(50, 0.6), CurvePoint(90, 0.7)], 20) == pytest.approx(0.05)

    def test_a_falling_line_is_no_loss(self):
        assert expected_gain([CurvePoint(50, 0.7), CurvePoint(90, 0.6)], 20) == 0.0

    def test_nothing_can_be_told(self):
        assert expected_gain([], 20) is None
        assert expected_gain([CurvePoint(50, 0.5)] * 5, 20) is None

    @settings(deadline=None, max_examples=40)
    @given(curves, st.integers(1, 200))
    def test_always_a_share_or_nothing(self, points, more):
        found = expected_gain([CurvePoint(*point) for point in points], more)

        assert found is None or found >= 0.0
        if len({labels for labels, _ in points}) >= 4:
            assert found is not None
            assert found <= 1.0
