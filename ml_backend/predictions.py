"""Arrays that a learner hands to an acquisition function.

NumPy and not torch, so that storage and the web process read them without torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from ml_backend.schemas import Exclusion

Array: TypeAlias = npt.NDArray[np.float32]


def float_array(name: str, value: Any) -> npt.NDArray[np.floating[Any]]:
    """An array of floats in NumPy's native layout, from a NumPy array, a torch tensor or what converts to an array.

    A tensor is detached and moved to the CPU. The caller's array is never changed; it is copied only where its type,
    byte order or layout is another.

    Args:
        name: what an error calls the value.
        value: of float16, float32, float64 or longer; a tensor may also be of bfloat16.

    Returns:
        C-contiguous float16, float32 or float64.

    Raises:
        ValueError: the value is no array, is of integers, booleans or objects, or has masked entries.
    """
    if callable(getattr(value, "detach", None)):  # a torch tensor, recognised without importing torch
        value = value.detach()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).cpu().numpy()
    if not hasattr(value, "__array__"):
        raise ValueError(
            f"{name} must be a torch tensor or a NumPy array of a floating type, got {type(value).__name__}: "
            "wrap numbers in numpy.array(...), and stack a list of tensors"
        )
    if isinstance(value, np.ma.MaskedArray) and (masked := int(np.sum(value.mask))):
        raise ValueError(f"{name} is a masked array with {masked} masked entries: leave these images out")
    array: npt.NDArray[Any] = np.asarray(value)
    if array.dtype.kind != "f":
        raise ValueError(
            f"{name} must be a torch tensor or a NumPy array of a floating type, got {array.dtype}: "
            "convert it with .astype(numpy.float32)"
        )
    native = np.dtype(f"=f{min(array.dtype.itemsize, 8)}")  # long double has no counterpart in torch or on disk
    return np.asarray(array, dtype=native, order="C")


@dataclass(frozen=True, slots=True, eq=False)
class LastLayerGradients:
    """Gradients of the loss in the last layer's weights, if the network's own answer were the label; in factors.

    The gradient of image i is the outer product ``residuals[i] ⊗ hidden[i]``: never written out, because inner products
    factorise, ``<g_i, g_j> = <residuals_i, residuals_j> <hidden_i, hidden_j>``. Both with dropout off.

    Attributes:
        residuals: softmax output minus 1 for the most probable class.
        hidden: what the last layer sees.

    Raises:
        ValueError: the two are of different images, or not of a floating type.

    Source:
        Ash et al. 2020, arXiv:1906.03671.
    """

    residuals: Float32[Array, "images classes"]
    hidden: Float32[Array, "images dims"]

    def __post_init__(self) -> None:
        _as_float32(self, "residuals", "hidden")
        if len(self.residuals) != len(self.hidden):
            raise ValueError(f"residuals of {len(self.residuals)} images but hidden layers of {len(self.hidden)}")


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """Features of the untrained backbone.

    Attributes:
        image_ids: of the images that could be read, in the requested order.
        features: pooled, of the backbone as it was loaded.
        exclusions: the images that could not be read, with the reason.
        keys: under which each row is kept in the cache of features; empty where there is none.

    Raises:
        ValueError: the features, or the keys, are not one an image.
    """

    image_ids: tuple[str, ...]
    features: Float32[Array, "images dims"]
    exclusions: tuple[Exclusion, ...] = ()
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _as_float32(self, "features")
        if len(self.features) != len(self.image_ids):
            raise ValueError(f"{len(self.image_ids)} image ids but features of {len(self.features)} images")
        if self.keys and len(self.keys) != len(self.image_ids):
            raise ValueError(f"{len(self.image_ids)} image ids but keys of {len(self.keys)} images")


@dataclass(frozen=True, slots=True, eq=False)
class PoolPredictions:
    """Outputs for the images of the pool that could be read, in one order.

    Arrays of another floating type and torch tensors, with gradients or without, are converted to float32 arrays.

    Attributes:
        image_ids: one id an image.
        classes: the classes, in the order of the last axis of ``probs``.
        probs: softmax outputs of the stochastic passes, drawn with one set of dropout masks for the whole pool.
        features: pooled backbone features, for strategies that need them; else None.
        labelled_features: the same of the images that have a label; known wherever ``features`` are.
        gradients: of the last layer, for strategies that need them; else None.
        exclusions: images of the pool that could not be read, with the reason.

    Raises:
        ValueError: the shapes do not fit each other, or an array is not of a floating type.
    """

    image_ids: tuple[str, ...]
    classes: tuple[str, ...]
    probs: Float32[Array, "images passes classes"]
    features: Float32[Array, "images dims"] | None = None
    labelled_features: Float32[Array, "labelled dims"] | None = None
    gradients: LastLayerGradients | None = None
    exclusions: tuple[Exclusion, ...] = ()

    def __post_init__(self) -> None:
        _as_float32(self, "probs", "features", "labelled_features")
        if self.probs.ndim != 3:
            raise ValueError(f"probs must be [images, passes, classes], got {list(self.probs.shape)}")
        images, _, classes = self.probs.shape
        if images != len(self.image_ids):
            raise ValueError(f"{len(self.image_ids)} image ids but probs of {images} images")
        if classes != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but probs of {classes} classes")
        if self.features is not None and len(self.features) != images:
            raise ValueError(f"{images} images but features of {len(self.features)}")
        if self.gradients is not None and len(self.gradients.hidden) != images:
            raise ValueError(f"{images} images but gradients of {len(self.gradients.hidden)}")

    def suggestions(self) -> dict[str, str]:
        """The most probable class of every image, by the mean over the passes."""
        return self.predicted()[0]

    def confidences(self) -> dict[str, float]:
        """The probability of that class, for every image; 0 to 1, to four places."""
        return self.predicted()[1]

    def predicted(self) -> tuple[dict[str, str], dict[str, float]]:
        """``suggestions`` and ``confidences``, for one reading of the passes."""
        means = np.einsum("itk->ik", self.probs) / max(1, self.probs.shape[1])  # a mean along a short axis is slow
        classes = map(self.classes.__getitem__, means.argmax(axis=-1).tolist())
        best = means.max(axis=-1).astype(np.float64).clip(0.0, 1.0).round(4)
        return dict(zip(self.image_ids, classes, strict=True)), dict(zip(self.image_ids, best.tolist(), strict=True))


def _as_float32(record: object, *names: str) -> None:
    for name in names:
        if (value := getattr(record, name)) is not None:
            # The records are frozen; their fields are set here once, before anybody has read them.
            object.__setattr__(record, name, float_array(name, value).astype(np.float32, copy=False))


def join(parts: Iterable[PoolPredictions], images: int | None = None) -> PoolPredictions:
    """Put the outputs of consecutive parts of a pool together. Nothing is computed, so that no bit changes.

    The features of labelled images come from the first part that knows them.

    Args:
        parts: taken one after another; an iterator need not hold them, so that no array is in memory twice.
        images: of all parts together, or more; needed for an iterator.

    Raises:
        ValueError: there is no part, or the parts are not of one network: other classes, or features of some only.
    """
    if images is None:
        parts = list(parts)
        images = sum(len(part.image_ids) for part in parts)
    classes: tuple[str, ...] = ()
    labelled = None
    ids: list[str] = []
    exclusions: list[Exclusion] = []
    rows: dict[str, Array] = {}
    for part in parts:
        arrays = {"probs": part.probs, "features": part.features}
        if part.gradients is not None:
            arrays |= {"residuals": part.gradients.residuals, "hidden": part.gradients.hidden}
        known = {name: array for name, array in arrays.items() if array is not None}
        if not rows:
            classes = part.classes
            rows = {name: np.empty((images, *array.shape[1:]), np.float32) for name, array in known.items()}
        if part.classes != classes:
            raise ValueError(f"shards of different networks: classes {classes} and {part.classes}")
        if known.keys() != rows.keys():
            raise ValueError(f"{min(known.keys() ^ rows.keys())} of some shards only")
        for name, array in known.items():
            rows[name][len(ids) : len(ids) + len(array)] = array
        labelled = part.labelled_features if labelled is None else labelled
        ids += part.image_ids
        exclusions += part.exclusions
    if not rows:
        raise ValueError("nothing to join: at least one shard is needed")
    rows = {name: array[: len(ids)] for name, array in rows.items()}
    return PoolPredictions(
        image_ids=tuple(ids),
        classes=classes,
        probs=rows["probs"],
        features=rows.get("features"),
        labelled_features=labelled,
        gradients=LastLayerGradients(rows["residuals"], rows["hidden"]) if "hidden" in rows else None,
        exclusions=tuple(exclusions),
    )
