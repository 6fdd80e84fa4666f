"""HTTP client for Label Studio's API: authentication, retries, time-outs, and one method for each call."""

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
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result, wait_exponential

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
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
BUSY = frozenset({502, 503, 504})
PROXY_WANTS_PASSWORD = 407
WANTS_TLS = ("HTTPS port", "SSL-enabled server port", "HTTPS server")  # nginx, Apache, Go

WHOAMI, REFRESH = "/api/current-user/whoami", "/api/token/refresh/"
RENEW_AT = 0.7  # fraction of an access token's lifetime after which the next one is fetched
EXCERPT = 800  # characters of a response that an error quotes
PAGE = 1000  # tasks a page
IDS_IN_A_QUERY = 400  # task ids that fit into a URL
SLOW = 20  # multiple of the time-out for what Label Studio computes over a whole project
# Fields of tasks and of their annotations: Label Studio applies one list to both.
CHANGED = (
    "id,data,annotations,completed_by,was_cancelled,ground_truth,result,updated_at,created_at,lead_time,"
    "parent_prediction"
)

T = TypeVar("T")
Json = dict[str, Any]
Condition = tuple[str, str, int | str]  # column of the Data Manager, operator, value


# How a server is reached


def tls_context() -> ssl.SSLContext:
    """TLS context that trusts the certificates named by the environment, else certifi's.

    Raises:
        SettingsError: a variable names no certificate.
    """
    return environment_context() or httpx.create_ssl_context(trust_env=False)


class Route:
    """Proxy and certificates for the requests to one server.

    They are read from the environment here and not by httpx, so that a wrong variable is a ``SettingsError`` and an
    error names the proxy.

    Args:
        url: of the server.
        server: how error messages name it.
        transport: replaces the network, for tests.
        direct: use no proxy.

    Raises:
        SettingsError: a network variable of the environment is wrong.
    """

    def __init__(
        self, url: str, server: Server, transport: httpx.BaseTransport | None = None, *, direct: bool = False
    ) -> None:
        self._url = url
        self._server = server
        self._transport = transport
        self._proxy = None if direct or transport is not None else proxy_for(url)

    def client(self, on_request: Callable[[httpx.Request], None] | None = None) -> httpx.Client:
        """An HTTP client for this server; ``on_request`` is called before each request is sent."""
        hooks = {"request": [] if on_request is None else [on_request]}
        if self._transport is not None:
            return httpx.Client(transport=self._transport, event_hooks=hooks)
        context, proxy = tls_context(), None
        if self._proxy is not None:
            tls = context if self._proxy.url.startswith("https:") else None
            proxy = httpx.Proxy(self._proxy.url, auth=self._proxy.auth, ssl_context=tls)
        return httpx.Client(verify=context, proxy=proxy, trust_env=False, event_hooks=hooks)

    def unreachable(self, error: Exception, message: str) -> Unreachable:
        """The error to raise for a request without a response; it starts with ``message``."""
        failure = explain_failure(error, self._url, self._server, self._proxy)
        return Unreachable(f"{message}: {failure.what}", failure.remedy)

    def check_answer(self, response: httpx.Response) -> None:
        """Check that a response is the server's own.

        Raises:
            Unreachable: it is a proxy's, or reports that the port speaks TLS.
        """
        if response.status_code == PROXY_WANTS_PASSWORD and self._proxy is not None:
            raise Unreachable(
                f"{self._proxy} requires a user and a password (407)",
                f"put them into {self._proxy.variable}: http://user:password@host:port; {LEAVES_OUT}",
            )
        if response.status_code == httpx.codes.BAD_REQUEST and any(words in response.text for words in WANTS_TLS):
            raise Unreachable(
                f"{self._url} speaks TLS and was asked without", f"write https:// in {self._server.setting}"
            )

    @property
    def note(self) -> str:
        """Names the proxy at the end of an error message; empty where none is used."""
        return f"; the request went through {self._proxy}, and {LEAVES_OUT}" if self._proxy is not None else ""


