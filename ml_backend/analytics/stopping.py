"""When labelling may stop: advice in one sentence, with its evidence. Nothing acts on it.

Three findings decide: whether successive networks agree as far as two networks of the same labels do, whether the
curves still rise or fall, and how much the next labels are expected to gain.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import hypot, sqrt
from statistics import fmean, median
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ml_backend.analytics.agreement import Agreement, PredictionSnapshot, agreement
from ml_backend.analytics.evaluation import MIN_HOLDOUT_IMAGES, HoldoutEstimate
from ml_backend.analytics.history import same_classes
from ml_backend.schemas import FrozenModel

Verdict = Literal["too early", "go on", "soon", "stop", "done"]

MIN_ROUNDS: Final = 3
"""Trained rounds below which there is no advice: a slope, and two successive agreements."""
MIN_VALIDATION_IMAGES: Final = MIN_HOLDOUT_IMAGES
"""Validation images of a round below which its accuracy counts neither for a slope nor for an expected gain."""
COMPARED_ROUNDS: Final = 8
"""Last trained rounds whose networks are compared."""
LEVEL_ROUNDS: Final = 15
"""Last trained rounds whose accuracies decide whether it rises, and the least that "stop" needs.

With 5, five of six runs of ``tests/benchmarks/stopping.py`` got it in the fifth to seventh round, 3 to 29 points of
accuracy early; with 15 they missed at most 1.8 points.
"""
NOISE_ROUNDS: Final = 3
"""Last seed replicates whose agreement makes up the noise floor."""
STABLE_KAPPA: Final = 0.95
"""Kappa of successive networks below which they are not stable, however little seed replicates agree.

Successive networks begin with the same weights and seed replicates do not, so that the noise floor alone is reached
while labels still teach much.
"""
STABLE_KAPPA_ALONE: Final = 0.99
"""The same where there is no seed replicate; of Bloodgood & Vijay-Shanker 2009."""
SMALL_GAIN: Final = 0.005
"""Accuracy that the next labels are expected to gain for "soon", and that a round may have gained lately."""
NO_GAIN: Final = 0.001
"""The same for "stop"."""
LONGEST_ANSWER_S: Final = 30 * 60.0
"""Answers above it are not timed: the reader was away."""
MIN_CURVE_POINTS: Final = 4
"""Different numbers of labels that a power law is fitted to: with three, its three parameters fit anything."""
_LINE_POINTS = 3
"""Last points that a straight line is fitted to where there are fewer."""
_FIRST_EXPONENTS = (0.25, 0.5, 1.0, 2.0)
"""Exponents that the fit starts from: the best result is kept."""


class CurvePoint(NamedTuple):
    """The accuracy of a network trained on a number of labels."""

    labels: int
    accuracy: float


_STUDENT_95: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16)
"""By degrees of freedom, from 1; scipy.stats takes over a second to import."""
_ROUNDING: Final = 1e-9
"""Accuracy a round below which a slope and its error are rounding."""


class Slope(NamedTuple):
    """A straight line through the last points, in accuracy a round, its standard error, and their number."""

    per_round: float
    error: float
    points: int

    @property
    def margin(self) -> float:
        """Half of its 95 % interval, by Student's t."""
        return self.error * _STUDENT_95[min(self.points - 2, len(_STUDENT_95)) - 1]

    @property
    def rises(self) -> bool:
        """Whether it rises by more than its standard error."""
        return self.per_round > self.error

    @property
    def falls(self) -> bool:
        """Whether it falls by more than its standard error."""
        return self.per_round < -self.error


class AgreementPoint(FrozenModel):
    """A round's network against that of the trained round before."""

    round_id: str
    labels: Annotated[int, Field(ge=0)]
    agreement: Agreement


