"""Seeds: one number from the settings, an independent stream for every purpose."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive", "generator", "seeded"]


def derive(seed: int, purpose: str) -> int:
    """A seed of its own for one purpose, so that one more draw for the masks does not move the training.

    Args:
        seed: any integer.
        purpose: a word that stays the same from version to version.

    Returns:
        0 to 2**63 - 1.
    """
    digest = hashlib.sha256(f"{seed}|{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator on the CPU: the same numbers whatever device they end up on."""
    return torch.Generator().manual_seed(derive(seed, purpose))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generators (layers draw their first weights and their dropout there), then put them back."""
    # Not the CUDA devices of a process that has not touched them: asking would initialise CUDA.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, purpose))
        yield
