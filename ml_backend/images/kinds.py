"""What a file is that is no image which can be decoded, told by its first bytes; with a way out for its owner."""

import re
from typing import Final, NamedTuple

from ml_backend.images.headers import iso_brands, jpeg_frame
from ml_backend.images.troubles import Trouble

__all__ = ["Kind", "kind_of"]


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        trouble: that it makes.
        words: what it is, and what to do, such as "a PDF: export its page as PNG or JPEG".
    """

    trouble: Trouble
    words: str


_LOOKED_AT: Final = 4096
_CONVERT: Final = "convert it to PNG or JPEG"
_DEEP: Final = "export it as PNG of 8 or 16 bits"
_FRAME: Final = "export one of its frames as PNG or JPEG"
_ADDRESS: Final = "open the image's address in a browser; it must lead to the image itself"

_DICOM: Final = Kind("unsupported", f"a DICOM file, which browsers cannot show: {_DEEP}, its window applied")
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

# A data set of DICOM without the preamble of 128 bytes: a first element of group 2 or 8, with its type or its length.
_BARE_DICOM: Final = re.compile(
    rb"(?:\x02\x00[\x00\x01\x02\x10\x12]\x00|\x08\x00[\x00\x01\x05\x08\x12\x14\x16\x18\x20]\x00)(?:[A-Z]{2}|..\x00\x00)",
    re.DOTALL,
)
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
    if content[128:132] == b"DICM" or _BARE_DICOM.match(content):
        return _DICOM
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
