"""95 % intervals of shares that were counted, and of the difference of two.

Labels that came by chance, that the owner's strategy chose, or from before there was a network: told apart.
Where a learning curve is heading: what the next labels are expected to gain.
How the accuracy on images that came by chance went: round by round, and the newest of them against those before.
What images that came by chance say: how often the network is right, and how far its probabilities can be believed.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from math import hypot, sqrt
from typing import Annotated, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from pydantic import Field
from scipy.optimize import least_squares, minimize_scalar

from ml_backend.analytics.history import Answer, RoundInsight
from ml_backend.schemas import FrozenModel, Label, RoundReport

_Z = 1.959963984540054  # of a 95 % interval


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; 0 to 1 where nothing was counted.

    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * ((share * (1 - share) + z2 / (4 * n)) / n) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(correct: int, n: int, before: int, n_before: int) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares, ``correct / n - before / n_before``; within -1 to 1.

    Args:
        correct: of ``n`` counted, above 0.
        n: how many were counted.
        before: of ``n_before`` others, above 0.
        n_before: how many they are.

    Source:
        Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10.
    """
    share, share_before = correct / n, before / n_before
    low, high = wilson(correct, n)
    low_before, high_before = wilson(before, n_before)
    difference = share - share_before
    # It does not lead out of them by itself, but for rounding.
    return (
        max(-1.0, difference - hypot(share - low, high_before - share_before)),
        min(1.0, difference + hypot(high - share, share_before - low_before)),
    )


@dataclass(frozen=True, slots=True)
class ControlLabel:
    """An image that came by chance, and got a label.

    Attributes:
        round_id: of the round whose order it came in.
        probs: what that round's network said of it, when nobody had labelled it; in the order of the classes.
        at: of the image's first answer.
    """

    label: Label
    round_id: str
    probs: dict[str, float]
    at: datetime

    @property
    def correct(self) -> bool:
        """Whether the network's most probable class is the label."""
        return max(self.probs, key=lambda name: self.probs[name]) == self.label.value


@dataclass(frozen=True, slots=True)
class LabelsByOrigin:
    """Labels of a project, each group in the order in which they were made.

    Attributes:
        start: from before the first order that a network made.
        control: that came by chance in such an order.
        chosen: that the strategy chose.
        random: from orders of the strategy ``random``. They came by chance too, but nobody asked the network about
            them: they can neither be held against it nor be told from what others would have chosen.
    """

    start: tuple[Label, ...]
    control: tuple[ControlLabel, ...]
    chosen: tuple[Label, ...]
    random: tuple[Label, ...] = ()


def labels_by_origin(
    reports: Sequence[RoundReport],
    insights: Mapping[str, RoundInsight],
    labels: Sequence[Label],
    answers: Sequence[Answer],
) -> LabelsByOrigin:
    """Tell the labels apart by the order in which their images came.

    That is the order of the newest round with a network that had begun when the image got its first answer. An image
    that stood in it by chance counts as control, and under no other round: what once stood by chance and came by choice
    later has been selected. Around a switch an image may have come in the order before; of the fixed permutation that
    control images are drawn from most are the same in both.

    Args:
        reports: of a project, in any order.
        insights: by round; what is missing makes an image of that round one that was chosen.
        labels: that there are now.
        answers: of the project; a label without any is left out.
    """
    first: dict[str, datetime] = {}
    for answer in answers:
        if answer.value is not None:
            first[answer.image_id] = min(answer.created_at, first.get(answer.image_id, answer.created_at))
    ranked = sorted((r for r in reports if r.by_network), key=lambda r: r.started_at)
    begun = [report.started_at for report in ranked]
    control_of = {
        round_id: {image.image_id: image for image in insight.control} for round_id, insight in insights.items()
    }
    start: list[Label] = []
    control: list[ControlLabel] = []
    chosen: list[Label] = []
    random: list[Label] = []
    dated = [(at, label) for label in labels if (at := first.get(label.image.id)) is not None]
    for at, label in sorted(dated, key=lambda one: one[0]):
        place = bisect_left(begun, at)
        if place == 0:
            start.append(label)
            continue
        order = ranked[place - 1]
        if order.ranking.strategy == "random":
            random.append(label)
            continue
        round_id = order.request.round_id
        image = control_of.get(round_id, {}).get(label.image.id)
        if image is None:
            chosen.append(label)
        elif label.value in image.probs:
            control.append(ControlLabel(label, round_id, dict(image.probs), at))
    return LabelsByOrigin(tuple(start), tuple(control), tuple(chosen), tuple(random))


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


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class ControlRound(FrozenModel):
    """Control images as they are told at one round; ``low`` and ``high`` end Wilson's 95 % interval of the share."""

    round_id: str
    n: Count
    correct: Count
    low: Share
    high: Share

    @classmethod
    def of(cls, round_id: str, images: Sequence[ControlLabel]) -> "ControlRound":
        """Count them."""
        correct = sum(one.correct for one in images)
        low, high = wilson(correct, len(images))
        return cls(round_id=round_id, n=len(images), correct=correct, low=low, high=high)

    @property
    def accuracy(self) -> float:
        """Share right; there is at least one image."""
        return self.correct / self.n


