"""A corpus of damaged and hostile image files, made here and the same at every run.

Each file is either decoded or refused with a named trouble; what a browser would show is decoded.
"""

import base64
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.errors import ImageErrorKind
from tests.unit.images.files import chunk, deep_png, encode, film, png_header, ramp

# As libvips writes 8,900 x 8,900 equal pixels with 12 bits a channel, in its slowest of ways to be decoded.
LARGE_AVIF = (
    b"c-muNV30{GsVqn=%S>Ycg51nBLl8SRGZDyV6wgg9No0Tk#f+4kA}E`oATzmy0S%aB=Hw@X7%mPBObm=57Na$UW?*2u1{4DV4"
    b"ndd*!#*Ik$jr<GTMU*J1#(is%7AJT%M1(|kOUb)N?a=-?&K@TEXiens$>YuEGQ}fn^usV52Se#%M6_x<C8%0BALYnsSpd5jz"
    b"BPjKtX0jCP;*thldA9iDee#!o11Iz{uRl#0+FfWfrBTK}GqJQ;L(pz5?3EJ|{ONu|$Z0i#z^%(&292wT!%M9Y#lZg-<#qvmC"
    b"kXYwW1Nzz}%;3{S$oFwV6blrJmZ`|>a6-*fA2UBbQ-7*l@nCeN6DkLUC3*N?7TU1l5`dg}U<_*vg~$t%YRb+b3u_*u!mW3f-"
    b"vu??C~wo_=0u|*9J`#avFyhFptCQ^*NVUjbQ`9}Yh**m8&DT-}reR=!R@02{lrBQ;P4kp`j#U)+2Cg9I~XJz}-N<}M+i~Ah@"
    b"&R1?+B>Tkw!TJwe3PzTa%Tq-TJIqu3raSl7;ysJ3W_()2ZW@*_8u+7uKQaTqo$B6lKX*oHhw!R?#*jtgJzu|_uiYhN*tRV8E"
    b"!X15*IutMy`X$>w_@(vF55^`)1Hmu7gUxP3vbDp5-{ozbcYOd>aaMT6T6U&@0QqHgN+9+RAxkWb#L8XCDE%sbComGzw@Di!c"
    b"28JpsE^D$$ENfF>rvm3_^^|;A$3xr5ITuRW1-qL)mdatN~R6s=bAo5b87AS->=`BDDav5MD4NXf_6h3G56kKp6ugLj%T%5H="
    b"&I0$u<WH#9I{TmUig|9_wj3m_&QQ3BTANNf-Q09@6Sr2"
)

Wanted: TypeAlias = Literal["a film"] | ImageErrorKind | None

SEED = 5
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = chunk(b"IEND", b"")


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: a film, a refusal with that trouble, or (None) either of both."""

    name: str
    content: bytes
    wanted: Wanted


def corpus() -> Iterator[Case]:
    """Every file, cheap ones first."""
    yield from _impostors()
    yield from _sizes_and_modes()
    yield from _unusual()
    yield from _truncated()
    yield from _flipped()
    yield from _claims()
    yield from _zip_bombs()
    yield from _long_ways()
    yield from _at_the_limit()


def zeros_deflated(length: int) -> bytes:
    """So many zero bytes as a zlib stream, a thousandth as long, made in a moment."""
    block = 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(length % block)) + packer.flush()
    checksum = struct.pack(">I", (length % 65521) << 16 | 1)  # Adler-32 of zeros
    return b"\x78\xda" + one * (length // block) + rest + checksum


def blank_png(width: int, height: int, *, bits: int = 8, colour: int = 0, interlaced: bool = False) -> bytes:
    """A whole PNG of zeros, however large."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    # The interlaced passes have a filter byte for each of their rows: two more rows' worth is enough for any.
    rows = height if not interlaced else 2 * height
    length = height * ((width * channels * bits + 7) // 8) + rows
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", zeros_deflated(length)) + PNG_END


def _impostors() -> Iterator[Case]:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    svg = f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY l0 "ha">{laughs}]><svg><text>&l9;</text></svg>'
    yield Case("zero bytes", b"", "empty")
    yield Case("HTML saved as .jpg", b"<!DOCTYPE html><html><body>Log in</body></html>", "not-an-image")
    yield Case("SVG", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "unsupported")
    yield Case("SVG with a billion laughs", svg.encode(), "unsupported")
    yield Case("JSON", b'{"detail": "gone"}', "not-an-image")
    yield Case("ZIP", b"PK\x03\x04" + bytes(100), "not-an-image")
    yield Case("gzip bomb", b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros_deflated(2**24)[2:], "not-an-image")
    yield Case("DICOM", bytes(128) + b"DICM" + bytes(400), "damaged")
    yield Case("PDF", b"%PDF-1.7\n", "unsupported")
    yield Case("TIFF", encode(Image.fromarray(ramp()), "TIFF"), "unsupported")
    yield Case("TIFF bomb", _tiff(60_000), "unsupported")
    yield Case("ICO", encode(Image.fromarray(ramp(32, 32)), "ICO"), "unsupported")
    yield Case(
        "EPS, which Pillow would hand to Ghostscript",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "unsupported",
    )
    yield Case("noise", np.random.default_rng(SEED).bytes(5000), "not-an-image")
    yield Case("JPEG's first bytes and noise", b"\xff\xd8\xff\xe0" + np.random.default_rng(SEED).bytes(5000), "damaged")
    yield Case("zeros", bytes(100_000), "not-an-image")


