"""Prepares a Label Studio project for this backend, in one go; run twice, it changes nothing."""

import base64
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import LabelStudioError, RequestRefused
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config, question
from ml_backend.label_studio.publisher import wanted_project

NOTHING_TO_CHANGE = "nothing to change"
TITLE = "Active learning"
CONNECTED = "CO"
# Any number but 0 is the project's toggle switched on. Of n, Label Studio itself makes a START_TRAINING ahead of every
# n-th annotation; we count on our own, so n is out of reach.
AUTOMATIC = 1_000_000_000
FORBIDDEN = 403
PRIVATE_ADDRESS = (
    "Label Studio does not call private addresses unless it is started with "
    "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false and LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false"
)
# What requests tells Label Studio, which passes it on, and what helps.
NOT_REACHED = {
    "SSLError": "Label Studio does not accept the backend's certificate, or the port speaks no TLS: start Label Studio "
    "with REQUESTS_CA_BUNDLE naming a PEM file with the certificate of its authority, or give an http:// address",
    "ProxyError": "Label Studio asks a proxy of its own environment: let NO_PROXY there leave the backend's host out",
    "Can't resolve hostname": "Label Studio's machine, or container, does not know this name: give an address that it "
    "knows with --url",
    "Connection refused": "does `ml-backend serve` run, and does it listen (--host) where Label Studio's machine, or "
    "container, reaches it?",
    "ConnectTimeout": "does a firewall let Label Studio's machine through to this address?",
}
RESERVED = "reserved network address"  # as Label Studio tells that it does not call one
REFUSED_US = "401 Client Error"  # as Label Studio tells that the backend refused it
OUR_401 = (
    "the backend refuses the credentials that this command was given: "
    "set AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS as they are set for `ml-backend serve`"
)
ONE_CONNECTION = (
    "in the project's settings in Label Studio delete the one that is not used: the backend under Model, and its "
    "webhook under Webhooks, which stays when the backend is deleted"
)
Json = dict[str, Any]


def find_backend(client: LabelStudioClient, project_id: int, url: str) -> Json | None:
    """The project's connection to the backend at an address; Label Studio asks all of its backends first."""
    backends = client.backends(project_id)
    return next((backend for backend in backends if backend["url"].rstrip("/") == url), None)


def find_webhook(client: LabelStudioClient, project_id: int, url: str) -> Json | None:
    """The project's webhook that sends to the backend at an address."""
    return next((hook for hook in client.webhooks(project_id) if hook["url"].rstrip("/") == f"{url}/webhook"), None)


def other_connections(backends: Iterable[Json], webhooks: Iterable[Json], url: str, settings: Settings) -> list[str]:
    """Addresses besides ``url`` at which a project holds this backend, or sends its events to it.

    Each connection of a project sends every event, and brings options of its own, of which the last to come count. One
    that nobody answers any more holds every answer of a reader up for a second.

    Args:
        backends: of the project.
        webhooks: of the project.
        url: where this backend is, without a slash at the end.
        settings: with the credentials that callers of this backend give; they tell its webhooks from others'.
    """
    header, user = authorization(settings), settings.basic_auth_user
    rows = {str(row["url"]).rstrip("/"): row for row in backends}
    found = {
        there
        for there, row in rows.items()
        if row.get("title") == TITLE or (user is not None and row.get("basic_auth_user") == user)
    }
    for hook in webhooks:
        there = str(hook["url"]).rstrip("/")
        if not hook.get("is_active") or not there.endswith("/webhook"):
            continue
        there = there.removesuffix("/webhook")
        if header is not None:
            ours = (hook.get("headers") or {}).get("Authorization") == header
        else:  # of a backend that was deleted, on the same port
            ours = there not in rows and _port(there) is not None and _port(there) == _port(url)
        if ours:
            found.add(there)
    return sorted(found - {url})


def _port(url: str) -> int | None:
    """The port that an address names; None where it names none, as with any service at ``https://host``."""
    try:
        return urlsplit(url).port
    except ValueError:  # Label Studio takes a port of five digits
        return None


def authorization(settings: Settings) -> str | None:
    """The header that callers of the backend must send; None where no authentication is set."""
    user, password = settings.basic_auth_user, settings.basic_auth_pass
    if user is None or password is None:
        return None
    return f"Basic {base64.b64encode(f'{user}:{password.get_secret_value()}'.encode()).decode()}"


