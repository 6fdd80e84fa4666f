"""Tasks are read at the cost of what changed; the answers and the place of one image are those of all its tasks."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.config import ProjectOptions
from ml_backend.consensus import median
from ml_backend.errors import LabelStudioError, StorageError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.sync import (
    NO_DIGESTS,
    SKIPPED_IS_DONE,
    CachedTask,
    Counts,
    LabelStudioLabels,
    TaskCache,
    TaskImages,
    TaskStore,
    annotations_in,
    read_project,
    shared_digests,
    sync,
    tasks_version,
)
from ml_backend.rounds.interfaces import LabelSource
from ml_backend.schemas import Label
from ml_backend.storage.project_state import ReadingStore
from tests.fakes import CLASSES, NOON
from tests.unit.label_studio.studio import FakeStudio

CONFIG = LabelConfig((*CLASSES, "unreadable"), "severity", "image", "image", {})


def answer(value: str | None, rater: int | None = 1, minute: int = 0, truth: bool = False, **fields: Any) -> Any:
    """An annotation; a skip where the value is None."""
    choices = [] if value is None else [{"from_name": "severity", "type": "choices", "value": {"choices": [value]}}]
    return {
        "id": 1,
        "completed_by": rater,
        "was_cancelled": value is None,
        "ground_truth": truth,
        "result": choices,
        "updated_at": f"2026-01-01T12:{minute:02}:00Z",
        **fields,
    }


def cache_of(tasks: Mapping[int, tuple[Any, ...]], *, skips_are_final: bool = False) -> TaskCache:
    """Task -> the address of its image, or its data, and its annotations."""
    cached = {
        number: CachedTask(data=data if isinstance(data, dict) else {"image": data}, annotations=tuple(annotations))
        for number, (data, *annotations) in tasks.items()
    }
    skip_queue = SKIPPED_IS_DONE if skips_are_final else "REQUEUE_FOR_OTHERS"
    return TaskCache(read_at=NOON, whole_at=NOON, tasks=cached, skip_queue=skip_queue)


def source(studio: FakeStudio, folder: Path | None = None) -> LabelStudioLabels:
    return LabelStudioLabels(studio.client(), 1, CONFIG, ProjectOptions(), folder)


def seen_by_a_round(labels: LabelStudioLabels) -> tuple[Any, Any, Any]:
    return labels.annotations(), labels.unlabelled(), labels.states()


class Cost(NamedTuple):
    """A reading, and what it took."""

    cache: TaskCache
    counts: Counts
    whole: bool
    requests: int
    rows: int
    bytes: int


@pytest.fixture
def store(tmp_path):
    with TaskStore.open(tmp_path) as store:
        yield store


def read(studio: FakeStudio, store: TaskStore) -> Cost:
    before, known = (studio.requests, studio.rows, studio.bytes), store.state
    sync(studio.client(), 1, store)
    found = store.snapshot()
    whole = known is None or found.whole_at != known.whole_at
    return Cost(
        found, store.counts, whole, studio.requests - before[0], studio.rows - before[1], studio.bytes - before[2]
    )


class TestReadProject:
    @pytest.fixture
    def studio(self):
        studio = FakeStudio(images=10)
        studio.tick(3600)
        return studio

    @pytest.fixture(autouse=True)
    def cache(self, studio, store):
        cache = read(studio, store).cache
        studio.tick(3600)
        return cache

    def test_nothing_where_nothing_changed(self, studio, store, cache):
        found = read(studio, store)

        assert (found.requests, found.rows, found.whole) == (2, 0, False)
        assert found.cache == cache

    def test_the_one_task_that_changed(self, studio, store):
        studio.annotate(3, "severe")

        found = read(studio, store)

        assert (found.requests, found.rows, found.whole) == (2, 1, False)
        assert found.counts == Counts(tasks=10, annotations=1, skips=0)
        assert [task["id"] for task in found.cache.annotated()] == [3]

    def test_a_deleted_task_is_found_by_bisection(self, studio, store):
        """10 tasks, then 5 and 5, 2 and 3, 1 and 2, 1 and 1: five counts, and then the project agrees."""
        del studio.tasks[4]

        found = read(studio, store)

        assert sorted(found.cache.tasks) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
        assert (found.requests, found.whole) == (2 + 5 + 2, False)

    def test_a_whole_range_of_deleted_tasks_is_one_count(self, studio, store):
        studio.tasks.clear()

        found = read(studio, store)

        assert (found.cache.tasks, found.requests, found.whole) == ({}, 2 + 1 + 2, False)

    def test_with_too_many_deleted_tasks_the_whole_is_cheaper(self):
        studio = FakeStudio(images=400)
        with TaskStore.open(None) as store:
            read(studio, store)
            studio.tick(3600)
            for number in range(1, 401, 3):
                del studio.tasks[number]
            found = read(studio, store)

        assert found.whole
        assert found.requests < 80
        assert set(found.cache.tasks) == set(studio.tasks)

    def test_an_annotation_whose_task_kept_its_time_is_found_by_the_counts(self, studio, store):
        item = {"id": 99, "completed_by": 1, "was_cancelled": False, "result": [], "updated_at": studio.tick()}
        studio.tasks[2]["annotations"].append(item)

        found = read(studio, store)

        assert (found.whole, found.counts.annotations) == (True, 1)

    def test_a_task_that_was_stamped_before_the_last_reading_and_seen_after_it(self, studio, store):
        """An edit in a long transaction: no count shows it."""
        studio.annotate(2, "normal")
        cache = read(studio, store).cache
        studio.tasks[2]["annotations"][0]["result"] = []
        studio.tick(3600)
        studio.tasks[2]["updated_at"] = (cache.read_at - timedelta(seconds=30)).isoformat()

        assert read(studio, store).cache.tasks[2].annotations[0]["result"] == []

    def test_a_clock_that_was_set_back(self, studio, store):
        studio.annotate(2, "normal")
        read(studio, store)
        studio.tick(-7200)
        studio.answer(2, 0, "severe")

        found = read(studio, store)

        assert found.whole
        assert "severe" in str(found.cache.tasks[2])

    def test_the_whole_once_a_day(self, studio, store, cache):
        studio.tick(86400)

        assert read(studio, store).cache.whole_at > cache.whole_at

    def test_annotations_made_during_the_reading_do_not_make_it_whole(self, studio, store):
        studio.meanwhile = [lambda: studio.annotate(5, "normal"), lambda: studio.annotate(6, "normal")]

        found = read(studio, store)

        assert (found.whole, found.counts.annotations) == (False, 2)

    def test_without_a_clock_every_reading_is_whole(self, studio, store):
        def silent(request: httpx.Request) -> httpx.Response:
            response: httpx.Response = studio(request)
            del response.headers["date"]
            return response

        client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(silent))
        rows = studio.rows
        for _ in range(2):
            sync(client, 1, store)

        assert studio.rows - rows == 20

    def test_the_cost_at_ten_thousand_tasks(self):
        """Whole, after 20 labels, and after none."""
        studio = FakeStudio(images=10_000)
        for number in range(1, 3001):
            studio.annotate(number, "normal")
        studio.tick(600)
        with TaskStore.open(None) as store:
            whole = read(studio, store)
            for number in range(3001, 3021):
                studio.annotate(number, "severe")
            studio.tick(600)
            part = read(studio, store)
            studio.tick(600)
            none = read(studio, store)

        assert (whole.requests, whole.rows) == (11, 10_000)
        assert (part.requests, part.rows) == (2, 20)
        assert part.bytes * 200 < whole.bytes
        assert part.counts.annotations == 3020
        assert (none.requests, none.rows) == (2, 0)
        assert none.bytes < 1000

    def test_small_pages_of_the_operators_are_read_to_the_end(self):
        studio = FakeStudio(images=25, page_max=10)

        assert len(read_project(studio.client(), 1, None).cache.tasks) == 25
        assert len(list(studio.client().unlabelled_tasks(1))) == 25
        assert len(studio.client().still_unlabelled(1, range(1, 26))) == 25

    def test_the_skip_queue_is_cached_also_where_nothing_else_changed(self, studio, store, cache):
        row = studio.row

        studio.row = lambda: row() | {"skip_queue": SKIPPED_IS_DONE}
        again = read(studio, store).cache

        assert (cache.skips_are_final, again.skips_are_final) == (False, True)
        assert again.tasks == cache.tasks

    def test_that_lists_less_than_is_counted_replaces_nothing(self, studio, store, cache):
        """As Label Studio once answered: no tasks, of 100,440."""
        studio.tick(86400)
        studio.page = lambda _: {"tasks": [], "total": 0}

        with pytest.raises(LabelStudioError, match=r"lists 0 tasks .* counts 10 "):
            read(studio, store)

        assert store.snapshot() == cache

    def test_that_never_lists_what_is_counted_is_used(self, studio):
        """Nothing is lost by it: these are all that this user can read."""
        row = studio.row
        studio.row = lambda: row() | {"task_number": 99}

        for store in (None, read_project(studio.client(), 1, None).cache):
            assert len(read_project(studio.client(), 1, store).cache.tasks) == 10

    def test_is_done_once_for_all_who_want_it(self, studio, tmp_path):
        """The server and a worker, at the first round of a project."""
        rows, folder = studio.rows, tmp_path / "new"
        studio.meanwhile = [lambda: time.sleep(0.2)] * 2
        threads = [Thread(target=source(studio, folder).annotations) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert studio.rows - rows == 10


KILLED = """
import os, signal, sys
from pathlib import Path
from ml_backend.label_studio.sync import TaskStore
def gone():
    yield 2
    os.kill(os.getpid(), signal.SIGKILL)
    yield 3
