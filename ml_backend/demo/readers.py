"""Simulated readers: Label Studio users who send the same requests as Label Studio's page.

A reader works in a session, without an API key, and gets each image from "Label All Tasks". The labels come from the
demo's truth, which neither Label Studio nor the backend receives. The page's requests are recorded in
``tests/recorded/label_studio_page.json``, which a test compares with Chromium.
"""

import random
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from ml_backend.errors import LabelStudioError, RequestRefused
from ml_backend.label_studio.client import LABEL_STUDIO, Route
from ml_backend.label_studio.formats import LabelConfig, read_image

TIMEOUT_S = 60.0
EXCERPT = 200
ATTEMPTS = 5
PAUSE_S = 0.5
# Label Studio puts 8 hex digits before the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")

Region = dict[str, Any]  # one entry of the result of an annotation or a prediction


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task on a reader's screen.

    Attributes:
        image_id: id of the task.
        uri: address of its image.
        prediction_id: the prediction from which the page opened the task; None without one.
        regions: the result with which the page opened: of that prediction, or of the earlier annotation.
        lock_id: reservation of the task; Label Studio refuses a second annotation under the same one.
        annotation_id: the earlier annotation that is open again; None for a task without one.
        spent_s: lead time of the earlier annotation.
        loaded_at: when it came on the screen.
    """

    image_id: str
    uri: str
    prediction_id: int | None = None
    regions: tuple[Region, ...] = ()
    lock_id: str | None = None
    annotation_id: int | None = None
    spent_s: float = 0.0
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Submission:
    """An annotation that Label Studio has accepted."""

    reader: str
    image_id: str
    value: str
    sent_at: datetime
    answered_at: datetime


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image that Label Studio served to a reader, or that stayed on the screen when a new ranking came.

    Attributes:
        versions: model version just before and just after: one, or two around a publish.
        holding: the image on the screen, not yet annotated, when the ranking came.
    """

    reader: str
    image_id: str
    versions: tuple[str, ...]
    holding: str | None = None


def open_task(task: Mapping[str, Any], config: LabelConfig) -> OpenTask:
    """Open a task without an annotation as the page does: from its newest prediction."""
    image = read_image(dict(task), config)
    newest: Region = max(task["predictions"], key=lambda one: int(one["id"]), default={"id": None, "result": []})
    return OpenTask(
        image.id,
        image.uri,
        prediction_id=newest["id"],
        regions=tuple({"id": _region_id(), "origin": "prediction"} | region for region in newest["result"]),
        lock_id=task.get("unique_lock_id"),
    )


def annotation_body(project_id: int, task: OpenTask, result: Sequence[Region]) -> dict[str, object]:
    """The body that the page sends with every annotation; a submission and a skip add to it."""
    return {
        "lead_time": task.spent_s + (datetime.now(UTC) - task.loaded_at).total_seconds(),
        "result": list(result),
        "draft_id": 0,  # drafts are saved only after 5 s
        "parent_prediction": task.prediction_id,
        "parent_annotation": None,
        "started_at": task.loaded_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "project": str(project_id),
    }


def choice_result(value: str, config: LabelConfig, before: Sequence[Region] = ()) -> list[Region]:
    """The result after a reader has chosen a class: the region that was there, changed, or a new one."""
    choices = {"choices": [value]}
    region = next((region for region in before if region["from_name"] == config.from_name), None)
    if region is None:
        names = {"from_name": config.from_name, "to_name": config.to_name, "type": "choices"}
        return [{"value": choices, "id": _region_id(), "origin": "manual"} | names]
    changed = region["origin"] == "prediction" and region["value"] != choices
    return [region | {"value": choices, "origin": "prediction-changed" if changed else region["origin"]}]


def _region_id() -> str:
    return secrets.token_urlsafe(8)[:10]


def file_name(uri: str) -> str:
    """The name under which a file was uploaded, from the address that Label Studio gives it."""
    return _UPLOAD_PREFIX.sub("", PurePosixPath(urlsplit(uri).path).name)


