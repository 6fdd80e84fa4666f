"""What there is to say about stopping, and the words for it.

When labelling may stop: one plain sentence with its evidence. Nothing acts on it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import hypot
from statistics import fmean, median
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from ml_backend.analytics.agreement import Agreement, PredictionSnapshot, agreement
from ml_backend.analytics.evaluation import MIN_HOLDOUT_IMAGES, ControlEstimate, CurvePoint, Slope, expected_gain, slope
from ml_backend.schemas import FrozenModel

Verdict = Literal["too early", "go on", "soon", "stop"]

ALIKE: Final = 0.95
"""Kappa of successive networks that is asked for, however little twins agree.

Successive networks begin with the same weights and twins do not, so that the noise floor alone is reached while labels
still teach much.
"""
LITTLE: Final = 0.005
"""Accuracy that a batch is expected to gain: worth a thought."""
NEXT_TO_NOTHING: Final = 0.001
"""Not worth the reading."""


class AgreementPoint(FrozenModel):
    """A round's network against that of the trained round before."""

    round_id: str
    labels: Annotated[int, Field(ge=0)]
    agreement: Agreement


class StopFindings(NamedTuple):
    """What the witnesses say."""

    points: tuple[AgreementPoint, ...]
    floor: Agreement | None
    level: Slope | None
    gain: float | None
    minutes: float | None
    batch_size: int
    control: ControlEstimate | None

    @property
    def rises(self) -> bool:
        """Whether the validation accuracy does, as far as can be told."""
        return self.level is None or self.level.per_round > self.level.error

    @property
    def contradicted(self) -> bool:
        """Whether the validation accuracy is level, and that of images that came by chance rises all the same."""
        trend = None if self.control is None else self.control.trend
        return not self.rises and trend is not None and trend.rises


def as_twins(point: AgreementPoint, floor: Agreement | None) -> bool:
    """Whether as much agreement is there as can be had, within the standard error of the difference."""
    if floor is None or floor.kappa is None or (kappa := point.agreement.kappa) is None:
        return True
    return kappa >= floor.kappa - hypot(point.agreement.error or 0.0, floor.error or 0.0)


_BEGINNINGS: Final[dict[Verdict, str]] = {
    "too early": "Too early to say when to stop",
    "go on": "Go on",
    "soon": "Could stop soon",
    "stop": "Could stop now",
}


def sentence(verdict: Verdict, found: StopFindings) -> str:
    """The one for the owner."""
    said = f"{_BEGINNINGS[verdict]}: {_agreement_words(found)}; {_gain_words(found)}"
    if verdict == "soon" and found.contradicted:
        said += ", but on images that came by chance accuracy still rose"
    return f"{said}."


def _agreement_words(found: StopFindings) -> str:
    point = found.points[-1].agreement if found.points else None
    if point is None or point.agreed is None:
        return "the last two networks have no unlabelled image in common to be compared on"
    said = f"the last two networks agree on {100 * point.agreed:.0f} % of {point.images} images nobody has labelled"
    if point.kappa is None:
        return f"{said}, but call them all the same, which says little"
    said += f" (kappa {point.kappa:.2f})"
    if found.floor is None or found.floor.kappa is None:
        return f"{said}; how much two networks trained on the same labels agree was not measured yet"
    much = "about as much as" if as_twins(found.points[-1], found.floor) else "less than"
    said += f", {much} two networks trained on the same labels ({found.floor.kappa:.2f})"
    return said if point.kappa >= ALIKE else f"{said}; {ALIKE} is needed before stopping is a question"


def _gain_words(found: StopFindings) -> str:
    minutes = "" if found.minutes is None else f" (about {_minutes(found.minutes)} of reading)"
    next_labels = f"the next {count(found.batch_size, 'label')}{minutes}"
    if found.gain is None:
        return f"what {next_labels} would gain cannot be told yet"
    points = 100 * found.gain
    if points < 0.05:
        return f"{next_labels} are expected to gain less than 0.1 points of accuracy"
    return f"{next_labels} are expected to gain {points:.1f} points of accuracy"


