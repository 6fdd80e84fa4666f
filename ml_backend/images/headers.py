"""What a JPEG or PNG says about itself before its pixels, read by hand: no library is let near a hostile header.

Pillow reads a PNG's chunks and a JPEG's segments one by one in Python, and an EXIF block into memory whole.
"""

import re
import struct
from dataclasses import dataclass

import numpy as np

__all__ = ["PNG_SIGNATURE", "BareJpeg", "bare_jpeg", "iso_brands", "jpeg_frame", "orientation", "png_exif", "png_size"]

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
    """How a film lies in its file: EXIF's number from 1, upright, to 8; 1 where the block says nothing or nonsense.

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
