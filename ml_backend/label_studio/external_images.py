"""Addresses of images as tasks hold them: plain, decoded where the image stands in them, and their ways out.

Images from hosts other than Label Studio: allowed ones only, at checked addresses, within a size and a time.
"""

import base64
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import httpcore
import httpx

from ml_backend.config import ImageHosts, is_data_uri, shown_address
from ml_backend.config.network import Server, explain_failure
from ml_backend.label_studio.client import tls_context

# Scheme -> the storage's name in Label Studio's dialog.
STORAGES: Final = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "azure-blob": "Microsoft Azure"}
# Label Studio's own addresses that serve files (1.23.2: io_storages/urls.py, data_import/urls.py).
_FORMER: Final = re.compile(r"/data/(upload|local-files)/.*|/storage-data/.+|/(tasks|projects)/\d+/(resolve|presign)/?")
_FILES: Final = re.compile(r"/(data|storage-data)/.+|/(tasks|projects)/\d+/(resolve|presign)/?")
_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/]")

_LOCAL_FILES: Final = (
    "upload the images, or serve their folder: set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/the/folder where Label Studio runs, add a storage of type Local files, "
    "and write /data/local-files/?d=path/below/that/folder"
)
_WAYS: Final = (
    "wanted is a path that begins with / (an upload), http(s)://, data:, or the URI of a storage that is connected in "
    f"Label Studio ({', '.join(f'{scheme}://' for scheme in STORAGES)})"
)

# How an address that leads to no image begins -> why, and what to write instead.
_WAYS_OUT: Final = tuple(
    (re.compile(start, re.IGNORECASE), words)
    for start, words in (
        (
            r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{40,}={0,2}\Z",
            "is an image in base64 without its head: write data:image/png;base64, before it",
        ),
        (
            r"[a-z]:[\\/]|\\\\|~/|file:",
            f"is a path on a disk, which neither Label Studio nor a browser may open: {_LOCAL_FILES}",
        ),
        (r"//|[\w-]+(?:\.[\w-]+)*:\d+(?:/|\Z)", "names no scheme: write https:// or http:// before the host"),
        (
            r"/",
            "is no file of Label Studio: its key is sent to /data/..., /storage-data/... and /tasks/N/resolve/ alone; "
            f"if this is a path on a disk, {_LOCAL_FILES}",
        ),
        (r"blob:", "exists only in the browser tab that made it: upload the image"),
        (r"s3[an]:", "is not how Label Studio writes this storage: begin it with s3://"),
        (r"gcs:", "is not how Label Studio writes this storage: begin it with gs://"),
        (
            r"(?:az|azure|wasbs?|abfss?|adl):",
            "is not how Label Studio writes this storage: write azure-blob://container/path",
        ),
        (r"(?:data|storage-data|tasks|projects)/", "lacks its first slash: begin it with /"),
    )
)


def plain_address(uri: str) -> str:
    """The address as a browser reads it: without blanks around it and line breaks in it, its scheme in small letters.

    Source:
        https://url.spec.whatwg.org, "basic URL parser", steps 1 to 3.
    """
    stripped = re.sub(r"[\t\r\n]", "", uri.strip("".join(map(chr, range(33)))))
    scheme, colon, rest = stripped.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return stripped
    scheme = scheme.lower()
    if scheme in ("http", "https") and re.match(r"[\\/]{2}", rest):
        # Of a web address, a browser takes backslashes before the query for slashes.
        path, mark, query = rest.partition("?")
        rest = path.replace("\\", "/") + mark + query
    return f"{scheme}:{rest}"


def is_file(path: str) -> bool:
    """Whether a path of Label Studio is one of its files, however its dots and slashes are written."""
    bare = re.split(r"[?#]", path, maxsplit=1)[0]
    decoded = unquote(unquote(bare)).replace("\\", "/")
    return _FILES.fullmatch(bare) is not None and not {".", ".."} & set(decoded.split("/"))


def same_home(uri: str, home: str) -> str | None:
    """The path of ``uri`` below ``home``, with its query; None where it leads elsewhere.

    Of the usual ports, ``http`` and ``https`` are one home: a browser asks for images by the page's scheme.
    """
    try:
        there, here = urlsplit(uri), urlsplit(home)
    except ValueError:  # an IPv6 address without its end
        return None
    if there.scheme not in ("http", "https") or _origin(there.scheme, there.netloc) != _origin(
        here.scheme, here.netloc
    ):
        return None
    path = uri.split("://", 1)[1][len(there.netloc) :]
    prefix = here.path.rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else None


