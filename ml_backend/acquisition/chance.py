"""Seeded chance, decided by names: the same for every device, thread count and order of arrival.

An image's draw depends on the seed and on its own id and on nothing else. A shuffled list would be torn up by one
image that comes or goes; here the rest of the pool keeps its order from round to round.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64, UInt64

__all__ = ["places", "seeded_draws", "seeded_order"]


def seeded_draws(names: Sequence[str], seed: int) -> UInt64[npt.NDArray[np.uint64], " names"]:
    """One uniform draw a name, in [0, 2^64).

    A hash and not a generator's stream: NumPy and torch keep neither across versions nor across devices, and a
    stream's n-th value belongs to whatever happens to stand at place n.

    Args:
        names: ids of images, or of patients; equal names draw equal values.
        seed: any integer.
    """
    salt = f"{seed}:".encode()
    digests = b"".join(blake2b(salt + name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def seeded_order(names: Sequence[str], seed: int) -> Int64[npt.NDArray[np.int64], " names"]:
    """Positions in ``names``, in an order that is random in the seed and the same however ``names`` is arranged.

    Removing or adding names leaves the relative order of the others as it was.
    """
    # The name settles the case of two equal draws, which would else be settled by the order of arrival.
    draws = seeded_draws(names, seed).tolist()
    return np.array(sorted(range(len(names)), key=lambda i: (draws[i], names[i])), dtype=np.int64)


def places(count: int) -> Float64[npt.NDArray[np.float64], " places"]:
    """Scores of a random order: distinct, falling evenly from 1 at the front, never 0."""
    return 1.0 - np.arange(count) / max(count, 1)
