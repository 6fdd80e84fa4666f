"""What simulated readers answer, and how they take turns; Label Studio itself is in the system tests."""

from collections import Counter
from datetime import UTC, datetime

import httpx
import pytest

from ml_backend.demo.fidelity import Served
from ml_backend.demo.readers import Answers, Reader, ReadingRoom, ServedImage, Submission, file_name
from ml_backend.errors import LabelStudioError
from ml_backend.label_studio.formats import LabelConfig

CLASSES = ("normal", "moderate", "severe")
CONFIG = LabelConfig(CLASSES, "severity", "image", "image", {})


class QueueReader(Reader):
    """A reader in front of a queue in memory instead of a Label Studio."""

    def __init__(self, name: str, queue: list[str]) -> None:
        super().__init__(name, "http://127.0.0.1:1")
        self._queue = queue
        self._held: str | None = None

    def next_image(self, project_id: int, config: LabelConfig) -> ServedImage | None:
        if self._held is None and self._queue:
            self._held = self._queue.pop(0)
        return None if self._held is None else ServedImage(self._held, f"/data/upload/1/0123abcd-{self._held}.png")

    def submit(self, project_id: int, image: ServedImage, value: str, config: LabelConfig, lead_s: float) -> Submission:
        self._held = None
        return Submission(self.name, image.image_id, value, datetime.now(UTC), datetime.now(UTC))


def room(queue: list[str], versions: list[str] | None = None) -> ReadingRoom:
    """Two readers; ``versions`` are named one after the other, the last again and again."""
    left = versions or ["v1"]
    answers = Answers({f"{name}.png": "moderate" for name in queue}, CLASSES, 0.0, seed=1)
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


class TestAnswers:
    def test_without_mistakes_is_the_truth(self):
        assert Answers({"a.png": "severe"}, CLASSES, 0.0, seed=1).of("ann", "/data/upload/1/0123abcd-a.png") == "severe"

    def test_a_mistake_is_a_neighbour(self):
        answers = Answers({f"{i}.png": "normal" for i in range(50)}, CLASSES, 1.0, seed=1)

        assert {answers.of("ann", f"{i}.png") for i in range(50)} == {"moderate"}

    def test_from_the_middle_both_neighbours_come(self):
        answers = Answers({f"{i}.png": "moderate" for i in range(50)}, CLASSES, 1.0, seed=1)

        assert {answers.of("ann", f"{i}.png") for i in range(50)} == {"normal", "severe"}

    def test_mistakes_come_at_their_rate(self):
        """600 answers at 10 %: 60 expected, 99.9 % of all seeds between 36 and 84."""
        answers = Answers({f"{i}.png": "normal" for i in range(600)}, CLASSES, 0.1, seed=1)

        wrong = Counter(answers.of("ann", f"{i}.png") for i in range(600))["moderate"]

        assert 36 <= wrong <= 84

    def test_the_same_reader_says_the_same_again_and_another_may_differ(self):
        answers = Answers({f"{i}.png": "moderate" for i in range(50)}, CLASSES, 0.5, seed=1)
        by_reader = {name: [answers.of(name, f"{i}.png") for i in range(50)] for name in ("ann", "ben")}

        assert by_reader["ann"] == [answers.of("ann", f"{i}.png") for i in range(50)]
        assert by_reader["ann"] != by_reader["ben"]

    def test_an_image_that_was_never_uploaded_is_named(self):
        with pytest.raises(LabelStudioError, match=r"'x.png', which is none of the 1 images"):
            Answers({"a.png": "normal"}, CLASSES, 0.0, seed=1).of("ann", "x.png")

    def test_refuses_a_share_above_1(self):
        with pytest.raises(ValueError, match="from 0 to 1, got 5"):
            Answers({}, CLASSES, 5, seed=1)


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

    def test_a_reload_is_recorded_as_held(self):
        both = room(["a", "b", "c"])
        both.turn()

        both.reload()

        assert both.served == [Served("ann", "a", ("v1",)), Served("ann", "a", ("v1",), holding="a")]
        assert both.submissions == []

    def test_finish_submits_what_is_on_the_screens(self):
        both = room(["a", "b", "c"])
        both.turn()
        both.turn()

        both.finish()

        assert [s.image_id for s in both.submissions] == ["a", "b"]


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

        assert reader.next_image(1, CONFIG) is None
        assert asked == ["POST"] * 3

    def test_a_submission_is_sent_once(self, monkeypatch):
        """Sent again it might be stored twice."""
        reader, asked = self.reader(monkeypatch, failures=2)

        with pytest.raises(LabelStudioError, match="answered 500"):
            reader.submit(1, ServedImage("7", "/a.png"), "normal", CONFIG, 1.0)
        assert asked == ["POST"]