with TaskStore.open(Path(sys.argv[1])) as store, store.reading():
    store.receive([{"id": 1, "data": {"image": "other"}}, {"id": 4, "data": {"image": "new"}}])
    store.merge(store.state.read_at, gone=gone())
"""


class TestTaskStore:
    @pytest.fixture
    def cache(self, tmp_path):
        cache = cache_of({1: ("a", answer("normal")), 2: ("b",), 3: ("c", answer(None, 2))})
        cache.save(tmp_path)
        return cache

    def kept(self, folder):
        found = TaskCache.load(folder)
        return found and found.model_copy(update={"generation": 0})

    def test_a_process_that_is_killed_while_it_writes_leaves_the_old_state(self, cache, tmp_path):
        """And holds nobody up."""
        killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], timeout=60, check=False)

        assert killed.returncode == -signal.SIGKILL
        assert self.kept(tmp_path) == cache
        with TaskStore.open(tmp_path) as store, store.reading() as free:
            assert free

    def test_one_reads_at_a_time(self, tmp_path):
        with (
            TaskStore.open(tmp_path) as one, TaskStore.open(tmp_path) as other,
            one.reading(), other.reading() as free,
        ):  # fmt: skip
            assert not free

    def test_that_of_an_earlier_version_is_taken_over_once(self, cache, tmp_path):
        folder = tmp_path / "earlier"
        folder.mkdir()
        (folder / "tasks.json").write_text(cache.model_dump_json(exclude={"generation"}))
        assert self.kept(folder) == cache

        with TaskStore.open(folder):
            pass

        assert self.kept(folder) == cache
        [file] = folder.iterdir()
        assert (file.name, file.stat().st_mode & 0o777) == ("tasks.sqlite", 0o600)

    @pytest.mark.parametrize("content", [b"{", b'{"format": 2}', b"\xff"])
    def test_a_damaged_one_of_an_earlier_version_is_none(self, tmp_path, content):
        (tmp_path / "tasks.json").write_bytes(content)

        with TaskStore.open(tmp_path) as store:
            assert store.state is None

    @pytest.mark.parametrize("start", [0, 4096])
    def test_a_damaged_one_is_moved_aside_and_read_again(self, tmp_path, start):
        """In its head, or where its rows are."""
        studio = FakeStudio(images=100)
        source(studio, tmp_path).annotations()
        file = tmp_path / "tasks.sqlite"
        file.write_bytes(file.read_bytes()[:start] + bytes([7]) * 40_000)

        for _ in range(2):
            assert seen_by_a_round(source(studio, tmp_path)) == seen_by_a_round(source(studio))

        assert (tmp_path / "tasks.sqlite.damaged").is_file()
        assert len(self.kept(tmp_path).tasks) == 100

    def test_one_of_another_version_stays_as_it_is(self, cache, tmp_path):
        cache.save(tmp_path)
        with closing(sqlite3.connect(tmp_path / "tasks.sqlite")) as database:
            database.execute("PRAGMA user_version = 2")

        with pytest.raises(StorageError, match="is of format 2"), TaskStore.open(tmp_path):
            pass
        assert [file.name for file in tmp_path.iterdir()] == ["tasks.sqlite"]

    def test_only_damage_moves_it_aside(self, cache, tmp_path):
        cache.save(tmp_path)

        with pytest.raises(StorageError, match="no such column"), TaskStore.open(tmp_path) as store:
            store._db.execute("SELECT missing FROM tasks")
        assert self.kept(tmp_path) == cache

    def test_who_waits_for_another_reading_may_stop(self, tmp_path):
        with (
            pytest.raises(KeyboardInterrupt), TaskStore.open(tmp_path) as one, TaskStore.open(tmp_path) as other,
            one.reading(), other.reading(wait=lambda: signal.raise_signal(signal.SIGINT)),
        ):  # fmt: skip
            pass

    def test_what_is_read_stays_in_the_folder(self, tmp_path, monkeypatch):
        """In no temporary folder, which may be small, and is no place for it."""
        monkeypatch.setenv("SQLITE_TMPDIR", "/nowhere")
        seen: set[str] = set()

        def rows():
            for one in Path("/proc/self/fd").iterdir():
                with suppress(OSError):
                    seen.add(one.readlink().name)
            yield {"id": 1, "data": {"image": "a"}}

        with TaskStore.open(tmp_path) as store:
            store.receive(rows())

        assert any(name.startswith(".incoming-") for name in seen)
        assert {file.name for file in tmp_path.iterdir()} == {"tasks.sqlite"}

    def test_a_disk_that_refuses_costs_only_time(self, tmp_path):
        (tmp_path / "file").write_text("")
        studio = FakeStudio(images=3)

        assert len(source(studio, tmp_path / "file").images()) == 3
        assert ReadingStore(tmp_path / "file").mirror(TaskCache) is None

    def test_a_project_without_tasks_has_been_read(self, tmp_path):
        assert source(FakeStudio(), tmp_path).images() == []

        assert self.kept(tmp_path).tasks == {}
        assert tasks_version(tmp_path) > (0, 0)

    def test_half_a_surrogate_pair(self, tmp_path):
        cache = cache_of({1: ("\ud800",)})
        cache.save(tmp_path)

        assert self.kept(tmp_path) == cache

    def test_only_what_differs_is_a_change(self, cache, tmp_path):
        with TaskStore.open(tmp_path) as store:
            store.index_images(CONFIG, {})
            before = store.version
            store.replace(cache)
            assert (store.version, store.waits(changed_after=before)) == (before, False)

            store.replace(cache_of({1: ("a", answer("normal")), 2: ("z",), 3: ("c", answer(None, 2))}))
            store.index_images(CONFIG, {})
            assert store.waits(changed_after=before)
            assert store.version > before
            assert store.raters() == {"1", "2"}
            assert store.existing(["2", "9", "x"]) == {2}

    def test_another_label_config_names_other_images(self, cache, tmp_path):
        with TaskStore.open(tmp_path) as store:
            store.index_images(CONFIG, {})
            assert store.waits()

            store.index_images(replace(CONFIG, image_key="film"), {})
            assert not store.waits()


class TestTaskCache:
    def test_outlines_are_dropped(self):
        studio = FakeStudio(images=1)
        studio.annotate(1, "severe")

        assert "brushlabels" not in read_project(studio.client(), 1, None).cache.model_dump_json()

    def test_without_a_choice_the_kinds_of_the_answers_stay(self):
        """A drawing is no empty copy of a prediction, which the owner would be asked to delete."""
        studio = FakeStudio(images=1)
        studio.annotate(1, None)
        [item] = studio.tasks[1]["annotations"]
        box = {"from_name": "box", "type": "rectanglelabels", "value": {"x": 1}}
        item |= {"was_cancelled": False, "lead_time": None, "result": [box, box]}

        cache = read_project(studio.client(), 1, None).cache

        assert cache.tasks[1].annotations[0]["result"] == [{"from_name": "box", "type": "rectanglelabels"}]
        bare = cache.tasks[1].model_copy(update={"annotations": (cache.tasks[1].annotations[0] | {"result": []},)})
        assert cache.model_copy(update={"tasks": {1: bare}}).states() == cache.states()  # the form of older versions

    def test_a_task_that_takes_the_id_of_a_deleted_one(self, tmp_path):
        studio = FakeStudio(images=3)
        studio.annotate(3, "severe")
        source(studio, tmp_path).annotations()
        studio.tick(600)
        del studio.tasks[3]
        studio.add_task()

        assert seen_by_a_round(source(studio, tmp_path)) == seen_by_a_round(source(studio))
        assert source(studio, tmp_path).annotations() == []

    def test_the_state_of_an_annotation_is_its_answer_and_time(self):
        first, later = (
            cache_of({1: ("a", answer("normal"), answer(value, 2, id=6))}).states() for value in ("severe", "normal")
        )

        assert first.keys() == later.keys() == {"1.1", "1.6"}
        assert first["1.1"] == later["1.1"]
        assert first["1.6"] != later["1.6"]

    def test_another_ground_truth_option_changes_the_state_of_every_ground_truth_and_no_other(self):
        cache = cache_of({1: ("a", answer("normal", truth=True)), 2: ("b", answer("normal"))})
        override, reader, ignore = (cache.states(chosen) for chosen in ("override", "reader", "ignore"))

        assert override == cache.states()
        assert override["2.1"] == reader["2.1"] == ignore["2.1"]
        assert len({override["1.1"], reader["1.1"], ignore["1.1"]}) == 3


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
def test_reading_changes_gives_what_reading_everything_gives(steps: list[tuple[Any, ...]], page_max: int) -> None:
    studio = FakeStudio(images=4, page_max=page_max)
    with TemporaryDirectory() as folder:
        for step in [*steps, ("read",)]:
            if step[0] == "read":
                assert seen_by_a_round(source(studio, Path(folder))) == seen_by_a_round(source(studio))
            else:
                take(studio, step)


class Project:
    """A Label Studio of two calls: the project and its tasks."""

    def __init__(self, *tasks: dict[str, Any], skip_queue: str = "REQUEUE_FOR_OTHERS") -> None:
        self.tasks = list(tasks)
        self.skip_queue = skip_queue

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/tasks":
            return httpx.Response(200, json={"tasks": self.tasks, "total": len(self.tasks)})
        skips = [item["was_cancelled"] for task in self.tasks for item in task["annotations"]]
        counts = {
            "task_number": len(self.tasks),
            "total_annotations_number": len(skips) - sum(skips),
            "skipped_annotations_number": sum(skips),
        }
        return httpx.Response(200, json={"skip_queue": self.skip_queue, **counts})

    def labels(self) -> LabelStudioLabels:
        client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(self))
        return LabelStudioLabels(client, 1, CONFIG, ProjectOptions())


def task(number: int, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"id": number, "data": {"image": f"/{number}.png"} | data, "annotations": list(annotations)}


class TestLabelStudioLabels:
    def test_satisfies_the_interface(self):
        labels: LabelSource = Project().labels()

        assert labels.annotations() == []
        assert labels.unlabelled() == ([], [])

    def test_annotations_of_several_readers(self):
        tasks = task(1, answer("normal"), answer("severe", 2), patient_id="p"), task(2, answer(None))

        found = Project(*tasks).labels().annotations()

        assert [(a.image.id, a.image.group, a.rater, a.value) for a in found] == [
            ("1", "patient p", "1", "normal"),
            ("1", "patient p", "2", "severe"),
            ("2", "image 2", "1", None),
        ]

    def test_what_cannot_be_read_is_named_and_excludes_nothing_else(self):
        broken = answer("normal", 2, updated_at="yesterday")
        readable = task(1, answer("normal"), broken, answer("severe", 3))
        tasks = [readable, task(2, broken), task(3, answer("severe"), image=""), task(4), task(5, image=["a", "b"])]
        labels = Project(*tasks).labels()

        assert [(a.image.id, a.rater) for a in labels.annotations()] == [("1", "1"), ("1", "3")]
        pool, exclusions = labels.unlabelled()
        assert [image.id for image in pool] == ["4"]
        assert [exclusion.image_id for exclusion in exclusions] == ["1", "2", "3", "5"]
        assert "yesterday" in exclusions[0].reason

        labels.annotations()
        assert len(labels.unlabelled()[1]) == 4  # not repeated

    def test_deleted_readers_keep_a_vote_each(self):
        """Label Studio leaves their answers without a name: two of them need not be one reader's."""
        gone = [answer("normal", None, id=number) for number in (5, 6)]
        found = Project(task(1, *gone, answer("severe", 3, id=7))).labels().annotations()

        [label] = median(found, CLASSES).labels
        assert (label.value, label.raters) == ("normal", 3)

    @pytest.mark.parametrize(
        ("skip_queue", "pool"),
        [("REQUEUE_FOR_OTHERS", ["1", "2"]), ("REQUEUE_FOR_ME", ["1", "2"]), ("IGNORE_SKIPPED", ["2"])],
    )
    def test_a_skipped_image_stays_in_the_pool_unless_skips_are_final(self, skip_queue, pool):
        project = Project(task(1, answer(None)), task(2), task(3, answer("severe")), skip_queue=skip_queue)

        assert [image.id for image in project.labels().unlabelled()[0]] == pool

    def test_pool_and_annotations_are_of_one_moment(self):
        """An image that is labelled between the two calls is not in both, or in neither."""
        project = Project(task(1), task(2))
        labels = project.labels()
        labels.annotations()
        project.tasks = [task(1), task(2, answer("severe"))]

        assert [image.id for image in labels.unlabelled()[0]] == ["1", "2"]
        assert [a.image.id for a in labels.annotations()] == ["2"]
        assert [image.id for image in labels.unlabelled()[0]] == ["1"]


