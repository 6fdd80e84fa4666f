import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.errors import ImageError
from ml_backend.images.cache import TABLE, DiskCache, ImageCache, content_digests
from ml_backend.images.source import FolderSource
from ml_backend.schemas import ImageRef


class CountingSource:
    """Files in memory, by uri; counts what is fetched."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.fetched: list[str] = []

    def fetch(self, image: ImageRef) -> bytes:
        self.fetched.append(image.uri)
        if image.uri not in self.files:
            raise ImageError(f"image {image.id}: {image.uri} is missing")
        return self.files[image.uri]

    def cache_key(self, image: ImageRef) -> str:
        return image.uri


def film(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (64, 64), level).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def source() -> CountingSource:
    return CountingSource({"a": film(10), "same-as-a": film(10), "b": film(20)})


def ref(uri: str, image_id: str = "1") -> ImageRef:
    return ImageRef(id=image_id, uri=uri)


def test_fetches_an_image_once_whatever_its_task(tmp_path: Path, source: CountingSource) -> None:
    cache = ImageCache(source, tmp_path, 32)
    assert cache.key(ref("a")) is None

    first = cache.read(ref("a", "1"))
    again = ImageCache(source, tmp_path, 32).read(ref("a", "2"))

    assert source.fetched == ["a"]
    assert first.key == again.key == cache.key(ref("a", "3"))
    assert np.array_equal(first.pixels, again.pixels)
    assert (again.pixels == 10).all()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("data:image/png;base64," + "A" * 100_000, "1 (in its task)"),
        ("http://pacs:8/x.png?X-Amz-Signature=secret", "1 (http://pacs:8/x.png)"),
        ("https://me:secret@pacs/x@2.png", "1 (https://pacs/x@2.png)"),
        ("/data/upload/7/x.png", "1 (/data/upload/7/x.png)"),
        ("a@b.png", "1 (a@b.png)"),
        ("y" * 300, f"1 ({'y' * 200}...)"),
    ],
)
def test_an_error_names_the_image_and_neither_its_pixels_nor_a_secret(tmp_path: Path, uri: str, shown: str) -> None:
    with pytest.raises(ImageError) as error:
        ImageCache(CountingSource({uri: b"\0\0\0"}), tmp_path, 32).read(ref(uri))

    assert str(error.value).startswith(f"image {shown} cannot be decoded")
    assert len(str(error.value)) < 500


def test_a_task_id_that_is_handed_out_again_is_another_image(tmp_path: Path, source: CountingSource) -> None:
    cache = ImageCache(source, tmp_path, 32)

    assert cache.read(ref("a", "1")).pixels[0, 0] == 10
    assert cache.read(ref("b", "1")).pixels[0, 0] == 20


def test_one_film_under_two_uris_is_one_entry(tmp_path: Path, source: CountingSource) -> None:
    cache = ImageCache(source, tmp_path, 32)

    assert cache.read(ref("a")).key == cache.read(ref("same-as-a")).key != cache.read(ref("b")).key


def test_side_is_part_of_the_key(tmp_path: Path, source: CountingSource) -> None:
    ImageCache(source, tmp_path, 32).read(ref("a"))

    assert ImageCache(source, tmp_path, 48).read(ref("a")).pixels.shape == (48, 48)
    assert source.fetched == ["a", "a"]
    # Both are kept, side by side.
    ImageCache(source, tmp_path, 32).read(ref("a"))
    assert source.fetched == ["a", "a"]


@pytest.mark.parametrize("table", ["pixels", "hashes"])
def test_damaged_entry_is_made_again(tmp_path: Path, source: CountingSource, table: str) -> None:
    cache = ImageCache(source, tmp_path, 32)
    cache.read(ref("a"))
    for path in [*(tmp_path / table).glob("*/*"), *(tmp_path / table).glob(TABLE)]:
        path.write_bytes(b"\0" * 50)

    assert (cache.read(ref("a")).pixels == 10).all()
    assert (cache.read(ref("a")).pixels == 10).all()
    assert source.fetched == ["a", "a"]


def test_a_failure_is_not_kept(tmp_path: Path, source: CountingSource) -> None:
    cache = ImageCache(source, tmp_path, 32)
    source.files["c"] = b"<html>login</html>"
    with pytest.raises(ImageError, match=r"image 1 \(c\) cannot be decoded: it is an HTML page"):
        cache.read(ref("c"))

    source.files["c"] = film(30)

    assert (cache.read(ref("c")).pixels == 30).all()


def test_trimmed_images_come_back(tmp_path: Path, source: CountingSource) -> None:
    ImageCache(source, tmp_path, 32).read(ref("a"))
    cache = ImageCache(source, tmp_path, 32, limit_bytes=0)

    cache.trim()

    assert cache.key(ref("a")) is None
    assert (cache.read(ref("a")).pixels == 10).all()
    assert len(source.fetched) == 2


def test_images_that_outgrow_their_pixels_are_still_known_by_address(tmp_path: Path, source: CountingSource) -> None:
    """At 64 pixels 4,128 bytes an image, in two blocks, against some 120 of its address."""
    source.files = {str(level): film(level) for level in range(120)}
    cache = ImageCache(source, tmp_path, 64, limit_bytes=600_000)
    images = [ref(uri) for uri in source.files]
    for image in images:
        cache.read(image)
    cache.trim()

    assert len(list((tmp_path / "pixels").glob("*/*"))) == 600_000 * 11 // 12 // 8192
    assert cache.keys(images) == [cache.key(image) for image in images]
    assert None not in cache.keys(images)


def test_the_address_table_of_an_earlier_version_is_taken_over(tmp_path: Path, source: CountingSource) -> None:
    """A file an address, with the digest as text: nothing is fetched again."""
    ImageCache(source, tmp_path, 32).read(ref("a"))
    (tmp_path / "hashes" / TABLE).unlink()
    DiskCache(tmp_path / "hashes").put("a", hashlib.sha256(source.files["a"]).hexdigest().encode())

    assert (ImageCache(source, tmp_path, 32).read(ref("a")).pixels == 10).all()
    assert not list((tmp_path / "hashes").glob("*/*"))
    assert content_digests(source, tmp_path, [ref("a")]) == {"a": hashlib.sha256(source.files["a"]).hexdigest()}
    assert source.fetched == ["a"]


def test_pixels_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """Behind them it kept the image's width and height."""
    file = io.BytesIO()
    Image.new("L", (60, 24), 10).save(file, "PNG")
    source, pixels = CountingSource({"wide": file.getvalue()}), DiskCache(tmp_path / "pixels")
    cache = ImageCache(source, tmp_path, 32)
    key = cache.read(ref("wide")).key
    pixels.put(key, (pixels.get(key) or b"") + struct.pack("<II", 60, 24))

    found = cache.read(ref("wide"))

    assert (found.pixels.shape, source.fetched) == ((32, 32), ["wide"])
    assert (found.pixels == 10).all()


class TestContentDigests:
    def test_of_what_was_read_and_nothing_else(self, tmp_path):
        """Equal bytes have one digest, and nothing is fetched for it."""
        for name, shade in (("a", 9), ("b", 9), ("c", 200), ("unread", 9)):
            Image.new("L", (40, 40), shade).save(tmp_path / f"{name}.png")
        a, b, c, unread = (ImageRef(id=name, uri=f"{name}.png") for name in ("a", "b", "c", "unread"))
        source = FolderSource(tmp_path)
        cache = ImageCache(source, tmp_path / "cache", 32)
        for image in (a, b, c):
            cache.read(image)

        found = content_digests(source, tmp_path / "cache", [a, b, c, unread, ImageRef(id="x", uri="gone.png")])

        assert found.keys() == {"a.png", "b.png", "c.png"}
        assert found["a.png"] == found["b.png"] == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
        assert found["c.png"] != found["a.png"]
