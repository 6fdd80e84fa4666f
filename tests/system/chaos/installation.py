"""A small installation on a real Label Studio: Valkey, server, two workers, and a project whose readers label."""

import json
import os
import secrets
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from ml_backend.config import Settings
from ml_backend.demo.options import DRAWN_CLASSES, draw_images, shipped_config
from ml_backend.demo.project import create_project, upload_images
from ml_backend.demo.readers import Reader, ReadingRoom, SimulatedLabels, file_name
from ml_backend.demo.services import Backend, Worker
from ml_backend.errors import QueueError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import connect_project
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.schemas import ImportedVersion, ProjectKey, PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore, RoundStore
from tests.system.chaos.damage import SmallDisk, SteadyValkey, children
from tests.system.chaos.readers import SteadyReaders
from tests.system.chaos.relay import Relay

__all__ = ["RETRAIN_AFTER", "START_S", "Installation", "Ward"]

RETRAIN_AFTER = 5
OPTIONS: dict[str, object] = {
    "backbone": "mobilenet_v3_small",
    "weights": "none",
    "finetune": "full",
    "image_side": 32,
    "passes": 5,
    # Long enough that a moment in the middle of the training can be met.
    "epochs": 8,
    "min_epochs": 8,
    "batch_size": 5,
    "reserve": 40,
    "retrain_after": RETRAIN_AFTER,
    "min_labels_per_class": 2,
}
FIRST_LABELS = 4  # of each class, before the first round
READERS = 2
START_S = 240.0  # two workers load PyTorch beside a server