def _sizes_and_modes() -> Iterator[Case]:
    for width, height in ((1, 1), (1, 3000), (3000, 1), (20_000, 2)):
        levels = Image.fromarray(ramp(height, width))
        for kind in ("PNG", "JPEG", "BMP", "GIF"):
            yield Case(f"{kind} {width} x {height}", encode(levels, kind), "a film")
    gray = Image.fromarray(film(97, 61))
    yield Case("PNG of one bit", encode(gray.convert("1")), "a film")
    yield Case("PNG palette with alpha", encode(gray.convert("P"), transparency=bytes(range(256))), "a film")
    yield Case("PNG gray and alpha", encode(gray.convert("LA")), "a film")
    yield Case("PNG 16 bits", encode(Image.fromarray(film(97, 61).astype(np.uint16) * 257)), "a film")
    colours: npt.NDArray[np.uint16] = np.full((9, 9, 4), 999, np.uint16)
    yield Case("PNG 16 bits RGBA", deep_png(colours.astype(">u2").view(np.uint16), 6), "a film")
    yield Case("JPEG CMYK", encode(gray.convert("CMYK"), "JPEG"), "a film")
    yield Case("JPEG named .png", encode(gray, "JPEG"), "a film")
    yield Case("AVIF", encode(gray, "AVIF"), "a film")
    yield Case("AVIF with alpha", encode(gray.convert("RGBA"), "AVIF"), "a film")
    yield Case("WebP with alpha", encode(gray.convert("RGBA"), "WEBP", lossless=True), "a film")


def _unusual() -> Iterator[Case]:
    pictures = [Image.fromarray(film(64, 48) // (n + 1)) for n in range(30)]
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        animated = encode(pictures[0], kind, save_all=True, append_images=pictures[1:])
        yield Case(f"animated {kind}", animated, "a film")
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        yield Case(f"{kind} turned by EXIF", encode(pictures[0], kind, exif=exif), "a film")
    jpeg, gif = encode(pictures[0], "JPEG"), encode(pictures[0], "GIF")
    yield Case("JPEG and ZIP in one", jpeg + b"PK\x03\x04" + bytes(500) + b"PK\x05\x06" + bytes(18), "a film")
    yield Case("GIF and JavaScript in one", gif + b"/*" + b"*/alert(1)//", "a film")
    script = chunk(b"tEXt", b"Comment\0<script>alert(1)</script>")
    png = encode(pictures[0])
    yield Case("PNG with HTML inside", png[:33] + script + png[33:], "a film")
    yield Case("PNG with another PNG behind it", png + png, "a film")
    yield Case("progressive JPEG", encode(pictures[0], "JPEG", progressive=True), "a film")
    yield Case("MPO", encode(pictures[0], "MPO", save_all=True, append_images=pictures[1:3]), "a film")
    yield Case(
        "JPEG with a broken EXIF", jpeg[:2] + _segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff") + jpeg[2:], "a film"
    )


def _truncated() -> Iterator[Case]:
    whole = Image.fromarray(film(160, 120))
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("WEBP", {}),
        ("AVIF", {}),
    ):
        content = encode(whole, kind, **options)
        for part in range(1, 20):
            end = len(content) * part // 20
            yield Case(f"{kind} {options or ''} cut off at byte {end}", content[:end], "damaged")
        # What is missing holds no pixel: some decoders mind, some do not.
        yield Case(f"{kind} {options or ''} without its last 2 bytes", content[:-2], None)


def _flipped() -> Iterator[Case]:
    rng = np.random.default_rng(SEED)
    whole = Image.fromarray(film(64, 48))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "AVIF"):
        content = encode(whole, kind)
        for number in range(30):
            flipped = bytearray(content)
            # Half of them in the headers, where they hurt most.
            place = int(rng.integers(64 if number % 2 else len(content)))
            flipped[place] ^= 1 << int(rng.integers(8))
            yield Case(f"{kind} with a bit flipped in byte {place} ({number})", bytes(flipped), None)


