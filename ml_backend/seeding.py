"""Hash-based draws and derived seeds."""

import hashlib
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64, UInt64

Draws: TypeAlias = UInt64[npt.NDArray[np.uint64], " names"]


def seeded_draws(names: Sequence[str], seed: int, salt: str = "") -> Draws:
    """One uniform draw a name, in [0, 2^64).

    A hash and not a generator's stream: NumPy and torch keep neither across versions nor across devices, and a
    stream's n-th value belongs to whatever happens to stand at place n.

    Args:
        names: ids of images, or of patients; equal names draw equal values.
        seed: any integer.
        salt: what the draws are for; those of another salt are independent of them.
    """
    start = f"{salt}{seed}:".encode()
    digests = b"".join(blake2b(start + name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def seeded_order(names: Sequence[str], seed: int) -> Int64[npt.NDArray[np.int64], " names"]:
    """Positions in ``names``, in an order that is random in the seed and the same however ``names`` is arranged.

    Removing or adding names leaves the relative order of the others as it was.
    """
    draws = seeded_draws(names, seed)
    order = np.argsort(draws)
    if (draws[order[1:]] == draws[order[:-1]]).any():
        # The name settles the case of two equal draws, which would else be settled by the order of arrival.
        return np.array(sorted(range(len(names)), key=lambda i: (draws[i], names[i])), dtype=np.int64)
    return order


def fixed_set(names: Sequence[str], seed: int, most: int) -> list[str]:
    """At most so many of the names: a uniform sample that stays while names come and go.

    A name that is in the sample of a set is in that of every smaller set that holds it.

    Returns:
        Those of the highest draws, the highest first; all where there are no more.
    """
    draws = seeded_draws(names, seed, "fixed set ").tolist()
    return [name for _, name in sorted(zip(draws, names, strict=True), reverse=True)[:most]]


def redrawn(draws: Draws, step: int) -> Draws:
    """Draws of another step, from those of the names: hashing every name anew at each pick would be slow.

    Args:
        draws: of the names, uniform in [0, 2^64).
        step: 0 or more.

    Source:
        Steele, Lea & Flood 2014, SplitMix64, doi:10.1145/2660193.2660195.
    """
    mixed = draws + np.uint64((step + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def gumbel(draws: Draws) -> Float64[npt.NDArray[np.float64], " names"]:
    """Standard Gumbel noise from uniform draws, always finite.

    The name with the largest ``log weight + noise`` is drawn with a probability proportional to its weight.
    """
    # The middles of 2^52 intervals: neither 0 nor 1 is among them.
    uniform = ((draws >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def places(count: int) -> Float64[npt.NDArray[np.float64], " places"]:
    """Scores of a random order: distinct, falling evenly from 1 at the front, never 0."""
    return 1.0 - np.arange(count) / max(count, 1)


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
