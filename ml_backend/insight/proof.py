"""What images that came by chance say: how often the network is right, and how far its probabilities can be believed.

A control image is a uniform draw from the images that nobody had labelled when its round ranked, and the network said
its mind before anybody labelled it. So over control images the share of right answers is an unbiased estimate for those
images; over the images that a strategy chose it is not, since these are chosen for being hard.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from pydantic import Field
from scipy.optimize import minimize_scalar

from ml_backend.insight.control import ControlLabel
from ml_backend.insight.course import ControlRound, ControlTrend, by_round, running, trend
from ml_backend.insight.intervals import wilson
from ml_backend.records import Record

__all__ = [
    "ENOUGH",
    "PROOF_FILE",
    "ActiveAgainstRandom",
    "ControlEstimate",
    "control_estimate",
    "expected_calibration_error",
    "fitted_temperature",
]

ENOUGH: Final = 30
"""Control images below which nothing is claimed."""
WINDOW: Final = 100
ENOUGH_OF_A_CLASS: Final = 10
PROOF_FILE: Final = "proof.json"
"""Where ``ActiveAgainstRandom`` stands in a project's folder."""
_BINS = 10
_FOLDS = 5
_SMALLEST = 1e-12  # of a probability in a logarithm

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Floats: TypeAlias = npt.NDArray[np.float64]


class ControlEstimate(Record):
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


class ActiveAgainstRandom(Record):
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
    if n >= ENOUGH:
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
        enough=n >= ENOUGH,
        by_round=by_round(usable),
        running=running(usable, window=window, enough=ENOUGH),
        trend=trend(usable, window=window, enough=ENOUGH),
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
    if n < ENOUGH:
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
