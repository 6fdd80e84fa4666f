"""Images that resemble the labelled images of one class."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition.diversity import computable, in_one_order, nearest, of_length_1, one_thread
from ml_backend.acquisition.inputs import float_tensor

BLOCK_ROWS: Final = 8192
"""Images whose features are normalised and scored at once: 64 MiB of 2,048 float32 each."""


def resemblance(
    features: Float[Tensor, "images dims"],
    own: Float[Tensor, "own dims"],
    others: Float[Tensor, "others dims"],
) -> Float[Tensor, " images"]:
    """How much nearer an image is to a class than to the other ones.

    ``score(x) = max_i cos(x, own_i) - max_j cos(x, others_j)``; without ``others``, the first term alone.

    Args:
        features: of the images.
        own: of the labelled images of the class; 1 or more.
        others: of the labelled images of all other classes.

    Returns:
        Scores in cosine similarity, float64: -2 to 2, and -1 to 1 without ``others``; the same to the last bit
        whatever the thread count and the order of the images.
    """
    rows = float_tensor("features", features)
    like = computable(rows[:0])
    with one_thread():
        labelled = [
            of_length_1(in_one_order(float_tensor("labelled features", centres).to(like))) for centres in (own, others)
        ]
        return torch.cat([_scores(of_length_1(computable(part)), *labelled) for part in torch.split(rows, BLOCK_ROWS)])


def _scores(
    rows: Float[Tensor, "images dims"], own: Float[Tensor, "own dims"], others: Float[Tensor, "others dims"]
) -> Float[Tensor, " images"]:
    near = _similarity(rows, own)
    return near - _similarity(rows, others) if len(others) else near


def _similarity(rows: Float[Tensor, "images dims"], centres: Float[Tensor, "centres dims"]) -> Float[Tensor, " images"]:
    # Of rows of length 1: |x - c|² = 2 - 2 cos(x, c).
    return torch.as_tensor(1.0 - nearest(rows, centres) / 2.0).cpu()