class StopAdvice(FrozenModel):
    """Whether more labels are worth their reading.

    Attributes:
        verdict: ``done``: no image is left to be labelled.
        sentence: for the owner; the verdict comes first.
        evidence: further sentences.
        agreements: successive networks on the fixed set, oldest first.
        noise_floor: kappa of two networks of the same labels, mean of the last seed replicates; None without any.
        gain: accuracy that the next labels are expected to add; None where it is not known.
        minutes: of reading that these take, by the median answer; None where no answer was timed.
        slope: of the accuracy, a round.
        slope_error: its standard error, see ``slope``.
    """

    verdict: Verdict
    sentence: str
    evidence: tuple[str, ...] = ()
    agreements: tuple[AgreementPoint, ...] = ()
    noise_floor: float | None = None
    gain: Annotated[float, Field(ge=0.0)] | None = None
    minutes: Annotated[float, Field(ge=0.0)] | None = None
    slope: float | None = None
    slope_error: float | None = None

    @property
    def minutes_per_point(self) -> float | None:
        """Minutes of reading for each percentage point; None where next to nothing is gained."""
        if self.minutes is None or self.gain is None or self.gain < NO_GAIN:
            return None
        return self.minutes / (100.0 * self.gain)


def stop_advice(
    snapshots: Sequence[PredictionSnapshot],
    noise: Mapping[str, Agreement],
    *,
    labels: int,
    images: Mapping[str, int] | None = None,
    left: int | None = None,
    seconds: float | None = None,
    control: HoldoutEstimate | None = None,
) -> StopAdvice:
    """Advise whether labelling may stop.

    "Soon" needs stable predictions, curves that do not fall, and a small gain: at most 0.5 points of accuracy by the
    next labels, and at most 0.5 points a round lately, with a standard error that is no larger. "Stop" needs stable
    predictions twice in a row, an accuracy that does not rise, and next to no gain (at most 0.1 points), over at
    least 15 rounds. The curves are accuracy and AU ROC on the validation images and the accuracy on holdout images.
    Holdout images can forbid "stop", and never call for it: they are too few to show that nothing rises. Only rounds
    with the classes of the newest count, and of these those with 30 validation images or more.

    Args:
        snapshots: of the trained rounds, oldest first; see ``stored_snapshots``.
        noise: round id -> agreement of its network with its seed replicate; see ``stored_noise``.
        labels: until the next training: the gain is estimated for these.
        images: round id -> validation images of its network. None: not known, and every accuracy counts.
        left: images that a reader may be served; the next labels are at most these. None: not known.
        seconds: that an image takes to read; see ``seconds_an_image``.
        control: accuracy on holdout images; None without a holdout.
    """
    same = same_classes(snapshots)
    measured = [one for one in same if images is None or images.get(one.round_id, 0) >= MIN_VALIDATION_IMAGES]
    latest = [one.accuracy for one in measured[-LEVEL_ROUNDS:]]
    level = slope(latest, None if images is None else [images[one.round_id] for one in measured[-LEVEL_ROUNDS:]])
    if level is None:
        since = "so far" if len(same) == len(snapshots) else "since the classes changed"
        begins = _BEGINNINGS["too early"]
        few = f"{begins}: {count(len(same), 'network')} trained {since}, {MIN_ROUNDS} are needed."
        newest_on = None if images is None or not same else images.get(same[-1].round_id, 0)
        if newest_on is not None and (len(same) >= MIN_ROUNDS or newest_on < MIN_VALIDATION_IMAGES):
            few = (
                f"{begins}: {MIN_ROUNDS} networks validated on {MIN_VALIDATION_IMAGES} images or more are "
                f"needed, {len(measured)} so far; the newest was validated on {newest_on}."
            )
        return StopAdvice(verdict="done" if left == 0 else "too early", sentence=_NOTHING_LEFT if left == 0 else few)
    more = labels if left is None else min(labels, left)
    curve = [CurvePoint(one.labels, one.accuracy) for one in measured]
    floor = _noise_floor([noise[one.round_id] for one in same if one.round_id in noise])
    points = tuple(
        AgreementPoint(
            round_id=after.round_id,
            labels=after.labels,
            agreement=agreement(before.predicted, after.predicted, len(after.classes)),
        )
        for before, after in pairwise(same[-COMPARED_ROUNDS:])
    )
    falling = _falling(level, measured[-LEVEL_ROUNDS:], control)
    gain = expected_gain(curve, more) if more else None
    trend = None if control is None else control.trend
    contradicted = not level.rises and trend is not None and trend.rises

    verdict: Verdict = "go on"
    last = points[-2:]
    # Too few images to tell are no plateau.
    rising = max(level.per_round, level.error) > SMALL_GAIN
    small = gain is not None and gain <= SMALL_GAIN and not rising
    if small and not falling and _is_stable(last[-1].agreement, floor):
        twice = len(last) == 2 and _is_stable(last[0].agreement, floor)
        enough = len(measured) >= LEVEL_ROUNDS and twice and not level.rises and not contradicted
        verdict = "stop" if enough and gain is not None and gain <= NO_GAIN else "soon"

    if left == 0:
        verdict = "done"

    minutes = None if seconds is None else seconds * more / 60.0
    advice = StopAdvice(
        verdict=verdict,
        sentence="",
        agreements=points,
        noise_floor=None if floor is None else floor.kappa,
        gain=gain,
        minutes=minutes,
        slope=level.per_round,
        slope_error=level.error,
    )
    findings = [falling] if falling else []
    times, unit = label_unit([one.labels for one in measured[-LEVEL_ROUNDS:]], more or labels)
    change, error = f"by {100 * abs(level.per_round) * times:.2g} {unit}", f"{100 * level.error * times:.2g}"
    if rising and level.rises:
        though = ", though not in the newest" if latest[-1] < latest[-2] else ""
        findings.append(f"accuracy rose {change} (standard error {error}) over the last {level.points} rounds{though}")
    elif rising and not level.falls:
        findings.append("whether accuracy still rises is not clear")
    against = "against that, " if findings and points and _is_stable(points[-1].agreement, floor) else ""
    findings += [against + _agreement_words(points, floor), _gain_words(gain, minutes, more)]
    sentence = f"{_BEGINNINGS[verdict]}: {'; '.join(findings)}"
    if verdict == "soon" and contradicted:
        sentence += ", but on randomly drawn images accuracy still rose"
    return advice.model_copy(
        update={
            "sentence": _NOTHING_LEFT if left == 0 else f"{sentence}.",
            "evidence": tuple(_evidence(advice, level, f"{change} (standard error {error})", control)),
        }
    )


