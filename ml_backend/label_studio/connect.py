"""Connects a Label Studio project to this backend: backend, webhook and project settings; idempotent."""

import base64
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from httpx import codes

from ml_backend.config import OPTION_PREFIX, ProjectOptions, Settings
from ml_backend.errors import LabelStudioError, RequestRefused, SettingsError, Unreachable, did_you_mean
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config, question
from ml_backend.label_studio.publisher import large_reserve, wanted_project

TESTED = ("1.19.0", "1.20.0", "1.21.0", "1.22.0", "1.23.0", "1.23.2")
"""Releases of Label Studio that `make compat` runs, oldest first."""

OPTION_SPELT = "-o {}".format  # as a user of `connect` gives one
NOTHING_TO_CHANGE = "nothing to change"
TITLE = "Active learning"
LISTED = 20  # projects in an error message
CONNECTED = "CO"
# Any number but 0 switches the project's toggle on, and for n Label Studio sends START_TRAINING before every n-th
# annotation. This backend counts annotations itself, so n is out of reach.
AUTOMATIC = 1_000_000_000
PRIVATE_ADDRESS = (
    "Label Studio does not call private addresses unless it is started with "
    "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false and LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false"
)
# Part of an error of requests, which Label Studio repeats -> its remedy.
NOT_REACHED = {
    "SSLError": "Label Studio does not accept the backend's certificate, or the port speaks no TLS: start Label Studio "
    "with REQUESTS_CA_BUNDLE naming a PEM file with the certificate of its authority, or give an http:// address",
    "ProxyError": "Label Studio asks a proxy of its own environment: let NO_PROXY there leave the backend's host out",
    "Can't resolve hostname": "Label Studio's machine, or container, does not know this name: give an address that it "
    "knows with --url",
    "Connection refused": "does `ml-backend serve` run, and does it listen (--host) where Label Studio's machine, or "
    "container, reaches it?",
    "ConnectTimeout": "does a firewall let Label Studio's machine through to this address?",
    "404 Client Error": "another server answers there: give the address of this backend with --url",
}
RESERVED = "reserved network address"  # part of Label Studio's error where it may not call an address
REFUSED_US = "401 Client Error"  # part of Label Studio's error where the backend refuses it
OUR_401 = (
    "the backend refuses the credentials that this command was given: "
    "set AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS as they are set for `ml-backend serve`"
)
ONE_CONNECTION = (
    "in the project's settings in Label Studio delete the one that is not used: the backend under Model, and its "
    "webhook under Webhooks, which stays when the backend is deleted"
)
# The hosts that Django's URLValidator takes besides localhost and IP addresses: a webhook's address is judged by it.
_LABEL = r"[a-z0-9\u00a1-\uffff](?:[a-z0-9\u00a1-\uffff-]{0,61}[a-z0-9\u00a1-\uffff])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+(?!-)(?:[a-z\u00a1-\uffff-]{{2,63}}|xn--[a-z0-9]{{1,59}})(?<!-)\.?")
OTHER_NAME = (
    "give --url a name with a dot that Label Studio's machine, or container, knows, or an IP address; with Docker "
    "Compose a network alias such as backend.internal, which docker/compose.yaml has: --url http://backend.internal:9090"
)
Json = dict[str, Any]


def version_note(release: str) -> str:
    """Whether a release of Label Studio is among the tested ones, and which these are."""
    if release in TESTED:
        return f"tested, as are {', '.join(one for one in TESTED if one != release)}"
    tested = f"NOT tested; tested are {', '.join(TESTED)}"
    old = _number(release) < _number(TESTED[0])
    return f"{tested}: if something fails, upgrade it to {TESTED[-1]}" if old else tested


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:3])


def browser_address(url: str, hostname: str | None) -> str:
    """Where a browser most likely finds Label Studio.

    Args:
        url: where this backend reaches it, perhaps by the name of a container.
        hostname: as Label Studio gives it to ``/setup``: ``LABEL_STUDIO_HOST``, else http://localhost:8080.
    """
    host = urlsplit(url).hostname or ""
    internal = "." not in host or host.endswith(".internal")
    is_set = hostname is not None and urlsplit(hostname).hostname not in (None, "localhost")
    return hostname.rstrip("/") if hostname and (is_set or internal) else url


