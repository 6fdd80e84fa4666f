"""Simulated readers: Label Studio users of their own who send what Label Studio's page sends.

They see what a reader sees: the next task of "Label All Tasks", through a session and not through an API key. What
they answer comes from a truth that neither Label Studio nor the backend ever gets.

What the page sends is recorded in ``tests/recorded/label_studio_page.json``, which a test holds against Chromium.
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

from ml_backend.demo.order_check import Served
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
class ServedImage:
    """The task that a reader has on the screen.

    Attributes:
        image_id: of the task.
        uri: of the image.
        prediction_id: of the prediction that the page opened the task from, which may be empty; None without one.
        regions: the result that the page opened with: of that prediction, or of the earlier answer.
        lock_id: of the reservation; Label Studio refuses a second answer under the same one.
        annotation_id: of the earlier answer that the reader looks at again; None for an image without an answer.
        spent_s: what was measured of the earlier answer.
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
    """One label that Label Studio has accepted."""

    reader: str
    image_id: str
    value: str
    sent_at: datetime
    answered_at: datetime


def opened(task: Mapping[str, Any], config: LabelConfig) -> ServedImage:
    """The screen that the page makes of a task without an answer: from the newest prediction that comes with it."""
    image = read_image(dict(task), config)
    newest: Region = max(task["predictions"], key=lambda one: int(one["id"]), default={"id": None, "result": []})
    return ServedImage(
        image.id,
        image.uri,
        prediction_id=newest["id"],
        regions=tuple({"id": _region_id(), "origin": "prediction"} | region for region in newest["result"]),
        lock_id=task.get("unique_lock_id"),
    )


def page_body(project_id: int, image: ServedImage, result: Sequence[Region]) -> dict[str, object]:
    """What the page sends of every answer; a submission and a skip add to it, a draft is only saved after 5 s."""
    now = datetime.now(UTC)
    return {
        "lead_time": image.spent_s + (now - image.loaded_at).total_seconds(),
        "result": list(result),
        "draft_id": 0,
        "parent_prediction": image.prediction_id,
        "parent_annotation": None,
        "started_at": image.loaded_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "project": str(project_id),
    }


def chosen(answer: str, config: LabelConfig, before: Sequence[Region] = ()) -> list[Region]:
    """The result once a reader has chosen a class: the region that was there, changed, or a new one."""
    value = {"choices": [answer]}
    was = next((region for region in before if region["from_name"] == config.from_name), None)
    if was is None:
        names = {"from_name": config.from_name, "to_name": config.to_name, "type": "choices"}
        return [{"value": value, "id": _region_id(), "origin": "manual"} | names]
    changed = was["origin"] == "prediction" and was["value"] != value
    return [was | {"value": value, "origin": "prediction-changed" if changed else was["origin"]}]


def _region_id() -> str:
    return secrets.token_urlsafe(8)[:10]


def file_name(uri: str) -> str:
    """The name under which a file was uploaded, from the address that Label Studio gives it."""
    return _UPLOAD_PREFIX.sub("", PurePosixPath(urlsplit(uri).path).name)


class Answers:
    """What a reader answers: the truth, or in some cases a neighbouring class.

    Args:
        truth: uploaded file name -> class.
        classes: ordinal, least severe first.
        mistakes: share of the images that a reader gets wrong, 0 to 1.
        seed: the same seed, reader and image give the same answer.
    """

    def __init__(self, truth: Mapping[str, str], classes: Sequence[str], mistakes: float, seed: int) -> None:
        if not 0.0 <= mistakes <= 1.0:
            raise ValueError(f"mistakes is a share from 0 to 1, got {mistakes}")
        self._truth = dict(truth)
        self._classes = tuple(classes)
        self._mistakes = mistakes
        self._seed = seed

    def of(self, reader: str, uri: str) -> str:
        """The reader's answer about the image at ``uri``.

        Raises:
            LabelStudioError: the image is none of those that were uploaded.
        """
        name = file_name(uri)
        if name not in self._truth:
            raise LabelStudioError(f"Label Studio served {uri!r}, which is none of the {len(self._truth)} images")
        chance = random.Random(f"{self._seed} {reader} {name}")
        at = self._classes.index(self._truth[name])
        if chance.random() >= self._mistakes:
            return self._classes[at]
        return self._classes[chance.choice([i for i in (at - 1, at + 1) if 0 <= i < len(self._classes)])]


