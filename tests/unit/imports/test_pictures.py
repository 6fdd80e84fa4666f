"""What is uploaded of a file: its pixels, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from ml_backend.errors import ImageError
from ml_backend.images.decode import decode_image
from ml_backend.imports.pictures import fingerprint, read_picture, to_png
from tests.unit.images.files import deep_png, film, ramp

SECRET = "Quixotebaum"
COLOURED = np.stack([ramp(), 255 - ramp(), ramp()], axis=-1)


def saved(image: Image.Image, kind: str, turn: int = 1, **options: object) -> bytes:
    """A file that names a patient wherever its format allows."""
    exif, text, file = Image.Exif(), PngInfo(), io.BytesIO()
    exif[0x010E], exif[0x0112] = SECRET, turn
    text.add_text("Patient", SECRET)
    texts: dict[str, dict[str, object]] = {"PNG": {"pnginfo": text}, "JPEG": {"comment": SECRET, "quality": 90}}
    image.save(file, kind, exif=exif, icc_profile=SECRET.encode() * 20, **texts.get(kind, {}) | options)
    return file.getvalue()


class TestReadPicture:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("turn", [1, 3, 6])
    def test_upright_pixels_and_no_metadata(self, kind, turn):
        options = {"WEBP": {"lossless": True}}.get(kind, {})
        content = saved(Image.fromarray(ramp()), kind, turn, **options)
        assert SECRET.encode() in content

        picture = read_picture(content, "x")
        png = to_png(picture.image, 2048)

        turned = np.rot90(ramp(), {1: 0, 3: 2, 6: -1}[turn])
        assert picture.image.mode == "L"
        assert np.abs(np.asarray(picture.image).astype(int) - turned).max() <= (2 if kind == "JPEG" else 0)
        assert Image.open(io.BytesIO(png)).tobytes() == picture.image.tobytes()
        assert SECRET.encode() not in png
        assert png.count(b"tEXt") == png.count(b"eXIf") == png.count(b"iCCP") == 0

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
    def test_the_network_sees_the_upload_as_it_would_the_file(self, kind):
        file = io.BytesIO()
        Image.fromarray(film(120, 90)).save(file, kind)

        upload = to_png(read_picture(file.getvalue(), "x").image, 2048)

        ours, theirs = decode_image(file.getvalue(), 32, "x"), decode_image(upload, 32, "x")
        assert ours.size == theirs.size == (90, 120)
        assert np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= (3 if kind == "JPEG" else 1)

    def test_colours_stay_where_there_are_some(self):
        assert np.array_equal(np.asarray(read_picture(saved(Image.fromarray(COLOURED), "PNG"), "x").image), COLOURED)
        assert read_picture(saved(Image.fromarray(ramp()).convert("RGB"), "PNG"), "x").image.mode == "L"

    @pytest.mark.parametrize("bits", [10, 12, 16])
    def test_deep_pixels_are_scaled_by_their_depth(self, bits):
        levels = np.linspace(0, 2**bits - 1, 64 * 48).reshape(64, 48).astype(np.uint16)

        for content in (deep_png(levels.byteswap(), 0), saved(Image.fromarray(levels), "TIFF")):
            picture = read_picture(content, "x")

            assert np.array_equal(np.asarray(picture.image), np.rint(levels * (255 / (2**bits - 1))))

    def test_a_tiff_whose_zero_is_white_is_inverted(self):
        levels = np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16)
        content = saved(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})

        assert np.array_equal(np.asarray(read_picture(content, "x").image), np.rint((65535 - levels) / 257))

    def test_a_tiff_whose_zero_is_white_is_inverted_within_its_own_depth(self):
        levels = np.linspace(0, 4095, 64 * 48).reshape(64, 48).astype(np.uint16)
        content = saved(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})

        assert np.array_equal(np.asarray(read_picture(content, "x").image), np.rint((4095 - levels) * (255 / 4095)))

    def test_transparency_is_black(self):
        layer = Image.fromarray(np.dstack([ramp()] * 3 + [np.where(ramp() > 100, 255, 0).astype(np.uint8)]))

        assert np.array_equal(
            np.asarray(read_picture(saved(layer, "PNG"), "x").image), np.where(ramp() > 100, ramp(), 0)
        )

    def test_equal_pixels_have_one_hash_whatever_the_file(self):
        image = Image.fromarray(ramp())
        files = [saved(image, "PNG"), saved(image, "TIFF"), saved(image, "WEBP", lossless=True)]
        files += [saved(image.convert("RGB"), "PNG"), saved(image.rotate(180), "PNG", 3)]

        assert len({read_picture(content, "x").pixels for content in files}) == 1
        assert (
            read_picture(saved(image.transpose(Image.Transpose.ROTATE_90), "PNG"), "x").pixels
            != read_picture(files[0], "x").pixels
        )

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b"", "empty"),
            (saved(Image.fromarray(film(300, 200)), "TIFF")[:5000], "damaged"),
            (saved(Image.fromarray(film(300, 200)), "PNG")[:5000], "damaged"),
            (saved(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "unsupported"),
            (saved(Image.fromarray(np.full((9, 9), -1000, np.int32)), "TIFF"), "unsupported"),
            (saved(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"), "too-large"),
            (b"%PDF-1.4", "unsupported"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, content, kind):
        with pytest.raises(ImageError, match="image x ") as refused:
            read_picture(content, "x")

        assert refused.value.kind == kind

    def test_text_at_the_border_is_reported(self):
        image = Image.new("L", (1000, 1000), 20)
        plain = read_picture(saved(image, "PNG"), "x").burned_in
        ImageDraw.Draw(image).text((40, 40), f"{SECRET} 1970-01-01", 255, ImageFont.load_default(32))

        assert (plain, read_picture(saved(image, "JPEG"), "x").burned_in) == ("", "bright text near its top border")

    def test_a_tiff_of_pages_is_refused_unless_the_first_is_asked_for(self, monkeypatch):
        monkeypatch.delattr(TiffImageFile, "n_frames")  # walks over all of them, in quadratic time
        image = Image.fromarray(ramp())
        content = saved(image, "TIFF", save_all=True, append_images=[image])

        with pytest.raises(ImageError, match="several pages"):
            read_picture(content, "x")
        assert np.array_equal(np.asarray(read_picture(content, "x", first_frame=True).image), ramp())

    def test_a_tiff_of_an_unknown_kind(self):
        with pytest.raises(ImageError, match="image x is of an unknown kind"):
            read_picture(b"II*\0\x08\0\0\0\0\0\0\0\0\0", "x")


class TestToPng:
    @pytest.mark.parametrize(("side", "size"), [(2048, (64, 96)), (96, (64, 96)), (48, (32, 48))])
    def test_no_side_is_longer(self, side, size):
        assert Image.open(io.BytesIO(to_png(Image.fromarray(ramp()), side))).size == size


class TestFingerprint:
    def test_outlasts_what_changes_a_file_and_not_the_image(self):
        image, other = Image.fromarray(film(400, 300)), Image.fromarray(film(400, 300)[::-1])

        def distance(one: Image.Image) -> int:
            bits = int.from_bytes(fingerprint(image)) ^ int.from_bytes(fingerprint(one))
            return bits.bit_count()

        assert len(fingerprint(image)) == 32
        assert distance(ImageEnhance.Brightness(image).enhance(1.1)) <= 11
        assert distance(image.resize((150, 200))) <= 11
        assert distance(other) > 60