def webhook_refusal(url: str) -> str | None:
    """Why Label Studio makes no webhook to a backend at an address; None where it makes one.

    Label Studio stores such a backend nevertheless, without an error.
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost" or _is_ip(host) or _DOMAIN.fullmatch(host):
        return None
    problem = f"{host!r} is no valid domain name" if "." in host else f"its host {host!r} has no dot"
    return f"Label Studio sends no events to {url}, since {problem}"


def check_backend_address(url: str) -> None:
    """Check that a backend at this address can be connected.

    Raises:
        SettingsError: Label Studio would make no webhook to it.
    """
    if refusal := webhook_refusal(url):
        raise SettingsError(f"{refusal}; nothing was changed: {OTHER_NAME}")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def find_backend(client: LabelStudioClient, project_id: int, url: str) -> Json | None:
    """The project's connection to the backend at an address."""
    backends = client.backends(project_id)
    return next((backend for backend in backends if backend["url"].rstrip("/") == url), None)


def find_webhook(client: LabelStudioClient, project_id: int, url: str) -> Json | None:
    """The project's webhook that sends to the backend at an address."""
    return next((hook for hook in client.webhooks(project_id) if hook["url"].rstrip("/") == f"{url}/webhook"), None)


def other_connections(backends: Iterable[Json], webhooks: Iterable[Json], url: str, settings: Settings) -> list[str]:
    """Addresses besides ``url`` at which a project holds this backend, or sends its events to it.

    Each connection of a project sends every event, and has options of its own, of which the last count. A connection
    to a server that is down delays every submitted annotation by a second.

    Args:
        backends: of the project.
        webhooks: of the project.
        url: of this backend, without a slash at the end.
        settings: with the credentials that callers of this backend give; they distinguish its webhooks from others.
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


def half_connections(backends: Iterable[Json], webhooks: Iterable[Json], settings: Settings) -> list[Json]:
    """The backends that an earlier ``connect`` left behind when Label Studio refused their webhook for its address.

    No event ever comes from one. Its title and user are those that ``connect`` gives; where callers need no password
    it cannot be told from a backend that somebody else added by hand, and none is named.

    Args:
        backends: of the project.
        webhooks: of the project.
        settings: with the user that callers of this backend give.
    """
    backends = list(backends)
    served = {
        str(hook["url"]).rstrip("/").removesuffix("/webhook")
        for hook in webhooks
        if str(hook["url"]).rstrip("/").endswith("/webhook")
    }
    if served - {str(row["url"]).rstrip("/") for row in backends}:
        return []  # a webhook made by hand may bring the events of any of the backends
    return [
        row
        for row in backends
        if row.get("title") == TITLE
        and settings.basic_auth_user is not None
        and row.get("basic_auth_user") == settings.basic_auth_user
        and str(row["url"]).rstrip("/") not in served
        and webhook_refusal(str(row["url"])) is not None
    ]


def _port(url: str) -> int | None:
    """The explicit port of an address; None where there is none, as with any service at ``https://host``."""
    try:
        return urlsplit(url).port
    except ValueError:  # Label Studio takes a port of five digits
        return None


def authorization(settings: Settings) -> str | None:
    """The Authorization header that callers of the backend must send; None where no authentication is set."""
    user, password = settings.basic_auth_user, settings.basic_auth_pass
    if user is None or password is None:
        return None
    return f"Basic {base64.b64encode(f'{user}:{password.get_secret_value()}'.encode()).decode()}"


def wanted_webhook(settings: Settings, url: str, webhook: Json | None) -> Json:
    """The fields that the webhook of a backend must have; other headers stay as ``webhook`` has them."""
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
    """The remedy of an error with which Label Studio refuses a backend; None where the error itself is enough."""
    if REFUSED_US in problem:
        return OUR_401
    if status == codes.FORBIDDEN or RESERVED in problem:
        return PRIVATE_ADDRESS
    return next((helps for words, helps in NOT_REACHED.items() if words in problem), None)


def shipped_configs() -> dict[str, Path]:
    """The label configs that come with this package: name -> file."""
    package = Path(__file__).parents[1]
    # Next to the package in a checkout, inside it in an installed wheel.
    folders = (package.parent / "label_studio_config", package / "label_studio_config")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.xml"))}


def read_label_config(name: str) -> str:
    """The XML of a label config.

    Args:
        name: of one that comes with this package, such as ``severity``, or the path of an XML file.

    Raises:
        SettingsError: there is none of this name, or the file cannot be read.
    """
    shipped = shipped_configs()
    path = shipped.get(name, Path(name))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(shipped)
        raise SettingsError(
            f"no label config {name!r} ({getattr(error, 'strerror', None) or error}): expected one of {known}, or the "
            f"path of an XML file{did_you_mean(name, shipped)}"
        ) from None


