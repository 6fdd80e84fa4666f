"""Addresses of images: in every spelling that a browser takes, or named with a way out."""

import base64
import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.config import is_data_uri, shown_address
from ml_backend.errors import ImageError
from ml_backend.images.decode import UndecodableImage, decode
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.images import LabelStudioImages, plain_address, read_data_uri, same_home
from ml_backend.schemas import ImageRef
from tests.unit.label_studio.data_uris import DRAWINGS, PNG, SPELLINGS

URL = "https://studio.example"


def source(status: int = 200) -> LabelStudioImages:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=PNG if status == 200 else b"no"))
    return LabelStudioImages(LabelStudioClient(URL, "secret", transport=transport, retries=1))


def fetched(uri: str, status: int = 200) -> bytes:
    return source(status).fetch(ImageRef(id="12", uri=uri))


class TestDataUris:
    @pytest.mark.parametrize("spelling", [name for name, (_, shown) in SPELLINGS.items() if shown])
    def test_what_a_browser_shows_is_read(self, spelling: str) -> None:
        uri, _ = SPELLINGS[spelling]

        assert decode(fetched(uri), 32, "12").shape == (32, 32)
        assert is_data_uri(uri)
        assert len(shown_address(uri)) < 80
        assert source().cache_key(ImageRef(id="12", uri=uri)).startswith("data:")

    @pytest.mark.parametrize("spelling", [name for name, (_, shown) in SPELLINGS.items() if not shown])
    def test_what_a_browser_does_not_show_is_named(self, spelling: str) -> None:
        with pytest.raises(ImageError, match=r"image 12 .*(encode the file anew|write data:image|save the image)"):
            decode(fetched(SPELLINGS[spelling][0]), 32, "12")

    @pytest.mark.parametrize("spelling", DRAWINGS)
    def test_a_drawing_is_named(self, spelling: str) -> None:
        with pytest.raises(UndecodableImage, match="an SVG drawing: export it as PNG or JPEG"):
            decode(fetched(DRAWINGS[spelling]), 32, "12")

    def test_one_larger_than_allowed(self) -> None:
        images = LabelStudioImages(LabelStudioClient(URL, "secret"), max_bytes=100)

        with pytest.raises(ImageError, match="more than 100 bytes: shrink the image"):
            images.fetch(ImageRef(id="12", uri=SPELLINGS["plain"][0]))

    @given(
        st.binary(max_size=40), st.lists(st.sampled_from(["\n", " ", "%20", "\t", "%0A"]), max_size=4), st.booleans()
    )
    def test_any_bytes_come_back(self, content: bytes, blanks: list[str], padded: bool) -> None:
        text = base64.b64encode(content).decode()
        text = text if padded else text.rstrip("=")
        for place, blank in enumerate(blanks):
            text = text[: place * 5] + blank + text[place * 5 :]

        assert read_data_uri(f"Data:;Base64,{text}") == content

    @given(st.text())
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        for head in ("data:image/png;base64,", "data:,", "data:", ""):
            with contextlib.suppress(ValueError):
                assert isinstance(read_data_uri(head + text), bytes)


class TestPlainAddress:
    @pytest.mark.parametrize(
        ("uri", "plain"),
        [
            ("  http://a.example/x.png\n", "http://a.example/x.png"),
            ("HTTPS://a.example/X.png", "https://a.example/X.png"),
            ("https:\\\\a.example\\x.png?d=\\", "https://a.example/x.png?d=\\"),
            ("https://a.example/a\n\tb.png", "https://a.example/ab.png"),
            ("S3://Bucket/Key.PNG", "s3://Bucket/Key.PNG"),
            ("/data/upload/1/a b:c.png", "/data/upload/1/a b:c.png"),
            ("C:\\x\\a.png", "C:\\x\\a.png"),
        ],
    )
    def test_as_a_browser_reads_it(self, uri: str, plain: str) -> None:
        assert plain_address(uri) == plain


class TestSameHome:
    @pytest.mark.parametrize(
        "uri",
        [
            "https://studio.example/data/a.png?d=x",
            "http://studio.example/data/a.png?d=x",  # a page of https asks for it by https
            "https://STUDIO.example:443/data/a.png?d=x",
            "HTTP://Studio.example:80/data/a.png?d=x",
        ],
    )
    def test_one_home_in_several_spellings(self, uri: str) -> None:
        assert same_home(plain_address(uri), URL) == "/data/a.png?d=x"
        assert fetched(uri) == PNG

    @pytest.mark.parametrize(
        "uri",
        [
            "https://studio.example:8443/data/a.png",
            "http://studio.example:443/data/a.png",
            "https://studio.example.evil.example/data/a.png",
            "https://studio.example@evil.example/data/a.png",
            "https://me:pw@studio.example/data/a.png",
            "https://evil.example/studio.example/data/a.png",
            "ftp://studio.example/data/a.png",
            "https://[::1/data/a.png",
        ],
    )
    def test_another_home(self, uri: str) -> None:
        assert same_home(uri, URL) is None

    def test_a_port_belongs_to_its_scheme(self) -> None:
        assert same_home("http://studio.example:8080/a.png", "http://studio.example:8080") == "/a.png"
        assert same_home("https://studio.example:8080/a.png", "http://studio.example:8080") is None

    def test_below_a_path(self) -> None:
        assert same_home("http://h:1/ls/data/a.png", "http://h:1/ls") == "/data/a.png"
        assert same_home("http://h:1/lsx/data/a.png", "http://h:1/ls") is None