def _falling(level: Slope, snapshots: Sequence[PredictionSnapshot], control: HoldoutEstimate | None) -> str:
    """The curves that fall, in words; empty where none does. Within its 95 % interval a curve only may have fallen."""
    areas = slope([one.auroc for one in snapshots if one.auroc is not None])
    lines = {"accuracy": level, "AU ROC": areas}
    found = {name: line.per_round < -line.margin for name, line in lines.items() if line is not None and line.falls}
    if control is not None and control.trend is not None and control.trend.falls:
        found["accuracy on randomly drawn images"] = True
    verb = "fell" if all(found.values()) else "may have fallen"
    return f"{' and '.join(found)} {verb} over the last rounds" if found else ""


def seconds_an_image(lead_times_s: Sequence[float | None]) -> float | None:
    """The median time of an answer.

    Answers of 0 s (a program's) and above 30 minutes (the reader was away) do not count; None where none is left.
    """
    timed = [seconds for seconds in lead_times_s if seconds is not None and 0.0 < seconds <= LONGEST_ANSWER_S]
    return median(timed) if timed else None


def slope(values: Sequence[float], images: Sequence[int] | None = None) -> Slope | None:
    """Least squares through one value a round; None with fewer than three.

    The error is of independent values. Successive rounds share most of their validation labels, so that it is a little
    too small.

    Args:
        values: oldest first.
        images: that each value is a share of, above 0. The error is then at least the binomial one, with two images
            more right and two more wrong than were counted (Agresti & Coull 1998, doi:10.1080/00031305.1998.10480550):
            three values that happen to lie on a line leave no residuals.
    """
    if len(values) < MIN_ROUNDS:
        return None
    rounds = np.arange(len(values)) - (len(values) - 1) / 2
    per_round = float(rounds @ np.asarray(values) / (rounds @ rounds))
    residuals = np.asarray(values) - np.mean(values) - per_round * rounds
    error = sqrt(float(residuals @ residuals) / (len(values) - 2) / float(rounds @ rounds))
    if images is not None:
        n = np.asarray(images) + 4
        shares = (np.asarray(values) * images + 2) / n
        error = max(error, sqrt(float(rounds**2 @ (shares * (1 - shares) / n))) / float(rounds @ rounds))
    if max(abs(per_round), error) < _ROUNDING:
        return Slope(0.0, 0.0, len(values))
    return Slope(per_round, error, len(values))


