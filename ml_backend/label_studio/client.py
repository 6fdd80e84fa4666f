"""The way to a server: the HTTP client that takes it, and why a request got no answer on it.

The two kinds of API key, and what each must put in a request's Authorization header.
Which Label Studio answers at an address; asked without a key.
Requests to Label Studio: the key, the time-outs, what is repeated, and what a refusal says.
Label Studio's API, as far as a round needs it.
"""

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Self, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from ml_backend.config import Settings, checked_address
from ml_backend.config.network import (
    LEAVES_OUT,
    Server,
    environment_context,
    error_chain,
    explain_failure,
    proxy_for,
)
from ml_backend.errors import LabelStudioError, PayloadError, RequestRefused, SettingsError, Unreachable

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


RENEW_AT = 0.7  # share of an access token's life after which the next one is fetched


class ApiKey:
    """A legacy token, sent as it is, or a personal access token, exchanged for access tokens of five minutes.

    Args:
        key: as the user copied it from Label Studio.
        refresh: exchanges a personal access token for an access token.

    Raises:
        SettingsError: the key is empty, or an access token, which would be dead in five minutes.
    """

    def __init__(self, key: str, refresh: Callable[[str], str]) -> None:
        self._key = key.strip()
        self._refresh = refresh
        self._access = ""
        self._renew_at = 0.0
        self._lock = threading.Lock()
        if not self._key:
            raise SettingsError("AL_LABEL_STUDIO_API_KEY is empty: make a personal access token in Label Studio")
        self.is_personal = self._key.count(".") == 2
        if self.is_personal and _claims(self._key).get("token_type") == "access":
            raise SettingsError(
                "AL_LABEL_STUDIO_API_KEY is an access token, which lasts five minutes: give the personal access "
                "token itself, as Label Studio shows it under Account & Settings"
            )

    def header(self) -> str:
        """The Authorization header to send now."""
        if not self.is_personal:
            return f"Token {self._key}"
        with self._lock:
            if time.monotonic() >= self._renew_at:
                self._access = self._refresh(self._key)
                self._renew_at = time.monotonic() + RENEW_AT * _lifetime_s(self._access)
            return f"Bearer {self._access}"

    def expire(self, refused: str) -> None:
        """Label Studio refused an access token: fetch another before the next request.

        Args:
            refused: the header that was sent; where another thread has fetched a newer token since, that one is kept.
        """
        with self._lock:
            if refused == f"Bearer {self._access}":
                self._renew_at = 0.0


def _lifetime_s(access: str) -> float:
    """Seconds that an access token lives; by its own two stamps, so that our clock may be wrong."""
    claims = _claims(access)
    try:
        return max(0.0, float(str(claims["exp"])) - float(str(claims["iat"])))
    except (KeyError, ValueError):
        return 0.0


def _claims(token: str) -> dict[str, object]:
    """What a JWT says about itself, unverified; nothing where it is none."""
    body = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


TESTED = "1.23.2"  # the release that this backend is tested with
PATH = "/api/version"


def label_studio_version(url: str, transport: httpx.BaseTransport | None = None) -> str:
    """The release of the Label Studio at an address.

    Args:
        url: where it is, without a slash at the end.
        transport: httpx's own; for tests.

    Raises:
        Unreachable: nobody answers there.
        LabelStudioError: sends us elsewhere.
        SettingsError: a network variable of the environment is wrong.
        PayloadError: somebody else answers.
    """
    route = Route(url, LABEL_STUDIO, transport)
    try:
        with route.client() as http:
            answer = http.get(f"{url}{PATH}", timeout=10.0)
    except FAILURES as error:
        raise route.unreachable(error, f"no answer from {url}") from error
    route.check_answer(answer)
    if answer.is_redirect:
        there = answer.next_request.url.copy_with(query=None, userinfo=b"") if answer.next_request else "elsewhere"
        raise LabelStudioError(f"{url} sends on to {there}")
    try:
        told = answer.json()
    except ValueError:
        told = None
    release = told.get("release") if isinstance(told, dict) else None
    if not isinstance(release, str):
        raise PayloadError(f"what answers at {url} is no Label Studio: {answer.status_code} to GET {PATH}{route.note}")
    return release


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