def wanted_webhook(settings: Settings, url: str, webhook: Json | None) -> Json:
    """What the webhook of a backend must be; other headers than ours stay as ``webhook`` has them."""
    headers: dict[str, str] = dict((webhook or {}).get("headers") or {})
    if (header := authorization(settings)) is not None:
        headers["Authorization"] = header
    return {
        "url": f"{url}/webhook",
        "headers": headers,
        "send_payload": True,
        "send_for_all_actions": True,
        "is_active": True,
    }


def hint(problem: str, status: int | None = None) -> str | None:
    """What helps where Label Studio tells that it cannot use a backend; None where it says all itself."""
    if REFUSED_US in problem:
        return OUR_401
    if status == FORBIDDEN or RESERVED in problem:
        return PRIVATE_ADDRESS
    return next((helps for words, helps in NOT_REACHED.items() if words in problem), None)


def connect_project(
    settings: Settings,
    project_id: int,
    backend_url: str,
    options: Mapping[str, object] | None = None,
    client: LabelStudioClient | None = None,
) -> list[str]:
    """Add this backend to a project, and set the project so that its ranking is what readers are served.

    Args:
        settings: where Label Studio is, its key, and the credentials that callers of this backend must give.
        project_id: of Label Studio.
        backend_url: where Label Studio reaches this backend.
        options: of the project, kept as the connection's ``extra_params``; None leaves those that stand.
        client: instead of one made from the settings.

    Returns:
        A line that says what is learned, then one for each thing that was changed, or one that says that nothing had
        to be.

    Raises:
        SettingsError: the label config or an option cannot be used; nothing was changed.
        LabelStudioError: Label Studio refused, or holds something else than what it was told.
    """
    client = client or LabelStudioClient.from_settings(settings)
    return _Connecting(client, settings, project_id, backend_url.rstrip("/")).run(options)


