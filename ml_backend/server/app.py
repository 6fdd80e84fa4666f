"""The Flask app: the routes, who may call them, and errors as JSON. Torch-free; a route reads the store, never trains.

The types of a route's function are what ``openapi`` publishes of it.
"""

import re
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from functools import wraps
from hmac import compare_digest
from http import HTTPStatus
from typing import Any

import structlog
from flask import Blueprint, Flask, Response, abort, current_app, jsonify, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import HTTPException

from ml_backend.config import Settings
from ml_backend.errors import BackendError, StorageError, UnknownProject
from ml_backend.label_studio.formats import (
    Event,
    HealthAnswer,
    PredictAnswer,
    PredictRequest,
    ProjectRow,
    SetupAnswer,
    SetupRequest,
    StatusAnswer,
    VersionsAnswer,
    VersionsRequest,
    WebhookAnswer,
    parse_body,
    prediction,
)
from ml_backend.scheduling import RoundQueue
from ml_backend.scheduling.connections import configuration, connect, connection_of, version
from ml_backend.schemas import Connection
from ml_backend.server import (  # noqa: F401 - their routes
    agreement_page,
    images_page,
    options_page,
    readers,
    similar_page,
    state_page,
)
from ml_backend.server.actions import is_same_origin
from ml_backend.server.context import AppContext, context, refreshing, wants_page
from ml_backend.server.metrics import Metrics
from ml_backend.server.openapi import OPEN, describe, types_of
from ml_backend.server.status import statuses
from ml_backend.server.views import FORMS, names, pages, running_of
from ml_backend.server.webhook import receive
from ml_backend.storage import RoundStore, check_writable

LARGEST_BODIES = {"routes.webhook": 256 * 2**20, "routes.predictions": 32 * 2**20, "routes.setup": 4 * 2**20}
"""Bytes, by route. An import of many tasks is one event, and Label Studio's own limit for it is 250 MB."""
MAX_BODY_BYTES = 64 * 2**10  # of the other routes
MAX_REASON = 2000  # characters
LIVE = "-live"  # appended to the version of the ranking; no ranking's version ends so
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": a browser would then hide that a form comes from our own page.
    "Referrer-Policy": "same-origin",
    # The pages load nothing but themselves, our own pictures, forms and one script: nothing inline, no frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self'; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "Cache-Control": "no-store",
}
HTML = "text/html; charset=utf-8"
ICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3" fill="#5f8fb8"/></svg>'
ERROR_PAGES: dict[int, tuple[str, str]] = {
    HTTPStatus.BAD_REQUEST: ("That did not work", "Go back, correct it, and try again."),
    HTTPStatus.UNAUTHORIZED: (
        "Sign in to see this page",
        "Reload the page, and enter the user and password of this backend. They are not those of Label Studio: ask "
        "your operator for them.",
    ),
    HTTPStatus.FORBIDDEN: ("That was not accepted", "Open the project's page anew and try again."),
    HTTPStatus.NOT_FOUND: ("There is nothing at this address", "The list of all projects leads to every page."),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "This address is not a page",
        "A button or Label Studio sends to it. Open the project's page, and press the button there.",
    ),
    HTTPStatus.INTERNAL_SERVER_ERROR: (
        "That did not work",
        "Try again in a minute. If it stays so, your operator finds the cause in its log, and by "
        "running ml-backend doctor.",
    ),
}
"""Heading and remedy of an error's page, by status; those of 500 for any other."""
EXPLANATIONS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "No user and password were sent, or wrong ones.",
    HTTPStatus.NOT_FOUND: "No page of this backend has this address: a letter of it may be wrong, or the link is old.",
    HTTPStatus.METHOD_NOT_ALLOWED: "Nothing can be shown at this address, since it only takes what is sent to it.",
}
"""In place of words for programs, on a page."""

log = structlog.get_logger()
routes = Blueprint("routes", __name__)