def waiting(tasks: Mapping[int, tuple[Any, ...]], digests: Mapping[str, str] = NO_DIGESTS, **skips: bool) -> Any:
    cache = cache_of(tasks, **skips)
    return TaskImages.of(cache, CONFIG, digests).waiting(cache)


class TestWaiting:
    def test_one_task_represents_all(self):
        pool, barred = waiting({9: ("a",), 10: ("a",), 11: ("b",)})

        assert pool == [9, 11]
        assert barred.keys() == {10}
        assert "the same image as task 9" in barred[10]

    @pytest.mark.parametrize("answered", [1, 2])
    @pytest.mark.parametrize("value", ["normal", "unreadable"])
    def test_none_once_one_of_them_has_an_answer(self, answered, value):
        tasks: dict[int, tuple[Any, ...]] = {1: ("a",), 2: ("a",), 3: ("b",)}
        tasks[answered] = ("a", answer(value))

        pool, barred = waiting(tasks)

        assert pool == [3]
        assert barred.keys() == {3 - answered}
        assert f"the same image as task {answered}, which has an answer" in barred[3 - answered]

    @pytest.mark.parametrize(("final", "pool"), [(False, [1]), (True, [])])
    def test_a_skip_closes_an_image_only_where_skips_are_final(self, final, pool):
        assert waiting({1: ("a", answer(None)), 2: ("a",)}, skips_are_final=final)[0] == pool

    def test_equal_bytes_at_other_addresses(self):
        """As Label Studio stores a file that is uploaded again."""
        digests = {"/data/upload/1/0a-film.png": "x", "/data/upload/1/0b-film.png": "x", "b": "y"}
        tasks = {1: ("/data/upload/1/0a-film.png", answer("normal")), 2: ("/data/upload/1/0b-film.png",), 3: ("b",)}

        assert waiting(tasks)[0] == [2, 3]
        assert waiting(tasks, digests)[0] == [3]

    def test_a_task_without_an_image_is_like_no_other(self):
        assert waiting({1: ({},), 2: ({},), 3: ("a",)}) == ([3], {})

    TASKS = st.dictionaries(
        st.integers(1, 30),
        st.tuples(st.sampled_from("abcdefg"), st.sampled_from([None, "normal", "severe", "skip"])),
        max_size=15,
    )

    @settings(deadline=None)
    @given(tasks=TASKS, digests=st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from("xy")), final=st.booleans())
    def test_laws(self, tasks, digests, final):
        """No copy with a copy, none of an image that is done, and of every other image one."""
        rows = {
            number: (uri, *([] if value is None else [answer(None if value == "skip" else value)]))
            for number, (uri, value) in tasks.items()
        }

        pool, barred = waiting(rows, digests, skips_are_final=final)

        image_of = {number: digests.get(uri, uri) for number, (uri, _) in tasks.items()}
        still_open = {None} if final else {None, "skip"}
        done = {image_of[number] for number, (_, value) in tasks.items() if value not in still_open}
        assert sorted(image_of[number] for number in pool) == sorted(set(image_of.values()) - done)
        assert pool == sorted(pool)
        assert all(number == min(n for n in tasks if image_of[n] == image_of[number]) for number in pool)
        assert not set(pool) & set(barred)

        cache, some = cache_of(rows, skips_are_final=final), {*map(str, range(1, 31, 4))}
        fresh = {number for number, (_, value) in tasks.items() if value is None}
        with TaskStore.open(None) as store:
            store.replace(cache)
            for known in ({}, {"a": "y", "b": "y"}, digests):
                store.index_images(CONFIG, known)
            found, copies = store.waiting_among(map(str, range(31)))
            assert {*map(int, found)} == fresh.intersection(pool)
            assert {*map(int, copies)} == fresh.intersection(barred)
            assert store.waits(some) == bool(found - some)