class _Connecting:
    """One run; ``said`` is what it changed."""

    def __init__(self, client: LabelStudioClient, settings: Settings, project_id: int, url: str) -> None:
        self._client = client
        self._settings = settings
        self._project_id = project_id
        self._url = url
        self.said: list[str] = []

    def run(self, options: Mapping[str, object] | None) -> list[str]:
        project = self._client.project(self._project_id)
        backend = self._backend()
        params = (backend or {}).get("extra_params") if options is None else options
        resolved, learned = self._check(project, dict(params or {}))
        found = self._client.model_versions(self._project_id) if backend is None else {}
        if backend is None:
            backend = self._add(project, dict(options or {}))
        else:
            self._update(backend, options)
        self._webhook()
        self._project(project, str(backend["title"]), resolved)
        self._read_back()
        others = other_connections(
            self._client.backends(self._project_id), self._client.webhooks(self._project_id), self._url, self._settings
        )
        if others:
            self.said.append(f"the project also holds this backend at {', '.join(others)}: {ONE_CONNECTION}")
        return [learned, *(self.said or [NOTHING_TO_CHANGE]), *self._predictions(found)]

    def _check(self, project: Json, params: dict[str, object]) -> tuple[ProjectOptions, str]:
        """Everything that can be wrong, before anything is changed; the options, and what is learned, in words."""
        config = parse_label_config(project["label_config"])
        resolved = ProjectOptions.resolve(params, config.attributes)
        return resolved, question(config, resolved)

    # The backend

    def _backend(self) -> Json | None:
        return find_backend(self._client, self._project_id, self._url)

    def _add(self, project: Json, params: dict[str, object]) -> Json:
        # Else Label Studio makes the backend's title the model version: a random order, and three requests to
        # the backend before each task, until the first ranking is there. _project() shows them again.
        hide = not project.get("model_version") and project.get("show_collab_predictions")
        if hide:
            self._client.patch_project(self._project_id, {"show_collab_predictions": False})
        fields = {"url": self._url, "project": self._project_id, "title": TITLE, "extra_params": params}
        try:
            backend = self._client.add_backend(fields | self._credentials())
        except RequestRefused as error:
            self._undo()
            if hide:
                self._client.patch_project(self._project_id, {"show_collab_predictions": True})
            raise _with_way_out(error) from None
        self.said.append(f"added the backend {self._url} with the options {params or 'of the label config'}")
        return backend

    def _undo(self) -> None:
        """Refusing the webhook, Label Studio keeps the backend that it belongs to."""
        half = self._backend()
        if half is not None:
            self._client.delete_backend(int(half["id"]))

    def _update(self, backend: Json, options: Mapping[str, object] | None) -> None:
        wanted: Json = {} if options is None else {"extra_params": dict(options)}
        wanted |= {name: value for name, value in self._credentials().items() if name != "basic_auth_pass"}
        changes = {name: value for name, value in wanted.items() if (backend.get(name) or {}) != (value or {})}
        # The password cannot be read. It is the webhook's, which can, and a wrong one shows in the state.
        if not changes and backend["state"] == CONNECTED and not self._header_differs(self._find_webhook()):
            return
        fields = {"url": backend["url"], "project": self._project_id} | wanted | self._credentials()
        try:
            self._client.patch_backend(int(backend["id"]), fields)
        except RequestRefused as error:
            raise _with_way_out(error) from None
        self.said.append(f"updated the backend {self._url}: {', '.join(changes) or 'credentials'}")

    def _credentials(self) -> Json:
        """What Label Studio must know to call us; nothing, and so no change, where no authentication is set."""
        user, password = self._settings.basic_auth_user, self._settings.basic_auth_pass
        if user is None or password is None:
            return {}
        return {
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": user,
            "basic_auth_pass": password.get_secret_value(),
        }

    # The webhook

    def _find_webhook(self) -> Json | None:
        return find_webhook(self._client, self._project_id, self._url)

    def _header_differs(self, webhook: Json | None) -> bool:
        if webhook is None:
            return False
        return bool((webhook.get("headers") or {}) != wanted_webhook(self._settings, self._url, webhook)["headers"])

    def _webhook(self) -> None:
        """Label Studio makes the backend's webhook itself, but without its credentials."""
        webhook = self._find_webhook()
        wanted = wanted_webhook(self._settings, self._url, webhook)
        if webhook is None:
            self._client.add_webhook(wanted | {"project": self._project_id})
            self.said.append(f"added the webhook {wanted['url']}")
            return
        changes = [name for name, value in wanted.items() if name != "url" and webhook.get(name) != value]
        if changes:
            self._client.patch_webhook(int(webhook["id"]), wanted)
            self.said.append(f"updated the webhook {wanted['url']}: {', '.join(changes)}")

    # The project

    def _project(self, before: Json, title: str, options: ProjectOptions) -> None:
        project = self._client.project(self._project_id)
        wanted = wanted_project(options) | {"min_annotations_to_start_training": AUTOMATIC}
        if project.get("model_version") == title:
            wanted["model_version"] = ""  # the title serves in random order
        changes = {name: value for name, value in wanted.items() if project.get(name) != value}
        if changes:
            self._client.patch_project(self._project_id, changes)
        self.said += [
            f"set {name}: {before.get(name)!r} -> {value!r}"
            for name, value in wanted.items()
            if before.get(name) != value
        ]

    def _predictions(self, before: Mapping[str, int]) -> list[str]:
        """What the owner should know of the predictions that the project holds.

        Args:
            before: model versions that it held before the backend was added, and predictions of each. A worker may have
                published a ranking since.
        """
        served = self._client.project(self._project_id).get("model_version")
        held = self._client.model_versions(self._project_id)
        found = []
        if before:
            names = ", ".join(f"{name!r} ({count})" for name, count in before.items())
            found.append(
                f"the predictions of {names} stay; once a ranking is published, readers and the Data Manager's "
                "prediction score are shown the ranking's instead"
            )
        if served and not held.get(served):
            found.append(
                f"Label Studio holds no predictions of the project's model version {served!r}, so that readers are "
                "served in random order; the backend publishes its ranking again within two minutes while a worker runs"
            )
        return found

    def _read_back(self) -> None:
        backend, webhook = self._backend(), self._find_webhook()
        if backend is None or webhook is None or self._header_differs(webhook):
            raise LabelStudioError(f"project {self._project_id} holds no complete connection to {self._url}: try again")
        if backend["state"] != CONNECTED:
            problem = str(backend.get("error_message") or backend.get("readable_state"))
            helps = hint(problem)
            raise LabelStudioError(
                f"Label Studio cannot work with the backend {self._url}: {problem}{f'; {helps}' if helps else ''}"
            )


def _with_way_out(error: RequestRefused) -> LabelStudioError:
    """The refusal of a backend, with what helps."""
    helps = hint(str(error), error.status)
    return LabelStudioError(f"{error}; {helps}") if helps else error
