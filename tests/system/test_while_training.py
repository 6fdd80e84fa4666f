"""While a real network trains, Label Studio's events are answered in time, and none is lost."""

import time

import httpx
import pytest

from ml_backend.demo.options import DRAWN_CLASSES, draw_images
from ml_backend.demo.readers import file_name

pytestmark = pytest.mark.system

LIMIT_S = 1.0  # after which Label Studio hangs up
OPTIONS: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    "finetune": "full",
    "image_side": 64,
    "passes": 5,
    # Longer than 200 webhooks take, on any machine.
    "epochs": 80,
    "patience": 80,
    "retrain_after": 1000,
    "min_labels_per_class": 2,
}


def wait_for_stage(project, stage: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        progress = project.follower.poll().progress
        if progress is not None and progress.stage == stage:
            return
        assert time.monotonic() < deadline, progress
        time.sleep(0.05)


def test_two_hundred_webhooks(live_project, backend):
    films = draw_images(60, seed=13, side=64)
    truth = {film.name: film.label for film in films}
    project = live_project(films, OPTIONS)
    values = {number: truth[file_name(uri)] for number, uri in project.images().items()}
    project.label({n: v for name in DRAWN_CLASSES for n, v in [x for x in values.items() if x[1] == name][:8]})
    project.start_training()
    wait_for_stage(project, "train")
    row = project.client.project(project.id)
    event = {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": 1},
        "project": {name: row[name] for name in ("id", "created_at", "min_annotations_to_start_training")},
    }
    before = project.follower.poll().changes

    seconds = []
    for _ in range(200):
        begin = time.perf_counter()
        answer = httpx.post(f"{backend.url}/webhook", json=event, auth=(backend.user, backend.password), timeout=30)
        seconds.append(time.perf_counter() - begin)
        assert answer.status_code == 200

    status = project.follower.poll()
    assert status.progress is not None
    assert status.progress.stage == "train", "the training was over before the events were"
    assert status.changes == before + 200
    assert max(seconds) < LIMIT_S, sorted(seconds)[-5:]
    deadline = time.monotonic() + 120
    while project.follower.trained == 0:  # and the round comes to its end all the same
        assert time.monotonic() < deadline, project.follower.poll()
        project.follower.poll()
        time.sleep(0.2)
