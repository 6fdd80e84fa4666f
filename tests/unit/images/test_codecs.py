import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
import pyvips
from PIL import Image

from ml_backend.images.decode import jpeg_levels, png_levels
from tests.unit.images.files import chunk

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
# Where each pass of an interlaced PNG begins, and its steps: x, y, dx, dy.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def rows(values: npt.NDArray[np.integer], bits: int) -> bytes:
    """Unfiltered rows, several pixels to a byte where they have less than 8 bits."""
    lines = values.reshape(len(values), -1)
    if bits == 16:
        packed = [line.astype(">u2").tobytes() for line in lines]
    else:
        places = np.arange(bits)[::-1]
        packed = [np.packbits((line[:, None] >> places & 1).astype(np.uint8)).tobytes() for line in lines]
    return b"".join(b"\0" + line for line in packed)


def png(values: object, colour: int, bits: int, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG as the format's own text says: Pillow writes neither these depths nor interlaced files."""
    pixels = np.asarray(values)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in passes]
    body = b"".join(rows(part, bits) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def levels_of(content: bytes) -> npt.NDArray[np.integer]:
    width, height = struct.unpack(">II", content[16:24])
    return png_levels(content, (width, height))


def jpeg(levels: npt.NDArray[np.uint8], mode: str = "L", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(file, "JPEG", **{"quality": 95, **options})
    return file.getvalue()


def waves(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth, and different at each place."""
    y, x = np.mgrid[0:height, 0:width]
    return np.asarray(128 + 60 * np.sin(x / 17) + 60 * np.cos(y / 23), dtype=np.uint8)


class TestPngLevels:
    @pytest.mark.parametrize("interlaced", [False, True])
    @pytest.mark.parametrize(("bits", "step"), [(1, 255), (2, 85), (4, 17), (8, 1)])
    def test_eight_bits_or_less_span_0_to_255(self, bits: int, step: int, interlaced: bool) -> None:
        values = np.arange(13 * 9).reshape(9, 13) % 2**bits

        levels = levels_of(png(values, GRAY, bits, interlaced=interlaced))

        assert levels.dtype == np.uint8
        assert levels.tolist() == (values * step).tolist()

    @pytest.mark.parametrize("interlaced", [False, True])
    def test_sixteen_bits_stay_as_they_are(self, interlaced: bool) -> None:
        values = np.arange(13 * 9).reshape(9, 13) * 509

        levels = levels_of(png(values, GRAY, 16, interlaced=interlaced))

        assert levels.dtype == np.uint16
        assert levels.tolist() == values.tolist()

    @pytest.mark.parametrize(
        ("colour", "pixel"),
        [(RGB, [3001] * 3), (RGBA, [3001, 3001, 3001, 65535]), (GRAY_ALPHA, [3001, 65535])],
    )
    def test_sixteen_bits_with_colour_or_alpha_keep_their_depth(self, colour: int, pixel: list[int]) -> None:
        """3001 in 65535 is level 11 of 255: whoever keeps the high byte only has 46 levels of a 12-bit film."""
        assert levels_of(png([[pixel] * 5] * 4, colour, 16)).tolist() == [[3001] * 5] * 4

    @pytest.mark.parametrize(("bits", "full"), [(8, 255), (16, 65535)])
    @pytest.mark.parametrize(("channel", "share"), [(0, 0.299), (1, 0.587), (2, 0.114)])
    def test_colour_becomes_luma(self, bits: int, full: int, channel: int, share: float) -> None:
        pixel = [0, 0, 0]
        pixel[channel] = full

        assert levels_of(png([[pixel] * 2], RGB, bits)).tolist() == [[round(share * full)] * 2]

    @pytest.mark.parametrize(("bits", "full"), [(8, 255), (16, 65535)])
    @pytest.mark.parametrize("colour", [GRAY_ALPHA, RGBA])
    def test_transparency_lets_black_through(self, bits: int, full: int, colour: int) -> None:
        ink = [full // 2] * (1 if colour == GRAY_ALPHA else 3)

        levels = levels_of(png([[[*ink, 0], [*ink, full], [*ink, full // 2]]], colour, bits))

        assert levels.astype(int).tolist() == [[0, full // 2, pytest.approx(full / 4, abs=1)]]

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_palette(self, bits: int) -> None:
        palette = chunk(b"PLTE", bytes([255, 0, 0, 10, 10, 10]))

        assert levels_of(png([[0, 1, 0]], PALETTE, bits, palette)).tolist() == [[76, 10, 76]]
        assert levels_of(png([[0, 1, 0]], PALETTE, bits, palette + chunk(b"tRNS", b"\0"))).tolist() == [[0, 10, 0]]

    @pytest.mark.parametrize(
        ("colour", "bits", "clear"), [(GRAY, 8, [7]), (GRAY, 16, [700]), (RGB, 8, [7] * 3), (RGB, 16, [700] * 3)]
    )
    def test_one_level_can_stand_for_transparent(self, colour: int, bits: int, clear: list[int]) -> None:
        transparent = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
        other = [value + 1 for value in clear]

        assert levels_of(png([[clear, other]], colour, bits, transparent)).tolist() == [[0, other[0]]]

    def test_gamma_changes_nothing(self) -> None:
        """Pillow ignores it as well; the levels of a film are what a window was laid over."""
        assert levels_of(png([[9, 99]], GRAY, 8, chunk(b"gAMA", struct.pack(">I", 100_000)))).tolist() == [[9, 99]]

    @pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
    def test_a_file_cut_off_is_an_error_and_no_half_film(self, kept: float) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64))
        content = png(noise, GRAY, 8)

        with pytest.raises(pyvips.Error):
            levels_of(content[: int(kept * (len(content) - 30))])

    def test_a_wrong_checksum_is_an_error(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64))
        content = bytearray(png(noise, GRAY, 8))
        content[-14] ^= 1  # of the pixels' own chunk

        with pytest.raises(pyvips.Error):
            levels_of(bytes(content))

    def test_one_pixel(self) -> None:
        """Of which pyvips makes a bare number."""
        assert levels_of(png([[77]], GRAY, 8)).tolist() == [[77]]

    def test_another_size_than_was_seen(self) -> None:
        with pytest.raises(ValueError, match=r"says 3 x 1 pixels and its data 2 x 1"):
            png_levels(png([[1, 2]], GRAY, 8), (3, 1))


class TestJpegLevels:
    @pytest.mark.parametrize("factor", [1, 2, 4, 8])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_reduces_to_means_of_blocks(self, factor: int, mode: str, progressive: bool) -> None:
        film = waves(96, 160)

        levels = jpeg_levels(jpeg(film, mode, progressive=progressive), (160, 96), (160 // factor, 96 // factor))

        means = film.reshape(96 // factor, factor, 160 // factor, factor).mean((1, 3))
        assert levels is not None
        assert levels.shape == means.shape
        assert abs(levels - means).max() <= 4

    def test_size_is_rounded_up(self) -> None:
        levels = jpeg_levels(jpeg(waves(97, 161)), (161, 97), (21, 13))

        assert levels is not None
        assert levels.shape == (13, 21)

    @pytest.mark.parametrize(("channel", "luma"), [(0, 76), (1, 150), (2, 29)])
    @pytest.mark.parametrize("keep_rgb", [False, True])
    def test_colour_becomes_luma(self, channel: int, luma: int, keep_rgb: bool) -> None:
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[..., channel] = 255

        levels = jpeg_levels(jpeg(pixels, "RGB", keep_rgb=keep_rgb), (16, 16), (16, 16))

        assert levels is not None
        assert abs(levels.astype(int) - luma).max() <= 1

    @pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_file_cut_off_is_an_error_and_no_half_film(self, end: bytes, progressive: bool) -> None:
        """Also where the cut was papered over with an end marker, which Pillow takes for the end."""
        content = jpeg(waves(256, 256), progressive=progressive)

        with pytest.raises(ValueError, match=r"(?i)premature end|missing"):
            jpeg_levels(content[: len(content) // 2] + end, (256, 256), (256, 256))

    def test_stray_bytes_are_left_to_a_decoder_that_forgives(self) -> None:
        before, marker, after = jpeg(waves(64, 64), restart_marker_blocks=8).partition(b"\xff\xd0")

        assert jpeg_levels(before + b"\0\0" + marker + after, (64, 64), (64, 64)) is None

    def test_another_size_than_was_seen(self) -> None:
        with pytest.raises(ValueError, match=r"says 65 x 64 pixels and its data 64 x 64"):
            jpeg_levels(jpeg(waves(64, 64)), (65, 64), (65, 64))
