"""The way to a server: the HTTP client that takes it, and why a request got no answer on it."""

import ssl
from collections.abc import Callable

import httpx

from ml_backend.errors import Unreachable
from ml_backend.settings.network import (
    LEAVES_OUT,
    Server,
    environment_context,
    error_chain,
    explain_failure,
    proxy_for,
)

__all__ = ["BACKEND", "FAILURES", "LABEL_STUDIO", "Route", "is_permanent", "tls_context"]

LABEL_STUDIO = Server("start Label Studio", "AL_LABEL_STUDIO_URL")
BACKEND = Server("start `ml-backend serve`", "--url")
FAILURES = (httpx.HTTPError, httpx.InvalidURL)
WANTS_TLS = ("HTTPS port", "SSL-enabled server port", "HTTPS server")  # nginx, Apache, Go
PROXY_WANTS_PASSWORD = 407


def tls_context() -> ssl.SSLContext:
    """A client's context: trusts what the variables of the environment name, else the authorities of certifi.

    Raises:
        SettingsError: a variable names no certificate.
    """
    return environment_context() or httpx.create_ssl_context(trust_env=False)


def is_permanent(error: BaseException) -> bool:
    """Whether to ask again is no use: TLS was refused, by us or by the server."""
    return any(isinstance(cause, ssl.SSLError) for cause in error_chain(error))


class Route:
    """The way to one server.

    Proxy and certificates are those of the environment. They are chosen here and not by httpx, so that a wrong variable
    is refused in words and a failure names the proxy.

    Args:
        url: of the server.
        server: what the words about a failure name.
        transport: instead of the network; for tests.
        direct: use no proxy.

    Raises:
        SettingsError: a variable of the environment is wrong.
    """

    def __init__(
        self, url: str, server: Server, transport: httpx.BaseTransport | None = None, *, direct: bool = False
    ) -> None:
        self._url = url
        self._server = server
        self._transport = transport
        self._proxy = None if direct or transport is not None else proxy_for(url)

    def client(self, on_request: Callable[[httpx.Request], None] | None = None) -> httpx.Client:
        """A client for this server alone, whose every request ``on_request`` sees first."""
        hooks = {"request": [] if on_request is None else [on_request]}
        if self._transport is not None:
            return httpx.Client(transport=self._transport, event_hooks=hooks)
        context, proxy = tls_context(), self._proxy
        through = None
        if proxy is not None:
            tls = context if proxy.url.startswith("https:") else None
            through = httpx.Proxy(proxy.url, auth=proxy.auth, ssl_context=tls)
        return httpx.Client(verify=context, proxy=through, trust_env=False, event_hooks=hooks)

    def unreachable(self, error: Exception, asked: str) -> Unreachable:
        """The error to raise where a request got no answer.

        Args:
            error: of httpx.
            asked: what the message begins with.
        """
        failure = explain_failure(error, self._url, self._server, self._proxy)
        return Unreachable(f"{asked}: {failure.what}", failure.remedy)

    def check_answer(self, response: httpx.Response) -> None:
        """Make sure that an answer can be the server's own.

        Raises:
            Unreachable: it is a proxy's, or says that the port speaks TLS.
        """
        if response.status_code == PROXY_WANTS_PASSWORD and self._proxy is not None:
            raise Unreachable(
                f"{self._proxy} wants a user and a password (407)",
                f"put them into {self._proxy.variable}: http://user:password@host:port; {LEAVES_OUT}",
            )
        if response.status_code == httpx.codes.BAD_REQUEST and any(words in response.text for words in WANTS_TLS):
            raise Unreachable(
                f"{self._url} speaks TLS and was asked without", f"write https:// in {self._server.setting}"
            )

    @property
    def note(self) -> str:
        """What to add to a refusal that may be a proxy's; empty where there is none."""
        return f"; it went through {self._proxy}, and {LEAVES_OUT}" if self._proxy is not None else ""