def labels_of(tasks: Mapping[int, tuple[Any, ...]], digests: Mapping[str, str] = NO_DIGESTS) -> list[Label]:
    cache = cache_of(tasks)
    annotations, _ = annotations_in(cache, CONFIG, ProjectOptions(), TaskImages.of(cache, CONFIG, digests))
    return list(median(annotations, CLASSES).labels)


class TestAnswersOfOneImage:
    @pytest.mark.parametrize(
        ("tasks", "label"),
        [
            ([[answer("normal", 1)], [answer("severe", 2)], [answer("normal", 3)]], ("normal", 3, False)),
            ([[answer("severe", 1, 0)], [answer("normal", 2, 9)]], ("severe", 2, True)),
            # of one reader: in two tasks the later answer corrects nothing
            ([[answer("severe", minute=5)], [answer("normal", minute=0)]], ("severe", 2, True)),
            ([[answer("severe", minute=5)], [answer("normal", minute=9)]], ("severe", 2, True)),
            ([[answer("severe")], [answer("severe"), answer("normal", 2)]], ("severe", 2, True)),
            ([[answer("severe"), answer("normal", minute=1)], [answer("normal")]], ("normal", 1, False)),
            # a ground truth in one task decides for all
            ([[answer("normal")], [answer("severe", 2, truth=True)]], ("severe", 1, True)),
        ],
    )
    def test_of_several_tasks(self, tasks, label):
        [found] = labels_of({number: ("a", *items) for number, items in enumerate(tasks, 7)})

        assert found.image.id == "7"
        assert (found.value, found.raters, found.disputed) == label

    def test_by_equal_bytes(self):
        tasks = {7: ("a", answer("normal")), 8: ("b", answer("normal", 2))}

        assert len(labels_of(tasks)) == 2
        assert [label.image.id for label in labels_of(tasks, {"a": "x", "b": "x"})] == ["7"]


