"""How good the network is, measured on holdout images: images of an order that were drawn at random.

Images that a strategy chose are harder than the average one, so that only randomly drawn ones estimate the accuracy on
the pool. Also here: which labels are holdout labels, intervals of shares, and the calibration of probabilities.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from math import hypot
from typing import Annotated, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from pydantic import Field

from ml_backend.analytics.history import Answer, RoundInsight, stored_insights
from ml_backend.schemas import FrozenModel, HandPick, Label, round_name
from ml_backend.storage import ProjectStore, RoundSummary

MIN_HOLDOUT_IMAGES: Final = 30
"""Holdout images below which no accuracy is reported."""
WINDOW: Final = 100
"""Holdout images that an estimate is about, the newest: the network changes."""
MIN_IMAGES_OF_A_CLASS: Final = 10
"""Holdout images of a class below which its recall is not reported."""
PROOF: Final = "proof"
"""Name of the record ``ActiveAgainstRandom`` of a project."""
_Z = 1.959963984540054  # of a 95 % interval
_BINS = 10

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Floats: TypeAlias = npt.NDArray[np.float64]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; 0 to 1 where nothing was counted.

    Not SciPy's ``binomtest``: importing ``scipy.stats`` takes longer than all else in the web process.

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
        correct: of ``n`` counted.
        n: above 0.
        before: of ``n_before`` others.
        n_before: above 0.

    Source:
        Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10.
    """
    share, share_before = correct / n, before / n_before
    low, high = wilson(correct, n)
    low_before, high_before = wilson(before, n_before)
    difference = share - share_before
    # Clipped for rounding alone.
    return (
        max(-1.0, difference - hypot(share - low, high_before - share_before)),
        min(1.0, difference + hypot(high - share, share_before - low_before)),
    )


@dataclass(frozen=True, slots=True)
class HoldoutLabel:
    """The label of an image that was drawn at random.

    Attributes:
        round_id: of the round whose order the image was served in.
        probs: predictions of that round's network before the image had a label, in the order of the classes.
        at: time of the image's first answer.
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
        start: made before the first order of a network.
        control: of images drawn at random in such an order.
        chosen: of images that the strategy chose.
        random: of orders of the strategy ``random``. Random too, but the network has no prediction for them, and
            nothing distinguishes them from what another strategy would have chosen.
        by_hand: of images that the owner had put next.
    """

    start: tuple[Label, ...]
    control: tuple[HoldoutLabel, ...]
    chosen: tuple[Label, ...]
    random: tuple[Label, ...] = ()
    by_hand: tuple[Label, ...] = ()


def stored_labels_by_origin(
    project: ProjectStore,
    labels: Sequence[Label],
    answers: Sequence[Answer],
    insights: Mapping[str, RoundInsight] | None = None,
) -> LabelsByOrigin:
    """``labels_by_origin`` for the stored rounds of a project, and their ``stored_insights`` of the labelled images.

    A damaged round is left out: its images count as of the round before.
    """
    rounds, _ = project.summaries()
    if insights is None:
        insights = stored_insights(project, {label.image.id for label in labels})
    published: dict[str, datetime] = {}
    for order in project.orders():
        published.setdefault(order.round_id, order.published_at)
    by_hand = picked_labels(labels, project.hand_picks(), answers)
    picked = {label.image.id for label in by_hand}
    others = [label for label in labels if label.image.id not in picked]
    return replace(labels_by_origin(rounds, insights, others, answers, published), by_hand=by_hand)


def picked_labels(labels: Sequence[Label], picks: Sequence[HandPick], answers: Sequence[Answer]) -> tuple[Label, ...]:
    """The labels of images that the owner had put next before their first answer, whatever order held them too."""
    since = {image_id: pick.at for pick in reversed(picks) for image_id in pick.image_ids}
    first = _first_answers(answers)
    found = [one for one in labels if one.image.id in since.keys() & first.keys()]
    found = [one for one in found if since[one.image.id] < first[one.image.id]]
    return tuple(sorted(found, key=lambda one: first[one.image.id]))


def _first_answers(answers: Sequence[Answer]) -> dict[str, datetime]:
    """When each image got its first answer, skips excepted."""
    first: dict[str, datetime] = {}
    for answer in answers:
        if answer.value is not None:
            first[answer.image_id] = min(answer.created_at, first.get(answer.image_id, answer.created_at))
    return first


