"""Image bytes -> the grayscale square that the network sees."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ml_backend.errors import ImageError
from ml_backend.images.codecs import avif_levels, avif_size, jpeg_levels, png_levels
from ml_backend.images.headers import PNG_SIGNATURE, bare_jpeg, iso_brands, orientation, png_exif, png_size
from ml_backend.images.kinds import kind_of
from ml_backend.images.troubles import Trouble, UndecodableImage

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SCANS",
    "PREPROCESSING",
    "DecodedFilm",
    "Pixels",
    "decode",
    "decode_film",
]

Pixels: TypeAlias = npt.NDArray[np.uint8]

PREPROCESSING = "gray-squash-bilinear-2"
"""Names the path from bytes to pixels; part of every cache key and checkpoint. Change it with this module."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF")
"""What is decoded: what browsers show, but drawings and icons."""

MAX_PIXELS = 80_000_000
"""The largest film is about 30 million pixels (mammography). Stays below Pillow's own limit of 89 million."""

MAX_BYTES = 256 * 2**20
"""Of a file. 80 million pixels of noise in 16 bits take 160 MB."""

MAX_SCANS = 100
"""Of a progressive JPEG, which usual encoders write in about ten. Each scan walks over the whole picture again, so that
a small file with thousands of them would keep a core busy for hours."""

# Every other decoder of Pillow stays out of reach of a hostile file.
_BY_PILLOW = ("JPEG", "PNG", "BMP", "GIF", "WEBP")

# EXIF orientation -> what undoes it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = frozenset({5, 6, 7, 8})
"""Orientations of a film that lies on its side: its width is its file's height."""
_JPEG_START = b"\xff\xd8"

# How the formats begin: such a file was meant to be an image.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89png\r\n", b"bm", b"gif8", b"riff")


class DecodedFilm(NamedTuple):
    """A film as the network sees it, and the shape that it had.

    Attributes:
        pixels: grey levels, 0 black to 255 white, rows from the top.
        size: width and height of the upright film in pixels.
    """

    pixels: UInt8[Pixels, "side side"]
    size: tuple[int, int]


def decode(content: bytes, side: int, name: str) -> UInt8[Pixels, "side side"]:
    """The pixels of ``decode_film``."""
    return decode_film(content, side, name).pixels


def decode_film(content: bytes, side: int, name: str) -> DecodedFilm:
    """Decode an image file to a grayscale square.

    The whole film is squashed to the square (ours): a crop could cut off a costophrenic angle. Transparency becomes
    black, which is what lies around a film. More than 8 bits are scaled by the smallest bit depth that holds the
    brightest pixel, because a 16-bit file with 10 or 12 bits in it does not say so.

    Args:
        content: the file: JPEG, PNG, BMP, GIF (first frame), WebP or AVIF, of any colour mode.
        side: side of the square in pixels.
        name: what an error calls the image.

    Raises:
        UndecodableImage: the file is no image, is damaged, or has more than ``MAX_PIXELS`` or ``MAX_BYTES``.
    """
    if len(content) > MAX_BYTES:
        raise UndecodableImage(
            f"image {name} is too large: {len(content):,} bytes, at most {MAX_BYTES:,} are decoded: compress it",
            "too-large",
        )
    try:
        square, exif, size = _read_square(content, side, name)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # decoders raise anything: struct.error, SyntaxError, MemoryError, ...
        trouble, reason = _describe(content, error)
        raise UndecodableImage(f"image {name} cannot be decoded: {reason}", trouble) from error
    # After the resize: turning the square is cheaper than turning the film, and gives the same.
    turn = orientation(exif)
    upright = _UPRIGHT.get(turn)
    return DecodedFilm(
        np.asarray(square if upright is None else square.transpose(upright)), size[::-1] if turn in _LYING else size
    )


