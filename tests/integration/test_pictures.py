"""What a worker shows of a round once it has ended, on a real Valkey."""

import base64
import io
from itertools import count
from types import SimpleNamespace

import pytest
from PIL import Image

from ml_backend.config import Settings
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.scheduling import worker
from ml_backend.schemas import Connection, Ranking
from ml_backend.storage import RoundStore
from tests.fakes import NOON, make_report
from tests.integration.processes import PROJECT
from tests.unit.label_studio.studio import LABEL_CONFIG


@pytest.mark.parametrize("waits", [True, False])
def test_pictures_give_way_to_a_round_that_waits(queue, redis, tmp_path, monkeypatch, waits):
    """After 10 s: every look at the clock takes 4 s, the first of them when the round has ended."""
    file, clock = io.BytesIO(), count(0.0, 4.0)
    Image.new("L", (64, 64)).save(file, "PNG")
    data = {"image": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}
    settings = Settings(data_dir=tmp_path, label_studio_url="http://127.0.0.1:1", label_studio_api_key="k")
    names = ("1", "2", "3", "4")
    ranking = Ranking(strategy="x", image_ids=names, scores=(0.5,) * 4, batch_size=4)
    report = make_report().model_copy(update={"ranking": ranking})
    store = RoundStore(tmp_path)
    store.connect(Connection(project=PROJECT, hostname="http://127.0.0.1:1", label_config=LABEL_CONFIG))
    project = store.project(PROJECT)
    project.save(report, None, None)
    tasks = {int(name): CachedTask(data=data) for name in names}
    project.readings.keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks=tasks))
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=clock.__next__))
    queue.request_round(PROJECT, "labels")
    running = queue.claim(PROJECT, int(redis.hget(f"al:{PROJECT}", "waiting")))
    redis.delete(*redis.keys("rq:queue:*"))  # the worker has taken its job
    if waits:
        queue.request_round(PROJECT, "forced")

    worker._show_chosen_images(settings, running, report)

    assert project.thumbnails.of_round(report.request.round_id) == frozenset(names[:2] if waits else names)