class TestWayOut:
    """Every address that leads to no image says what to write instead."""

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            (
                "/home/me/films/a.png",
                r"is no file of Label Studio: .*if this is a path on a disk, upload the images, or",
            ),
            ("C:\\films\\a.png", "is a path on a disk, .*LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true"),
            ("c:/films/a.png", "is a path on a disk, .*LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/the/folder"),
            ("\\\\nas\\films\\a.png", "is a path on a disk"),
            ("~/films/a.png", "is a path on a disk"),
            ("file:///etc/passwd", "is a path on a disk"),
            ("FILE:/films/a.png", "is a path on a disk"),
            ("films/a.png", "has no known beginning: expected .*For files on a disk, upload the images"),
            ("a.png", "has no known beginning: expected"),
            ("films.example/a.png", "where it begins with a host, write https:// before it"),
            ("localhost:8080/a.png", "names no scheme: write https:// or http:// before the host"),
            ("films.example:8080/a.png", "names no scheme: write https:// or http:// before the host"),
            ("//films.example/a.png", "names no scheme: write https:// or http:// before the host"),
            ("data/upload/1/a.png", "lacks its first slash: begin it with /"),
            ("blob:https://studio.example/0-0", "only in the browser tab that made it: upload the image"),
            ("gcs://bucket/a.png", "begin it with gs://"),
            ("s3a://bucket/a.png", "begin it with s3://"),
            ("wasbs://box@host/a.png", "write azure-blob://container/path"),
            ("ftp://films.example/a.png", "is of ftp:, which is not read: expected .*azure-blob://"),
            ("gopher://films.example/", "is of gopher:, which is not read"),
            ("https://studio.example/projects/7/data", "is no file of Label Studio"),
            (base64.b64encode(PNG).decode(), "in base64 without its head: write data:image/png;base64, before it"),
            ("/9j/" + "4AAQSkZJRgABAQAAAQABAAD/" * 3, "in base64 without its head"),
        ],
    )
    def test_of_an_address(self, uri: str, said: str) -> None:
        with pytest.raises(ImageError, match=rf"image 12 \(.*\): (.*)?{said}"):
            fetched(uri)

    @pytest.mark.parametrize(
        ("uri", "status", "said"),
        [
            (
                "s3://films/a.png",
                404,
                r"no storage of this project reads s3://films: .*\(Amazon S3\), or mend its cred",
            ),
            (
                "GS://films/a.png",
                404,
                r"reads gs://films: add it .*Settings > Cloud Storage .*\(Google Cloud Storage\)",
            ),
            ("azure-blob://films/a.png", 404, r"reads azure-blob://films: add it .*\(Microsoft Azure\)"),
            ("/data/local-files/?d=a.png", 403, "set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and"),
            ("/data/local-files/?d=a.png", 404, "add a storage of type Local files for its folder"),
            ("/data/upload/1/a.png", 404, "put the file back into media/ .*, or import the image again"),
            ("/data/upload/1/a.png", 500, "put the file back into media/ .*, or import the image again"),
        ],
    )
    def test_of_what_label_studio_refuses(self, uri: str, status: int, said: str) -> None:
        with pytest.raises(ImageError, match=f"Label Studio answered {status} .*: '?no'?; .*{said}"):
            fetched(uri, status)

    @pytest.mark.parametrize(
        ("path", "write"),
        [
            ("/data/upload/7/ab-film.png", "/data/upload/7/ab-film.png"),
            ("/data/local-files/?d=pool/a.png", r"/data/local-files/\?d=pool/a.png"),
            ("/tasks/3/resolve/?fileuri=czM6", r"/tasks/3/resolve/\?\.\.\."),
        ],
    )
    def test_of_a_former_host(self, path: str, write: str) -> None:
        with pytest.raises(ImageError) as error:
            fetched(f"http://old-studio:8080{path}")

        assert "old-studio:8080 is not among the hosts that images may come from" in str(error.value)
        assert error.match(f"If old-studio:8080 is a former address of Label Studio, write {write} in the task")

    def test_a_host_of_others_is_no_former_one(self) -> None:
        with pytest.raises(ImageError) as error:
            fetched("http://films.example/data/a.png")

        assert "former" not in str(error.value)
