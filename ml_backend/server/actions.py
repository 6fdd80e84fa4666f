"""The buttons of a project's page: who may press them, and what each does."""

import hmac
import secrets
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from ml_backend.errors import BackendError
from ml_backend.scheduling import RoundQueue
from ml_backend.scheduling.reconciler import configuration
from ml_backend.schemas import Connection
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause

SAID: Final[dict[str, str]] = {
    "asked": "A round was asked for; it begins as soon as a worker is free.",
    "waits": "A round waits already; it will see everything that this one would have.",
    "topup-asked": "More images were asked for. Where enough are still served, nothing changes.",
    "paused": "Paused: no round starts by itself. Labels are counted, and readers keep getting images.",
    "resumed": "Resumed: rounds start by themselves again.",
    "resumed-off": "Resumed. Rounds start by themselves once “Start model training on annotation submission” is on in "
    "the project's settings in Label Studio.",
}
"""What the page says after a button was pressed, by the word in its address: nobody can put other words there."""


class Refused(BackendError):
    """A form that does not come from our own page."""

    http_status = 403


class Tokens:
    """What the forms of one process carry, so that a page of somebody else cannot make them up."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def of(self, project: str, action: str) -> str:
        """The token of one button of one project."""
        return hmac.digest(self._secret, f"{action} {project}".encode(), "sha256").hex()

    def require(self, project: str, action: str, given: str) -> None:
        """Make sure that a form carries the right one.

        Raises:
            Refused: it does not.
        """
        if not hmac.compare_digest(self.of(project, action).encode(), given.encode("utf-8", "replace")):
            raise Refused(
                "this form has expired because the server was restarted: open the page of the project again and press "
                "the button there"
            )


def is_same_origin(origin: str, host: str, fetched: str | None = None) -> bool:
    """Whether a page under this host posts to itself.

    Args:
        origin: the header of that name; a browser sends ``null`` where it hides the page.
        host: that the request was sent to. Only that: ``X-Forwarded-Host`` can be made up.
        fetched: the header ``Sec-Fetch-Site``, the browser's own judgement, which no page can set; it holds behind a
            proxy that sends another ``Host`` on. Browsers leave it out over HTTP without TLS.
    """
    if fetched is not None:
        return fetched == "same-origin"
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and parts.netloc != "" and parts.netloc.lower() == host.lower()


def _train(connection: Connection, _store: RoundStore, queue: RoundQueue) -> str:
    return "asked" if queue.request_round(connection.project, "forced") else "waits"


def _top_up(connection: Connection, _store: RoundStore, queue: RoundQueue) -> str:
    return "topup-asked" if queue.request_round(connection.project, "topup") else "waits"


def _pause(connection: Connection, store: RoundStore, queue: RoundQueue) -> str:
    threshold = queue.status(connection.project).threshold
    Pause(store.project(connection.project).folder).begin(threshold)
    queue.count_changes(connection.project, 0, 0)
    return "paused"


def _resume(connection: Connection, store: RoundStore, queue: RoundQueue) -> str:
    key, project = connection.project, store.project(connection.project)
    ended = Pause(project.folder).end()
    threshold = 0 if ended is None else ended.threshold
    if threshold:
        _, options = configuration(connection)
        threshold = options.retrain_after  # the owner may have changed it meanwhile
    counted = queue.count_changes(key, 0, threshold if ended is not None else None)
    if counted.due:
        queue.request_round(key, "labels")
    elif project.published() is None:
        queue.request_round(key, "connected", only_if_idle=True)
    return "resumed" if ended is None or threshold else "resumed-off"


ACTIONS: Final[dict[str, Callable[[Connection, RoundStore, RoundQueue], str]]] = {
    "train": _train,
    "topup": _top_up,
    "pause": _pause,
    "resume": _resume,
}


def act(action: str, connection: Connection, store: RoundStore, queue: RoundQueue) -> str:
    """Do what a button says.

    Returns:
        What came of it, a key of ``SAID``.

    Raises:
        KeyError: no button is called so.
        QueueError: Redis does not answer.
        StorageError: the data folder refuses.
        SettingsError: an option of the project is wrong.
    """
    return ACTIONS[action](connection, store, queue)