class ControlTrend(FrozenModel):
    """The newest control images against as many before them: no image is in both, so that the two are independent.

    Attributes:
        n: images of each part.
        since: round of the first of the newest.
        correct: of the newest; ``before`` of those before them.
        difference: of the accuracies, the newest minus those before, -1 to 1.
        low: lower end of its 95 % interval; ``high`` its upper end.
    """

    n: Count
    since: str
    correct: Count
    before: Count
    difference: float
    low: float
    high: float

    @property
    def rises(self) -> bool:
        """Whether a rise is told from luck."""
        return self.low > 0

    @property
    def told(self) -> str:
        """The counts and their difference, as part of a sentence."""
        return (
            f"the network was right about {self.correct} of the last {self.n}, since {self.since}, and about "
            f"{self.before} of the {self.n} before ({100 * self.difference:+.0f} points, 95 % interval "
            f"{100 * self.low:+.0f} to {100 * self.high:+.0f})"
        )


def by_round(images: Sequence[ControlLabel]) -> tuple[ControlRound, ...]:
    """Those of each round by themselves, oldest round first.

    Args:
        images: oldest first, so that those of a round stand together.
    """
    return tuple(ControlRound.of(name, list(group)) for name, group in groupby(images, key=lambda one: one.round_id))


def running(images: Sequence[ControlLabel], *, window: int, enough: int) -> tuple[ControlRound, ...]:
    """The estimate as it stood after each round, oldest first: of the newest images until then.

    Successive estimates share most of their images, and networks of several rounds have answered them: a rise shows
    late, and less steep than it is.

    Args:
        images: oldest first.
        window: images that an estimate is about, at most.
        enough: images that it takes; rounds at which there were fewer are left out.
    """
    found, until = [], 0
    for one in by_round(images):
        until += one.n
        if until >= enough:
            found.append(ControlRound.of(one.round_id, images[max(until - window, 0) : until]))
    return tuple(found)


def trend(images: Sequence[ControlLabel], *, window: int, enough: int) -> ControlTrend | None:
    """Whether the accuracy rises: the newest half of the images against the other.

    Args:
        images: oldest first.
        window: images of each half, at most; what is older is left out.
        enough: images that each half takes; None where there are fewer.
    """
    n = min(len(images) // 2, window)
    if n < enough:
        return None
    newest, older = images[-n:], images[-2 * n : -n]
    correct, before = sum(one.correct for one in newest), sum(one.correct for one in older)
    low, high = newcombe(correct, n, before, n)
    return ControlTrend(
        n=n,
        since=newest[0].round_id,
        correct=correct,
        before=before,
        difference=(correct - before) / n,
        low=low,
        high=high,
    )


MIN_HOLDOUT_IMAGES: Final = 30
"""Control images below which nothing is claimed."""
WINDOW: Final = 100
ENOUGH_OF_A_CLASS: Final = 10
PROOF_FILE: Final = "proof.json"
"""Where ``ActiveAgainstRandom`` stands in a project's folder."""
_BINS = 10
_FOLDS = 5
_SMALLEST = 1e-12  # of a probability in a logarithm


class ControlEstimate(FrozenModel):
    """How often the network is right about images that nobody had labelled.

    Attributes:
        total: control images with a label; ``n``: of these the newest, that the rest is about.
        correct: of ``n``; ``accuracy`` is their share, None where there is none.
        low: lower end of Wilson's 95 % interval of the accuracy; ``high`` its upper end.
        recall: share right of each class; None where it has fewer than 10 images.
        temperature: that the probabilities would have to be cooled by (below 1) or warmed (above), fitted on these
            images alone; None where they are fewer than 30.
        ece: expected calibration error of the probabilities as they are, 0 to 1; likewise.
        ece_calibrated: of each fifth under the temperature that the others give; likewise.
        enough: there are 30 or more.
        by_round: all of them, oldest round first.
        running: the accuracy as it stood after each round, of the newest images until then; without the rounds at
            which they were fewer than 30.
        trend: the newest images against those before them; None where either are fewer than 30.
        sentence: for the owner.
    """

    total: Count
    n: Count
    correct: Count
    accuracy: Share | None
    low: Share
    high: Share
    recall: dict[str, Share | None]
    temperature: float | None
    ece: Share | None
    ece_calibrated: Share | None
    enough: bool
    by_round: tuple[ControlRound, ...]
    running: tuple[ControlRound, ...] = ()
    trend: ControlTrend | None = None
    sentence: str


class ActiveAgainstRandom(FrozenModel):
    """Networks at equal numbers of labels, chosen by the strategy or by chance, on control images of other patients.

    Attributes:
        images: control images that both have answered.
        labels: labels each network was fitted with, by fold: equally many on both sides.
        chosen: labels beyond the start set among them, by fold.
        active_correct: right answers of the networks that learned what the strategy chose; ``random_correct`` likewise.
        only_active: images that only the active one answered rightly; ``only_random`` likewise.
        difference: of the accuracies, active minus random, -1 to 1.
        low: lower end of its 95 % bootstrap interval over patients; ``high`` its upper end.
        p: of McNemar's exact test, two-sided.
        sentence: for the owner.
    """

    images: Count
    labels: tuple[Count, ...]
    chosen: tuple[Count, ...]
    active_correct: Count
    random_correct: Count
    only_active: Count
    only_random: Count
    difference: float
    low: float
    high: float
    p: Share
    seed: int
    made_at: datetime
    sentence: str


def control_estimate(
    control: Sequence[ControlLabel], classes: Sequence[str], *, was_on: bool, window: int = WINDOW
) -> ControlEstimate | None:
    """What the control images say so far; None where there never was a control share.

    Args:
        control: those with a label, oldest first.
        classes: of the project, least severe first.
        was_on: some round had a control share.
        window: images that the estimate is about: the newest, since the network changes.
    """
    if not was_on:
        return None
    usable = [one for one in control if tuple(one.probs) == tuple(classes)]
    newest = usable[-window:]
    n, correct = len(newest), sum(one.correct for one in newest)
    low, high = wilson(correct, n)
    temperature = ece = ece_calibrated = None
    if n >= MIN_HOLDOUT_IMAGES:
        probs = np.array([list(one.probs.values()) for one in newest])
        targets = np.array([classes.index(one.label.value) for one in newest])
        temperature = fitted_temperature(probs, targets)
        ece = expected_calibration_error(probs, targets)
        ece_calibrated = expected_calibration_error(_each_by_the_others(probs, targets), targets)
    return ControlEstimate(
        total=len(usable),
        n=n,
        correct=correct,
        accuracy=correct / n if n else None,
        low=low,
        high=high,
        recall=_recalls(newest, classes),
        temperature=temperature,
        ece=ece,
        ece_calibrated=ece_calibrated,
        enough=n >= MIN_HOLDOUT_IMAGES,
        by_round=by_round(usable),
        running=running(usable, window=window, enough=MIN_HOLDOUT_IMAGES),
        trend=trend(usable, window=window, enough=MIN_HOLDOUT_IMAGES),
        sentence=_sentence(n, correct, low, high),
    )


def fitted_temperature(probs: Float[Floats, "images classes"], targets: Int[npt.NDArray[np.intp], " images"]) -> float:
    """The temperature T, 0.05 to 20, under which ``p ** (1 / T)``, made to sum to 1, makes the labels most probable.

    Source:
        Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599.
    """
    logs = np.log(np.maximum(probs, _SMALLEST))

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        picked = scaled[np.arange(len(targets)), targets]
        return float((np.log(np.exp(scaled).sum(axis=1)) - picked).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))


