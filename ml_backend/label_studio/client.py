"""HTTP client for Label Studio: one method for each call, through label-studio-sdk wherever that serves.

Ours are the HTTP below the SDK (``LabelStudioHttp``) and the requests under "Without label-studio-sdk". Compared with
label-studio-sdk 2.1.2, in CPU seconds of this side, medians of 9, pages of 1,000 tasks from memory:

- Listing 10,000 tasks with id and data takes ``tasks.list`` 0.36 s, since it builds a model of each, and 0.013 s here;
  with the annotations of every third, 0.44 s and 0.05 s. Its pager also counts pages, which move while readers label.
- It has no call that deletes a model version, counts the predictions of one, or validates a new project's label config.
- Its ``files.download`` reads uploads only, and into memory whatever their size.
- It renews an access token once it has expired by this machine's clock, and not after a 401.
- It repeats every request after 408, 409, 429 and 5xx, also an import of predictions that Label Studio has stored.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from inspect import signature
from typing import Any, NamedTuple, Self, TypeVar

import httpx
from label_studio_sdk.base_client import LabelStudioBase
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.http_response import HttpResponse
from label_studio_sdk.core.parse_error import ParsingError
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result, wait_exponential

from ml_backend.config import Settings, checked_address
from ml_backend.config.network import LEAVES_OUT, Server, environment_context, error_chain, explain_failure, proxy_for
from ml_backend.errors import LabelStudioError, PayloadError, RequestRefused, SettingsError, Unreachable

LABEL_STUDIO = Server("start Label Studio", "AL_LABEL_STUDIO_URL")
BACKEND = Server("start `ml-backend serve`", "--url")

FAILURES = (httpx.HTTPError, httpx.InvalidURL)
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
BUSY = frozenset({502, 503, 504})
PROXY_WANTS_PASSWORD = 407
WANTS_TLS = ("HTTPS port", "SSL-enabled server port", "HTTPS server")  # nginx, Apache, Go

REFRESH = "/api/token/refresh/"
RENEW_S = 210.0  # age of an access token, which lasts 300 s, at which the next one is fetched
CONNECT_S = 10.0  # largest time-out of connecting
EXCERPT = 800  # characters of a response that an error quotes
PAGE = 1000  # tasks a page
IDS_IN_A_QUERY = 400  # task ids that fit into a URL
SLOW = 20  # multiple of the time-out for what Label Studio computes over a whole project
# Fields of tasks and of their annotations: Label Studio applies one list to both.
CHANGED = (
    "id,data,annotations,completed_by,was_cancelled,ground_truth,result,updated_at,created_at,lead_time,"
    "parent_prediction"
)

TRIES = 3  # to change a project

T = TypeVar("T")
Json = dict[str, Any]
Condition = tuple[str, str, int | str | list[str]]  # column of the Data Manager, operator, value


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

    def transport(self) -> httpx.BaseTransport:
        """The transport of an HTTP client for this server."""
        if self._transport is not None:
            return self._transport
        context, proxy = tls_context(), None
        if self._proxy is not None:
            tls = context if self._proxy.url.startswith("https:") else None
            proxy = httpx.Proxy(self._proxy.url, auth=self._proxy.auth, ssl_context=tls)
        return httpx.HTTPTransport(verify=context, proxy=proxy, trust_env=False)

    def client(self) -> httpx.Client:
        """An HTTP client for this server."""
        return httpx.Client(transport=self.transport(), trust_env=False)

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


# The HTTP client


class Redirected(RequestRefused):
    """Label Studio redirects to a file at ``location``, which was not requested."""

    def __init__(self, message: str, status: int, location: str) -> None:
        super().__init__(message, status)
        self.location = location


class ApiKey(httpx.Auth):
    """A legacy token, sent as it is, or a personal access token, exchanged for access tokens of five minutes.

    Args:
        key: as the user copied it from Label Studio.
        refresh: exchanges a personal access token for an access token.

    Raises:
        SettingsError: the key is empty.
    """

    def __init__(self, key: str, refresh: Callable[[str], str]) -> None:
        self._key = key.strip()
        if not self._key:
            raise SettingsError("AL_LABEL_STUDIO_API_KEY is empty: make a personal access token in Label Studio")
        self.is_personal = self._key.count(".") == 2
        self._refresh = refresh
        self._header = f"Token {self._key}"
        self._renew_at = 0.0
        self._lock = threading.Lock()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Authenticate a request; repeat it once with another access token where Label Studio refuses the first."""
        request.headers["Authorization"] = sent = self.header()
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED and self.is_personal:
            # The access token expired early, for example since Label Studio was set up anew.
            request.headers["Authorization"] = self.header(refused=sent)
            yield request

    def header(self, refused: str = "") -> str:
        """The Authorization header to send now: another than the one that Label Studio ``refused``."""
        with self._lock:
            if self.is_personal and (time.monotonic() >= self._renew_at or self._header == refused):
                self._header = f"Bearer {self._refresh(self._key)}"
                self._renew_at = time.monotonic() + RENEW_S
            return self._header


