"""torch generators seeded for one purpose each."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ml_backend.seeding import derive


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator on the CPU: the same numbers whatever device they end up on."""
    return torch.Generator().manual_seed(derive(seed, purpose))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generators, from which layers draw weights and dropout, and restore them afterwards."""
    # Not the CUDA devices of a process that has not touched them: asking would initialise CUDA.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, purpose))
        yield