def evidence(found: StopFindings) -> tuple[str, ...]:
    """Further sentences, one a witness."""
    said = []
    kappas = [point.agreement.kappa for point in found.points]
    if kappas:
        told = ", ".join("undefined" if kappa is None else f"{kappa:.2f}" for kappa in kappas)
        said.append(f"Kappa between successive networks, oldest first: {told}.")
    weighted = found.points[-1].agreement.weighted if found.points else None
    if weighted is not None:
        said.append(f"Counting a disagreement by two classes four times as much as by one: {weighted:.2f}.")
    if found.level is not None:
        said.append(
            f"Over the last rounds accuracy changed by {100 * found.level.per_round:+.1f} points a round "
            f"(standard error {100 * found.level.error:.1f}), on the validation labels, which were chosen and not "
            "drawn, so that this is no accuracy of the pool."
        )
    if found.control is not None:
        said.append(_control_words(found, found.control))
    if found.gain is not None and found.minutes is not None and found.gain >= NEXT_TO_NOTHING:
        said.append(f"A point of accuracy costs about {_minutes(found.minutes / (100 * found.gain))} of reading now.")
    return tuple(said)


_BY_CHANCE: Final = {
    (True, True): "show a rise too",
    (True, False): "show no clear rise",
    (False, True): "contradict that it is level",
    (False, False): "show no clear rise either",
}
"""What they say, by whether validation rises and whether they do."""


def _control_words(found: StopFindings, control: ControlEstimate) -> str:
    if (trend := control.trend) is None:
        verb = "has" if control.total == 1 else "have"
        few = f"{control.total} of them {verb} a label, {2 * MIN_HOLDOUT_IMAGES} are needed"
        return f"Whether images that came by chance back this cannot be told yet: {few}."
    # Chance draws from what still waits, and a strategy that labels hard images first leaves the easy ones there.
    doubt = (
        "part of it may be that the hard images are labelled first and the easy ones are left"
        if trend.rises
        else f"a rise of up to {100 * max(trend.high, 0.0):.0f} points would not show"
    )
    return f"Images that came by chance {_BY_CHANCE[found.rises, trend.rises]}: {trend.told}; {doubt}."


def _minutes(minutes: float) -> str:
    if minutes < 1.0:
        return "less than a minute"
    return count(round(minutes), "minute") if minutes < 120.0 else f"{minutes / 60:.0f} hours"


def count(number: int, word: str) -> str:
    """A number of things, one or more."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


FEWEST: Final = 3
"""Trained rounds before anything is said; two successive agreements are the least."""
COMPARED: Final = 8
"""Last trained rounds whose networks are compared."""
LEVEL: Final = 15
"""Last trained rounds whose accuracies are held against each other, and the least that "stop" needs.

With 5, five of six runs of ``tests/benchmarks/stopping.py`` heard it in the fifth to seventh round, 3 to 29 points of
accuracy early; with 15 they missed at most 1.8 points (without ``ALIKE``, and before early stopping was mended).
"""
FLOORS: Final = 3
"""Last twins whose agreement makes up the noise floor."""
STABLE_ALONE: Final = 0.99
"""Kappa that counts as stable where no twin has shown what can be had; of Bloodgood & Vijay-Shanker."""
LONGEST_ANSWER_S: Final = 30 * 60.0
"""The reader was away."""


class StopAdvice(FrozenModel):
    """Whether more labels are worth their reading.

    Attributes:
        sentence: for the owner, as it stands.
        evidence: further sentences, one a witness.
        agreements: successive networks on the fixed set, oldest first.
        noise_floor: kappa of two networks of the same labels, mean of the last twins; None where there was none.
        gain: accuracy that the next batch is expected to add; None where it cannot be told.
        minutes: of reading that it takes, by the median answer; None where no answer was timed.
        slope: of the accuracy, a round.
        slope_error: its standard error.
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
        if self.minutes is None or self.gain is None or self.gain < NEXT_TO_NOTHING:
            return None
        return self.minutes / (100.0 * self.gain)


