"""While a real network trains, Label Studio's events are answered in time, and none is lost."""

import time

import httpx
import pytest

from ml_backend.demo.options import draw_images
from tests.system.live import SMALL_NETWORK

pytestmark = pytest.mark.system

LIMIT_S = 1.0  # after which Label Studio hangs up
OPTIONS = SMALL_NETWORK | {"finetune": "full", "epochs": 80, "patience": 80}  # longer than 200 webhooks on any machine


def test_two_hundred_webhooks(live_project, backend):
    project = live_project(draw_images(60, seed=13, side=64), OPTIONS)
    project.label(project.first_of_each_class(8))
    project.start_training()
    project.wait_until(lambda status: status.progress is not None and status.progress.stage == "train")
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
    project.wait_until(lambda _: project.follower.trained > 0)
