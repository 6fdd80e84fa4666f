"""Synthetic chest X-rays of known severity, with confounders: devices, a nuisance opacity, another scanner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Int64, UInt8
from PIL import Image
from scipy import ndimage

Plane: TypeAlias = npt.NDArray[np.floating[Any]]


def add_confounders(rng: np.random.Generator, x: Plane, y: Plane, lungs: Plane, difficulty: float) -> Plane:
    """Attenuation that confounders add to a image: how likely each is, and how dense, grows with the difficulty.

    Args:
        rng: decides which there are, and where.
        x: positions from -1 to 1, to the right.
        y: positions from -1 to 1, downwards.
        lungs: where there is lung, 0 to 1.
        difficulty: above 0, at most 1.

    Returns:
        Of the shape of ``x``; 0 where there is none.
    """
    # All are drawn whether or not they are there: what one adds must not move the others.
    chances = rng.uniform(size=4)
    parts = (_pacemaker(rng, x, y), _leads(rng, x, y), _nodule(rng, x, y) * lungs, _haze(rng, x, y) * lungs)
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
        """The image as this machine takes it: 0 to 1, its marker in a corner."""
        toned = plane.clip(0.0, 1.0) ** np.float32(self.gamma)
        blurred: Plane = ndimage.gaussian_filter(toned, self.blur * len(x))
        marker = (np.abs(x - self.mark[0]) < 0.04) & (np.abs(y - self.mark[1]) < 0.06)
        marked: Plane = np.maximum(blurred, np.float32(0.95) * marker)
        return marked


def _disc(x: Plane, y: Plane, centre: tuple[float, float], radii: tuple[float, float], softness: float) -> Plane:
    """1 inside an ellipse, 0 outside, with a soft edge."""
    distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1]) - 1.0
    return _inside(distance, softness)


def _pacemaker(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A metal box below one collar bone, and its lead down to the heart."""
    where = (float(rng.choice((-1.0, 1.0)) * rng.uniform(0.45, 0.55)), float(rng.uniform(-0.5, -0.4)))
    box = _disc(x, y, where, (0.13, 0.11), 0.08)
    down = np.clip((y - where[1]) / (0.35 - where[1]), 0.0, 1.0)
    lead = _line(np.abs(x - (where[0] + (0.15 - where[0]) * down**0.7))) * ((y > where[1]) & (y < 0.35))
    return np.float32(0.4) * np.maximum(box, lead)


