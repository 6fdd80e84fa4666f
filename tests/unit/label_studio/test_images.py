"""Images by the addresses of tasks: who is asked, with the key or without, and what an error advises."""

import base64
import contextlib
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.config import ImageHosts, is_data_uri, shown_address
from ml_backend.errors import ImageError, LabelStudioError
from ml_backend.images.decode import UndecodableImage, decode
from ml_backend.images.source import ImageSource
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.external_images import ExternalImageFetcher
from ml_backend.label_studio.images import ATTEMPTS, LabelStudioImages, plain_address, read_data_uri, same_home
from ml_backend.schemas import ImageRef
from tests.unit.label_studio.data_uris import DRAWINGS, PNG, SPELLINGS

URL = "http://label-studio:8080"  # how the backend reaches it
HOSTNAME = "http://localhost:8080"  # how it calls itself
HOME = "https://studio.example"


class Web:
    """Label Studio, over httpx's own mock transport; remembers what it was asked with which key."""

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


class Line(httpcore.MockStream):
    """A connection that keeps what was written to it."""

    def __init__(self, parts: list[bytes], written: list[bytes]) -> None:
        super().__init__(parts)
        self._written = written

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._written.append(buffer)

    def start_tls(self, *_args: Any, **_options: Any) -> httpcore.NetworkStream:
        return self


class Internet(httpcore.NetworkBackend):
    """Every host but Label Studio; remembers which addresses were connected to, and what was sent there."""

    def __init__(self, *answers: bytes, at: Sequence[str] = ("93.184.215.14",)) -> None:
        self.answers = list(answers)
        self.at = at
        self.connected: list[tuple[str, int]] = []
        self.sent: list[bytes] = []

    def resolve(self, host: str, port: int) -> Sequence[str]:
        del host, port
        return self.at

    def connect_tcp(self, host: str, port: int, *_args: Any, **_options: Any) -> httpcore.NetworkStream:
        self.connected.append((host, port))
        return Line([self.answers.pop(0) if self.answers else raw_response(200, PNG)], self.sent)


def raw_response(status: int, content: bytes = b"", **headers: str) -> bytes:
    """An answer as it comes over the line, after which the host hangs up."""
    head = {"content-type": "image/png", "connection": "close", "content-length": str(len(content))} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + content


def images(
    web: Web, url: str = URL, internet: Internet | None = None, hosts: str = "films.example", max_bytes: int = 2**20
) -> LabelStudioImages:
    client = LabelStudioClient(url, "secret", transport=httpx.MockTransport(web), retries=1)
    internet = internet or Internet()
    fetcher = ExternalImageFetcher(
        ImageHosts.parse(hosts), max_bytes=max_bytes, network=internet, resolve=internet.resolve
    )
    return LabelStudioImages(client, HOSTNAME, max_bytes=max_bytes, fetcher=fetcher, backoff_s=0.001)


def ref(uri: str) -> ImageRef:
    return ImageRef(id="12", uri=uri)