def label_studio_version(url: str, transport: httpx.BaseTransport | None = None) -> str:
    """The release of the Label Studio at ``url``, which has no slash at the end; no key is sent.

    Raises:
        Unreachable: no response.
        LabelStudioError: redirected.
        SettingsError: a network variable of the environment is wrong.
        PayloadError: the server is not Label Studio.
    """
    route = Route(url, LABEL_STUDIO, transport)
    try:
        with route.client() as http:
            response = http.get(f"{url}/api/version", timeout=10.0)
    except FAILURES as error:
        raise route.unreachable(error, f"no answer from {url}") from error
    route.check_answer(response)
    if (following := response.next_request) is not None:
        raise LabelStudioError(f"{url} redirects to {following.url.copy_with(query=None, userinfo=b'')}")
    answer = _json(response)
    release = answer.get("release") if isinstance(answer, dict) else None
    if not isinstance(release, str):
        raise PayloadError(
            f"the server at {url} is no Label Studio: {response.status_code} to GET /api/version{route.note}"
        )
    return release


# Authentication


class ApiKey:
    """A legacy token, sent as it is, or a personal access token, exchanged for access tokens of five minutes.

    Args:
        key: as the user copied it from Label Studio.
        refresh: exchanges a personal access token for an access token.

    Raises:
        SettingsError: the key is empty, or an access token, which would expire within five minutes.
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
                claims = _claims(self._access)
                try:  # the difference of the token's own two times, so that this clock may be wrong
                    lifetime_s = float(str(claims["exp"])) - float(str(claims["iat"]))
                except (KeyError, ValueError):
                    lifetime_s = 0.0
                self._renew_at = time.monotonic() + RENEW_AT * max(0.0, lifetime_s)
            return f"Bearer {self._access}"

    def expire(self, refused: str) -> None:
        """Fetch another access token before the next request, unless another thread has done so.

        Args:
            refused: the header that Label Studio refused.
        """
        with self._lock:
            if refused == f"Bearer {self._access}":
                self._renew_at = 0.0


def _claims(token: str) -> dict[str, object]:
    """The claims of a JWT, unverified; empty where it is none."""
    body = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


# The client


class Redirected(RequestRefused):
    """Label Studio redirects to a file at ``location``, which was not requested."""

    def __init__(self, message: str, status: int, location: str) -> None:
        super().__init__(message, status)
        self.location = location


class HeldPredictions(NamedTuple):
    """The predictions of a model version that a project holds."""

    number: int
    newest: datetime | None  # creation time by Label Studio's clock; None where it is not reported


class LabelStudioClient:
    """One Label Studio, as one of its users. Safe to share between threads.

    Every method raises Unreachable when Label Studio does not respond, RequestRefused when it refuses, and
    PayloadError when the response has another form. The key goes to Label Studio's own scheme, host and port alone: a
    redirect to another origin is not followed.

    Args:
        url: of Label Studio, with its path where it is served under one.
        api_key: personal access token or legacy token.
        timeout_s: time-out of an ordinary request in seconds; one over a whole project may take 20 times as long.
        retries: attempts at a request that may be repeated, after connection errors and 502 to 504.
        patience_s: seconds for which connecting is retried beyond that.
        transport: replaces httpx's own, for tests.

    Raises:
        SettingsError: the address, the key or a network variable of the environment is wrong.
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
        self.url = checked_address(url)
        self._timeout_s = timeout_s
        self._retries = retries
        self._patience_s = patience_s
        self._key = ApiKey(api_key, self._refresh)
        self._route = Route(self.url, LABEL_STUDIO, transport)
        self._http = self._route.client(self._check_origin)

    @classmethod
    def from_settings(cls, settings: Settings, hostname: str | None = None, **options: Any) -> Self:
        """The client that the settings describe.

        Args:
            settings: with Label Studio's address, the key and the time-out.
            hostname: the address that Label Studio gives for itself, used where the settings have none.
            options: further arguments of the constructor.

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
        return cls(url, key, timeout_s=settings.timeout_s, **options)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests

    def request(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        timeout_factor: int = 1,
    ) -> T:
        """Send a request and return the JSON of the response.

        Args:
            method: of HTTP. POST alone is never repeated once it may have arrived.
            path: below Label Studio's address.
            kind: expected type of the JSON, ``dict`` or ``list``.
            query: of the URL.
            body: sent as JSON.
            timeout_factor: multiple of the usual time-out.
        """
        return self._parse(self.send(method, path, query=query, body=body, timeout_factor=timeout_factor), kind)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        timeout_factor: int = 1,
        max_bytes: int | None = None,
    ) -> httpx.Response:
        """Send a request with the arguments of ``request``, and return the response.

        For a file, ``max_bytes`` limits its size, and no redirect is followed: it raises ``Redirected``.
        """
        renewed = False
        while True:
            request = self._http.build_request(method, self.url + path, params=query, json=body)
            request.headers["Authorization"] = self._key.header()
            response = self._attempt(request, timeout_factor, max_bytes)
            if response.status_code != httpx.codes.UNAUTHORIZED or renewed or not self._key.is_personal:
                return self._success(request, response)
            # The access token expired early, for example since Label Studio was set up anew.
            self._key.expire(request.headers["Authorization"])
            renewed = True

    def _refresh(self, personal: str) -> str:
        request = self._http.build_request("POST", self.url + REFRESH, json={"refresh": personal})
        answer = _json(self._success(request, self._attempt(request)))
        if not isinstance(answer, dict) or not isinstance(access := answer.get("access"), str):
            raise PayloadError(f"{self.url}{REFRESH} returned no access token: is this Label Studio 1.16 or later?")
        return access

    def _attempt(self, request: httpx.Request, timeout_factor: int = 1, max_bytes: int | None = None) -> httpx.Response:
        """Send, repeat where that is safe, and return the last response, whatever its status."""
        timeout = httpx.Timeout(self._timeout_s * timeout_factor, connect=min(self._timeout_s, 10.0))
        request.extensions["timeout"] = timeout.as_dict()
        repeatable = request.method != "POST" or request.url.path.endswith(REFRESH)

        def may_repeat(error: BaseException) -> bool:
            # Without a connection nothing was sent. A time-out is not repeated: the next would be as long.
            if isinstance(error, NOT_CONNECTED):
                return not any(isinstance(cause, ssl.SSLError) for cause in error_chain(error))
            return repeatable and isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)

        retrying = Retrying(
            stop=self._gives_up,
            wait=wait_exponential(multiplier=0.1, max=5.0),
            retry=retry_if_exception(may_repeat)
            | retry_if_result(lambda response: repeatable and response.status_code in BUSY),
            retry_error_callback=lambda attempts: attempts.outcome and attempts.outcome.result(),
        )
        try:
            response: httpx.Response = retrying(self._send_once, request, max_bytes)
        except FAILURES as error:
            raise self._route.unreachable(error, f"no answer from Label Studio to {_name(request)}") from error
        return response

    def _gives_up(self, attempts: RetryCallState) -> bool:
        away = attempts.outcome is not None and isinstance(attempts.outcome.exception(), NOT_CONNECTED)
        waited_s = attempts.seconds_since_start or 0.0
        return attempts.attempt_number >= self._retries and not (away and waited_s < self._patience_s)

    def _send_once(self, request: httpx.Request, max_bytes: int | None) -> httpx.Response:
        response = self._http.send(request, stream=True, follow_redirects=max_bytes is None)
        try:
            if max_bytes is None or not response.is_success:
                response.read()
                return response
            content, end = bytearray(), time.monotonic() + self._timeout_s
            for part in response.iter_bytes():
                content += part
                if len(content) > max_bytes:
                    raise RequestRefused(f"{_name(request)}: the answer is larger than {max_bytes} bytes", 413)
                if time.monotonic() > end:  # httpx itself limits only the wait for each part
                    raise httpx.ReadTimeout(f"incomplete after {self._timeout_s} s", request=request)
        finally:
            response.close()
        headers = {"content-type": response.headers.get("content-type", "")}
        return httpx.Response(response.status_code, headers=headers, content=bytes(content), request=response.request)

    def _check_origin(self, request: httpx.Request) -> None:
        """Called before a request is sent, and again before a redirect is followed."""
        home = httpx.URL(self.url)
        if (request.url.scheme, request.url.host, request.url.port) != (home.scheme, home.host, home.port):
            raise _redirected(self.url, request.url)

    def _success(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if response.request.method != request.method:  # HTTP turns a redirected POST into a GET without its body
            raise _redirected(_name(request), response.request.url)
        if response.is_success:
            return response
        self._route.check_answer(response)
        if (following := response.next_request) is not None:
            raise Redirected(f"{_name(request)} was redirected", response.status_code, str(following.url))
        seen = f"Label Studio answered {response.status_code} to {_name(request)}: {_excerpt(response)}"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            why = "was it revoked?" if self._key.is_personal else "legacy tokens are off by default"
            seen += (
                f"; AL_LABEL_STUDIO_API_KEY was refused ({why}): make a personal access token "
                f"at {self.url}/user/account and set it"
            )
        raise RequestRefused(seen + self._route.note, response.status_code)

    def _parse(self, response: httpx.Response, kind: type[T]) -> T:
        answer = _json(response)
        if not isinstance(answer, kind):
            raise PayloadError(
                f"{_name(response.request)}: expected a JSON {kind.__name__}, got {_excerpt(response)}; "
                "is AL_LABEL_STUDIO_URL the address of Label Studio?"
            )
        return answer

    # The user

    @property
    def key_kind(self) -> str:
        """Which of the two kinds of API key is used."""
        return "personal access token" if self._key.is_personal else "legacy token"

    def whoami(self) -> Json:
        """The user whose key is sent: ``email``, ``permissions``."""
        return self.request("GET", WHOAMI, dict)

    def is_authenticated(self) -> bool:
        """Whether this is a Label Studio that accepts the key: only then "not found" means that an object is gone."""
        try:
            return "email" in self.whoami()
        except LabelStudioError:
            return False

    # Projects

    def project(self, project_id: int) -> Json:
        return self.project_and_clock(project_id)[0]

    def project_and_clock(self, project_id: int) -> tuple[Json, datetime | None]:
        """The project, and Label Studio's time; None where the response has none."""
        response = self.send("GET", f"/api/projects/{project_id}/")
        try:
            clock = parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
        except (KeyError, ValueError):
            clock = None
        return self._parse(response, dict), clock

    def patch_project(self, project_id: int, fields: Mapping[str, object]) -> Json:
        """Change fields of a project and read the whole of it back.

        Raises:
            LabelStudioError: refused, or a field has another value afterwards.
        """
        self.send("PATCH", f"/api/projects/{project_id}/", body=dict(fields))
        project = self.project(project_id)
        if wrong := {name: project.get(name) for name, value in fields.items() if project.get(name) != value}:
            raise LabelStudioError(
                f"project {project_id} was set to {dict(fields)} but holds {wrong} afterwards: "
                "somebody else changed it at the same moment, so try again"
            )
        return project

    # Tasks

    def unlabelled_tasks(self, project_id: int) -> Iterator[Json]:
        """Every task without an annotation, a skip being none, by ascending id: its ``id`` and ``data``."""
        yield from self._tasks(project_id, [("total_annotations", "equal", 0)], {"include": "id,data"})

    def changed_tasks(self, project_id: int, since: datetime | None = None) -> Iterator[Json]:
        """Every task that changed since then, or every task, by ascending id: ``id``, ``data`` and ``annotations``.

        Label Studio renews a task's ``updated_at`` whenever an annotation of it is made, changed, skipped or deleted,
        and when its data change; not when predictions come or go.

        Args:
            project_id: the project.
            since: by Label Studio's clock, with a time zone; None for all.
        """
        # In any other form of the time the Data Manager fails with 500.
        moment = None if since is None else since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        conditions: list[Condition] = [] if moment is None else [("updated_at", "greater_or_equal", moment)]
        # Without "fields" there are no annotations; without "include" a task costs five times as much.
        yield from self._tasks(project_id, conditions, {"fields": "all", "include": CHANGED})

    def count_tasks(self, project_id: int, first: int, last: int) -> int:
        """Number of tasks with an id from ``first`` to ``last``."""
        view = _view([("id", "greater_or_equal", first), ("id", "less_or_equal", last)])
        return _number(self._page(project_id, view, {"include": "id", "page_size": "1"}), "total", "/api/tasks")

    def still_unlabelled(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Those of the tasks that exist and have no annotation."""
        return self._select(project_id, task_ids, [("total_annotations", "equal", 0)])

    def existing(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Those of the tasks that exist."""
        return self._select(project_id, task_ids, [])

    def _select(self, project_id: int, task_ids: Iterable[int], conditions: list[Condition]) -> set[int]:
        ids = list(task_ids)
        found: set[int] = set()
        for start in range(0, len(ids), IDS_IN_A_QUERY):
            selected = {"all": False, "included": ids[start : start + IDS_IN_A_QUERY]}
            tasks = self._tasks(project_id, conditions, {"include": "id"}, selectedItems=selected)
            found.update(int(task["id"]) for task in tasks)
        return found

    def _tasks(
        self, project_id: int, conditions: Iterable[Condition], query: Mapping[str, str], **view: object
    ) -> Iterator[Json]:
        """Every task that meets the conditions, by ascending id."""
        last = 0
        while True:
            # By id and not by page number: while readers label, the pages of a filter move.
            above = _view([*conditions, ("id", "greater", last)])
            answer = self._page(project_id, above | view, {"page_size": str(PAGE), **query})
            tasks = answer.get("tasks")
            if not isinstance(tasks, list):
                raise PayloadError(f"{self.url}/api/tasks: expected a list under 'tasks', got {type(tasks).__name__}")
            yield from tasks
            # Label Studio's operator may have set smaller pages: only the total tells how many are left.
            if not tasks or len(tasks) >= _number(answer, "total", "/api/tasks"):
                return
            last = int(tasks[-1]["id"])

    def _page(self, project_id: int, view: Mapping[str, object], query: Mapping[str, str]) -> Json:
        whole = {
            "project": str(project_id),
            "query": json.dumps(view, separators=(",", ":")),
            "resolve_uri": "false",  # the URIs as they were imported, as in the export
            **query,
        }
        return self.request("GET", "/api/tasks", dict, query=whole, timeout_factor=SLOW)

    # Predictions

    def import_predictions(self, project_id: int, predictions: list[dict[str, object]]) -> int:
        """Import in one call and return how many were created; Label Studio drops bad ones without an error."""
        path = f"/api/projects/{project_id}/import/predictions"
        return _number(self.request("POST", path, dict, body=predictions, timeout_factor=SLOW), "created", path)

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Number of predictions that the project holds, by model version."""
        return {version: held.number for version, held in self.held_predictions(project_id).items()}

    def held_predictions(self, project_id: int) -> dict[str, HeldPredictions]:
        """Number and newest creation time of the predictions that the project holds, by model version."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.request("GET", path, dict, query={"extended": "true"}, timeout_factor=SLOW)
        return {
            str(row["model_version"]): HeldPredictions(_number(row, "count", path), _time(row.get("latest")))
            for row in answer.get("static") or ()
        }

    def delete_model_version(self, project_id: int, version: str) -> int:
        """Delete the predictions of a model version, about 16 ms each, and return their number."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.request("DELETE", path, dict, body={"model_version": version}, timeout_factor=SLOW)
        return _number(answer, "deleted_predictions", path)

    # Backends and webhooks

    def backends(self, project_id: int) -> list[Json]:
        """The project's ML backends. Label Studio first checks the health of each and calls its ``/setup``."""
        return self.request("GET", "/api/ml", list, query={"project": str(project_id)})

    def add_backend(self, fields: Mapping[str, object]) -> Json:
        return self.request("POST", "/api/ml", dict, body=dict(fields))

    def patch_backend(self, backend_id: int, fields: Mapping[str, object]) -> Json:
        """Change a backend; ``url`` and ``project`` must be among the fields."""
        return self.request("PATCH", f"/api/ml/{backend_id}", dict, body=dict(fields))

    def delete_backend(self, backend_id: int) -> None:
        self.send("DELETE", f"/api/ml/{backend_id}")

    def train(self, backend_id: int) -> None:
        """Press "Start training": Label Studio sends START_TRAINING to the backend."""
        self.send("POST", f"/api/ml/{backend_id}/train", body={})

    def webhooks(self, project_id: int) -> list[Json]:
        return self.request("GET", "/api/webhooks/", list, query={"project": str(project_id)})

    def add_webhook(self, fields: Mapping[str, object]) -> Json:
        return self.request("POST", "/api/webhooks/", dict, body=dict(fields))

    def patch_webhook(self, webhook_id: int, fields: Mapping[str, object]) -> Json:
        return self.request("PATCH", f"/api/webhooks/{webhook_id}/", dict, body=dict(fields))

    # Files

    def download(self, path: str, *, max_bytes: int) -> tuple[bytes, str]:
        """A file that Label Studio serves, and its content type; RequestRefused when it is larger."""
        response = self.send("GET", path, max_bytes=max_bytes)
        return response.content, response.headers["content-type"]

    # New projects

    def projects(self, title: str = "") -> Iterator[Json]:
        """The ``id`` and ``title`` of every project whose title contains these words, in any case."""
        number, more = 1, True
        while more:
            query = {"page": str(number), "page_size": "100", "include": "id,title", "title": title}
            page = self.request("GET", "/api/projects/", dict, query=query)
            yield from page["results"]
            number, more = number + 1, bool(page.get("next"))

    def validate_label_config(self, label_config: str) -> None:
        """RequestRefused, with the reason, where Label Studio does not accept the XML."""
        self.send("POST", "/api/projects/validate/", body={"label_config": label_config})

    def create_project(self, fields: Mapping[str, object]) -> Json:
        return self.request("POST", "/api/projects/", dict, body=dict(fields))


def _redirected(source: str, target: httpx.URL) -> LabelStudioError:
    there = target.copy_with(userinfo=b"", query=None, fragment=None)
    return LabelStudioError(
        f"{source} was redirected to {there}: "
        "set AL_LABEL_STUDIO_URL to the address where Label Studio answers itself (https instead of http?)"
    )


def _name(request: httpx.Request) -> str:
    """Method and address without the query, which is long and may hold a signature."""
    return f"{request.method} {request.url.copy_with(query=None, fragment=None)}"


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


def _view(conditions: Iterable[Condition]) -> dict[str, object]:
    """A Data Manager view: the tasks that meet every condition, by id."""
    items = [
        {
            "filter": f"filter:tasks:{column}",
            "operator": operator,
            "type": "Number" if isinstance(value, int) else "Datetime",
            "value": value,
        }
        for column, operator, value in conditions
    ]
    return {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}


def _time(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(answer: Mapping[str, object], key: str, path: str) -> int:
    if not isinstance(number := answer.get(key), int):
        raise PayloadError(f"{path}: expected a number under {key!r}, got {dict(answer)}")
    return number
