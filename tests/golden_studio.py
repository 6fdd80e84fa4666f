"""As much of Label Studio 1.23.2 as rounds need, over HTTP, with a clock of its own; and what runs rounds against it.

Imports nothing of the package: any version of it may be run against this.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

__all__ = ["Studio", "key", "wait_until", "worker"]

CLASSES = ("normal", "moderate", "severe")
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="severity" toName="image">'
    + "".join(f'<Choice value="{name}"/>' for name in (*CLASSES, "unreadable"))
    + "</Choices></View>"
)
CREATED = datetime(2026, 11, 22, 21, 59, 34, tzinfo=UTC)
IMAGES = 60
OPTIONS: dict[str, object] = {
    "backbone": "shufflenet_v2_x0_5",
    "weights": "none",
    "finetune": "head",
    "image_side": 32,
    "precision": "float32",
    "passes": 6,
    "batch_size": 6,
    "reserve": 30,
    "min_labels_per_class": 4,
    "retrain_after": 20,
    "noise_every": 0,
}
"""Of every project: the smallest network that there is, on tiny images."""
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "equal": lambda a, b: a == b,
    "greater": lambda a, b: a > b,
    "greater_or_equal": lambda a, b: a >= b,
    "less_or_equal": lambda a, b: a <= b,
}


def picture(task: int) -> bytes:
    """Waves, the stronger the more severe; one image ends too early, two are the same."""
    seed = 8 if task == 9 else task
    draw, (y, x) = np.random.default_rng(seed), np.mgrid[:32, :32]
    waves = sum(
        np.sin(x * draw.uniform(-1.5, 1.5) + y * draw.uniform(-1.5, 1.5) + draw.uniform(0, 6)) for _ in range(3)
    )
    pixels = draw.uniform(60, 190) + (12 + 20 * (seed % 3)) * waves
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()[:400] if task == 10 else file.getvalue()


class Studio:
    """Projects of the same 60 tasks, by their ids. Its clock stands, except where a test moves it."""

    def __init__(self) -> None:
        self.now = CREATED + timedelta(days=1)
        self.tasks: dict[int, dict[int, dict[str, Any]]] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.predictions: dict[int, dict[str, list[dict[str, Any]]]] = {}
        self.url = ""

    def add_project(self, project: int) -> None:
        stamp = self._stamp()
        self.tasks[project] = {
            task: {
                "id": task,
                "data": {"image": f"/data/upload/{task}.png", "patient_id": f"p{task // 2}"},
                "annotations": [],
                "updated_at": stamp,
            }
            for task in range(1, IMAGES + 1)
        }
        self.rows[project] = {
            "id": project,
            "created_at": CREATED.isoformat(),
            "label_config": LABEL_CONFIG,
            "model_version": "",
            "sampling": "Uncertainty sampling",
            "maximum_annotations": 1,
            "show_collab_predictions": True,
            "skip_queue": "REQUEUE_FOR_OTHERS",
            "min_annotations_to_start_training": 20,
        }
        self.predictions[project] = {}

    def restore(self, kept: dict[str, Any]) -> None:
        """Take over what ``tests/data/golden`` has kept of another one."""
        self.now = datetime.fromisoformat(kept["now"])
        self.tasks = {int(p): {int(task): row for task, row in tasks.items()} for p, tasks in kept["tasks"].items()}
        self.rows = {int(project): row for project, row in kept["rows"].items()}
        self.predictions = {int(project): held for project, held in kept["predictions"].items()}

    def served(self, project: int) -> list[int]:
        """Tasks without a label in the order in which readers get them."""
        version = self.predictions[project].get(self.rows[project]["model_version"], [])
        return [
            p["task"]
            for p in sorted(version, key=lambda p: p["score"])
            if not self.tasks[project][p["task"]]["annotations"]
        ]

    def label(self, project: int, count: int) -> list[dict[str, Any]]:
        """One reader answers the next images, a minute each; the annotations, as an event tells them."""
        made = []
        for task in self.served(project)[:count]:
            self.now += timedelta(minutes=1)
            result = {"from_name": "severity", "to_name": "image", "type": "choices"}
            made.append(
                {
                    "id": 1000 * project + task,
                    "completed_by": 1,
                    "was_cancelled": False,
                    "ground_truth": False,
                    "created_at": self._stamp(),
                    "updated_at": self._stamp(),
                    "lead_time": 20.0,
                    "result": [result | {"value": {"choices": [CLASSES[task % 3]]}}],
                    "task": task,
                }
            )
            self.tasks[project][task]["annotations"].append(made[-1])
            self.tasks[project][task]["updated_at"] = self._stamp()
        self.now += timedelta(minutes=10)
        return made

    def setup(self, project: int, options: dict[str, object]) -> dict[str, Any]:
        """What Label Studio sends when the backend is connected."""
        return {
            "project": key(project),
            "schema": LABEL_CONFIG,
            "hostname": self.url,
            "access_token": "t",
            "extra_params": OPTIONS | options,
        }

    def event(self, project: int, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        """What Label Studio sends when these were made."""
        return {"action": "ANNOTATIONS_CREATED", "annotation": annotations, "project": self._row(project)}

    def _stamp(self) -> str:
        return self.now.isoformat().replace("+00:00", "Z")

    def _row(self, project: int) -> dict[str, Any]:
        total = sum(len(task["annotations"]) for task in self.tasks[project].values())
        counts = {"task_number": IMAGES, "total_annotations_number": total, "skipped_annotations_number": 0}
        return self.rows[project] | counts

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:  # noqa: PLR0911 - one a request
        parts = path.strip("/").split("/")
        project = int(next((part for part in parts if part.isdigit()), "0"))
        match method, parts[1], parts[-1]:
            case _, "tasks", _:
                return self._page(query)
            case _, "current-user", _:
                return {"email": "a@example.com"}
            case _, "ml", _:
                return [{"id": 1, "title": "Active learning"}]
            case "POST", _, "predictions":
                for one in body:
                    self.predictions[project].setdefault(one["model_version"], []).append(one)
                return {"created": len(body)}
            case "DELETE", _, "model-versions":
                return {"deleted_predictions": len(self.predictions[project].pop(body["model_version"], []))}
            case _, _, "model-versions":
                held = self.predictions[project].items()
                return {"static": [{"model_version": v, "count": len(p), "latest": self._stamp()} for v, p in held]}
            case _:
                self.rows[project] |= body or {}
                return self._row(project)

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        view, include = json.loads(query["query"]), query["include"].split(",")
        columns = {
            "id": lambda task: task["id"],
            "updated_at": lambda task: datetime.fromisoformat(task["updated_at"]),
            "total_annotations": lambda task: len(task["annotations"]),
            "cancelled_annotations": lambda _task: 0,
        }
        found = list(self.tasks[int(query["project"])].values())
        for item in view["filters"]["items"]:
            column, compare = columns[item["filter"].removeprefix("filter:tasks:")], OPERATORS[item["operator"]]
            value = datetime.fromisoformat(item["value"]) if item["type"] == "Datetime" else item["value"]
            found = [task for task in found if compare(column(task), value)]
        if "selectedItems" in view:
            found = [task for task in found if task["id"] in view["selectedItems"]["included"]]
        page = [{n: v for n, v in task.items() if n in include} for task in found[: int(query["page_size"])]]
        return {"total": len(found), "tasks": page}

    @contextmanager
    def serving(self) -> Iterator["Studio"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"studio": self}))
        Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    studio: Studio

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if url.path.startswith("/data/upload/"):
            content, kind = picture(int(Path(url.path).stem)), "image/png"
        else:
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            content, kind = (
                json.dumps(self.studio.answer(self.command, url.path, query, body)).encode(),
                "application/json",
            )
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - names of the standard library

    def date_time_string(self, timestamp: float | None = None) -> str:
        del timestamp
        return format_datetime(self.studio.now, usegmt=True)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def key(project: int) -> str:
    return f"{project}.{int(CREATED.timestamp())}"


@contextmanager
def worker(environ: dict[str, str], log: Path) -> Iterator[None]:
    """``ml-backend work`` on the CPU, until the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AL_")}
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "ml_backend", "work"],
            env=kept | {"OMP_NUM_THREADS": "1", "AL_DEVICE": "cpu", "AL_LABEL_STUDIO_API_KEY": "k"} | environ,
            stdout=file,
            stderr=file,
        )
    try:
        yield
    finally:
        child.terminate()
        child.wait(timeout=60)


def wait_until(condition: Callable[[], Any], log: Path, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.5)
