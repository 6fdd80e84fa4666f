"""Requests to Label Studio: the key, the time-outs, what is repeated, and what a refusal says."""

import json
import time
from collections.abc import Mapping
from typing import TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from ml_backend.errors import LabelStudioError, PayloadError, RequestRefused
from ml_backend.label_studio.access import ApiKey
from ml_backend.label_studio.route import FAILURES, LABEL_STUDIO, Route, is_permanent
from ml_backend.settings import checked_address

__all__ = ["Redirected", "Transport"]

T = TypeVar("T")
EXCERPT = 800  # characters of an answer that an error repeats
BUSY = frozenset({502, 503, 504})
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
REFRESH = "/api/token/refresh/"


class Redirected(RequestRefused):
    """Label Studio says that a file lies elsewhere, at ``location``; nothing was sent there."""

    def __init__(self, message: str, status: int, location: str) -> None:
        super().__init__(message, status)
        self.location = location


class Transport:
    """One Label Studio, as one of its users. Safe to share between threads.

    The key, and whatever a request holds, goes to Label Studio's own scheme, host and port alone: a redirect that
    leads away is not followed.

    Args:
        url: where Label Studio is, with its path where it is served under one.
        api_key: personal access token or legacy token.
        timeout_s: seconds that an ordinary request may take.
        retries: attempts at a request that may be repeated, after connection errors and 502 to 504.
        patience_s: seconds for which connecting is tried on beyond that.
        wrapped: httpx's own transport; for tests.

    Raises:
        SettingsError: the address or the key cannot be one, or a network variable of the environment is wrong.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float,
        retries: int,
        patience_s: float = 0.0,
        wrapped: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = checked_address(url)
        self.timeout_s = timeout_s
        self._key = ApiKey(api_key, self._refresh)
        self._retries = retries
        self._patience_s = patience_s
        self._route = Route(self.url, LABEL_STUDIO, wrapped)
        self._http = self._route.client(self._stay)

    @property
    def key_kind(self) -> str:
        """Which of the two kinds of API key is used."""
        return "personal access token" if self._key.is_personal else "legacy token"

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        slow: int = 1,
    ) -> T:
        """Send a request and read the JSON of the answer.

        Args:
            method: of HTTP. Only POST is never repeated once it may have arrived.
            path: below Label Studio's address.
            kind: of JSON that must come: ``dict`` or ``list``.
            query: of the URL.
            body: sent as JSON.
            slow: times the usual time-out.

        Raises:
            RequestRefused: Label Studio answered, but not with success.
            Unreachable: Label Studio did not answer.
            PayloadError: the answer is something else.
        """
        response = self.send(method, path, query=query, body=body, slow=slow)
        answer = _json(response)
        if not isinstance(answer, kind):
            raise PayloadError(
                f"{self.url}{path} answered with no JSON {kind.__name__} but {_excerpt(response)}; "
                "is AL_LABEL_STUDIO_URL the address of Label Studio?"
            )
        return answer

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        slow: int = 1,
        max_bytes: int | None = None,
    ) -> httpx.Response:
        """Send a request whose answer is no JSON, or does not matter.

        Args:
            method: this and the rest as for ``ask``.
            path: see there.
            query: see there.
            body: see there.
            slow: see there.
            max_bytes: of a file; no more of it is read, and no redirect is followed.

        Raises:
            Redirected: the file lies elsewhere.
            RequestRefused, Unreachable: as ``ask``.
        """
        renewed = False
        while True:
            request = self._http.build_request(method, self.url + path, params=query, json=body)
            request.headers["Authorization"] = self._key.header()
            response = self._attempt(request, slow, max_bytes)
            if response.status_code != 401 or renewed or not self._key.is_personal:
                break
            # The access token died before its time: Label Studio was set up anew, say.
            self._key.expire(request.headers["Authorization"])
            renewed = True
        return self._success(request, response)

    def _refresh(self, personal: str) -> str:
        request = self._http.build_request("POST", self.url + REFRESH, json={"refresh": personal})
        answer = _json(self._success(request, self._attempt(request, 1, None)))
        if not isinstance(answer, dict) or not isinstance(access := answer.get("access"), str):
            raise PayloadError(f"{self.url}{REFRESH} gave no access token: is this Label Studio 1.16 or later?")
        return access

    def _attempt(self, request: httpx.Request, slow: int, max_bytes: int | None) -> httpx.Response:
        """Send, and again where that is safe; the last answer, whatever its status."""
        request.extensions["timeout"] = httpx.Timeout(
            self.timeout_s * slow, connect=min(self.timeout_s, 10.0)
        ).as_dict()
        retrying = Retrying(
            stop=self._gives_up,
            wait=wait_exponential(multiplier=0.1, max=5.0),
            retry=retry_if_exception(lambda error: _may_repeat(request, error)),
            reraise=True,
        )
        try:
            return retrying(self._once, request, max_bytes)
        except _Busy as busy:
            return busy.response
        except FAILURES as error:
            raise self._route.unreachable(error, f"no answer from Label Studio to {_named(request)}") from error

    def _stay(self, request: httpx.Request) -> None:
        """Called before a request is sent, and again before a redirect is followed."""
        if _origin(request.url) != _origin(httpx.URL(self.url)):
            there = request.url.copy_with(userinfo=b"", query=None, fragment=None)
            raise LabelStudioError(
                f"{self.url} was redirected to {there}: "
                "set AL_LABEL_STUDIO_URL to the address where Label Studio answers itself (https instead of http?)"
            )

    def _gives_up(self, attempts: RetryCallState) -> bool:
        away = attempts.outcome is not None and isinstance(attempts.outcome.exception(), NOT_CONNECTED)
        waited_s = attempts.seconds_since_start or 0.0
        return attempts.attempt_number >= self._retries and not (away and waited_s < self._patience_s)

    def _once(self, request: httpx.Request, max_bytes: int | None) -> httpx.Response:
        response = self._http.send(request, stream=True, follow_redirects=max_bytes is None)
        try:
            if max_bytes is None or not response.is_success:
                response.read()
            else:
                response = _read_bounded(response, max_bytes, self.timeout_s)
        finally:
            response.close()
        if response.status_code in BUSY:
            raise _Busy(response)
        return response

    def _success(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if response.request.method != request.method:  # so HTTP has it; what was to be written is lost on the way
            raise LabelStudioError(
                f"{_named(request)} was redirected to {response.request.url}: "
                "set AL_LABEL_STUDIO_URL to the address where Label Studio answers itself (https instead of http?)"
            )
        if response.is_success:
            return response
        self._route.check_answer(response)
        if (following := response.next_request) is not None:
            raise Redirected(f"{_named(request)} was redirected", response.status_code, str(following.url))
        seen = f"Label Studio answered {response.status_code} to {_named(request)}: {_excerpt(response)}"
        if response.status_code == 401:
            why = "was it revoked?" if self._key.is_personal else "legacy tokens are off by default"
            seen += (
                f"; AL_LABEL_STUDIO_API_KEY was refused ({why}): make a personal access token "
                f"at {self.url}/user/account and set it"
            )
        raise RequestRefused(seen + self._route.note, response.status_code)


def _read_bounded(response: httpx.Response, max_bytes: int, timeout_s: float) -> httpx.Response:
    """The same answer with its body read.

    Raises:
        RequestRefused: the body is larger; the rest of it was not read.
        httpx.ReadTimeout: it does not come to an end. httpx itself bounds only the wait for each part.
    """
    content = bytearray()
    end = time.monotonic() + timeout_s
    for part in response.iter_bytes():
        content += part
        if len(content) > max_bytes:
            raise RequestRefused(f"{_named(response.request)}: the answer is larger than {max_bytes} bytes", 413)
        if time.monotonic() > end:
            raise httpx.ReadTimeout(f"not through after {timeout_s} s", request=response.request)
    return httpx.Response(
        response.status_code,
        headers={"content-type": response.headers.get("content-type", "")},
        content=bytes(content),
        request=response.request,
    )


class _Busy(Exception):
    """Something before Label Studio answered in its place."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(str(response.status_code))
        self.response = response


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _named(request: httpx.Request) -> str:
    """Without the query: it is long, and in others' hands it may hold a signature."""
    return f"{request.method} {request.url.copy_with(query=None, fragment=None)}"


def _may_repeat(request: httpx.Request, error: BaseException) -> bool:
    # Nothing was sent where no connection came about. A time-out is not repeated: it was long, and would be again.
    if isinstance(error, NOT_CONNECTED):
        return not is_permanent(error)
    repeatable = request.method != "POST" or request.url.path.endswith(REFRESH)
    return repeatable and isinstance(error, _Busy | httpx.NetworkError | httpx.RemoteProtocolError)


def _json(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None


def _excerpt(response: httpx.Response) -> str:
    if "html" in response.headers.get("content-type", ""):
        return "an HTML page"
    answer = _json(response)
    if isinstance(answer, dict):
        answer = answer.get("validation_errors") or answer.get("detail") or answer
    text = answer if isinstance(answer, str) else json.dumps(answer) if answer else response.text
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]} ..."