def former_home(uri: str) -> str:
    """What to do where an address elsewhere looks like one of Label Studio; empty where it does not."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return ""
    if _FORMER.fullmatch(parts.path) is None:
        return ""
    path = shown_address(f"{parts.path}?{parts.query}" if parts.query else parts.path)
    return (
        f". If {parts.netloc.rpartition('@')[2]} is a former address of Label Studio, write {path} in the task, "
        "without the host (readers' browsers find it then, too), or import the images again"
    )


def _origin(scheme: str, netloc: str) -> tuple[str, str]:
    host = netloc.lower()
    usual = host.removesuffix(":80" if scheme == "http" else ":443")
    explicit = re.search(r":\d+$", usual)
    return (scheme if explicit else "", usual)


def way_out(uri: str) -> str:
    """Why an address leads to no image, and what to write instead.

    Args:
        uri: plain, and none of http(s)://, data:, of a storage, or a path of Label Studio's files.
    """
    for start, words in _WAYS_OUT:
        if start.match(uri):
            return words
    if re.match(r"[a-z][a-z0-9+.-]+:", uri):
        return f"is of {uri.partition(':')[0]}:, which is not read: {_WAYS}"
    host = "; where it begins with a host, write https:// before it" if re.match(r"[\w-]+(\.[\w-]+)+[:/]", uri) else ""
    return f"begins nowhere: {_WAYS}. For files on a disk, {_LOCAL_FILES}{host}"


def read_data_uri(uri: str) -> bytes:
    """What stands in a data URI, in every spelling that browsers take.

    The media type is not looked at: the decoder goes by the bytes.

    Raises:
        ValueError: it has no comma, or its base64 holds something else; says what to do.

    Source:
        https://fetch.spec.whatwg.org/#data-urls and https://infra.spec.whatwg.org/#forgiving-base64-decode.
    """
    if not is_data_uri(uri):
        raise ValueError("is no data URI")
    head, comma, body = plain_address(uri).partition("#")[0].removeprefix("data:").partition(",")
    if not comma:
        raise ValueError("has no comma before its content: write data:image/png;base64,...")
    content = unquote_to_bytes(body)
    if re.search(r"; *base64$", head.strip(), re.IGNORECASE) is None:
        return content
    text = re.sub(rb"[\t\n\f\r ]", b"", content)
    if len(text) % 4 == 0:
        text = re.sub(rb"={1,2}$", b"", text)
    if (odd := _NOT_BASE64.search(text)) is not None:
        raise ValueError(
            f"holds {odd[0].decode('latin-1')!r} as character {odd.start() + 1} of its base64, which no browser reads: "
            "encode the file anew, with A-Z, a-z, 0-9, + and /"
        )
    if len(text) % 4 == 1:
        raise ValueError("is cut off: its base64 lacks characters at its end; encode the file anew")
    return base64.b64decode(text + b"=" * (-len(text) % 4))


HEADERS: dict[bytes | str, bytes | str] = {
    "User-Agent": "label-studio-active-learning",
    "Accept": "image/*, */*",
    "Accept-Encoding": "identity",
}
CONNECT_S = 10.0
USUAL_PORTS = {"http": 80, "https": 443}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
VERSION = ("etag", "last-modified", "content-length")
IMAGE_HOST = Server("start its server", "the task's image address")
FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpx.InvalidURL,
    OSError,
    UnicodeError,  # a host name that no address can be looked up for, such as http://a..b/
)

# time.monotonic() at which the request of this thread must be through.
_end: ContextVar[float] = ContextVar("_end")


class Refused(Exception):
    """The address may not be asked, or its answer is none that we take; the message says why.

    Attributes:
        status: of HTTP, where there was an answer that says it, or should have.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Found:
    """An answer: a file, its content type and what tells it from the file before, or the address it redirects to."""

    content: bytes = b""
    kind: str = ""
    location: str | None = None
    version: str = ""  # empty where the host says nothing of the kind