class LabelStudioHttp(httpx.Client):
    """An ``httpx.Client`` for one Label Studio.

    It sends the key to Label Studio's own scheme, host and port alone: a redirect to another origin is not followed. It
    repeats a request where that is safe, and raises an error of this package for every response without success.

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
        self.key = ApiKey(api_key, self._refresh)
        self.timeout_s = timeout_s
        self._retries = retries
        self._patience_s = patience_s
        self._route = Route(self.url, LABEL_STUDIO, transport)
        super().__init__(
            auth=self.key,
            timeout=timeout_s,
            follow_redirects=True,
            event_hooks={"request": [self._check_origin]},
            transport=self._route.transport(),
            trust_env=False,
        )

    def send(self, request: httpx.Request, *, max_bytes: int | None = None, **options: Any) -> httpx.Response:
        """Send a request with the options of ``httpx.Client``, and return a successful response, read to its end.

        POST alone is never repeated once it may have arrived. A response larger than ``max_bytes`` is refused.
        """
        request.extensions["timeout"]["connect"] = min(self.timeout_s, CONNECT_S)
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
            response: httpx.Response = retrying(self._send_once, request, max_bytes, options | {"stream": True})
        except FAILURES as error:
            raise self._route.unreachable(error, f"no answer from Label Studio to {_name(request)}") from error
        return self._success(request, response)

    def _send_once(self, request: httpx.Request, max_bytes: int | None, options: dict[str, Any]) -> httpx.Response:
        response = super().send(request, **options)
        try:
            if max_bytes is None or not response.is_success:
                response.read()
                return response
            content, end = bytearray(), time.monotonic() + self.timeout_s
            for part in response.iter_bytes():
                content += part
                if len(content) > max_bytes:
                    raise RequestRefused(f"{_name(request)}: the answer is larger than {max_bytes} bytes", 413)
                if time.monotonic() > end:  # httpx itself limits only the wait for each part
                    raise httpx.ReadTimeout(f"incomplete after {self.timeout_s} s", request=request)
        finally:
            response.close()
        headers = {"content-type": response.headers.get("content-type", "")}
        return httpx.Response(response.status_code, headers=headers, content=bytes(content), request=response.request)

    def _gives_up(self, attempts: RetryCallState) -> bool:
        away = attempts.outcome is not None and isinstance(attempts.outcome.exception(), NOT_CONNECTED)
        waited_s = attempts.seconds_since_start or 0.0
        return attempts.attempt_number >= self._retries and not (away and waited_s < self._patience_s)

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
        seen = f"Label Studio answered {response.status_code} to {_name(request)}"
        if excerpt := _excerpt(response):
            seen += f": {excerpt}"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            personal = "was it revoked, or an access token, which lasts five minutes?"
            why = personal if self.key.is_personal else "legacy tokens are off by default"
            seen += (
                f"; AL_LABEL_STUDIO_API_KEY was refused ({why}): make a personal access token "
                f"at {self.url}/user/account and set it"
            )
        raise RequestRefused(seen + self._route.note, response.status_code)

    def _refresh(self, personal: str) -> str:
        answer = _json(self.post(self.url + REFRESH, json={"refresh": personal}, auth=httpx.Auth()))
        if not isinstance(answer, dict) or not isinstance(access := answer.get("access"), str):
            raise PayloadError(f"{self.url}{REFRESH} returned no access token: is this Label Studio 1.16 or later?")
        return access


# The client


class HeldPredictions(NamedTuple):
    """The predictions of a model version that a project holds."""

    number: int
    newest: datetime | None  # creation time by Label Studio's clock; None where it is not reported


class LabelStudioClient:
    """One Label Studio, as one of its users. Safe to share between threads.

    Every method raises Unreachable when Label Studio does not respond, RequestRefused when it refuses, and
    PayloadError when the response has another form. A row is the dictionary that Label Studio sent, and not the SDK's
    model of it, which other releases may not fit.

    Args:
        url: of Label Studio.
        api_key: personal access token or legacy token.
        options: of ``LabelStudioHttp``.
    """

    def __init__(self, url: str, api_key: str, **options: Any) -> None:
        self._http = LabelStudioHttp(url, api_key, **options)
        self.url = self._http.url

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

    @property
    def key_kind(self) -> str:
        """Which of the two kinds of API key is used."""
        return "personal access token" if self._http.key.is_personal else "legacy token"

    # Through label-studio-sdk

    @cached_property
    def _sdk(self) -> LabelStudioBase:
        # It gets no key and no retries: LabelStudioHttp authenticates and repeats, and raises errors of its own.
        return LabelStudioBase(base_url=self.url, api_key="", httpx_client=self._http, max_retries=0)

    def _call(self, call: Callable[..., T], *arguments: Any, **fields: Any) -> T:
        """What a call of the SDK with these arguments returns."""
        signature(call).bind(*arguments, **fields)  # a wrong argument is no fault of the response
        try:
            return call(*arguments, **fields)
        except (ApiError, ParsingError, TypeError) as error:
            raise PayloadError(
                f"{self.url} gave a response that is no JSON, or of another form than label-studio-sdk reads; "
                "is AL_LABEL_STUDIO_URL the address of Label Studio?"
            ) from error

    def _row(self, call: Callable[..., HttpResponse[Any]], *arguments: Any, **fields: Any) -> Json:
        return _expect(self._call(call, *arguments, **fields).response, dict)

    def whoami(self) -> Json:
        """The user whose key is sent: ``email``, ``permissions``."""
        return self._row(self._sdk.users.with_raw_response.whoami)

    def reader_names(self) -> dict[str, str]:
        """User id -> first and last name, or the user name where both are empty."""
        users = _expect(self._call(self._sdk.users.with_raw_response.list).response, list)
        names = ((one["id"], f"{one.get('first_name', '')} {one.get('last_name', '')}".strip(), one) for one in users)
        return {str(number): name or str(one.get("username") or one.get("email")) for number, name, one in names}

    def is_authenticated(self) -> bool:
        """Whether this is a Label Studio that accepts the key: only then "not found" means that an object is gone."""
        try:
            return "email" in self.whoami()
        except LabelStudioError:
            return False

    def project(self, project_id: int) -> Json:
        return self.project_and_clock(project_id)[0]

    def project_and_clock(self, project_id: int) -> tuple[Json, datetime | None]:
        """The project, and Label Studio's time; None where the response has none."""
        response = self._call(self._sdk.projects.with_raw_response.get, project_id).response
        try:
            clock = parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
        except (KeyError, ValueError):
            clock = None
        return _expect(response, dict), clock

    def projects(self, title: str = "") -> Iterator[Json]:
        """The ``id`` and ``title`` of every project whose title contains these words, in any case."""
        number, more = 1, True
        while more:
            # The SDK's own pager asks for one page too many, to which Label Studio answers 404.
            page = self._call(self._sdk.projects.list, title=title, include="id,title", page=number, page_size=100)
            yield from ({"id": row.id, "title": row.title} for row in page.items or ())
            number, more = number + 1, bool(page.response.next)

    def create_project(self, fields: Mapping[str, object]) -> Json:
        return self._row(self._sdk.projects.with_raw_response.create, **fields)

    def patch_project(self, project_id: int, fields: Mapping[str, object]) -> Json:
        """Change fields of a project and read the whole of it back.

        Raises:
            LabelStudioError: refused, or a field has another value afterwards.
        """
        # For these Label Studio goes over all tasks before it responds.
        slow = SLOW if fields.keys() & {"maximum_annotations", "overlap_cohort_percentage"} else 1
        options = {"timeout": self._http.timeout_s * slow}
        for _ in range(TRIES):
            self._call(self._sdk.projects.with_raw_response.update, project_id, **fields, request_options=options)
            project = self.project(project_id)
            wrong = {name: project.get(name) for name, value in fields.items() if project.get(name) != value}
            if not wrong:  # otherwise a request that Label Studio answered at the same moment has saved its older row
                return project
        raise LabelStudioError(
            f"project {project_id} was set to {dict(fields)} {TRIES} times but holds {wrong} afterwards: "
            "somebody else changes it at the same moments, so try again"
        )

    def import_predictions(self, project_id: int, predictions: list[dict[str, object]]) -> int:
        """Import in one call and return how many were created; Label Studio drops bad ones without an error."""
        call, timeout = self._sdk.projects.with_raw_response.import_predictions, self._http.timeout_s * SLOW
        answer = self._row(call, project_id, request=predictions, request_options={"timeout": timeout})
        return _number(answer, "created", "import/predictions")

    def backends(self, project_id: int) -> list[Json]:
        """The project's ML backends. Label Studio first checks the health of each and calls its ``/setup``."""
        return _expect(self._call(self._sdk.ml.with_raw_response.list, project=project_id).response, list)

    def add_backend(self, fields: Mapping[str, object]) -> Json:
        return self._row(self._sdk.ml.with_raw_response.create, **fields)

    def patch_backend(self, backend_id: int, fields: Mapping[str, object]) -> Json:
        """Change a backend; ``url`` and ``project`` must be among the fields."""
        return self._row(self._sdk.ml.with_raw_response.update, backend_id, **fields)

    def delete_backend(self, backend_id: int) -> None:
        self._call(self._sdk.ml.with_raw_response.delete, backend_id)

    def train(self, backend_id: int) -> None:
        """Press "Start training": Label Studio sends START_TRAINING to the backend."""
        self._call(self._sdk.ml.with_raw_response.train, backend_id)

    def webhooks(self, project_id: int) -> list[Json]:
        answer = self._call(self._sdk.webhooks.with_raw_response.list, project=str(project_id))
        return _expect(answer.response, list)

    def add_webhook(self, fields: Mapping[str, object]) -> Json:
        return self._row(self._sdk.webhooks.with_raw_response.create, **fields)

    def patch_webhook(self, webhook_id: int, fields: Mapping[str, object]) -> Json:
        return self._row(self._sdk.webhooks.with_raw_response.update, webhook_id, **fields)

    def storages(self, kind: str, project_id: int) -> list[Json]:
        """The project's source storages of a kind: ``s3``, ``gcs`` or ``azure``."""
        call = getattr(self._sdk.import_storage, kind).with_raw_response.list
        return _expect(self._call(call, project=project_id).response, list)

    def add_storage(self, kind: str, project_id: int, fields: Mapping[str, object]) -> Json:
        """Connect a source storage whose objects are the images; Label Studio tries to list it first."""
        call = getattr(self._sdk.import_storage, kind).with_raw_response.create
        return self._row(call, project=project_id, use_blob_urls=True, recursive_scan=True, **fields)

    # Without label-studio-sdk

    def request(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        """The JSON of the response to ``send``, which must be of this kind: ``dict`` or ``list``."""
        return _expect(self.send(method, path, **options), kind)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        files: Mapping[str, bytes] | None = None,
        timeout_factor: int = 1,
        max_bytes: int | None = None,
    ) -> httpx.Response:
        """Send a request to a path below Label Studio's address, with a ``body`` as JSON or ``files`` by their names.

        ``timeout_factor`` multiplies the usual time-out. ``max_bytes`` limits the size of a file: a larger one is
        refused, and a redirect is not followed but raises ``Redirected``.
        """
        timeout = self._http.timeout_s * timeout_factor
        forms = [(name, (name, content)) for name, content in files.items()] if files else None
        url = self.url + path
        request = self._http.build_request(method, url, params=query, json=body, files=forms, timeout=timeout)
        return self._http.send(request, max_bytes=max_bytes, follow_redirects=max_bytes is None)

    def validate_label_config(self, label_config: str) -> None:
        """RequestRefused, with the reason, where Label Studio does not accept the XML."""
        self.send("POST", "/api/projects/validate/", body={"label_config": label_config})

    def upload(self, project_id: int, files: Mapping[str, bytes]) -> dict[str, str]:
        """Upload files without making tasks of them; the address of each by its name.

        Args:
            project_id: of Label Studio.
            files: at most 100 and 250 MB; Label Studio replaces blanks and most punctuation in their names.

        Raises:
            LabelStudioError: refused, or stored under other names.
        """
        path = f"/api/projects/{project_id}/import"
        response = self.send("POST", path, query={"commit_to_project": "false"}, files=files, timeout_factor=SLOW)
        query = {"ids": json.dumps(_expect(response, dict).get("file_upload_ids"))}
        rows = self.request("GET", f"/api/projects/{project_id}/file-uploads", list, query=query)
        # Label Studio puts eight digits and a hyphen before a name.
        uris = {str(row["file"]).rpartition("/")[2][9:]: f"/data/{row['file']}" for row in rows}
        if missing := sorted(files.keys() - uris.keys()):
            raise LabelStudioError(f"project {project_id} lost {len(missing)} of {len(files)} files: {missing[:3]}")
        return uris

    def import_tasks(self, project_id: int, tasks: list[Json]) -> None:
        """Make tasks, all or none.

        Raises:
            LabelStudioError: refused, or made fewer than were sent.
        """
        path = f"/api/projects/{project_id}/import"
        query = {"commit_to_project": "true"}
        answer = self.request("POST", path, dict, query=query, body=tasks, timeout_factor=SLOW)
        made = _number(answer, "task_count", path)
        if made != len(tasks):
            raise LabelStudioError(f"project {project_id} made {made} tasks of {len(tasks)}")

    def task_metas(self, project_id: int) -> Iterator[Json]:
        """The ``meta`` of every task that has one: what its importer stored beside the data, unseen by readers."""
        yield from (task["meta"] for task in self._tasks(project_id, [], {"include": "id,meta"}) if task.get("meta"))

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

    def task_counts(self, project_id: int, task_ids: Iterable[int]) -> dict[int, Json]:
        """Those of the tasks that exist, by id: ``overlap``, ``total_annotations`` and ``cancelled_annotations``."""
        fields = "id,overlap,total_annotations,cancelled_annotations"
        return {int(task["id"]): task for task in self._selected(project_id, task_ids, [], fields)}

    def patch_task(self, task_id: int, fields: Mapping[str, object]) -> None:
        """Change fields of a task; one that is deleted is no error. Label Studio sends no webhook."""
        try:
            self.send("PATCH", f"/api/tasks/{task_id}/", body=dict(fields))
        except RequestRefused as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise

    def _select(self, project_id: int, task_ids: Iterable[int], conditions: list[Condition]) -> set[int]:
        return {int(task["id"]) for task in self._selected(project_id, task_ids, conditions, "id")}

    def _selected(
        self, project_id: int, task_ids: Iterable[int], conditions: list[Condition], fields: str
    ) -> Iterator[Json]:
        ids = list(task_ids)
        for start in range(0, len(ids), IDS_IN_A_QUERY):
            selected = {"all": False, "included": ids[start : start + IDS_IN_A_QUERY]}
            yield from self._tasks(project_id, conditions, {"include": fields}, selectedItems=selected)

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

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Number of predictions that the project holds, by model version."""
        return {version: held.number for version, held in self.held_predictions(project_id).items()}

    def held_predictions(self, project_id: int) -> dict[str, HeldPredictions]:
        """Number and newest creation time of the predictions that the project holds, by model version."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.request("GET", path, dict, query={"extended": "true"}, timeout_factor=SLOW)
        return {
            str(row["model_version"]): HeldPredictions(
                _number(row, "count", path), datetime.fromisoformat(row["latest"]) if row.get("latest") else None
            )
            for row in answer.get("static") or ()
        }

    def predictions_of(self, project_id: int, version: str) -> Iterator[int]:
        """Ids of the predictions of a model version, by ascending task."""
        query = {"fields": "all", "include": "id,predictions", "page_size": "100"}
        for task in self._tasks(project_id, [("predictions_model_versions", "contains", [version])], query):
            yield from (int(one["id"]) for one in task["predictions"] if one["model_version"] == version)

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete a prediction; one that is deleted is no error."""
        try:
            self.send("DELETE", f"/api/predictions/{prediction_id}/")
        except RequestRefused as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise

    def delete_model_version(self, project_id: int, version: str) -> int:
        """Delete the predictions of a model version in one transaction, 6 to 34 ms each, and return their number."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.request("DELETE", path, dict, body={"model_version": version}, timeout_factor=SLOW)
        return _number(answer, "deleted_predictions", path)

    def download(self, path: str, *, max_bytes: int) -> tuple[bytes, str]:
        """A file that Label Studio serves, and its content type; RequestRefused when it is larger."""
        response = self.send("GET", path, max_bytes=max_bytes)
        return response.content, response.headers["content-type"]


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
    """The JSON of a response; None where it is none."""
    try:
        return response.json()
    except ValueError:
        return None


def _expect(response: httpx.Response, kind: type[T]) -> T:
    """The JSON of a response, or a PayloadError where it is not of this kind, ``dict`` or ``list``."""
    answer = _json(response)
    if not isinstance(answer, kind):
        raise PayloadError(
            f"{_name(response.request)}: expected a JSON {kind.__name__}, got {_excerpt(response)}; "
            "is AL_LABEL_STUDIO_URL the address of Label Studio?"
        )
    return answer


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
            "type": {int: "Number", str: "Datetime", list: "List"}[type(value)],
            "value": value,
        }
        for column, operator, value in conditions
    ]
    return {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}


def _number(answer: Mapping[str, object], key: str, path: str) -> int:
    """A number of a response's JSON, or a PayloadError that names the path."""
    if not isinstance(number := answer.get(key), int):
        raise PayloadError(f"{path}: expected a number under {key!r}, got {dict(answer)}")
    return number