def fetched(uri: str, status: int = 200) -> bytes:
    """From a Label Studio at ``HOME``."""
    web = Web(lambda _: httpx.Response(status, content=PNG if status == 200 else b"no"))
    return images(web, HOME).fetch(ref(uri))


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
            "/api/users/",
            "/api/projects/1/export?exportType=JSON",
            "/",
            "/data/",
            "/data/../api/users/",
            "/data/upload/..%2f..%2fapi/users/",
            "/data/%252e%252e/api/users/",
            "/data/..\\api/users/",
            "/tasks/1/annotations/",
            "/tasks/1/resolve/../../api/users",
            f"{URL}/api/token/",
            f"{HOSTNAME}/user/logout",
        ],
    )
    def test_the_key_is_sent_to_files_alone(self, uri: str) -> None:
        """Whoever imports tasks could otherwise make us ask anything of Label Studio, as our user."""
        web = Web()

        with pytest.raises(ImageError, match=r"image 12 .*is not a file of Label Studio"):
            images(web).fetch(ref(uri))
        assert web.asked == []

    @pytest.mark.parametrize("uri", ["/data/upload/1/a..b.png", "/projects/3/presign/?fileuri=eA", "/data/%41.png"])
    def test_which_paths_are_files(self, uri: str) -> None:
        assert images(Web()).fetch(ref(uri)) == PNG

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
        ("uri", "message"),
        [
            ("data:text/html;base64,PGh0bWw+", "text/html;base64.*is an HTML page"),
            ("gopher://films.example/", "expected"),
            ("http://films.example:8080.evil/a.png", "is not an address"),
            ("http://xn--a/a.png", "InvalidCodepoint"),
            ("http://films.example/\x00a.png", "is not an address"),
            ("/data/\x00a", "not an address"),
        ],
    )
    def test_names_what_is_no_address(self, uri: str, message: str) -> None:
        with pytest.raises(ImageError, match=rf"image 12.*{message}"):
            images(Web()).fetch(ref(uri))

    @pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example"])
    def test_names_a_host_that_no_address_can_be_looked_up_for(self, host: str) -> None:
        """Over the real network: Python's own lookup refuses such a name before anything is sent."""
        client = LabelStudioClient(URL, "key")

        with pytest.raises(ImageError, match=r"image 12.*UnicodeError"):
            LabelStudioImages(client, HOSTNAME, hosts=ImageHosts.parse(host)).fetch(ref(f"http://{host}/a.png"))

    @pytest.mark.parametrize(
        ("content", "kind"), [(b"<p>sign in", "text/html"), (b" \n<!DOCTYPE html><title>", "image/png")]
    )
    def test_a_page_is_no_image(self, content: bytes, kind: str) -> None:
        web = Web(lambda _: httpx.Response(200, content=content, headers={"content-type": kind}))
        internet = Internet(raw_response(200, content, **{"content-type": kind}))

        for uri in ("/data/upload/1/a.png", "https://films.example/a.png"):
            with pytest.raises(ImageError, match=r"image 12 .* is an HTML page"):
                images(web, internet=internet).fetch(ref(uri))

    @pytest.mark.parametrize("uri", ["/data/upload/1/a.png", "s3://bucket/a.png"])
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
        with pytest.raises(ImageError, match="no complete answer came in time"):
            images(Web(httpx.ReadTimeout("slow"))).fetch(ref("/data/upload/1/a.png"))

    def test_what_concerns_all_images_stops_the_round(self) -> None:
        """Else the whole pool would be excluded image by image."""
        for answer in (httpx.ConnectError("down"), lambda _: httpx.Response(401)):
            with pytest.raises(LabelStudioError):
                images(Web(answer)).fetch(ref("/data/upload/1/a.png"))


class TestErrorKind:
    """The kind decides when an image is tried again, and is what the owner filters by."""

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (403, "forbidden"),
            (404, "missing"),
            (410, "missing"),
            (413, "too-large"),
            (500, "refused"),  # what Label Studio answers where an upload is gone
            (503, "unreachable"),
        ],
    )
    @pytest.mark.parametrize("uri", ["/data/upload/1/a.png", "http://films.example/a.png"])
    def test_by_the_status_of_the_answer(self, uri: str, status: int, kind: str) -> None:
        source = images(Web(lambda _: httpx.Response(status)), internet=Internet(*[raw_response(status)] * ATTEMPTS))

        with pytest.raises(ImageError) as error:
            source.fetch(ref(uri))

        assert error.value.kind == kind

    @pytest.mark.parametrize(
        ("cause", "kind"),
        [
            (httpx.ReadTimeout("slow"), "timed-out"),
            (httpx.ReadError("no"), "unreachable"),
            (httpx.RemoteProtocolError("hung up"), "unreachable"),
        ],
    )
    def test_by_what_went_wrong_on_the_way(self, cause: httpx.HTTPError, kind: str) -> None:
        with pytest.raises(ImageError) as error:
            images(Web(cause)).fetch(ref("/data/upload/1/a.png"))

        assert error.value.kind == kind

    def test_a_host_that_hangs_up(self) -> None:
        with pytest.raises(ImageError) as error:
            images(Web(), internet=Internet(b"")).fetch(ref("http://films.example/a.png"))

        assert error.value.kind == "unreachable"

    def test_an_address_that_cannot_be_one(self) -> None:
        with pytest.raises(ImageError) as error:
            images(Web()).fetch(ref("blob:http://x/1"))

        assert error.value.kind == "refused"


