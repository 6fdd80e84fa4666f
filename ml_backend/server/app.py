"""What ``/health`` tells besides UP, which it says as long as this process answers.

``/predict``: answers from the store, without a network.
One function a URL: its body in, its answer out. The types of a function are what ``openapi`` publishes of it.
The Flask app: who may call, and errors turned into words. Torch-free.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from functools import wraps
from hmac import compare_digest
from http import HTTPStatus
from typing import Any

import structlog
from flask import Blueprint, Flask, Response, current_app, jsonify, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import HTTPException

from ml_backend.config import Settings
from ml_backend.errors import BackendError
from ml_backend.label_studio.formats import LabelConfig, prediction
from ml_backend.label_studio.payloads import (
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
)
from ml_backend.scheduling import RoundQueue
from ml_backend.scheduling.reconciler import configuration, connect, connection_of, version
from ml_backend.schemas import Connection, ProjectKey
from ml_backend.server.actions import is_same_origin
from ml_backend.server.context import Parts, parts, refreshing, relative_url, wants_page
from ml_backend.server.metrics import Metrics
from ml_backend.server.openapi import OPEN, describe, types_of
from ml_backend.server.status import statuses
from ml_backend.server.views import FORMS, pages
from ml_backend.server.webhook import receive
from ml_backend.storage import RoundStore
from ml_backend.storage.rounds import Suggestions


def degraded(store: RoundStore, queue: RoundQueue) -> list[str]:
    """What does not work just now, in words; nothing where all does. Never raises, and answers within a second."""
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


Answer = dict[str, object]

LIVE = "-live"  # appended to the version of the ranking; no ranking's version ends so


def predict(image_ids: Sequence[str], connection: Connection, store: RoundStore) -> list[Answer]:
    """One answer an image, in their order: the last round's suggestion where the owner wants pre-labels, else empty.

    Raises:
        PayloadError: the label config cannot be read.
        SettingsError: an option has a wrong name or value.
    """
    config, options = configuration(connection)
    live = version(connection.project, store) + LIVE
    project = store.project(connection.project)
    rounds = project.round_ids() if options.prelabel else []
    suggestions = project.suggestions(rounds[-1]) if rounds else Suggestions({}, {})
    return [_prediction(image_id, suggestions, live, config) for image_id in image_ids]


def _prediction(image_id: str, suggestions: Suggestions, model_version: str, config: LabelConfig) -> Answer:
    suggestion = suggestions.classes.get(image_id)
    # A class that has left the label config since would be refused.
    known = suggestion if suggestion in config.classes else None
    confidence = suggestions.confidences.get(image_id)
    answer = prediction(image_id, 0.0, model_version, config, known, confidence=confidence)
    return {"result": answer["result"], "model_version": model_version}


LARGEST_BODIES = {"routes.webhook": 256 * 2**20, "routes.predictions": 32 * 2**20, "routes.setup": 4 * 2**20}
"""Bytes, by route; other bodies are small. An import of many tasks comes in one event, and Label Studio's own limit
for it is 250 MB."""

log = structlog.get_logger()
routes = Blueprint("routes", __name__)


def _in_json(view: Callable[..., Any]) -> Callable[[], Response]:
    """Reads the body that the view's parameter asks for, and writes the model that it returns."""
    body, _ = types_of(view)

    @wraps(view)
    def answer() -> Response:
        given = () if body is None else (parse_body(body, request.get_data()),)
        for read in given:
            _name_project(getattr(read, "project", None))
        answered = view(*given)
        return answered if isinstance(answered, Response) else jsonify(answered.model_dump(mode="json"))

    return answer


def _name_project(project: ProjectKey | ProjectRow | None) -> None:
    """In every line that is logged for this request from now on."""
    known = (project.key or project.id) if isinstance(project, ProjectRow) else project
    if known is not None:
        structlog.contextvars.bind_contextvars(project=str(known))


@routes.get("/health")
@_in_json
def health() -> HealthAnswer:
    """Whether the server is up; the only route without credentials."""
    return HealthAnswer(degraded=degraded(parts().store, parts().queue))


@routes.get("/")
@_in_json
def index() -> StatusAnswer | Response:
    """What every project is doing; a page for a browser, JSON for anybody else."""
    found = statuses(parts().store, parts().queue)
    if wants_page():
        busy = any(status.busy for status in found)
        page = render_template("status.html", statuses=found, **refreshing(busy=busy))
        return Response(page, content_type="text/html; charset=utf-8")
    return StatusAnswer(projects=[status.as_json() for status in found])


@routes.post("/setup")
@_in_json
def setup(body: SetupRequest) -> SetupAnswer:
    """Connect a project, or connect it again: it costs nothing."""
    return SetupAnswer(model_version=connect(body, parts().store, parts().queue))


@routes.post("/predict")
@_in_json
def predictions(body: PredictRequest) -> PredictAnswer:
    """What the last round said about some tasks; never a ranking."""
    connection = connection_of(body.project, parts().store)
    return PredictAnswer(results=predict([str(task.id) for task in body.tasks], connection, parts().store))


@routes.post("/webhook")
@_in_json
def webhook(event: Event) -> WebhookAnswer:
    """Take note of an event; a round starts when enough labels have changed."""
    parts().metrics.count_webhook(event.action)
    answer = receive(event, parts().store, parts().queue, request.host)
    log.info("webhook", action=event.action, **answer)
    return WebhookAnswer.model_validate({"action": event.action, **answer})


