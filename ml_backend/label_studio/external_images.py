"""Downloads images from other hosts than Label Studio: an allow-list, SSRF checks, a size limit and a time limit.

A host name is resolved once, its addresses are checked, and a checked address is connected to: a second lookup could
give another one. Redirects are returned, not followed.
"""

import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

from ml_backend.config import ImageHosts
from ml_backend.config.network import Server, explain_failure
from ml_backend.label_studio.client import tls_context

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
    UnicodeError,  # a host name that cannot be looked up, such as http://a..b/
)

_deadline: ContextVar[float] = ContextVar("_deadline")  # time.monotonic() at which this thread's request must end


class FetchError(Exception):
    """The address is not requested, or the response is not accepted; the message gives the reason.

    Attributes:
        status: of HTTP, where the response has one that explains it.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BlockedHost(FetchError):
    """The host is not in the allow-list."""


@dataclass(frozen=True, slots=True)
class Response:
    """A file with its content type, or the address that it is redirected to.

    Attributes:
        version: changes with the file; empty where the host sends no such header.
    """

    content: bytes = b""
    kind: str = ""
    location: str | None = None
    version: str = ""


def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, preferred first.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class ExternalImageFetcher:
    """Fetches from allowed hosts, without any proxy of the environment. Safe to share between threads.

    Args:
        hosts: the allow-list.
        max_bytes: size limit of a file.
        network: connects to addresses; replaced by tests.
        resolve: looks up the addresses of a host and port; replaced by tests.
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
            ssl_context=tls_context() if hosts.hosts else None,  # without a host nothing is connected to
            max_connections=None,
            keepalive_expiry=5.0,
            network_backend=_CheckedNetwork(hosts, network or httpcore.SyncBackend(), resolve),
        )

    def get(self, address: str, deadline: float, *, method: str = "GET") -> Response:
        """Request a file.

        Args:
            address: begins with http:// or https://.
            deadline: ``time.monotonic()`` at which the response must be complete.
            method: HEAD for the file without its content.

        Raises:
            BlockedHost: the host is not allowed.
            FetchError: the address may not be requested, or the response is no file of bounded size.
            TimeoutError: the response was not complete in time.
            OSError: the host does not respond, or not in HTTP, or the address is invalid.
        """
        before = _deadline.set(deadline)
        try:
            return self._get(httpx.URL(address), method)
        except httpcore.TimeoutException as error:
            raise TimeoutError(str(explain_failure(error, address, IMAGE_HOST))) from error
        except FAILURES as error:
            raise OSError(str(explain_failure(error, address, IMAGE_HOST))) from error
        finally:
            _deadline.reset(before)

    def close(self) -> None:
        self._pool.close()

    def _get(self, url: httpx.URL, method: str) -> Response:
        self._check(url)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with self._pool.stream(method, target, headers=HEADERS | {"Host": url.netloc}) as response:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in REDIRECTS and "location" in headers:
                return Response(location=str(url.join(headers["location"])))
            if response.status != 200:
                code = _error_code(response.iter_stream())
                raise FetchError(f"answered {response.status}{code and f' ({code})'}", response.status)
            if (packed := headers.get("content-encoding", "identity")) != "identity":
                raise FetchError(f"answered with Content-Encoding {packed[:40]!r}, which was not asked for")
            content = bytearray()
            for part in response.iter_stream():
                content += part
                if len(content) > self._max_bytes:
                    raise FetchError(f"is larger than {self._max_bytes} bytes", 413)
            version = "|".join(headers[name] for name in VERSION if name in headers)
            return Response(bytes(content), headers.get("content-type", ""), version=version)

    def _check(self, url: httpx.URL) -> None:
        if url.scheme not in USUAL_PORTS or not url.host:
            raise FetchError("is not an address of http:// or https://")
        if url.userinfo:
            raise FetchError(
                "holds a user or a password, which are not sent: let the host do without, or use a storage"
            )
        usual = USUAL_PORTS[url.scheme]
        host, port = url.raw_host.decode(), url.port or usual
        # In either spelling: xn--bcher-kva.example is bücher.example.
        if not any(self._hosts.allows(name, port, usual=port == usual) for name in (host, url.host)):
            entry = host if port == usual else f"{host}:{port}"
            raise BlockedHost(f"{entry} is not among the hosts that images may come from: add it to AL_IMAGE_HOSTS")


def _error_code(body: Iterable[bytes]) -> str:
    """The code in a bucket's error, such as AccessDenied; empty where there is none in the first part."""
    found = re.search(rb"<Code>(\w{1,60})</Code>", next(iter(body), b"")[:4096])
    return "" if found is None else found[1].decode("ascii", "replace")


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to allowed addresses only, within the time of the request."""

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
            raise FetchError(
                f"{host} lies at {', '.join(addresses[:3])}, which is private: if that is meant, add its network to "
                "AL_IMAGE_HOSTS, such as 10.0.0.0/8"
            )
        for place, address in enumerate(allowed, start=1):
            timeout_s = min(_remaining_s(), CONNECT_S)
            try:
                stream = self._network.connect_tcp(address, port, timeout_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if place == len(allowed):
                    raise
            else:
                return _TimedStream(stream)
        raise AssertionError  # the last address returns or raises


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the request's time; httpcore limits each wait alone."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        return self._stream.read(max_bytes, _remaining_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        self._stream.write(buffer, _remaining_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        del timeout
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _remaining_s()))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _remaining_s() -> float:
    remaining_s = _deadline.get() - time.monotonic()
    if remaining_s <= 0:
        raise httpcore.ReadTimeout("the time of this request is over")
    return remaining_s
