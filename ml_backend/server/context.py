"""Objects that the routes of an app share, and facts about the current request."""

import re
from dataclasses import dataclass, field
from typing import Any

from flask import current_app, request, url_for

from ml_backend.config import Settings
from ml_backend.scheduling import RoundQueue
from ml_backend.server.actions import CsrfTokens
from ml_backend.server.metrics import Metrics
from ml_backend.storage import RoundStore

PREFIX = re.compile(r"(?:/[\w.~-]+)+/?", re.ASCII)  # a path of this host, and no //other.host


@dataclass(frozen=True, slots=True)
class AppContext:
    """Shared by the routes of one app.

    Attributes:
        settings: of the installation.
        tokens: of the forms.
    """

    settings: Settings
    store: RoundStore
    queue: RoundQueue
    metrics: Metrics
    tokens: CsrfTokens = field(default_factory=CsrfTokens)


def context() -> AppContext:
    """The context of the app that answers."""
    found: AppContext = current_app.extensions["active-learning"]
    return found


def user_name() -> str:
    """Login of the backend that the request carries; ``the page`` where it needs none."""
    return (request.authorization.username if request.authorization else None) or "the page"


def wants_page() -> bool:
    """Whether the client is a browser; all others get JSON."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def relative_url(endpoint: str, **values: Any) -> str:
    """A link to a page of this server, relative to the requested page: no setting is needed behind a path.

    ``/`` alone may be served at ``/prefix``, without the slash that a relative link starts from: there the proxy's
    ``X-Forwarded-Prefix`` counts, if it is a path and nothing else.
    """
    path = url_for(endpoint, **values).removeprefix(request.script_root).removeprefix("/")
    if depth := request.path.count("/") - 1:
        return f"{'../' * depth}{path}"
    prefix = request.headers.get("X-Forwarded-Prefix", "")
    return f"{prefix.rstrip('/')}/{path}" if PREFIX.fullmatch(prefix) else f"./{path}"


def refreshing(*, busy: bool) -> dict[str, object]:
    """Variables of ``base.html``: the seconds until a page reloads, and whether its reader has stopped that."""
    return {"refresh_s": 5 if busy else 15, "still": "still" in request.args}
