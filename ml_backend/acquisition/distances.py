"""Distances between rows of features: memory bounded, and the same to the last bit wherever a row stands."""

import torch
from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition.arrays import float_tensor

__all__ = ["computable", "nearest", "squared_distances", "squared_lengths"]

_CHUNK_ELEMENTS = 1 << 18
"""Of the features at once: 1 MiB of float32 stays in the cache."""

_CENTRES = 1024
"""Centres in one matrix product."""


def computable(rows: Float[Tensor, "rows dims"], name: str = "rows") -> Float[Tensor, "rows dims"]:
    """The rows without a gradient, in float32 or better: squares of half precision overflow at 256."""
    rows = float_tensor(name, rows)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def squared_lengths(rows: Float[Tensor, "rows dims"]) -> Float[Tensor, " rows"]:
    """|x|² of each row, in float64."""
    return squared_distances(rows, rows.new_zeros(rows.shape[1]))


def squared_distances(rows: Float[Tensor, "rows dims"], centre: Float[Tensor, "*rows dims"]) -> Float[Tensor, " rows"]:
    """|x - c|² of each row to one centre, or to a centre of its own; in float64.

    By differences and row by row, not by the product ``|x|² - 2 x·c + |c|²``: copies lie at 0 exactly, and no thread
    count or place in the pool changes a bit.

    Args:
        rows: in float32 or float64.
        centre: one row, or as many as ``rows``.
    """
    size = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    centres = centre.expand_as(rows)
    parts = [
        (part - to).square_().sum(dim=1)
        for part, to in zip(torch.split(rows, size), torch.split(centres, size), strict=True)
    ]
    return torch.cat(parts).double()


def nearest(rows: Float[Tensor, "rows dims"], centres: Float[Tensor, "centres dims"]) -> Float[Tensor, " rows"]:
    """Squared distance of each row to its nearest centre, in float64.

    Which centre is nearest comes from matrix products, how far it is from the difference: the product's last bit,
    which depends on the machine, decides only between centres that lie level.

    Args:
        rows: in float32 or float64.
        centres: 1 or more, of the same type.
    """
    # About the centres' mean the products are small, and cancel less.
    middle = centres.mean(dim=0)
    about = [(block - middle, start) for start, block in _blocks(centres)]
    size = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    winners = []
    for part in torch.split(rows, size):
        least = part.new_full((len(part),), torch.inf)
        winner = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        for block, start in about:
            values, places = torch.addmm(block.square().sum(dim=1), part - middle, block.T, alpha=-2.0).min(dim=1)
            winner = torch.where(values < least, places + start, winner)
            least = torch.minimum(values, least)
        winners.append(winner)
    chosen = torch.cat(winners)
    return torch.cat(
        [
            squared_distances(part, centres[winner])
            for part, winner in zip(torch.split(rows, size), torch.split(chosen, size), strict=True)
        ]
    )


def _blocks(centres: Tensor) -> list[tuple[int, Tensor]]:
    return [(start, centres[start : start + _CENTRES]) for start in range(0, len(centres), _CENTRES)]
