"""Processes that run a round together, by torch.distributed: gloo between CPUs, NCCL between GPUs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeVar

import torch
from torch import distributed

from ml_backend.model import inference

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """One process among those of its round. With one process every method is the identity, and nothing is set up.

    Values travel as ``torch.save`` writes them, and are read with ``weights_only``: tensors, numbers, text, bytes, and
    tuples, lists and dictionaries of them. A peer cannot make this process execute anything.

    Attributes:
        rank: of this process, 0 to ``size - 1``; rank 0 runs the round.
        size: number of processes.
    """

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this process runs the round."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The consecutive part of this rank: whole shards of ``inference.SHARD_IMAGES``, as many as the others or one more.

        The parts of all ranks in order are the items. A part is empty where there are fewer shards than ranks.
        """
        return self.parts(items)[self.rank]

    def parts(self, items: Sequence[T]) -> list[Sequence[T]]:
        """The parts of all ranks; see ``share``."""
        size = inference.SHARD_IMAGES
        shards = -(-len(items) // size)
        ends = [size * (shards * rank // self.size) for rank in range(self.size + 1)]
        return [items[start:end] for start, end in pairwise(ends)]

    def gather(self, part: T) -> list[T]:
        """The values of all ranks, in their order, on every rank. Every rank must call it."""
        return [self.broadcast(part, source) for source in range(self.size)]

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value of rank ``source``, on every rank; the others' is ignored. Every rank must call it."""
        if self.size == 1:
            return value
        here = self.rank == source
        data = _encode(value) if here else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor(len(data))
        distributed.broadcast(length, source)
        data = data if here else torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(data, source)
        return value if here else _decode(data)


SINGLE: Final = Group(0, 1)
"""One process alone."""


def _encode(value: object) -> torch.Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def _decode(data: torch.Tensor) -> Any:
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)
