"""Drawn chest films: images that may be shown to anyone, of a disease whose severity is known.

No patient ever had these lungs. A film has a body, two lungs, a heart, a spine, ribs, collar bones and noise; the
opacities cover more of the lungs the more severe the class is, with some overlap between neighbouring classes, as
readers know it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Int64, UInt8
from PIL import Image
from scipy import ndimage

__all__ = ["draw_phantom", "draw_pool"]

Plane: TypeAlias = npt.NDArray[np.floating[Any]]

# Share of the lungs that the most severe class covers on average; the least severe covers none.
_FULL_EXTENT = 0.7
# Spread of the covered share, in steps between neighbouring classes: about one film in twenty looks like its neighbour.
_SPREAD = 0.3
_FILMS_PER_PATIENT = (1, 2, 2, 3, 4)


def draw_phantom(
    severity: int, classes: int, seed: int, side: int = 512, patient_seed: int | None = None
) -> UInt8[npt.NDArray[np.uint8], "side side"]:
    """Draw one frontal chest film.

    Args:
        severity: index of the class, 0 least severe.
        classes: number of classes, at least 2.
        seed: decides everything but the anatomy; the same seed draws the same film.
        side: side of the square film in pixels.
        patient_seed: decides the anatomy; by default ``seed``.

    Returns:
        Grey levels, 0 black (air) to 255 white (bone).

    Raises:
        ValueError: no such class, or a side under 32.
    """
    if classes < 2 or not 0 <= severity < classes:
        raise ValueError(f"severity must be 0 to {classes - 1} of at least 2 classes, got {severity} of {classes}")
    if side < 32:
        raise ValueError(f"a film needs a side of at least 32 pixels, got {side}")
    patient = np.random.default_rng([1, seed if patient_seed is None else patient_seed])
    film = np.random.default_rng([2, seed])
    x, y = _coordinates(film, side)
    lungs = _lungs(patient, x, y)
    plane = _anatomy(patient, x, y, lungs)
    step = _FULL_EXTENT / (classes - 1)
    extent = float(np.clip(severity * step + film.normal(0.0, _SPREAD * step), 0.0, 0.95))
    plane += _opacities(film, x, y, lungs, extent)
    plane = plane * film.uniform(0.94, 1.06) + film.uniform(-0.02, 0.02)
    plane += np.float32(0.018) * film.standard_normal(plane.shape, dtype=np.float32)
    return (plane.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


def draw_pool(
    count: int, shares: Sequence[float] | Mapping[str, float], seed: int, side: int = 512
) -> tuple[list[UInt8[npt.NDArray[np.uint8], "side side"]], Int64[npt.NDArray[np.int64], " images"], list[str]]:
    """Draw a pool of films of several patients, in random order.

    Args:
        count: number of films.
        shares: of the classes, least severe first; need not sum to 1. Every class gets its share to the film.
        seed: the same seed draws the same pool.
        side: side of a film in pixels.

    Returns:
        The films, the index of the class of each, and the id of the patient of each (1 to 4 films a patient).

    Raises:
        ValueError: fewer than 2 classes, a share that is not positive, or fewer films than classes.
    """
    weights = np.array(list(shares.values() if isinstance(shares, Mapping) else shares), dtype=np.float64)
    if len(weights) < 2 or not (weights > 0).all() or count < len(weights):
        raise ValueError(f"a pool needs 2 or more positive shares and a film for each, got {shares!r} of {count} films")
    generator = np.random.default_rng([3, seed])
    labels = generator.permutation(np.repeat(np.arange(len(weights)), _quotas(count, weights / weights.sum())))
    patients = _patients(generator, count)
    films = [
        draw_phantom(int(label), len(weights), seed * 1_000_003 + index, side, seed * 1_000_003 + patient)
        for index, (label, patient) in enumerate(zip(labels, patients, strict=True))
    ]
    return films, labels.astype(np.int64), [f"phantom-{patient:05d}" for patient in patients]


def _quotas(count: int, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Whole films a class that sum to ``count``: largest remainders, at least one a class."""
    exact = shares * (count - len(shares)) + 1
    quotas = np.floor(exact).astype(np.int64)
    most_short = np.argsort(quotas - exact, kind="stable")
    quotas[most_short[: count - int(quotas.sum())]] += 1
    return quotas


def _patients(generator: np.random.Generator, count: int) -> list[int]:
    patients: list[int] = []
    while len(patients) < count:
        number = patients[-1] + 1 if patients else 0
        patients += [number] * int(generator.choice(_FILMS_PER_PATIENT))
    return patients[:count]


