"""What to do when the GPU's memory is full."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ml_backend.errors import RoundError

__all__ = ["halving"]

_LOG = logging.getLogger(__name__)

# What the libraries below torch say when it is they who find no memory; to torch a plain RuntimeError.
_FULL = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")

T = TypeVar("T")


def halving(batch: int, attempt: Callable[[int], T], way_out: str, setting: str | None = None) -> T:
    """Try with a batch, and after every out-of-memory with half of it.

    Args:
        batch: images that are tried first.
        attempt: starts over each time that it is called.
        way_out: what helps when not even 2 images fit: settings and the numbers to set.
        setting: that ``batch`` came from; the log says what to set it to when a smaller one did fit.

    Raises:
        RoundError: not even 2 images fit.
    """
    tried = batch
    while True:
        try:
            result = attempt(tried)
            break
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)):
                raise
            if tried <= 2:
                raise RoundError(f"the GPU's memory is full with {tried} images at once: {way_out}") from error
        # Not in the handler: there the traceback still holds the tensors.
        torch.cuda.empty_cache()
        _LOG.warning("the GPU's memory is full with %d images at once, trying %d", tried, max(2, tried // 2))
        tried = max(2, tried // 2)
    if setting is not None and tried < batch:
        _LOG.warning("%d images at once did fit: set %s=%d to spare the failed attempts", tried, setting, tried)
    return result
