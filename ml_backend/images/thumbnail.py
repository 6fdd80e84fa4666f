"""A picture of a decoded image, as a browser shows it: small among others, and large by itself."""

import io
from typing import Final

from jaxtyping import UInt8
from PIL import Image

from ml_backend.images.decode import Pixels

SIDE: Final = 512  # pixels
QUALITY: Final = 82


def is_current(content: bytes) -> bool:
    """Whether a picture is as large as this version draws it, so that it need not be drawn again."""
    try:
        return max(Image.open(io.BytesIO(content)).size) == SIDE
    except OSError:
        return False


def thumbnail(pixels: UInt8[Pixels, "side side"], size: tuple[int, int]) -> bytes:
    """A grayscale JPEG of at most 512 pixels a side, in the proportions of the image and not of the network's square.

    Args:
        pixels: grey levels, 0 black to 255 white; the image squashed to a square.
        size: width and height of the image.
    """
    longest = min(SIDE, len(pixels))  # larger than the square there is nothing more to see
    width, height = (max(round(longest * length / max(size)), 1) for length in size)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
