"""A sound installation in memory: Label Studio and backend over HTTP, queue and data folder; each can be broken."""

import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from ml_backend.config import Settings
from ml_backend.demo.options import draw_images
from ml_backend.doctor.checks import CHECKS, Check, CheckContext
from ml_backend.doctor.runner import Finding, examine
from ml_backend.schemas import Connection, ProjectKey, PublishedRanking
from ml_backend.storage import RoundStore
from tests.unit.label_studio.studio import LABEL_CONFIG
from tests.unit.server.memory import MemoryQueue

__all__ = ["BACKEND", "Installation", "failures"]

STUDIO, BACKEND = "http://ls:8080", "http://backend.internal:9090"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
KEY = ProjectKey(id=7, created=1_700_000_000)
# Recorded from Label Studio 1.23.2.
BLOCKED = {"status_code": 403, "version": "1.23.2", "detail": "URL resolves to a reserved network address (block: 127)"}
Row = dict[str, Any]


class Queue(MemoryQueue):
    """Of one project; alive as long as it says so."""

    alive = 1
    address = "redis://127.0.0.1:6379/0"

    def ping(self) -> None:
        """It answers."""

    def workers(self) -> int:
        return self.alive


class Installation:
    """All that a doctor asks. Whatever stands in an attribute may be changed before the examination."""

    def __init__(self, folder: Path) -> None:
        self.settings: dict[str, Any] = {
            "label_studio_url": STUDIO, "label_studio_api_key": "k" * 40, "data_dir": folder, "device": "cpu",
            "basic_auth_user": "al", "basic_auth_pass": "pass-word",
        }  # fmt: skip
        pair = base64.b64encode(b"al:pass-word").decode()
        self.release: Any = {"release": "1.23.2"}
        self.user: Row = {
            "email": "owner@example.com",
            "permissions": ["projects.view", "projects.change", "tasks.view", "predictions.any"],
        }
        self.project: Row = {
            "id": 7, "title": "Films", "created_at": datetime.fromtimestamp(KEY.created, UTC).isoformat(),
            "label_config": LABEL_CONFIG, "model_version": "al-r000001-x",
            "sampling": "Uncertainty sampling", "maximum_annotations": 1, "show_collab_predictions": True,
            "min_annotations_to_start_training": 1,
        }  # fmt: skip
        self.backends: list[Row] = [
            {"id": 1, "url": BACKEND, "title": "Active learning", "state": "CO", "basic_auth_user": "al",
             "extra_params": {"weights": "none", "backbone": "resnet18"}}
        ]  # fmt: skip
        self.webhooks: list[Row] = [
            {"id": 1, "url": f"{BACKEND}/webhook", "is_active": True, "send_payload": True,
             "send_for_all_actions": True, "headers": {"Authorization": f"Basic {pair}"}}
        ]  # fmt: skip
        self.blocks: set[str] = set()  # paths whose addresses Label Studio refuses
        self.events = 0
        self.delivers = True
        self.answers = True  # the backend
        self.images = {f"/data/{film.name}": film.content for film in draw_images(3, seed=1, side=64)}
        self.uris = list(self.images)
        self.annotations: dict[int, list[Row]] = {}  # task -> its annotations
        self.held: dict[str, int] = {"al-r000001-x": 3}
        self.queue: Queue | None = Queue()  # None: the one that the settings name
        self.asked: list[tuple[str, str]] = []
        self.kept = store = RoundStore(folder)
        store.connect(Connection(project=KEY, hostname=STUDIO, label_config=LABEL_CONFIG))
        store.project(KEY).set_published(
            PublishedRanking(
                version="al-r000001-x", round_id="r000001", image_ids=("1", "2", "3"), seconds={},
                published_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
        )  # fmt: skip

    def empty(self) -> None:
        """As it is before the first import: without images, and without an order."""
        self.project |= {"task_number": 0, "model_version": ""}
        self.uris.clear()
        (self.kept.project(KEY).folder / "published.json").unlink()

    def answer(self, *choices: str | None) -> None:
        """One reader's answers, of the first images; None for a skip."""
        for number, choice in enumerate(choices, 1):
            region = {"from_name": "severity", "type": "choices", "value": {"choices": [choice]}}
            self.annotations[number] = [
                {"id": number, "completed_by": 1, "was_cancelled": choice is None, "updated_at": LONG_AGO.isoformat(),
                 "result": [region] if choice else []}
            ]  # fmt: skip

    def context(self, url: str = BACKEND) -> CheckContext:
        context = CheckContext(7, url, lambda: Settings.load(**self.settings), httpx.MockTransport(self))
        if self.queue is not None:
            context.queue = self.queue
        return context

    def examine(self, checks: Sequence[Check] = CHECKS) -> dict[str, Finding]:
        return {finding.name: finding for finding in examine(self.context(), checks)}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        if request.url.host in {"backend", "backend.internal"}:
            return self._backend(request)
        if request.url.path == "/api/version":
            return httpx.Response(200, json=self.release)
        if request.headers.get("authorization") != f"Token {'k' * 40}":
            return httpx.Response(401, json={"detail": "Invalid token."})
        if request.method == "POST":
            blocked = request.url.path in self.blocks
            return httpx.Response(403, json=BLOCKED) if blocked else httpx.Response(400, json={"detail": "invalid"})
        return self._found(request)

    def _found(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path in self.images:
            return httpx.Response(200, content=self.images[path], headers={"content-type": "image/png"})
        known: dict[str, Callable[[], Any]] = {
            "/api/current-user/whoami": lambda: self.user,
            f"/api/projects/{self.project['id']}/": lambda: self._project(request),
            "/api/ml/": lambda: self.backends,
            "/api/webhooks/": lambda: self.webhooks,
            "/api/tasks": self._tasks,
            "/api/projects/7/model-versions/": lambda: {
                "static": [{"model_version": name, "count": count} for name, count in self.held.items()]
            },
        }
        return httpx.Response(200, json=known[path]()) if path in known else httpx.Response(404, json={"detail": "no"})

    def _backend(self, request: httpx.Request) -> httpx.Response:
        if not self.answers:
            raise httpx.ConnectError("Connection refused", request=request)
        counts = {"PROJECT_CREATED": 9, "PROJECT_UPDATED": self.events}
        lines = [f'al_webhooks_total{{action="{action}"}} {count}.0' for action, count in counts.items()]
        return httpx.Response(200, text="\n".join(["# HELP al_webhooks_total Events", *lines, "al_workers 1.0"]))

    def _project(self, request: httpx.Request) -> Row:
        if request.method == "PATCH":
            self.project |= json.loads(request.content)
            self.events += self.delivers
        rows = self._tasks()["tasks"]
        skips = [item["was_cancelled"] for row in rows for item in row["annotations"]]
        counts = {"total_annotations_number": len(skips) - sum(skips), "skipped_annotations_number": sum(skips)}
        return {"task_number": len(rows)} | counts | self.project

    def _tasks(self) -> Row:
        tasks = [
            {"id": number, "data": {"image": uri}, "annotations": self.annotations.get(number, [])}
            for number, uri in enumerate(self.uris, 1)
        ]
        return {"total": len(tasks), "tasks": tasks}


def failures(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.verdict == "FAIL"}
