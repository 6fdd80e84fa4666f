"""Arrays that acquisition functions compute with, checked once: from tensors with gradients, NumPy, any device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from threadpoolctl import threadpool_limits
from torch import Tensor

from ml_backend.predictions import float_array
from ml_backend.registry import Need
from ml_backend.seeding import seeded_order

_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEVICES: Final = ("cpu", "cuda")


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch, BLAS and OpenMP to one thread: k-means, for one, adds up its centres thread by thread."""
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def float_tensor(name: str, value: Any) -> Tensor:
    """A detached, dense and contiguous tensor of floats, from a tensor or an array.

    Contiguous, since torch adds up strided values in another order, and the last bit may decide between two images.
    The caller's values are never changed; they are copied only where the layout or the device asks for it.

    Args:
        name: what an error calls the value.
        value: tensor of float16, bfloat16, float32 or float64, with or without a gradient; or what ``float_array``
            takes. A tensor on a device other than a CPU or a CUDA device is moved to the CPU.

    Raises:
        ValueError: the value is no array of a floating type, or a tensor without values (on the meta device).
    """
    if not isinstance(value, Tensor):
        array = float_array(name, value)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if value.dtype not in _DTYPES:
        raise ValueError(
            f"{name} must be a torch tensor or a NumPy array of a floating type (float16, bfloat16, float32 or "
            f"float64), got {value.dtype}: convert it with .float()"
        )
    if value.is_meta or value.is_nested:
        kind = "on the meta device, without values" if value.is_meta else "a nested tensor"
        raise ValueError(f"{name} must be a dense tensor with values, got {kind}")
    rows = value.detach()
    rows = rows if rows.layout == torch.strided else rows.to_dense()
    return (rows if rows.device.type in _DEVICES else rows.cpu()).contiguous()


class Selection(NamedTuple):
    """The batch, and the score of every image; both tensors are on the CPU."""

    picks: Int64[Tensor, " picks"]
    """Positions in the pool, in the order in which they were picked."""
    scores: Float[Tensor, " images"]
    """Of a pick at the time of its selection, of the rest after the last pick; float64, in the pool's order."""


def largest(values: Float[npt.NDArray[np.float64], " images"], ties: Int64[npt.NDArray[np.int64], " images"]) -> int:
    """Position of the largest value; among level ones, of that with the lowest place in ``ties``."""
    level = np.flatnonzero(values == values.max())
    return int(level[ties[level].argmin()])


_CHUNK_ELEMENTS: Final = 1 << 18  # of the passes checked at once


def require_probabilities(probs: Tensor, ids: Sequence[str]) -> None:
    """Refuse what is no output of a softmax; a NaN would else sort to one end of the ranking and say nothing.

    Args:
        probs: [images, passes, classes], of any floating type.
        ids: names the images in the error.

    Raises:
        ValueError: the shape is another, or an image holds a value that is NaN, infinite or negative, or a
            pass of it does not sum to 1; the first such image is named.
    """
    if probs.ndim != 3 or probs.shape[1] < 1 or probs.shape[2] < 2:
        raise ValueError(
            f"probs must be [images, passes, classes] with 1 pass and 2 classes or more, got {list(probs.shape)}"
        )
    if len(ids) != len(probs):
        raise ValueError(f"{len(ids)} ids but probs of {len(probs)} images")
    tolerance = max(1e-4, 4 * torch.finfo(probs.dtype).eps)
    images = max(1, _CHUNK_ELEMENTS // (probs.shape[1] * probs.shape[2]))
    for number, chunk in enumerate(torch.split(probs, images) if len(probs) else ()):
        # Class by class: a sum over an axis this short is slower. NaN and infinity compare as false.
        total = sum(column.to(torch.promote_types(chunk.dtype, torch.float32)) for column in chunk.unbind(dim=-1))
        apart = torch.as_tensor(total - 1.0).abs_()
        if not (apart.amax() <= tolerance and chunk.amin() >= 0):
            good = (apart <= tolerance) & (chunk >= 0).all(dim=-1)
            image, made = (~good).nonzero()[0].tolist()
            raise ValueError(
                f"image {ids[number * images + image]!r} has {_shown(chunk[image, made])} in pass {made + 1}: wanted "
                f"probabilities of 0 or more that sum to 1 within {tolerance:g}; "
                "apply softmax to logits, and look for a diverged training where values are NaN"
            )


def _shown(row: Tensor) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in row.tolist()) + "]"


Value = TypeVar("Value")

_WAY_OUT: Final[dict[Need, str]] = {
    "probs": "pass probs, the softmax outputs of the dropout passes [images, passes, classes]",
    "features": "pass features, the pooled backbone features [images, dims], and labelled_features where there are any",
    "gradients": "pass gradients, the residuals [images, classes] and hidden outputs [images, dims] of its last layer",
}


class Gradients(NamedTuple):
    """Gradients of the last layer's weights in factors: that of image i is ``residuals[i] ⊗ hidden[i]``."""

    residuals: Float[Tensor, "images classes"]
    """Softmax output minus 1 for the most probable class."""
    hidden: Float[Tensor, "images dims"]
    """Input of the last layer."""


