"""Do successive networks still change their minds? Their answers about a fixed set of images that nobody has labelled.

Kept beside every round that trained, a few kilobytes, so that whoever asks later has no need of the passes.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Annotated, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import structlog
from jaxtyping import Int64
from pydantic import Field

from ml_backend.errors import StorageError
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import FrozenModel, RoundReport
from ml_backend.seeding import fixed_set
from ml_backend.storage import ProjectStore

AGREEMENT: Final = "agreement"
"""The name under which a trained round's marks stand in its folder."""
NOISE: Final = "noise"
"""That of the agreement between its network and a twin of another seed."""
FIXED_SET: Final = 1000
"""Images at most that networks are compared on: kappa is then known to 0.03 or better."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Counts: TypeAlias = Int64[npt.NDArray[np.int64], "classes classes"]

R = TypeVar("R", bound=FrozenModel)
log = structlog.get_logger(__name__)


class PredictionSnapshot(FrozenModel):
    """What later rounds are held against.

    Attributes:
        round_id: of a round that trained.
        labels: that it had, of training and validation together.
        accuracy: on its validation labels.
        auroc: likewise; None where they hold fewer than two classes.
        classes: least severe first.
        predicted: image id -> place of the most probable class, for the fixed set of its pool.
    """

    round_id: str
    labels: Annotated[int, Field(ge=0)]
    accuracy: Share
    auroc: Share | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    predicted: dict[str, Annotated[int, Field(ge=0)]]


class Agreement(FrozenModel):
    """How far two networks give the same answers about the same images.

    Attributes:
        images: that both were asked about.
        agreed: share with the same most probable class; None without images.
        kappa: Cohen's, unweighted: 1 for always, 0 for as often as chance; None where it is undefined, as when both
            networks call every image the same.
        weighted: Cohen's, quadratic: an error of two classes counts four times one of one class.
        error: standard error of ``kappa``, by the number of images.
    """

    images: Annotated[int, Field(ge=0)]
    agreed: Share | None = None
    kappa: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    weighted: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    error: Annotated[float, Field(ge=0.0)] | None = None


def fixed_predictions(outputs: PoolPredictions, seed: int) -> dict[str, int]:
    """The most probable class, by the mean over the passes, of the images of the pool that are compared.

    Args:
        outputs: of the whole pool.
        seed: of the project, so that every round picks the same images.
    """
    row_of = {name: row for row, name in enumerate(outputs.image_ids)}
    chosen = fixed_set(outputs.image_ids, seed, FIXED_SET)
    best = outputs.probs[[row_of[name] for name in chosen]].mean(axis=1, dtype=np.float64).argmax(axis=-1)
    return dict(zip(chosen, best.tolist(), strict=True))


def round_marks(report: RoundReport, outputs: PoolPredictions) -> PredictionSnapshot | None:
    """What is kept of a round; None where it trained nothing, but only ranked."""
    if (fit := report.fit) is None or not report.trained:
        return None
    return PredictionSnapshot(
        round_id=report.request.round_id,
        labels=sum(report.labels_per_class.values()),
        accuracy=fit.validation_accuracy,
        auroc=fit.validation_auroc,
        classes=outputs.classes,
        predicted=fixed_predictions(outputs, report.request.seed),
    )


def noise_of(outputs: PoolPredictions, twin: PoolPredictions) -> Agreement:
    """Agreement of a round's network with its twin, on the images that the twin was asked about.

    Raises:
        ValueError: the two tell apart other classes.
    """
    if outputs.classes != twin.classes:
        raise ValueError(f"a round of the classes {outputs.classes}, but its twin's are {twin.classes}")
    one, other = (
        dict(zip(some.image_ids, some.probs.mean(axis=1, dtype=np.float64).argmax(axis=-1).tolist(), strict=True))
        for some in (outputs, twin)
    )
    return agreement(one, other, len(outputs.classes))


def agreement(one: Mapping[str, int], other: Mapping[str, int], classes: int) -> Agreement:
    """How far two networks agree on the images that both were asked about.

    Args:
        one: image id -> place of its class.
        other: likewise.
        classes: that there are, ordinal.

    Source:
        The standard error is Cohen's 1960, doi:10.1177/001316446002000104, of independent images.
    """
    both = sorted(one.keys() & other.keys())
    if not both:
        return Agreement(images=0)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, ([one[name] for name in both], [other[name] for name in both]), 1)
    agreed = float(np.trace(counts) / len(both))
    by_chance = _by_chance(counts)
    kappa = cohen_kappa(counts)
    return Agreement(
        images=len(both),
        agreed=agreed,
        kappa=kappa,
        weighted=cohen_kappa(counts, quadratic=True),
        error=None if kappa is None else sqrt(agreed * (1.0 - agreed) / len(both)) / (1.0 - by_chance),
    )


def cohen_kappa(counts: Counts, *, quadratic: bool = False) -> float | None:
    """Cohen's kappa: agreement above chance, as a share of what could be above it.

    Args:
        counts: images by the class that the one gives (rows) and the other (columns).
        quadratic: weigh a disagreement by the square of its distance, for ordinal classes.

    Returns:
        -1 to 1; None without images, or where both give one and the same class to all: chance alone agrees then.

    Source:
        Cohen 1960, doi:10.1177/001316446002000104; 1968, doi:10.1037/h0026256.
    """
    images = counts.sum()
    if not images:
        return None
    places = np.arange(len(counts))
    apart = np.subtract.outer(places, places)
    weights = apart**2 if quadratic else (apart != 0).astype(np.int64)
    # Whole numbers as long as can be: the undefined case is told exactly.
    expected = (weights * np.outer(counts.sum(axis=1), counts.sum(axis=0))).sum()
    if not expected:
        return None
    return float(1.0 - (weights * counts).sum() * images / expected)


def _by_chance(counts: Counts) -> float:
    return float((counts.sum(axis=1) * counts.sum(axis=0)).sum() / counts.sum() ** 2)


def rounds_with(project: ProjectStore, name: str) -> list[str]:
    """The saved rounds that have a record of this name beside them, oldest first."""
    return sorted(path.parent.name for path in project.folder.glob(f"rounds/r*/{name}.json"))


def stored_marks(project: ProjectStore) -> list[PredictionSnapshot]:
    """Of every trained round that has them, oldest first. Damaged ones are left out, and logged."""
    read = (_read(project, round_id, AGREEMENT, PredictionSnapshot) for round_id in rounds_with(project, AGREEMENT))
    return [one for one in read if one is not None]


def stored_noise(project: ProjectStore, rounds: Sequence[str]) -> dict[str, Agreement]:
    """Agreement with a twin, of those of the rounds that have one. Damaged ones are left out, and logged."""
    wanted = set(rounds)
    found: dict[str, Agreement] = {}
    for round_id in rounds_with(project, NOISE):
        if round_id in wanted and (noise := _read(project, round_id, NOISE, Agreement)) is not None:
            found[round_id] = noise
    return found


def _read(project: ProjectStore, round_id: str, name: str, kind: type[R]) -> R | None:
    try:
        return project.record(round_id, name, kind)
    except StorageError as error:
        log.warning("a round is left out of what is told about stopping", error=str(error))
        return None
