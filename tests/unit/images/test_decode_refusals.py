import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ml_backend.errors import ImageError
from ml_backend.images.decode import UndecodableImage, decode
from ml_backend.images.limits import MAX_PIXELS, MAX_SCANS
from tests.unit.images.files import encode, film, png_header, ramp

STARTS = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\xff\0\0\0WEBP", b"II*\0", b"<?xml"]
REAL = [
    encode(Image.fromarray(film(24, 20)).convert(mode), kind)
    for kind, mode in [
        ("PNG", "L"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("WEBP", "RGBA"),
        ("AVIF", "RGB"),
    ]
]
REAL.append(encode(Image.fromarray(film(24, 20)), "JPEG", progressive=True))


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
            (b"\0" * 128 + b"DICM", "a DICOM file that is cut off"),
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

    @pytest.mark.parametrize("kind", ["baseline", "progressive"])
    def test_a_jpeg_bomb_is_refused_before_it_is_decoded(self, kind: str) -> None:
        content = encode(Image.fromarray(ramp()), "JPEG", progressive=kind == "progressive")
        frame = content.index(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0")
        content = content[: frame + 5] + b"\xff\xff\xff\xff" + content[frame + 9 :]

        with pytest.raises(ImageError, match=r"film 9 is too large: .*at most 80,000,000"):
            decode(content, 32, "film 9")

    def test_a_film_is_decoded_at_the_size_that_passed_the_guard(self) -> None:
        """Pillow believes the last of two frame headers: the bomb hides in the first."""
        content = encode(Image.fromarray(ramp()), "JPEG")
        start = content.index(b"\xff\xc0")
        frame = content[start : start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")]
        bomb = frame[:5] + b"\xff\xff\xff\xff" + frame[9:]

        with pytest.raises(ImageError, match="film 9"):
            decode(content[:start] + bomb + content[start:], 32, "film 9")

    @pytest.mark.parametrize(
        ("kind", "mode", "options"),
        [
            ("PNG", "L", {}),
            ("PNG", "P", {}),
            ("PNG", "RGBA", {}),
            ("PNG", "I;16", {}),
            ("JPEG", "L", {}),
            ("JPEG", "RGB", {"progressive": True}),
            ("JPEG", "CMYK", {}),
            ("GIF", "L", {}),
            ("BMP", "P", {}),
            ("WEBP", "RGBA", {}),
            ("AVIF", "RGB", {}),
        ],
    )
    def test_damage_gives_pixels_or_an_image_error_and_not_a_word(
        self, kind: str, mode: str, options: dict[str, object], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Bytes overwritten, cut out, doubled and cut off, by a fixed seed."""
        image = Image.fromarray(film(48, 40).astype(np.uint16) * 99 if mode == "I;16" else film(48, 40))
        whole = encode(image if mode == "I;16" else image.convert(mode), kind, **options)
        rng = np.random.default_rng(0)
        for turn in range(60):
            content = bytearray(whole)
            for _ in range(int(rng.integers(1, 5))):
                start, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
                content[start : start + length] = [
                    rng.bytes(length),
                    b"",
                    bytes(content[start : start + length]) * 2,
                    b"\xff" * length,
                ][turn % 4]
            if turn % 3 == 0:
                del content[int(rng.integers(len(content))) :]
            with contextlib.suppress(ImageError):
                assert decode(bytes(content), 32, "x").shape == (32, 32)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "AVIF"])
    @pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
    def test_a_file_cut_off_is_no_film(self, kind: str, kept: float) -> None:
        content = encode(Image.fromarray(film(96, 96)), kind)

        with pytest.raises(ImageError, match="film 9"):
            decode(content[: int(kept * len(content))], 32, "film 9")

    @given(start=st.sampled_from([b"", *STARTS]), tail=st.binary(max_size=300))
    @settings(deadline=None, max_examples=150)
    def test_any_bytes_are_refused_with_a_trouble(self, start: bytes, tail: bytes) -> None:
        with pytest.raises(UndecodableImage) as error:
            decode(start + tail, 32, "x")

        assert error.value.kind in {"empty", "not-an-image", "unsupported", "damaged", "too-large"}

    @given(
        content=st.sampled_from(REAL),
        edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=6),
    )
    @settings(deadline=None, max_examples=300)
    def test_a_mutated_file_gives_pixels_or_a_trouble(
        self, content: bytes, edits: list[tuple[float, int, bytes]]
    ) -> None:
        """Bytes put in the place of others, anywhere."""
        mutated = bytearray(content)
        for place, length, instead in edits:
            start = int(place * len(mutated))
            mutated[start : start + length] = instead
        with contextlib.suppress(UndecodableImage):
            assert decode(bytes(mutated), 32, "x").shape == (32, 32)


class TestTrouble:
    @pytest.mark.parametrize(
        ("content", "trouble"),
        [
            (b"", "empty"),
            (b"<html>", "not-an-image"),
            (b"hello", "not-an-image"),
            (b"<svg/>", "unsupported"),
            (b"II*\0\x08\0\0\0", "unsupported"),
            (b"GIF89a", "damaged"),
            (encode(Image.fromarray(ramp()))[:80], "damaged"),
            (encode(Image.fromarray(ramp()), "JPEG")[:300], "damaged"),
            (png_header(9000, 9000), "too-large"),
        ],
    )
    def test_is_named_in_one_word(self, content: bytes, trouble: str) -> None:
        with pytest.raises(UndecodableImage) as error:
            decode(content, 32, "x")

        assert error.value.kind == trouble

    def test_too_many_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = encode(Image.fromarray(ramp()))
        monkeypatch.setitem(decode.__globals__, "MAX_BYTES", len(content) - 1)

        with pytest.raises(UndecodableImage, match=f"film 9 is too large: {len(content):,} bytes") as error:
            decode(content, 32, "film 9")

        assert error.value.kind == "too-large"

    def test_too_many_scans(self) -> None:
        """A header of a scan again and again: each would walk over the whole film."""
        content = encode(Image.fromarray(film(64, 64)), "JPEG", progressive=True)
        last = content.rindex(b"\xff\xda")
        header = content[last : last + 2 + int.from_bytes(content[last + 2 : last + 4])]
        usual = content.count(b"\xff\xda")

        with pytest.raises(UndecodableImage, match=f"{MAX_SCANS + 1} scans, at most {MAX_SCANS} are decoded"):
            decode(content[:last] + header * (MAX_SCANS + 1 - usual) + content[last:], 32, "film 9")