class TestExternalHosts:
    def test_from_an_allowed_host_without_the_key(self) -> None:
        """Connected to at the address that was checked; the host stands in the request."""
        web, internet = Web(), Internet()

        assert images(web, internet=internet).fetch(ref("http://Films.Example/a%20b.png?x=1#part")) == PNG
        assert web.asked == []
        assert internet.connected == [("93.184.215.14", 80)]
        head = b"".join(internet.sent)
        assert head.startswith(b"GET /a%20b.png?x=1 HTTP/1.1\r\n")
        assert b"Host: films.example\r\n" in head
        assert b"secret" not in head
        assert b"authorization" not in head.lower()

    @pytest.mark.parametrize(
        ("uri", "entry"),
        [
            ("https://other.example/a.png", "other.example"),
            ("https://films.example:8443/a.png", "films.example:8443"),
            ("http://films.example.evil.example/a.png", "films.example.evil.example"),
            ("http://evil.example/films.example/a.png", "evil.example"),
            ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
            ("http://[::1]/a.png", "::1"),
            ("http://2130706433/a.png", "2130706433"),
            ("http://label-studio:8081/a.png", "label-studio:8081"),
            ("http://label-studio.evil.example/a.png", "label-studio.evil.example"),
        ],
    )
    def test_other_hosts_are_refused_with_the_way_out(self, uri: str, entry: str) -> None:
        internet = Internet()

        with pytest.raises(ImageError) as refusal:
            images(Web(), internet=internet).fetch(ref(uri))
        assert f"{entry} is not among the hosts that images may come from: add it to AL_IMAGE_HOSTS" in str(
            refusal.value
        )
        assert internet.connected == []

    @pytest.mark.parametrize("uri", ["http://bücher.example/ä b.png", "http://xn--bcher-kva.example/%C3%A4%20b.png"])
    @pytest.mark.parametrize("hosts", ["bücher.example", "Bücher.Example", "xn--bcher-kva.example"])
    def test_umlauts_and_blanks(self, uri: str, hosts: str) -> None:
        internet = Internet()

        assert images(Web(), internet=internet, hosts=hosts).fetch(ref(uri)) == PNG
        head = b"".join(internet.sent)
        assert head.startswith(b"GET /%C3%A4%20b.png HTTP/1.1\r\n")
        assert b"Host: xn--bcher-kva.example\r\n" in head

    def test_user_and_password_in_an_address_are_neither_sent_nor_told(self) -> None:
        for uri in ("http://films.example:pw@evil.example/a.png", "https://me:pw@films.example/a.png"):
            internet = Internet()

            with pytest.raises(ImageError, match="holds a user or a password") as refusal:
                images(Web(), internet=internet).fetch(ref(uri))
            assert "pw" not in str(refusal.value).replace("password", "")
            assert internet.connected == []

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.9", "100.64.0.1", "0.0.0.0", "::1", "fe80::1%eth0",
         "fd00::1", "::ffff:127.0.0.1", "224.0.0.1"],
    )  # fmt: skip
    def test_an_allowed_name_that_leads_to_a_private_address(self, address: str) -> None:
        internet = Internet(at=(address,))

        with pytest.raises(ImageError, match=r"films.example lies at .*, which is private.*AL_IMAGE_HOSTS"):
            images(Web(), internet=internet).fetch(ref("http://films.example/a.png"))
        assert internet.connected == []

    def test_private_networks_and_addresses_that_are_allowed(self) -> None:
        for hosts, uri, at in [
            ("films.example, 10.0.0.0/8", "http://films.example/a.png", "10.1.2.3"),
            ("10.1.2.3:8042", "http://10.1.2.3:8042/a.png", "10.1.2.3"),
            ("[::1]:8042", "http://[::1]:8042/a.png", "::1"),
        ]:
            internet = Internet(at=(at,))

            assert images(Web(), internet=internet, hosts=hosts).fetch(ref(uri)) == PNG
            assert [address for address, _ in internet.connected] == [at]

    def test_of_several_addresses_only_the_public_one_is_connected_to(self) -> None:
        internet = Internet(at=("127.0.0.1", "93.184.215.14"))

        assert images(Web(), internet=internet).fetch(ref("http://films.example/a.png")) == PNG
        assert internet.connected == [("93.184.215.14", 80)]

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (raw_response(404), "answered 404"),
            (raw_response(200, PNG * 9), "larger than 50 bytes"),
            (raw_response(200, PNG, **{"content-encoding": "gzip"}), "Content-Encoding 'gzip'"),
            (b"SSH-2.0-OpenSSH\r\n", "is not HTTP"),
            (b"", "is not HTTP"),
        ],
    )
    def test_what_is_no_image_of_bounded_size(self, answer: bytes, why: str) -> None:
        with pytest.raises(ImageError, match=f"image 12 .*{why}"):
            images(Web(), internet=Internet(answer), max_bytes=50).fetch(ref("http://films.example/a.png"))

    def test_a_signature_is_not_repeated(self) -> None:
        """Reasons of exclusion stand in reports, logs and on the owner's page."""
        with pytest.raises(ImageError) as refusal:
            images(Web(), internet=Internet(raw_response(403))).fetch(
                ref("https://films.example/a.png?X-Amz-Signature=51gn")
            )
        assert str(refusal.value).startswith(
            "image 12 ('https://films.example/a.png?...'): answered 403; the signature"
        )
        assert "51gn" not in str(refusal.value)


