"""Files of every kind that a task may lead to: those that are read, and those that are named.

The tests in ``tests/unit`` decode them; the system tests show them to Chromium.
"""

import io
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.unit.images.files import chunk, encode, film

GRAY = Image.fromarray(film(64, 48))
RGB = GRAY.convert("RGB")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="48" height="64"><rect width="9" height="9"/></svg>'
HTML = "an HTML page: was it a login page? Give an address"
ERROR = "Open the image's address in a browser"
CUT_OFF = "a DICOM file that is cut off before it says"
SHOWN = "convert it to PNG or JPEG"
CONVERT = f" cannot show: {SHOWN}"


def box(brand: bytes, *brands: bytes) -> bytes:
    body = brand + bytes(4) + b"".join(brands)
    return (8 + len(body)).to_bytes(4) + b"ftyp" + body + bytes(100)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", encode(GRAY))
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, film(64, 48))
    return file.getvalue()


def jpeg_of(process: int, bits: int = 8) -> bytes:
    content = encode(GRAY, "JPEG")
    place = content.index(b"\xff\xc0")
    return (
        content[: place + 1]
        + bytes((process,))
        + content[place + 2 : place + 4]
        + bytes((bits,))
        + content[place + 5 :]
    )


def _animated(kind: str) -> bytes:
    return encode(RGB, kind, save_all=True, append_images=[Image.fromarray(255 - film(64, 48)).convert("RGB")])


def _turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(GRAY, kind, exif=exif)


