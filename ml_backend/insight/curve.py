"""Where a learning curve is heading: what the next labels are expected to gain."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

__all__ = ["ENOUGH_FOR_A_CURVE", "CurvePoint", "Slope", "expected_gain", "slope"]

ENOUGH_FOR_A_CURVE = 4
"""Points: with three, the three numbers of a power law fit anything."""
_LINE = 3
"""Last points that a straight line is laid through where there are fewer."""
_STARTS = (0.25, 0.5, 1.0, 2.0)
"""Exponents that the fit is begun from: the best of its ends is kept."""

Floats: TypeAlias = npt.NDArray[np.float64]


class CurvePoint(NamedTuple):
    """How good a network of so many labels was."""

    labels: int
    accuracy: float


class Slope(NamedTuple):
    """A straight line through the last points, in accuracy a round."""

    per_round: float
    error: float
    """Its standard error; 0 with two points."""


def slope(values: Sequence[float]) -> Slope | None:
    """Least squares through one value a round; None with fewer than three.

    The error is of independent values: those of successive rounds share most of their validation labels, and seem a
    little surer than they are.
    """
    if len(values) < 3:
        return None
    rounds = np.arange(len(values)) - (len(values) - 1) / 2
    per_round = float(rounds @ np.asarray(values) / (rounds @ rounds))
    left = np.asarray(values) - np.mean(values) - per_round * rounds
    return Slope(per_round, sqrt(float(left @ left) / (len(values) - 2) / float(rounds @ rounds)))


def expected_gain(curve: Sequence[CurvePoint], more: int) -> float | None:
    """Accuracy that so many more labels are expected to add.

    With four points of different numbers of labels or more, by a power law of the error, ``a + b * labels ** -c`` with
    ``a`` and ``b`` from 0 to 1 (``b`` at the first point) and ``c`` from 0.05 to 3, by least squares; with fewer, by a
    straight line through the last three.

    Args:
        curve: oldest first.
        more: labels, above 0.

    Returns:
        0 or more: labels are not expected to harm. None with fewer than two points of different numbers of labels.
    """
    different = {point.labels for point in curve if point.labels > 0}
    if len(different) < 2:
        return None
    if len(different) >= ENOUGH_FOR_A_CURVE:
        return _by_power_law([point for point in curve if point.labels > 0], more)
    last = curve[-_LINE:]
    labels = np.array([point.labels for point in last], dtype=np.float64)
    if not (spread := float(((labels - labels.mean()) ** 2).sum())):
        return None
    accuracy = np.array([point.accuracy for point in last])
    return max(0.0, float((labels - labels.mean()) @ accuracy / spread) * more)


def _by_power_law(curve: Sequence[CurvePoint], more: int) -> float:
    first = float(min(point.labels for point in curve))
    labels = np.array([point.labels for point in curve]) / first
    errors = 1.0 - np.array([point.accuracy for point in curve])

    def left(law: Floats) -> Floats:
        return _error(law, labels) - errors

    fits = [
        least_squares(left, (errors.min() / 2, max(float(np.ptp(errors)), 0.01), c), bounds=([0, 0, 0.05], [1, 1, 3]))
        for c in _STARTS
    ]
    law = min(fits, key=lambda fit: float(fit.cost)).x
    now = curve[-1].labels / first
    return max(0.0, float(_error(law, now) - _error(law, now + more / first)))


def _error(law: Floats, labels: Floats | float) -> Floats:
    a, b, c = law
    told: Floats = a + b * np.asarray(labels, dtype=np.float64) ** -c
    return told