def labels_by_origin(
    rounds: Sequence[RoundSummary],
    insights: Mapping[str, RoundInsight],
    labels: Sequence[Label],
    answers: Sequence[Answer],
    published: Mapping[str, datetime] | None = None,
) -> LabelsByOrigin:
    """Divide the labels by the order in which their images were served.

    That is the newest order of a network that was published when the image got its first answer. An image
    counts as holdout only under the round that drew it: one that was drawn before and is served by choice later has
    been selected. Around a switch an image may have been served in the order before; most of the images that are drawn
    from a fixed permutation are the same in both.

    Args:
        rounds: of a project, in any order.
        insights: by round; without one, all images of a round count as chosen.
        labels: current ones.
        answers: of the project; a label without any is left out.
        published: when each round was first published; where that is not known, the beginning of the round counts.
    """
    first = _first_answers(answers)
    served = {one.round_id: one.began for one in rounds} | dict(published or {})
    ranked = sorted((one for one in rounds if one.by_network), key=lambda one: served[one.round_id])
    since = [served[one.round_id] for one in ranked]
    drawn = {round_id: {image.image_id: image for image in insight.control} for round_id, insight in insights.items()}
    start: list[Label] = []
    control: list[HoldoutLabel] = []
    chosen: list[Label] = []
    random: list[Label] = []
    dated = [(at, label) for label in labels if (at := first.get(label.image.id)) is not None]
    for at, label in sorted(dated, key=lambda one: one[0]):
        place = bisect_left(since, at)
        if place == 0:
            start.append(label)
            continue
        order = ranked[place - 1]
        if order.strategy == "random":
            random.append(label)
            continue
        image = drawn.get(order.round_id, {}).get(label.image.id)
        if image is None:
            chosen.append(label)
        elif label.value in image.probs:
            control.append(HoldoutLabel(label, order.round_id, dict(image.probs), at))
    return LabelsByOrigin(tuple(start), tuple(control), tuple(chosen), tuple(random))


class HoldoutRound(FrozenModel):
    """Holdout images as of one round; ``low`` and ``high`` end Wilson's 95 % interval of the share that is correct."""

    round_id: str
    n: Count
    correct: Count
    low: Share
    high: Share

    @classmethod
    def of(cls, round_id: str, images: Sequence[HoldoutLabel]) -> "HoldoutRound":
        """Count them."""
        correct = sum(one.correct for one in images)
        low, high = wilson(correct, len(images))
        return cls(round_id=round_id, n=len(images), correct=correct, low=low, high=high)

    @property
    def accuracy(self) -> float:
        """Share that is correct; there is at least one image."""
        return self.correct / self.n


class HoldoutTrend(FrozenModel):
    """The newest holdout images against as many before them: no image is in both, so that the two are independent.

    Attributes:
        n: images of each half.
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
        """Whether the accuracy rises significantly."""
        return self.low > 0

    @property
    def falls(self) -> bool:
        """Whether it falls significantly."""
        return self.high < 0

    @property
    def summary(self) -> str:
        """The counts and their difference, as part of a sentence."""
        return (
            f"the network was right about {self.correct} of the last {self.n}, since {round_name(self.since)}, and "
            f"about {self.before} of the {self.n} before ({100 * self.difference:+.0f} points, 95 % interval "
            f"{100 * self.low:+.0f} to {100 * self.high:+.0f})".replace("-", "−")
        )


class CalibrationBin(FrozenModel):
    """Holdout images of similar confidence: how many, their mean confidence, and how many were predicted correctly."""

    n: Annotated[int, Field(ge=1)]
    confidence: Share
    correct: Count


class HoldoutEstimate(FrozenModel):
    """The network's accuracy on images without a label.

    Attributes:
        total: holdout images with a label; ``n``: the newest of these, that the rest is about.
        correct: of ``n``; ``accuracy`` is their share, None where there is none.
        low: lower end of Wilson's 95 % interval of the accuracy; ``high`` its upper end.
        recall: share correct of each class; None where it has fewer than 10 images.
        ece: expected calibration error of the probabilities, 0 to 1; None where the images are fewer than 30.
        bins: what ``ece`` is computed from, least confident first, without empty ones; none where the images are fewer.
        enough: whether there are 30 or more.
        by_round: all of them, oldest round first.
        running: the accuracy as of each round, of the newest images until then; without the rounds at which they were
            fewer than 30. Successive estimates share most of their images, and networks of several rounds have
            predicted these: a rise appears late, and flatter than it is.
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
    ece: Share | None
    bins: tuple[CalibrationBin, ...] = ()
    enough: bool
    by_round: tuple[HoldoutRound, ...]
    running: tuple[HoldoutRound, ...] = ()
    trend: HoldoutTrend | None = None
    sentence: str


