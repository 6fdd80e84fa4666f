"""Image files to decode, and what a square of them should look like."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(height: int = 96, width: int = 64) -> npt.NDArray[np.uint8]:
    """Dark at the left, bright at the right."""
    return np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width)).copy()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    body = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def film(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth shadows with grain, as a chest X-ray has."""
    grain = np.random.default_rng(0).normal(0, 3, (height, width))
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    levels = 120 + 70 * np.sin(5 * x) * np.cos(4 * y) + 20 * np.sin(60 * y) + grain
    return np.asarray(levels.clip(0, 255), dtype=np.uint8)


def triangle(levels: npt.NDArray[np.generic], side: int) -> npt.NDArray[np.float64]:
    """Every pixel of the square is a mean of the film's, weighted by a triangle around its centre."""

    def weights(length: int) -> npt.NDArray[np.float64]:
        places = (np.arange(length) + 0.5) * side / length
        weight = np.maximum(0, 1 - abs(places[None] - (np.arange(side) + 0.5)[:, None]))
        return np.asarray(weight / weight.sum(1, keepdims=True))

    height, width = levels.shape
    return np.asarray(weights(height) @ levels.astype(np.float64) @ weights(width).T)


def deep_png(pixels: npt.NDArray[np.uint16], colour: int) -> bytes:
    """A 16-bit PNG, which Pillow writes without colour and alpha only."""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (b"IHDR", b"IDAT", b"IEND"), (header, body, b"")))
