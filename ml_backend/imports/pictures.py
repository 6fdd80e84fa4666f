"""A file to a PNG that holds pixels and nothing else, and the few fields that may leave the file."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ml_backend.errors import ImageError
from ml_backend.images.burned_in import text_at_borders
from ml_backend.images.decode import BY_PILLOW, decode
from ml_backend.images.dicom import is_dicom, read_dicom
from ml_backend.images.limits import MAX_PIXELS, budget

_TIFF = (b"II*\0", b"MM\0*")
_PHOTOMETRIC, _MIN_IS_WHITE = 262, 0


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """An image as it is uploaded.

    Attributes:
        image: grey (L) or colour (RGB), upright, without metadata.
        pixels: SHA-256 of its pixels at full size.
        fields: as ``images.dicom.DicomImage.fields``, raw; empty for other files.
        burned_in: why text may be burned into the pixels; empty without a reason.
    """

    image: Image.Image
    pixels: str
    fields: Mapping[str, str]
    burned_in: str


def is_shown(content: bytes) -> bool:
    """Whether browsers show a file as it is, unless it is damaged."""
    return not is_dicom(content) and not content.startswith(_TIFF)


def read_picture(content: bytes, name: str, *, first_frame: bool = False) -> Picture:
    """Render a file at full size.

    A colour image keeps its colours unless all its pixels are grey. More than 8 bits are scaled as in
    ``images.decode``; what is transparent becomes black.

    Args:
        content: DICOM, TIFF, or a format that ``images.decode`` reads.
        name: what an error calls the file.
        first_frame: read the first frame of a DICOM file or a TIFF of several, which is refused otherwise.

    Raises:
        NotAnImage: a DICOM object without pixels.
        ImageError: it cannot be read.
    """
    if is_dicom(content):
        read = read_dicom(content, first_frame=first_frame)
        return _picture(Image.fromarray(read.pixels), read.fields, read.burned_in)
    if not content.startswith(_TIFF):
        decode(content, 8, name)  # refuses what is damaged or too large, and names its kind
    tiff = content.startswith(_TIFF)
    try:
        with Image.open(io.BytesIO(content), formats=["TIFF"] if tiff else [*BY_PILLOW, "AVIF"]) as image:
            _check(image, name, first_frame=first_frame)
            with budget.hold(image.width * image.height):
                # Pillow inverts those of 8 bits only.
                inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _MIN_IS_WHITE
                upright = _eight_bits(ImageOps.exif_transpose(image), name, inverted=inverted)
                return _picture(upright, {}, text_at_borders(np.asarray(upright.convert("L"))))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image {name} is too large: {error}: shrink it", "too-large") from error
    except UnidentifiedImageError as error:  # whose text holds an address in memory
        raise ImageError(f"image {name} is of an unknown kind: export it as PNG", "unsupported") from error
    except Exception as error:  # decoders raise anything
        kind = f"{type(error).__name__}: {error}"
        raise ImageError(f"image {name} is damaged or not supported ({kind}): export it again", "damaged") from error


def fingerprint(image: Image.Image) -> bytes:
    """Which of 16 x 16 neighbours is brighter: 256 bits, most of which outlast re-encoding, scaling and brightness.

    Source:
        Difference hash, https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html.
    """
    small = image.convert("L").resize((17, 16), Image.Resampling.BILINEAR, reducing_gap=3.0)
    levels = np.asarray(small)
    return np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes()


def to_png(image: Image.Image, side: int) -> bytes:
    """PNG of an image, shrunk until no side is longer than ``side`` pixels."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Of the levels, the smallest for radiographs; the default, 6, takes twice the time.
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()


def _picture(image: Image.Image, fields: Mapping[str, str], burned_in: str) -> Picture:
    if image.mode == "RGB":
        levels = np.asarray(image)
        if (levels == levels[..., :1]).all():
            image = Image.fromarray(np.ascontiguousarray(levels[..., 0]))
    image.info.clear()  # which the encoder would write into the PNG
    pixels = hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
    return Picture(image, pixels, fields, burned_in)


def _check(image: Image.Image, name: str, *, first_frame: bool) -> None:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read"
        raise ImageError(f"image {name} is too large: {size}: shrink it", "too-large")
    if image.mode == "F":
        raise ImageError(f"image {name} holds floating-point pixels: export it as PNG of 8 or 16 bits", "unsupported")
    # To count the pages takes hours for a file of many.
    if image.format == "TIFF" and getattr(image, "is_animated", False) and not first_frame:
        raise ImageError(f"image {name} is a TIFF of several pages: export the one to label", "unsupported")


def _eight_bits(image: Image.Image, name: str, *, inverted: bool) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64)
        if levels.min() < 0:
            raise ImageError(f"image {name} has pixels below 0: export it as PNG of 8 or 16 bits", "unsupported")
        most = 2 ** max(8, int(levels.max()).bit_length()) - 1
        levels = most - levels if inverted else levels
        return Image.fromarray((levels * (255.0 / most)).round().astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return image if image.mode == "L" else image.convert("L" if image.mode == "1" else "RGB")
