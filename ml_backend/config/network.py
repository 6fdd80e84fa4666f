"""Certificates and proxies of the environment, and explanations of failed connections.

Nothing here opens a connection. Errors of httpx, httpcore and redis share one explanation.
"""

import errno
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from ml_backend.errors import SettingsError

CA_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""All that are set count: httpx and OpenSSL read the first two, requests and Label Studio's SDK the others."""

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
HASHED = re.compile(r"[0-9a-f]{8}\.\d+")  # the names that OpenSSL looks for in a directory
USUAL_PORTS = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379}
LEAVES_OUT = "NO_PROXY leaves hosts out"

# X509_V_ERR_*: of openssl/x509_vfy.h.
NOT_YET_VALID, EXPIRED = 9, 10
OTHER_NAME = frozenset({62, 64})
UNKNOWN_ISSUER = frozenset({2, 18, 19, 20, 21})
# ssl.SSLError.reason where the other side answers with something that is no TLS.
NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"})


class Failure(NamedTuple):
    """Why a connection failed, and what helps."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


class Server(NamedTuple):
    """What the words about a failed connection need to know about the other side."""

    start: str
    """How it is started: "start Label Studio"."""
    setting: str
    """Where its address comes from: "AL_LABEL_STUDIO_URL"."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, as a variable of the environment names it.

    Attributes:
        variable: its name as it is set.
        url: without user and password.
        auth: user and password, decoded.
    """

    variable: str
    url: str
    auth: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"the proxy of {self.variable} ({self.url})"


# What is trusted


def trusted_certificates(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The files and directories of certificates that the environment names, by variable; empty for the usual ones.

    Raises:
        SettingsError: one does not exist or holds no certificate.
    """
    environ = os.environ if environ is None else environ
    found = {name: value for name in CA_VARIABLES if (value := environ.get(name, "").strip())}
    for name, value in found.items():
        if problem := _certificate_problem(value, tuple(map(_changed, value.split(os.pathsep)))):
            raise SettingsError(
                f"{name}={value!r} {problem}: set it to a PEM file with the certificates to trust, or unset it"
            )
    return found


def environment_context() -> ssl.SSLContext | None:
    """A client's context that trusts what the environment names; None where it names nothing.

    Raises:
        SettingsError: as ``trusted_certificates``.
    """
    named = dict.fromkeys(trusted_certificates().values())
    if not named:
        return None
    locations = [(where, None) if Path(where).is_file() else (None, where) for where in named]
    # The first as arguments: without any, the system's own authorities would be trusted too.
    context = ssl.create_default_context(cafile=locations[0][0], capath=locations[0][1])
    for cafile, capath in locations[1:]:
        context.load_verify_locations(cafile, capath)
    return context


@cache  # a bundle takes 30 ms to read, and is often named by all four variables
def _certificate_problem(value: str, _stamps: tuple[int, ...]) -> str | None:
    # OpenSSL takes several directories in SSL_CERT_DIR.
    folders = [Path(part) for part in value.split(os.pathsep) if part]
    try:
        if all(folder.is_dir() for folder in folders):
            if any(HASHED.fullmatch(file.name) for folder in folders for file in folder.iterdir()):
                return None
            return "holds no certificate under the name that OpenSSL looks for (`openssl rehash` makes these names)"
        if not Path(value).exists():
            return "does not exist"
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=value)
    except ssl.SSLError:
        return "holds no certificate in PEM form"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return None


def _changed(path: str) -> int:
    """Time of a file's last change in ns; 0 where it is unknown."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


# Which proxy


def proxy_for(url: str, environ: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy that the environment names for an address; None where none is to be used.

    ``http_proxy``, ``https_proxy``, then ``all_proxy``, each before its spelling in capitals; ``no_proxy`` may hold
    domains, addresses, networks (10.0.0.0/8), each with a port, and ``*``.

    Raises:
        SettingsError: the variable holds no address of a proxy; names it without its password.
    """
    environ = os.environ if environ is None else environ
    parts = urlsplit(url)
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        variable = name if name in environ else name.upper()
        if (value := environ.get(variable, "").strip()) and not _bypassed(parts, environ):
            return _proxy(variable, value)
    return None


def bypass_proxies(host: str) -> None:
    """Reach a host without a proxy, in this process and its children."""
    for name in ("no_proxy", "NO_PROXY"):
        entries = [entry for entry in os.environ.get(name, "").split(",") if entry not in {"", host}]
        os.environ[name] = ",".join([*entries, host])


