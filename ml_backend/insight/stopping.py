"""When labelling may stop: one plain sentence with its evidence. Nothing acts on it.

Three witnesses. Successive networks give the same answers about images that nobody has labelled: nearly always, and as
often as two networks of the same labels do (the noise floor: more agreement cannot be had). The accuracy does not rise
any more. The next batch is expected to gain little for the minutes that it takes to read.

The accuracy is that of the validation labels, which were chosen. Where images came by chance, they back or contradict
what it says: they are fewer, but a uniform sample.

Source:
    Agreement of successive networks: Bloodgood & Vijay-Shanker 2009, arXiv:1409.5165.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import hypot
from statistics import fmean, median
from typing import Annotated, Final

from pydantic import Field

from ml_backend.insight.agreement import Agreement, RoundMarks, agreement
from ml_backend.insight.curve import CurvePoint, expected_gain, slope
from ml_backend.insight.proof import ControlEstimate
from ml_backend.insight.stopping_words import (
    ALIKE,
    LITTLE,
    NEXT_TO_NOTHING,
    AgreementPoint,
    StopFindings,
    Verdict,
    as_twins,
    count,
    evidence,
    sentence,
)
from ml_backend.records import Record

__all__ = ["StopAdvice", "reading_minutes", "stop_advice"]

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


class StopAdvice(Record):
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
    marks: Sequence[RoundMarks],
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


def _points(marks: Sequence[RoundMarks]) -> tuple[AgreementPoint, ...]:
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