def label_unit(labels: Sequence[int], unit: int) -> tuple[float, str]:
    """What a change a round is multiplied by to be one for so many labels, and its unit; 1 where no label was added.

    Args:
        labels: of the rounds, oldest first; at least two.
        unit: number of labels.
    """
    gained = (labels[-1] - labels[0]) / (len(labels) - 1)
    return (unit / gained, f"points for every {count(unit, 'label')}") if gained > 0 else (1.0, "points a round")


def expected_gain(curve: Sequence[CurvePoint], more: int) -> float | None:
    """Accuracy that further labels are expected to add.

    With four points of different numbers of labels or more, by a power law of the error, ``a + b * labels ** -c`` with
    ``a`` and ``b`` from 0 to 1 (``b`` at the first point) and ``c`` from 0.05 to 3, by least squares; with fewer, by a
    straight line through the last three.

    Args:
        curve: oldest first.
        more: labels, above 0.

    Returns:
        From 0, since labels are not expected to harm, to what the last accuracy lacks of 1. None with fewer than two
        points of different numbers of labels.
    """
    points = [point for point in curve if point.labels > 0]
    different = {point.labels for point in points}
    if len(different) < 2:
        return None
    most = 1.0 - curve[-1].accuracy
    if len(different) >= MIN_CURVE_POINTS:
        return min(_power_law_gain(points, more), most)
    last = curve[-_LINE_POINTS:]
    labels = np.array([point.labels for point in last], dtype=np.float64)
    if not (spread := float(((labels - labels.mean()) ** 2).sum())):
        return None
    accuracy = np.array([point.accuracy for point in last])
    return min(max(0.0, float((labels - labels.mean()) @ accuracy / spread) * more), most)


