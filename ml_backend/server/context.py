"""What the routes of one app work with."""

import re
from dataclasses import dataclass, field
from typing import Any

from flask import current_app, request, url_for

from ml_backend.scheduling import RoundQueue
from ml_backend.server.actions import Tokens
from ml_backend.server.metrics import Metrics
from ml_backend.storage import RoundStore

PREFIX = re.compile(r"(?:/[\w.~-]+)+/?", re.ASCII)  # a path of this host, and no //other.host


@dataclass(frozen=True, slots=True)
class Parts:
    """One set an app.

    Attributes:
        tokens: of the forms.
    """

    store: RoundStore
    queue: RoundQueue
    metrics: Metrics
    tokens: Tokens = field(default_factory=Tokens)


def parts() -> Parts:
    """Those of the app that answers."""
    found: Parts = current_app.extensions["active-learning"]
    return found


def wants_page() -> bool:
    """Whether a browser asks; anybody else gets JSON."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def relative_url(endpoint: str, **values: Any) -> str:
    """A link to a page of this server, relative to the page that is asked for.

    So the pages need no setting behind ``https://host/prefix/``. The one page without a path of its own, ``/``, may be
    shown at ``/prefix``, without the slash that a relative link starts from: there a proxy's ``X-Forwarded-Prefix``
    counts, of which nothing but a path is taken.
    """
    path = url_for(endpoint, **values).removeprefix(request.script_root).removeprefix("/")
    if depth := request.path.count("/") - 1:
        return f"{'../' * depth}{path}"
    prefix = request.headers.get("X-Forwarded-Prefix", "")
    return f"{prefix.rstrip('/')}/{path}" if PREFIX.fullmatch(prefix) else f"./{path}"


def refreshing(*, busy: bool) -> dict[str, object]:
    """When a page looks again by itself, soon while something runs; and whether its reader has stopped that.

    By the names that ``base.html`` uses.
    """
    return {"refresh_s": 5 if busy else 30, "still": "still" in request.args}
