"""Learning curves: a metric over the labels, and what is read off them. Higher values are better throughout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64

__all__ = [
    "Band",
    "Curves",
    "LearningCurve",
    "area_under",
    "band",
    "by_name",
    "labels_needed",
    "running_median",
    "shared_labels",
]

WINDOW = 3  # rounds

Counts: TypeAlias = Int64[npt.NDArray[np.int64], " rounds"]
Values: TypeAlias = Float64[npt.NDArray[np.float64], " rounds"]


@dataclass(frozen=True, slots=True, eq=False)
class LearningCurve:
    """One metric over the rounds of one run.

    Attributes:
        strategy: what picked the images.
        seed: of the run; runs of one seed share split and start set, and are compared in pairs.
        labels: images labelled at every round, strictly increasing.
        values: the metric on the test images, higher is better; finite.
        train_images: images that could be labelled in all: of which ``labels`` are a share.
        variant: what else the runs of a study differ in (the loss, say); empty where nothing.

    Raises:
        ValueError: no round, lengths that differ, labels that do not increase or are more than there are images, or a
            value that is not finite.
    """

    strategy: str
    seed: int
    labels: Counts
    values: Values
    train_images: int
    variant: str = ""

    def __post_init__(self) -> None:
        # Own copies that cannot be written: a frozen record is to stay as it was checked.
        for name, kind in (("labels", np.int64), ("values", np.float64)):
            array = np.array(getattr(self, name), dtype=kind)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        who = f"{self.name}, seed {self.seed}"
        if self.labels.ndim != 1 or self.labels.shape != self.values.shape or not len(self.labels):
            raise ValueError(f"{who}: {self.labels.shape} labels but {self.values.shape} values, give one a round")
        if self.labels[0] < 1 or self.labels[-1] > self.train_images or (np.diff(self.labels) <= 0).any():
            raise ValueError(f"{who}: labels must increase within 1 to {self.train_images}, got {self.labels.tolist()}")
        if not np.isfinite(self.values).all():
            first = int(np.isfinite(self.values).argmin())
            raise ValueError(
                f"{who}: value {self.values[first]} at {self.labels[first]} labels: leave out undefined rounds"
            )

    @property
    def name(self) -> str:
        """What the run is called next to others: ``"entropy"``, or ``"entropy, weighted"`` for a variant."""
        return f"{self.strategy}, {self.variant}" if self.variant else self.strategy

    @property
    def shares(self) -> Values:
        """Labels as a share of the training set, above 0 to 1."""
        return self.labels / self.train_images


Curves: TypeAlias = dict[str, dict[int, LearningCurve]]
"""Curves by name, then by seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """The middle half of several runs.

    Attributes:
        labels: counts at which every run has a value.
        median, q25, q75: over the runs, at each count.
        train_images: median over the runs, whose splits may differ by a patient.
        runs: how many there are.
    """

    labels: Counts
    median: Values
    q25: Values
    q75: Values
    train_images: float
    runs: int

    @property
    def shares(self) -> Values:
        """Labels as a share of the training set, above 0 to 1."""
        return self.labels / self.train_images


def by_name(curves: Iterable[LearningCurve]) -> Curves:
    """Sort curves by name and seed; names in the order in which they first come, seeds ascending.

    Raises:
        ValueError: a run stands there twice.
    """
    found: Curves = {}
    for curve in curves:
        runs = found.setdefault(curve.name, {})
        if curve.seed in runs:
            raise ValueError(f"{curve.name}, seed {curve.seed}: two curves, give one a run")
        runs[curve.seed] = curve
    return {name: dict(sorted(runs.items())) for name, runs in found.items()}


def running_median(values: Sequence[float] | Values, window: int = WINDOW) -> Values:
    """Median over the ``window`` rounds around each round.

    At both ends it is taken over the rounds that the window still holds: with a window of 3, the first and the last
    value are means of two rounds, so that one lucky round does not decide there either.

    Args:
        values: finite, one a round.
        window: odd, at least 1; 1 changes nothing.

    Raises:
        ValueError: an even window or one below 1, or no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"a window has an odd number of rounds around its middle, got {window}")
    if not len(array):
        raise ValueError("the running median of no round is not defined")
    # NaN stands for rounds outside, which nanmedian leaves out.
    padded = np.pad(array, window // 2, constant_values=np.nan)
    medians: Values = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
    return medians


def labels_needed(curve: LearningCurve, target: float, window: int = WINDOW) -> int | None:
    """The first label count at which the curve, smoothed by ``running_median``, reaches the target.

    Smoothed, because of 40 noisy rounds one is soon lucky. Whether the curve stays there is not asked. Counts between
    two rounds are not interpolated: labels come in batches.

    Returns:
        One of ``curve.labels``; None where the target is never reached.

    Raises:
        ValueError: see ``running_median``.
    """
    reached = running_median(curve.values, window) >= target
    return int(curve.labels[reached.argmax()]) if reached.any() else None


def area_under(curve: LearningCurve, labels: Counts | None = None) -> float:
    """Mean height of a curve: the area under it by the trapezoid rule over the share of labels, divided by the width.

    A constant curve c gives c, and the unit is the metric's. Only areas over the same label counts can be compared.

    Args:
        curve: of one run.
        labels: counts to take, all of them among the curve's (see ``shared_labels``); None takes the whole curve.

    Returns:
        Between the lowest and the highest value; of a single round, its value.

    Raises:
        ValueError: a count that the curve does not have, or none at all.
    """
    wanted = curve.labels if labels is None else np.unique(labels)
    chosen = np.isin(curve.labels, wanted)
    if not len(wanted) or chosen.sum() < len(wanted):
        raise ValueError(f"{curve.name}, seed {curve.seed}: has no value at each of the labels {wanted.tolist()}")
    shares, values = curve.shares[chosen], curve.values[chosen]
    if len(values) == 1:
        return float(values[0])
    return float(np.trapezoid(values, shares) / (shares[-1] - shares[0]))


def shared_labels(curves: Sequence[LearningCurve]) -> Counts:
    """Label counts at which every curve has a value, ascending.

    Raises:
        ValueError: there is no such count, or no curve.
    """
    if not curves:
        raise ValueError("no curve to compare: give at least one")
    shared: Counts = reduce(np.intersect1d, (curve.labels for curve in curves))
    if not len(shared):
        ranges = [f"{c.name}, seed {c.seed}: {c.labels[0]} to {c.labels[-1]}" for c in curves[:10]]
        raise ValueError(f"the curves share no label count ({'; '.join(ranges)}): use one start set and batch size")
    return shared


def band(curves: Sequence[LearningCurve]) -> Band:
    """Median and quartiles of several seeds, at the label counts that all of them have.

    Quantiles by linear interpolation between the ordered values, NumPy's default.

    Args:
        curves: runs of one name. A run that ended early ends the band.

    Raises:
        ValueError: no curve, different names, a seed twice, or no label count in common.

    Source:
        Hyndman & Fan 1996, doi:10.2307/2684934, definition 7.
    """
    labels = shared_labels(curves)
    if len(names := by_name(curves)) > 1:
        raise ValueError(f"a band is of one strategy and variant, got {', '.join(names)}")
    values = np.stack([curve.values[np.isin(curve.labels, labels)] for curve in curves])
    q25, median, q75 = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    return Band(
        labels=labels,
        median=median,
        q25=q25,
        q75=q75,
        train_images=float(np.median([curve.train_images for curve in curves])),
        runs=len(curves),
    )
