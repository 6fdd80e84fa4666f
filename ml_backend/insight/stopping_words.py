"""What there is to say about stopping, and the words for it."""

from math import hypot
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from ml_backend.insight.agreement import Agreement
from ml_backend.insight.curve import Slope
from ml_backend.insight.proof import ENOUGH, ControlEstimate
from ml_backend.records import Record

__all__ = [
    "ALIKE",
    "LITTLE",
    "NEXT_TO_NOTHING",
    "AgreementPoint",
    "StopFindings",
    "Verdict",
    "as_twins",
    "count",
    "evidence",
    "sentence",
]

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


class AgreementPoint(Record):
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
        few = f"{control.total} of them {'has' if control.total == 1 else 'have'} a label, {2 * ENOUGH} are needed"
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
