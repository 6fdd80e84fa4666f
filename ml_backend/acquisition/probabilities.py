"""Softmax outputs are checked once, where a ranking is asked for, so that the scores themselves need not."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["require_probabilities"]

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