def choose_project(
    client: LabelStudioClient,
    project_id: int | None,
    title: str | None,
    config: str | None,
    options: Mapping[str, object] | None = None,
) -> tuple[int, str]:
    """The project to connect: the one of that id, or the one of that title, which is made where there is none.

    Args:
        client: of Label Studio.
        project_id: of Label Studio; or None.
        title: 3 to 50 characters, as Label Studio demands; or None.
        config: label config of a new project, as ``read_label_config`` takes it.
        options: with which the project will be connected.

    Returns:
        Its id, and what was found or made by the title; empty for a project that was given by its id.

    Raises:
        SettingsError, PayloadError: neither or both of id and title; several projects of that title; or the label
            config or an option cannot be used. Nothing was created.
        LabelStudioError: Label Studio refuses the label config or the title. Nothing was created.
    """
    if project_id is not None:
        if title is not None or config is not None:
            raise SettingsError(f"--project {project_id} names a project that exists: leave out --create and --config")
        return project_id, ""
    if title is None:
        raise SettingsError(
            "which project? Give --project N, or for a new one --create TITLE --config NAME; "
            + _projects_listed(client)
        )
    title = title.strip()  # as Label Studio stores it
    found = [int(row["id"]) for row in client.projects(title) if row["title"] == title]
    if len(found) > 1:
        numbers = " or ".join(f"--project {number}" for number in sorted(found))
        raise SettingsError(f"{len(found)} projects have the title {title!r}: name one by its number, {numbers}")
    if found:
        return found[0], f"found project {found[0]} {title!r}, whose label config stays as it is"
    if config is None:
        raise SettingsError(
            f"there is no project {title!r} yet; a new one needs a label config: --config with one of "
            f"{', '.join(shipped_configs())}, or with the path of an XML file"
        )
    xml = read_label_config(config)
    parsed = parse_label_config(xml)
    question(parsed, ProjectOptions.resolve(dict(options or {}), parsed.attributes, spell=OPTION_SPELT))
    client.validate_label_config(xml)
    made = int(client.create_project({"title": title, "label_config": xml})["id"])
    return made, f"created project {made} {title!r} with the label config {config}"


def read_project(client: LabelStudioClient, project_id: int) -> Json:
    """The project of that id, with its settings.

    Raises:
        SettingsError: Label Studio shows the key's user none; names those that it shows.
        LabelStudioError: Label Studio refuses or does not answer.
    """
    try:
        return client.project(project_id)
    except RequestRefused as error:
        if error.status != codes.NOT_FOUND:
            raise
    try:
        there = _projects_listed(client)
    except RequestRefused:
        raise SettingsError(
            f"AL_LABEL_STUDIO_URL={client.url} is the address of a page: give that of Label Studio itself, mostly "
            "http://host:port"
        ) from None
    raise SettingsError(
        f"Label Studio shows the user of AL_LABEL_STUDIO_API_KEY no project {project_id}; {there}: is --project right, "
        "and is the key one of a user of the project?"
    )


def _projects_listed(client: LabelStudioClient) -> str:
    rows = sorted(client.projects(), key=lambda row: -int(row["id"]))
    shown = ", ".join(f"{row['id']} {str(row['title'])!r}" for row in rows[:LISTED])
    more = f" and {len(rows) - LISTED} older ones" if len(rows) > LISTED else ""
    return f"{client.url} has {shown}{more}" if rows else f"{client.url} has no project yet"


