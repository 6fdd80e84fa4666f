"""What is said when no answer comes: real TLS servers, dead proxies and closed ports on loopback."""

import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.config import ImageHosts, Settings
from ml_backend.config.network import CA_VARIABLES, Proxy, explain_failure, proxy_for
from ml_backend.doctor.checks import CheckContext
from ml_backend.doctor.runner import examine
from ml_backend.errors import LabelStudioError, QueueError, RequestRefused, SettingsError, Unreachable
from ml_backend.label_studio.client import LABEL_STUDIO, LabelStudioClient, Route, label_studio_version
from ml_backend.label_studio.external_images import ExternalImageFetcher
from ml_backend.scheduling import RoundQueue, connect_redis

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CA = """
[ca]
default_ca = a
[a]
database = index.txt
default_md = sha256
policy = p
rand_serial = yes
x509_extensions = {name}
[p]
commonName = supplied
[here]
subjectAltName = IP:127.0.0.1
[other]
subjectAltName = DNS:label-studio.example
"""
USUAL = ("20200101000000Z", "20900101000000Z")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CA_VARIABLES, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"AL_{name.upper()}", raising=False)


def openssl(*words: str, cwd: Path) -> None:
    subprocess.run(["openssl", *words], cwd=cwd, check=True, capture_output=True, timeout=60)


def issue(folder: Path, names: str = "here", dates: tuple[str, str] = USUAL) -> Path:
    """A self-signed certificate with its key, as one PEM file."""
    folder.mkdir()
    (folder / "index.txt").touch()
    (folder / "ca.cnf").write_text(CA.format(name=names))
    openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", f"/CN={folder.name}", "-keyout", "key.pem", "-out", "request.pem"),
        cwd=folder,
    )
    openssl(
        *("ca", "-batch", "-selfsign", "-config", "ca.cnf", "-keyfile", "key.pem", "-in", "request.pem", "-notext"),
        *("-out", "cert.pem", "-outdir", ".", "-startdate", dates[0], "-enddate", dates[1]),
        cwd=folder,
    )
    whole = folder / "whole.pem"
    whole.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return whole


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("certificates")
    return {
        "here": issue(folder / "here"),
        "other": issue(folder / "other", "other"),
        "expired": issue(folder / "expired", dates=("20200101000000Z", "20200102000000Z")),
        "early": issue(folder / "early", dates=("20880101000000Z", "20890101000000Z")),
    }


