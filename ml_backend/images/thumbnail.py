"""A small picture of a decoded image, as a browser shows it."""

import io
from typing import Final

from jaxtyping import UInt8
from PIL import Image

from ml_backend.images.decode import Pixels

__all__ = ["SIDE", "thumbnail"]

SIDE: Final = 192  # pixels
QUALITY: Final = 82


def thumbnail(pixels: UInt8[Pixels, "side side"]) -> bytes:
    """A grayscale JPEG of at most 192 pixels a side.

    Square like what the network sees: of a film that is not square the proportions are not kept.

    Args:
        pixels: grey levels, 0 black to 255 white.
    """
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
