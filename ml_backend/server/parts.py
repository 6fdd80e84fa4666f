"""What the routes of one app work with."""

from dataclasses import dataclass, field

from flask import current_app, request

from ml_backend.insight.overview import Memory
from ml_backend.queueing import RoundQueue
from ml_backend.server.forms import Tokens
from ml_backend.server.metrics import Metrics
from ml_backend.storage import RoundStore

__all__ = ["Parts", "parts", "refreshing", "wants_page"]


@dataclass(frozen=True, slots=True)
class Parts:
    """One set an app.

    Attributes:
        memory: what this process remembers of the rounds.
        tokens: of the forms.
    """

    store: RoundStore
    queue: RoundQueue
    metrics: Metrics
    memory: Memory = field(default_factory=Memory)
    tokens: Tokens = field(default_factory=Tokens)


def parts() -> Parts:
    """Those of the app that answers."""
    found: Parts = current_app.extensions["active-learning"]
    return found


def wants_page() -> bool:
    """Whether a browser asks; anybody else gets JSON."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def refreshing(*, busy: bool) -> dict[str, object]:
    """When a page looks again by itself, soon while something runs; and whether its reader has stopped that.

    By the names that ``base.html`` uses.
    """
    return {"refresh_s": 5 if busy else 30, "refresh_url": request.path, "still": "still" in request.args}