def _leads(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Three electrodes and their wires across the chest."""
    plane = np.zeros_like(x)
    for _ in range(3):
        end = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.3, 0.4)))
        slope, bend = rng.normal(0.0, 0.5), rng.normal(0.0, 0.3)
        up = end[1] - y
        wire = _line(np.abs(x - end[0] - slope * up - bend * up**2)) * (up > 0)
        plane = np.maximum(plane, np.maximum(wire, _disc(x, y, end, (0.045, 0.045), 0.2)))
    return np.float32(0.22) * plane


def _nodule(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A round mass anywhere in the lungs, denser than the disease."""
    where = (float(rng.choice((-1.0, 1.0)) * rng.uniform(0.25, 0.6)), float(rng.uniform(-0.55, 0.35)))
    radius = float(rng.uniform(0.08, 0.18))
    return np.float32(rng.uniform(0.2, 0.35)) * _disc(x, y, where, (radius, radius * 1.1), 0.3)


def _haze(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A veil over the lower part of one lung, as fluid behind it gives: grey and even where the disease is patchy."""
    lung = 0.5 + 0.5 * np.tanh(rng.choice((-1.0, 1.0)) * x / np.float32(0.05))
    level = rng.uniform(-0.3, 0.4)
    veil: Plane = np.float32(rng.uniform(0.10, 0.22)) * lung * (0.5 + 0.5 * np.tanh((y - level) / np.float32(0.15)))
    return veil


def _line(distance: Plane) -> Plane:
    """1 on a thin line, 0 off it."""
    line: Plane = np.exp(-((distance / np.float32(0.012)) ** 2))
    return line


Shares: TypeAlias = Sequence[float] | Mapping[str, float]

# Share of the lungs that the most severe class covers on average; the least severe covers none.
_FULL_EXTENT = 0.7
# Spread of the covered share, in steps between classes: about one image in twenty looks like its neighbour.
_SPREAD = 0.3
# The same at difficulty 1: one image in four of a middle class looks like a neighbour. And what their density loses.
_HARDEST_SPREAD = 0.45
_FADING = 0.5
_IMAGES_PER_PATIENT = (1, 2, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """A frontal chest X-ray before it is drawn.

    Attributes:
        severity: index of the class, 0 least severe.
        classes: number of classes, at least 2.
        seed: decides everything but the anatomy; the same seed draws the same image.
        patient_seed: decides the anatomy.
        difficulty: 0 to 1; from 0 upwards the classes overlap more, the opacities fade, and there are confounders.
        centre: whose X-ray machine took it; every centre has its own look, and 0 the plain one.
        patient: id of the patient, where the image is one of a pool.

    Raises:
        ValueError: no such class or centre, or a difficulty that is not 0 to 1.
    """

    severity: int
    classes: int
    seed: int
    patient_seed: int
    difficulty: float = 0.0
    centre: int = 0
    patient: str = ""

    def __post_init__(self) -> None:
        if self.classes < 2 or not 0 <= self.severity < self.classes:
            raise ValueError(
                f"severity must be 0 to {self.classes - 1} of at least 2 classes, got {self.severity} of {self.classes}"
            )
        if not 0.0 <= self.difficulty <= 1.0:
            raise ValueError(f"difficulty must lie from 0 to 1, got {self.difficulty}")
        if self.centre < 0:
            raise ValueError(f"centres are numbered from 0, got {self.centre}")

    @property
    def latent_severity(self) -> float:
        """Severity on the continuous scale, in steps between classes.

        ``severity`` is its class by name; a image at 1.4 of class 1 looks nearly like one of class 2.
        """
        rng = self._rng()
        _pose(rng)
        return self._extent(rng) / self._step

    def draw(self, side: int) -> UInt8[npt.NDArray[np.uint8], "side side"]:
        """Draw it, ``side`` pixels square.

        Raises:
            ValueError: a side under 32.
        """
        if side < 32:
            raise ValueError(f"an image needs a side of at least 32 pixels, got {side}")
        patient, rng = np.random.default_rng([1, self.patient_seed]), self._rng()
        x, y = _coordinates(_pose(rng), side)
        lungs = _lungs(patient, x, y)
        plane = _anatomy(patient, x, y, lungs)
        opacities = _opacities(rng, x, y, lungs, self._extent(rng))
        gain, offset = rng.uniform(0.94, 1.06), rng.uniform(-0.02, 0.02)
        if self.difficulty > 0.0:
            opacities *= np.float32(1.0 - _FADING * self.difficulty)
            # A generator of their own: the image below them is the one of difficulty 0.
            opacities += add_confounders(np.random.default_rng([4, self.seed]), x, y, lungs, self.difficulty)
        plane += opacities
        plane = plane * gain + offset
        if self.difficulty > 0.0:
            exposure = np.random.default_rng([5, self.seed]).normal(0.0, 0.25 * self.difficulty)
            plane = plane.clip(0.0, 1.0) ** np.float32(np.exp(exposure))
        if self.centre:
            plane = Scanner.of(self.centre).look(plane, x, y)
        plane += np.float32(0.018) * rng.standard_normal(plane.shape, dtype=np.float32)
        return (plane.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([2, self.seed])

    @property
    def _step(self) -> float:
        return _FULL_EXTENT / (self.classes - 1)

    def _extent(self, rng: np.random.Generator) -> float:
        """Share of the lungs that the opacities cover."""
        spread = _SPREAD + (_HARDEST_SPREAD - _SPREAD) * self.difficulty
        return float(np.clip(self.severity * self._step + rng.normal(0.0, spread * self._step), 0.0, 0.95))


def plan_pool(count: int, shares: Shares, seed: int, *, difficulty: float = 0.0, centres: int = 1) -> list[ImagePlan]:
    """Decide on a pool of images of several patients (1 to 4 images each), in random order, and draw none yet.

    Args:
        count: number of images.
        shares: of the classes, least severe first; need not sum to 1. Every class gets its share to the image.
        seed: the same seed plans the same pool.
        difficulty: of every image, see ``ImagePlan``.
        centres: the patients are spread evenly over so many centres.

    Raises:
        ValueError: fewer than 2 classes, a share that is not positive, fewer images than classes, or no centre.
    """
    weights = np.array(list(shares.values() if isinstance(shares, Mapping) else shares), dtype=np.float64)
    if len(weights) < 2 or not (weights > 0).all() or count < len(weights):
        raise ValueError(
            f"a pool needs 2 or more positive shares and a image for each, got {shares!r} of {count} images"
        )
    if centres < 1:
        raise ValueError(f"a pool comes from at least 1 centre, got {centres}")
    generator = np.random.default_rng([3, seed])
    labels = generator.permutation(np.repeat(np.arange(len(weights)), _quotas(count, weights / weights.sum())))
    return [
        ImagePlan(
            severity=int(label),
            classes=len(weights),
            seed=seed * 1_000_003 + index,
            patient_seed=seed * 1_000_003 + patient,
            difficulty=difficulty,
            centre=patient % centres,
            patient=f"phantom-{patient:05d}",
        )
        for index, (label, patient) in enumerate(zip(labels, _patients(generator, count), strict=True))
    ]


def draw_pool(
    count: int, shares: Shares, seed: int, side: int = 512, *, difficulty: float = 0.0, centres: int = 1
) -> tuple[list[UInt8[npt.NDArray[np.uint8], "side side"]], Int64[npt.NDArray[np.int64], " images"], list[str]]:
    """Draw a pool of images, see ``plan_pool``; ``side`` is that of an image in pixels.

    Returns:
        The images, the index of the class of each, and the id of the patient of each.
    """
    plans = plan_pool(count, shares, seed, difficulty=difficulty, centres=centres)
    labels = np.array([plan.severity for plan in plans], dtype=np.int64)
    return [plan.draw(side) for plan in plans], labels, [plan.patient for plan in plans]


def _quotas(count: int, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Whole images a class that sum to ``count``: largest remainders, at least one a class."""
    exact = shares * (count - len(shares)) + 1
    quotas = np.floor(exact).astype(np.int64)
    most_short = np.argsort(quotas - exact, kind="stable")
    quotas[most_short[: count - int(quotas.sum())]] += 1
    return quotas


def _patients(generator: np.random.Generator, count: int) -> list[int]:
    patients: list[int] = []
    while len(patients) < count:
        number = patients[-1] + 1 if patients else 0
        patients += [number] * int(generator.choice(_IMAGES_PER_PATIENT))
    return patients[:count]


def _pose(rng: np.random.Generator) -> tuple[float, float, npt.NDArray[np.float32]]:
    """Angle, scale and shift of a patient who is not quite centred."""
    return rng.normal(0.0, 0.025), rng.uniform(0.96, 1.04), rng.normal(0.0, 0.02, 2).astype(np.float32)


def _coordinates(pose: tuple[float, float, npt.NDArray[np.float32]], side: int) -> tuple[Plane, Plane]:
    """Positions from -1 to 1, x to the right, y downwards."""
    axis = np.linspace(-1.0, 1.0, side, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle, scale, (dx, dy) = pose
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
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


def _opacities(rng: np.random.Generator, x: Plane, y: Plane, lungs: Plane, extent: float) -> Plane:
    """Patchy consolidation over about ``extent`` of the lungs, heavier towards their bases."""
    # Both are drawn whatever the extent, so that a image differs from the milder version by its opacities alone.
    field = _smooth_field(rng, len(x), blur=0.07) + np.float32(0.5) * y
    texture = 1 + np.float32(0.16) * _smooth_field(rng, len(x), blur=0.016)
    density = np.float32(rng.uniform(0.24, 0.32))
    if extent <= 0.0:
        return np.zeros_like(x)
    # Cut where the field covers the wanted share of the lungs.
    threshold = float(np.quantile(field[::4, ::4][lungs[::4, ::4] > 0.5], 1.0 - extent))
    return _inside(threshold - field, 0.35) * lungs * texture * density


def _smooth_field(rng: np.random.Generator, side: int, blur: float) -> Plane:
    """Random hills of mean 0 and spread 1; ``blur`` is their radius as a share of the side."""
    small = 96  # drawn small and enlarged: a wide blur of the whole image is slow
    hills = ndimage.gaussian_filter(rng.normal(0.0, 1.0, (small, small)).astype(np.float32), blur * small)
    hills = Image.fromarray((hills - hills.mean()) / hills.std())
    return np.asarray(hills.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