def _claims() -> Iterator[Case]:
    """Small files that say they are huge."""
    yield Case("PNG header of 60,000 x 60,000", png_header(60_000, 60_000), "too-large")
    yield Case("PNG header of 2 thousand million x 1", png_header(2**31 - 1, 1), "too-large")
    yield Case("PNG 50,000 x 50,000, whole", blank_png(50_000, 50_000), "too-large")
    for progressive in (False, True):
        jpeg = bytearray(encode(Image.fromarray(ramp()), "JPEG", progressive=progressive))
        frame = jpeg.index(b"\xff\xc2" if progressive else b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
        yield Case(f"JPEG frame of 65,535 x 65,535, progressive {progressive}", bytes(jpeg), "too-large")
    gif = bytearray(encode(Image.fromarray(ramp()), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield Case("GIF screen of 65,535 x 65,535", bytes(gif), "too-large")
    gif = bytearray(encode(Image.fromarray(ramp()), "GIF"))
    place = gif.index(b",\0\0\0\0", 13)
    gif[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    yield Case("GIF frame larger than its screen", bytes(gif), None)
    bmp = bytearray(encode(Image.fromarray(ramp()), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield Case("BMP header of 60,000 x 60,000", bytes(bmp), "too-large")
    bmp[18:26] = struct.pack("<ii", -(2**31), 2**31 - 1)
    yield Case("BMP header of a negative size", bytes(bmp), None)
    bmp[18:26] = struct.pack("<ii", 8_000, 8_000)
    yield Case("BMP that claims 8,000 x 8,000", bytes(bmp), "damaged")
    sizes: tuple[tuple[int, int, tuple[int, int], Wanted], ...] = (
        (9_000, 9_000, (48, 64), "too-large"),
        (8_900, 8_900, (48, 64), None),
        (60_000, 60_000, (48, 64), None),
        (48, 64, (6_000, 6_000), None),
    )
    for width, height, coded, wanted in sizes:
        avif = _avif_that_says(width, height, coded)
        yield Case(f"AVIF of {width} x {height} that holds {coded[0]} x {coded[1]}", avif, wanted)
    yield Case("WebP canvas of 16,384 x 16,384", _webp_canvas(16_384), "too-large")
    yield Case("WebP canvas of 8,900 x 8,900 around a small frame", _webp_canvas(8_900), None)


def _zip_bombs() -> Iterator[Case]:
    png = encode(Image.fromarray(film(64, 48)))
    gigabyte = zeros_deflated(2**30)
    profile = chunk(b"iCCP", b"p\0\0" + gigabyte)
    yield Case("PNG with 1 GiB of profile", png[:33] + profile + png[33:], None)
    text = chunk(b"zTXt", b"t\0\0" + gigabyte)
    yield Case("PNG with 1 GiB of text", png[:33] + text + png[33:], None)
    texts = b"".join(chunk(b"zTXt", b"t%d\0\0" % n + zeros_deflated(2**20 - 1)) for n in range(300))
    yield Case("PNG with 300 texts of 1 MiB", png[:33] + texts + png[33:], None)
    international = chunk(b"iTXt", b"t\0\1\0\0\0" + gigabyte)
    yield Case("PNG with 1 GiB of international text", png[:33] + international + png[33:], None)
    pixels = chunk(b"IDAT", gigabyte)
    yield Case("PNG with 1 GiB behind its pixels", png[:33] + pixels + PNG_END, None)
    jpeg = encode(Image.fromarray(film(64, 48)), "JPEG")
    # An IFD of 5,000 entries that all point at the same 60,000 bytes.
    entries = b"".join(struct.pack(">HHII", 1000 + n, 7, 60_000, 8) for n in range(5_000))
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5_000) + entries
    yield Case("JPEG with 300 MB of EXIF in 60 kB", jpeg[:2] + _segment(0xE1, exif) + jpeg[2:], "a film")
    more = _segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 500
    yield Case("JPEG with 500 EXIF segments", jpeg[:2] + _segment(0xE1, exif) + more + jpeg[2:], "a film")
    long_exif = exif[6:] + bytes(2**25)
    empty = b"MM\0*\0\0\0\x08\0\0" + bytes(2**25)
    yield Case("AVIF with 32 MiB of EXIF", encode(Image.fromarray(film(64, 48)), "AVIF", exif=empty), "a film")
    yield Case("PNG with 32 MiB of EXIF", png[:33] + chunk(b"eXIf", long_exif) + png[33:], None)


def _long_ways() -> Iterator[Case]:
    """Files that are small in memory and long in time."""
    png = encode(Image.fromarray(film(64, 48)))
    yield Case("PNG with 400,000 empty chunks", png[:33] + chunk(b"abCd", b"") * 400_000 + png[33:], None)
    jpeg = encode(Image.fromarray(film(64, 48)), "JPEG")
    comment = _segment(0xFE, bytes(999))
    yield Case("JPEG with 5,000 comments", jpeg[:2] + comment * 5_000 + jpeg[2:], "a film")
    yield Case("JPEG with 20,000 comments", jpeg[:2] + comment * 20_000 + jpeg[2:], "damaged")
    yield Case("JPEG with a million fill bytes", jpeg[:2] + b"\xff" * 10**6 + jpeg[2:], None)
    yield Case("progressive JPEG of 64 million pixels with 5,000 scans", _many_scans(8_000, 5_000), "damaged")
    gif = encode(Image.fromarray(ramp()), "GIF")
    long = b"!\xfe" + (b"\xff" + bytes(255)) * 60_000 + b"\0"
    place = gif.index(b",\0\0\0\0", 13)
    yield Case("GIF with 15 MB of comment", gif[:place] + long + gif[place:], "a film")
    frames = [Image.new("L", (1, 1), n % 256) for n in range(3_000)]
    yield Case("GIF of 3,000 frames", encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a film")


def _at_the_limit() -> Iterator[Case]:
    """The largest that is decoded: what one image may cost at most."""
    yield Case("PNG gray of 79 million pixels", blank_png(8_900, 8_900), "a film")
    yield Case("PNG RGBA of 79 million pixels in 16 bits", blank_png(8_900, 8_900, bits=16, colour=6), "a film")
    interlaced = blank_png(8_900, 8_900, bits=16, colour=6, interlaced=True)
    yield Case("PNG RGBA of 79 million pixels in 16 bits, interlaced", interlaced, "a film")
    whole = Image.new("RGB", (8_900, 8_900), (200, 100, 50))
    yield Case("progressive JPEG of 79 million pixels", encode(whole, "JPEG", progressive=True), "a film")
    yield Case("CMYK JPEG of 79 million pixels", encode(whole.convert("CMYK"), "JPEG"), "a film")
    yield Case("BMP of 79 million pixels", encode(whole, "BMP"), "a film")
    del whole
    deep = zlib.decompress(base64.b85decode(LARGE_AVIF))
    yield Case("AVIF of 79 million pixels in 12 bits", deep, "a film")
    yield Case("GIF of 79 million pixels", encode(Image.new("P", (8_900, 8_900)), "GIF"), "a film")


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _avif_that_says(width: int, height: int, coded: tuple[int, int]) -> bytes:
    """An AVIF whose container says another size than its picture has."""
    avif = bytearray(encode(Image.new("L", coded, 99), "AVIF"))
    place = avif.index(b"ispe") + 8
    avif[place : place + 8] = struct.pack(">II", width, height)
    return bytes(avif)


def _tiff(side: int) -> bytes:
    entries = ((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9))
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", 6) + b"".join(struct.pack("<HHII", *one) for one in entries) + bytes(4)
    )


def _webp_canvas(side: int) -> bytes:
    """A frame of 48 x 64 on a canvas of ``side``, as an animation has it."""
    still = encode(Image.fromarray(film(64, 48)), "WEBP")[12:]
    size = (side - 1).to_bytes(3, "little")
    header = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size * 2
    timing = b"ANIM" + struct.pack("<I", 6) + bytes(6)
    place = bytes(6) + (47).to_bytes(3, "little") + (63).to_bytes(3, "little") + bytes(3) + b"\0"
    frame = b"ANMF" + struct.pack("<I", len(place) + len(still)) + place + still
    body = b"WEBP" + header + timing + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG that refines the same nothing again and again."""
    jpeg = encode(Image.new("L", (16, 16), 99), "JPEG", progressive=True)
    frame = jpeg.index(b"\xff\xc2")
    jpeg = jpeg[: frame + 5] + struct.pack(">HH", side, side) + jpeg[frame + 9 :]
    first = jpeg.index(b"\xff\xda")
    # One block of one component, from the second coefficient on: its end-of-band run covers the whole picture.
    scan = jpeg[first : jpeg.index(b"\xff", first + 12)]
    return jpeg[:first] + scan * scans + jpeg[first:]