def look_up(host: str, port: int) -> Sequence[str]:
    """Every address of a host, in the order of preference.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class ExternalImageFetcher:
    """Fetches from allowed hosts. Safe to share between threads. No proxy of the environment is used.

    Args:
        hosts: the allowed ones.
        max_bytes: of one file.
        network: connects to addresses; httpcore's own unless a test brings another.
        resolve: looks the addresses of a host and port up; likewise.
    """

    def __init__(
        self,
        hosts: ImageHosts,
        *,
        max_bytes: int,
        network: httpcore.NetworkBackend | None = None,
        resolve: Callable[[str, int], Sequence[str]] = look_up,
    ) -> None:
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls_context() if hosts.hosts else None,  # else nothing is connected to
            max_connections=None,
            keepalive_expiry=5.0,
            network_backend=_CheckedNetwork(hosts, network or httpcore.SyncBackend(), resolve),
        )

    def get(self, address: str, end: float, *, method: str = "GET") -> Found:
        """A file, or where it is now.

        Args:
            address: begins with http:// or https://.
            end: ``time.monotonic()`` at which it must be there.
            method: HEAD for the file without its content.

        Raises:
            Refused: the host is not allowed, or answers with something else than a file of bounded size.
            TimeoutError: it was not there in time.
            OSError: the host does not answer, or not in HTTP; or the address is none.
        """
        before = _end.set(end)
        try:
            return self._get(httpx.URL(address), method)
        except httpcore.TimeoutException as error:
            raise TimeoutError(str(explain_failure(error, address, IMAGE_HOST))) from error
        except FAILURES as error:
            raise OSError(str(explain_failure(error, address, IMAGE_HOST))) from error
        finally:
            _end.reset(before)

    def close(self) -> None:
        self._pool.close()

    def _get(self, url: httpx.URL, method: str) -> Found:
        self._check(url)
        whole = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with self._pool.stream(method, whole, headers=HEADERS | {"Host": url.netloc}) as response:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in REDIRECTS and "location" in headers:
                return Found(location=str(url.join(headers["location"])))
            if response.status != 200:
                raise Refused(f"answered {response.status}", response.status)
            if (packed := headers.get("content-encoding", "identity")) != "identity":
                raise Refused(f"answered with Content-Encoding {packed[:40]!r}, which was not asked for")
            version = "|".join(headers[name] for name in VERSION if name in headers)
            return Found(self._read(response.iter_stream()), headers.get("content-type", ""), version=version)

    def _read(self, parts: Iterable[bytes]) -> bytes:
        content = bytearray()
        for part in parts:
            content += part
            if len(content) > self._max_bytes:
                raise Refused(f"is larger than {self._max_bytes} bytes", 413)
        return bytes(content)

    def _check(self, url: httpx.URL) -> None:
        if url.scheme not in USUAL_PORTS or not url.host:
            raise Refused("is no address of http:// or https://")
        if url.userinfo:
            raise Refused("holds a user or a password, which are not sent: let the host do without, or use a storage")
        usual = USUAL_PORTS[url.scheme]
        host, port = url.raw_host.decode(), url.port or usual
        # As it is asked for, or as people write it: xn--bcher-kva.example is bücher.example.
        if not any(self._hosts.allows(name, port, usual=port == usual) for name in (host, url.host)):
            entry = host if port == usual else f"{host}:{port}"
            raise Refused(
                f"{entry} is not among the hosts that images may come from: add it to AL_IMAGE_HOSTS, or connect it "
                "as a storage in Label Studio"
            )


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to addresses that may be connected to, and keeps the time of the request."""

    def __init__(
        self, hosts: ImageHosts, network: httpcore.NetworkBackend, resolve: Callable[[str, int], Sequence[str]]
    ) -> None:
        self._hosts = hosts
        self._network = network
        self._resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        del timeout
        addresses = self._resolve(host, port)
        allowed = [address for address in addresses if self._hosts.reaches(address)]
        if not allowed:
            raise Refused(
                f"{host} lies at {', '.join(addresses[:3])}, which is private: if that is meant, add its network to "
                "AL_IMAGE_HOSTS, such as 10.0.0.0/8"
            )
        for address in allowed[:-1]:
            try:
                return self._connect(address, port, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connect(allowed[-1], port, local_address, socket_options)

    def _connect(
        self, address: str, port: int, local_address: str | None, options: Iterable[Any] | None
    ) -> httpcore.NetworkStream:
        timeout = min(_left(), CONNECT_S)
        return _TimedStream(self._network.connect_tcp(address, port, timeout, local_address, options))


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the request's time. httpcore itself bounds each wait alone."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        return self._stream.read(max_bytes, _left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        self._stream.write(buffer, _left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        del timeout
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _left()))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left() -> float:
    left = _end.get() - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time of this request is over")
    return left