class SimulatedLabels:
    """The label that a reader gives an image: the truth, or at a given rate a neighbouring class.

    Args:
        truth: name of the uploaded file -> class.
        classes: ordinal, least severe first.
        mistakes: fraction of the images that a reader labels wrong, 0 to 1.
        seed: the same seed, reader and image give the same label.

    Raises:
        ValueError: ``mistakes`` is no fraction.
    """

    def __init__(self, truth: Mapping[str, str], classes: Sequence[str], mistakes: float, seed: int) -> None:
        if not 0.0 <= mistakes <= 1.0:
            raise ValueError(f"mistakes must be a fraction from 0 to 1, got {mistakes}")
        self._truth = dict(truth)
        self._classes = tuple(classes)
        self._mistakes = mistakes
        self._seed = seed

    def label(self, reader: str, uri: str) -> str:
        """The reader's label of the image at ``uri``.

        Raises:
            LabelStudioError: no such image was uploaded.
        """
        name = file_name(uri)
        if name not in self._truth:
            raise LabelStudioError(f"Label Studio served {uri!r}, which is none of the {len(self._truth)} images")
        rng = random.Random(f"{self._seed} {reader} {name}")
        true = self._classes.index(self._truth[name])
        if rng.random() >= self._mistakes:
            return self._classes[true]
        return self._classes[rng.choice([i for i in (true - 1, true + 1) if 0 <= i < len(self._classes)])]