def expected_calibration_error(
    probs: Float[Floats, "images classes"], targets: Int[npt.NDArray[np.intp], " images"]
) -> float:
    """How far confidence and accuracy lie apart, over ten bins of equal width, weighted by their images; 0 to 1.

    Few images make it larger than it is.

    Source:
        Naeini, Cooper & Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602.
    """
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == targets
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float(confidence[bins == one].sum() - right[bins == one].sum())) for one in range(_BINS)]
    return sum(gaps) / len(targets)


def _each_by_the_others(
    probs: Float[Floats, "images classes"], targets: Int[npt.NDArray[np.intp], " images"]
) -> Float[Floats, "images classes"]:
    """Every fifth image's probabilities under the temperature that the other four fifths give.

    Not all others: the temperature that leaves one image out leans away from that image's own answer.
    """
    calibrated = np.empty_like(probs)
    for first in range(_FOLDS):
        own = np.arange(len(targets)) % _FOLDS == first
        scaled = np.maximum(probs[own], _SMALLEST) ** (1.0 / fitted_temperature(probs[~own], targets[~own]))
        calibrated[own] = scaled / scaled.sum(axis=1, keepdims=True)
    return calibrated


def _recalls(images: Sequence[ControlLabel], classes: Sequence[str]) -> dict[str, float | None]:
    of_class = {name: [one.correct for one in images if one.label.value == name] for name in classes}
    return {
        name: sum(right) / len(right) if len(right) >= ENOUGH_OF_A_CLASS else None for name, right in of_class.items()
    }


def _sentence(n: int, correct: int, low: float, high: float) -> str:
    if n == 0:
        return "No image that came by chance has a label yet: nothing can be told of the network's accuracy."
    if n < MIN_HOLDOUT_IMAGES:
        below, above = wilson(25, 50)
        return (
            f"{n} control image{'s' if n > 1 else ''} so far: too few to tell; at 50 the interval is about "
            f"±{50 * (above - below):.0f} points."
        )
    return (
        f"The network was right about {correct} of the last {n} images that came by chance: {100 * correct / n:.0f} % "
        f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %), of the images that nobody had labelled when it ranked "
        "them."
    )
