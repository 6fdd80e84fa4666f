"""What simulated readers answer, and how they take turns; Label Studio itself is in the system tests."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ml_backend.demo.readers import (
    OpenTask,
    Reader,
    ReadingRoom,
    ServedImage,
    SimulatedLabels,
    Submission,
    annotation_body,
    file_name,
)
from ml_backend.errors import LabelStudioError
from ml_backend.label_studio.formats import LabelConfig
from tests.page_requests import RECORDED, page_request

CLASSES = ("normal", "moderate", "severe")
CONFIG = LabelConfig(CLASSES, "severity", "image", "image", {})


class QueueReader(Reader):
    """A reader of a queue in memory instead of Label Studio."""

    def __init__(self, name: str, queue: list[str]) -> None:
        super().__init__(name, "http://127.0.0.1:1")
        self._queue = queue
        self._held: str | None = None

    def next_task(self, project_id: int, config: LabelConfig) -> OpenTask | None:
        if self._held is None and self._queue:
            self._held = self._queue.pop(0)
        return None if self._held is None else OpenTask(self._held, f"/data/upload/1/0123abcd-{self._held}.png")

    def submit(self, project_id: int, image: OpenTask, value: str, config: LabelConfig) -> Submission:
        self._held = None
        return Submission(self.name, image.image_id, value, datetime.now(UTC), datetime.now(UTC))


def room(queue: list[str], versions: list[str] | None = None) -> ReadingRoom:
    """Two readers; ``versions`` are named one after the other, the last again and again."""
    left = versions or ["v1"]
    answers = SimulatedLabels({f"{name}.png": "moderate" for name in queue}, CLASSES, 0.0, seed=1)
    shared = list(queue)
    readers = [QueueReader("ann", shared), QueueReader("ben", shared)]
    return ReadingRoom(readers, 1, CONFIG, answers, lambda: left.pop(0) if len(left) > 1 else left[0])


class TestFileName:
    @pytest.mark.parametrize(
        ("uri", "name"),
        [
            ("/data/upload/7/bf7c2a05-film-00001.png", "film-00001.png"),
            ("http://127.0.0.1:8080/data/upload/7/bf7c2a05-film-00001.png?x=1", "film-00001.png"),
            ("upload/7/film-00001.png", "film-00001.png"),
        ],
    )
    def test_is_the_name_that_was_uploaded(self, uri, name):
        assert file_name(uri) == name


class TestSimulatedLabels:
    def test_without_mistakes_is_the_truth(self):
        assert (
            SimulatedLabels({"a.png": "severe"}, CLASSES, 0.0, seed=1).label("ann", "/data/upload/1/0123abcd-a.png")
            == "severe"
        )

    def test_a_mistake_is_a_neighbour(self):
        answers = SimulatedLabels({f"{i}.png": "normal" for i in range(50)}, CLASSES, 1.0, seed=1)

        assert {answers.label("ann", f"{i}.png") for i in range(50)} == {"moderate"}

    def test_from_the_middle_both_neighbours_come(self):
        answers = SimulatedLabels({f"{i}.png": "moderate" for i in range(50)}, CLASSES, 1.0, seed=1)

        assert {answers.label("ann", f"{i}.png") for i in range(50)} == {"normal", "severe"}

    def test_mistakes_come_at_their_rate(self):
        """600 answers at 10 %: 60 expected, 99.9 % of all seeds between 36 and 84."""
        answers = SimulatedLabels({f"{i}.png": "normal" for i in range(600)}, CLASSES, 0.1, seed=1)

        wrong = Counter(answers.label("ann", f"{i}.png") for i in range(600))["moderate"]

        assert 36 <= wrong <= 84

    def test_the_same_reader_says_the_same_again_and_another_may_differ(self):
        answers = SimulatedLabels({f"{i}.png": "moderate" for i in range(50)}, CLASSES, 0.5, seed=1)
        by_reader = {name: [answers.label(name, f"{i}.png") for i in range(50)] for name in ("ann", "ben")}

        assert by_reader["ann"] == [answers.label("ann", f"{i}.png") for i in range(50)]
        assert by_reader["ann"] != by_reader["ben"]

    def test_an_image_that_was_never_uploaded_is_named(self):
        with pytest.raises(LabelStudioError, match=r"'x.png', which is none of the 1 images"):
            SimulatedLabels({"a.png": "normal"}, CLASSES, 0.0, seed=1).label("ann", "x.png")

    def test_refuses_a_share_above_1(self):
        with pytest.raises(ValueError, match="from 0 to 1, got 5"):
            SimulatedLabels({}, CLASSES, 5, seed=1)


class TestReadingRoom:
    def test_the_readers_take_turns_and_hold_one_image_each(self):
        both = room(["a", "b", "c", "d"])

        for _ in range(4):
            both.turn()

        assert [(s.reader, s.image_id) for s in both.served] == [("ann", "a"), ("ben", "b"), ("ann", "c"), ("ben", "d")]
        assert [(s.reader, s.image_id, s.value) for s in both.submissions] == [
            ("ann", "a", "moderate"),
            ("ben", "b", "moderate"),
        ]

    def test_ends_when_everything_is_submitted(self):
        both = room(["a", "b", "c"])

        turns = 0
        while both.turn():
            turns += 1

        assert [s.image_id for s in both.submissions] == ["a", "b", "c"]
        assert turns == 5

    def test_a_publish_between_asking_and_being_served_is_recorded_as_both(self):
        both = room(["a", "b"], versions=["v1", "v2"])

        both.turn()
        both.turn()

        assert [s.versions for s in both.served] == [("v1", "v2"), ("v2",)]

    def test_what_is_on_the_screens_when_a_ranking_comes_is_recorded_as_held(self):
        both = room(["a", "b", "c"])
        both.turn()
        both.turn()

        both.new_ranking()

        held = [ServedImage("ann", "a", ("v1",), holding="a"), ServedImage("ben", "b", ("v1",), holding="b")]
        assert both.served[2:] == held
        assert both.submissions == []

    def test_every_second_reader_loads_the_page_again(self, monkeypatch):
        """The others answer from the prediction of the ranking before."""
        asked: list[str] = []
        ask = QueueReader.next_task

        def next_task(reader, *args):
            asked.append(reader.name)
            return ask(reader, *args)

        monkeypatch.setattr(QueueReader, "next_task", next_task)
        both = room(["a", "b"])
        both.turn()
        both.turn()
        asked.clear()

        both.new_ranking()
        both.new_ranking()

        assert asked == ["ben", "ann"]


class TestLockedDatabase:
    """Label Studio on sqlite answers 500 where another writer holds the database."""

    def reader(self, monkeypatch, failures: int) -> tuple[Reader, list[str]]:
        asked: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.method)
            return httpx.Response(500 if len(asked) <= failures else 404, text="database is locked")

        monkeypatch.setattr("ml_backend.demo.readers.PAUSE_S", 0.0)
        reader = Reader("ann", "http://ls.example")
        reader._http = httpx.Client(base_url=reader.url, transport=httpx.MockTransport(answer))
        return reader, asked

    def test_the_next_image_is_asked_for_again(self, monkeypatch):
        reader, asked = self.reader(monkeypatch, failures=2)

        assert reader.next_task(1, CONFIG) is None
        assert asked == ["POST"] * 3

    def test_a_submission_is_sent_once(self, monkeypatch):
        """Sent again it might be stored twice."""
        reader, asked = self.reader(monkeypatch, failures=2)

        with pytest.raises(LabelStudioError, match="answered 500"):
            reader.submit(1, OpenTask("7", "/a.png"), "normal", CONFIG)
        assert asked == ["POST"]


class Page:
    """Label Studio's answers to one reader: two images without a pre-label, and then three with one."""

    def __init__(self, reader: Reader) -> None:
        self.requests: list[httpx.Request] = []
        self._email = reader.email
        self._waiting = [self._task(number, pre_label=number > 2) for number in range(1, 7)]
        self._answers: dict[str, dict[str, Any]] = {}  # task -> its annotation
        reader._http = httpx.Client(base_url=reader.url, transport=httpx.MockTransport(self))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        body = json.loads(request.content) if request.content else {}
        if request.url.path == "/api/dm/actions":
            return httpx.Response(200, json=self._waiting[0])
        if request.method == "POST":
            self._waiting.pop(0)
            task = request.url.path.split("/")[3]
            self._answers[task] = body | {"id": 70 + int(task), "completed_by": {"email": self._email}}
            return httpx.Response(201, json={})
        task = request.url.params.get("taskID") or request.url.path.split("/")[3]
        if request.method == "PATCH":
            assert request.url.path == f"/api/annotations/{70 + int(task)}"
            self._answers[task] |= body
        return httpx.Response(200, json=self._task(int(task), pre_label=False) | {"annotations": [self._answers[task]]})

    def _task(self, number: int, *, pre_label: bool) -> dict[str, Any]:
        region = {"from_name": "severity", "to_name": "image", "type": "choices", "score": 0.75}
        result = [region | {"value": {"choices": ["severe"]}}] if pre_label else []
        lock = "d090ecf6-d118-4d29-8da8-e92023899cc1"
        predictions = [{"id": 100 + number, "result": result}]
        return {"id": number, "data": {"image": "/a.png"}, "predictions": predictions, "unique_lock_id": lock}

    def take(self) -> list[dict[str, Any] | None]:
        """What was asked since the last time, in the form of the recording."""
        seen = [
            page_request(one.method, one.url.raw_path.decode(), json.loads(one.content) if one.content else None)
            for one in self.requests
        ]
        self.requests.clear()
        return seen


