"""What else is on a film and says nothing about severity: devices, a nuisance opacity, another hospital's machine."""

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["Scanner", "add_confounders"]

Plane: TypeAlias = npt.NDArray[np.floating[Any]]


def add_confounders(film: np.random.Generator, x: Plane, y: Plane, lungs: Plane, difficulty: float) -> Plane:
    """Attenuation that confounders add to a film: how likely each is, and how dense, grows with the difficulty.

    Args:
        film: decides which there are, and where.
        x: positions from -1 to 1, to the right.
        y: positions from -1 to 1, downwards.
        lungs: where there is lung, 0 to 1.
        difficulty: above 0, at most 1.

    Returns:
        Of the shape of ``x``; 0 where there is none.
    """
    # All are drawn whether or not they are there: what one adds must not move the others.
    chances = film.uniform(size=4)
    parts = (_pacemaker(film, x, y), _leads(film, x, y), _nodule(film, x, y) * lungs, _haze(film, x, y) * lungs)
    plane = np.zeros_like(x)
    for chance, likely, part in zip(chances, (0.25, 0.5, 0.5, 0.6), parts, strict=True):
        if chance < likely * difficulty:
            plane += part
    return plane


@dataclass(frozen=True, slots=True)
class Scanner:
    """One centre's X-ray machine.

    Attributes:
        gamma: exponent of its tone curve.
        blur: radius of its focal spot, as a share of the side.
        mark: where its side marker is burnt in, x and y from -1 to 1.
    """

    gamma: float
    blur: float
    mark: tuple[float, float]

    @classmethod
    def of(cls, centre: int) -> Self:
        """The machine of the centre of that number."""
        own = np.random.default_rng([6, centre])
        gamma = float(np.exp(own.choice((-1.0, 1.0)) * own.uniform(0.25, 0.5)))
        return cls(gamma, float(own.uniform(0.002, 0.008)), (float(own.choice((-0.88, 0.88))), -0.85))

    def look(self, plane: Plane, x: Plane, y: Plane) -> Plane:
        """The film as this machine takes it: 0 to 1, its marker in a corner."""
        toned = plane.clip(0.0, 1.0) ** np.float32(self.gamma)
        blurred: Plane = ndimage.gaussian_filter(toned, self.blur * len(x))
        marker = (np.abs(x - self.mark[0]) < 0.04) & (np.abs(y - self.mark[1]) < 0.06)
        marked: Plane = np.maximum(blurred, np.float32(0.95) * marker)
        return marked


def _disc(x: Plane, y: Plane, centre: tuple[float, float], radii: tuple[float, float], softness: float) -> Plane:
    """1 inside an ellipse, 0 outside, with a soft edge."""
    distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1]) - 1.0
    disc: Plane = 0.5 - 0.5 * np.tanh(distance / np.float32(softness))
    return disc


def _pacemaker(film: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A metal box below one collar bone, and its lead down to the heart."""
    where = (float(film.choice((-1.0, 1.0)) * film.uniform(0.45, 0.55)), float(film.uniform(-0.5, -0.4)))
    box = _disc(x, y, where, (0.13, 0.11), 0.08)
    down = np.clip((y - where[1]) / (0.35 - where[1]), 0.0, 1.0)
    lead = _line(np.abs(x - (where[0] + (0.15 - where[0]) * down**0.7))) * ((y > where[1]) & (y < 0.35))
    return np.float32(0.4) * np.maximum(box, lead)


def _leads(film: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Three electrodes and their wires across the chest."""
    plane = np.zeros_like(x)
    for _ in range(3):
        end = (float(film.uniform(-0.6, 0.6)), float(film.uniform(-0.3, 0.4)))
        slope, bend = film.normal(0.0, 0.5), film.normal(0.0, 0.3)
        up = end[1] - y
        wire = _line(np.abs(x - end[0] - slope * up - bend * up**2)) * (up > 0)
        plane = np.maximum(plane, np.maximum(wire, _disc(x, y, end, (0.045, 0.045), 0.2)))
    return np.float32(0.22) * plane


def _nodule(film: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A round mass anywhere in the lungs, denser than the disease."""
    where = (float(film.choice((-1.0, 1.0)) * film.uniform(0.25, 0.6)), float(film.uniform(-0.55, 0.35)))
    radius = float(film.uniform(0.08, 0.18))
    return np.float32(film.uniform(0.2, 0.35)) * _disc(x, y, where, (radius, radius * 1.1), 0.3)


def _haze(film: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A veil over the lower part of one lung, as fluid behind it gives: grey and even where the disease is patchy."""
    lung = 0.5 + 0.5 * np.tanh(film.choice((-1.0, 1.0)) * x / np.float32(0.05))
    level = film.uniform(-0.3, 0.4)
    veil: Plane = np.float32(film.uniform(0.10, 0.22)) * lung * (0.5 + 0.5 * np.tanh((y - level) / np.float32(0.15)))
    return veil


def _line(distance: Plane) -> Plane:
    """1 on a thin line, 0 off it."""
    line: Plane = np.exp(-((distance / np.float32(0.012)) ** 2))
    return line
