"""The buttons of a project's page: who may press them, and what each does."""

import hmac
import secrets
from typing import Final
from urllib.parse import urlsplit

from ml_backend.errors import BackendError
from ml_backend.scheduling import RoundQueue
from ml_backend.scheduling.connections import configuration
from ml_backend.scheduling.policy import Pressed, ProjectState, decide, threshold
from ml_backend.schemas import Connection
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause

ACTIONS: Final = ("train", "topup", "pause", "resume")

MESSAGES: Final[dict[str, str]] = {
    "asked": "A round was asked for; it begins as soon as a worker is free.",
    "asked-again": "A round was asked for. No label has changed since the last one.",
    "waits": "A round is already queued and will use all labels.",
    "topup-asked": "More images were asked for. Where enough are still served, nothing changes.",
    "paused": "Paused: no round starts by itself. Labels are counted, and readers keep getting images.",
    "resumed": "Resumed: rounds start by themselves again.",
    "resumed-off": "Resumed. Rounds start by themselves once “Start model training on annotation submission” is on in "
    "the project's settings in Label Studio.",
}
"""Shown after a button was pressed, by a word in the page's address: an address can show no other text."""


class RefusedForm(BackendError):
    """A form that does not come from our own page."""

    http_status = 403


class CsrfTokens:
    """Tokens of the forms of one process, which a page of another site cannot forge."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def of(self, project: str, action: str) -> str:
        """The token of one button of one project."""
        return hmac.digest(self._secret, f"{action} {project}".encode(), "sha256").hex()

    def require(self, project: str, action: str, given: str) -> None:
        """Make sure that a form carries the right one.

        Raises:
            RefusedForm: it does not.
        """
        if not hmac.compare_digest(self.of(project, action).encode(), given.encode("utf-8", "replace")):
            raise RefusedForm(
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


def perform(action: str, connection: Connection, store: RoundStore, queue: RoundQueue) -> str:
    """Do what a button says.

    Returns:
        The outcome, a key of ``MESSAGES``.

    Raises:
        KeyError: there is no such button.
        QueueError: Redis does not answer.
        StorageError: the data folder refuses.
        SettingsError: an option of the project is wrong.
    """
    key, project = connection.project, store.project(connection.project)
    pause = Pause(project.folder)
    match action:
        case "train" | "topup":
            status, (rounds, _) = queue.status(key), project.summaries()
            if not queue.perform(key, decide(ProjectState(status), Pressed(action))):
                return "waits"
            if action == "topup":
                return "topup-asked"
            same = rounds and rounds[-1].trained and not (status.changes or status.running)
            return "asked-again" if same else "asked"
        case "pause":
            pause.begin(queue.status(key).threshold)
            queue.count_changes(key, 0, threshold(None, automatic=True, paused=True))
            return "paused"
        case "resume":
            ended = pause.end()
            automatic = ended is None or ended.threshold > 0
            # Read again: the owner may have changed it during the pause.
            options = configuration(connection)[1] if ended is not None and automatic else None
            status = queue.count_changes(key, 0, threshold(options, automatic=automatic, paused=False))
            queue.perform(key, decide(ProjectState(status, project.published()), Pressed("resume")))
            return "resumed" if automatic else "resumed-off"
    raise KeyError(action)