class Reader:
    """One signed-up user with a browser session.

    Args:
        name: what the records call the reader.
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
        """Become a user through the form behind an invitation.

        Args:
            invite: the path that ``GET /api/invite`` names.

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

    def next_image(self, project_id: int, config: LabelConfig) -> ServedImage | None:
        """Press "Label All Tasks", or take what comes after a submission; None where nothing is left."""
        path = f"/api/dm/actions?id=next_task&project={project_id}"
        answer = self._send("POST", path, json={"project": str(project_id)}, accept=404)
        if answer.status_code == 404:
            return None
        return opened(answer.json(), config)

    def submit(self, project_id: int, image: ServedImage, value: str, config: LabelConfig) -> Submission:
        """Choose a class and submit.

        Raises:
            RequestRefused: Label Studio refused the answer.
        """
        sent_at = datetime.now(UTC)
        self._answer(project_id, image, page_body(project_id, image, chosen(value, config, image.regions)))
        return Submission(self.name, image.image_id, value, sent_at, datetime.now(UTC))

    def skip(self, project_id: int, image: ServedImage) -> None:
        """Press Skip.

        Raises:
            RequestRefused: Label Studio refused it.
        """
        self._answer(project_id, image, page_body(project_id, image, image.regions) | {"was_cancelled": True})

    def look_back(self, project_id: int, image: ServedImage, config: LabelConfig) -> ServedImage:
        """Go back to an image that this reader has answered or skipped.

        Raises:
            LabelStudioError: this reader has given no answer to it.
        """
        path = f"/api/tasks/{image.image_id}?interaction=labelstream&project={project_id}"
        task = self._send("GET", path).json()
        mine = [one for one in task["annotations"] if one["completed_by"]["email"] == self.email]
        if not mine:
            raise LabelStudioError(f"{self.name} has not answered image {image.image_id}")
        earlier = mine[-1]
        return ServedImage(
            image.image_id,
            read_image(task, config).uri,
            prediction_id=earlier["parent_prediction"],
            regions=tuple(earlier["result"]),
            annotation_id=int(earlier["id"]),
            spent_s=float(earlier["lead_time"] or 0.0),
        )

    def update(self, project_id: int, image: ServedImage, value: str, config: LabelConfig) -> ServedImage:
        """Change the answer to an image that was looked back at; the page then loads it again.

        Raises:
            RequestRefused: Label Studio refused the change.
        """
        path = f"/api/annotations/{image.annotation_id}?taskID={image.image_id}&project={project_id}"
        self._send("PATCH", path, json=page_body(project_id, image, chosen(value, config, image.regions)))
        return self.look_back(project_id, image, config)

    def _answer(self, project_id: int, image: ServedImage, body: Mapping[str, object]) -> None:
        lock = {} if image.lock_id is None else {"unique_id": image.lock_id}
        self._send("POST", f"/api/tasks/{image.image_id}/annotations?project={project_id}", json={**body, **lock})

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        # Label Studio on sqlite answers 500 where another writer holds the database. Asking once more does no harm;
        # a submission is not sent again, since it might be stored twice.
        attempts = ATTEMPTS if method == "GET" or "id=next_task" in path else 1
        for attempt in range(attempts):
            try:
                answer = self._http.request(method, path, json=json, data=data, headers={"X-CSRFToken": self._csrf()})
            except httpx.TransportError as error:
                raise self._route.unreachable(
                    error, f"{self.name} got no answer to {method} {self.url}{path}"
                ) from error
            if answer.status_code != 500:
                break
            if attempt + 1 < attempts:
                time.sleep(PAUSE_S)
        # A form that is accepted redirects; one that is refused comes back as a page with status 200.
        if answer.status_code >= 400 and answer.status_code != accept:
            raise RequestRefused(
                f"{self.name}: Label Studio answered {answer.status_code} to {method} {self.url}{path}: "
                f"{answer.text[:EXCERPT]}",
                answer.status_code,
            )
        return answer


class ReadingRoom:
    """Readers who take turns: each submits the image on the screen and is served the next one.

    So every reader holds one image all the time, as with open browsers, also while a new ranking comes.

    Args:
        readers: signed up.
        project_id: what they label.
        config: of the project.
        answers: what they say.
        version: names the version of the ranking that Label Studio serves now.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        project_id: int,
        config: LabelConfig,
        answers: Answers,
        version: Callable[[], str],
    ) -> None:
        self._readers = list(readers)
        self._project_id = project_id
        self._config = config
        self._answers = answers
        self._version = version
        self._screens: dict[str, ServedImage] = {}
        self._turns = 0
        self._rankings = 0
        self.served: list[Served] = []
        self.submissions: list[Submission] = []

    def turn(self) -> bool:
        """The next reader submits and is served; False when there was nothing to submit nor to serve.

        Raises:
            LabelStudioError: Label Studio refused something, or served an image that is none of ours.
        """
        reader = self._readers[self._turns % len(self._readers)]
        self._turns += 1
        submitted = self._submit(reader)
        return self._serve(reader) or submitted

    def new_ranking(self) -> None:
        """Keep what is on the screens when a ranking comes: every second reader loads the page again, the rest do not.

        Those who do not will answer from the prediction of the ranking before, as a page does that stays open.
        """
        self._rankings += 1
        for number, reader in enumerate(self._readers, start=self._rankings):
            if (image := self._screens.get(reader.name)) is None:
                continue
            if number % 2:
                self.served.append(Served(reader.name, image.image_id, (self._version(),), holding=image.image_id))
            else:
                self._serve(reader, holding=image.image_id)

    def finish(self) -> None:
        """Let every reader submit the image on the screen and take no other."""
        for reader in self._readers:
            self._submit(reader)

    def _submit(self, reader: Reader) -> bool:
        if reader.name not in self._screens:
            return False
        image = self._screens.pop(reader.name)
        value = self._answers.of(reader.name, image.uri)
        self.submissions.append(reader.submit(self._project_id, image, value, self._config))
        return True

    def _serve(self, reader: Reader, holding: str | None = None) -> bool:
        before = self._version()
        image = reader.next_image(self._project_id, self._config)
        after = self._version()
        if image is None:
            return False
        self._screens[reader.name] = image
        # A publish may fall between the two: then either ranking may have decided.
        versions = (before,) if before == after else (before, after)
        self.served.append(Served(reader.name, image.image_id, versions, holding))
        return True
