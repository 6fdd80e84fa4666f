"""Image bytes to the grayscale square that the network sees.

A JPEG's or PNG's header is read here before any library sees the file; libjpeg-turbo and libvips decode nearly every
image, Pillow the rest. A file that is not a decodable image is recognised by its first bytes, with a remedy.
"""

import functools
import io
import re
import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from ml_backend.errors import ImageError, ImageErrorKind
from ml_backend.images.dicom import is_dicom, open_dicom, render_dicom
from ml_backend.images.limits import MAX_BYTES, MAX_PIXELS, MAX_SCANS, budget


class UndecodableImage(ImageError):
    """The bytes of an image were fetched, and cannot be decoded."""


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SEGMENTS = 10_000  # before the picture; colour profiles and EXIF take some hundred at most

_EXIF = b"Exif\0\0"
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_MARKER = re.compile(rb"\xff+[^\xff]", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_SEQUENTIAL = {0xC0, 0xC1}  # frames that are not progressive
_FRAMES = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # 0xF7 is that of JPEG-LS
# No length follows these: padding, the restarts, and a second start.
_ALONE = {0x01, *range(0xD0, 0xD9)}
# Of the application segments a decoder needs JFIF's and Adobe's, which say what the colours mean.
_NOT_NEEDED = {*range(0xE1, 0xEE), 0xEF, 0xFE}


@dataclass(frozen=True, slots=True)
class BareJpeg:
    """A JPEG without what its decoding does not need: EXIF, profiles, thumbnails, comments, bytes gone astray.

    Attributes:
        content: the file.
        exif: what stood in its first EXIF segment; empty where there is none.
        scans: walks over the picture.
    """

    content: bytes
    exif: bytes
    scans: int


def bare_jpeg(content: bytes) -> BareJpeg:
    """Walk over the segments of a JPEG up to its picture.

    Raises:
        ValueError: there is no picture, or too much before it.
    """
    kept, exif, components, place = [content[:2]], b"", b"none", 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(content, place)
        if found is None:
            break
        marker, start = content[found.end() - 1], found.end()
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            # Most files hold nothing else, and are not copied.
            as_it_is = sum(map(len, kept)) == start - 2
            bare = content if as_it_is else b"".join([*kept, content[start - 2 :]])
            # A scan of all components in a frame that is not progressive is the only one: the decoder takes no other.
            alone = content[start + 2 : start + 3] == components
            return BareJpeg(bare, exif, 1 if alone else _scans(bare))
        place = start
        # A zero is no marker, but what an FF in the data is followed by.
        if marker == 0 or marker in _ALONE:
            continue
        place += max(2, int.from_bytes(content[start : start + 2]))
        body = content[start + 2 : place]
        if marker == _APP1 and not exif and body.startswith(_EXIF):
            exif = body
        elif marker not in _NOT_NEEDED:
            kept.append(content[start - 2 : place])
        if marker in _SEQUENTIAL:
            components = body[5:6]
    else:
        raise ValueError(f"more than {MAX_SEGMENTS:,} segments before its picture")
    raise ValueError("it ends before its picture")


def jpeg_frame(content: bytes) -> tuple[int, int] | None:
    """The marker of a JPEG's first frame, which says how it is coded, and its bits a channel; None without a frame."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(content, place)
        if found is None:
            return None
        marker, start = content[found.end() - 1], found.end()
        if marker in _FRAMES:
            return (marker, content[start + 2]) if len(content) > start + 2 else None
        place = start
        if marker != 0 and marker not in _ALONE:
            place += max(2, int.from_bytes(content[start : start + 2]))
    return None


def iso_brands(content: bytes) -> tuple[bytes, ...] | None:
    """The brands of a file in the ISO base media container, its own first; None for any other file.

    AVIF, HEIC, JPEG 2000's parts and MP4 share the container.
    """
    if content[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(content[:4]), 512)
    return content[8:12], *(content[place : place + 4] for place in range(16, end - 3, 4))


def png_size(content: bytes) -> tuple[int, int]:
    """Width and height of a PNG in pixels.

    Raises:
        ValueError: its first chunk is cut off, or another one.
    """
    if content[12:16] != b"IHDR" or len(content) < 24:
        raise ValueError("it does not begin with its size")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def png_exif(content: bytes) -> bytes:
    """The EXIF block before the pixels of a PNG, where browsers look for it; empty where there is none."""
    place = content.find(b"eXIf", len(PNG_SIGNATURE), max(0, content.find(b"IDAT")))
    if place < 0:
        return b""
    length = int.from_bytes(content[place - 4 : place])
    return content[place + 4 : place + 4 + length]


def orientation(exif: bytes) -> int:
    """How a image lies in its file: EXIF's number from 1, upright, to 8; 1 where the block says nothing or nonsense.

    Args:
        exif: a TIFF header and its directory, with or without ``Exif`` before it.
    """
    block = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    (directory,) = struct.unpack_from(f"{order}I", block, 4)
    entries = block[directory : directory + 2]
    count = struct.unpack(f"{order}H", entries)[0] if len(entries) == 2 else 0
    for start in range(directory + 2, min(directory + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, values, value = struct.unpack_from(f"{order}HHIH", block, start)
        if (tag, kind, values) == (_ORIENTATION_TAG, _SHORT, 1):
            return int(value) if 1 <= value <= 8 else 1
    return 1


def _scans(content: bytes) -> int:
    # Both bytes at once, at even and at odd places: searching for them takes ten times as long.
    wanted = int.from_bytes(bytes((0xFF, _START_OF_SCAN)), "little")
    ways = (np.frombuffer(content, "<u2", (len(content) - shift) // 2, shift) for shift in (0, 1))
    return sum(int(np.count_nonzero(places == wanted)) for places in ways)


Levels8: TypeAlias = npt.NDArray[np.uint8]
Levels16: TypeAlias = npt.NDArray[np.uint16]
Levels: TypeAlias = UInt8[Levels8, "height width"] | UInt16[Levels16, "height width"]

# ITU-R 601, which is what Pillow and JPEG mean by grey.
_LUMA = [[0.299, 0.587, 0.114]]


def jpeg_levels(
    content: bytes, size: tuple[int, int], at_least: tuple[int, int]
) -> UInt8[Levels8, "height width"] | None:
    """Decode a grey or colour JPEG to grey, at a fraction of its size.

    Reduced in the frequency domain: 1/8, the common case for a image, is the mean of each block of 8 x 8 pixels.

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


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        error: the kind of error that it is.
        words: what it is, and what to do, such as "a PDF: export its page as PNG or JPEG".
    """

    error: ImageErrorKind
    words: str


_LOOKED_AT: Final = 4096
_CONVERT: Final = "convert it to PNG or JPEG"
_DEEP: Final = "export it as PNG of 8 or 16 bits"
_FRAME: Final = "export one of its frames as PNG or JPEG"
_ADDRESS: Final = "open the image's address in a browser; it must lead to the image itself"

_HTML: Final = Kind(
    "not-an-image",
    "an HTML page: was it a login page? Give an address that leads to the image itself without a login, or connect its "
    "storage in Label Studio",
)
_SVG: Final = Kind("unsupported", "an SVG drawing: export it as PNG or JPEG")
_VIDEO: Final = Kind("not-an-image", f"a video: {_FRAME}")
_AUDIO: Final = Kind("not-an-image", "a sound recording: delete its task, or give the image")
_HEIC: Final = Kind("unsupported", f"a HEIC photograph (HEIF), which browsers cannot show: {_CONVERT}")
_JPEG_2000: Final = Kind("unsupported", f"a JPEG 2000, which browsers cannot show: {_CONVERT}")
_TIFF: Final = Kind("unsupported", f"a TIFF, which browsers cannot show: {_CONVERT}")


def _archive(name: str) -> Kind:
    return Kind("not-an-image", f"{name} archive: unpack it first, and import its images")


def _picture(name: str) -> Kind:
    return Kind("unsupported", f"{name}, which browsers cannot show: {_CONVERT}")


def _volume(name: str) -> Kind:
    return Kind("unsupported", f"{name}, which browsers cannot show: {_DEEP}")


# A regular expression of the first bytes -> what it is. The first that matches decides.
_STARTS: Final[tuple[tuple[bytes, Kind], ...]] = (
    (rb"\x00\x00[\x01\x02]\x00[^\x00]\x00", Kind("unsupported", f"an icon (ICO): {_CONVERT}")),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", _JPEG_2000),
    (rb"\x00\x00\x00\x0cJXL |\xff\x0a", _picture("a JPEG XL")),
    (rb"II[*+]\x00|MM\x00[*+]", _TIFF),
    (rb"P[1-7][ \t\r\n#]", _picture("a PGM or PPM")),
    (rb"8BPS", _picture("a Photoshop file")),
    (rb"gimp xcf", _picture("a GIMP file")),
    (rb"DDS |qoif|icns|\x01\xda[\x00\x01][\x01\x02]|#define \w+_width|\n\x05\x01[\x01-\x08]", _picture("an image")),
    (rb"%!PS|\xc5\xd0\xd3\xc6", _picture("a PostScript drawing")),
    (rb"%PDF", Kind("unsupported", "a PDF: export its page as PNG or JPEG")),
    (
        rb"\x30[\x80-\x84].{0,4}\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07[\x01-\x06]",
        Kind("unsupported", "an encrypted or signed file, as on a secured CD of DICOM: export it without encryption"),
    ),
    (rb"\x93NUMPY", _volume("a NumPy array")),
    (rb"\x89HDF\r\n", _volume("an HDF5 file")),
    (rb"MATLAB 5", _volume("a MATLAB file")),
    (rb"NRRD000|ObjectType *=|NDims *=", _volume("an NRRD or MetaImage volume")),
    (rb"SIMPLE  =", _volume("a FITS file")),
    (rb"(?:\x5c\x01\x00\x00|\x00\x00\x01\x5c).{340}n[i+]1", _volume("a NIfTI volume")),
    (rb"\x1a\x45\xdf\xa3|FLV\x01|\x00\x00\x01[\xb3\xba]|\x30\x26\xb2\x75|RIFF.{4}AVI ", _VIDEO),
    (rb"RIFF.{4}WAVE|OggS|ID3|fLaC|\xff[\xf2\xf3\xfa\xfb][^\x00\xff]|#!AMR|\.snd", _AUDIO),
    (rb"PK\x03\x04|PK\x05\x06", _archive("a ZIP")),
    (rb"\x1f\x8b", _archive("a gzip")),
    (rb"7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|.{257}ustar", _archive("an")),
    (
        rb"\xd0\xcf\x11\xe0|\x00\x05\x16\x07|\x00\x00\x00\x01Bud1",
        Kind("not-an-image", "a file that Office, Windows or macOS made beside the images: delete its task"),
    ),
    (
        rb"version https://git-lfs",
        Kind("not-an-image", "a Git LFS pointer, which stands for the image: fetch it by `git lfs pull`"),
    ),
    (
        rb"iVBORw0KGgo|/9j/|R0lGOD|data:image/",
        Kind("not-an-image", "an image as base64 text: save the image itself, or put data:image/png;base64, first"),
    ),
)  # fmt: skip
_COMPILED: Final = tuple((re.compile(start, re.DOTALL), kind) for start, kind in _STARTS)

_PLAYED: Final = (b"qt  ", b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"dash", b"3gp")

_PROCESSES: Final = {
    0xC3: "a lossless JPEG, as DICOM files hold it",
    0xC7: "a lossless JPEG, as DICOM files hold it",
    0xCB: "a lossless JPEG, as DICOM files hold it",
    0xF7: "a JPEG-LS, as DICOM files hold it",
    0xC5: "a hierarchical JPEG",
    0xC6: "a hierarchical JPEG",
    0xC9: "a JPEG in arithmetic coding",
    0xCA: "a JPEG in arithmetic coding",
}


def kind_of(content: bytes) -> Kind | None:
    """What a file is that could not be decoded; None for damage to a format that is, and for what nobody knows."""
    if (brands := iso_brands(content)) is not None:
        return _of_brands(brands)
    if content.startswith(b"\xff\xd8"):
        return _of_jpeg(content)
    for start, kind in _COMPILED:
        if start.match(content):
            return kind
    return _of_text(content[:_LOOKED_AT].lstrip(b"\xef\xbb\xbf \t\r\n").lower())


def _of_brands(brands: tuple[bytes, ...]) -> Kind | None:
    """Of a file in the container that video and photographs share; None for AVIF, which is decoded."""
    if {b"avif", b"avis"} & set(brands):
        return None
    first = brands[0]
    if first.startswith((b"M4A", b"M4B")):
        return _AUDIO
    if first in (b"jp2 ", b"jpx "):
        return _JPEG_2000
    if first == b"crx ":
        return _picture("a camera's raw file")
    photograph = any(brand[:3] in (b"hei", b"hev") or brand in (b"mif1", b"msf1") for brand in brands)
    return _HEIC if photograph and first not in _PLAYED else _VIDEO


def _of_jpeg(content: bytes) -> Kind | None:
    frame = jpeg_frame(content)
    if frame is None:
        return None
    process, bits = frame
    if process in _PROCESSES:
        return _picture(_PROCESSES[process])
    return _picture(f"a JPEG of {bits} bits") if bits != 8 else None


def _of_text(start: bytes) -> Kind | None:
    if start.startswith(b"<"):
        if b"<svg" in start and b"<html" not in start:
            return _SVG
        if start.startswith((b"<?xml", b"<error")):
            return Kind("not-an-image", f"an XML document: an error message of the storage? {_sentence(_ADDRESS)}")
        if re.match(rb"<(?:!doctype html|html|head|body|script|title|meta|!--)", start):
            return _HTML
    if start.startswith((b"{", b"[")):
        return Kind("not-an-image", f"a JSON document: an error message of the server? {_sentence(_ADDRESS)}")
    return None


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


Pixels: TypeAlias = npt.NDArray[np.uint8]

PREPROCESSING = "gray-squash-bilinear-2"
"""Names the path from bytes to pixels; part of every cache key and checkpoint. Change it with this module."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "DICOM")
"""What is decoded: what browsers show, but drawings and icons; and DICOM."""

# Every other decoder of Pillow stays out of reach of a hostile file, but for TIFF's in an import.
BY_PILLOW = ("JPEG", "PNG", "BMP", "GIF", "WEBP")

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
"""Orientations of a image that lies on its side: its width is its file's height."""
_JPEG_START = b"\xff\xd8"

# How the formats begin: such a file was meant to be an image.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89png\r\n", b"bm", b"gif8", b"riff")


class DecodedPixels(NamedTuple):
    """A image as the network sees it, and the shape that it had.

    Attributes:
        pixels: grey levels, 0 black to 255 white, rows from the top.
        size: width and height of the upright image in pixels.
    """

    pixels: UInt8[Pixels, "side side"]
    size: tuple[int, int]


def decode(content: bytes, side: int, name: str) -> UInt8[Pixels, "side side"]:
    """The pixels of ``decode_image``."""
    return decode_image(content, side, name).pixels


def decode_image(content: bytes, side: int, name: str) -> DecodedPixels:
    """Decode an image file to a grayscale square.

    The whole image is squashed to the square (ours): a crop could cut off a costophrenic angle. Transparency becomes
    black, which is what lies around a image. More than 8 bits are scaled by the smallest bit depth that holds the
    brightest pixel, because a 16-bit file with 10 or 12 bits in it does not say so.

    Args:
        content: the file: JPEG, PNG, BMP, GIF (first frame), WebP or AVIF, of any colour mode; or DICOM.
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
    except UndecodableImage:
        raise
    except ImageError as error:  # of DICOM
        raise UndecodableImage(f"image {name} cannot be decoded: {error}", error.kind) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # decoders raise anything: struct.error, SyntaxError, MemoryError, ...
        kind, reason = _describe(content, error)
        raise UndecodableImage(f"image {name} cannot be decoded: {reason}", kind) from error
    # After the resize: turning the square is cheaper than turning the image, and gives the same.
    turn = orientation(exif)
    upright = _UPRIGHT.get(turn)
    return DecodedPixels(
        np.asarray(square if upright is None else square.transpose(upright)), size[::-1] if turn in _LYING else size
    )


def _read_square(content: bytes, side: int, name: str) -> tuple[Image.Image, bytes, tuple[int, int]]:
    """The image as it lies in the file, squashed to the square; what its EXIF block says; and its size in the file."""
    if is_dicom(content):
        image = Image.fromarray(render_dicom(open_dicom(content)))
        return _square(image, side, None), b"", image.size
    if content.startswith(PNG_SIGNATURE):
        size = png_size(content)
        _require_decodable_size(size, name)
        with budget.hold(size[0] * size[1]):
            return _square(Image.fromarray(png_levels(content, size)), side, None), png_exif(content), size
    if {b"avif", b"avis"} & set(iso_brands(content) or ()):
        size = avif_size(content)
        _require_decodable_size(size, name)
        with budget.hold(2 * size[0] * size[1]):  # of 12 bits, it takes 24 bytes a pixel
            # Already upright: an AVIF is turned by a property of its own, and EXIF's is to be ignored.
            return _square(Image.fromarray(avif_levels(content, size)), side, None), b"", size
    exif = b""
    if content.startswith(_JPEG_START):
        jpeg = bare_jpeg(content)
        if jpeg.scans > MAX_SCANS:
            raise ValueError(f"{jpeg.scans:,} scans, at most {MAX_SCANS} are decoded")
        content, exif = jpeg.content, jpeg.exif
    # Pillow reads the header, which says what the fast decoder may be given.
    with Image.open(io.BytesIO(content), formats=BY_PILLOW) as image:
        size = image.size
        _require_decodable_size(size, name)
        # JPEG only: decodes at the smallest of 1, 1/2, 1/4, 1/8 that is still at least as large as the square.
        drafted = image.draft("L", (side, side))
        with budget.hold(_pixels_in_memory(image, size)):
            square = _square(_gray(image, content, size), side, None if drafted is None else drafted[1])
        return square, exif or image.info.get("exif", b""), size


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
    # The box ends where the image does: an eighth of 2,500 rows is 312.5, and the last of the 313 is half padding.
    if image.mode == "L":
        return image.resize((side, side), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    bits = max(8, int(np.asarray(image).max()).bit_length())
    small = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    return Image.fromarray((small * (255.0 / (2**bits - 1))).round().astype(np.uint8))


def _too_large(name: str, size: str) -> UndecodableImage:
    return UndecodableImage(
        f"image {name} is too large: {size} pixels, at most {MAX_PIXELS:,} are decoded: shrink it", "too-large"
    )


def _describe(content: bytes, error: Exception) -> tuple[ImageErrorKind, str]:
    if not content:
        return "empty", "the file is empty: export the image again"
    if (kind := kind_of(content)) is not None:
        return kind.error, f"it is {kind.words}"
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