def _proxy(variable: str, value: str) -> Proxy:
    address = value if "://" in value else f"http://{value}"  # as curl and requests take it
    shown = re.sub(r"//.*@", "//", value) if "://" in value else value.rpartition("@")[2]
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        # Its message may repeat the password where that holds a slash.
        raise _no_proxy(
            variable, shown, "is not an address" if "@" in value else f"is not an address ({error})"
        ) from None
    if parts.scheme not in PROXY_SCHEMES:
        raise _no_proxy(variable, shown, f"names a proxy of {parts.scheme}://, which is not supported")
    cut = "@" in parts.path + parts.query + parts.fragment or ("://" not in value and parts.path.strip("/"))
    if not parts.hostname or port == 0 or cut or re.search(r"\s", address):
        raise _no_proxy(variable, shown, "is not an address")
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise _no_proxy(variable, shown, "names a SOCKS proxy, which needs the package socksio")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    auth = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    return Proxy(variable, f"{parts.scheme}://{host}{'' if port is None else f':{port}'}", auth)


def _no_proxy(variable: str, shown: str, problem: str) -> SettingsError:
    return SettingsError(
        f"{variable}={shown!r} {problem}; expected http://host:port (a special character of its user or password as "
        f"%XX). {LEAVES_OUT}, separated by commas"
    )


def _bypassed(target: SplitResult, environ: Mapping[str, str]) -> bool:
    host = (target.hostname or "").rstrip(".")
    port = target.port or USUAL_PORTS.get(target.scheme)
    variable = "no_proxy" if "no_proxy" in environ else "NO_PROXY"
    entries = re.split(r"[,\s]+", environ.get(variable, "").lower())
    hosts = (entry.rpartition("://")[2].rstrip("/") for entry in entries)
    return any(_matches(entry, host, port, variable) for entry in filter(None, hosts))


