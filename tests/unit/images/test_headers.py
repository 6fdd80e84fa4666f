import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ml_backend.errors import ImageError
from ml_backend.images.decode import bare_jpeg, decode, orientation, png_exif, png_size
from tests.unit.images.files import chunk, encode, film, png_header

EXIF = b"Exif\0\0"


def directory(entries: list[tuple[int, int, int, int]], order: str = ">") -> bytes:
    """A TIFF header and a directory of 16-bit values."""
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHIHH", *entry, 0) for entry in entries)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    return encode(Image.fromarray(film(48, 40)), "JPEG")


class TestBareJpeg:
    def test_drops_what_decoding_does_not_need(self, jpeg):
        extra = segment(0xE1, EXIF + b"mine") + segment(0xE2, b"profile") + segment(0xFE, b"words")

        bare = bare_jpeg(jpeg[:2] + extra + jpeg[2:])

        assert (bare.content, bare.exif, bare.scans) == (jpeg, EXIF + b"mine", 1)

    def test_keeps_what_the_colours_mean(self):
        """Adobe's segment says that CMYK is inverted."""
        cmyk = encode(Image.fromarray(film(48, 40)).convert("CMYK"), "JPEG")

        assert b"Adobe" in cmyk
        assert bare_jpeg(cmyk).content == cmyk

    def test_the_first_exif_counts(self, jpeg):
        extra = segment(0xE1, b"http://ns.adobe.com/xap/1.0/") + segment(0xE1, EXIF + b"1") + segment(0xE1, EXIF + b"2")

        assert bare_jpeg(jpeg[:2] + extra + jpeg[2:]).exif == EXIF + b"1"

    @pytest.mark.parametrize("astray", [b"\xff" * 50, b"lost", b"\xff\0\xff\0", b"\xff\xd0"])
    def test_bytes_gone_astray_are_left_out(self, jpeg, astray):
        assert bare_jpeg(jpeg[:2] + astray + jpeg[2:]).content == jpeg

    @pytest.mark.parametrize("shift", [0, 1])
    def test_counts_the_scans_at_even_and_at_odd_places(self, shift):
        content = encode(Image.fromarray(film(48, 40)), "JPEG", progressive=True)
        start = content.index(b"\xff\xda")
        content = content[:start] + segment(0xDB, bytes(65 + shift)) + content[start : start + 20] * 6

        assert bare_jpeg(content).scans == 6

    def test_a_scan_of_all_components_is_the_only_one(self, jpeg):
        """The decoder takes no other, so that none is counted: counting takes its time."""
        start = jpeg.index(b"\xff\xda")
        content = jpeg[:start] + jpeg[start:-2] * 200 + jpeg[-2:]

        assert bare_jpeg(content).scans == 1
        with pytest.raises(ImageError):
            decode(content, 32, "x")

    def test_a_scan_of_one_component_out_of_three_is_not(self):
        colours = bytearray(encode(Image.fromarray(film(48, 40)).convert("RGB"), "JPEG"))
        colours[colours.index(b"\xff\xda") + 4] = 1

        assert bare_jpeg(bytes(colours) + b"\xff\xda" * 9).scans == 10

    def test_a_progressive_file_has_several(self):
        content = encode(Image.fromarray(film(48, 40)), "JPEG", progressive=True)

        assert bare_jpeg(content).scans == content.count(b"\xff\xda") > 1

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"\xff\xd8", "ends before its picture"),
            (b"\xff\xd8" + segment(0xE1, b"x"), "ends before its picture"),
            (b"\xff\xd8\xff\xe1\xff\xff", "ends before its picture"),
            (b"\xff\xd8" + segment(0xFE, b"") * 10_001, "more than 10,000 segments"),
        ],
    )
    def test_without_a_picture(self, content, says):
        with pytest.raises(ValueError, match=says):
            bare_jpeg(content)

    @given(st.binary(max_size=400))
    @settings(deadline=None)
    def test_any_bytes_give_a_file_or_a_value_error(self, tail):
        try:
            bare = bare_jpeg(b"\xff\xd8" + tail)
        except ValueError:
            return
        assert len(bare.content) <= len(tail) + 2


class TestPng:
    def test_size(self):
        assert png_size(png_header(70_000, 3)) == (70_000, 3)

    @pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", png_header(7, 3)[:20], b"\x89PNG\r\n\x1a\n" + bytes(40)])
    def test_no_size(self, content):
        with pytest.raises(ValueError, match="does not begin with its size"):
            png_size(content)

    def test_exif_before_the_pixels(self):
        content = encode(Image.fromarray(film(48, 40)))

        assert png_exif(content[:33] + chunk(b"eXIf", b"block") + content[33:]) == b"block"
        assert png_exif(content[:-12] + chunk(b"eXIf", b"block") + content[-12:]) == b""
        assert png_exif(content) == b""


class TestOrientation:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("value", range(1, 9))
    def test_in_both_byte_orders(self, value, order):
        entries = [(256, 3, 1, 7), (0x0112, 3, 1, value), (0x0113, 3, 1, 9)]

        assert orientation(EXIF + directory(entries, order)) == value
        assert orientation(directory(entries, order)) == value

    @pytest.mark.parametrize("value", range(1, 9))
    def test_as_pillow_writes_it(self, value):
        exif = Image.Exif()
        exif[0x0112] = value

        assert orientation(exif.tobytes()) == value

    @pytest.mark.parametrize(
        "exif",
        [
            b"",
            EXIF,
            b"MM\0*",
            directory([]),
            directory([(0x0112, 3, 1, 0)]),
            directory([(0x0112, 3, 1, 9)]),
            directory([(0x0112, 4, 1, 6)]),  # of another type, which browsers do not take
            directory([(0x0112, 3, 2, 6)]),
            directory([(0x0112, 3, 1, 6)])[:-3],
            b"MM\0*\xff\xff\xff\xff\0\1",
        ],
    )
    def test_nonsense_is_upright(self, exif):
        assert orientation(exif) == 1

    @given(st.binary(max_size=80))
    @settings(deadline=None)
    def test_any_block_has_one(self, tail):
        assert orientation(b"II*\0" + tail) in range(1, 9)

    def test_a_long_directory_is_read_to_its_end_and_no_further(self):
        block = b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(np.zeros(1_000, np.uint8))

        assert orientation(block) == 1