class Installation:
    """Everything but Label Studio, with a disk of its own; the workers reach Label Studio through a relay.

    Args:
        folder: for data and logs.
        url: of Label Studio.
        api_key: of its owner.
    """

    def __init__(self, folder: Path, url: str, api_key: str) -> None:
        self.url = url
        self.api_key = api_key
        self.disk = SmallDisk(folder / "data")
        self.relay = Relay(urlsplit(url).port or 80)
        self.valkey = SteadyValkey(folder / "valkey")
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> "Installation":
        with ExitStack() as stack:
            stack.enter_context(self.disk)
            stack.enter_context(self.relay)
            stack.enter_context(self.valkey.start()).wait()
            environ = {name: value for name, value in os.environ.items() if not name.startswith("AL_")} | {
                "AL_REDIS_URL": self.valkey.url,
                "AL_DATA_DIR": str(self.disk.folder),
                "AL_LABEL_STUDIO_URL": self.url,
                "AL_LABEL_STUDIO_API_KEY": self.api_key,
                "AL_DEVICE": "cpu",
                "OMP_NUM_THREADS": "1",
            }
            self.server = stack.enter_context(Backend(environ, self._folder / "server.log").start())
            behind_relay = self.server.environ | {"AL_LABEL_STUDIO_URL": self.relay.url}
            self.workers = [
                stack.enter_context(Worker(behind_relay, self._folder / f"worker-{number}.log").start())
                for number in range(2)
            ]
            for service in (self.server, *self.workers):
                service.wait(START_S)
            self.client = stack.enter_context(LabelStudioClient(self.url, self.api_key))
            self.redis = stack.enter_context(connect_redis(self.valkey.url))
            self.queue = RoundQueue(self.redis)
            self.store = RoundStore(self.disk.folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def worker_of(self, key: ProjectKey) -> tuple[Worker, int] | None:
        """The worker that runs the project's round, and its work-horse; None where none does."""
        generation = self.redis.hget(f"al:{key}", "running")
        if generation is None:
            return None
        name = self.redis.hget(f"rq:job:round-{key.id}-{key.created}-{int(generation)}", "worker_name")
        if name is None:
            return None
        pid = self.redis.hget(f"rq:worker:{name.decode()}", "pid")
        for worker in self.workers:
            if pid is not None and worker.pid == int(pid) and (horses := children(int(pid))):
                return worker, horses[0]
        return None

    def logs(self, lines: int = 12) -> str:
        """The ends of all logs, for a failure."""
        found = []
        for path in sorted(self._folder.glob("*.log")):
            found += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(found)


class Ward:
    """A project of the installation with readers who label.

    Args:
        here: the installation.
        images: of the project.
        seed: of images and answers.
    """

    def __init__(self, here: Installation, images: int, seed: int) -> None:
        self.here = here
        client = here.client
        films = draw_images(images, seed=seed, side=32)
        truth = {film.name: film.label for film in films}
        self.id, self.config = create_project(client, "Chaos", shipped_config("severity"))
        assert list(upload_images(client, here.api_key, self.id, self.config.image_key, films))[-1] == images
        first = self._first_labels(truth)
        settings = Settings.load(
            label_studio_url=here.url,
            label_studio_api_key=here.api_key,
            basic_auth_user=here.server.user,
            basic_auth_pass=here.server.password,
        )
        connect_project(settings, self.id, here.server.url, OPTIONS, client)
        self.key = here.store.connection(self.id).project
        invite = str(client.request("GET", "/api/invite", dict)["invite_url"])
        self._stack = ExitStack()
        readers = [
            self._stack.enter_context(Reader(f"chaos-{number}", client.url)).sign_up(invite)
            for number in range(READERS)
        ]
        answers = SimulatedLabels(truth, DRAWN_CLASSES, 0.0, seed)
        room = ReadingRoom(readers, self.id, self.config, answers, lambda: "")
        self.readers = SteadyReaders(room, first)
        self._stack.callback(self.readers.stop)

    def _first_labels(self, truth: dict[str, str]) -> dict[str, datetime]:
        region = {"from_name": self.config.from_name, "to_name": self.config.to_name, "type": "choices"}
        client = self.here.client
        tasks = {str(task["id"]): truth[file_name(task["data"]["image"])] for task in client.unlabelled_tasks(self.id)}
        chosen = [
            (n, v) for name in DRAWN_CLASSES for n, v in [x for x in tasks.items() if x[1] == name][:FIRST_LABELS]
        ]
        for number, value in chosen:
            body = {"result": [region | {"value": {"choices": [value]}}]}
            client.send("POST", f"/api/tasks/{number}/annotations/", body=body)
        return {number: datetime.now(UTC) for number, _ in chosen}

    @property
    def folder(self) -> ProjectStore:
        return self.here.store.project(self.key)

    def left(self) -> int:
        """Images that nobody has labelled."""
        return sum(1 for _ in self.here.client.unlabelled_tasks(self.id))

    def learned(self, round_id: str) -> set[str]:
        """The tasks with an annotation that a round learned from."""
        path = self.folder.folder / "learned" / f"{round_id}.json"
        return {name.partition(".")[0] for name in json.loads(path.read_bytes())["states"]}

    def order(self) -> list[str]:
        """The ranked tasks as Label Studio serves them: by their score under the project's model version."""
        query = {
            "project": str(self.id),
            "query": json.dumps({"ordering": ["tasks:predictions_score"]}),
            "fields": "all",
            "include": "id,predictions_score",
            "page_size": "10000",
        }
        tasks = self.here.client.request("GET", "/api/tasks", dict, query=query)["tasks"]
        return [str(task["id"]) for task in tasks if task["predictions_score"] is not None]

    def leave_an_expired_version(self) -> None:
        """Leave a version on record that no reader can hold any more: the next publish deletes it."""
        name = f"al-r000000-expired-{secrets.token_hex(3)}"
        task = next(iter(self.here.client.unlabelled_tasks(self.id)))
        left = {"task": int(task["id"]), "result": [], "score": 1.0, "model_version": name}
        expired = ImportedVersion(version=name, replaced_at=datetime.now(UTC) - timedelta(days=8))
        self.folder.set_imported_versions((expired, *self.folder.imported_versions()))
        self.here.client.import_predictions(self.id, [left])

    def versions(self) -> dict[str, int]:
        """The versions in Label Studio, each with its predictions: all are ours."""
        return self.here.client.model_versions(self.id)

    def served(self) -> tuple[RoundReport, PublishedRanking] | None:
        """The round that is wholly published and that Label Studio serves; None while there is none."""
        published = self.folder.published()
        if published is None or "delete" not in published.seconds:
            return None
        report = self.folder.report(published.round_id)
        if self.here.client.project(self.id).get("model_version") != published.version:
            return None
        return report, published

    def is_quiet(self) -> bool:
        """Whether no round runs, waits or is tried again."""
        try:
            status = self.here.queue.status(self.key)
        except QueueError:
            return False
        return status.running is None and status.waiting is None and status.next_attempt is None

    def await_order(self, within_s: float) -> tuple[RoundReport, PublishedRanking]:
        """Wait until the served order has learned from all labels but fewer than start a round, and nothing runs."""
        deadline = time.monotonic() + within_s
        while True:
            if self.is_quiet() and (found := self.served()) is not None:
                unlearned = self.readers.labelled().keys() - self.learned(found[1].round_id)
                if len(unlearned) < RETRAIN_AFTER:
                    return found
            if time.monotonic() > deadline:
                raise AssertionError(self._why())
            time.sleep(0.25)

    def close(self) -> None:
        self._stack.close()
        self.here.client.send("DELETE", f"/api/projects/{self.id}/")

    def _why(self) -> str:
        published = self.folder.published()
        learned = self.learned(published.round_id) if published else set()
        return (
            f"no complete order in time. Labelled {len(self.readers.labelled())}, learned {len(learned)}, served "
            f"{published and published.version} of {self.versions()}; {self.here.queue.status(self.key)!r}"
            f"\n{self.here.logs()}"
        )