def _coordinates(film: np.random.Generator, side: int) -> tuple[Plane, Plane]:
    """Positions from -1 to 1, x to the right, y downwards, of a patient who stands a little askew."""
    axis = np.linspace(-1.0, 1.0, side, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle, scale = film.normal(0.0, 0.025), film.uniform(0.96, 1.04)
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    dx, dy = film.normal(0.0, 0.02, 2).astype(np.float32)
    return cosine * x + sine * y + dx, cosine * y - sine * x + dy


def _inside(distance: Plane, softness: float) -> Plane:
    """1 where ``distance`` is negative, 0 where it is positive, with a soft edge."""
    edge: Plane = 0.5 - 0.5 * np.tanh(distance / np.float32(softness))
    return edge


def _lungs(patient: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Where there is lung, 0 to 1: two rounded triangles that rest on the diaphragm."""
    width, top = patient.uniform(0.30, 0.35), patient.uniform(-0.80, -0.72)
    both = np.zeros_like(x)
    for centre, base in ((-0.43, patient.uniform(0.50, 0.60)), (0.43, patient.uniform(0.54, 0.66))):
        depth = (y - top) / (base - top)  # 0 at the apex, 1 at the diaphragm
        half = width * np.sqrt(np.clip(depth * 1.6 + 0.06, 0.05, 1.0))
        # The inner edge is steep, the outer one leans outwards.
        offset = x - centre * (0.86 + 0.16 * np.clip(depth, 0.0, 1.0))
        sides = np.abs(offset) - half
        dome = (y - base) - 0.16 * np.cos(np.clip(offset / width, -1.5, 1.5) * 1.6) * -1.0
        both = np.maximum(both, _inside(np.maximum(np.maximum(sides, dome), top - y), 0.03))
    return both


def _anatomy(patient: np.random.Generator, x: Plane, y: Plane, lungs: Plane) -> Plane:
    """Attenuation of a healthy chest, 0 to 1."""
    shoulders = 0.82 + 0.16 * np.tanh((y + 0.75) * 4.0)
    body = _inside(np.abs(x) - shoulders * patient.uniform(0.97, 1.03), 0.03) * _inside(-0.96 - y + 0.35 * x**2, 0.05)
    plane = np.float32(0.03) + body * np.float32(patient.uniform(0.50, 0.56))
    plane -= lungs * body * np.float32(patient.uniform(0.33, 0.37))
    spine = _inside(np.abs(x) - 0.085, 0.03) * (0.9 + 0.1 * np.cos(y * 34.0))
    plane += 0.16 * spine * body
    heart_x, heart_size = patient.uniform(0.10, 0.15), patient.uniform(0.25, 0.31)
    heart = ((x - heart_x) * np.float32(0.92) + (y - 0.3) * 0.25) ** 2 + ((y - 0.28) * 0.85) ** 2 - heart_size**2
    plane += 0.26 * _inside(heart, 0.03) * (1 - 0.7 * spine) * body
    # Vessels fan out from the hila.
    for hilum in (-0.2, 0.22):
        plane += 0.10 * np.exp(-(((x - hilum) / 0.10) ** 2) - ((y + 0.02) / 0.16) ** 2) * lungs
    return plane + _bones(patient, x, y, body)


def _bones(patient: np.random.Generator, x: Plane, y: Plane, body: Plane) -> Plane:
    """Ribs that arch downwards to the side, and two collar bones."""
    outward = np.abs(x)
    arch = y - 0.55 * outward**1.6 + 0.12 * outward
    phase = patient.uniform(0.0, 2 * np.pi)
    ribs = np.clip(np.cos(arch * 27.0 + phase) - 0.55, 0.0, None) * (1 / 0.45)
    cage = (
        _inside(outward - 0.80, 0.04)
        * _inside(0.10 - outward, 0.04)
        * _inside(y - 0.72, 0.05)
        * _inside(-0.8 - y, 0.05)
    )
    collar = _inside(np.abs(y + 0.70 + 0.24 * outward - 0.1) - 0.028, 0.012) * _inside(outward - 0.7, 0.04)
    return (np.float32(0.075) * ribs * cage + np.float32(0.11) * collar * _inside(0.08 - outward, 0.03)) * body


def _opacities(film: np.random.Generator, x: Plane, y: Plane, lungs: Plane, extent: float) -> Plane:
    """Patchy consolidation over about ``extent`` of the lungs, heavier towards their bases."""
    # Both are drawn whatever the extent, so that a film differs from its milder twin by its opacities alone.
    field = _smooth_field(film, len(x), blur=0.07) + np.float32(0.5) * y
    texture = 1 + np.float32(0.16) * _smooth_field(film, len(x), blur=0.016)
    density = np.float32(film.uniform(0.24, 0.32))
    if extent <= 0.0:
        return np.zeros_like(x)
    # Cut where the field covers the wanted share of the lungs.
    threshold = float(np.quantile(field[::4, ::4][lungs[::4, ::4] > 0.5], 1.0 - extent))
    return _inside(threshold - field, 0.35) * lungs * texture * density


def _smooth_field(film: np.random.Generator, side: int, blur: float) -> Plane:
    """Random hills of mean 0 and spread 1; ``blur`` is their radius as a share of the side."""
    small = 96  # drawn small and enlarged: a wide blur of the whole film is slow
    hills = ndimage.gaussian_filter(film.normal(0.0, 1.0, (small, small)).astype(np.float32), blur * small)
    hills = Image.fromarray((hills - hills.mean()) / hills.std())
    return np.asarray(hills.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