def stop_advice(
    marks: Sequence[PredictionSnapshot],
    noise: Mapping[str, Agreement],
    *,
    batch_size: int,
    lead_times_s: Sequence[float | None] = (),
    control: ControlEstimate | None = None,
) -> StopAdvice:
    """Say whether labelling may stop.

    "Soon" needs stable answers and a small gain (at most 0.5 points of accuracy); "stop" stable answers twice in a row,
    an accuracy that does not rise, and next to no gain (at most 0.1 points), seen over at least 15 rounds. Images
    that came by chance can forbid "stop", and never call for it: they are too few to show that nothing rises.

    Args:
        marks: of the trained rounds, oldest first; see ``stored_marks``.
        noise: round id -> agreement of its network with its twin; see ``stored_noise``.
        batch_size: labels that the next gain is told for.
        lead_times_s: seconds that each answer took, where it was measured.
        control: what the images that came by chance say; None where there never were any.
    """
    if len(marks) < FEWEST:
        return StopAdvice(
            verdict="too early",
            sentence=f"Too early to say when to stop: {count(len(marks), 'network')} trained so far, "
            f"{FEWEST} are needed.",
        )
    curve = [CurvePoint(one.labels, one.accuracy) for one in marks]
    known = [noise[one.round_id] for one in marks if one.round_id in noise]
    found = StopFindings(
        points=_points(marks[-COMPARED:]),
        floor=_floor(known),
        level=slope([point.accuracy for point in curve[-LEVEL:]]),
        gain=expected_gain(curve, batch_size),
        minutes=reading_minutes(lead_times_s, batch_size),
        batch_size=batch_size,
        control=control,
    )
    verdict = _verdict(found, len(marks))
    return StopAdvice(
        verdict=verdict,
        sentence=sentence(verdict, found),
        evidence=evidence(found),
        agreements=found.points,
        noise_floor=None if found.floor is None else found.floor.kappa,
        gain=found.gain,
        minutes=found.minutes,
        slope=None if found.level is None else found.level.per_round,
        slope_error=None if found.level is None else found.level.error,
    )


def reading_minutes(lead_times_s: Sequence[float | None], images: int) -> float | None:
    """Minutes that reading so many images takes, by the median answer.

    Answers of 0 s (a program's) and above 30 minutes (the reader was away) do not count; None where none is left.
    """
    timed = [seconds for seconds in lead_times_s if seconds is not None and 0.0 < seconds <= LONGEST_ANSWER_S]
    return median(timed) * images / 60.0 if timed else None


def _points(marks: Sequence[PredictionSnapshot]) -> tuple[AgreementPoint, ...]:
    """Of rounds with the same classes: after the question has changed there is nothing to compare."""
    return tuple(
        AgreementPoint(
            round_id=after.round_id,
            labels=after.labels,
            agreement=agreement(before.predicted, after.predicted, len(after.classes)),
        )
        for before, after in pairwise(marks)
        if before.classes == after.classes
    )


def _floor(known: Sequence[Agreement]) -> Agreement | None:
    """The mean of the last twins."""
    last = [one for one in known if one.kappa is not None][-FLOORS:]
    if not last:
        return None
    return Agreement(
        images=sum(one.images for one in last),
        kappa=fmean(one.kappa for one in last if one.kappa is not None),
        error=hypot(*(one.error or 0.0 for one in last)) / len(last),
    )


def _stable(point: AgreementPoint, floor: Agreement | None) -> bool:
    if (kappa := point.agreement.kappa) is None:
        return False
    return kappa >= (STABLE_ALONE if floor is None or floor.kappa is None else ALIKE) and as_twins(point, floor)


def _verdict(found: StopFindings, rounds: int) -> Verdict:
    last = found.points[-2:]
    if not last or not _stable(last[-1], found.floor) or found.gain is None or found.gain > LITTLE:
        return "go on"
    twice = len(last) == 2 and _stable(last[0], found.floor)
    level = not found.rises and not found.contradicted
    return "stop" if rounds >= LEVEL and twice and level and found.gain <= NEXT_TO_NOTHING else "soon"
