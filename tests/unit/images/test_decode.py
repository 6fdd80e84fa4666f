import contextlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ml_backend.images.decode import decode, decode_image
from ml_backend.images.limits import MAX_PIXELS, PixelBudget, budget
from tests.unit.images.files import deep_png, encode, film, ramp, triangle


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
        + [(kind, mode) for kind in ("WEBP", "AVIF") for mode in ("L", "RGB", "RGBA")]
        + [("BMP", "L"), ("BMP", "P"), ("BMP", "RGB"), ("GIF", "L"), ("GIF", "P")],
    )
    def test_every_colour_mode_gives_the_same_film(self, kind: str, mode: str) -> None:
        pixels = decode(encode(Image.fromarray(ramp()).convert(mode), kind), 32, "x")

        assert pixels.shape == (32, 32)
        assert pixels.dtype == np.uint8
        expected = np.asarray(Image.fromarray(ramp()).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
        assert abs(pixels.astype(int) - expected).max() <= 8

    @pytest.mark.parametrize("turn", range(1, 9))
    def test_an_avif_is_turned_once(self, turn: int) -> None:
        """It says so by a property of its own, which Pillow writes from EXIF's number; a JPEG by EXIF."""
        upright = {}
        for kind in ("AVIF", "JPEG"):
            exif = Image.Exif()  # anew: Pillow takes the number out of the one that it is given
            exif[0x0112] = turn
            content = encode(Image.fromarray(film(64, 48)), kind, exif=exif, quality=100)
            upright[kind] = decode_image(content, 32, "x")

        assert upright["AVIF"].size == upright["JPEG"].size == ((48, 64) if turn < 5 else (64, 48))
        assert abs(upright["AVIF"].pixels.astype(int) - upright["JPEG"].pixels).max() <= 8

    def test_an_avif_among_photographs(self) -> None:
        """``mif1`` is the first brand of many HEIC files, and of some AVIF."""
        content = bytearray(encode(Image.fromarray(ramp()), "AVIF"))
        content[8:12] = b"mif1"

        assert decode_image(bytes(content), 32, "x").size == (64, 96)

    def test_an_animated_avif_is_its_first_picture(self) -> None:
        pictures = [Image.fromarray(levels) for levels in (ramp(), 255 - ramp())]
        animated = encode(pictures[0], "AVIF", save_all=True, append_images=pictures[1:])

        assert decode(animated, 32, "x")[:, 0].max() < 20

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

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
    def test_the_size_of_the_film_is_told(self, kind: str) -> None:
        """Not that of the square, nor that at which a large JPEG is decoded."""
        content = encode(Image.new("L", (600, 240), 90), kind)

        film = decode_image(content, 32, "x")

        assert (film.size, film.pixels.shape) == ((600, 240), (32, 32))
        assert np.array_equal(film.pixels, decode(content, 32, "x"))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_size_is_that_of_the_upright_film(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(Image.new("L", (60, 24), 90), exif=exif)

        assert decode_image(content, 32, "x").size == ((60, 24) if orientation < 5 else (24, 60))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_a_broken_orientation_costs_no_film(self, kind: str) -> None:
        image = Image.fromarray(ramp())

        assert np.array_equal(
            decode(encode(image, kind, exif=b"Exif\0\0garbage"), 32, "x"), decode(encode(image, kind), 32, "x")
        )

    def test_waits_while_other_images_fill_the_memory(self) -> None:
        content = encode(Image.fromarray(ramp()))
        with ThreadPoolExecutor(1) as pool:
            with budget.hold(2 * MAX_PIXELS):
                decoding = pool.submit(decode, content, 32, "x")
                with pytest.raises(TimeoutError):
                    decoding.result(timeout=0.1)
            assert decoding.result(timeout=10).shape == (32, 32)

    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_progressive_film_takes_the_budget_of_all_its_pixels(self, progressive: bool) -> None:
        """It is 400 x 400 pixels and decoded at an eighth, but its coefficients are kept until the last scan."""
        content = encode(Image.fromarray(ramp(400, 400)), "JPEG", progressive=progressive)
        with ThreadPoolExecutor(1) as pool:
            with budget.hold(2 * MAX_PIXELS - 50 * 50):
                decoding = pool.submit(decode, content, 32, "x")
                with pytest.raises(TimeoutError) if progressive else contextlib.nullcontext():
                    decoding.result(timeout=0.2 if progressive else 10)
            assert decoding.result(timeout=10).shape == (32, 32)

    def test_a_film_larger_than_the_budget_takes_it_alone(self) -> None:
        room = PixelBudget(10)

        with room.hold(11):
            pass
        with room.hold(10):
            pass

    @pytest.mark.parametrize("subsampling", ["444", "420"])
    def test_adobe_stores_ink_inverted(self, subsampling: str) -> None:
        """As Photoshop writes it: YCCK, 255 for no ink."""
        ink = np.dstack([ramp()] * 3 + [np.full_like(ramp(), 255)])

        pixels = decode(simplejpeg.encode_jpeg(ink, 95, "CMYK", subsampling), 32, "x")

        assert abs(pixels.astype(int) - triangle(ramp(), 32)).max() <= 4

    @pytest.mark.parametrize("colour", [2, 4, 6])
    def test_sixteen_bits_with_colour_or_alpha_keep_their_depth(self, colour: int) -> None:
        """A 12-bit film has every grey; by the high byte alone, as Pillow reads it, only 16 of them."""
        ink = np.repeat(np.arange(0, 4096, 16), 32)[None].repeat(32, 0)
        planes = [ink] * (1 if colour == 4 else 3) + [np.full_like(ink, 65535)] * (colour != 2)
        content = deep_png(np.dstack(planes).astype(">u2"), colour)

        pixels = decode(content, 256, "x")

        assert abs(pixels[0].astype(int) - np.arange(256)).max() <= 1

    def test_stray_bytes_cost_no_film(self) -> None:
        whole = encode(Image.fromarray(ramp()), "JPEG", restart_marker_blocks=8)
        before, marker, after = whole.partition(b"\xff\xd0")

        assert np.array_equal(decode(before + b"\0\0" + marker + after, 32, "x"), decode(whole, 32, "x"))


class TestResampling:
    @pytest.mark.parametrize(("kind", "p99"), [("PNG", 1.5), ("JPEG", 4.0), ("WEBP", 1.5)])
    @pytest.mark.parametrize("size", [(1000, 823), (517, 640)])
    def test_a_film_looks_like_the_whole_one_made_small(self, kind: str, p99: float, size: tuple[int, int]) -> None:
        """The reference sees every pixel of the file, and its triangle is two pixels of the square wide."""
        content = encode(Image.fromarray(film(*size)), kind, quality=90)
        whole = np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(np.float64)

        off = abs(decode(content, 64, "x") - triangle(whole, 64))

        assert off.mean() <= 0.75
        assert np.quantile(off, 0.99) <= p99

    def test_deep_film_looks_like_the_whole_one_made_small(self) -> None:
        levels = film(1000, 823).astype(np.uint16) * 16 + 7
        levels[0, 0] = 4095

        off = abs(decode(encode(Image.fromarray(levels)), 64, "x") - triangle(levels, 64) * (255 / 4095))

        assert off.max() <= 0.54  # rounded to 4,096 levels, then to 256

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize(("height", "width"), [(1000, 820), (1001, 823)])
    def test_what_the_film_shows_stays_where_it_is(self, kind: str, height: int, width: int) -> None:
        """Bars of 40 pixels at known places; half a pixel of the film, or half a block of a JPEG, would show."""
        off = []
        for share in np.linspace(0.1, 0.95, 8):
            for axis, length in enumerate((height, width)):
                bar = np.zeros((height, width), dtype=np.uint8)
                centre = int(share * length)
                np.moveaxis(bar, axis, 0)[centre - 20 : centre + 20] = 200
                profile = decode(encode(Image.fromarray(bar), kind, quality=95), 64, "x").sum(1 - axis)
                found = (profile * (np.arange(64) + 0.5)).sum() / profile.sum() * length / 64
                off.append(found - centre)

        assert abs(np.mean(off)) <= 0.15
        assert np.abs(off).max() <= 0.5