class ActiveAgainstRandom(FrozenModel):
    """Networks at equal numbers of labels, chosen by the strategy or at random, on holdout images of other patients.

    Attributes:
        images: holdout images that both networks have predicted.
        labels: labels each network was trained with, by fold: equally many on both sides.
        chosen: labels beyond the start set among them, by fold.
        active_correct: correct predictions of the networks trained on chosen images; ``random_correct`` likewise.
        only_active: images that only the active network predicted correctly; ``only_random`` likewise.
        difference: of the accuracies, active minus random, -1 to 1.
        low: lower end of its 95 % bootstrap interval over patients; ``high`` its upper end.
        p: of McNemar's exact test, two-sided.
        by_hand: labels of images that the owner had put next, which are on neither side.
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
    by_hand: Count = 0
    seed: int
    made_at: datetime
    sentence: str


def holdout_estimate(
    holdout: Sequence[HoldoutLabel], classes: Sequence[str], *, window: int = WINDOW
) -> HoldoutEstimate:
    """Estimate the accuracy from the holdout images so far.

    Args:
        holdout: those with a label, oldest first.
        classes: of the project, least severe first; images of networks of other classes are left out.
        window: newest images that the estimate is about.
    """
    usable = [one for one in holdout if tuple(one.probs) == tuple(classes)]
    newest = usable[-window:]
    n, correct = len(newest), sum(one.correct for one in newest)
    low, high = wilson(correct, n)
    enough = n >= MIN_HOLDOUT_IMAGES
    sure = np.array([max(one.probs.values()) for one in newest]), np.array([one.correct for one in newest], dtype=bool)
    recall: dict[str, float | None] = {}
    for name in classes:
        found = [one.correct for one in newest if one.label.value == name]
        recall[name] = sum(found) / len(found) if len(found) >= MIN_IMAGES_OF_A_CLASS else None
    return HoldoutEstimate(
        total=len(usable),
        n=n,
        correct=correct,
        accuracy=correct / n if n else None,
        low=low,
        high=high,
        recall=recall,
        ece=expected_calibration_error(*sure, _BINS) if enough else None,
        bins=calibration_bins(*sure, _BINS) if enough else (),
        enough=enough,
        by_round=by_round(usable),
        running=running(usable, window=window, enough=MIN_HOLDOUT_IMAGES),
        trend=trend(usable, window=window, enough=MIN_HOLDOUT_IMAGES),
        sentence=_sentence(n, correct, low, high),
    )


def by_round(images: Sequence[HoldoutLabel]) -> tuple[HoldoutRound, ...]:
    """Count the images of each round, oldest round first.

    Args:
        images: oldest first, so that those of a round are consecutive.
    """
    return tuple(HoldoutRound.of(name, list(group)) for name, group in groupby(images, key=lambda one: one.round_id))


def running(images: Sequence[HoldoutLabel], *, window: int, enough: int) -> tuple[HoldoutRound, ...]:
    """The accuracy as of each round, of the newest images until then; see ``HoldoutEstimate``.

    Args:
        images: oldest first.
        window: maximum number of images that an estimate is about.
        enough: minimum; rounds at which there were fewer are left out.
    """
    found, until = [], 0
    for one in by_round(images):
        until += one.n
        if until >= enough:
            found.append(HoldoutRound.of(one.round_id, images[max(until - window, 0) : until]))
    return tuple(found)


def trend(images: Sequence[HoldoutLabel], *, window: int, enough: int) -> HoldoutTrend | None:
    """Compare the newest half of the images with the half before.

    Args:
        images: oldest first.
        window: maximum number of images of each half; older ones are left out.
        enough: minimum of each half; None where there are fewer.
    """
    n = min(len(images) // 2, window)
    if n < enough:
        return None
    newest, older = images[-n:], images[-2 * n : -n]
    correct, before = sum(one.correct for one in newest), sum(one.correct for one in older)
    low, high = newcombe(correct, n, before, n)
    return HoldoutTrend(
        n=n,
        since=newest[0].round_id,
        correct=correct,
        before=before,
        difference=(correct - before) / n,
        low=low,
        high=high,
    )


def expected_calibration_error(
    confidence: Float[Floats, " images"], correct: Bool[npt.NDArray[np.bool_], " images"], bins: int
) -> float:
    """Gap between mean confidence and accuracy, over bins of equal width, weighted by their images; 0 to 1.

    Biased upwards for few images.

    Args:
        confidence: probability of the predicted class, above 0.
        correct: whether that class is the label.
        bins: number of bins, each closed above, so that a confidence of 1 falls into the last.

    Source:
        Naeini, Cooper & Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602; Guo et al. 2017, arXiv:1706.04599.
    """
    found = calibration_bins(confidence, correct, bins)
    return sum(abs(one.correct - one.n * one.confidence) for one in found) / len(correct)


def calibration_bins(
    confidence: Float[Floats, " images"], correct: Bool[npt.NDArray[np.bool_], " images"], bins: int
) -> tuple[CalibrationBin, ...]:
    """The bins that hold images; the arguments are those of ``expected_calibration_error``."""
    places = np.ceil(confidence * bins).astype(np.int64).clip(1, bins) - 1
    sums = (np.bincount(places, weights=weights, minlength=bins) for weights in (None, confidence, correct))
    return tuple(
        CalibrationBin(n=int(n), confidence=min(float(sure / n), 1.0), correct=int(right))
        for n, sure, right in zip(*sums, strict=True)
        if n
    )


def _sentence(n: int, correct: int, low: float, high: float) -> str:
    if n == 0:
        return "No randomly drawn image has a label yet, so the accuracy on the remaining images is not known."
    if n < MIN_HOLDOUT_IMAGES:
        below, above = wilson(MIN_HOLDOUT_IMAGES // 2, MIN_HOLDOUT_IMAGES)
        return (
            f"{n} randomly drawn image{'s have' if n > 1 else ' has'} a label so far, {MIN_HOLDOUT_IMAGES} are needed "
            f"to report an accuracy, then to about ±{50 * (above - below):.0f} points."
        )
    return (
        f"The network was right about {correct} of the last {n} randomly drawn images: {100 * correct / n:.0f} % "
        f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %), predicted before they had a label."
    )
