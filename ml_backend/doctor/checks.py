"""The checks of `ml-backend doctor`: functions of a `CheckContext` that return a `Result`, listed in ``CHECKS``.

They cover everything between Label Studio and the worker. No training starts, no weights are downloaded and no secret
is printed. Two checks write to Label Studio and leave it unchanged: ``check_event`` sets the project's title to its own
value, so that an event is sent, and ``check_private_addresses`` sends two requests that Label Studio must refuse, whose
answers tell which addresses it may call.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx
import structlog

from ml_backend.analytics.history import ground_truths, known_network
from ml_backend.analytics.standing import MENDABLE, Standing, project_standing
from ml_backend.config import ProjectOptions, Settings, checked_address
from ml_backend.errors import (
    BackendError,
    ImageError,
    ImageErrorKind,
    PayloadError,
    RequestRefused,
    SettingsError,
    StorageError,
    UnknownProject,
    WeightsError,
)
from ml_backend.extras import require
from ml_backend.images.decode import decode
from ml_backend.images.source import with_plugins
from ml_backend.label_studio.client import BACKEND, FAILURES, LabelStudioClient, Route, label_studio_version
from ml_backend.label_studio.connect import (
    CONNECTED,
    ONE_CONNECTION,
    OTHER_NAME,
    OUR_401,
    PRIVATE_ADDRESS,
    authorization,
    browser_address,
    find_webhook,
    half_connections,
    hint,
    other_connections,
    version_note,
    wanted_webhook,
    webhook_refusal,
)
from ml_backend.label_studio.external_images import BlockedHost
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, read_image, shown, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.publisher import (
    ONE_INSTALLATION,
    Aspect,
    Serving,
    ServingProblem,
    is_lost,
    read_serving,
    serving_problems,
)
from ml_backend.label_studio.sync import TaskCache, TaskImages, read_project
from ml_backend.registry import plugins
from ml_backend.scheduling import QueueStatus, RoundQueue
from ml_backend.schemas import Connection, FrozenModel, ProjectKey
from ml_backend.storage import ProjectStore, RoundStore, check_writable
from ml_backend.storage.project_state import Quarantine, ReadingStore

Json = dict[str, Any]
Verdict: TypeAlias = Literal["ok", "FAIL", "skip"]
log = structlog.get_logger(__name__)


class Result(FrozenModel):
    """The result of a check: the verdict, what was seen, and the remedy of a failure."""

    verdict: Verdict
    seen: str
    remedy: str = ""


def ok(seen: str) -> Result:
    return Result(verdict="ok", seen=seen)


def failed(seen: str, remedy: str) -> Result:
    return Result(verdict="FAIL", seen=seen, remedy=remedy)


def skipped(reason: str) -> Result:
    """The result where there is nothing to check yet."""
    return Result(verdict="skip", seen=reason)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be right.

    Attributes:
        name: as it is printed.
        run: the check. A ``BackendError`` that it raises is a failure, with ``remedy``.
        needs: names of earlier checks that must pass first.
        remedy: of an error.
    """

    name: str
    run: Callable[["CheckContext"], Result]
    needs: tuple[str, ...] = ()
    remedy: str = ""


CHECKS: list[Check] = []
WORKERS_CHECK = "this check of a worker's machine"
AGAIN = "try again when Label Studio answers"
MEND_FILE = "repair or move the named file"
MEND_NAMED = "repair or move what is named"


def check(
    name: str, *, needs: tuple[str, ...] = (), remedy: str = ""
) -> Callable[[Callable[["CheckContext"], Result]], Callable[["CheckContext"], Result]]:
    """Append the decorated function to ``CHECKS``; the arguments are those of ``Check``."""

    def register(run: Callable[["CheckContext"], Result]) -> Callable[["CheckContext"], Result]:
        CHECKS.append(Check(name, run, needs, remedy))
        return run

    return register


# What the checks look at

READ_WHOLE = 1000  # tasks that are read without a cache, in about 6 s