def _power_law_gain(curve: Sequence[CurvePoint], more: int) -> float:
    from scipy.optimize import least_squares  # noqa: PLC0415 - a second that the web server's start is spared

    first = float(min(point.labels for point in curve))
    labels = np.array([point.labels for point in curve]) / first
    errors = 1.0 - np.array([point.accuracy for point in curve])

    def error(law: npt.NDArray[np.float64], labels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        a, b, c = law
        curve_error: npt.NDArray[np.float64] = a + b * labels**-c
        return curve_error

    fits = [
        least_squares(
            lambda law: error(law, labels) - errors,
            (errors.min() / 2, max(float(np.ptp(errors)), 0.01), c),
            bounds=([0, 0, 0.05], [1, 1, 3]),
        )
        for c in _FIRST_EXPONENTS
    ]
    now, then = error(min(fits, key=lambda fit: float(fit.cost)).x, (curve[-1].labels + np.array([0, more])) / first)
    return max(0.0, float(now - then))


def _noise_floor(known: Sequence[Agreement]) -> Agreement | None:
    """The mean of the last seed replicates."""
    last = [(one.kappa, one.error or 0.0, one.images) for one in known if one.kappa is not None][-NOISE_ROUNDS:]
    if not last:
        return None
    kappas, errors, images = zip(*last, strict=True)
    return Agreement(images=sum(images), kappa=fmean(kappas), error=hypot(*errors) / len(last))


def _reaches_floor(found: Agreement, floor: Agreement | None) -> bool:
    """Whether two networks agree as far as seed replicates do, within the standard error of the difference."""
    if floor is None or floor.kappa is None or found.kappa is None:
        return True
    return found.kappa >= floor.kappa - hypot(found.error or 0.0, floor.error or 0.0)


def _is_stable(found: Agreement, floor: Agreement | None) -> bool:
    if found.kappa is None:
        return False
    return found.kappa >= (STABLE_KAPPA_ALONE if floor is None else STABLE_KAPPA) and _reaches_floor(found, floor)


_NOTHING_LEFT: Final = "Nothing is left to label, so there is nothing to stop."
_BEGINNINGS: Final[dict[Verdict, str]] = {
    "too early": "Too early to say when to stop",
    "done": _NOTHING_LEFT,
    "go on": "Go on labelling",
    "soon": "Could stop soon",
    "stop": "Could stop now",
}


def _agreement_words(points: Sequence[AgreementPoint], floor: Agreement | None) -> str:
    found = points[-1].agreement if points else None
    if found is None or found.agreed is None:
        return "the last two networks have no unlabelled image in common to be compared on"
    words = f"the last two networks agree on {100 * found.agreed:.0f} % of {found.images} unlabelled images"
    if found.kappa is None:
        return f"{words}, but predict the same class for all of them, which shows little"
    # Rounded down: 0.946 does not reach 0.95.
    words += f" (kappa {np.floor(100 * found.kappa) / 100:.2f})"
    if floor is None or floor.kappa is None:
        words += "; the agreement of two networks trained on the same labels was not measured yet"
        return (
            words
            if found.kappa >= STABLE_KAPPA_ALONE
            else f"{words}, and without it stopping needs {STABLE_KAPPA_ALONE}"
        )
    much = "about as much as" if (reached := _reaches_floor(found, floor)) else "less than"
    words += f", {much} two networks trained on the same labels ({floor.kappa:.2f})"
    if found.kappa >= STABLE_KAPPA:
        return words
    why = ", because the last two started from the same weights and agree more by that alone" if reached else ""
    return f"{words}; stopping {'also ' if reached else ''}needs {STABLE_KAPPA}{why}"


def _gain_words(gain: float | None, minutes: float | None, labels: int) -> str:
    reading = "" if minutes is None else f" ({in_minutes(minutes)} of reading)"
    those = f"the next {count(labels, 'label')}{reading}"
    if gain is None:
        return f"the gain of {those} is not known yet"
    much = "less than 0.1" if gain < NO_GAIN else f"{100 * gain:.2g}"
    return f"{those} are expected to gain {much} points of accuracy"


def _evidence(advice: StopAdvice, level: Slope, change: str, control: HoldoutEstimate | None) -> list[str]:
    found = []
    if advice.agreements:
        kappas = [point.agreement.kappa for point in advice.agreements]
        listed = ", ".join("undefined" if kappa is None else f"{kappa:.2f}" for kappa in kappas)
        found.append(f"Kappa between successive networks, oldest first: {listed}.")
        if (weighted := advice.agreements[-1].agreement.weighted) is not None:
            found.append(f"Counting a disagreement by two classes four times as much as by one: {weighted:.2f}.")
    direction = "rose" if level.per_round > 0 else "fell"
    found.append(
        f"By a straight line through the last {count(level.points, 'round')}, accuracy {direction} {change}, on the "
        "validation labels, which were chosen and not drawn at random, so that this is not the accuracy on the pool."
    )
    if advice.gain is not None:
        found.append(
            "The gain expected of the next labels is by a power law through all networks, which flattens and may "
            f"differ from that line; with fewer than {MIN_CURVE_POINTS}, by a line through the last {_LINE_POINTS}."
        )
    if advice.minutes_per_point is not None:
        found.append(f"At that gain a point of accuracy costs {in_minutes(advice.minutes_per_point)} of reading.")
    if control is not None:
        found.append(_holdout_words(control, rises=level.rises))
    return found


_HOLDOUT_SHOWS: Final = {
    (True, True): "show a rise too",
    (True, False): "show no clear rise",
    (False, True): "contradict that it is level",
    (False, False): "show no clear rise either",
}
"""By whether the validation accuracy rises and whether theirs does."""


def _holdout_words(control: HoldoutEstimate, *, rises: bool) -> str:
    if (trend := control.trend) is None:
        verb = "has" if control.total == 1 else "have"
        few = f"{control.total} of them {verb} a label, {2 * MIN_HOLDOUT_IMAGES} are needed to compare two halves"
        return f"Whether randomly drawn images confirm this is not known yet: {few}."
    # The holdout is drawn from the pool, and a strategy that labels hard images first leaves the easy ones there.
    doubt = (
        "part of it may be that the hard images are labelled first and the easy ones are left"
        if trend.rises
        else f"a rise of up to {100 * max(trend.high, 0.0):.0f} points would not show"
    )
    return f"Randomly drawn images {_HOLDOUT_SHOWS[rises, trend.rises]}: {trend.summary}; {doubt}."


def in_minutes(minutes: float) -> str:
    """A time of reading in words: ``about 5 minutes``, or ``less than a minute``."""
    if minutes < 1.0:
        return "less than a minute"
    return f"about {count(round(minutes), 'minute') if minutes < 120.0 else f'{minutes / 60:.0f} hours'}"


def count(number: int, word: str) -> str:
    """A number and its noun."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
