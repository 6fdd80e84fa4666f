"""The mean of a network over its last epochs, in place of its weights of the moment."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["EpochMean"]


class EpochMean:
    """The mean of tensors over the epochs, later ones weighing more.

    It averages out what a high learning rate throws to and fro, so that fewer epochs lead as far. Epoch n weighs 1 / n,
    and ``1 - memory`` at least, in the mean of all so far.

    Args:
        sources: weights and running statistics, which training changes in place.
        memory: share of itself that the mean keeps at every epoch, 0 to below 1. At 0 it is the sources themselves.

    Source:
        Polyak & Juditsky 1992, doi:10.1137/0330046; epoch by epoch Izmailov et al. 2018, arXiv:1803.05407.
    """

    def __init__(self, sources: Sequence[Tensor], memory: float) -> None:
        if not 0.0 <= memory < 1.0:
            raise ValueError(f"memory must be at least 0 and below 1, got {memory}")
        self._sources = list(sources)
        self._memory = memory
        self._epochs = 0
        self.tensors = [tensor.clone() for tensor in sources] if memory else self._sources

    @torch.no_grad()
    def add(self) -> None:
        """Take in the sources, as they are at the end of an epoch."""
        self._epochs += 1
        if self._memory:
            torch._foreach_lerp_(self.tensors, self._sources, max(1.0 - self._memory, 1.0 / self._epochs))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean in place of the sources, for a while."""
        if not self._memory:
            yield
            return
        now = [tensor.clone() for tensor in self._sources]
        with torch.no_grad():
            torch._foreach_copy_(self._sources, self.tensors)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._sources, now)
