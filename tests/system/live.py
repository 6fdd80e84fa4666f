"""A project on the running services: its readers' annotations, its owner's actions, and what is stored and served."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest

from ml_backend.demo.options import DRAWN_CLASSES
from ml_backend.demo.project import RoundFollower
from ml_backend.demo.readers import Reader, annotation_body, choice_result, file_name, open_task
from ml_backend.demo.services import Backend, Login
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import connect_project
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.processes import Service
from ml_backend.scheduling import QueueStatus
from ml_backend.schemas import PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore, RoundStore
from tests.command_line import run_cli

WITHIN_S = 120.0
SMALL_NETWORK: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    "finetune": "head",
    "image_side": 64,
    "passes": 5,
    "epochs": 5,
    "retrain_after": 1000,  # no round starts by itself
    "min_labels_per_class": 2,
}
"""Project options with which a round takes seconds."""


@dataclass(frozen=True)
class RunningLabelStudio:
    """A Label Studio to test against.

    Attributes:
        document_root: of its local files; None where that is not known.
    """

    url: str
    api_key: str
    admin: Login
    document_root: Path | None = None


@dataclass(frozen=True)
class LiveProject:
    """A project of the running Label Studio with images in it, connected to the running backend.

    Attributes:
        truth: name of an uploaded file -> class.
        options: project options of its connection.
        stack: closes what belongs to the project at the end of the module.
    """

    id: int
    config: LabelConfig
    client: LabelStudioClient
    follower: RoundFollower
    truth: Mapping[str, str]
    options: dict[str, object]
    backend: Backend
    services: tuple[Service, ...]
    stack: ExitStack

    @property
    def store(self) -> ProjectStore:
        return RoundStore(Path(self.backend.environ["AL_DATA_DIR"])).project(self.follower.project)

    def images(self) -> dict[str, str]:
        """Task id -> address of its image, of the tasks without a label."""
        return {str(task["id"]): task["data"]["image"] for task in self.client.unlabelled_tasks(self.id)}

    def first_of_each_class(self, count: int) -> list[str]:
        """``count`` unlabelled images of every class."""
        by_class: dict[str, list[str]] = {name: [] for name in DRAWN_CLASSES}
        for image_id, uri in self.images().items():
            if (name := self.truth.get(file_name(uri))) is not None:
                by_class[name].append(image_id)
        return [image_id for ids in by_class.values() for image_id in ids[:count]]

    def label(self, image_ids: Sequence[str]) -> None:
        """Annotate these images, in this order, with the truth."""
        uris = self.images()
        self.annotate({image_id: self.truth[file_name(uris[image_id])] for image_id in image_ids})

    def annotate(self, values: Mapping[str, str]) -> None:
        """Annotate these tasks regardless of the order, as the page does from the Data Manager."""
        query = {"project": str(self.id), "fields": "all", "page_size": "10000"}
        tasks = {str(task["id"]): task for task in self.client.request("GET", "/api/tasks", dict, query=query)["tasks"]}
        for number, value in values.items():
            task = open_task(tasks[number], self.config)
            body = annotation_body(self.id, task, choice_result(value, self.config, task.regions))
            self.client.request("POST", f"/api/tasks/{number}/annotations/", dict, body=body)

    def reader(self, name: str) -> Reader:
        """A new user of Label Studio, with a session until the end of the module."""
        invite = self.client.request("GET", "/api/invite", dict)["invite_url"]
        return self.stack.enter_context(Reader(name, self.client.url)).sign_up(str(invite))

    def first_served(self, name: str) -> str:
        """The image that Label Studio serves first to a new reader; a known one would get the open image again."""
        task = self.reader(name).next_task(self.id, self.config)
        assert task is not None
        return task.image_id

    def exported(self) -> list[dict[str, Any]]:
        """Every task with an annotation or a skip, as in Label Studio's JSON export."""
        path = f"/api/projects/{self.id}/export"
        return self.client.request("GET", path, list, query={"exportType": "JSON"})

    def start_training(self) -> None:
        """Press the button of that name."""
        [backend] = self.client.backends(self.id)
        self.client.train(int(backend["id"]))

    def connect(self, **options: object) -> list[str]:
        """Connect again, with these options changed."""
        return connect_project(self.backend.settings, self.id, self.backend.url, self.options | options, self.client)

    def newest(self) -> tuple[RoundReport, PublishedRanking]:
        """The round whose ranking is served, and that ranking."""
        published = self.store.published()
        assert published is not None
        return self.store.report(published.round_id), published

    def wait_until(self, condition: Callable[[QueueStatus], bool]) -> QueueStatus:
        """Wait until the condition holds for the state of the queue; fails where a round fails."""
        deadline = time.monotonic() + WITHIN_S
        while not condition(status := self.follower.poll(patient=True)):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {WITHIN_S:.0f} s: {status}; served: {self.store.published()}")
            time.sleep(0.05)
        return status

    def wait_for(
        self, condition: Callable[[RoundReport], bool] = lambda _: True
    ) -> tuple[RoundReport, PublishedRanking]:
        """Wait until no round runs or waits and the served one meets the condition; returns it."""
        self.wait_until(
            lambda status: (
                status.running is status.waiting is None
                and self.store.published() is not None
                and condition(self.newest()[0])
            )
        )
        return self.newest()

    def after(self, act: Callable[[], object]) -> tuple[RoundReport, PublishedRanking]:
        """Act, and wait for another ranking; returns its round."""
        _, before = self.newest()
        act()
        return self.wait_for(lambda _: self.newest()[1].version != before.version)

    def train(self) -> tuple[RoundReport, PublishedRanking]:
        """Press the button, and wait for the round of the new network."""
        before = self.store.round_ids()
        self.start_training()
        return self.wait_for(lambda report: report.fit is not None and report.request.round_id not in before)

    def page(self, accept: str = "text/html", below: str = "") -> httpx.Response:
        """The owner's page of this project, or one below it; or its JSON."""
        auth = (self.backend.user, self.backend.password)
        url = f"{self.backend.url}/projects/{self.follower.project}{below}"
        return httpx.get(url, headers={"Accept": accept}, auth=auth, timeout=60).raise_for_status()

    def run(self, *words: str, **environ: str) -> CompletedProcess[str]:
        """Run ``ml-backend`` with the backend's environment and ``environ``, in this process, on one thread."""
        # PyTorch is loaded where a test needs it. On some processors the last bits depend on the number of threads.
        from ml_backend.model.hardware import one_thread

        with one_thread():
            return run_cli(words, self.backend.environ | environ)
