"""A Label Studio project with the demo's images in it.

Readers label, rounds run, and the view shows both, until enough rankings came from a trained network.
What is decided before readers begin: the images, the question about them, the options of the project.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import httpx

from ml_backend.config import ProjectOptions
from ml_backend.demo.images import DRAWN_CLASSES, Film, draw_films, labels_in, read_films
from ml_backend.demo.options import DemoOptions, check_enough, project_options
from ml_backend.demo.order_check import Served, compare
from ml_backend.demo.readers import file_name
from ml_backend.demo.view import View
from ml_backend.errors import LabelStudioError, RoundError, SettingsError
from ml_backend.label_studio.client import FAILURES, LABEL_STUDIO, LabelStudioClient, Route
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.processes import Service
from ml_backend.scheduling import Progress, QueueStatus
from ml_backend.schemas import AFTER_A_ROUND, STAGES, PublishedRanking, RoundReport

BATCH = 40  # files in an upload: each request stays far below Label Studio's limit of 250 MB
TIMEOUT_S = 120.0


def shipped_config(name: str) -> str:
    """The XML of a label config that comes with this project, ``severity`` for example.

    Raises:
        SettingsError: it is not there.
    """
    package = Path(__file__).parents[1]
    # Beside the package in a checkout, inside it in an installed wheel.
    for folder in (package.parent / "label_studio_config", package / "label_studio_config"):
        if (path := folder / f"{name}.xml").exists():
            return path.read_text()
    raise SettingsError(f"label_studio_config/{name}.xml is not in {package.parent}: run from a checkout")


def create_project(client: LabelStudioClient, title: str, label_config: str) -> tuple[int, LabelConfig]:
    """Make a project, and read its question back from what Label Studio kept.

    Raises:
        LabelStudioError: Label Studio refused.
    """
    body = {"title": title, "label_config": label_config}
    project = client.request("POST", "/api/projects/", dict, body=body)
    return int(project["id"]), parse_label_config(project["label_config"])


def upload(
    client: LabelStudioClient,
    token: str,
    project_id: int,
    image_key: str,
    films: Sequence[Film],
) -> Iterator[int]:
    """Upload the films and make a task of each, in their order, with the patient but without the label.

    Args:
        client: of the project's owner.
        token: legacy token of the same user.
        project_id: of a project without these films.
        image_key: under which the image stands in a task's data.
        films: with names that are unique.

    Yields:
        How many of the films are uploaded so far, after each batch.

    Raises:
        LabelStudioError: Label Studio refused, or keeps fewer than were sent.
    """
    for start in range(0, len(films), BATCH):
        batch = films[start : start + BATCH]
        uploaded = _upload_files(client, token, project_id, batch)
        tasks = [{"data": _task_data(film, image_key, uploaded[film.name])} for film in batch]
        path = f"/api/projects/{project_id}/import"
        made = client.request("POST", path, dict, query={"commit_to_project": "true"}, body=tasks)
        if made.get("task_count") != len(batch):
            raise LabelStudioError(f"project {project_id} made {made.get('task_count')} tasks of {len(batch)} images")
        yield start + len(batch)


def _task_data(film: Film, image_key: str, uri: str) -> dict[str, str]:
    return {image_key: uri} | ({} if film.patient_id is None else {"patient_id": film.patient_id})


def _upload_files(client: LabelStudioClient, token: str, project_id: int, films: Sequence[Film]) -> dict[str, str]:
    """Upload without making tasks of them; name -> the address that Label Studio gives the file."""
    url = f"{client.url}/api/projects/{project_id}/import"
    files = [(film.name, (film.name, film.content)) for film in films]
    headers = {"Authorization": f"Token {token}"}
    route, asked = Route(url, LABEL_STUDIO), f"{len(films)} images could not be uploaded to {url}"
    try:
        with route.client() as http:
            answer = http.post(
                url, params={"commit_to_project": "false"}, files=files, headers=headers, timeout=TIMEOUT_S
            ).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise LabelStudioError(f"{asked}: {error}") from error
    except FAILURES as error:
        raise route.unreachable(error, asked) from error
    query = {"ids": json.dumps(answer.json()["file_upload_ids"])}
    rows = client.request("GET", f"/api/projects/{project_id}/file-uploads", list, query=query)
    uploaded = {file_name(row["file"]): f"/data/{row['file']}" for row in rows}
    if missing := {film.name for film in films} - set(uploaded):
        raise LabelStudioError(
            f"project {project_id} lost {len(missing)} of {len(films)} images: {sorted(missing)[:3]}"
        )
    return uploaded


PAUSE_S = 0.2


class Room(Protocol):
    """What is asked of the readers."""

    @property
    def served(self) -> Sequence[Served]: ...

    def turn(self) -> bool: ...

    def new_ranking(self) -> None: ...


class Rounds(Protocol):
    """What is asked about the rounds."""

    @property
    def rounds(self) -> Sequence[tuple[RoundReport, PublishedRanking]]: ...

    @property
    def trained(self) -> int: ...

    @property
    def rankings(self) -> Mapping[str, Sequence[str]]: ...

    def is_newer(self, progress: Progress) -> bool: ...

    def poll(self) -> QueueStatus: ...


class _Stage(NamedTuple):
    name: str
    total: int


class RoundBars:
    """The running round's stages as bars, and a line for every published one."""

    def __init__(self, view: View, announced: int = 0) -> None:
        self._view = view
        self._stage: _Stage | None = None
        self._announced = announced

    def show(self, follower: Rounds, status: QueueStatus) -> bool:
        """Draw what is known now; True when a ranking has come out since the last time."""
        news = self._announced < len(follower.rounds)
        if news:
            self._end_stage()
            self._view.clear()
        for index in range(self._announced, len(follower.rounds)):
            self._view.say(_announcement(follower, index))
        self._announced = len(follower.rounds)
        self._draw(follower, status.progress)
        return news

    def _draw(self, follower: Rounds, progress: Progress | None) -> None:
        # A round whose ranking is out already only tidies up, or fills the caches of the first training.
        if progress is None or not (follower.is_newer(progress) or progress.stage in AFTER_A_ROUND):
            self._end_stage()
            return
        name = STAGES.get(progress.stage, progress.stage)
        if self._stage is not None and self._stage.name != name:
            self._end_stage()
        self._stage = _Stage(name, progress.total)
        self._view.step(name, progress.done, progress.total)

    def _end_stage(self) -> None:
        # The last report of a stage is seldom its end: training stops early, and we look now and then.
        if self._stage is not None:
            self._view.step(self._stage.name, self._stage.total, self._stage.total)
        self._stage = None


