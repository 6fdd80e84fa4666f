import base64
import hashlib
from collections.abc import Callable

import httpx
import pytest

from ml_backend.errors import ImageError, LabelStudioError
from ml_backend.images.source import ImageSource
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.records import ImageRef

URL = "http://label-studio:8080"  # how the backend reaches it
HOSTNAME = "http://localhost:8080"  # how it calls itself
PNG = b"\x89PNG\r\n\x1a\n..."
PNG_ANSWER = {"content": PNG, "headers": {"content-type": "image/png"}}


class Web:
    """One web for both clients; remembers who was asked with which key."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | Exception | None = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((str(request.url), request.headers.get("authorization")))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            return httpx.Response(200, content=PNG, headers={"content-type": "image/png"})
        return self.answer(request)


def images(web: Web, url: str = URL, **kwargs: int) -> LabelStudioImages:
    transport = httpx.MockTransport(web)
    client = LabelStudioClient(url, "secret", transport=transport, retries=1)
    return LabelStudioImages(client, HOSTNAME, transport=transport, **kwargs)


def ref(uri: str) -> ImageRef:
    return ImageRef(id="12", uri=uri)


class TestFetch:
    @pytest.mark.parametrize(
        ("uri", "asked"),
        [
            ("/data/upload/1/ab-film 1.png", f"{URL}/data/upload/1/ab-film%201.png"),
            (f"{URL}/data/upload/1/a.png", f"{URL}/data/upload/1/a.png"),
            # A synced task of a local storage names Label Studio as it calls itself.
            (f"{HOSTNAME}/data/local-files/?d=pool/x.png", f"{URL}/data/local-files/?d=pool/x.png"),
            (
                "s3://bucket/p 1/x.png",
                f"{URL}/tasks/12/resolve/?fileuri={base64.urlsafe_b64encode(b's3://bucket/p 1/x.png').decode()}",
            ),
        ],
    )
    def test_from_label_studio_with_the_key(self, uri: str, asked: str) -> None:
        web = Web()

        assert images(web).fetch(ref(uri)) == PNG
        assert [(url.replace("%3D", "="), key) for url, key in web.asked] == [(asked, "Token secret")]

    @pytest.mark.parametrize(
        "uri",
        [
            "https://films.example/a.png",
            "http://label-studio.evil.example/a.png",
            "http://label-studio:8081/a.png",
            "http://label-studio:8080@evil.example/a.png",
        ],
    )
    def test_from_elsewhere_without_the_key(self, uri: str) -> None:
        web = Web()

        assert images(web).fetch(ref(uri)) == PNG
        ((url, key),) = web.asked
        assert not url.startswith(f"{URL}/")
        assert key is None or key.startswith("Basic ")  # from the URL's own user part

    def test_an_address_that_only_begins_like_label_studios(self) -> None:
        web = Web()
        source: ImageSource = images(web, "http://ls")

        source.fetch(ref("http://ls.evil.example/a.png"))

        assert web.asked == [("http://ls.evil.example/a.png", None)]

    def test_served_under_a_path(self) -> None:
        """Label Studio then writes that path into the URIs of uploads, older ones lack it."""
        web = Web()
        source = images(web, f"{URL}/annotate")

        source.fetch(ref("/annotate/data/upload/1/a.png"))
        source.fetch(ref("/data/upload/1/a.png"))

        assert {url for url, _ in web.asked} == {f"{URL}/annotate/data/upload/1/a.png"}

    def test_inline(self) -> None:
        assert images(Web()).fetch(ref(f"data:image/png;base64,{base64.b64encode(PNG).decode()}")) == PNG
        assert images(Web()).fetch(ref("data:image/svg+xml,%3Csvg/%3E")) == b"<svg/>"

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("data:text/html;base64,PGh0bWw+", "text/html;base64"),
            ("data:image/png;base64,***", "data URI"),
            ("films/a.png", "'films/a.png'; wanted is"),
            ("//evil.example/a.png", "wanted is"),
            ("http://films.example:8080.evil/a.png", "InvalidURL"),
            ("http://xn--a/a.png", "InvalidCodepoint"),
            ("http://films.example/\x00a.png", "InvalidURL"),
            ("/\x00", "no address"),
        ],
    )
    def test_names_what_is_no_address(self, uri: str, said: str) -> None:
        with pytest.raises(ImageError, match=rf"image 12.*{said}"):
            images(Web()).fetch(ref(uri))

    @pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example"])
    def test_names_a_host_that_no_address_can_be_looked_up_for(self, host: str) -> None:
        """Over the real transport: Python's own lookup refuses such a name before anything is sent."""
        client = LabelStudioClient(URL, "key")

        with pytest.raises(ImageError, match=r"image 12.*UnicodeError"):
            LabelStudioImages(client, HOSTNAME).fetch(ref(f"http://{host}/a.png"))

    @pytest.mark.parametrize("uri", ["/data/upload/1/a.png", "https://films.example/a.png"])
    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(200, html="<p>sign in"),
            httpx.Response(200, content=b" \n<!DOCTYPE html><title>", headers={"content-type": "image/png"}),
        ],
    )
    def test_a_page_is_no_image(self, uri: str, answer: httpx.Response) -> None:
        with pytest.raises(ImageError, match=r"image 12 .* is an HTML page"):
            images(Web(lambda _: answer)).fetch(ref(uri))

    @pytest.mark.parametrize("uri", ["/data/upload/1/a.png", "https://films.example/a.png", "s3://bucket/a.png"])
    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(404),
            httpx.Response(500, json={"detail": "no such file"}),
            httpx.Response(200, content=PNG * 9),
        ],
    )
    def test_what_concerns_one_image_excludes_one_image(self, uri: str, answer: httpx.Response) -> None:
        with pytest.raises(ImageError, match="image 12"):
            images(Web(lambda _: answer), max_bytes=50).fetch(ref(uri))

    def test_a_slow_image_excludes_one_image(self) -> None:
        for uri in ("/data/upload/1/a.png", "https://films.example/a.png"):
            with pytest.raises(ImageError, match="ReadTimeout"):
                images(Web(httpx.ReadTimeout("slow"))).fetch(ref(uri))

    def test_what_concerns_all_images_stops_the_round(self) -> None:
        """Else the whole pool would be excluded image by image."""
        for answer in (httpx.ConnectError("down"), lambda _: httpx.Response(401)):
            with pytest.raises(LabelStudioError):
                images(Web(answer)).fetch(ref("/data/upload/1/a.png"))


class TestCacheKey:
    def test_not_by_task(self) -> None:
        """Label Studio on SQLite hands task ids out again."""
        source = images(Web())

        assert source.cache_key(ref("/a.png")) == source.cache_key(ImageRef(id="99", uri="/a.png"))

    def test_one_file_has_one_key_however_it_is_addressed(self) -> None:
        source = images(Web())

        keys = {source.cache_key(ref(f"{home}/data/a.png")) for home in ("", URL, HOSTNAME)}

        assert keys == {f"{URL} /data/a.png"}

    def test_two_label_studios_do_not_mix(self) -> None:
        for uri in ("/a.png", "s3://bucket/a.png"):
            assert images(Web()).cache_key(ref(uri)) != images(Web(), "http://other").cache_key(ref(uri))

    def test_elsewhere_and_inline(self) -> None:
        uri = "data:image/png;base64,AAAA"

        assert images(Web()).cache_key(ref("https://films.example/a.png")) == "https://films.example/a.png"
        assert images(Web()).cache_key(ref(uri)) == f"data:{hashlib.sha256(uri.encode()).hexdigest()}"
