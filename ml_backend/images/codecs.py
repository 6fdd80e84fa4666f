"""The two decoders of nearly every image: JPEG without CMYK, and PNG and AVIF of any kind.

Chosen by measurement: libjpeg-turbo through simplejpeg, and libvips through pyvips. Both keep what Pillow loses: a
damaged JPEG is an error and no half-grey image, and a 16-bit PNG with colour or alpha keeps its depth. Pillow reads the
EXIF block of an AVIF into memory whole, however often its entries point to the same bytes; libvips leaves it alone.

Both are imported at the first image, never before: libvips starts threads, which a process that forks must not have.
"""

import functools
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8, UInt16

__all__ = ["Levels", "avif_levels", "avif_size", "jpeg_levels", "png_levels"]

Levels8: TypeAlias = npt.NDArray[np.uint8]
Levels16: TypeAlias = npt.NDArray[np.uint16]
Levels: TypeAlias = UInt8[Levels8, "height width"] | UInt16[Levels16, "height width"]

# ITU-R 601, which is what Pillow and JPEG mean by grey.
_LUMA = [[0.299, 0.587, 0.114]]


def jpeg_levels(
    content: bytes, size: tuple[int, int], at_least: tuple[int, int]
) -> UInt8[Levels8, "height width"] | None:
    """Decode a grey or colour JPEG to grey, at a fraction of its size.

    Reduced in the frequency domain: 1/8, the common case for a film, is the mean of each block of 8 x 8 pixels.

    Args:
        content: the file; not CMYK.
        size: width and height that its header was seen to give.
        at_least: width and height that are enough: ``size`` divided by 1, 2, 4 or 8, rounded up.

    Returns:
        Grey levels, or None for a file with stray bytes between its segments: shown by every browser, and a matter
        for a decoder that forgives.

    Raises:
        ValueError: damaged, cut off, or of another size than was seen.
    """
    import simplejpeg  # noqa: PLC0415 - see the module

    width, height = at_least
    try:
        found_height, found_width, _, _ = simplejpeg.decode_jpeg_header(content)
        _require_size((found_width, found_height), size)
        levels: Levels8 = simplejpeg.decode_jpeg(content, "GRAY", min_height=height, min_width=width)
    except ValueError as error:
        if "extraneous bytes" in str(error):
            return None
        raise
    return levels[..., 0]


def png_levels(content: bytes, size: tuple[int, int]) -> Levels:
    """Decode a PNG of any colour mode to grey at its own depth; what is transparent becomes black.

    Args:
        content: the file.
        size: width and height that its header was seen to give.

    Returns:
        Grey levels: 8 bits for 1 to 8 bits a channel, 16 for 16.

    Raises:
        ValueError: of another size than was seen.
        pyvips.Error: damaged or cut off.
    """
    return _gray_levels(_vips().Image.pngload_buffer(content, access="sequential", fail_on="error"), size)


def avif_size(content: bytes) -> tuple[int, int]:
    """Width and height of an AVIF, as it is shown: turned and cropped as it says. No picture is decoded.

    Raises:
        pyvips.Error: its header is damaged.
    """
    image = _vips().Image.heifload_buffer(content, fail_on="error")
    return image.width, image.height


def avif_levels(content: bytes, size: tuple[int, int]) -> Levels:
    """Decode an AVIF (the still picture of an animated one) to grey at its own depth; see ``png_levels``.

    Raises:
        ValueError: of another size than was seen.
        pyvips.Error: damaged or cut off.
    """
    return _gray_levels(_vips().Image.heifload_buffer(content, fail_on="error"), size)


def _gray_levels(image: Any, size: tuple[int, int]) -> Levels:
    _require_size((image.width, image.height), size)
    if image.hasalpha():
        image = image.flatten()
    if image.bands == 3:
        image = image.recomb(_LUMA).rint().cast(image.format)
    levels: Levels8 | Levels16 = image.numpy()
    # pyvips makes a bare number of an image of one pixel.
    return levels.reshape(image.height, image.width)


@functools.cache
def _vips() -> Any:
    import pyvips  # noqa: PLC0415 - see the module

    # Images are decoded side by side already; and no image is asked for twice.
    pyvips.concurrency_set(1)
    pyvips.cache_set_max(0)
    return pyvips


def _require_size(found: tuple[int, int], seen: tuple[int, int]) -> None:
    # Else a file could pass the guard against bombs under one size, and be decoded at another.
    if found != seen:
        raise ValueError(f"its header says {seen[0]} x {seen[1]} pixels and its data {found[0]} x {found[1]}")
