"""Whether successive networks still change their predictions, on a fixed set of images that have no label.

A snapshot of the predictions, a few kilobytes, is kept with every round that trained, so that no passes are read later.
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
"""Name of the record ``PredictionSnapshot`` in a round's folder."""
NOISE: Final = "noise"
"""Name of the record ``Agreement`` of a round's network with a seed replicate: trained on the same labels, of another
seed."""
FIXED_SET: Final = 1000
"""Maximum number of images that networks are compared on: kappa is then known to 0.03 or better."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Kappa = Annotated[float, Field(ge=-1.0, le=1.0)]
Counts: TypeAlias = Int64[npt.NDArray[np.int64], "classes classes"]

R = TypeVar("R", bound=FrozenModel)
log = structlog.get_logger(__name__)


class PredictionSnapshot(FrozenModel):
    """The predictions of a trained round, for comparison with later rounds.

    Attributes:
        round_id: of the round.
        labels: number of labels, of training and validation together.
        accuracy: on its validation labels.
        auroc: likewise; None where they hold fewer than two classes.
        classes: least severe first.
        predicted: image id -> index of the most probable class, for the fixed set of its pool.
    """

    round_id: str
    labels: Annotated[int, Field(ge=0)]
    accuracy: Share
    auroc: Share | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    predicted: dict[str, Annotated[int, Field(ge=0)]]


class Agreement(FrozenModel):
    """Agreement of two networks on the same images.

    Attributes:
        images: that both have predicted.
        agreed: share with the same most probable class; None without images.
        kappa: Cohen's, unweighted: 1 for full agreement, 0 for agreement by chance; None where it is undefined, as when
            both networks predict the same class for every image.
        weighted: Cohen's, quadratic: an error of two classes counts four times one of one class.
        error: standard error of ``kappa``, by the number of images.
    """

    images: Annotated[int, Field(ge=0)]
    agreed: Share | None = None
    kappa: Kappa | None = None
    weighted: Kappa | None = None
    error: Annotated[float, Field(ge=0.0)] | None = None


def fixed_predictions(outputs: PoolPredictions, seed: int) -> dict[str, int]:
    """The most probable class, by the mean over the passes, for the fixed set of the pool's images.

    Args:
        outputs: of the whole pool.
        seed: of the project, so that every round picks the same images.
    """
    row_of = {name: row for row, name in enumerate(outputs.image_ids)}
    chosen = fixed_set(outputs.image_ids, seed, FIXED_SET)
    return dict(zip(chosen, _predicted(outputs.probs[[row_of[name] for name in chosen]]), strict=True))


def prediction_snapshot(report: RoundReport, outputs: PoolPredictions) -> PredictionSnapshot | None:
    """The snapshot of a round; None where it trained nothing, but only ranked."""
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


def seed_noise_agreement(outputs: PoolPredictions, replicate: PoolPredictions) -> Agreement:
    """Agreement of a round's network with its seed replicate, on the images that the replicate has predicted.

    Raises:
        ValueError: the two distinguish different classes.
    """
    if outputs.classes != replicate.classes:
        raise ValueError(f"the round's classes are {outputs.classes}, its seed replicate's are {replicate.classes}")
    one, other = (dict(zip(some.image_ids, _predicted(some.probs), strict=True)) for some in (outputs, replicate))
    return agreement(one, other, len(outputs.classes))


def agreement(one: Mapping[str, int], other: Mapping[str, int], classes: int) -> Agreement:
    """Agreement of two networks on the images that both have predicted.

    Args:
        one: image id -> index of its class.
        other: likewise.
        classes: number of classes, ordinal.

    Source:
        The standard error is Cohen's 1960, doi:10.1177/001316446002000104, of independent images.
    """
    both = sorted(one.keys() & other.keys())
    if not both:
        return Agreement(images=0)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, ([one[name] for name in both], [other[name] for name in both]), 1)
    agreed = float(np.trace(counts) / len(both))
    by_chance = float((counts.sum(axis=1) * counts.sum(axis=0)).sum() / counts.sum() ** 2)
    kappa = cohen_kappa(counts)
    return Agreement(
        images=len(both),
        agreed=agreed,
        kappa=kappa,
        weighted=cohen_kappa(counts, quadratic=True),
        error=None if kappa is None else sqrt(agreed * (1.0 - agreed) / len(both)) / (1.0 - by_chance),
    )


def cohen_kappa(counts: Counts, *, quadratic: bool = False) -> float | None:
    """Cohen's kappa: agreement above chance, as a share of the greatest possible.

    Not scikit-learn's: importing it takes seconds, and the web process needs kappa too.

    Args:
        counts: images by the class of the one (rows) and of the other (columns).
        quadratic: weigh a disagreement by the square of its distance, for ordinal classes.

    Returns:
        -1 to 1; None without images, or where both give one and the same class to all: chance alone agrees then.

    Source:
        Cohen 1960, doi:10.1177/001316446002000104; 1968, doi:10.1037/h0026256.
    """
    images = counts.sum()
    if not images:
        return None
    weights = disagreement_weights(len(counts), quadratic=quadratic)
    # Integers until the division, so that the undefined case is exactly 0.
    expected = (weights * np.outer(counts.sum(axis=1), counts.sum(axis=0))).sum()
    if not expected:
        return None
    return float(1.0 - (weights * counts).sum() * images / expected)


def disagreement_weights(classes: int, *, quadratic: bool) -> Counts:
    """Weight of each pair of classes: the square of their distance, or 1 for any two that differ."""
    places = np.arange(classes)
    apart: Counts = np.subtract.outer(places, places)
    return apart**2 if quadratic else (apart != 0).astype(np.int64)


def stored_snapshots(project: ProjectStore) -> list[PredictionSnapshot]:
    """The snapshots of every trained round, oldest first. Damaged ones are logged and left out."""
    read = (_read(project, one, AGREEMENT, PredictionSnapshot) for one in project.rounds_with(AGREEMENT))
    return [one for one in read if one is not None]


def stored_noise(project: ProjectStore, rounds: Sequence[str]) -> dict[str, Agreement]:
    """Agreement with a seed replicate, of those of the rounds that have one. Damaged ones are logged and left out."""
    measured = set(rounds).intersection(project.rounds_with(NOISE))
    return {one: noise for one in sorted(measured) if (noise := _read(project, one, NOISE, Agreement)) is not None}


def _predicted(probs: npt.NDArray[np.float32]) -> list[int]:
    classes: list[int] = probs.mean(axis=1, dtype=np.float64).argmax(axis=-1).tolist()
    return classes


def _read(project: ProjectStore, round_id: str, name: str, kind: type[R]) -> R | None:
    try:
        return project.record(round_id, name, kind)
    except StorageError as error:
        log.warning("a round is left out of the advice about stopping", error=str(error))
        return None