def connect_project(
    settings: Settings,
    project_id: int,
    backend_url: str,
    options: Mapping[str, object] | None = None,
    client: LabelStudioClient | None = None,
    *,
    profile: str | None = None,
) -> list[str]:
    """Add this backend to a project, and change the project's settings so that readers are served its ranking.

    Args:
        settings: with Label Studio's address, its key, and the credentials that callers of this backend must give.
        project_id: of Label Studio.
        backend_url: where Label Studio reaches this backend.
        options: of the project, stored as the connection's ``extra_params``; None keeps the present ones.
        client: instead of one made from the settings.
        profile: of a new connection, unless the options, the label config or the environment set one. New options of an
            existing connection keep its profile.

    Returns:
        A line that names what is learned, then one for each change, or one that nothing had to change.

    Raises:
        SettingsError: the address, the label config or an option cannot be used; nothing was changed.
        LabelStudioError: Label Studio refused, or holds other values than it was sent.
    """
    client = client or LabelStudioClient.from_settings(settings)
    url = backend_url.rstrip("/")
    check_backend_address(url)
    project, backend = read_project(client, project_id), find_backend(client, project_id, url)
    # Everything that can be wrong is checked before anything is changed.
    config = parse_label_config(project["label_config"])
    if backend is None and profile is not None and f"{OPTION_PREFIX}profile" not in config.attributes:
        options = ({} if "AL_PROFILE" in os.environ else {"profile": profile}) | dict(options or {})
    elif backend is not None and options is not None and (kept := (backend.get("extra_params") or {}).get("profile")):
        options = {"profile": kept, **options}
    params = (backend or {}).get("extra_params") if options is None else options
    spell = None if options is None else OPTION_SPELT
    resolved = ProjectOptions.resolve(dict(params or {}), config.attributes, spell=spell)
    learned = question(config, resolved)
    held_before = client.model_versions(project_id) if backend is None else {}
    connection = _Connection(client, settings, project_id, url)
    if backend is None:
        backend = connection.add_backend(project, dict(options or {}))
    else:
        connection.update_backend(backend, options)
        connection.set_webhook()
    connection.set_project(project, str(backend["title"]), resolved)
    # Before the connection is read back: Label Studio calls /setup with the options of what it deletes.
    connection.remove_half_connections()
    connection.verify()
    if others := other_connections(client.backends(project_id), client.webhooks(project_id), url, settings):
        connection.changes.append(f"the project also holds this backend at {', '.join(others)}: {ONE_CONNECTION}")
    notes = prediction_notes(client, project_id, held_before)
    if large := large_reserve(resolved, int(project.get("task_number") or 0)):
        notes.append(large)
    return [learned, *(connection.changes or [NOTHING_TO_CHANGE]), *notes]


def update_options(
    client: LabelStudioClient, settings: Settings, project_id: int, backend: Json, options: Json
) -> None:
    """Replace the options of a connection, and nothing else of the project.

    Args:
        client: of Label Studio.
        settings: with the credentials that callers of this backend must give.
        project_id: of Label Studio.
        backend: the connection, as ``LabelStudioClient.backends`` lists it.
        options: checked by ``ProjectOptions.resolve``.

    Raises:
        LabelStudioError: Label Studio refused.
    """
    _Connection(client, settings, project_id, str(backend["url"])).update_backend(backend, options)


def prediction_notes(client: LabelStudioClient, project_id: int, before: Mapping[str, int]) -> list[str]:
    """What the owner should know of the predictions that a project holds.

    Args:
        client: of Label Studio.
        project_id: the project.
        before: number of predictions by model version before the backend was added. A worker may have published a
            ranking since.
    """
    served, held = client.project(project_id).get("model_version"), client.model_versions(project_id)
    notes = []
    if before:
        names = ", ".join(f"{name!r} ({count})" for name, count in before.items())
        notes.append(
            f"the predictions of {names} stay; once a ranking is published, readers and the Data Manager's "
            "prediction score are shown the ranking's instead"
        )
    if served and not held.get(served):
        notes.append(
            f"Label Studio holds no predictions of the project's model version {served!r}, so that readers are "
            "served in random order; the backend publishes its ranking again within two minutes while a worker runs"
        )
    return notes