class TestPatients:
    @pytest.mark.parametrize(
        ("named", "digests", "patients"),
        [
            ([("a", None), ("a", "p")], {}, ["p", "p"]),
            ([("a", "p"), ("b", "p")], {}, ["p", "p"]),
            # two patients with one image are one, also for their other images, and where only the bytes are the same
            (
                [("a", "q"), ("b", "p"), ("c", "q"), ("d", "r"), ("e", None)],
                {"a": "x", "b": "x"},
                ["p", "p", "p", "r", None],
            ),
        ],
    )
    def test_of_images_with_copies(self, named, digests, patients):
        cache = cache_of({n: ({"image": uri, "patient_id": patient},) for n, (uri, patient) in enumerate(named, 1)})

        images = TaskImages.of(cache, CONFIG, digests).images

        assert [images[number].patient_id for number in sorted(images)] == patients


class TestCount:
    def test_images_and_tasks(self):
        cache = cache_of({1: ("a",), 2: ("a",), 3: ("b",), 4: ("b",), 5: ("b",), 6: ("c",)})

        found = TaskImages.of(cache, CONFIG).count()

        assert (found.images, found.tasks) == (2, 5)
        assert "5 in all" in found.sentence

    def test_none(self):
        assert TaskImages.of(cache_of({1: ("a",), 2: ("b",)}), CONFIG).count().sentence == ""