class Reader:
    """A user of Label Studio with a browser session.

    Args:
        name: of the reader in records.
        url: of Label Studio.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        # Unique: Label Studio keeps its users when the demo starts again.
        self.email = f"{name}-{secrets.token_hex(4)}@example.com"
        self.password = secrets.token_urlsafe(12)
        self.url = url.rstrip("/")
        self._route = Route(self.url, LABEL_STUDIO)
        self._http = self._route.client()
        self._http.base_url, self._http.timeout = self.url, TIMEOUT_S
        self._http.headers["Referer"] = f"{self.url}/"

    def sign_up(self, invite: str) -> Self:
        """Sign up through the form behind an invitation.

        Args:
            invite: the path in the answer to ``GET /api/invite``.

        Raises:
            LabelStudioError: the form was refused.
        """
        self._send("GET", invite)
        form = {"email": self.email, "password": self.password, "csrfmiddlewaretoken": self._csrf()}
        self._send("POST", invite, data=form)
        who = self._send("GET", "/api/current-user/whoami").json()
        if who.get("email") != self.email:
            raise LabelStudioError(f"{self.email} signed up at {self.url}{invite}, but is logged in as {who!r}")
        return self

    def next_task(self, project_id: int, config: LabelConfig) -> OpenTask | None:
        """Press "Label All Tasks", or go on after a submission; None where no task is left."""
        path = f"/api/dm/actions?id=next_task&project={project_id}"
        answer = self._send("POST", path, json={"project": str(project_id)}, accept=404)
        return None if answer.status_code == 404 else open_task(answer.json(), config)

    def submit(self, project_id: int, task: OpenTask, value: str, config: LabelConfig) -> Submission:
        """Choose a class and submit.

        Raises:
            RequestRefused: Label Studio refused the annotation.
        """
        sent_at = datetime.now(UTC)
        self._annotate(project_id, task, annotation_body(project_id, task, choice_result(value, config, task.regions)))
        return Submission(self.name, task.image_id, value, sent_at, datetime.now(UTC))

    def skip(self, project_id: int, task: OpenTask) -> None:
        """Press Skip.

        Raises:
            RequestRefused: Label Studio refused it.
        """
        self._annotate(project_id, task, annotation_body(project_id, task, task.regions) | {"was_cancelled": True})

    def reopen(self, project_id: int, task: OpenTask, config: LabelConfig) -> OpenTask:
        """Go back to a task that this reader has annotated or skipped.

        Raises:
            LabelStudioError: this reader has not annotated it.
        """
        path = f"/api/tasks/{task.image_id}?interaction=labelstream&project={project_id}"
        found = self._send("GET", path).json()
        own = [one for one in found["annotations"] if one["completed_by"]["email"] == self.email]
        if not own:
            raise LabelStudioError(f"{self.name} has not annotated image {task.image_id}")
        return OpenTask(
            task.image_id,
            read_image(found, config).uri,
            prediction_id=own[-1]["parent_prediction"],
            regions=tuple(own[-1]["result"]),
            annotation_id=int(own[-1]["id"]),
            spent_s=float(own[-1]["lead_time"] or 0.0),
        )

    def update(self, project_id: int, task: OpenTask, value: str, config: LabelConfig) -> OpenTask:
        """Change the class of a reopened task; the page then loads it again.

        Raises:
            RequestRefused: Label Studio refused the change.
        """
        path = f"/api/annotations/{task.annotation_id}?taskID={task.image_id}&project={project_id}"
        body = annotation_body(project_id, task, choice_result(value, config, task.regions))
        self._send("PATCH", path, json=body)
        return self.reopen(project_id, task, config)

    def _annotate(self, project_id: int, task: OpenTask, body: Mapping[str, object]) -> None:
        lock = {} if task.lock_id is None else {"unique_id": task.lock_id}
        self._send("POST", f"/api/tasks/{task.image_id}/annotations?project={project_id}", json={**body, **lock})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _csrf(self) -> str:
        return self._http.cookies.get("csrftoken") or ""

    def _send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: Mapping[str, str] | None = None,
        accept: int | None = None,
    ) -> httpx.Response:
        # Label Studio on sqlite answers 500 while another writer holds the database. A submission is not repeated: it
        # might be stored twice.
        attempts = ATTEMPTS if method == "GET" or "id=next_task" in path else 1
        for attempt in range(attempts):
            try:
                answer = self._http.request(method, path, json=json, data=data, headers={"X-CSRFToken": self._csrf()})
            except httpx.TransportError as error:
                message = f"{self.name} got no answer to {method} {self.url}{path}"
                raise self._route.unreachable(error, message) from error
            if answer.status_code != 500:
                break
            if attempt + 1 < attempts:
                time.sleep(PAUSE_S)
        # An accepted form redirects; a refused one is a page with status 200.
        if answer.status_code >= 400 and answer.status_code != accept:
            raise RequestRefused(
                f"{self.name}: Label Studio answered {answer.status_code} to {method} {self.url}{path}: "
                f"{answer.text[:EXCERPT]}",
                answer.status_code,
            )
        return answer


class ReadingRoom:
    """Readers who take turns: each submits the task on the screen and is served the next one.

    So every reader holds one image at any time, as with an open browser, also when a new ranking comes.

    Args:
        readers: signed up.
        project_id: project that they label.
        config: label config of the project.
        labels: what they answer.
        version: returns the model version that Label Studio serves now.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        project_id: int,
        config: LabelConfig,
        labels: SimulatedLabels,
        version: Callable[[], str],
    ) -> None:
        self._readers = list(readers)
        self._project_id = project_id
        self._config = config
        self._labels = labels
        self._version = version
        self._screens: dict[str, OpenTask] = {}
        self._turns = 0
        self._rankings = 0
        self.served: list[ServedImage] = []
        self.submissions: list[Submission] = []

    def turn(self) -> bool:
        """Let the next reader submit and be served; False when there was nothing to submit nor to serve.

        Raises:
            LabelStudioError: Label Studio refused a request, or served an image that was not uploaded.
        """
        reader = self._readers[self._turns % len(self._readers)]
        self._turns += 1
        task = self._screens.pop(reader.name, None)
        if task is not None:
            value = self._labels.label(reader.name, task.uri)
            self.submissions.append(reader.submit(self._project_id, task, value, self._config))
        return self._serve(reader) or task is not None

    def new_ranking(self) -> None:
        """Keep the tasks on the screens when a ranking comes; every second reader loads the page again.

        The others will submit with the prediction of the ranking before, as a page does that stays open.
        """
        self._rankings += 1
        for number, reader in enumerate(self._readers, start=self._rankings):
            if (task := self._screens.get(reader.name)) is None:
                continue
            if number % 2:
                self.served.append(ServedImage(reader.name, task.image_id, (self._version(),), holding=task.image_id))
            else:
                self._serve(reader, holding=task.image_id)

    def _serve(self, reader: Reader, holding: str | None = None) -> bool:
        before = self._version()
        task = reader.next_task(self._project_id, self._config)
        after = self._version()
        if task is None:
            return False
        self._screens[reader.name] = task
        # A publish may fall between the two requests: then either ranking may be the one that served.
        versions = (before,) if before == after else (before, after)
        self.served.append(ServedImage(reader.name, task.image_id, versions, holding))
        return True