def create_app(settings: Settings, queue: RoundQueue | None = None) -> Flask:
    """Create the app. It opens no connection: Redis is asked when it is needed.

    Args:
        settings: of the installation.
        queue: of rounds; by default that of the settings.
    """
    app = Flask("ml_backend.server", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.strict_slashes = False  # links are relative, and so right with a slash at the end of the address too
    store, queue = RoundStore(settings.data_dir), queue or RoundQueue.from_settings(settings)
    app.extensions["active-learning"] = AppContext(settings, store, queue, Metrics(store, queue))
    app.jinja_env.globals.update(names())
    app.register_blueprint(routes)
    app.register_blueprint(pages)
    _log_requests(app)
    _authenticate(app, settings)
    _guard_requests(app)
    _explain_errors(app)
    return app


def _log_requests(app: Flask) -> None:
    @app.before_request
    def bind_log_fields() -> None:
        # A thread answers requests of any project, one after the other.
        structlog.contextvars.clear_contextvars()
        named = {"key": "project", "round_id": "round"}
        structlog.contextvars.bind_contextvars(
            **{named[name]: value for name, value in (request.view_args or {}).items() if name in named}
        )


def _authenticate(app: Flask, settings: Settings) -> None:
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        log.warning(
            "no credentials are set: everybody who reaches this server may connect projects and start rounds",
            way_out="set AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS, and run `ml-backend connect` again",
        )
        return
    pair = f"{settings.basic_auth_user}:{settings.basic_auth_pass.get_secret_value()}"
    # Browsers and our webhook send UTF-8, Label Studio's own requests Latin-1.
    right = [pair.encode("utf-8"), pair.encode("latin-1")]

    @app.before_request
    def refuse_strangers() -> Response | None:
        if request.endpoint == OPEN:  # a container's health check has no password
            return None
        given = _given_pair(request.headers.get("Authorization", ""))
        if any([compare_digest(given, one) for one in right]):  # noqa: C419 - constant time
            return None
        log.warning("refused", path=request.path, given=bool(given))
        why = (
            "expected the user and password of AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS; Label Studio sends them with "
            "webhooks only after `ml-backend connect`"
        )
        response = _answer(HTTPStatus.UNAUTHORIZED, EXPLANATIONS[HTTPStatus.UNAUTHORIZED] if wants_page() else why)
        response.headers["WWW-Authenticate"] = 'Basic realm="ml-backend", charset="UTF-8"'
        return response


def _given_pair(header: str) -> bytes:
    """``user:password`` of a header of Basic authentication; empty for any other header."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return b64decode(encoded)
    except ValueError:
        return b""


def _guard_requests(app: Flask) -> None:
    @app.before_request
    def refuse_pages() -> Response | None:
        request.max_content_length = LARGEST_BODIES.get(request.endpoint or "", MAX_BODY_BYTES)
        # Browsers send Origin with every post, and the stored password for any page; servers send no Origin.
        if request.method not in {"GET", "HEAD"} and "Origin" in request.headers:
            origin, host = request.headers["Origin"], request.host
            if request.endpoint in FORMS and is_same_origin(origin, host, request.headers.get("Sec-Fetch-Site")):
                return None
            refusal = "this comes from a page in a browser; only Label Studio and this server's buttons may post here"
            if request.endpoint in FORMS:
                refusal += (
                    f" (its Origin is {origin[:200]}, and its Host {host[:200]}: a proxy must pass Host on, in nginx "
                    "by proxy_set_header Host $http_host)"
                )
            return _answer(HTTPStatus.FORBIDDEN, refusal)
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response


def _explain_errors(app: Flask) -> None:
    @app.errorhandler(BackendError)
    def refuse(error: BackendError) -> Response:
        log.warning("refused", path=request.path, kind=type(error).__name__, error=str(error))
        key = None if isinstance(error, UnknownProject) else (request.view_args or {}).get("key")
        return _answer(error.http_status, str(error), key)

    @app.errorhandler(HTTPException)
    def refuse_http(error: HTTPException) -> Response:
        description = EXPLANATIONS.get(error.code or 500) if wants_page() else None
        description = description or error.description or error.name
        if error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            description = f"the body is larger than the {request.max_content_length} bytes that {request.path} takes"
        response = _answer(error.code or 500, description)
        if allowed := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    @app.errorhandler(Exception)
    def report_bug(error: Exception) -> Response:
        log.error("unexpected error", path=request.path, exc_info=error)
        return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "an unexpected error; the backend's log says which")


def _answer(code: int, message: str, key: str | None = None) -> Response:
    """An error as a page for a browser, else as JSON.

    It is also the reason of the status line, which is all that Label Studio shows.

    Args:
        code: of HTTP.
        message: what happened.
        key: of the project whose page a page leads to.
    """
    response = jsonify(error=message)
    if wants_page():
        heading, remedy = ERROR_PAGES.get(code, ERROR_PAGES[HTTPStatus.INTERNAL_SERVER_ERROR])
        page = render_template("refused.html", heading=heading, error=message, remedy=remedy, key=key)
        response = Response(page, content_type=HTML)
    # A status line holds Latin-1 without control characters; no markup either, since it is shown.
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", message.translate({ord("<"): "[", ord(">"): "]"}))
    reason = line.encode("latin-1", "replace").decode("latin-1")[:MAX_REASON].strip() or "error"
    response.status = f"{int(code)} {reason}"
    return response


def json_endpoint(view: Callable[..., Any]) -> Callable[[], Response]:
    """Parse the body into the model of the view's parameter, and write the model that it returns."""
    body, _ = types_of(view)

    @wraps(view)
    def answer() -> Response:
        given = () if body is None else (parse_body(body, request.get_data()),)
        for read in given:
            project = getattr(read, "project", None)
            if isinstance(project, ProjectRow):
                project = project.key or project.id
            if project is not None:  # in every log line of this request
                structlog.contextvars.bind_contextvars(project=str(project))
        answered = view(*given)
        return answered if isinstance(answered, Response) else jsonify(answered.model_dump(mode="json"))

    return answer


@routes.get("/health")
@json_endpoint
def health() -> HealthAnswer:
    """Whether the server is up and can write to its data folder; the only route without credentials."""
    try:
        check_writable(context().store.root)
    except StorageError as error:
        log.error("unhealthy", error=str(error))  # noqa: TRY400 - no traceback: it is no bug
        abort(HTTPStatus.SERVICE_UNAVAILABLE, "the data folder cannot be written; the backend's log says why")
    return HealthAnswer(degraded=degraded(context().store, context().queue))


@routes.get("/favicon.ico")
def icon() -> Response:
    """The icon of the pages."""
    return Response(ICON, content_type="image/svg+xml")


@routes.get("/")
@json_endpoint
def index() -> StatusAnswer | Response:
    """The state of every project: a page for a browser, JSON for other clients."""
    found = statuses(context().store, context().queue)
    if wants_page():
        view = refreshing(busy=any(status.busy for status in found))
        rounds = [context().store.project(one.connection.project).summaries()[0] for one in found]
        view["progress"] = [running_of(one, its, time.time()) for one, its in zip(found, rounds, strict=True)]
        # A project's card says it by itself.
        view["degraded"] = [] if found else degraded(context().store, context().queue)
        page = render_template("status.html", statuses=found, **view)
        return Response(page, content_type=HTML)
    return StatusAnswer(projects=[status.as_json() for status in found])


@routes.post("/setup")
@json_endpoint
def setup(body: SetupRequest) -> SetupAnswer:
    """Connect a project, or connect it again."""
    return SetupAnswer(model_version=connect(body, context().store, context().queue))


@routes.post("/predict")
@json_endpoint
def predictions(body: PredictRequest) -> PredictAnswer:
    """The last round's suggestions for some tasks; never a ranking."""
    connection = connection_of(body.project, context().store)
    return PredictAnswer(results=predict([str(task.id) for task in body.tasks], connection, context().store))


@routes.post("/webhook")
@json_endpoint
def webhook(event: Event) -> WebhookAnswer:
    """Count an event; a round starts when enough labels have changed."""
    context().metrics.count_webhook(event.action)
    answer = receive(event, context().store, context().queue, request.host)
    log.info("webhook", action=event.action, **answer)
    return WebhookAnswer.model_validate({"action": event.action, **answer})


@routes.get("/versions")
@json_endpoint
def all_versions() -> VersionsAnswer:
    """The served version of each project; Label Studio asks without naming a project."""
    store = context().store
    return VersionsAnswer(versions=[version(connection.project, store) for connection in store.connections()])


@routes.post("/versions")
@json_endpoint
def versions(body: VersionsRequest) -> VersionsAnswer:
    """The served version of a project, as label-studio-ml asks for it."""
    return VersionsAnswer(versions=[version(body.project, context().store)])


@routes.get("/metrics")
def metrics() -> Response:
    """Counters and gauges for Prometheus."""
    return Response(generate_latest(context().metrics.registry), content_type=CONTENT_TYPE_LATEST)


@routes.get("/openapi.json")
def openapi() -> Response:
    """The description of this server."""
    return jsonify(describe(current_app))


def degraded(store: RoundStore, queue: RoundQueue) -> list[str]:
    """What does not work now, in words; empty if everything does. Never raises, and returns within a second."""
    try:
        states = [queue.status(connection.project) for connection in store.connections()]
        workers = queue.workers()
    except BackendError:
        return ["Redis does not answer"]
    except OSError:
        return ["the data folder cannot be read"]
    found: list[str] = []
    if states and not workers:
        found.append("no worker runs")
    if failing := sum(state.failing for state in states):
        found.append(f"the last round of {failing} of {len(states)} projects failed")
    return found


def predict(image_ids: Sequence[str], connection: Connection, store: RoundStore) -> list[dict[str, object]]:
    """One prediction an image, in their order: the last round's suggestion with the option ``prelabel``, else empty.

    Raises:
        PayloadError: the label config cannot be read.
        SettingsError: an option has a wrong name or value.
    """
    config, options = configuration(connection)
    model_version = version(connection.project, store) + LIVE
    project = store.project(connection.project)
    rounds = project.round_ids() if options.prelabel else []
    suggestions, confidences = project.suggestions(rounds[-1], image_ids) if rounds else ({}, {})
    results: list[dict[str, object]] = []
    for image_id in image_ids:
        suggestion = suggestions.get(image_id)
        # Label Studio would refuse a class that has left the label config since.
        known = suggestion if suggestion in config.classes else None
        found = prediction(image_id, 0.0, model_version, config, known, confidence=confidences.get(image_id))
        results.append({"result": found["result"], "model_version": model_version})
    return results