def label_until(
    rounds: int,
    *,
    retrain_after: int,
    room: Room,
    follower: Rounds,
    services: list[Service],
    view: View,
) -> None:
    """Let the readers label until so many rankings of a trained network are published and partly served.

    While a round runs the readers go on, by half of what starts the next one at most: that they work under the old
    order meanwhile is the point, but every ranking shall be served from.

    Raises:
        RoundError: a round failed or hangs, or the images ran out before the rounds were through.
        ServiceError: a service has ended.
    """
    bars = RoundBars(view)
    while True:
        status = follower.poll()
        for service in services:
            service.check()
        if bars.show(follower, status):
            # Readers keep the image on the screen: the one exception to the new order.
            room.new_ranking()
        # One short of the next round: the last ranking has been served from, and no round is under way at the end.
        if follower.trained >= rounds and not status.running and status.changes >= retrain_after - 1:
            return
        if not follower.rounds or _shall_wait(status, retrain_after):
            time.sleep(PAUSE_S)
            continue
        if not room.turn():
            raise RoundError(
                f"the images ran out after {follower.trained} of {rounds} rounds: give more images or fewer ROUNDS"
            )
        show_labels(view, status.changes, retrain_after)
        _show_readers(view, room, follower)


def _shall_wait(status: QueueStatus, retrain_after: int) -> bool:
    ahead = retrain_after // 2
    # Changes are counted anew when the worker takes a round.
    return status.changes >= (ahead if status.running else retrain_after + ahead)