class TestWhatIsSent:
    """A simulated reader sends what Label Studio's page was recorded to send, and what it was refused for."""

    def test_is_what_the_page_sends(self):
        reader = Reader("ann", "http://ls.example")
        page = Page(reader)
        seen: dict[str, list[dict[str, Any] | None]] = {}

        def next_task(name: str) -> OpenTask:
            image = reader.next_task(1, CONFIG)
            assert image is not None
            seen[name] = page.take()
            return image

        first = next_task("open")
        reader.submit(1, first, "severe", CONFIG)
        reader.skip(1, next_task("submit"))
        accepted = next_task("skip")
        reader.submit(1, accepted, "severe", CONFIG)
        reader.submit(1, next_task("accept a pre-label"), "normal", CONFIG)
        reader.skip(1, next_task("choose another class"))
        next_task("skip with a pre-label")
        for name, image in [("update an accepted pre-label", accepted), ("update", first)]:
            earlier = reader.reopen(1, image, CONFIG)
            seen["look back"] = page.take()
            reader.update(1, earlier, "moderate", CONFIG)
            seen[name] = page.take()

        # A draft is saved where a reader leaves a choice, or waits for 5 s after it.
        assert seen == {name: requests for name, requests in RECORDED.items() if name != "leave a choice"}

    def test_names_the_prediction_that_the_image_was_served_with(self):
        """Also where an earlier answer is changed, of which the page learns it again."""
        reader = Reader("ann", "http://ls.example")
        page = Page(reader)

        image = reader.next_task(1, CONFIG)
        assert image is not None
        reader.submit(1, image, "severe", CONFIG)
        reader.update(1, reader.reopen(1, image, CONFIG), "normal", CONFIG)

        bodies = [json.loads(one.content) for one in page.requests if one.content]
        named = [body["parent_prediction"] for body in bodies if "result" in body]
        assert named == [101, 101]

    def test_the_time_that_an_answer_took_grows_with_every_change(self):
        loaded = OpenTask("7", "/a.png", spent_s=20.0, loaded_at=datetime.now(UTC) - timedelta(seconds=9))

        assert annotation_body(1, loaded, [])["lead_time"] == pytest.approx(29.0, abs=1.0)

    def test_an_image_that_was_never_answered_cannot_be_looked_back_at(self):
        reader = Reader("ann", "http://ls.example")
        Page(reader)._answers["1"] = {"id": 71, "completed_by": {"email": "other@example.com"}}

        with pytest.raises(LabelStudioError, match="ann has not annotated image 1"):
            reader.reopen(1, OpenTask("1", "/a.png"), CONFIG)
