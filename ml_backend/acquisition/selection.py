"""A batch picked one image after the other."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["Selection", "largest"]


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
