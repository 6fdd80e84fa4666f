"""A Label Studio project in memory, with the filters, counts and clock of Label Studio 1.23.2."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx

from ml_backend.label_studio.client import LabelStudioClient

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "id": lambda task: task["id"],
    "updated_at": lambda task: task["updated_at"],
    "total_annotations": lambda task: sum(not item["was_cancelled"] for item in task["annotations"]),
    "cancelled_annotations": lambda task: sum(item["was_cancelled"] for item in task["annotations"]),
}
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "equal": lambda a, b: a == b,
    "greater": lambda a, b: a > b,
    "greater_or_equal": lambda a, b: a >= b,
    "less_or_equal": lambda a, b: a <= b,
}


LABEL_CONFIG = """<View><Image name="image" value="$image"/><Choices name="severity" toName="image">
  <Choice value="normal"/><Choice value="severe"/></Choices></View>"""


class FakeStudio:
    """One project: itself, its tasks, its model versions, its backends, and who asks; counts what it hands out."""

    def __init__(self, images: int = 0, page_max: int = 10**9) -> None:
        self.now = NOON
        self.tasks: dict[int, dict[str, Any]] = {}
        self.page_max = page_max
        self.requests = 0
        self.rows = 0
        self.bytes = 0
        self.last_annotation = 0
        self.model_version = ""
        self.users: list[dict[str, Any]] = []
        self.predictions: dict[str, int] = {}  # how many of each model version
        self.refusal: int | None = None  # the status that everything but "who am I" is answered with
        self.meanwhile: list[Callable[[], None]] = []  # what readers do after each request
        for _ in range(images):
            self.add_task()

    def tick(self, seconds: float = 0.001) -> str:
        self.now += timedelta(seconds=seconds)
        return self.now.isoformat().replace("+00:00", "Z")

    def add_task(self) -> int:
        number = max(self.tasks, default=0) + 1  # so sqlite has it: the id of a deleted last task comes again
        data = {"image": f"/{number}-{self.tick()}.png", "patient_id": number % 7}
        self.tasks[number] = {"id": number, "data": data, "annotations": [], "updated_at": self.tick()}
        return number

    def annotate(self, number: int, choice: str | None, rater: int = 1) -> None:
        self.last_annotation += 1
        item = {"id": self.last_annotation, "completed_by": rater, "ground_truth": False}
        self.tasks[number]["annotations"].append(item)
        self.answer(number, -1, choice)

    def answer(self, number: int, which: int, choice: str | None) -> None:
        region = {"from_name": "severity", "type": "choices", "value": {"choices": [choice]}}
        outline = {"from_name": "outline", "type": "brushlabels", "value": {"rle": [0] * 50}}
        self.tasks[number]["annotations"][which] |= {
            "was_cancelled": choice is None,
            "result": [region, outline] if choice else [],
            "updated_at": self.tick(),
        }
        self.tasks[number]["updated_at"] = self.tick()

    def withdraw(self, number: int, which: int) -> None:
        del self.tasks[number]["annotations"][which]
        self.tasks[number]["updated_at"] = self.tick()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self.refusal is not None and request.url.path != "/api/current-user/whoami":
            return httpx.Response(self.refusal, json={"detail": "refused"})
        answer = self._answer(request)
        response = httpx.Response(200, json=answer, headers={"date": format_datetime(self.now, usegmt=True)})
        self.rows += len(answer["tasks"]) if "tasks" in answer else 0
        self.bytes += len(response.content)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return response

    def _answer(self, request: httpx.Request) -> Any:
        if request.url.path == "/api/tasks":
            return self.page(request)
        if request.url.path == "/api/users/":
            return self.users
        if request.url.path.endswith("/model-versions/"):
            if request.method == "DELETE":
                return {"deleted_predictions": self.predictions.pop(json.loads(request.content)["model_version"], 0)}
            rows = [{"model_version": name, "count": count} for name, count in self.predictions.items()]
            return {"static": rows}
        return [{"id": 1}] if request.url.path == "/api/ml/" else self.row()

    def row(self) -> dict[str, Any]:
        cancelled = [item["was_cancelled"] for task in self.tasks.values() for item in task["annotations"]]
        return {
            "id": 2,
            "email": "admin@example.com",
            "title": "Chest",
            "created_at": "2026-11-22T21:59:34.027258Z",
            "min_annotations_to_start_training": 1,
            "model_version": self.model_version,
            "sampling": "Uncertainty sampling",
            "maximum_annotations": 1,
            "show_collab_predictions": True,
            "label_config": LABEL_CONFIG,
            "task_number": len(self.tasks),
            "total_annotations_number": len(cancelled) - sum(cancelled),
            "skipped_annotations_number": sum(cancelled),
            "skip_queue": "REQUEUE_FOR_OTHERS",
        }

    def page(self, request: httpx.Request) -> dict[str, Any]:
        meets = [condition(item) for item in json.loads(request.url.params["query"])["filters"]["items"]]
        found = [task for _, task in sorted(self.tasks.items()) if all(met(task) for met in meets)]
        size = min(int(request.url.params["page_size"]), self.page_max)
        include = set(request.url.params["include"].split(","))
        tasks = [
            {name: value for name, value in task.items() if name in include}
            | {"annotations": [{n: v for n, v in a.items() if n in include} for a in task["annotations"]]}
            for task in found[:size]
        ]
        return {"total": len(found), "tasks": tasks}

    def client(self) -> LabelStudioClient:
        return LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(self))


def condition(item: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    column, compare = COLUMNS[item["filter"].removeprefix("filter:tasks:")], OPERATORS[item["operator"]]
    if item["type"] != "Datetime":
        return lambda task: compare(column(task), item["value"])
    # Label Studio answers 500 to a time of any other form.
    value = datetime.strptime(item["value"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return lambda task: compare(datetime.fromisoformat(column(task)), value)
