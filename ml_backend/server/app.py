"""The Flask app: who may call, and errors turned into words. Torch-free."""

import re
from base64 import b64decode
from hmac import compare_digest
from http import HTTPStatus

import structlog
from flask import Flask, Response, jsonify, render_template, request
from werkzeug.exceptions import HTTPException

from ml_backend.errors import BackendError
from ml_backend.insight.overview import Memory
from ml_backend.queueing import RoundQueue
from ml_backend.server.forms import is_same_origin
from ml_backend.server.metrics import Metrics
from ml_backend.server.openapi import OPEN
from ml_backend.server.pages import FORMS, pages
from ml_backend.server.parts import Parts, relative_url, wants_page
from ml_backend.server.routes import LARGEST_BODIES, routes
from ml_backend.settings import Settings
from ml_backend.storage import RoundStore

__all__ = ["create_app"]

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

log = structlog.get_logger()


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
    memory = Memory()
    app.extensions["active-learning"] = Parts(store, queue, Metrics(store, queue, memory.lines), memory)
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
