"""No event arrives, and no label is lost: the reconciler and a top-up on a real Label Studio and a real Valkey."""

import io
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image
from redis import Redis

from ml_backend.config import Settings
from ml_backend.demo.options import DemoImage
from ml_backend.demo.project import create_project, upload_images
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import read_label_config
from ml_backend.processes import Valkey
from ml_backend.rounds.live import run_live_round
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.scheduling.reconciler import Reconciler
from ml_backend.schemas import Connection, ProjectKey
from ml_backend.storage import RoundStore
from tests.system.live import RunningLabelStudio
from tests.system.recording import RecordingBackend

pytestmark = pytest.mark.system
IMAGES = 12
OPTIONS = {
    "batch_size": 2,
    "reserve": 4,
    "retrain_after": 3,
    "backbone": "resnet18",
    "weights": "none",
    "image_side": 32,
}


class ProjectContext:
    """A project without events to the backend."""

    def __init__(self, client: LabelStudioClient, redis: Redis, settings: Settings, key: ProjectKey) -> None:
        self.client = client
        self.settings = settings
        self.key = key
        self.store = RoundStore(settings.data_dir)
        self.queue = RoundQueue(redis)
        self.reconciler = Reconciler(settings, self.store, self.queue)

    def label(self, image_id: str, choice: str) -> int:
        value = {"from_name": "severity", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        path = f"/api/tasks/{image_id}/annotations/"
        return int(self.client.request("POST", path, dict, body={"result": [value]})["id"])

    def served(self) -> str:
        """The task that Label Studio hands a reader next."""
        path, body = "/api/dm/actions", {"project": str(self.key.id)}
        query = {"id": "next_task", "project": str(self.key.id)}
        return str(self.client.request("POST", path, dict, query=query, body=body)["id"])


def image(shade: int) -> bytes:
    """Another one for each shade: the same bytes twice would be one image."""
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def world(label_studio: RunningLabelStudio, valkey: Valkey, tmp_path: Path) -> Iterator[ProjectContext]:
    settings = Settings.load(
        redis_url=valkey.url,
        data_dir=tmp_path,
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.api_key,
        basic_auth_user="al",
        basic_auth_pass="pass-word",
        device="cpu",
    )
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client, connect_redis(valkey.url) as redis:
        config = read_label_config("severity")
        project_id, read = create_project(client, "test reconcile", config)
        images = [
            DemoImage(name=f"{number}.png", content=image(number), label="", patient_id=None)
            for number in range(IMAGES)
        ]
        assert list(upload_images(client, label_studio.api_key, project_id, read.image_key, images))[-1] == IMAGES
        project = client.patch_project(
            project_id, {"sampling": "Uncertainty sampling", "min_annotations_to_start_training": 1}
        )
        key = ProjectKey(id=project_id, created=int(datetime.fromisoformat(project["created_at"]).timestamp()))
        world = ProjectContext(client, redis, settings, key)
        world.store.connect(
            Connection(project=key, hostname=label_studio.url, label_config=config, extra_params=OPTIONS)
        )
        yield world
        world.reconciler.stop()
        world.queue.forget(key)
        if client.request("GET", "/api/projects/", dict, query={"ids": str(project_id)})["count"]:
            client.send("DELETE", f"/api/projects/{project_id}/")


def test_labels_that_no_event_told_of(world: ProjectContext) -> None:
    """A first round, three changes, the round that they earned, and then the project is gone."""
    run_live_round(world.settings, world.key, "connected")
    published = world.store.project(world.key).published()
    assert published is not None
    assert published.annotations == 0
    first, second, third = published.image_ids[:3]

    world.reconciler.look()
    assert world.queue.status(world.key).waiting is None

    changed, deleted = world.label(first, "normal"), world.label(second, "severe")
    world.reconciler.look()
    assert (world.queue.status(world.key).changes, world.queue.status(world.key).waiting) == (2, None)

    world.client.send("DELETE", f"/api/annotations/{deleted}/")
    world.label(second, "normal")
    world.label(third, "normal")
    world.client.send("PATCH", f"/api/annotations/{changed}/", body={"ground_truth": True})
    world.reconciler.look()
    assert (world.queue.status(world.key).changes, world.queue.status(world.key).waiting) == (3, "labels")

    world.client.send("DELETE", f"/api/projects/{world.key.id}/")
    world.reconciler.look()
    assert world.store.connections() == []


def test_readers_who_outrun_the_batch_go_on_in_the_saved_order(world: ProjectContext) -> None:
    """All twelve images are served in the order of the one round, though it published only six of them."""
    report, published = run_live_round(world.settings, world.key, "connected")
    assert len(published.image_ids) == 6
    seen = []
    for number in range(IMAGES):
        seen.append(world.served())
        world.label(seen[-1], "normal")
        if number in {4, 9}:
            run_live_round(world.settings, world.key, "topup")

    assert seen == list(report.ranking.image_ids)
    assert world.store.project(world.key).round_ids() == ["r000001"]


def test_what_somebody_did_to_the_published_order_is_undone(world: ProjectContext, recorder: RecordingBackend) -> None:
    """The Data Manager's "Delete predictions", a re-import of exported tasks, and another model version."""
    backend = {"url": recorder.url, "project": world.key.id, "title": "Active learning"}
    credentials = {"auth_method": "BASIC_AUTH", "basic_auth_user": "al", "basic_auth_pass": "pass-word"}
    world.client.add_backend(backend | credentials)
    _, published = run_live_round(world.settings, world.key, "connected")
    store, client, number = world.store.project(world.key), world.client, world.key.id

    def one_prediction(version: str) -> dict[str, object]:
        return {"task": int(published.image_ids[0]), "result": [], "score": 0.5, "model_version": version}

    def delete_predictions() -> None:
        chosen = {"selectedItems": {"all": False, "included": [int(one) for one in served.image_ids[:3]]}}
        query = {"id": "delete_tasks_predictions", "project": str(number)}
        client.send("POST", "/api/dm/actions", query=query, body=chosen)

    def import_again() -> None:
        client.import_predictions(number, [one_prediction(served.version)])

    def import_over() -> None:
        query = {"id": "delete_tasks_predictions", "project": str(number)}
        client.send("POST", "/api/dm/actions", query=query, body={"selectedItems": {"all": True, "excluded": []}})
        client.import_predictions(number, [one_prediction(served.version)] * len(served.image_ids))

    def choose_another_version() -> None:
        client.import_predictions(number, [one_prediction("my-resnet")])
        client.patch_project(number, {"model_version": "my-resnet"})

    def choose_none() -> None:
        client.patch_project(number, {"model_version": ""})

    served = published
    for fault in (delete_predictions, import_again, import_over, choose_another_version, choose_none):
        fault()
        world.reconciler.look()
        assert world.queue.status(world.key).waiting == "topup", fault.__name__
        run_live_round(world.settings, world.key, "topup")
        world.queue.forget(world.key)
        now = store.published()
        assert now is not None
        assert (now.image_ids, now.round_id) == (published.image_ids, published.round_id)
        assert client.model_versions(number)[now.version] == len(now.image_ids)
        assert client.project(number)["model_version"] == now.version
        assert world.served() == now.image_ids[0]
        world.reconciler.look()
        assert world.queue.status(world.key).waiting is None, fault.__name__
        served = now
    assert client.model_versions(number)["my-resnet"] == 1

    for row in client.backends(number):
        client.delete_backend(int(row["id"]))
    client.add_backend(backend | {"title": "SAM"})
    choose_another_version()
    world.reconciler.look()
    assert world.queue.status(world.key).waiting is None, "the owner has removed this backend, and has another"