def _announcement(follower: Rounds, index: int) -> str:
    report, published = follower.rounds[index]
    labels = ", ".join(f"{count} {name}" for name, count in report.labels_per_class.items())
    if report.fit is not None:
        how = f"validation accuracy {report.fit.validation_accuracy:.2f}"
    elif report.base is not None:
        how = f"ranked anew by {report.ranking.strategy}, with the network of {report.base}"
    else:
        how = "random order, since a class has too few labels for a network"
    images = len(published.image_ids)
    return f"round {index + 1} published: labels {labels}; {how}; the next {images} images are in order"


def show_labels(view: View, changes: int, retrain_after: int) -> None:
    """Draw how many labels of those that start the next round are given; not into a log, it changes all the time."""
    if view.is_live:
        view.step("labels until the next round", min(changes, retrain_after), retrain_after)


def _show_readers(view: View, room: Room, follower: Rounds) -> None:
    results = compare(room.served, follower.rankings).values()
    in_order, served = sum(r.in_order for r in results), sum(r.served for r in results)
    if view.is_live:
        view.step("served in exactly the chosen order", in_order, served)


CONFIGS = ("severity", "normal_diseased")  # the first that knows all labels is taken


@dataclass(frozen=True, slots=True)
class Question:
    """A label config and the classes that readers tell apart by it, least severe first."""

    xml: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is needed to make the project and to label its images."""

    films: Sequence[Film]
    question: Question
    extra_params: dict[str, object]
    options: ProjectOptions


def choose_question(options: DemoOptions) -> Question:
    """The shipped label config that asks for the visitor's labels; that of the drawn films where there are none.

    Raises:
        SettingsError: the visitor's table cannot be read.
    """
    labels = set(DRAWN_CLASSES) if options.labels is None else labels_in(options.labels)
    questions = [_question(name) for name in CONFIGS]
    # Where none fits, the first one says which of the labels it does not know.
    return next((question for question in questions if labels <= set(question.classes)), questions[0])


def visitors_films(options: DemoOptions, question: Question) -> list[Film] | None:
    """The visitor's images; None where films are to be drawn.

    Raises:
        SettingsError: names every bad row.
    """
    if options.images is None or options.labels is None:
        return None
    return read_films(options.images, options.labels, question.classes)


def make_plan(options: DemoOptions, question: Question, films: Sequence[Film] | None, view: View) -> Plan:
    """Decide the rest, and draw the films where the visitor gave none.

    Raises:
        SettingsError: an option is wrong, or the images do not suffice for the rounds.
    """
    # Imports torch, which takes seconds.
    from ml_backend.model.backbones import weights_file  # noqa: PLC0415

    backbone = os.environ.get("AL_BACKBONE") or "resnet50"
    extra_params = project_options(options, weights_file(backbone, "imagenet") is not None, os.environ)
    if extra_params["weights"] == "none" and "AL_WEIGHTS" not in os.environ:
        view.say(f"ImageNet weights of {backbone} are not on this machine: the demo goes on with untrained features")
    if films is None:
        view.step("drawing images", 0, None)
        films = draw_films(options.count, options.seed, options.side)
        view.step("drawing images", 1, 1)
    resolved = ProjectOptions.resolve(extra_params, parse_label_config(question.xml).attributes)
    check_enough(films, question.classes, options, resolved)
    return Plan(films, question, extra_params, resolved)


def _question(name: str) -> Question:
    xml = shipped_config(name)
    return Question(xml, training_classes(parse_label_config(xml), ProjectOptions.resolve(environ={})))