class CheckContext:
    """One project in one installation; what several checks need is read once.

    Every property may raise the errors of what it reads, and is read again after an error.

    Args:
        project_id: of Label Studio.
        url: where Label Studio reaches the backend.
        load: reads the settings of the installation.
        http: replaces the network for requests to Label Studio and to the backend, for tests.
    """

    def __init__(
        self,
        project_id: int,
        url: str,
        load: Callable[[], Settings] = Settings.load,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        self.project_id = project_id
        self.url = url.rstrip("/")
        self.connect_command = OTHER_NAME
        if webhook_refusal(self.url) is None:
            self.connect_command = f"run `ml-backend connect --project {project_id} --url {self.url}`"
        self.http = http
        self._load = load

    def close(self) -> None:
        if (client := self.__dict__.get("client")) is not None:
            client.close()
        if (queue := self.__dict__.get("queue")) is not None:
            queue.redis.close()

    def secrets(self) -> list[str]:
        """What must never be printed; empty while the settings are not read."""
        settings: Settings | None = self.__dict__.get("settings")
        if settings is None:
            return []
        header = (authorization(settings) or "").removeprefix("Basic ")
        return [*settings.secrets, *([header] if header else [])]

    @cached_property
    def settings(self) -> Settings:
        return self._load()

    # Label Studio

    @cached_property
    def studio_url(self) -> str | None:
        """Address of Label Studio; None where it is not known yet."""
        url = self.settings.label_studio_url
        if not url:
            known = self.stored_connection
            url = self.settings.trusted_hostname(known.hostname if known else None)
        return checked_address(url) if url else None

    @cached_property
    def client(self) -> LabelStudioClient:
        return LabelStudioClient.from_settings(self.settings, self.studio_url, retries=2, transport=self.http)

    @cached_property
    def project(self) -> Json:
        return self.client.project(self.project_id)

    @cached_property
    def config(self) -> LabelConfig:
        return parse_label_config(str(self.project["label_config"]))

    @cached_property
    def options(self) -> ProjectOptions:
        """Of the connection in Label Studio, else of the one that the backend has stored."""
        return ProjectOptions.resolve(self._extra_params, self.config.attributes)

    @property
    def _extra_params(self) -> Json:
        if self.backend is not None:
            params = self.backend.get("extra_params")
        else:
            params = self.stored_connection.extra_params if self.stored_connection else None
        return dict(params or {})

    @cached_property
    def overridden(self) -> list[str]:
        """Options of the environment that have no effect in this project."""
        return ProjectOptions.overridden(self._extra_params, self.config.attributes)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return training_classes(self.config, self.options)

    # The connection

    @cached_property
    def backends(self) -> list[Json]:
        return self.client.backends(self.project_id)

    @cached_property
    def backend(self) -> Json | None:
        """The project's connection to this backend."""
        return next((row for row in self.backends if str(row["url"]).rstrip("/") == self.url), None)

    @cached_property
    def webhook(self) -> Json | None:
        return find_webhook(self.client, self.project_id, self.url)

    def request_backend(self, path: str) -> httpx.Response:
        """Send a GET request to the backend, with the credentials of the settings.

        Raises:
            Unreachable: it does not respond.
            SettingsError: a network variable of the environment is wrong.
        """
        user, password = self.settings.basic_auth_user, self.settings.basic_auth_pass
        auth = None if user is None or password is None else (user, password.get_secret_value())
        # No proxy: from the backend's own machine it mostly leads nowhere.
        route = Route(self.url, BACKEND, self.http, direct=True)
        try:
            with route.client() as http:
                response = http.get(f"{self.url}{path}", auth=auth, timeout=10.0)
        except FAILURES as error:
            raise route.unreachable(error, f"no answer from {self.url}") from error
        route.check_answer(response)
        return response

    # The installation

    @cached_property
    def queue(self) -> RoundQueue:
        return RoundQueue.from_settings(self.settings)

    @cached_property
    def round_store(self) -> RoundStore:
        return RoundStore(self.settings.data_dir)

    @cached_property
    def stored_connection(self) -> Connection | None:
        """The connection that ``/setup`` stored in the data folder; None where there is none."""
        try:
            return self.round_store.connection(self.project_id)
        except UnknownProject:
            return None

    @cached_property
    def key(self) -> ProjectKey:
        try:
            created = datetime.fromisoformat(str(self.project["created_at"]))
        except (KeyError, ValueError) as error:
            raise PayloadError(f"project {self.project_id} does not say when it was created: {error!r}") from None
        return ProjectKey(id=self.project_id, created=int(created.timestamp()))

    @cached_property
    def store(self) -> ProjectStore:
        return self.round_store.project(self.key)

    # What readers are served

    @cached_property
    def serving(self) -> Serving:
        """What Label Studio serves, read as the reconciler reads it."""
        try:
            published = self.store.published()
        except StorageError:  # reported by "rounds on disk"
            published = None
        # Again: a round may have been published since the project was read.
        row = self.client.project(self.project_id)
        existing = self.client.existing(self.project_id, map(int, published.image_ids)) if published else set()
        imported, user = self.store.imported_versions, self.settings.basic_auth_user
        return read_serving(self.client, row, existing, published, imported, user=user)

    @cached_property
    def serving_problems(self) -> list[ServingProblem]:
        try:
            waits = self.standing is None or self.standing.waits
        except BackendError:  # reported by "labelling"
            waits = True
        return serving_problems(self.serving, self.options, str((self.backend or {}).get("title")), waits=waits)

    @cached_property
    def cache(self) -> TaskCache | None:
        """The project's tasks; None where the backend has not read them yet and they are many."""
        cache = ReadingStore(self.store.folder).mirror(TaskCache)
        if cache is None and int(self.project.get("task_number") or 0) > READ_WHOLE:
            return None
        return read_project(self.client, self.project_id, cache).cache

    @cached_property
    def images(self) -> TaskImages | None:
        """The images of the tasks; None likewise."""
        if self.cache is None:
            return None
        return TaskImages.of(self.cache, self.config, ReadingStore(self.store.folder).digests())

    @cached_property
    def standing(self) -> Standing | None:
        """The state of the labelling, as on the owner's page; None likewise."""
        if self.cache is None:
            return None
        network = known_network([*map(self.store.summary, self.store.round_ids())])
        barred = {one.image_id: one.reason for one in Quarantine(self.store.folder).listed()}
        return project_standing(self.cache, self.config, self.options, self.images, quarantined=barred, network=network)


# Label Studio and the project

RIGHTS = ("projects.view", "projects.change", "tasks.view", "predictions.any")  # for reading and publishing


@check("settings", remedy="correct the named variables, and run this again")
def check_settings(context: CheckContext) -> Result:
    read = context.settings
    guard = "callers need a password" if read.basic_auth_user else "callers need no password, so anybody may call"
    return ok(f"AL_* variables read; {guard}")


@check(
    "Label Studio",
    needs=("settings",),
    remedy="start Label Studio, or set AL_LABEL_STUDIO_URL to the address where it answers itself",
)
def check_label_studio(context: CheckContext) -> Result:
    if context.studio_url is None:
        return failed(
            "the address of Label Studio is not known", "set AL_LABEL_STUDIO_URL, for example http://127.0.0.1:8080"
        )
    release = label_studio_version(context.studio_url, context.http)
    return ok(f"{release} at {context.studio_url}: {version_note(release)}")


@check(
    "API key",
    needs=("Label Studio",),
    remedy="make a personal access token (Account & Settings in Label Studio) and set AL_LABEL_STUDIO_API_KEY",
)
def check_api_key(context: CheckContext) -> Result:
    user = context.client.whoami()
    held = user.get("permissions")
    lacking = [right for right in RIGHTS if right not in held] if isinstance(held, list) else []
    kind = f"{context.client.key_kind} of {user.get('email')}"
    if lacking:
        return failed(f"{kind}, who lacks {', '.join(lacking)}", "take the key of a user who may change projects")
    return ok(kind)


@check("project", needs=("API key",), remedy=AGAIN)
def check_project(context: CheckContext) -> Result:
    try:
        row = context.project
    except RequestRefused as error:
        if error.status != httpx.codes.NOT_FOUND:
            raise
        return failed(
            f"Label Studio shows this user no project {context.project_id}",
            "is --project right? Its number is in the address of its page, .../projects/N/; and the key must be "
            "of a user of the project",
        )
    tasks = row.get("task_number") or 0
    if not tasks:
        return ok(f"{row.get('title')!r} holds no images yet: import images in Label Studio to begin")
    return ok(f"{row.get('title')!r}: {tasks:,} images, {row.get('total_annotations_number') or 0:,} annotations")


@check(
    "label config",
    needs=("project",),
    remedy="change it in the project's settings under Labeling Interface; label_studio_config/ holds two examples",
)
def check_label_config(context: CheckContext) -> Result:
    config = context.config
    where = f"Choices {config.from_name!r} about Image {config.to_name!r}, in ${config.image_key} of a task"
    return ok("; ".join([where, *config.not_learned]))


@check(
    "options",
    needs=("label config",),
    remedy="correct it in the place that is named; `ml-backend connect --option` replaces all extra_params",
)
def check_options(context: CheckContext) -> Result:
    chosen, defaults = context.options, ProjectOptions.resolve(environ={})
    differing = [
        f"{name}={value}"
        for name in ProjectOptions.model_fields
        if (value := getattr(chosen, name)) != getattr(defaults, name)
    ]
    return ok("; ".join([", ".join(differing) or "all at their defaults", *context.overridden]))


@check("classes", needs=("options",))
def check_classes(context: CheckContext) -> Result:
    try:
        learned = context.classes
    except SettingsError as error:
        return failed(str(error), "correct the option or the Choices tag that is named; at least two classes remain")
    left_out = [shown(choice, context.config) for choice in context.config.classes if choice not in learned]
    no_class = f"; no class: {', '.join(left_out)}" if left_out else ""
    names = [shown(choice, context.config) for choice in learned]
    order = f"least to most severe: {' < '.join(names)}"
    return ok(f"{order if context.options.ordered(learned) else 'in no order: ' + ', '.join(names)}{no_class}")


# The connection and its events

ARRIVES_WITHIN_S = 5.0
POLL_S = 0.1
COUNTER = "al_webhooks_total"
UPDATES = re.compile(rf'^{COUNTER}\{{[^}}]*action="PROJECT_UPDATED"[^}}]*\}} (\S+)$', re.MULTILINE)


@check("address", needs=("project",))
def check_address(context: CheckContext) -> Result:
    if refusal := webhook_refusal(context.url):
        return failed(refusal, OTHER_NAME)
    return ok(f"Label Studio takes {context.url} for a webhook")


@check("private addresses", needs=("address",), remedy=AGAIN)
def check_private_addresses(context: CheckContext) -> Result:
    # Label Studio judges an address before all else: a request that can create nothing shows whether it is allowed.
    requests: dict[str, tuple[str, Json]] = {
        "backends": ("/api/ml", {"url": context.url}),  # without the required project
        "webhooks": (
            "/api/webhooks/",
            {"url": f"{context.url}/webhook", "project": context.project_id, "is_active": "?"},
        ),
    }
    blocked = {}
    for what, (path, body) in requests.items():
        try:
            context.client.send("POST", path, body=body)
        except RequestRefused as error:
            if error.status == httpx.codes.FORBIDDEN:
                blocked[what] = str(error)
    if blocked:
        *_, answer = blocked.values()
        return failed(f"Label Studio allows no {' and no '.join(blocked)} at {context.url}: {answer}", PRIVATE_ADDRESS)
    return ok(f"Label Studio may call {context.url}")


@check("backend", needs=("settings",))
def check_backend(context: CheckContext) -> Result:
    answer = context.request_backend("/metrics")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return failed(f"{context.url} refuses the credentials of these settings", OUR_401)
    if answer.status_code != httpx.codes.OK or COUNTER not in answer.text:
        return failed(
            f"the server at {context.url} is not this backend ({answer.status_code} to GET /metrics)",
            "give the backend's address with --url",
        )
    return ok(f"at {context.url}, with the credentials of these settings")


@check("connection", needs=("address",), remedy=AGAIN)
def check_connection(context: CheckContext) -> Result:
    row = context.backend
    if row is None:
        others = ", ".join(str(other["url"]) for other in context.backends)
        return failed(
            f"the project has no backend at {context.url}{f'; it has one at {others}' if others else ''}",
            context.connect_command,
        )
    if row["state"] != CONNECTED:
        problem = str(row.get("error_message") or row.get("readable_state") or row["state"])
        remedy = hint(problem) or f"correct that, then {context.connect_command}"
        return failed(f"Label Studio cannot work with it: {problem}", remedy)
    ours, theirs = context.settings.basic_auth_user, row.get("basic_auth_user") or None
    if ours != theirs:
        seen = f"Label Studio calls as user {theirs!r}, and these settings have {ours!r}"
        return failed(seen, context.connect_command)
    return ok(f"{row.get('title')!r}, {f'as user {ours!r}' if ours else 'without a user'}")


@check("webhook", needs=("connection",), remedy=AGAIN)
def check_webhook(context: CheckContext) -> Result:
    row = context.webhook
    if row is None:
        return failed(
            f"the project has no webhook to {context.url}/webhook: it was deleted, or Label Studio was not allowed to "
            "make it with the backend",
            context.connect_command,
        )
    wrong = []
    if not row.get("is_active"):
        wrong.append("is switched off")
    if not row.get("send_payload"):
        wrong.append("sends no payload")
    if not row.get("send_for_all_actions"):
        wrong.append("sends some events only")
    if (row.get("headers") or {}) != wanted_webhook(context.settings, context.url, row)["headers"]:
        held = "Authorization" in (row.get("headers") or {})
        wrong.append("sends another Authorization than these settings" if held else "sends no Authorization")
    if wrong:
        return failed(f"it {', '.join(wrong)}", context.connect_command)
    guarded = "with our Authorization" if authorization(context.settings) else "no Authorization is required"
    return ok(f"active, with payload, all events; {guarded}")


@check("one connection", needs=("connection",), remedy=AGAIN)
def check_one_connection(context: CheckContext) -> Result:
    webhooks = context.client.webhooks(context.project_id)
    if half := half_connections(context.backends, webhooks, context.settings):
        left = ", ".join(str(row["url"]) for row in half)
        return failed(
            f"the project also holds this backend at {left}, which an earlier connect left: no event comes from there, "
            "and its options may replace those of this connection",
            context.connect_command,
        )
    if others := other_connections(context.backends, webhooks, context.url, context.settings):
        return failed(
            f"the project also holds this backend at {', '.join(others)}: it sends every event more than once, and the "
            "options of one connection replace the other's",
            ONE_CONNECTION,
        )
    return ok("no other leads to this backend")


@check("event arrives", needs=("webhook", "backend"), remedy="look into Label Studio's log")
def check_event(context: CheckContext) -> Result:
    """Setting the title to its own value makes Label Studio send PROJECT_UPDATED, and changes nothing."""

    def updates() -> float:
        return sum(float(count) for count in UPDATES.findall(context.request_backend("/metrics").text))

    before = updates()
    title = context.client.project(context.project_id)["title"]
    context.client.patch_project(context.project_id, {"title": title})
    start = time.monotonic()
    while (waited_s := time.monotonic() - start) < ARRIVES_WITHIN_S:
        if updates() > before:
            return ok(f"PROJECT_UPDATED came {waited_s:.1f} s after its cause")
        time.sleep(POLL_S)
    return failed(
        f"Label Studio had to send PROJECT_UPDATED, and no event arrived within {ARRIVES_WITHIN_S:.0f} s",
        f"can Label Studio's machine reach {context.url}? Its log says why a webhook failed; {context.connect_command}",
    )


# What readers are served

PUBLISHED_AGAIN = (
    "wait two minutes: the backend publishes the ranking again by itself while a worker runs; press Top up on its page "
    "to have it at once"
)


def _problem(context: CheckContext, aspect: Aspect) -> Result | None:
    """The serving problem of that aspect, which the project's page names in the same words."""
    for problem in context.serving_problems:
        if problem.aspect == aspect:
            if problem.foreign:
                return failed(problem.seen, ONE_INSTALLATION)
            return failed(problem.seen, PUBLISHED_AGAIN if problem.mended else context.connect_command)
    return None


@check("sampling", needs=("options",))
def check_sampling(context: CheckContext) -> Result:
    return _problem(context, "sampling") or ok(str(context.project.get("sampling")))


@check("readers per image", needs=("options",))
def check_readers(context: CheckContext) -> Result:
    return _problem(context, "readers per image") or ok(str(context.options.annotations_per_task))


@check("predictions on", needs=("options",))
def check_predictions_on(context: CheckContext) -> Result:
    return _problem(context, "predictions on") or ok("on")


@check("automatic rounds", needs=("options",))
def check_automatic_rounds(context: CheckContext) -> Result:
    if not context.project.get("min_annotations_to_start_training"):
        return ok("off, as set in the project: a round begins only when somebody starts it")
    return ok(f"after {context.options.retrain_after} changed annotations")


@check("rounds on disk", needs=("project",), remedy=MEND_FILE)
def check_rounds_on_disk(context: CheckContext) -> Result:
    if context.store.connection() is None:
        if context.backend is None:
            return skipped("the project is not connected yet")
        return failed(
            f"AL_DATA_DIR={context.settings.data_dir} knows nothing of project {context.key}, which Label Studio has "
            "connected",
            "set AL_DATA_DIR as it is set for `ml-backend serve` and `ml-backend work`: they share one folder",
        )
    # Both raise where the file is damaged.
    context.store.published()
    context.store.imported_versions()
    rounds = context.store.round_ids()
    return ok(f"{len(rounds)} rounds, the last {rounds[-1]}" if rounds else "no round yet")


@check("order served", needs=("options", "rounds on disk"), remedy=MEND_FILE)
def check_order(context: CheckContext) -> Result:
    if (problem := _problem(context, "order served")) is not None:
        return problem
    version = context.serving.version
    if version is None:
        return skipped("no ranking is published yet")
    return ok("every image has a label" if is_lost(context.serving) else f"{version}, the live ranking")


@check("predictions", needs=("options", "rounds on disk"), remedy=MEND_FILE)
def check_predictions(context: CheckContext) -> Result:
    if (problem := _problem(context, "predictions")) is not None:
        return problem
    published = context.store.published()
    if published is None:
        return skipped("no ranking is published yet")
    # A deleted task takes its prediction along.
    gone = len(published.image_ids) - context.serving.there
    return ok(f"{context.serving.held} of {published.version}{f'; {gone} images were deleted since' if gone else ''}")


# Images and labels

LOOKED_THROUGH = 300  # tasks from which the images are chosen
UNREAD = "the backend has not read the project yet; it does so once a minute"
REMEDIES: dict[ImageErrorKind, str] = {
    "missing": "put the file back, or delete its task",
    "forbidden": "let the user of AL_LABEL_STUDIO_API_KEY, or the storage connected in Label Studio, read the file",
    "refused": "open the address in a browser: it must lead to the image file; correct it, or delete its task",
    "unreachable": "start what serves the images, or let this machine reach it",
    "timed-out": "bring what serves the images nearer, or shrink them",
    "too-large": "shrink the images",
    "empty": "export the images again",
    "not-an-image": "export the images again, as PNG or JPEG",
    "unsupported": "export the images as PNG or JPEG",
    "damaged": "export the images again",
}


@check("images", needs=("options",), remedy=AGAIN)
def check_images(context: CheckContext) -> Result:
    """Reads three images as a round would."""
    tasks = list(islice(_tasks(context), LOOKED_THROUGH))
    if not tasks:
        return skipped("the project holds no images yet")
    chosen = [tasks[place] for place in sorted({0, len(tasks) // 2, len(tasks) - 1})]
    hostname = context.stored_connection.hostname if context.stored_connection else None
    sizes: list[int] = []
    failure: Result | None = None
    start = time.monotonic()
    with closing(LabelStudioImages(context.client, hostname, hosts=context.settings.allowed_image_hosts)) as source:
        for task in chosen:
            try:
                image = read_image(task, context.config)
                content = with_plugins(source).fetch(image)
                decode(content, context.options.image_side or SIDE, image.id)
                sizes.append(len(content))
            except ImageError as error:
                remedy = REMEDIES[error.kind]
                if isinstance(error.__cause__, BlockedHost):
                    remedy = (
                        "name that host in AL_IMAGE_HOSTS, if it may be requested; otherwise correct the task's address"
                    )
                failure = failure or failed(str(error), remedy)
            except PayloadError as error:
                failure = failure or failed(
                    str(error), "correct the task's data, or the value of the label config's Image tag"
                )
    if failure is not None:
        return failed(f"{len(sizes)} of {len(chosen)} could be read; {failure.seen}", failure.remedy)
    took_s, mean = (time.monotonic() - start) / len(sizes), sum(sizes) / len(sizes)
    return ok(f"{len(sizes)} decoded, {mean / 1e6:.2f} MB and {took_s:.2f} s each on average")


def _tasks(context: CheckContext) -> Iterator[Json]:
    """The unlabelled tasks; where all are labelled, all tasks."""
    unlabelled = context.client.unlabelled_tasks(context.project_id)
    first = next(unlabelled, None)
    return context.client.changed_tasks(context.project_id) if first is None else chain([first], unlabelled)


@check("quarantine", needs=("rounds on disk",))
def check_quarantine(context: CheckContext) -> Result:
    barred = Quarantine(context.store.folder).listed()
    if not barred:
        return ok("no image is left out" if context.store.round_ids() else "no round has read the images yet")
    are = "1 image is" if len(barred) == 1 else f"{len(barred)} images are"
    return ok(f"{are} left out, such as {barred[0].image_id}: {barred[0].reason}")


@check("same image twice", needs=("options", "rounds on disk"))
def check_duplicates(context: CheckContext) -> Result:
    if context.images is None:
        return skipped(UNREAD)
    return ok(context.images.count().sentence or "every image is in one task")


@check("ground truths", needs=("classes", "rounds on disk"))
def check_ground_truths(context: CheckContext) -> Result:
    if context.cache is None:
        return skipped(UNREAD)
    found = ground_truths(context.cache, context.config, context.options, context.images)
    return ok(found.sentence or "no annotation is marked as ground truth")


def connect_notes(context: CheckContext) -> list[str]:
    """What ``connect`` prints about a project that it has connected: what to know, and where its pages are."""
    try:
        known = context.stored_connection
    except BackendError:  # the file may be readable for the server's user alone
        known = None
    studio = browser_address(context.client.url, known.hostname if known else None)
    backend = context.settings.public_url or context.url
    return [
        *filter(None, [*context.overridden, ground_truth_note(context)]),
        f"the project in Label Studio: {studio}/projects/{context.project_id}/data",
        f"the owner's page: {backend.rstrip('/')}/projects/{context.key}",
    ]


def ground_truth_note(context: CheckContext) -> str:
    """What ``connect`` prints about ground truths; empty where there are none, or they cannot be counted."""
    try:
        if not context.project.get("ground_truth_number"):
            return ""
        cache = context.cache or read_project(context.client, context.project_id, None).cache
        found = ground_truths(cache, context.config, context.options, context.images)
    except BackendError as error:
        log.warning("ground truths were not counted", error=str(error))
        return ""
    return (
        f"{found.sentence} Label Studio marks every imported annotation as ground truth; the option ground_truth says "
        "what they count as."
    )


@check("left out", needs=("classes", "rounds on disk"), remedy=MEND_NAMED)
def check_left_out(context: CheckContext) -> Result:
    if (standing := context.standing) is None:
        return skipped(UNREAD)
    seen = "; ".join(one.sentence for one in standing.left_out)
    if standing.mendable:
        return failed(seen, MENDABLE[standing.mendable[0].kind])
    return ok(seen or "no task and no label")


@check("labelling", needs=("classes", "rounds on disk"), remedy=MEND_NAMED)
def check_labelling(context: CheckContext) -> Result:
    if (standing := context.standing) is None:
        return skipped(UNREAD)
    if standing.verdict == "unusable":
        return failed(standing.sentence, "correct what it names; the next round uses it")
    start = standing.start
    if standing.verdict == "blocked" and start is not None:
        if standing.mendable:
            return failed(standing.sentence, "; or ".join((MENDABLE[standing.mendable[0].kind], *start.ways_out)))
        return ok(f"{standing.sentence} To train one, {'; or '.join(('import more images', *start.ways_out))}")
    few = () if standing.few is None else (standing.few.sentence,)
    return ok(" ".join((standing.sentence, *(() if start is None else (start.advice,)), *few)))


# Redis, worker and rounds


@check(
    "Redis",
    needs=("settings",),
    remedy="start redis-server or valkey-server, or set AL_REDIS_URL to the one that the backend uses",
)
def check_redis(context: CheckContext) -> Result:
    context.queue.ping()
    return ok(context.queue.address)


@check("worker", needs=("Redis",))
def check_worker(context: CheckContext) -> Result:
    alive = context.queue.workers()
    if not alive:
        return failed(
            f"no worker is connected to {context.queue.address}",
            "start `ml-backend work` with the same AL_REDIS_URL and AL_DATA_DIR; waiting rounds run then",
        )
    return ok(f"{alive} alive")


@check("rounds", needs=("Redis", "project"))
def check_rounds(context: CheckContext) -> Result:
    status = context.queue.status(context.key)
    # Where every image is labelled, or there is none yet, a round that ranked nothing is no failure of the round.
    if (error := status.last_error) is not None and not (status.ran_out and _nothing_to_mend(context, status)):
        at = datetime.fromtimestamp(error.at, UTC)
        again = datetime.fromtimestamp(status.next_attempt, UTC) if status.next_attempt else None
        retry = f"; it is tried again by itself at {again:%H:%M} UTC" if again else ""
        return failed(
            f"the last one failed at {at:%Y-%m-%d %H:%M} UTC: {error.kind}: {error.message}",
            f"correct what it names, then press Start Training in the backend's menu{retry}",
        )
    running = f"runs: {status.running}" if status.running else "none runs"
    if status.running and not context.queue.workers():
        return failed(f"{status.running} stopped: no worker answers", "start `ml-backend work`: it begins again then")
    if status.progress is not None:
        running += f" ({status.progress.stage}, {status.progress.done} of {status.progress.total})"
    waiting = f"waits: {status.waiting}" if status.waiting else "none waits"
    to_next = f"; {status.changes} of the {status.threshold} labels for the next are given" if status.threshold else ""
    if error is not None:
        to_next += f"; the last one found no image to rank: {error.message}"
    return ok(f"{running}, {waiting}{to_next}; {status.rounds_finished} done, {status.rounds_failed} failed")


def _nothing_to_mend(context: CheckContext, status: QueueStatus) -> bool:
    try:
        standing = context.standing
    except BackendError:  # reported by "labelling"
        standing = None
    return not status.failing if standing is None else standing.verdict != "unusable"


# Data folder, weights and GPU

GB = 10**9
NETWORK = 110_000_000  # bytes of a ResNet50 with its head; larger networks are rare
SIDE = 224  # pixels: that of most networks; loading PyTorch to ask the network takes seconds
PER_PROBABILITY = 4  # bytes, before compression
PER_FEATURES = 2048 * 4  # bytes of an image's features, of a ResNet50
HASHES = 120  # bytes that a cache takes for the address of an image
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu")  # of NVIDIA, AMD, WSL, Jetson


@check("data folder", needs=("settings",), remedy="do as it says: nothing is stored meanwhile, and no round can run")
def check_data_folder(context: CheckContext) -> Result:
    folder = context.settings.data_dir
    if not folder.is_dir():
        return failed(
            f"AL_DATA_DIR={folder} does not exist or is not a directory",
            "set AL_DATA_DIR as it is set for `ml-backend serve`; in a new installation, make the folder",
        )
    check_writable(folder)
    return ok(f"{folder.absolute()} can be written")


@check("space", needs=("data folder", "classes"))
def check_space(context: CheckContext) -> Result:
    """Passes and networks of a round need room on the disk; without room for its caches it is only slower."""
    options, images = context.options, int(context.project.get("task_number") or 0)
    passes = images * options.passes * len(context.classes) * PER_PROBABILITY
    needed = passes + options.committee * NETWORK
    limit = context.settings.cache_gb * GB
    pixels = (options.image_side or SIDE) ** 2
    caches = min(images * (pixels + HASHES), limit) + min(images * PER_FEATURES, limit)
    a_round = images * (pixels * 12 // 11 if options.finetune == "full" else PER_FEATURES * 9 // 8)
    free = shutil.disk_usage(context.settings.data_dir).free
    seen = f"{free / GB:.1f} GB free; a round of {images:,} images keeps up to {needed / GB:.1f} GB"
    if free < needed:
        return failed(seen, "make room, set AL_KEEP_ROUNDS=100, or let AL_DATA_DIR name a folder on a larger disk")
    if free < needed + caches:
        seen += f", and its caches want {caches / GB:.1f} GB: without room for them rounds are slower"
    if a_round > limit:
        seen += f"; each round fetches images again that the cache does not hold: set AL_CACHE_GB={a_round / GB:.1f}"
    return ok(seen)


@check("weights", needs=("options",), remedy="set the option `backbone` to one of the networks that are named")
def check_weights(context: CheckContext) -> Result:
    options = context.options
    if _has_weights(options) and (round_id := _trained_with(context)) is not None:
        return ok(f"of {options.backbone}, with which round {int(round_id[1:])} has trained")
    require("worker", WORKERS_CHECK)
    import torch

    from ml_backend.model.backbones import build_network, load_backbone, published_weights, weights_file

    if options.backbone in plugins("backbones"):
        load_backbone(options.backbone, options.weights)
        return ok(f"of {options.backbone}, which an installed package provides")
    if options.weights == "none":
        with torch.device("meta"):
            build_network(options.backbone, side=options.image_side)  # raises for an unknown network
        return ok(f"none for {options.backbone}, as set in the options: it is untrained")
    path = weights_file(options.backbone, options.weights)
    if path is None:
        own = "set the option weights to a file of yours, or to none for an untrained network"
        published = published_weights(options.backbone) if options.weights == "imagenet" else None
        if options.weights != "imagenet":
            missing, remedy = f"the file {options.weights}: not on this machine", f"put it there; or {own}"
        elif published is None:
            missing, remedy = f"the published weights of {options.backbone}: there are none", own
        else:
            url, path = published
            missing = f"the published weights of {options.backbone}: not on this machine"
            remedy = f"let the worker fetch them at its first round; without internet save {url} as {path}; or {own}"
        return failed(missing, remedy)
    try:
        load_backbone(options.backbone, options.weights, options.image_side)
    except WeightsError as error:
        return failed(str(error), "take another file, or name the backbone that these weights are of")
    return ok(f"of {options.backbone}, from {path}")


def _has_weights(options: ProjectOptions) -> bool:
    """Whether this machine has a file with the weights, as far as names tell, or needs none."""
    if options.weights in ("none", "imagenet"):
        home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
        files = Path(home).expanduser().glob(f"hub/checkpoints/{options.backbone}*.pth")
        return options.weights == "none" or any(files)
    return Path(options.weights).expanduser().is_file()


def _trained_with(context: CheckContext) -> str | None:
    """The newest round that trained a network, if with these weights: PyTorch, which takes seconds, is not needed."""
    try:
        rounds = map(context.store.summary, reversed(context.store.round_ids()))
        newest = next((one for one in rounds if one.trained), None)
    except StorageError:  # reported by "rounds on disk"
        return None
    same = newest and all(newest.request.options.get(k) == getattr(context.options, k) for k in ("backbone", "weights"))
    return newest.round_id if newest and same else None


@check("GPU", needs=("options",), remedy="set the option `precision` to what this GPU can do")
def check_gpu(context: CheckContext) -> Result:
    if context.settings.device == "cpu":
        return ok("not used, as AL_DEVICE=cpu is set: heads are trained on the CPU")
    options, usable = context.options, any(map(os.path.exists, GPU_FILES))
    if usable:
        require("worker", WORKERS_CHECK)
        import torch

        usable = torch.cuda.is_available()
    if not usable:
        if context.settings.device == "cuda":
            return failed("AL_DEVICE=cuda, and PyTorch finds no usable GPU", "repair the driver, or set AL_DEVICE=auto")
        if options.finetune == "full":
            return ok("none: the whole network is trained on the CPU, as finetune=full is set, which takes hours")
        return ok("none that PyTorch can use: heads are trained on the CPU")
    from ml_backend.model.hardware import Precision

    device = torch.device("cuda")
    free, total = torch.cuda.mem_get_info(device)
    gpu = f"{torch.cuda.get_device_name(device)}, {total / GB:.1f} GB, {free / GB:.1f} of them free now"
    if options.finetune == "head":
        return ok(f"{gpu}; only heads are trained, which takes little")
    # Raises for what this GPU cannot do.
    Precision.from_options(device, options.precision, channels_last=options.channels_last)
    return ok(f"{gpu}; a batch of train_batch={options.train_batch} is halved until it fits")
