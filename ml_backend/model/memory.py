"""What to do when the GPU's memory is full."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ml_backend.errors import RoundError

__all__ = ["halving"]

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


def halving(batch: int, attempt: Callable[[int], T], way_out: str) -> T:
    """Try with a batch, and after every out-of-memory with half of it.

    Args:
        batch: images that are tried first.
        attempt: starts over each time that it is called.
        way_out: the setting that helps when not even 2 images fit.

    Raises:
        RoundError: not even 2 images fit.
    """
    while True:
        try:
            return attempt(batch)
        except torch.OutOfMemoryError as error:
            if batch <= 2:
                raise RoundError(f"the GPU's memory is full with {batch} images at once: {way_out}") from error
        torch.cuda.empty_cache()
        _LOG.warning("the GPU's memory is full with %d images at once, trying %d", batch, max(2, batch // 2))
        batch = max(2, batch // 2)