@dataclass(frozen=True, slots=True, eq=False)
class AcquisitionInputs:
    """A pool as an acquisition function sees it.

    Attributes:
        ids: one distinct id an image.
        probs: softmax outputs of the stochastic passes.
        features: of the pool.
        labelled_features: of the images that have a label.
        gradients: of the last layer.

    Raises:
        ValueError: the ids are not distinct, a shape does not fit them, or a value is NaN or infinite (the first such
            image is named).
    """

    ids: Sequence[str]
    probs: Float[Tensor, "images passes classes"] | None = None
    features: Float[Tensor, "images dims"] | None = None
    labelled_features: Float[Tensor, "labelled dims"] | None = None
    gradients: Gradients | None = None

    def __post_init__(self) -> None:
        if self.probs is not None:
            require_probabilities(self.probs, self.ids)
        if self.features is not None:
            _require_rows("features", self.features, self.ids)
        if self.gradients is not None:
            _require_rows("residuals", self.gradients.residuals, self.ids)
            _require_rows("hidden", self.gradients.hidden, self.ids)
        if self.labelled_features is not None and len(self.labelled_features):
            labelled = [f"labelled {place}" for place in range(len(self.labelled_features))]
            _require_rows("labelled_features", self.labelled_features, labelled)
            self._require_same_dims(self.labelled_features)
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(
                f"{len(self.ids)} ids, but only {len(set(self.ids))} distinct: an image occurs in a pool once"
            )

    def ties(self, seed: int) -> Int64[npt.NDArray[np.int64], " images"]:
        """Place of each image in the seeded order of the ids; of level images the lower place wins."""
        return np.argsort(seeded_order(self.ids, seed))

    def best_first(self, scores: Float[npt.NDArray[np.float64], " images"], seed: int) -> npt.NDArray[np.int64]:
        """Positions by falling score; level images in the seeded order of their ids, and only those are hashed."""
        order = np.argsort(-scores)
        ranked = scores[order]
        level = np.zeros(len(order), dtype=bool)
        level[1:] = ranked[1:] == ranked[:-1]
        level[:-1] |= level[1:]
        tied = order[level]
        if len(tied):
            places = np.argsort(seeded_order([self.ids[i] for i in tied.tolist()], seed))
            order[level] = tied[np.lexsort((places, -scores[tied]))]
        return order

    def _require_same_dims(self, labelled: Tensor) -> None:
        if self.features is not None and labelled.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"labelled_features have {labelled.shape[1]} dims but features {self.features.shape[1]}: "
                "take both from one network"
            )


def acquisition_inputs(
    ids: Sequence[Any] | None, *, probs: Any, features: Any, labelled_features: Any, gradients: Any
) -> AcquisitionInputs:
    """Convert a caller's arrays to inputs: detached, dense and of a floating type; the arrays are not changed.

    Args:
        ids: one distinct id per image; the positions by default.
        probs: see ``rank``; like the others a tensor or a NumPy array, or None.
        features: likewise.
        labelled_features: likewise.
        gradients: likewise; its ``residuals`` and ``hidden`` are read.

    Raises:
        ValueError: see ``AcquisitionInputs`` and ``float_tensor``.
    """
    probs = None if probs is None else float_tensor("probs", probs)
    features = None if features is None else float_tensor("features", features)
    if labelled_features is not None:
        labelled_features = float_tensor("labelled_features", labelled_features)
    if gradients is not None:
        if not hasattr(gradients, "residuals") or not hasattr(gradients, "hidden"):
            raise ValueError(
                f"gradients must be Gradients(residuals, hidden), the gradients in factors, got "
                f"{type(gradients).__name__}"
            )
        hidden = float_tensor("hidden", gradients.hidden)
        gradients = Gradients(float_tensor("residuals", gradients.residuals).to(hidden.device), hidden)
    if ids is None:
        rows = next((rows for rows in (probs, features, gradients and gradients.hidden) if rows is not None), None)
        if rows is None:
            raise ValueError("nothing says which images the pool holds: pass ids, or probs, features or gradients")
        ids = range(len(rows) if rows.ndim else 0)
    # An id of a NumPy array or a tensor is a number: the same draws as its text.
    names = [str(name) for name in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    return AcquisitionInputs(names, probs, features, labelled_features, gradients)


def given(value: Value | None, need: Need, strategy: str) -> Value:
    """The value, or an error that says how to get it.

    Raises:
        ValueError: it is None.
    """
    if value is None:
        raise ValueError(f"{strategy} needs {need}, got none: {_WAY_OUT[need]}")
    return value


def _require_rows(name: str, rows: Tensor, ids: Sequence[str]) -> None:
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"{name} must be [images, dims] with 1 dim or more, got {list(rows.shape)}")
    if len(rows) != len(ids):
        raise ValueError(f"{len(ids)} ids but {name} of {len(rows)} images")
    # A sum over finite values may overflow, but one over NaN or infinity is never finite: few rows are looked into.
    for suspect in (~rows.sum(dim=1).isfinite()).nonzero()[:, 0].tolist():
        if not rows[suspect].isfinite().all():
            value = rows[suspect][~rows[suspect].isfinite()][0].item()
            raise ValueError(
                f"image {ids[suspect]!r} has {value} among its {name}: wanted finite numbers; "
                "look for a diverged training or a damaged image"
            )
