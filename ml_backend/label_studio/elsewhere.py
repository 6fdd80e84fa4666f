"""Images from hosts other than Label Studio: allowed ones only, at checked addresses, within a size and a time.

On httpcore, which httpx stands on: it lets us choose the address that is connected to. A name that is looked up once to
be checked and once more to be connected to can lead to two places.
"""

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

from ml_backend.label_studio.route import tls_context
from ml_backend.settings import ImageHosts
from ml_backend.settings.network import Server, explain_failure

__all__ = ["Elsewhere", "Found", "Refused", "look_up"]

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


class Elsewhere:
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