def _read_square(content: bytes, side: int, name: str) -> tuple[Image.Image, bytes, tuple[int, int]]:
    """The film as it lies in the file, squashed to the square; what its EXIF block says; and its size in the file."""
    if content.startswith(PNG_SIGNATURE):
        size = png_size(content)
        _require_decodable_size(size, name)
        with _room.hold(size[0] * size[1]):
            return _square(Image.fromarray(png_levels(content, size)), side, None), png_exif(content), size
    if {b"avif", b"avis"} & set(iso_brands(content) or ()):
        size = avif_size(content)
        _require_decodable_size(size, name)
        with _room.hold(2 * size[0] * size[1]):  # of 12 bits, it takes 24 bytes a pixel
            # Already upright: an AVIF is turned by a property of its own, and EXIF's is to be ignored.
            return _square(Image.fromarray(avif_levels(content, size)), side, None), b"", size
    exif = b""
    if content.startswith(_JPEG_START):
        jpeg = bare_jpeg(content)
        if jpeg.scans > MAX_SCANS:
            raise ValueError(f"{jpeg.scans:,} scans, at most {MAX_SCANS} are decoded")
        content, exif = jpeg.content, jpeg.exif
    # Pillow reads the header, which says what the fast decoder may be given.
    with Image.open(io.BytesIO(content), formats=_BY_PILLOW) as image:
        size = image.size
        _require_decodable_size(size, name)
        # JPEG only: decodes at the smallest of 1, 1/2, 1/4, 1/8 that is still at least as large as the square.
        drafted = image.draft("L", (side, side))
        with _room.hold(_pixels_in_memory(image, size)):
            square = _square(_gray(image, content, size), side, None if drafted is None else drafted[1])
        return square, exif or image.info.get("exif", b""), size


class _Room:
    """Lets images into memory as long as all of them together have no more than so many pixels."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        wanted = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: wanted <= self._free)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


# Decoding takes up to 16 bytes a pixel (an AVIF up to 24, and counts twice), 1.3 GB for the largest image: sixteen
# threads at once would fill any memory.
_room = _Room(2 * MAX_PIXELS)


def _pixels_in_memory(image: Image.Image, size: tuple[int, int]) -> int:
    # A progressive JPEG keeps every coefficient until its last scan, however small it is decoded.
    width, height = size if image.info.get("progressive") else image.size
    return width * height


def _require_decodable_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height}")


def _gray(image: Image.Image, content: bytes, size: tuple[int, int]) -> Image.Image:
    # CMYK stays with Pillow, which knows Adobe's inversion.
    if image.format == "JPEG" and image.mode == "L":
        levels = jpeg_levels(content, size, image.size)
        if levels is not None:
            return Image.fromarray(levels)
    return _gray_by_pillow(image)


def _gray_by_pillow(image: Image.Image) -> Image.Image:
    if image.mode == "L" and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, layer).convert("L")
    # Through RGB: CMYK and palettes have no direct way to grey.
    return (image if image.mode == "RGB" else image.convert("RGB")).convert("L")


def _square(image: Image.Image, side: int, box: tuple[float, float, float, float] | None) -> Image.Image:
    # The box ends where the film does: an eighth of 2,500 rows is 312.5, and the last of the 313 is half padding.
    if image.mode == "L":
        return image.resize((side, side), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    bits = max(8, int(np.asarray(image).max()).bit_length())
    small = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    return Image.fromarray((small * (255.0 / (2**bits - 1))).round().astype(np.uint8))


def _too_large(name: str, size: str) -> UndecodableImage:
    return UndecodableImage(
        f"image {name} is too large: {size} pixels, at most {MAX_PIXELS:,} are decoded: shrink it", "too-large"
    )


def _describe(content: bytes, error: Exception) -> tuple[Trouble, str]:
    if not content:
        return "empty", "the file is empty: export the image again"
    if (kind := kind_of(content)) is not None:
        return kind.trouble, f"it is {kind.words}"
    if isinstance(error, UnidentifiedImageError):
        meant = content[:8].lower().startswith(_SIGNATURES)
        reason = (
            f"{len(content)} bytes that begin with {content[:12]!r} are no {', '.join(FORMATS)}: "
            "convert the image to PNG or JPEG"
        )
        return ("damaged" if meant else "not-an-image"), reason
    # On one line: libvips tells its troubles one under the other.
    return "damaged", (
        f"damaged or not supported ({type(error).__name__}: {' '.join(str(error).split())}): "
        "export it again, as PNG or JPEG"
    )
