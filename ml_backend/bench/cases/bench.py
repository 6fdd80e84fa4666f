"""What a case is given: the two sides, how large everything is, and a place for its files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ml_backend.bench.process import Measured, Side, side_by_side
from ml_backend.bench.process import Prepared as Task
from ml_backend.bench.report import Figure, Floor, Timing

__all__ = ["FULL", "QUICK", "Bench", "Scale", "median_cpu_s", "timings", "versus"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    backbone: str
    side: int
    mc_images: int
    naive_images: int
    mc_passes: int
    pool: int
    large_pool: int
    batch: int
    passes: int
    redux_configurations: int
    baal_draws: int
    judge_configurations: int
    points: int
    film: tuple[int, int]  # height, width
    films: int
    film_rounds: int
    decoded_side: int
    small_films: int
    feature_pool: int
    dims: int


FULL = Scale(
    backbone="resnet50",
    side=224,
    mc_images=64,
    naive_images=2,
    mc_passes=50,
    pool=1_000,
    large_pool=100_000,
    batch=20,
    passes=100,
    redux_configurations=1_000,
    baal_draws=10,
    judge_configurations=40_000,
    points=100_000,
    film=(2_500, 2_048),
    films=4,
    film_rounds=3,
    decoded_side=224,
    small_films=120,
    feature_pool=10_000,
    dims=2_048,
)
"""As the floors are stated."""

QUICK = Scale(
    backbone="resnet18",
    side=32,
    mc_images=8,
    naive_images=2,
    mc_passes=4,
    pool=60,
    large_pool=300,
    batch=4,
    passes=20,
    redux_configurations=100,
    baal_draws=5,
    judge_configurations=2_000,
    points=500,
    film=(250, 204),
    films=2,
    film_rounds=1,
    decoded_side=32,
    small_films=30,
    feature_pool=200,
    dims=16,
)
"""For the tests: seconds, and figures that mean nothing."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a case works with.

    Attributes:
        ours: our side.
        peers: theirs; None where they are left out.
        fresh: starts another process of our side that gives freed memory back at once, for measuring memory.
        scale: of everything.
        repeats: of every task.
        folder: for the files that both sides read.
        images: the user's films; None for drawn ones.
    """

    ours: Side
    peers: Side | None
    fresh: Callable[[], Side]
    scale: Scale
    repeats: int
    folder: Path
    images: Path | None

    def save(self, name: str, array: npt.NDArray[np.float32]) -> str:
        """Write an input for both sides, and say where it is."""
        path = self.folder / f"{name}.npy"
        np.save(path, array)
        return str(path)

    def measure(self, tasks: Mapping[str, Task]) -> dict[str, list[Measured]]:
        """Run them side by side, in turn."""
        return side_by_side(tasks, self.repeats)


def timings(measured: Mapping[str, Sequence[Measured]]) -> tuple[Timing, ...]:
    """Every single repeat, for the record."""
    return tuple(Timing(name=name, runs=tuple(one.run for one in runs)) for name, runs in measured.items())


def median_cpu_s(measured: Mapping[str, Sequence[Measured]], name: str) -> float:
    """CPU seconds of one contender, median of its repeats."""
    return Timing(name=name, runs=tuple(one.run for one in measured[name])).median_cpu_s


def versus(
    name: str,
    unit: str,
    ours: float,
    anchor: tuple[str, float] | None,
    *,
    floor: Floor | None = None,
    faster: bool = False,
) -> Figure:
    """A figure beside its anchor.

    Args:
        name: of the figure.
        unit: of both.
        ours: our value.
        anchor: whose value it is compared with, and that value; None where it was not measured.
        floor: of the ratio.
        faster: the ratio is anchor over ours, how many times faster we are; else ours over anchor.
    """
    if anchor is None:
        return Figure(name=name, unit=unit, ours=ours, floor=floor)
    over = anchor[1] / ours if faster else ours / anchor[1]
    return Figure(name=name, unit=unit, ours=ours, anchor=anchor[1], anchor_name=anchor[0], ratio=over, floor=floor)
