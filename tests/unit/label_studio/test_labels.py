from typing import Any

import httpx

from ml_backend.config import ProjectOptions
from ml_backend.consensus import median
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.sync import LabelStudioLabels
from ml_backend.rounds.interfaces import LabelSource

CONFIG = LabelConfig(("normal", "severe", "unreadable"), "severity", "image", "image", {})


class Project:
    """A project of two calls: itself and its tasks."""

    def __init__(self, *tasks: dict[str, Any], skip_queue: str = "REQUEUE_FOR_OTHERS") -> None:
        self.tasks = list(tasks)
        self.skip_queue = skip_queue

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/tasks":
            return httpx.Response(200, json={"tasks": self.tasks, "total": len(self.tasks)})
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
    source: LabelSource = Project().labels()

    assert source.annotations() == []
    assert source.unlabelled() == ([], [])


def test_annotations_of_several_readers() -> None:
    source = Project(task(1, annotation("normal"), annotation("severe", 2), patient_id="p"), task(2, annotation(None)))

    found = source.labels().annotations()

    assert [(a.image.id, a.image.group, a.rater, a.value) for a in found] == [
        ("1", "patient p", "1", "normal"),
        ("1", "patient p", "2", "severe"),
        ("2", "image 2", "1", None),
    ]


def test_what_cannot_be_read_is_named_and_stops_nothing() -> None:
    broken = annotation("normal") | {"updated_at": "yesterday"}
    read = [task(1, annotation("normal")), task(2, broken), task(3, annotation("severe"), image="")]
    labels = Project(*read, task(4), task(5, image=["a", "b"])).labels()

    assert [a.image.id for a in labels.annotations()] == ["1"]
    pool, exclusions = labels.unlabelled()
    assert [image.id for image in pool] == ["4"]
    assert [exclusion.image_id for exclusion in exclusions] == ["2", "3", "5"]
    assert "yesterday" in exclusions[0].reason


def test_one_that_cannot_be_read_takes_no_other_answer_with_it() -> None:
    broken = annotation("normal", 2) | {"updated_at": "yesterday"}
    labels = Project(task(1, annotation("normal"), broken, annotation("severe", 3))).labels()

    assert [(a.rater, a.value) for a in labels.annotations()] == [("1", "normal"), ("3", "severe")]
    [exclusion] = labels.unlabelled()[1]
    assert (exclusion.image_id, "yesterday" in exclusion.reason) == ("1", True)


def test_readers_who_were_deleted_keep_a_vote_each() -> None:
    """Label Studio leaves their answers without a name: those of two are not one reader's."""
    gone = [annotation("normal") | {"id": number, "completed_by": None} for number in (5, 6)]
    found = Project(task(1, *gone, annotation("severe", 3) | {"id": 7})).labels().annotations()

    [label] = median(found, CONFIG.classes[:2]).labels
    assert (label.value, label.raters) == ("normal", 3)


def test_a_second_round_does_not_repeat_the_exclusions_of_the_first() -> None:
    labels = Project(task(3, annotation("severe"), image="")).labels()
    labels.annotations()
    labels.annotations()

    assert len(labels.unlabelled()[1]) == 1


def test_a_skipped_image_stays_in_the_pool_unless_skips_are_final() -> None:
    for skip_queue, pool in [
        ("REQUEUE_FOR_OTHERS", ["1", "2"]),
        ("REQUEUE_FOR_ME", ["1", "2"]),
        ("IGNORE_SKIPPED", ["2"]),
    ]:
        project = Project(task(1, annotation(None)), task(2), task(3, annotation("severe")), skip_queue=skip_queue)

        assert [image.id for image in project.labels().unlabelled()[0]] == pool


def test_pool_and_annotations_are_of_one_moment() -> None:
    """An image that is labelled between the two calls is not in both, or in neither."""
    project = Project(task(1), task(2))
    labels = project.labels()
    labels.annotations()
    project.tasks = [task(1), task(2, annotation("severe"))]

    assert [image.id for image in labels.unlabelled()[0]] == ["1", "2"]
    assert [a.image.id for a in labels.annotations()] == ["2"]
    assert [image.id for image in labels.unlabelled()[0]] == ["1"]


def test_the_state_of_an_annotation_is_what_it_says_and_when() -> None:
    first = Project(task(1, annotation("normal"), annotation("severe", 2) | {"id": 6})).labels().states()
    later = Project(task(1, annotation("normal"), annotation("normal", 2) | {"id": 6})).labels().states()

    assert first.keys() == later.keys() == {"1.5", "1.6"}
    assert first["1.5"] == later["1.5"]
    assert first["1.6"] != later["1.6"]