def _interlaced() -> bytes:
    """A PNG of 1 x 1 in Adam7: its first pass is all of it."""
    header = b"\0\0\0\1\0\0\0\1\x08\0\0\0\1"
    body = b"".join((chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0\x80")), chunk(b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + body


# What browsers show, and what is read.
READ: dict[str, bytes] = {
    "PNG": encode(GRAY),
    "PNG of 16 bits": encode(Image.fromarray(film(64, 48).astype(np.uint16) * 257)),
    "PNG of 1 bit": encode(GRAY.convert("1")),
    "PNG with alpha": encode(GRAY.convert("RGBA")),
    "PNG of a palette with transparency": encode(GRAY.convert("P"), transparency=bytes(range(256))),
    "interlaced PNG": _interlaced(),
    "animated PNG": _animated("PNG"),
    "JPEG": encode(RGB, "JPEG"),
    "progressive JPEG": encode(RGB, "JPEG", progressive=True),
    "JPEG in CMYK": encode(RGB.convert("CMYK"), "JPEG"),
    "JPEG turned by EXIF": _turned("JPEG"),
    "MPO": encode(RGB, "MPO", save_all=True, append_images=[RGB]),
    "GIF": encode(GRAY, "GIF"),
    "animated GIF": _animated("GIF"),
    "BMP": encode(RGB, "BMP"),
    "BMP of 1 bit": encode(GRAY.convert("1"), "BMP"),
    "WebP": encode(RGB, "WEBP"),
    "lossless WebP with alpha": encode(GRAY.convert("RGBA"), "WEBP", lossless=True),
    "animated WebP": _animated("WEBP"),
    "AVIF": encode(RGB, "AVIF"),
    "AVIF with alpha": encode(GRAY.convert("RGBA"), "AVIF"),
    "AVIF turned": _turned("AVIF"),
    "animated AVIF": _animated("AVIF"),
}

# What it is -> the file, its trouble, how the message says it.
KINDS: dict[str, tuple[bytes, str, str]] = {
    "HEIC": (box(b"heic", b"mif1", b"heic"), "unsupported", f"a HEIC photograph (HEIF), which browsers{CONVERT}"),
    "HEIC as mif1": (box(b"mif1", b"mif1", b"heic"), "unsupported", "a HEIC photograph"),
    "HEIC of one brand": (box(b"heix", b"heix"), "unsupported", "a HEIC photograph"),
    "JPEG 2000": (encode(RGB, "JPEG2000"), "unsupported", f"a JPEG 2000, which browsers{CONVERT}"),
    "JPEG 2000 codestream": (encode(RGB, "JPEG2000", no_jp2=True), "unsupported", "a JPEG 2000"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "unsupported", "a JPEG XL"),
    "lossless JPEG": (jpeg_of(0xC3, 16), "unsupported", "a lossless JPEG, as DICOM files hold it"),
    "JPEG-LS": (jpeg_of(0xF7), "unsupported", "a JPEG-LS, as DICOM files hold it"),
    "JPEG of 12 bits": (jpeg_of(0xC1, 12), "unsupported", "a JPEG of 12 bits"),
    "DICOM": (bytes(128) + b"DICM" + bytes(400), "damaged", CUT_OFF),
    "DICOM without preamble": (b"\x08\0\5\0CS\x0a\0ISO_IR 100" + bytes(400), "damaged", CUT_OFF),
    "DICOM of implicit types": (b"\x08\0\x16\0\x1a\0\0\x001.2.840.10008" + bytes(400), "not-an-image", "without a"),
    "DICOM of meta elements": (b"\2\0\0\0UL\4\0" + bytes(400), "damaged", CUT_OFF),
    "CMS envelope": (bytes.fromhex("308006092a864886f70d010703a080") + bytes(99), "unsupported", "an encrypted"),
    "CMS envelope of a length": (bytes.fromhex("3082104006092a864886f70d010703"), "unsupported", "an encrypted"),
    "NIfTI": (b"\x5c\1\0\0" + bytes(340) + b"n+1\0" + bytes(99), "unsupported", "a NIfTI volume"),
    "NumPy": (array(), "unsupported", "a NumPy array, which browsers cannot show: export it as PNG of 8 or 16"),
    "TIFF": (encode(RGB, "TIFF"), "unsupported", f"a TIFF, which browsers cannot show: {SHOWN}"),
    "BigTIFF": (b"II+\0\x08\0\0\0" + bytes(99), "unsupported", "a TIFF"),
    "PGM": (encode(GRAY, "PPM"), "unsupported", "a PGM or PPM"),
    "icon": (encode(GRAY, "ICO"), "unsupported", f"an icon (ICO): {SHOWN}"),
    "cursor": (b"\0\0\2\0" + encode(GRAY, "ICO")[4:], "unsupported", "an icon (ICO)"),
    "SVG": (SVG, "unsupported", "an SVG drawing: export it as PNG or JPEG"),
    "SVG with a declaration": (b'<?xml version="1.0"?>\n<!DOCTYPE svg>' + SVG, "unsupported", "an SVG drawing"),
    "SVG behind a comment": (b"<!-- Generator: Inkscape -->" + SVG, "unsupported", "an SVG drawing"),
    "PDF": (b"%PDF-1.7\n", "unsupported", "a PDF: export its page as PNG or JPEG"),
    "PostScript": (encode(RGB, "EPS"), "unsupported", "a PostScript drawing"),
    "MP4": (box(b"isom", b"isom", b"avc1"), "not-an-image", "a video: export one of its frames"),
    "MOV": (box(b"qt  "), "not-an-image", "a video"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(60), "not-an-image", "a video"),
    "AVI": (b"RIFF\0\0\1\0AVI LIST" + bytes(60), "not-an-image", "a video"),
    "MP3": (b"ID3\4" + bytes(60), "not-an-image", "a sound recording"),
    "M4A": (box(b"M4A "), "not-an-image", "a sound recording"),
    "WAV": (b"RIFF\0\0\1\0WAVEfmt " + bytes(60), "not-an-image", "a sound recording"),
    "ZIP": (zipped(), "not-an-image", "a ZIP archive: unpack it first"),
    "tar": (tarred(), "not-an-image", "an archive: unpack it first"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "not-an-image", "a gzip archive"),
    "a file of macOS": (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60), "not-an-image", "delete its task"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "not-an-image", "fetch it by `git lfs pull`"),
    "base64": (b"iVBORw0KGgoAAAANSUhEUg", "not-an-image", "an image as base64 text"),
    "login page": (b"\n<!DOCTYPE html><html><title>Log in</title>", "not-an-image", HTML),
    "page with a drawing": (b"<html><body><svg/></body></html>", "not-an-image", HTML),
    "part of a page": (b"<!-- 404 --><p>gone", "not-an-image", HTML),
    "JSON": (b'{"detail": "not found"}', "not-an-image", f"a JSON document: an error message of the server? {ERROR}"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "not-an-image", f"the storage? {ERROR}"),
    "XML without a declaration": (b"<Error><Code>AccessDenied</Code></Error>", "not-an-image", "an XML document"),
    "nothing": (b"", "empty", "the file is empty: export the image again"),
    "text": (b"hello, world", "not-an-image", "no JPEG, PNG, BMP, GIF, WEBP, AVIF, DICOM: convert the image"),
    "half a JPEG": (encode(RGB, "JPEG")[:500], "damaged", "export it again, as PNG or JPEG"),
}  # fmt: skip