def _matches(entry: str, host: str, port: int | None, variable: str) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError as error:
            raise SettingsError(f"{variable} holds {entry!r}: {error}; expected a network such as 10.0.0.0/8") from None
        return _address(host) is not None and _address(host) in network
    if (alone := _address(entry.strip("[]"))) is not None:
        return alone == _address(host)
    name, _, wanted = entry.partition("]:" if entry.startswith("[") else ":")
    if wanted and wanted != str(port):
        return False
    name = name.strip("[]").removeprefix("*").strip(".")
    return host == name or (bool(name) and host.endswith(f".{name}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def check_network(url: str | None, environ: Mapping[str, str] | None = None) -> None:
    """Read the variables that a connection to this address would need.

    Raises:
        SettingsError: one is wrong.
    """
    trusted_certificates(environ)
    if url is not None:
        proxy_for(url, environ)


# Why a connection failed


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what caused it, down to the first cause."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def explain_failure(error: BaseException, url: str, server: Server, proxy: Proxy | None = None) -> Failure:
    """Why a request got no answer, and what helps.

    Args:
        error: of httpx, httpcore, redis or the system.
        url: that was asked; only its scheme, host and port are repeated.
        server: that was asked.
        proxy: that the request went through.
    """
    where = _Place.of(url)
    chain = list(error_chain(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLError):
            found = _tls_failure(cause, where, server)
            inspects = "; a proxy that inspects TLS signs with an authority of its own"
            return found if proxy is None else Failure(f"{found.what}, through {proxy}", f"{found.remedy}{inspects}")
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    if proxy is not None and (found_at_proxy := _proxy_failure(chain, names, proxy)) is not None:
        return found_at_proxy
    found = _connection_failure(chain, where, server) or _exchange_failure(error, names, where, server)
    return found if proxy is None else Failure(f"{found.what}, through {proxy}", f"{found.remedy}; {LEAVES_OUT}")


class _Place(NamedTuple):
    scheme: str
    host: str
    at: str  # host:port

    @classmethod
    def of(cls, url: str) -> "_Place":
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or USUAL_PORTS.get(parts.scheme)
        except ValueError:
            return cls("", "", "this address")
        return cls(parts.scheme, host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _tls_failure(error: ssl.SSLError, where: _Place, server: Server) -> Failure:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_failure(error, where, server)
    reason = getattr(error, "reason", None) or str(error)
    if reason in NO_TLS:
        return Failure(
            f"{where.at} does not speak TLS",
            f"write {_plain(where.scheme)}:// instead of {where.scheme}:// in {server.setting}, "
            "or give the port that speaks TLS",
        )
    if "CERTIFICATE_REQUIRED" in reason or "BAD_CERTIFICATE" in reason:
        return Failure(
            f"{where.at} asks for a client certificate",
            "this backend has none: let it in without one, on a port or network of its own",
        )
    seen = reason.replace("_", " ").lower()
    return Failure(
        f"the TLS handshake with {where.at} failed ({seen})",
        f"does this port speak TLS 1.2 or later, and is it the one that {server.setting} should name?",
    )


def _certificate_failure(error: ssl.SSLCertVerificationError, where: _Place, server: Server) -> Failure:
    code, seen = error.verify_code, str(error.verify_message).rstrip(".")
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if code == EXPIRED:
        return Failure(
            f"the certificate of {where.at} has expired", f"renew it; or is the clock of this machine wrong ({now})?"
        )
    if code == NOT_YET_VALID:
        return Failure(
            f"the certificate of {where.at} is not valid yet", f"is the clock of this machine wrong ({now})?"
        )
    if code in OTHER_NAME:
        return Failure(
            f"the certificate of {where.at} is for another name ({seen})",
            f"set {server.setting} to a name that the certificate holds, or have {where.host} put into the certificate "
            "(subjectAltName)",
        )
    if code not in UNKNOWN_ISSUER:
        return Failure(f"the certificate of {where.at} was refused ({seen})", "have a valid one issued")
    named = [f"{name}={os.environ[name]}" for name in CA_VARIABLES if os.environ.get(name, "").strip()]
    return Failure(
        f"the certificate of {where.at} is not trusted ({seen})",
        "set SSL_CERT_FILE to a PEM file with the certificate of its authority, for the server, the workers and this "
        f"command (trusted now: {', '.join(named) or 'public authorities only'})",
    )


def _proxy_failure(chain: list[BaseException], names: set[str], proxy: Proxy) -> Failure | None:
    """What failed between us and the proxy, or in its answer to CONNECT; None where the proxy let us through."""
    if "ProxyError" in names:
        answer = next(str(cause) for cause in chain if type(cause).__name__ == "ProxyError")
        if "407" in answer or "auth" in answer.lower():
            helps = f"put user and password into {proxy.variable}: http://user:password@host:port"
        else:
            helps = "let the proxy allow it"
        return Failure(f"{proxy} refused the connection ({answer})", f"{helps}; {LEAVES_OUT}")
    there = Server("start it", proxy.variable)
    # Once connected, what breaks off may be the other side's. urllib, by which weights come, has no error of its own.
    connected = not names & {"ConnectError", "ConnectTimeout", "ConnectionRefusedError", "gaierror"}
    found = None if connected else _connection_failure(chain, _Place.of(proxy.url), there)
    return found and Failure(f"through {proxy}: {found.what}", f"{found.remedy}; {LEAVES_OUT}")


def _connection_failure(chain: list[BaseException], where: _Place, server: Server) -> Failure | None:
    """What failed before there was a connection, or broke it."""
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            later = "cannot be looked up now" if cause.errno == socket.EAI_AGAIN else "is not known"
            return Failure(
                f"the name {where.host} {later} ({cause.strerror})",
                f"is {server.setting} right, and does this machine, or container, know the name?",
            )
        if isinstance(cause, ConnectionRefusedError):
            return Failure(
                f"connection refused by {where.at}",
                f"{server.start}, or set {server.setting} to its address as this machine sees it (in a container "
                "127.0.0.1 is the container itself)",
            )
        if isinstance(cause, ConnectionResetError | BrokenPipeError):
            return Failure(
                f"the connection to {where.at} was reset",
                f"is {where.scheme}:// right in {server.setting}, or does {_other(where.scheme)}:// answer there? "
                "Otherwise it was restarted, or a firewall is between",
            )
        if isinstance(cause, OSError) and cause.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
            return Failure(
                f"there is no route to {where.at}", f"is {server.setting} right, and this machine's network up?"
            )
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    if "ConnectTimeout" in names or "Timeout connecting" in str(chain[0]):  # httpx; redis
        return Failure(
            f"{where.at} did not accept a connection in time",
            f"is {server.setting} right, and does a firewall let this machine through?",
        )
    return None


def _exchange_failure(error: BaseException, names: set[str], where: _Place, server: Server) -> Failure:
    """What failed once there was a connection."""
    if names & {"TimeoutException", "TimeoutError"}:
        return Failure(
            f"{where.at} accepted the connection, and no complete answer came in time",
            f"is it overloaded? Try again; is {server.setting} the address of the service itself?",
        )
    if "TooManyRedirects" in names:
        return Failure(
            f"{where.at} redirects in a loop",
            f"set {server.setting} to the address where it answers itself; behind a proxy that ends TLS it must know "
            "so (X-Forwarded-Proto)",
        )
    if "RemoteProtocolError" in names or names & {"ReadError", "WriteError"}:
        return Failure(
            f"{where.at} closed the connection or answered something that is not HTTP ({error})",
            f"is {where.scheme}:// right in {server.setting}, or does {_other(where.scheme)}:// answer there?",
        )
    if names & {"InvalidURL", "UnsupportedProtocol"}:
        return Failure(
            f"this is not an address ({error})", f"{server.setting} must be http://host:port or https://host"
        )
    return Failure(f"{type(error).__name__}: {error}", f"is it running, and is {server.setting} its address?")


def _plain(scheme: str) -> str:
    return {"https": "http", "rediss": "redis"}.get(scheme, scheme)


def _other(scheme: str) -> str:
    return {"http": "https", "https": "http", "redis": "rediss", "rediss": "redis"}.get(scheme, scheme)
