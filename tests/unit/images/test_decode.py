import contextlib
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ml_backend.errors import ImageError
from ml_backend.images.decode import MAX_PIXELS, _Room, _room, decode


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(height: int = 96, width: int = 64) -> npt.NDArray[np.uint8]:
    """Dark at the left, bright at the right."""
    return np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width)).copy()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


class TestDecode:
    def test_keeps_levels_of_an_image_that_has_the_side(self) -> None:
        levels = np.array([[0, 50], [200, 255]], dtype=np.uint8).repeat(16, 0).repeat(16, 1)

        assert np.array_equal(decode(encode(Image.fromarray(levels)), 32, "x"), levels)

    def test_averages_what_it_shrinks(self) -> None:
        """Black and white columns by turns are grey from afar; picking every n-th pixel would keep one of them."""
        stripes = np.tile(np.array([0, 255], dtype=np.uint8), (128, 64))

        small = decode(encode(Image.fromarray(stripes)), 32, "x")

        assert abs(small[8:24, 8:24].astype(int) - 127).max() <= 16

    @pytest.mark.parametrize(
        ("kind", "mode"),
        [("PNG", mode) for mode in ("L", "LA", "P", "RGB", "RGBA")]
        + [("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
        + [("WEBP", mode) for mode in ("L", "RGB", "RGBA")]
        + [("BMP", "L"), ("BMP", "P"), ("BMP", "RGB"), ("GIF", "L"), ("GIF", "P")],
    )
    def test_every_colour_mode_gives_the_same_film(self, kind: str, mode: str) -> None:
        pixels = decode(encode(Image.fromarray(ramp()).convert(mode), kind), 32, "x")

        assert pixels.shape == (32, 32)
        assert pixels.dtype == np.uint8
        expected = np.asarray(Image.fromarray(ramp()).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
        assert abs(pixels.astype(int) - expected).max() <= 8

    def test_one_bit(self) -> None:
        pixels = decode(encode(Image.fromarray(ramp() > 127)), 64, "x")

        assert (pixels[:, 0].max(), pixels[:, -1].min()) == (0, 255)

    @pytest.mark.parametrize(("brightest", "full_scale"), [(65535, 65535), (4095, 4095), (3000, 4095), (200, 255)])
    def test_sixteen_bits_by_the_depth_that_holds_the_brightest(self, brightest: int, full_scale: int) -> None:
        levels = np.full((32, 32), brightest, dtype=np.uint16)
        levels[:16] = brightest // 2

        pixels = decode(encode(Image.fromarray(levels)), 32, "x")

        assert int(pixels[-1, 0]) == round(255 * brightest / full_scale)
        assert int(pixels[0, 0]) == pytest.approx(255 * (brightest // 2) / full_scale, abs=0.51)

    def test_black_sixteen_bit_image(self) -> None:
        assert not decode(encode(Image.fromarray(np.zeros((32, 32), dtype=np.uint16))), 32, "x").any()

    def test_transparency_is_black(self) -> None:
        image = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
        image.paste((255, 255, 255, 255), (0, 0, 16, 32))

        pixels = decode(encode(image), 32, "x")

        assert (pixels[0, 0], pixels[0, -1]) == (255, 0)

    def test_transparent_palette_entry_is_black(self) -> None:
        image = Image.fromarray(np.ones((32, 32), dtype=np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 255, 255, 255])

        assert decode(encode(image), 32, "x").min() == 255
        assert decode(encode(image, transparency=1), 32, "x").max() == 0

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_is_upright_as_the_browser_shows_it(self, orientation: int) -> None:
        corner = np.zeros((32, 32), dtype=np.uint8)
        corner[:16, :8] = 255
        turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
        image = Image.fromarray(corner)
        # Stored as the sensor lay; the tag says how to turn it back.
        stored = image if turned is None else image.transpose(Image.Transpose(turned))
        exif = Image.Exif()
        exif[0x0112] = orientation

        assert np.array_equal(decode(encode(stored, exif=exif), 32, "x"), corner)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_a_broken_orientation_costs_no_film(self, kind: str) -> None:
        image = Image.fromarray(ramp())

        assert np.array_equal(
            decode(encode(image, kind, exif=b"Exif\0\0garbage"), 32, "x"), decode(encode(image, kind), 32, "x")
        )

    def test_waits_while_other_images_fill_the_memory(self) -> None:
        content = encode(Image.fromarray(ramp()))
        with ThreadPoolExecutor(1) as pool:
            with _room.hold(2 * MAX_PIXELS):
                decoding = pool.submit(decode, content, 32, "x")
                with pytest.raises(TimeoutError):
                    decoding.result(timeout=0.1)
            assert decoding.result(timeout=10).shape == (32, 32)

    def test_a_film_larger_than_the_room_takes_it_alone(self) -> None:
        room = _Room(10)

        with room.hold(11):
            pass
        with room.hold(10):
            pass

    def test_draft_mode_keeps_enough_pixels(self) -> None:
        """A JPEG that is decoded at a fraction of its size still looks like the whole one."""
        large = Image.fromarray(ramp(1024, 1024))

        assert abs(decode(encode(large, "JPEG", quality=95), 100, "x").astype(int) - ramp(100, 100)).max() <= 4


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "the file is empty"),
            (b"\n<!DOCTYPE html><html><title>Log in</title>", "an HTML page: was it a login page"),
            (b"<HTML>", "an HTML page"),
            (b"\xef\xbb\xbf<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML document"),
            (b'{"detail": "not found"}', "a JSON document"),
            (b"%PDF-1.7", "a PDF"),
            (b"\0" * 128 + b"DICM", "a DICOM file"),
            (b"II*\0\x08\0\0\0", "a TIFF"),
            (b"\x1f\x8b\x08", "a gzip archive"),
            (b"hello, world", "12 bytes that begin with b'hello, world' are no JPEG, PNG"),
            (encode(Image.fromarray(ramp()))[:80], "damaged or not supported"),
            (encode(Image.fromarray(ramp()), "JPEG")[:300], "damaged or not supported"),
        ],
    )
    def test_says_what_it_looks_like(self, content: bytes, says: str) -> None:
        with pytest.raises(ImageError, match="image film 9 cannot be decoded") as error:
            decode(content, 32, "film 9")

        assert says in str(error.value)

    @pytest.mark.parametrize("size", [(9000, 9000), (12_000, 12_000), (60_000, 60_000)])
    def test_bomb_is_refused_before_it_is_decoded(self, size: tuple[int, int]) -> None:
        assert size[0] * size[1] > MAX_PIXELS

        with pytest.raises(ImageError, match=r"film 9 is too large: .*at most 80,000,000"):
            decode(png_header(*size), 32, "film 9")

    @given(st.binary(max_size=300))
    @settings(deadline=None, max_examples=50)
    def test_any_bytes_give_an_image_error(self, content: bytes) -> None:
        with pytest.raises(ImageError):
            decode(content, 32, "x")

    @given(position=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "GIF"]))
    @settings(deadline=None, max_examples=100)
    def test_a_flipped_byte_gives_pixels_or_an_image_error(self, position: int, value: int, kind: str) -> None:
        content = bytearray(encode(Image.fromarray(ramp()), kind))
        content[position % len(content)] = value
        with contextlib.suppress(ImageError):
            assert decode(bytes(content), 32, "x").shape == (32, 32)