@routes.get("/versions")
@_in_json
def all_versions() -> VersionsAnswer:
    """The version that each project is served; Label Studio asks without naming a project."""
    store = parts().store
    return VersionsAnswer(versions=[version(connection.project, store) for connection in store.connections()])


@routes.post("/versions")
@_in_json
def versions(body: VersionsRequest) -> VersionsAnswer:
    """The version that a project is served, as label-studio-ml asks for it."""
    return VersionsAnswer(versions=[version(body.project, parts().store)])


@routes.get("/metrics")
def metrics() -> Response:
    """Counters and gauges for Prometheus."""
    return Response(generate_latest(parts().metrics.registry), content_type=CONTENT_TYPE_LATEST)


@routes.get("/openapi.json")
def openapi() -> Response:
    """The description of this server that you are reading."""
    return jsonify(describe(current_app))


MAX_BODY_BYTES = 64 * 2**10  # where a route does not say more
MAX_REASON = 2000  # characters

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": a browser would then hide from us that a form comes from our own page.
    "Referrer-Policy": "same-origin",
    # The pages show themselves and nothing else: no script, no frame; pictures and forms are our own.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "Cache-Control": "no-store",
}


def create_app(settings: Settings, queue: RoundQueue | None = None) -> Flask:
    """Put the app together. Opens no connection: Redis is asked when it is needed.

    Args:
        settings: of the installation.
        queue: the queue of rounds; that of the settings unless a test brings its own.
    """
    app = Flask("ml_backend.server", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.strict_slashes = False  # links are relative, and so right with a slash at the end of the address too
    store, queue = RoundStore(settings.data_dir), queue or RoundQueue.from_settings(settings)
    app.extensions["active-learning"] = Parts(store, queue, Metrics(store, queue))
    app.jinja_env.globals["url_for"] = relative_url
    app.register_blueprint(routes)
    app.register_blueprint(pages)
    _begin_lines(app)
    _authenticate(app, settings)
    _guard_requests(app)
    _explain_errors(app)
    return app


def _begin_lines(app: Flask) -> None:
    @app.before_request
    def forget_the_last_request() -> None:
        # A thread answers one request after the other, of any project.
        structlog.contextvars.clear_contextvars()
        named = {"key": "project", "round_id": "round"}
        structlog.contextvars.bind_contextvars(
            **{named[name]: value for name, value in (request.view_args or {}).items() if name in named}
        )


def _authenticate(app: Flask, settings: Settings) -> None:
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        log.warning(
            "no credentials are set: whoever reaches this server may connect projects and start rounds",
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
        if any([compare_digest(given, one) for one in right]):  # noqa: C419 - as long whichever it is
            return None
        log.warning("refused", path=request.path, given=bool(given))
        response = _answer(
            HTTPStatus.UNAUTHORIZED,
            "user and password are wanted, those of AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS; Label Studio does not "
            "send them with webhooks by itself: run `ml-backend connect`",
        )
        response.headers["WWW-Authenticate"] = 'Basic realm="ml-backend", charset="UTF-8"'
        return response


def _given_pair(header: str) -> bytes:
    """What stands in a header of Basic authentication, ``user:password``; empty where it is none."""
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
        # A browser sends it with whatever a page posts, and remembers the password for any page; servers never send it.
        if request.method not in {"GET", "HEAD"} and "Origin" in request.headers:
            origin, host = request.headers["Origin"], request.host
            if request.endpoint in FORMS and is_same_origin(origin, host, request.headers.get("Sec-Fetch-Site")):
                return None
            return _answer(
                HTTPStatus.FORBIDDEN,
                "this comes from a page in a browser; only Label Studio and the buttons of this server may post here"
                + (
                    f" (its Origin is {origin[:200]}, and the Host that was asked {host[:200]}: a proxy must pass Host "
                    "on, in nginx by proxy_set_header Host $http_host)"
                    if request.endpoint in FORMS
                    else ""
                ),
            )
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response


def _explain_errors(app: Flask) -> None:
    @app.errorhandler(BackendError)
    def refuse(error: BackendError) -> Response:
        log.warning("refused", path=request.path, kind=type(error).__name__, error=str(error))
        if request.blueprint == pages.name and wants_page():
            page = Response(render_template("refused.html", error=str(error)), content_type="text/html; charset=utf-8")
            page.status_code = error.http_status
            return page
        return _answer(error.http_status, str(error))

    @app.errorhandler(HTTPException)
    def refuse_http(error: HTTPException) -> Response:
        told = error.description or error.name
        if error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            told = f"the body is larger than the {request.max_content_length} bytes that {request.path} takes"
        response = _answer(error.code or 500, told)
        if allowed := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    @app.errorhandler(Exception)
    def apologise(error: Exception) -> Response:
        log.error("unexpected error", path=request.path, exc_info=error)
        return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "an unexpected error; the backend's log says which")


def _answer(code: int, message: str) -> Response:
    """An error as JSON, and as the reason of the status line: that is all of it that Label Studio shows its owner."""
    response = jsonify(error=message)
    response.status = f"{int(code)} {_reason(message)}"
    return response


def _reason(message: str) -> str:
    """One line of what may stand in a status line: Latin-1, no control characters; and no markup, since it is shown."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", message.translate({ord("<"): "[", ord(">"): "]"}))
    return line.encode("latin-1", "replace").decode("latin-1")[:MAX_REASON].strip() or "error"
