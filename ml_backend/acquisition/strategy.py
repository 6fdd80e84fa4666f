"""From acquisition functions to an order of the whole pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ml_backend.acquisition.inputs import Gradients, Selection, acquisition_inputs, given, one_thread
from ml_backend.errors import SettingsError
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need, load_acquisition_function, strategy_spec
from ml_backend.schemas import Ranking, natural_order

Array: TypeAlias = Tensor | npt.NDArray[np.floating[Any]]


class WrongScores(SettingsError, ValueError):
    """An acquisition function, such as one of a plug-in or of a study, returned something else than scores."""

    def __init__(self, name: str, images: int, got: object) -> None:
        super().__init__(
            f"acquisition function {name} must return one score an image, higher = label first, as a tensor, array or "
            f"list [{images}], got {got}"
        )


class AcquisitionRanking(NamedTuple):
    """A ranking of the whole pool; both tensors are on the CPU."""

    order: Int64[Tensor, " images"]
    """Positions in the pool, label first at the front; the first ``batch_size`` are the batch."""
    scores: Float[Tensor, " images"]
    """Acquisition values in the pool's own order (float64), in the unit of the strategy's specification."""


def rank(
    name: str,
    probs: Float[Array, "images passes classes"] | None,
    batch_size: int,
    seed: int = 0,
    *,
    ids: Sequence[str] | None = None,
    features: Float[Array, "images dims"] | None = None,
    labelled_features: Float[Array, "labelled dims"] | None = None,
    gradients: Gradients | None = None,
) -> AcquisitionRanking:
    """Rank the whole pool by one acquisition function.

    Ties are broken by a seeded draw from each image's id: the same on every device, whatever the thread count.

    Every array may be a torch tensor, of float16, bfloat16, float32 or float64, with a gradient or without, on any
    device and of any strides, or a NumPy array of a floating type. It is detached and never changed.

    Args:
        name: of an acquisition function; its specification says which of the following it requires.
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        batch_size: images that will be labelled together; only batch-aware strategies use it.
        seed: of ties, random orders, noise, drawn labellings and k-means.
        ids: one distinct id per image, a string or a number; the positions by default.
        features: pooled backbone features of the pool.
        labelled_features: the same of the images that have a label, if there are any.
        gradients: of the last layer, in factors.

    Returns:
        ``order``, the positions of the whole pool, label first at the front, and ``scores`` in the pool's own order.

    Raises:
        ValueError: unknown name, batch size below 1, missing input, fewer passes than the strategy needs, ids or shapes
            that do not match, an array that is not of a floating type, or rows that are not probabilities; the message
            names the first such image.
    """
    spec = strategy_spec(name)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    values = {"probs": probs, "features": features, "gradients": gradients}
    for need in sorted(spec.needs):
        given(values[need], need, name)
    # Most steps are small: waking a second thread costs more than it saves, and on busy cores many times as much.
    with one_thread():
        inputs = acquisition_inputs(
            ids, probs=probs, features=features, labelled_features=labelled_features, gradients=gradients
        )
        if "probs" in spec.needs and (passes := given(inputs.probs, "probs", name).shape[1]) < spec.min_passes:
            raise ValueError(f"{name} needs at least {spec.min_passes} passes, got {passes}: draw more")
        function = load_acquisition_function(name)
        if spec.batch:
            found = function(inputs, batch_size, seed)
        else:
            found = function(**{need: getattr(inputs, need) for need in spec.needs})
    picks, scores = found if isinstance(found, Selection) else (torch.empty(0, dtype=torch.int64), found)
    scores = _checked(scores, len(inputs.ids), name)
    best_first = torch.from_numpy(inputs.best_first(scores.numpy(), seed))
    if len(picks):
        best_first = torch.cat([picks, best_first[~torch.isin(best_first, picks)]])
    return AcquisitionRanking(best_first, scores)


def _checked(scores: object, images: int, name: str) -> Float[Tensor, " images"]:
    """Check the scores of any function, plug-ins included: a NaN would silently sort to one end of the ranking."""
    try:
        # A copy, since torch takes no array of negative strides.
        values = torch.as_tensor(scores.copy() if isinstance(scores, np.ndarray) else scores)
        values = values.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise WrongScores(name, images, type(scores).__name__) from None
    if values.shape != (images,):
        raise WrongScores(name, images, list(values.shape))
    if not (finite := values.isfinite()).all():
        bad = int((~finite).nonzero()[0])
        raise WrongScores(name, images, f"{values[bad].item()} for image {bad} of the pool")
    return values


@dataclass(frozen=True, slots=True)
class CatalogStrategy:
    """An acquisition function by name, over the records of a round.

    Raises:
        ValueError: there is none of that name.
    """

    name: str

    def __post_init__(self) -> None:
        strategy_spec(self.name)

    @property
    def needs(self) -> frozenset[Need]:
        """What the learner must compute for it."""
        return strategy_spec(self.name).needs

    def rank(self, outputs: PoolPredictions, batch_size: int, seed: int) -> Ranking:
        """The whole pool, label first at the front; the same however the pool arrives.

        Raises:
            ValueError: see ``rank``.
        """
        gradients, labelled = outputs.gradients, outputs.labelled_features
        arrays = {"probs": outputs.probs, "features": outputs.features}
        if gradients is not None:
            arrays |= {"residuals": gradients.residuals, "hidden": gradients.hidden}
        return _rank_records(
            self.name, outputs.image_ids, arrays=arrays, labelled=labelled, batch_size=batch_size, seed=seed
        ).model_copy(
            update={
                **dict(zip(("suggestions", "confidences"), outputs.predicted(), strict=True)),
                "exclusions": outputs.exclusions,
            }
        )


def rank_by_features(
    name: str,
    images: ImageFeatures,
    labelled: Float32[npt.NDArray[np.float32], "labelled dims"] | None,
    batch_size: int,
    seed: int,
) -> Ranking:
    """Rank by a strategy that needs features and no network; the same however the images arrive.

    Args:
        name: of the strategy.
        images: the pool, those that could be read.
        labelled: features of the images that have a label; None where there are none.
        batch_size: images that are chosen together.
        seed: of ties and of k-means.

    Raises:
        ValueError: the strategy needs more than features; or see ``rank``.
    """
    arrays = {"features": images.features}
    ranking = _rank_records(name, images.image_ids, arrays=arrays, labelled=labelled, batch_size=batch_size, seed=seed)
    return ranking.model_copy(update={"exclusions": images.exclusions})


def _rank_records(
    name: str,
    image_ids: Sequence[str],
    *,
    arrays: Mapping[str, npt.NDArray[np.float32] | None],
    labelled: npt.NDArray[np.float32] | None,
    batch_size: int,
    seed: int,
) -> Ranking:
    """Rank images in the order of their ids, which a batch may depend on; arrays are copied only to bring them in."""
    ids, rows = list(image_ids), {key: array for key, array in arrays.items() if array is not None}
    if strategy_spec(name).batch and (ordered := sorted(ids, key=natural_order)) != ids:
        place = {image_id: i for i, image_id in enumerate(ids)}
        arrival = [place[image_id] for image_id in ordered]
        ids, rows = ordered, {key: array[arrival] for key, array in rows.items()}
    gradients = None
    if "hidden" in rows:
        gradients = Gradients(*(torch.from_numpy(rows.pop(key)) for key in ("residuals", "hidden")))
    values = {"probs": None} | rows
    order, scores = rank(
        name, batch_size=batch_size, seed=seed, ids=ids, labelled_features=labelled, gradients=gradients, **values
    )
    # Checked by ``rank``, and again when a report is read: a million images are validated in seconds.
    return Ranking.model_construct(
        strategy=name,
        image_ids=tuple(map(ids.__getitem__, order.tolist())),
        scores=tuple(scores[order].tolist()),
        batch_size=batch_size,
    )