PAGE = 1000  # tasks a page
IDS_IN_A_QUERY = 400  # task ids that fit into a URL beside everything else
SLOW = 20  # what Label Studio computes over a whole project may take so many times the usual time-out
# Of a task and, under the same names, of its annotations: Label Studio applies one list to both.
CHANGED = (
    "id,data,annotations,completed_by,was_cancelled,ground_truth,result,updated_at,created_at,lead_time,"
    "parent_prediction"
)
Json = dict[str, Any]
Condition = tuple[str, str, int | str]  # column of the Data Manager, operator, value


class HeldPredictions(NamedTuple):
    """The predictions of a model version that a project holds."""

    number: int
    newest: datetime | None  # when it was made, by Label Studio's clock; None: not told


class LabelStudioClient:
    """The calls, one method each.

    Every method raises LabelStudioError when Label Studio does not answer, RequestRefused when it refuses, and
    PayloadError when it answers something else.

    Args:
        url: where Label Studio is, with its path where it is served under one.
        api_key: personal access token or legacy token.
        timeout_s: seconds that an ordinary request may take; one over a whole project may take 20 times as long.
        retries: attempts at a request that may be repeated.
        patience_s: seconds for which connecting is tried on beyond that.
        transport: httpx's own; for tests.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 4,
        patience_s: float = 0.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.transport = Transport(
            url, api_key, timeout_s=timeout_s, retries=retries, patience_s=patience_s, wrapped=transport
        )

    @classmethod
    def from_settings(cls, settings: Settings, hostname: str | None = None, *, patience_s: float = 0.0) -> Self:
        """The client that the settings describe; ``hostname`` is where Label Studio says that it is.

        Raises:
            SettingsError: no address or no key is known.
        """
        url = settings.label_studio_url or hostname
        if not url:
            raise SettingsError("where is Label Studio? Set AL_LABEL_STUDIO_URL, for example http://127.0.0.1:8080")
        if settings.label_studio_api_key is None:
            raise SettingsError(
                f"AL_LABEL_STUDIO_API_KEY is not set: make a personal access token at {url}/user/account and set it"
            )
        key = settings.label_studio_api_key.get_secret_value()
        return cls(url, key, timeout_s=settings.timeout_s, patience_s=patience_s)

    @property
    def url(self) -> str:
        """Where Label Studio is, without a slash at the end."""
        return self.transport.url

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_authenticated(self) -> bool:
        """Whether this is a Label Studio that accepts the key: only then "not found" means that a thing is gone."""
        try:
            return "email" in self.transport.ask("GET", "/api/current-user/whoami", dict)
        except LabelStudioError:
            return False

    def whoami(self) -> Json:
        """The user whose key is sent: ``email``, ``permissions``."""
        return self.transport.ask("GET", "/api/current-user/whoami", dict)

    # Projects

    def project(self, project_id: int) -> Json:
        return self.transport.ask("GET", f"/api/projects/{project_id}/", dict)

    def project_and_clock(self, project_id: int) -> tuple[Json, datetime | None]:
        """The project, and Label Studio's own clock; None where the answer does not tell it."""
        response = self.transport.send("GET", f"/api/projects/{project_id}/")
        try:
            project = response.json()
        except ValueError:
            project = None
        if not isinstance(project, dict):
            raise PayloadError(f"{response.url} answered no project: is AL_LABEL_STUDIO_URL Label Studio's address?")
        return project, _clock(response)

    def patch_project(self, project_id: int, fields: Mapping[str, object]) -> Json:
        """Change fields of a project and read the whole of it back.

        Raises:
            LabelStudioError: refused, or another value stands there afterwards.
        """
        self.transport.send("PATCH", f"/api/projects/{project_id}/", body=dict(fields))
        project = self.project(project_id)
        if wrong := {name: project.get(name) for name, value in fields.items() if project.get(name) != value}:
            raise LabelStudioError(
                f"project {project_id} was set to {dict(fields)} but holds {wrong} afterwards: "
                "somebody else changed it at the same moment, so try again"
            )
        return project

    # Tasks

    def unlabelled_tasks(self, project_id: int, *, with_skipped: bool = True) -> Iterator[Json]:
        """Every task without an annotation, by ascending id: its ``id`` and ``data``."""
        wanted = [("total_annotations", "equal", 0)]
        if not with_skipped:
            wanted.append(("cancelled_annotations", "equal", 0))
        yield from self._pages(project_id, wanted, {"include": "id,data"})

    def changed_tasks(self, project_id: int, since: datetime | None = None) -> Iterator[Json]:
        """Every task that changed since then, or every task, by ascending id: ``id``, ``data`` and ``annotations``.

        Label Studio renews a task's ``updated_at`` whenever an annotation of it is made, changed, skipped or deleted,
        and when its data change; not when predictions come or go.

        Args:
            project_id: the project.
            since: by Label Studio's clock, with a time zone; None for all.
        """
        moment = [] if since is None else [("updated_at", "greater_or_equal", _moment(since))]
        # Without "fields" there are no annotations; without "include" a task costs five times as much.
        yield from self._pages(project_id, moment, {"fields": "all", "include": CHANGED})

    def count_tasks(self, project_id: int, first: int, last: int) -> int:
        """How many tasks have an id from ``first`` to ``last``."""
        view = _view([("id", "greater_or_equal", first), ("id", "less_or_equal", last)])
        answer = self._ask_tasks(project_id, view, {"include": "id", "page_size": "1"})
        return _number(answer, "total", "/api/tasks")

    def still_unlabelled(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Those of the tasks that exist and have no annotation yet."""
        return self._chosen(project_id, task_ids, [("total_annotations", "equal", 0)])

    def existing(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Those of the tasks that the project still has."""
        return self._chosen(project_id, task_ids, [])

    def _chosen(self, project_id: int, task_ids: Iterable[int], wanted: list[Condition]) -> set[int]:
        ids = list(task_ids)
        found: set[int] = set()
        for start in range(0, len(ids), IDS_IN_A_QUERY):
            chosen = {"all": False, "included": ids[start : start + IDS_IN_A_QUERY]}
            tasks = self._pages(project_id, wanted, {"include": "id"}, selectedItems=chosen)
            found.update(int(task["id"]) for task in tasks)
        return found

    def _pages(
        self, project_id: int, wanted: Iterable[Condition], query: Mapping[str, str], **view: object
    ) -> Iterator[Json]:
        """Every task that meets the conditions, by ascending id."""
        last = 0
        while True:
            # By id and not by page number: while readers label, the pages of a filter move under our feet.
            conditions = _view([*wanted, ("id", "greater", last)])
            answer = self._ask_tasks(project_id, conditions | view, {"page_size": str(PAGE), **query})
            tasks = answer.get("tasks")
            if not isinstance(tasks, list):
                raise PayloadError(f"{self.url}/api/tasks answered without a list of tasks")
            yield from tasks
            # Its operator may have made Label Studio's pages smaller than ours: only the total says what is left.
            if not tasks or len(tasks) >= _number(answer, "total", "/api/tasks"):
                return
            last = int(tasks[-1]["id"])

    def _ask_tasks(self, project_id: int, view: Mapping[str, object], query: Mapping[str, str]) -> Json:
        whole = {
            "project": str(project_id),
            "query": json.dumps(view, separators=(",", ":")),
            "resolve_uri": "false",  # the URIs as they were imported, as the export has them
            **query,
        }
        return self.transport.ask("GET", "/api/tasks", dict, query=whole, slow=SLOW)

    # Predictions

    def import_predictions(self, project_id: int, predictions: list[dict[str, object]]) -> int:
        """Import in one call, and say how many were created; Label Studio drops bad ones in silence."""
        path = f"/api/projects/{project_id}/import/predictions"
        return _number(self.transport.ask("POST", path, dict, body=predictions, slow=SLOW), "created", path)

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Predictions that the project holds, by their version."""
        return {version: held.number for version, held in self.held_predictions(project_id).items()}

    def held_predictions(self, project_id: int) -> dict[str, HeldPredictions]:
        """How many predictions the project holds and when the newest was made, by their version."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.transport.ask("GET", path, dict, query={"extended": "true"}, slow=SLOW)
        return {
            str(row["model_version"]): HeldPredictions(_number(row, "count", path), _created(row.get("latest")))
            for row in answer.get("static") or ()
        }

    def delete_model_version(self, project_id: int, version: str) -> int:
        """Delete the predictions of a version, about 16 ms each, and say how many they were."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.transport.ask("DELETE", path, dict, body={"model_version": version}, slow=SLOW)
        return _number(answer, "deleted_predictions", path)

    # Backends and webhooks

    def backends(self, project_id: int) -> list[Json]:
        """The project's ML backends. Label Studio asks each for its health and sets it up again first."""
        return self.transport.ask("GET", "/api/ml", list, query={"project": str(project_id)})

    def add_backend(self, fields: Mapping[str, object]) -> Json:
        return self.transport.ask("POST", "/api/ml", dict, body=dict(fields))

    def patch_backend(self, backend_id: int, fields: Mapping[str, object]) -> Json:
        """Change a backend; ``url`` and ``project`` must be among the fields."""
        return self.transport.ask("PATCH", f"/api/ml/{backend_id}", dict, body=dict(fields))

    def delete_backend(self, backend_id: int) -> None:
        self.transport.send("DELETE", f"/api/ml/{backend_id}")

    def train(self, backend_id: int) -> None:
        """Press "Start training": the backend gets START_TRAINING."""
        self.transport.send("POST", f"/api/ml/{backend_id}/train", body={})

    def webhooks(self, project_id: int) -> list[Json]:
        return self.transport.ask("GET", "/api/webhooks/", list, query={"project": str(project_id)})

    def add_webhook(self, fields: Mapping[str, object]) -> Json:
        return self.transport.ask("POST", "/api/webhooks/", dict, body=dict(fields))

    def patch_webhook(self, webhook_id: int, fields: Mapping[str, object]) -> Json:
        return self.transport.ask("PATCH", f"/api/webhooks/{webhook_id}/", dict, body=dict(fields))

    # Files

    def download(self, path: str, *, max_bytes: int) -> tuple[bytes, str]:
        """A file that Label Studio serves, and its content type; RequestRefused when it is larger."""
        response = self.transport.send("GET", path, max_bytes=max_bytes)
        return response.content, response.headers["content-type"]


def _view(wanted: Iterable[Condition]) -> dict[str, object]:
    """A Data Manager view: the tasks that meet every condition, by id."""
    items = [
        {
            "filter": f"filter:tasks:{column}",
            "operator": operator,
            "type": "Number" if isinstance(value, int) else "Datetime",
            "value": value,
        }
        for column, operator, value in wanted
    ]
    return {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}


def _moment(time: datetime) -> str:
    """As the Data Manager's filters read it; in any other form it fails with 500."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _clock(response: httpx.Response) -> datetime | None:
    try:
        return parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


def _created(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(answer: Mapping[str, object], key: str, path: str) -> int:
    if not isinstance(number := answer.get(key), int):
        raise PayloadError(f"{path} answered {dict(answer)}; wanted is a number under {key!r}")
    return number