class Studio(BaseHTTPRequestHandler):
    """Label Studio as far as these tests ask it, or a proxy, by what it is asked for."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status, headers, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_CONNECT = do_GET  # noqa: N815 - a name of http.server

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """Takes no offence at a client that hangs up."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with suppress(Exception):
            super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet."""


SOUND = (200, {"Content-Type": "application/json"}, b'{"email": "owner@example.com", "release": "1.23.2"}')


@contextmanager
def studio(
    certificate: Path | None = None, answer: tuple[int, dict[str, str], bytes] = SOUND
) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that it is asked for."""
    server = Server(("127.0.0.1", 0), Studio)
    server.answer, server.asked = answer, []  # type: ignore[attr-defined]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def listening(then: Callable[[socket.socket], None] = lambda _: None) -> Iterator[int]:
    """A port that accepts connections, and what becomes of each."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as held:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                then(held.enter_context(connection))

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def reset(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def whoami(url: str) -> str:
    with LabelStudioClient(url, "legacy", timeout_s=0.5, retries=1) as client:
        return str(client.whoami()["email"])


def failure(url: str) -> Unreachable:
    with pytest.raises(Unreachable) as caught:
        whoami(url)
    return caught.value


class TestCertificates:
    def test_of_an_authority_that_nobody_knows(self, certificates):
        with studio(certificates["here"]) as (url, _):
            error = failure(url)
            with pytest.raises(Unreachable, match="is not trusted"):
                label_studio_version(url)

        assert re.search(r"the certificate of 127\.0\.0\.1:\d+ is not trusted \(self-signed certificate\)", error.what)
        assert error.remedy.startswith("set SSL_CERT_FILE to a PEM file")
        assert "public authorities only" in error.remedy
        assert "is it running" not in str(error)

    @pytest.mark.parametrize("variable", CA_VARIABLES)
    def test_every_usual_variable_names_one_that_is_trusted(self, certificates, variable, monkeypatch, tmp_path):
        trusted = certificates["here"].parent / "cert.pem"
        if variable == "SSL_CERT_DIR":
            (tmp_path / "ca.pem").write_bytes(trusted.read_bytes())
            openssl("rehash", ".", cwd=tmp_path)
            trusted = tmp_path
        monkeypatch.setenv(variable, str(trusted))

        with studio(certificates["here"]) as (url, _):
            assert whoami(url) == "owner@example.com"
            assert label_studio_version(url) == "1.23.2"

    def test_two_variables_add_up(self, certificates, monkeypatch):
        """A Python of conda sets the first by itself."""
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates["other"]))
        with studio(certificates["here"]) as (url, _):
            assert f"(trusted now: SSL_CERT_FILE={certificates['other']})" in failure(url).remedy
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates["here"]))
            assert whoami(url) == "owner@example.com"

    @pytest.mark.parametrize(
        ("name", "what", "remedy"),
        [
            ("other", "is for another name", "set AL_LABEL_STUDIO_URL to a name that the certificate holds"),
            ("expired", "has expired", "renew it; or is the clock"),
            ("early", "is not valid yet", "clock of this machine wrong (20"),
        ],
    )
    def test_a_known_one_that_does_not_fit(self, certificates, name, what, remedy, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates[name]))

        with studio(certificates[name]) as (url, _):
            error = failure(url)

        assert what in error.what
        assert remedy in error.remedy

    def test_of_an_image_host(self, certificates, monkeypatch):
        with studio(certificates["here"]) as (url, _):
            hosts = ImageHosts.parse(url.removeprefix("https://"))
            with pytest.raises(OSError, match=r"is not trusted .*set SSL_CERT_FILE"):
                ExternalImageFetcher(hosts, max_bytes=1000).get(url, time.monotonic() + 30)
            monkeypatch.setenv("CURL_CA_BUNDLE", str(certificates["here"]))
            assert ExternalImageFetcher(hosts, max_bytes=1000).get(url, time.monotonic() + 30).content == SOUND[2]

    def test_nothing_is_asked_twice(self, certificates, monkeypatch):
        """A worker that waits minutes for a Label Studio that starts must not wait for a certificate."""
        # The name in tenacity, not `time.sleep`: servers of earlier tests may still sleep in their threads.
        monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _: pytest.fail("it waits")))
        with studio(certificates["here"]) as (url, _), pytest.raises(Unreachable):
            LabelStudioClient(url, "legacy", retries=99, patience_s=600).whoami()


class TestConnections:
    def test_refused(self):
        port = dead_port()
        error = failure(f"http://127.0.0.1:{port}")

        assert error.what.endswith(f"connection refused by 127.0.0.1:{port}")
        assert error.remedy.startswith("start Label Studio, or set AL_LABEL_STUDIO_URL")

    def test_a_name_that_nobody_knows(self):
        error = failure("http://label-studio.invalid:8080")

        assert "the name label-studio.invalid " in error.what
        assert "does this machine, or container, know the name" in error.remedy

    def test_tls_asked_of_a_plain_port(self):
        with studio() as (url, _):
            error = failure(url.replace("http:", "https:"))

        assert error.what.endswith("does not speak TLS")
        assert "write http:// instead of https:// in AL_LABEL_STUDIO_URL" in error.remedy

    def test_a_plain_request_to_a_port_of_tls(self, certificates):
        with studio(certificates["here"]) as (url, _):
            error = failure(url.replace("https:", "http:"))

        assert "or does https:// answer there?" in error.remedy

    @pytest.mark.parametrize(
        "page",
        [
            b"<html><title>400 The plain HTTP request was sent to HTTPS port</title>",  # nginx
            b"Reason: You're speaking plain HTTP to an SSL-enabled server port.",  # Apache
            b"Client sent an HTTP request to an HTTPS server.",  # Go
        ],
    )
    def test_a_server_that_says_so(self, page):
        with studio(answer=(400, {"Content-Type": "text/html"}, page)) as (url, _):
            error = failure(url)
            with pytest.raises(Unreachable, match="write https:// in AL_LABEL_STUDIO_URL"):
                label_studio_version(url)

        assert (error.what, error.remedy) == (f"{url} speaks TLS and was asked without",
                                              "write https:// in AL_LABEL_STUDIO_URL")  # fmt: skip

    def test_nobody_answers_in_time(self):
        with listening() as port:
            error = failure(f"http://127.0.0.1:{port}")

        assert "no complete answer came in time" in error.what
        assert "overloaded" in error.remedy

    def test_a_connection_that_is_reset(self):
        with listening(reset) as port:
            error = failure(f"http://127.0.0.1:{port}")

        assert error.what.endswith(f"the connection to 127.0.0.1:{port} was reset")

    def test_a_port_that_speaks_something_else(self):
        def greet(connection: socket.socket) -> None:
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")
            connection.shutdown(socket.SHUT_WR)

        with listening(greet) as port:
            error = failure(f"http://127.0.0.1:{port}")

        assert "answered something that is not HTTP" in error.what

    def test_redirects_in_a_loop(self):
        with studio(answer=(302, {"Location": "/again"}, b"")) as (url, _):
            error = failure(url)

        assert error.what.endswith("redirects in a loop")
        assert "X-Forwarded-Proto" in error.remedy

    @pytest.mark.parametrize(
        ("error", "what", "remedy"),
        [
            (httpx.ConnectTimeout("timed out"), "did not accept a connection in time", "firewall"),
            (httpx.PoolTimeout(""), "no complete answer came in time", "overloaded"),
            (OSError(113, "No route to host"), "there is no route to ls:8080", "AL_LABEL_STUDIO_URL"),
            (httpx.UnsupportedProtocol("ftp://"), "this is not an address", "must be http://host:port"),
            (ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] x"), "client certificate", "without one"),
        ],
    )
    def test_what_does_not_come_about_on_loopback(self, error, what, remedy):
        found = explain_failure(error, "http://me:secret@ls:8080/x?key=secret", LABEL_STUDIO)

        assert what in found.what
        assert remedy in found.remedy
        assert "secret" not in str(found)


class TestProxies:
    @pytest.mark.parametrize(
        ("error", "what"),
        [
            (ConnectionRefusedError(111, "Connection refused"), "connection refused by proxy:3128"),
            (socket.gaierror(-2, "Name or service not known"), "the name proxy is not known"),
        ],
    )
    def test_a_dead_one_of_urllib_s(self, error, what):
        """By which weights are fetched: what refuses, or is not known, is the proxy and not the host behind it."""
        found = explain_failure(
            error, "https://weights.example/x", LABEL_STUDIO, Proxy("ALL_PROXY", "http://proxy:3128")
        )

        assert found.what == f"through the proxy of ALL_PROXY (http://proxy:3128): {what}" + (
            " (Name or service not known)" if isinstance(error, socket.gaierror) else ""
        )

    @pytest.mark.parametrize("scheme", ["http", "https"])
    @pytest.mark.parametrize("variable", ["{}_PROXY", "{}_proxy", "ALL_PROXY"])
    def test_a_dead_one_is_named_without_its_password(self, scheme, variable, monkeypatch):
        variable, port = variable.format(scheme.upper() if "P" in variable else scheme), dead_port()
        monkeypatch.setenv(variable, f"http://me:p%40ss@127.0.0.1:{port}")
        error = failure(f"{scheme}://ls.example")

        assert f"through the proxy of {variable} (http://127.0.0.1:{port}): connection refused" in error.what
        assert f"start it, or set {variable}" in error.remedy
        assert error.remedy.endswith("NO_PROXY leaves hosts out")
        assert "p%40ss" not in str(error)

    def test_one_without_its_scheme_and_with_a_name_that_nobody_knows(self, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "proxy.invalid:3128")
        error = failure("http://ls.example")

        assert "through the proxy of HTTP_PROXY (http://proxy.invalid:3128): the name proxy.invalid" in error.what

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_one_that_wants_a_password(self, scheme, monkeypatch):
        with studio(answer=(407, {}, b"")) as (url, _):
            monkeypatch.setenv("ALL_PROXY", url)
            error = failure(f"{scheme}://ls.example")
            with pytest.raises(Unreachable, match="user and"):
                label_studio_version(f"{scheme}://ls.example")

        assert "the proxy of ALL_PROXY" in error.what
        assert "into ALL_PROXY: http://user:password@host:port" in error.remedy

    def test_one_that_cannot_reach_label_studio(self, monkeypatch):
        with studio(answer=(503, {"Content-Type": "text/html"}, b"squid")) as (url, asked):
            monkeypatch.setenv("HTTP_PROXY", url)
            with pytest.raises(RequestRefused, match=rf"503 .*the proxy of HTTP_PROXY \({url}\), and NO_PROXY leaves"):
                whoami("http://ls.example")
            assert asked == ["http://ls.example/api/current-user/whoami"]
            monkeypatch.setenv("HTTPS_PROXY", url)
            error = failure("https://ls.example")
        assert f"the proxy of HTTPS_PROXY ({url}) refused the connection (503" in error.what

    def test_one_that_lets_us_through(self, monkeypatch):
        with studio() as (url, asked):
            monkeypatch.setenv("HTTP_PROXY", url)

            assert whoami("http://ls.example") == "owner@example.com"
            assert asked == ["http://ls.example/api/current-user/whoami"]

    @pytest.mark.parametrize(
        "entries",
        [
            *("127.0.0.1", "127.0.0.0/8", "*", "other.example, 127.0.0.1", "other.example 127.0.0.0/8", "127.0.0.1:{}"),
            "http://127.0.0.1",
        ],
    )
    def test_a_host_that_is_left_out(self, entries, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with studio() as (url, _):
            monkeypatch.setenv("NO_PROXY", entries.format(url.rpartition(":")[2]))

            assert whoami(url) == "owner@example.com"

    @pytest.mark.parametrize(
        ("entry", "url", "left_out"),
        [
            ("example.org", "http://ls.example.org", True),
            (".example.org", "http://ls.example.org", True),
            (".example.org", "http://EXAMPLE.org", True),
            ("*.example.org", "http://ls.example.org", True),
            ("example.org", "http://notexample.org", False),
            ("ls.example.org:443", "https://ls.example.org", True),
            ("ls.example.org:8443", "https://ls.example.org", False),
            ("10.0.0.0/8", "http://10.1.2.3:8080", True),
            ("10.0.0.0/8", "http://11.1.2.3:8080", False),
            ("10.0.0.0/8", "http://ls.example.org", False),
            ("::1", "http://[::1]:8080", True),
            ("[::1]", "http://[0:0:0:0:0:0:0:1]:8080", True),
            ("fd00::/8", "http://[fd00::7]", True),
            ("", "http://ls.example.org", False),
            ("localhost", "http://localhost:8080", True),
            ("https://ls.example.org/", "http://ls.example.org", True),
            ("ls.example.org/", "http://ls.example.org", True),
            ("/", "http://ls.example.org", False),
        ],
    )
    def test_how_hosts_are_left_out(self, entry, url, left_out):
        found = proxy_for(url, {"ALL_PROXY": "http://p:1", "NO_PROXY": entry})

        assert (found is None) is left_out

    def test_which_variable_counts(self):
        both = {"HTTP_PROXY": "http://a:1", "http_proxy": "http://b:1", "ALL_PROXY": "http://c:1"}

        assert str(proxy_for("http://ls", both)) == "the proxy of http_proxy (http://b:1)"
        assert str(proxy_for("https://ls", both)) == "the proxy of ALL_PROXY (http://c:1)"
        assert proxy_for("http://ls", {"http_proxy": "", "HTTP_PROXY": "http://a:1"}) is None
        assert proxy_for("https://ls", {"HTTP_PROXY": "http://a:1"}) is None
        found = proxy_for("http://ls", {"HTTP_PROXY": "http://me:p@ss%25@[::1]:3128"})
        assert found is not None
        assert (found.url, found.auth) == ("http://[::1]:3128", ("me", "p@ss%"))


WRONG = [
    ({"SSL_CERT_FILE": "/nonexistent.pem"}, "SSL_CERT_FILE='/nonexistent.pem' does not exist"),
    ({"SSL_CERT_DIR": "/nonexistent"}, "SSL_CERT_DIR='/nonexistent' does not exist"),
    ({"REQUESTS_CA_BUNDLE": "/nonexistent"}, "REQUESTS_CA_BUNDLE='/nonexistent' does not exist"),
    ({"CURL_CA_BUNDLE": __file__}, f"CURL_CA_BUNDLE='{__file__}' holds no certificate in PEM form"),
    ({"SSL_CERT_FILE": "/dev/null"}, "SSL_CERT_FILE='/dev/null' holds no certificate"),
    ({"SSL_CERT_DIR": str(Path(__file__).parent)}, "holds no certificate under the name that OpenSSL looks for"),
    ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY='socks5://127.0.0.1:9' names a SOCKS proxy, which needs the"),
    ({"HTTP_PROXY": "ftp://proxy"}, "HTTP_PROXY='ftp://proxy' names a proxy of ftp://, which is not supported"),
    ({"HTTP_PROXY": "http://"}, "HTTP_PROXY='http://' is not an address; expected http://host:port"),
    ({"HTTP_PROXY": "http:/proxy:3128"}, "HTTP_PROXY='http:/proxy:3128' is not an address; expected http://host:port"),
    ({"HTTP_PROXY": "http://proxy:0"}, "HTTP_PROXY='http://proxy:0' is not an address"),
    ({"http_proxy": "http://proxy:port"}, "http_proxy='http://proxy:port' is not an address"),
    ({"HTTP_PROXY": "http://[::1"}, "HTTP_PROXY='http://[::1' is not an address"),
    ({"HTTP_PROXY": "http://me:s3/cret@proxy:1"}, "HTTP_PROXY='http://proxy:1' is not an address"),
    ({"HTTP_PROXY": "me:s3#cret@proxy:1"}, "HTTP_PROXY='proxy:1' is not an address"),
    ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/99"}, "NO_PROXY holds '10.0.0.0/99'"),
]


class TestWrongVariables:
    @pytest.mark.parametrize(("environ", "words"), WRONG)
    def test_are_one_line_that_names_them(self, environ, words, monkeypatch):
        """Every command reads its settings first."""
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError) as caught:
            Settings.load(label_studio_url="http://ls:8080")

        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "cret" not in str(caught.value)

    @pytest.mark.parametrize("command", [["serve"], ["work"], ["connect", "--project", "1"], ["demo"]])
    def test_end_every_command(self, command, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
        result = CliRunner().invoke(app, command)

        assert isinstance(result.exception, SettingsError)
        assert "REQUESTS_CA_BUNDLE='/nonexistent.pem' does not exist" in str(result.exception)

    def test_of_a_host_that_only_label_studio_itself_names(self, monkeypatch):
        """Without AL_LABEL_STUDIO_URL it is known at the first request."""
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
        settings = Settings.load(label_studio_api_key="k")

        with pytest.raises(SettingsError, match="ALL_PROXY="):
            LabelStudioClient.from_settings(settings, "http://ls:8080")

    def test_a_socks_proxy_for_somebody_else_does_no_harm(self, monkeypatch):
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        with studio() as (url, _):
            assert whoami(url) == "owner@example.com"


class TestRedis:
    """Its failures are told apart by the same function."""

    def test_certificates(self, certificates, monkeypatch):
        with studio(certificates["here"]) as (url, _):
            redis_url = url.replace("https:", "rediss:")
            with pytest.raises(QueueError, match=r"is not trusted \(self-signed certificate\); set SSL_CERT_FILE"):
                RoundQueue(connect_redis(redis_url)).ping()
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates["here"]))
            with pytest.raises(QueueError) as caught:  # trusted, and no Redis
                RoundQueue(connect_redis(redis_url)).ping()
        assert "certificate" not in str(caught.value)

    def test_refused_and_unknown(self):
        port = dead_port()
        with pytest.raises(QueueError, match=f"connection refused by 127.0.0.1:{port}; start it, or set AL_REDIS_URL"):
            RoundQueue(connect_redis(f"redis://127.0.0.1:{port}")).ping()
        with pytest.raises(QueueError, match=r"the name redis\.invalid"):
            RoundQueue(connect_redis("redis://redis.invalid")).ping()

    def test_tls_asked_of_a_plain_port(self):
        with studio() as (url, _), pytest.raises(QueueError, match="does not speak TLS; write redis:// instead of"):
            RoundQueue(connect_redis(url.replace("http:", "rediss:"))).ping()


class TestDoctor:
    def test_names_failure_and_remedy_of_label_studio_and_backend(self, certificates, tmp_path):
        """Each in a field of its own, and both from the one explanation."""
        with studio(certificates["here"]) as (url, _):
            port = dead_port()
            settings = Settings(label_studio_url=url, label_studio_api_key="k", data_dir=tmp_path)
            found = {one.name: one for one in examine(CheckContext(1, f"http://127.0.0.1:{port}", lambda: settings))}

        assert "is not trusted (self-signed certificate)" in found["Label Studio"].seen
        assert found["Label Studio"].remedy.startswith("set SSL_CERT_FILE")
        assert f"connection refused by 127.0.0.1:{port}" in found["backend"].seen
        assert found["backend"].remedy.startswith("start `ml-backend serve`, or set --url")

    def test_reaches_a_backend_behind_tls_and_past_any_proxy(self, certificates, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates["here"]))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        with studio(certificates["here"]) as (url, _):
            assert CheckContext(1, url, Settings).request_backend("/metrics").status_code == 200


def test_a_refused_request_without_a_proxy_names_none() -> None:
    with studio(answer=(503, {}, b"")) as (url, _), pytest.raises(LabelStudioError) as caught:
        whoami(url)
    assert "proxy" not in str(caught.value)
    assert Route(url, LABEL_STUDIO).note == ""
