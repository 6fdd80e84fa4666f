import json
from typing import Any

import httpx

from ml_backend.engine.ports import LabelSource
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.labels import LabelStudioLabels
from ml_backend.settings import ProjectOptions

CONFIG = LabelConfig(("normal", "severe", "unreadable"), "severity", "image", "image", {})


class Project:
    """A project of three calls: itself, its export, its unlabelled tasks."""

    def __init__(self, export: list[Any], unlabelled: list[Any], skip_queue: str = "REQUEUE_FOR_OTHERS") -> None:
        self.export = export
        self.unlabelled = unlabelled
        self.skip_queue = skip_queue
        self.filters = ""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/export"):
            return httpx.Response(200, json=self.export)
        if request.url.path == "/api/tasks":
            self.filters = json.dumps(json.loads(request.url.params["query"])["filters"])
            return httpx.Response(200, json={"tasks": self.unlabelled})
        return httpx.Response(200, json={"skip_queue": self.skip_queue})

    def labels(self) -> LabelStudioLabels:
        client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(self))
        return LabelStudioLabels(client, 1, CONFIG, ProjectOptions())


def annotation(choice: str | None, rater: int = 1) -> dict[str, Any]:
    result = [{"from_name": "severity", "type": "choices", "value": {"choices": [choice]}}] if choice else []
    return {
        "id": 5,
        "completed_by": rater,
        "was_cancelled": choice is None,
        "result": result,
        "updated_at": "2026-11-22T21:59:35Z",
    }


def task(number: int, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"id": number, "data": {"image": f"/{number}.png"} | data, "annotations": list(annotations)}


def test_satisfies_the_port() -> None:
    source: LabelSource = Project([], []).labels()

    assert source.annotations() == []
    assert source.unlabelled() == ([], [])


def test_annotations_of_several_readers() -> None:
    source = Project(
        [task(1, annotation("normal"), annotation("severe", 2), patient_id="p"), task(2, annotation(None))], []
    )

    found = source.labels().annotations()

    assert [(a.image.id, a.image.group, a.rater, a.value) for a in found] == [
        ("1", "patient p", "1", "normal"),
        ("1", "patient p", "2", "severe"),
        ("2", "image 2", "1", None),
    ]


def test_what_cannot_be_read_is_named_and_stops_nothing() -> None:
    broken = annotation("normal") | {"updated_at": "yesterday"}
    export = [task(1, annotation("normal")), task(2, broken), task(3, annotation("severe"), image="")]
    labels = Project(export, [task(4), task(5, image=["a", "b"])]).labels()

    assert [a.image.id for a in labels.annotations()] == ["1"]
    pool, exclusions = labels.unlabelled()
    assert [image.id for image in pool] == ["4"]
    assert [exclusion.image_id for exclusion in exclusions] == ["2", "3", "5"]
    assert "yesterday" in exclusions[0].reason


def test_a_second_round_does_not_repeat_the_exclusions_of_the_first() -> None:
    labels = Project([task(3, annotation("severe"), image="")], []).labels()
    labels.annotations()
    labels.annotations()

    assert len(labels.unlabelled()[1]) == 1


def test_a_skipped_image_stays_in_the_pool_unless_skips_are_final() -> None:
    for skip_queue, final in [("REQUEUE_FOR_OTHERS", False), ("REQUEUE_FOR_ME", False), ("IGNORE_SKIPPED", True)]:
        project = Project([], [], skip_queue)
        project.labels().unlabelled()

        assert ("cancelled_annotations" in project.filters) == final
