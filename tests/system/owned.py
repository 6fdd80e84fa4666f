"""A project on the running services as its owner has it: what is served, what is stored, and the command line."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.config import Settings
from ml_backend.demo.options import DRAWN_CLASSES, DemoImage
from ml_backend.demo.project import RoundFollower
from ml_backend.demo.readers import file_name
from ml_backend.demo.services import Backend
from ml_backend.label_studio.connect import connect_project
from ml_backend.scheduling import QueueStatus
from ml_backend.schemas import PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore, RoundStore

WITHIN_S = 120.0


def page_of(backend: Backend, key: str, accept: str = "text/html") -> httpx.Response:
    """The page of a project, or its JSON."""
    auth = (backend.user, backend.password)
    answer = httpx.get(f"{backend.url}/projects/{key}", headers={"Accept": accept}, auth=auth, timeout=30)
    return answer.raise_for_status()


@dataclass(frozen=True)
class Owned:
    """A project, and what its owner can do with it."""

    project: Any  # LiveProject
    backend: Backend
    truth: dict[str, str]  # by the name of the uploaded file
    options: dict[str, object]

    @classmethod
    def of(
        cls, make: Callable[..., Any], backend: Backend, films: Sequence[DemoImage], options: dict[str, object]
    ) -> "Owned":
        """A new project with these images, connected with these options."""
        return cls(make(films, options), backend, {film.name: film.label for film in films}, options)

    @property
    def id(self) -> int:
        return int(self.project.id)

    @property
    def store(self) -> ProjectStore:
        rounds = RoundStore(Path(self.backend.environ["AL_DATA_DIR"]))
        return rounds.project(rounds.connection(self.id).project)

    def label(self, image_ids: Sequence[str]) -> None:
        """Answer for these images, in this order, with the truth."""
        uris = self.project.images()
        self.project.label({image_id: self.truth[file_name(uris[image_id])] for image_id in image_ids})

    def some_of_each_class(self, each: int) -> list[str]:
        """Images without a label: so many of every class."""
        of_class: dict[str, list[str]] = {name: [] for name in DRAWN_CLASSES}
        for image_id, uri in self.project.images().items():
            of_class[self.truth[file_name(uri)]].append(image_id)
        return [image_id for ids in of_class.values() for image_id in ids[:each]]

    def connect(self, **options: object) -> None:
        """Choose other options."""
        settings = Settings.load(
            label_studio_url=self.project.client.url,
            label_studio_api_key=self.backend.environ["AL_LABEL_STUDIO_API_KEY"],
            basic_auth_user=self.backend.user,
            basic_auth_pass=self.backend.password,
        )
        connect_project(settings, self.id, self.backend.url, self.options | options, self.project.client)

    def newest(self) -> tuple[RoundReport, PublishedRanking] | None:
        """The round that is served, and what is served of it."""
        published = self.store.published()
        return None if published is None else (self.store.report(published.round_id), published)

    def wait_until(self, there: Callable[[QueueStatus], bool], within_s: float = WITHIN_S) -> QueueStatus:
        """The state of the queue, once something is there; fails where a round fails."""
        deadline = time.monotonic() + within_s
        follower: RoundFollower = self.project.follower
        while not there(status := follower.poll(patient=True)):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within_s:.0f} s: {status}; served: {self.store.published()}")
            time.sleep(0.05)
        return status

    def wait_for(self, wanted: Callable[[RoundReport], bool] = lambda _: True) -> tuple[RoundReport, PublishedRanking]:
        """What is served, once it is of such a round and nothing runs any more."""

        def there(status: QueueStatus) -> bool:
            found = self.newest()
            return status.running is status.waiting is None and found is not None and wanted(found[0])

        self.wait_until(there)
        found = self.newest()
        assert found is not None
        return found

    def trained(self) -> tuple[RoundReport, PublishedRanking]:
        """Press the button, and wait for the network."""
        before = self.store.round_ids()
        self.project.start_training()
        return self.wait_for(lambda report: report.fit is not None and report.request.round_id not in before)

    def served_first(self, name: str) -> str:
        """What a reader gets who has no image on the screen yet; another would get that one again."""
        image = self.project.reader(name).next_task(self.id, self.project.config)
        assert image is not None
        return str(image.image_id)

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run ``ml-backend`` with the backend's environment, and more."""
        command = [sys.executable, "-m", "ml_backend", *words]
        return subprocess.run(
            command, env=self.backend.environ | environ, capture_output=True, text=True, timeout=300, check=False
        )