def test_only_digests_that_two_addresses_share_are_kept():
    assert shared_digests({"a": "x", "b": "y", "c": "x"}) == {"a": "x", "c": "x"}


class TestGroundTruthOption:
    """Rows of three imported answers, as Label Studio stores them: all ground truths of the importing user."""

    IMPORTED = tuple(answer(value, 1, n, truth=True) for n, value in enumerate(("normal", "normal", "severe")))

    def read(self, tasks, chosen):
        annotations, exclusions = annotations_in(cache_of(tasks), CONFIG, ProjectOptions(ground_truth=chosen))
        consensus = median(annotations, CLASSES)
        return consensus.labels, [*exclusions, *consensus.exclusions]

    @pytest.mark.parametrize(
        ("chosen", "readers", "label"),
        [
            ("override", [], ("normal", 3, True)),
            ("override", ["severe", "severe", "severe", "severe"], ("normal", 3, True)),
            ("reader", [], ("normal", 3, False)),
            ("reader", ["severe", "severe", "severe", "severe"], ("severe", 7, False)),
            ("reader", ["severe"], ("severe", 4, True)),
            ("ignore", ["moderate"], ("moderate", 1, False)),
        ],
    )
    def test_several_of_one_user(self, chosen, readers, label):
        answers = [answer(value, 10 + n, 9) for n, value in enumerate(readers)]

        [found], exclusions = self.read({1: ("a", *self.IMPORTED, *answers)}, chosen)

        assert (found.value, found.raters, found.disputed) == label
        assert exclusions == []

    def test_as_a_reader_one_is_its_author_s_answer(self):
        """Marked by the star, or imported with completed_by: nobody counts twice."""
        tasks = {1: ("a", answer("normal", 5, 0, truth=True), answer("severe", 5, 1), answer("severe", 6))}

        [label], _ = self.read(tasks, "reader")

        assert (label.value, label.raters, label.disputed) == ("severe", 2, False)

    def test_an_image_with_nothing_else_is_named(self):
        labels, exclusions = self.read({1: ("a", *self.IMPORTED), 2: ("b", answer("normal"))}, "ignore")

        assert [label.image.id for label in labels] == ["2"]
        assert [(exclusion.image_id, exclusion.kind) for exclusion in exclusions] == [("1", "ignored truth")]
