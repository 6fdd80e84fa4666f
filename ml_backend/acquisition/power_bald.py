"""PowerBALD: a batch drawn at random by its BALD scores, so that it is spread over the pool at almost no cost."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt64
from torch import Tensor

from ml_backend.acquisition.scores import bald
from ml_backend.chance import gumbel

__all__ = ["power_bald"]

_TINY = 1e-300
"""Nats that stand in for 0 under the logarithm: such an image comes last, and its score stays a number."""


def power_bald(
    probs: Float[Tensor, "images passes classes"], draws: UInt64[npt.NDArray[np.uint64], " images"]
) -> Float[Tensor, " images"]:
    """BALD on a logarithmic scale, with noise.

    ``score(x) = log I(y; w | x) + Gumbel noise``, beta = 1: the best is image x with a probability proportional to its
    BALD score, and the next ones likewise among those that are left. Twenty copies of the best image no longer fill
    the batch, for BALD's own price.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        draws: one uniform draw an image, from which its noise is made.

    Returns:
        Scores, log nats with noise: any number, always finite.

    Raises:
        ValueError: fewer than 2 passes.

    Source:
        Kirsch, Farquhar, Atighehchian, Jesson, Branchaud-Charron & Gal 2023, arXiv:2106.12059.
    """
    return bald(probs).cpu().clamp_(min=_TINY).log_() + torch.from_numpy(gumbel(draws))
