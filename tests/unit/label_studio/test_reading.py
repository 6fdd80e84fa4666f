"""Reading what changed gives what reading everything gives, and costs what changed."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.config import ProjectOptions
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.sync import Counts, LabelStudioLabels, Mirror, Reading, read_project
from tests.unit.label_studio.studio import FakeStudio

CONFIG = LabelConfig(("normal", "severe", "unreadable"), "severity", "image", "image", {})


class Memory:
    """Keeps a mirror as a file would: as JSON."""

    def __init__(self) -> None:
        self.text = ""

    def mirror(self, kind: Any) -> Any:
        return kind.model_validate_json(self.text) if self.text else None

    def keep_mirror(self, mirror: Any) -> None:
        self.text = mirror.model_dump_json()


def seen_by_a_round(labels: LabelStudioLabels) -> tuple[Any, Any, Any]:
    return labels.annotations(), labels.unlabelled(), labels.states()


def source(studio: FakeStudio, memory: Memory | None = None) -> LabelStudioLabels:
    return LabelStudioLabels(studio.client(), 1, CONFIG, ProjectOptions(), memory)


def cost(studio: FakeStudio, kept: Mirror | None) -> tuple[Reading, tuple[int, int, int]]:
    """A reading, and the requests, rows and bytes that it took."""
    before = studio.requests, studio.rows, studio.bytes
    reading = read_project(studio.client(), 1, kept)
    return reading, (studio.requests - before[0], studio.rows - before[1], studio.bytes - before[2])


class TestWhatIsAskedFor:
    @pytest.fixture
    def studio(self) -> FakeStudio:
        studio = FakeStudio(images=10)
        studio.tick(3600)
        return studio

    @pytest.fixture
    def kept(self, studio: FakeStudio) -> Mirror:
        mirror = read_project(studio.client(), 1, None).mirror
        studio.tick(3600)
        return mirror

    def test_nothing_where_nothing_changed(self, studio: FakeStudio, kept: Mirror) -> None:
        reading, (requests, rows, _) = cost(studio, kept)

        assert (requests, rows, reading.whole) == (2, 0, False)
        assert reading.mirror is kept

    def test_the_one_task_that_changed(self, studio: FakeStudio, kept: Mirror) -> None:
        studio.annotate(3, "severe")

        reading, (requests, rows, _) = cost(studio, kept)

        assert (requests, rows, reading.rows, reading.whole) == (2, 1, 1, False)
        assert reading.mirror.counts == Counts(tasks=10, annotations=1, skips=0)
        assert [task["id"] for task in reading.mirror.annotated()] == [3]

    def test_a_deleted_task_is_found_by_halving(self, studio: FakeStudio, kept: Mirror) -> None:
        """10 tasks, then 5 and 5, 2 and 3, 1 and 2, 1 and 1: five counts, and then the project agrees."""
        del studio.tasks[4]

        reading, (requests, _, _) = cost(studio, kept)

        assert sorted(reading.mirror.tasks) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
        assert not reading.whole
        assert requests == 2 + 5 + 2

    def test_a_whole_range_of_deleted_tasks_is_one_answer(self, studio: FakeStudio, kept: Mirror) -> None:
        studio.tasks.clear()

        reading, (requests, _, _) = cost(studio, kept)

        assert (reading.mirror.tasks, requests, reading.whole) == ({}, 2 + 1 + 2, False)

    def test_too_many_deleted_tasks_are_cheaper_read_whole(self) -> None:
        studio = FakeStudio(images=400)
        kept = read_project(studio.client(), 1, None).mirror
        studio.tick(3600)
        for number in range(1, 401, 3):
            del studio.tasks[number]

        reading, (requests, _, _) = cost(studio, kept)

        assert reading.whole
        assert requests < 80
        assert set(reading.mirror.tasks) == set(studio.tasks)

    def test_an_annotation_whose_task_kept_its_time_is_found_by_the_counts(
        self, studio: FakeStudio, kept: Mirror
    ) -> None:
        item = {"id": 99, "completed_by": 1, "was_cancelled": False, "result": [], "updated_at": studio.tick()}
        studio.tasks[2]["annotations"].append(item)

        reading, _ = cost(studio, kept)

        assert reading.whole
        assert reading.mirror.counts.annotations == 1

    def test_a_task_that_was_stamped_before_the_last_reading_and_seen_after_it(
        self, studio: FakeStudio, kept: Mirror
    ) -> None:
        """An edit in a transaction that took long: no count tells of it."""
        studio.annotate(2, "normal")
        kept = read_project(studio.client(), 1, kept).mirror
        studio.tasks[2]["annotations"][0]["result"] = []
        studio.tick(3600)
        studio.tasks[2]["updated_at"] = (kept.read_at - timedelta(seconds=30)).isoformat()

        assert cost(studio, kept)[0].mirror.tasks[2].annotations[0]["result"] == []

    def test_a_clock_that_was_set_back(self, studio: FakeStudio, kept: Mirror) -> None:
        studio.annotate(2, "normal")
        kept = read_project(studio.client(), 1, kept).mirror
        studio.tick(-7200)
        studio.answer(2, 0, "severe")

        reading, _ = cost(studio, kept)

        assert reading.whole
        assert "severe" in str(reading.mirror.tasks[2])

    def test_the_whole_once_a_day(self, studio: FakeStudio, kept: Mirror) -> None:
        studio.tick(86400)

        reading, _ = cost(studio, kept)

        assert (reading.whole, reading.mirror.whole_at > kept.whole_at) == (True, True)

    def test_readers_who_label_while_we_read_do_not_make_it_whole(self, studio: FakeStudio, kept: Mirror) -> None:
        studio.meanwhile = [lambda: studio.annotate(5, "normal"), lambda: studio.annotate(6, "normal")]

        reading, _ = cost(studio, kept)

        assert not reading.whole
        assert reading.mirror.counts.annotations == 2

    def test_no_clock_no_mirror(self, studio: FakeStudio, kept: Mirror) -> None:
        def silent(request: httpx.Request) -> httpx.Response:
            response = studio(request)
            del response.headers["date"]
            return response

        client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(silent))
        first = read_project(client, 1, kept)

        assert (first.whole, read_project(client, 1, first.mirror).whole) == (True, True)

    def test_the_cost_at_ten_thousand_tasks(self) -> None:
        """What reading costs at 10,000 tasks: whole, after 20 labels, and after none."""
        studio = FakeStudio(images=10_000)
        for number in range(1, 3001):
            studio.annotate(number, "normal")
        studio.tick(600)

        whole, (requests, rows, whole_bytes) = cost(studio, None)
        assert (requests, rows) == (11, 10_000)

        for number in range(3001, 3021):
            studio.annotate(number, "severe")
        studio.tick(600)
        part, (requests, rows, part_bytes) = cost(studio, whole.mirror)
        assert (requests, rows) == (2, 20)
        assert part_bytes * 200 < whole_bytes
        assert part.mirror.counts.annotations == 3020

        studio.tick(600)
        _, (requests, rows, none_bytes) = cost(studio, part.mirror)
        assert (requests, rows) == (2, 0)
        assert none_bytes < 1000


class TestTheKept:
    def test_outlines_are_not_kept(self) -> None:
        studio = FakeStudio(images=1)
        studio.annotate(1, "severe")

        assert "brushlabels" not in read_project(studio.client(), 1, None).mirror.model_dump_json()

    def test_of_an_annotation_without_a_choice_the_kind_is_kept(self) -> None:
        """What a program drew is no empty copy of a prediction, which the owner would be told to delete."""
        studio = FakeStudio(images=1)
        studio.annotate(1, None)
        [item] = studio.tasks[1]["annotations"]
        box = {"from_name": "box", "type": "rectanglelabels", "value": {"x": 1}}
        item |= {"was_cancelled": False, "lead_time": None, "result": [box, box]}

        mirror = read_project(studio.client(), 1, None).mirror

        assert mirror.tasks[1].annotations[0]["result"] == [{"from_name": "box", "type": "rectanglelabels"}]
        bare = mirror.tasks[1].model_copy(update={"annotations": (mirror.tasks[1].annotations[0] | {"result": []},)})
        assert mirror.model_copy(update={"tasks": {1: bare}}).states() == mirror.states()  # as older versions noted it

    def test_small_pages_of_the_operators_are_read_to_the_end(self) -> None:
        studio = FakeStudio(images=25, page_max=10)

        assert len(read_project(studio.client(), 1, None).mirror.tasks) == 25
        assert len(list(studio.client().unlabelled_tasks(1))) == 25
        assert len(studio.client().still_unlabelled(1, range(1, 26))) == 25

    def test_a_task_that_takes_the_id_of_a_deleted_one(self) -> None:
        studio, memory = FakeStudio(images=3), Memory()
        studio.annotate(3, "severe")
        source(studio, memory).annotations()
        studio.tick(600)
        del studio.tasks[3]
        studio.add_task()

        assert seen_by_a_round(source(studio, memory)) == seen_by_a_round(source(studio))
        assert source(studio, memory).annotations() == []


NUMBERS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("annotate"), NUMBERS, st.sampled_from(["normal", "severe", "unreadable", None]), st.integers(1, 2)
        ),
        st.tuples(st.just("answer"), NUMBERS, NUMBERS, st.sampled_from(["normal", "severe", None])),
        st.tuples(st.just("withdraw"), NUMBERS, NUMBERS),
        st.tuples(st.just("delete"), NUMBERS),
        st.tuples(st.just("import")),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 59.0, 61.0, 3600.0, 90_000.0])),
        st.tuples(st.just("read")),
    ),
    max_size=25,
)


def take(studio: FakeStudio, step: tuple[Any, ...]) -> None:
    """Do one thing in the project; the numbers count the tasks and annotations that there are."""
    name, *rest = step
    if name == "import":
        studio.add_task()
    elif name == "wait":
        studio.tick(rest[0])
    elif studio.tasks:
        number = sorted(studio.tasks)[rest[0] % len(studio.tasks)]
        there = len(studio.tasks[number]["annotations"])
        if name == "annotate":
            studio.annotate(number, *rest[1:])
        elif name == "delete":
            del studio.tasks[number]
        elif there and name == "answer":
            studio.answer(number, rest[1] % there, rest[2])
        elif there:
            studio.withdraw(number, rest[1] % there)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, page_max=st.sampled_from([2, 1000]))
def test_gives_what_the_full_reading_gives(steps: list[tuple[Any, ...]], page_max: int) -> None:
    studio, memory = FakeStudio(images=4, page_max=page_max), Memory()
    for step in [*steps, ("read",)]:
        if step[0] == "read":
            assert seen_by_a_round(source(studio, memory)) == seen_by_a_round(source(studio))
        else:
            take(studio, step)


def test_whether_skips_are_final_is_kept_with_the_tasks():
    """Also where nothing else has changed since."""
    studio = FakeStudio(images=3)
    first = read_project(studio.client(), 2, None).mirror
    row = studio.row

    studio.row = lambda: row() | {"skip_queue": "IGNORE_SKIPPED"}  # type: ignore[method-assign]
    again = read_project(studio.client(), 2, first)

    assert (first.skip_queue, again.mirror.skip_queue) == ("REQUEUE_FOR_OTHERS", "IGNORE_SKIPPED")
    assert again.mirror.tasks == first.tasks