class TestStorages:
    """The bucket, as Label Studio's redirect leads to it; the whole of it is in tests/system/test_buckets.py."""

    @pytest.fixture
    def web(self) -> Web:
        signed = (f"https://films.example/a.png?sig={number}" for number in range(9))
        return Web(lambda _: httpx.Response(303, headers={"location": next(signed)}))

    @pytest.mark.parametrize("uri", ["s3://films/a.png", "gs://films/a.png", "azure-blob://films/a.png"])
    @pytest.mark.parametrize(
        "expired",
        [
            (403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),  # S3
            (400, b"<Error><Code>ExpiredToken</Code></Error>"),  # Google
            (403, b"<Error><Code>AuthenticationFailed</Code></Error>"),  # Azure
        ],
    )
    def test_one_that_expired_is_signed_anew(self, web: Web, uri: str, expired: tuple[int, bytes]) -> None:
        internet = Internet(raw_response(*expired))

        assert images(web, internet=internet).fetch(ref(uri)) == PNG
        assert re.findall(rb"sig=(\d)", b"".join(internet.sent)) == [b"0", b"1"]

    @pytest.mark.parametrize(("scheme", "name"), [("s3", "S3"), ("gs", "Google"), ("azure-blob", "Azure")])
    def test_keys_that_are_refused(self, web: Web, scheme: str, name: str) -> None:
        denied = raw_response(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")

        with pytest.raises(
            ImageError, match=r"answered 403 \(InvalidAccessKeyId\); .*correct the storage's cred"
        ) as error:
            images(web, internet=Internet(denied, denied, denied)).fetch(ref(f"{scheme}://films/a.png"))

        assert error.value.kind == "forbidden"
        assert len(web.asked) == 2

    def test_a_bucket_that_is_not_allowed(self, web: Web) -> None:
        internet = Internet()

        with pytest.raises(ImageError, match=r"add it to AL_IMAGE_HOSTS, or turn off pre-signed URLs of the") as error:
            images(web, internet=internet, hosts="").fetch(ref("s3://films/a.png"))

        assert error.value.kind == "forbidden"
        assert (internet.connected, len(web.asked)) == ([], 1)

    @pytest.mark.parametrize("status", [429, 503])
    def test_one_that_is_busy_is_asked_again(self, web: Web, status: int) -> None:
        internet = Internet(*[raw_response(status)] * (ATTEMPTS - 1))

        assert images(web, internet=internet).fetch(ref("s3://films/a.png")) == PNG
        assert (len(internet.connected), len(web.asked)) == (ATTEMPTS, 1)

    def test_a_busy_one_is_not_asked_for_longer_than_an_image_may_take(self) -> None:
        internet = Internet(*[raw_response(503)] * ATTEMPTS)
        client = LabelStudioClient(URL, "secret", transport=httpx.MockTransport(Web()))
        hosts = ImageHosts.parse("films.example")
        fetcher = ExternalImageFetcher(hosts, max_bytes=99, network=internet, resolve=internet.resolve)

        with pytest.raises(ImageError, match="answered 503"):
            LabelStudioImages(client, timeout_s=0.2, fetcher=fetcher, backoff_s=60).fetch(ref("http://films.example/"))

        assert len(internet.connected) == 1

    def test_what_the_proxy_of_label_studio_cannot_read(self) -> None:
        web = Web(lambda _: httpx.Response(424, json={"error": "Storage stream failed", "detail": "Stream is None"}))

        with pytest.raises(ImageError, match=r"Stream is None.*could not read s3://films and gives no reason") as error:
            images(web).fetch(ref("s3://films/a.png"))

        assert error.value.kind == "forbidden"


class TestRedirects:
    def test_from_a_storage_to_an_allowed_bucket_without_the_key(self) -> None:
        web = Web(lambda _: httpx.Response(303, headers={"location": "https://films.example/a.png?sig=x"}))
        internet = Internet()

        assert images(web, internet=internet).fetch(ref("s3://bucket/a.png")) == PNG
        assert len(web.asked) == 1
        assert b"secret" not in b"".join(internet.sent)

    @pytest.mark.parametrize(
        ("location", "why"),
        [
            ("http://127.0.0.1:6379/", r"leads to http://127.0.0.1:6379/: 127.0.0.1:6379 is not among the hosts"),
            ("//evil.example/a.png", "evil.example is not among the hosts"),
            ("file:///etc/passwd", "is not an address of http"),
            ("/api/users/?x=1", "/api/users/.*is not a file of Label Studio"),
            ("https://label-studio:8080/data/upload/1/a.png", "label-studio:8080 is not among the hosts"),
        ],
    )
    def test_of_label_studio(self, location: str, why: str) -> None:
        web = Web(lambda _: httpx.Response(302, headers={"location": location}))

        with pytest.raises(ImageError, match=why):
            images(web).fetch(ref("/data/upload/1/a.png"))
        assert len(web.asked) == 1

    @pytest.mark.parametrize(
        ("location", "why"),
        [
            ("http://evil.example/?secret=1", r"leads to http://evil.example/\?...: evil.example is not among"),
            (f"{URL}/api/users/", "is not a file of Label Studio"),
            ("file:///etc/passwd", "is not an address of http"),
            ("http://[::1", "is not an address"),
        ],
    )
    def test_of_an_allowed_host(self, location: str, why: str) -> None:
        web = Web()

        with pytest.raises(ImageError, match=why):
            images(web, internet=Internet(raw_response(302, location=location))).fetch(
                ref("http://films.example/a.png")
            )
        assert web.asked == []

    def test_within_a_host(self) -> None:
        internet = Internet(raw_response(307, location="../b.png"))

        assert images(Web(), internet=internet).fetch(ref("http://films.example/x/a.png")) == PNG
        assert b"GET /b.png HTTP/1.1" in b"".join(internet.sent)

    def test_that_never_end(self) -> None:
        web = Web(lambda _: httpx.Response(302, headers={"location": "/data/upload/1/a.png"}))

        with pytest.raises(ImageError, match="redirected more than 5 times"):
            images(web).fetch(ref("/data/upload/1/a.png"))
        assert len(web.asked) == 6


class TestCacheKey:
    def test_not_by_task(self) -> None:
        """Label Studio on SQLite hands task ids out again."""
        source: ImageSource = images(Web())

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


class TestDataUris:
    @pytest.mark.parametrize("spelling", [name for name, (_, shown) in SPELLINGS.items() if shown])
    def test_what_a_browser_shows_is_read(self, spelling: str) -> None:
        uri, _ = SPELLINGS[spelling]

        assert decode(fetched(uri), 32, "12").shape == (32, 32)
        assert is_data_uri(uri)
        assert len(shown_address(uri)) < 80
        assert images(Web()).cache_key(ref(uri)).startswith("data:")

    @pytest.mark.parametrize("spelling", [name for name, (_, shown) in SPELLINGS.items() if not shown])
    def test_what_a_browser_does_not_show_is_named(self, spelling: str) -> None:
        with pytest.raises(ImageError, match=r"image 12 .*(encode the file again|write data:image|save the image)"):
            decode(fetched(SPELLINGS[spelling][0]), 32, "12")

    @pytest.mark.parametrize("spelling", DRAWINGS)
    def test_a_drawing_is_named(self, spelling: str) -> None:
        with pytest.raises(UndecodableImage, match="an SVG drawing: export it as PNG or JPEG"):
            decode(fetched(DRAWINGS[spelling]), 32, "12")

    def test_one_larger_than_allowed(self) -> None:
        with pytest.raises(ImageError, match="more than 100 bytes: shrink the image"):
            images(Web(), max_bytes=100).fetch(ref(SPELLINGS["plain"][0]))

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
        assert same_home(plain_address(uri), HOME) == "/data/a.png?d=x"
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
        assert same_home(uri, HOME) is None

    def test_a_port_belongs_to_its_scheme(self) -> None:
        assert same_home("http://studio.example:8080/a.png", "http://studio.example:8080") == "/a.png"
        assert same_home("https://studio.example:8080/a.png", "http://studio.example:8080") is None

    def test_below_a_path(self) -> None:
        assert same_home("http://h:1/ls/data/a.png", "http://h:1/ls") == "/data/a.png"
        assert same_home("http://h:1/lsx/data/a.png", "http://h:1/ls") is None


class TestWayOut:
    """Every address that leads to no image says what to write instead."""

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            (
                "/home/me/films/a.png",
                r"is not a file of Label Studio; if this is a path on a disk, upload the images, or",
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
            ("https://studio.example/projects/7/data", "is not a file of Label Studio"),
            (base64.b64encode(PNG).decode(), "in base64 without its head: write data:image/png;base64, before it"),
            ("/9j/" + "4AAQSkZJRgABAQAAAQABAAD/" * 3, "in base64 without its head"),
        ],
    )
    def test_of_an_address(self, uri: str, message: str) -> None:
        with pytest.raises(ImageError, match=rf"image 12 \(.*\): (.*)?{message}"):
            fetched(uri)

    @pytest.mark.parametrize(
        ("uri", "status", "message"),
        [
            (
                "s3://films/a.png",
                404,
                r"no storage of this project reads s3://films: .*\(Amazon S3\), or correct its cred",
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
    def test_of_what_label_studio_refuses(self, uri: str, status: int, message: str) -> None:
        with pytest.raises(ImageError, match=f"Label Studio answered {status} .*: '?no'?; .*{message}"):
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
            fetched("http://other.example/data/a.png")

        assert "former" not in str(error.value)