class _Connection:
    """Makes and changes a project's connection to this backend; ``changes`` lists what was changed."""

    def __init__(self, client: LabelStudioClient, settings: Settings, project_id: int, url: str) -> None:
        self._client = client
        self._settings = settings
        self._project_id = project_id
        self._url = url
        self.changes: list[str] = []
        self._credentials: Json = {}  # for Label Studio to call this backend with
        if settings.basic_auth_user is not None and settings.basic_auth_pass is not None:
            self._credentials = {
                "auth_method": "BASIC_AUTH",
                "basic_auth_user": settings.basic_auth_user,
                "basic_auth_pass": settings.basic_auth_pass.get_secret_value(),
            }

    def add_backend(self, project: Json, params: dict[str, object]) -> Json:
        """Add the backend and its webhook; where Label Studio refuses one of them, neither stays."""
        # Otherwise Label Studio makes the backend's title the model version: a random order, and three requests to
        # the backend before each task, until the first ranking is published. set_project() shows predictions again.
        hide = not project.get("model_version") and project.get("show_collab_predictions")
        if hide:
            self._client.patch_project(self._project_id, {"show_collab_predictions": False})
        fields = {"url": self._url, "project": self._project_id, "title": TITLE, "extra_params": params}
        try:
            backend = self._client.add_backend(fields | self._credentials)
            self.changes.append(f"added the backend {self._url} with the options {params or 'of the label config'}")
            self.set_webhook()
        except RequestRefused as error:
            # Where Label Studio refuses the webhook, it keeps the backend.
            if (half := find_backend(self._client, self._project_id, self._url)) is not None:
                self._client.delete_backend(int(half["id"]))
            if hide:
                self._client.patch_project(self._project_id, {"show_collab_predictions": True})
            raise _with_remedy(error, self._url) from None
        except Unreachable as error:  # Label Studio may have added the backend
            raise Unreachable(error.what, f"{error.remedy}; then run `connect` again, which completes it") from None
        return backend

    def update_backend(self, backend: Json, options: Mapping[str, object] | None) -> None:
        wanted: Json = {} if options is None else {"extra_params": dict(options)}
        wanted |= {name: value for name, value in self._credentials.items() if name != "basic_auth_pass"}
        changes = {name: value for name, value in wanted.items() if (backend.get(name) or {}) != (value or {})}
        # The password cannot be read. It is also the webhook's, which can, and a wrong one shows in the state.
        if not changes and backend["state"] == CONNECTED and not self._header_differs(self._find_webhook()):
            return
        fields = {"url": backend["url"], "project": self._project_id} | wanted | self._credentials
        try:
            self._client.patch_backend(int(backend["id"]), fields)
        except RequestRefused as error:
            raise _with_remedy(error, self._url) from None
        self.changes.append(f"updated the backend {self._url}: {', '.join(changes) or 'credentials'}")

    def set_webhook(self) -> None:
        """Label Studio itself makes the backend's webhook, but without credentials."""
        webhook = self._find_webhook()
        wanted = wanted_webhook(self._settings, self._url, webhook)
        if webhook is None:
            self._client.add_webhook(wanted | {"project": self._project_id})
            self.changes.append(f"added the webhook {wanted['url']}")
        elif changes := [name for name, value in wanted.items() if name != "url" and webhook.get(name) != value]:
            self._client.patch_webhook(int(webhook["id"]), wanted)
            self.changes.append(f"updated the webhook {wanted['url']}: {', '.join(changes)}")

    def set_project(self, before: Json, title: str, options: ProjectOptions) -> None:
        project = self._client.project(self._project_id)
        wanted = wanted_project(options) | {"min_annotations_to_start_training": AUTOMATIC}
        if project.get("model_version") == title:
            wanted["model_version"] = ""  # the title serves in random order
        if changes := {name: value for name, value in wanted.items() if project.get(name) != value}:
            if options.annotations_per_task > 1 and "maximum_annotations" in changes:
                # Where some tasks have another overlap, as those that are read again, Label Studio would change theirs
                # alone; another share of tasks makes it go over all. Where this ends in between, 99 % is what the
                # next run mends, and doctor and pages show.
                self._client.patch_project(self._project_id, changes | {"overlap_cohort_percentage": 99})
                changes = {"overlap_cohort_percentage": 100}
            self._client.patch_project(self._project_id, changes)
        self.changes += [
            f"set {name}: {before.get(name)!r} -> {value!r}"
            for name, value in wanted.items()
            if before.get(name) != value
        ]

    def remove_half_connections(self) -> None:
        webhooks = self._client.webhooks(self._project_id)
        for row in half_connections(self._client.backends(self._project_id), webhooks, self._settings):
            self._client.delete_backend(int(row["id"]))
            self.changes.append(
                f"removed the backend {row['url']}, which an earlier connect left: Label Studio makes no webhook to it"
            )

    def verify(self) -> None:
        """Read the connection back.

        Raises:
            LabelStudioError: it is incomplete, or Label Studio cannot use the backend.
        """
        backend, webhook = find_backend(self._client, self._project_id, self._url), self._find_webhook()
        if backend is None or webhook is None or self._header_differs(webhook):
            raise LabelStudioError(f"project {self._project_id} holds no complete connection to {self._url}: try again")
        if backend["state"] != CONNECTED:
            problem = str(backend.get("error_message") or backend.get("readable_state"))
            raise _with_remedy(
                LabelStudioError(f"Label Studio cannot work with the backend {self._url}: {problem}"), self._url
            )

    def _find_webhook(self) -> Json | None:
        return find_webhook(self._client, self._project_id, self._url)

    def _header_differs(self, webhook: Json | None) -> bool:
        if webhook is None:
            return False
        return bool((webhook.get("headers") or {}) != wanted_webhook(self._settings, self._url, webhook)["headers"])


def _with_remedy(error: LabelStudioError, url: str) -> LabelStudioError:
    """The error with its remedy; a page of text from the library that Label Studio calls with becomes its reason."""
    for reason, remedy in NOT_REACHED.items():
        if reason in str(error):
            return LabelStudioError(f"Label Studio cannot reach the backend {url} ({reason}): {remedy}")
    found = hint(str(error), error.status if isinstance(error, RequestRefused) else None)
    return LabelStudioError(f"{error}; {found}") if found else error
