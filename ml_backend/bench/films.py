"""The films that both sides decode: drawn, or from a folder of the user's."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from PIL import Image

from ml_backend.bench.process import BenchError
from ml_backend.images.synthetic import draw_phantom

__all__ = ["draw_film", "films_in", "write_films", "write_small_films"]

Film: TypeAlias = npt.NDArray[np.uint8]

# Of the film itself, in grey levels, and of the screen behind it: what makes a real film harder to compress than a
# drawing. A film of 2,500 x 2,048 drawn so has 1.1 MB as a JPEG of quality 90 and 3.6 MB as a PNG.
_GRAIN = 3.0
_ENDINGS = {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}
_AT_MOST = 8


def draw_film(height: int, width: int, seed: int) -> UInt8[Film, "height width"]:
    """Draw a film of any size: a phantom, enlarged, with grain.

    Args:
        height: in pixels.
        width: in pixels.
        seed: the same seed draws the same film.
    """
    small = draw_phantom(severity=seed % 3, classes=3, seed=seed, side=512)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = np.random.default_rng([6, seed]).standard_normal((height, width), dtype=np.float32)
    # Neighbouring pixels of a film share some of their noise.
    grain[:, 1:] += 0.5 * grain[:, :-1]
    film: Film = (large + _GRAIN * grain).clip(0.0, 255.0).round().astype(np.uint8)
    return film


def write_films(folder: Path, kind: str, count: int, height: int, width: int) -> list[Path]:
    """Draw films and write them as 8-bit gray ``jpeg`` (quality 90) or ``png``.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(count):
        content = io.BytesIO()
        Image.fromarray(draw_film(height, width, seed)).save(
            content, kind, **({"quality": 90} if kind == "jpeg" else {})
        )
        path = folder / f"film-{seed}{_ENDINGS[kind][0]}"
        path.write_bytes(content.getvalue())
        paths.append(path)
    return paths


def films_in(folder: Path, kind: str) -> list[Path]:
    """The first few films of that kind in a folder and below, in the order of their names.

    Raises:
        BenchError: there is no such folder.
    """
    if not folder.is_dir():
        raise BenchError(f"--images {folder}: there is no such folder")
    paths: Sequence[Path] = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS[kind])
    return list(paths[:_AT_MOST])


def write_small_films(folder: Path, count: int, side: int) -> Path:
    """Draw films of three severities for a training, named ``<severity>-<number>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        film = draw_phantom(severity=number % 3, classes=3, seed=number, side=side)
        Image.fromarray(film).save(folder / f"{number % 3}-{number:04d}.png")
    return folder
