"""Arrays as the acquisition functions compute with them: from tensors with gradients, from NumPy, from any device.

A batch picked one image after the other.
Softmax outputs are checked once, where a ranking is asked for, so that the scores themselves need not.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ml_backend.predictions import float_array

_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEVICES: Final = ("cpu", "cuda")


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
    """The batch, and what every image was worth; both tensors lie on the CPU."""

    picks: Int64[Tensor, " picks"]
    """Positions in the pool, in the order in which they were picked."""
    scores: Float[Tensor, " images"]
    """Of a pick when it was picked, of the rest after the last pick; float64, in the pool's own order."""


def largest(values: Float[npt.NDArray[np.float64], " images"], ties: Int64[npt.NDArray[np.int64], " images"]) -> int:
    """Position of the largest value; among level ones, of that with the lowest place in ``ties``."""
    level = np.flatnonzero(values == values.max())
    return int(level[ties[level].argmin()])


_CHUNK_ELEMENTS = 1 << 18


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
    for number, chunk in enumerate(torch.split(probs, images)):
        good = _sums_to_one(chunk, tolerance) & (chunk >= 0).all(dim=-1)
        if not good.all():
            image, made = (~good).nonzero()[0].tolist()
            raise ValueError(
                f"image {ids[number * images + image]!r} has {_shown(chunk[image, made])} in pass {made + 1}: wanted "
                f"probabilities of 0 or more that sum to 1 within {tolerance:g}; "
                "apply softmax to logits, and look for a diverged training where values are NaN"
            )


def _sums_to_one(chunk: Tensor, tolerance: float) -> Tensor:
    # Class by class: a sum over an axis this short is slower. NaN and infinity compare as false.
    total = sum(column.to(torch.promote_types(chunk.dtype, torch.float32)) for column in chunk.unbind(dim=-1))
    return torch.as_tensor(total - 1.0).abs() <= tolerance


def _shown(row: Tensor) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in row.tolist()) + "]"
