"""The same image in several tasks: which of them waits, and what its answers come to."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.config import ProjectOptions
from ml_backend.consensus import median
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.sync import NO_DIGESTS, KeptTask, Mirror, TaskImages, annotations_in, shared_digests
from ml_backend.schemas import Label
from tests.fakes import CLASSES, NOON

CONFIG = LabelConfig((*CLASSES, "unreadable"), "severity", "image", "image", {})


def answer(value: str | None, rater: int | None = 1, minute: int = 0, truth: bool = False) -> dict[str, Any]:
    choices = [] if value is None else [{"from_name": "severity", "type": "choices", "value": {"choices": [value]}}]
    return {
        "id": 1,
        "completed_by": rater,
        "was_cancelled": value is None,
        "ground_truth": truth,
        "result": choices,
        "updated_at": f"2026-01-01T12:{minute:02}:00Z",
    }


def mirror(tasks: Mapping[int, tuple[Any, ...]]) -> Mirror:
    """Task -> the address of its image, or its data, and its annotations."""
    kept = {
        number: KeptTask(data=data if isinstance(data, dict) else {"image": data}, annotations=tuple(annotations))
        for number, (data, *annotations) in tasks.items()
    }
    return Mirror(read_at=NOON, whole_at=NOON, tasks=kept)


def labels_of(tasks: Mapping[int, tuple[Any, ...]], digests: Mapping[str, str] = NO_DIGESTS) -> list[Label]:
    read = mirror(tasks)
    annotations, _ = annotations_in(read, CONFIG, ProjectOptions(), TaskImages.of(read, CONFIG, digests))
    return list(median(annotations, CLASSES).labels)


def waiting(
    tasks: Mapping[int, tuple[Any, ...]], digests: Mapping[str, str] = NO_DIGESTS, *, with_skipped: bool = True
) -> tuple[list[int], dict[int, str]]:
    read = mirror(tasks)
    return TaskImages.of(read, CONFIG, digests).waiting(read, with_skipped=with_skipped)


class TestWaiting:
    def test_one_task_stands_for_all(self):
        pool, barred = waiting({9: ("a",), 10: ("a",), 11: ("b",)})

        assert pool == [9, 11]
        assert barred == {10: "task 10 holds the same image as task 9, which stands for both"}

    @pytest.mark.parametrize("answered", [1, 2])
    def test_none_once_one_of_them_has_an_answer(self, answered):
        tasks: dict[int, tuple[Any, ...]] = {1: ("a",), 2: ("a",), 3: ("b",)}
        tasks[answered] = ("a", answer("normal"))

        pool, barred = waiting(tasks)

        assert pool == [3]
        assert barred == {
            3 - answered: f"task {3 - answered} holds the same image as task {answered}, which has an answer or a skip"
        }

    def test_unreadable_is_an_answer(self):
        assert waiting({1: ("a", answer("unreadable")), 2: ("a",)})[0] == []

    @pytest.mark.parametrize(("with_skipped", "pool"), [(True, [1]), (False, [])])
    def test_a_skip_closes_an_image_only_where_skips_are_final(self, with_skipped, pool):
        assert waiting({1: ("a", answer(None)), 2: ("a",)}, with_skipped=with_skipped)[0] == pool

    def test_equal_bytes_under_other_addresses(self):
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
        """No copy beside a copy, none of an image that is done, and of every other image one."""
        read = mirror(
            {
                number: (uri, *([] if said is None else [answer(None if said == "skip" else said)]))
                for number, (uri, said) in tasks.items()
            }
        )
        images = TaskImages.of(read, CONFIG, digests)

        pool, barred = images.waiting(read, with_skipped=not final)

        image_of = {number: digests.get(uri, uri) for number, (uri, _) in tasks.items()}
        over = {None, "skip"} - ({"skip"} if final else set())
        done = {image_of[number] for number, (_, said) in tasks.items() if said not in over}
        assert sorted(image_of[number] for number in pool) == sorted(set(image_of.values()) - done)
        assert pool == sorted(pool)
        assert all(number == min(n for n in tasks if image_of[n] == image_of[number]) for number in pool)
        assert not set(pool) & set(barred)


class TestLabels:
    def test_the_answers_of_all_tasks_are_one_image_s(self):
        tasks = {7: ("a", answer("normal", 1)), 8: ("a", answer("severe", 2)), 9: ("a", answer("normal", 3))}

        [label] = labels_of(tasks)

        assert (label.image.id, label.value, label.raters, label.disputed) == ("7", "normal", 3, False)

    def test_that_differ_are_disputed(self):
        [label] = labels_of({7: ("a", answer("severe", 1, minute=0)), 8: ("a", answer("normal", 2, minute=9))})

        assert (label.value, label.disputed) == ("severe", True)

    @pytest.mark.parametrize("minute", [0, 9])
    def test_that_differ_of_one_reader_are_disputed_too(self, minute):
        """In two tasks the later answer corrects nothing."""
        [label] = labels_of({7: ("a", answer("severe", minute=5)), 8: ("a", answer("normal", minute=minute))})

        assert (label.value, label.raters, label.disputed) == ("severe", 2, True)

    def test_of_one_reader_who_says_the_same_count_once(self):
        [label] = labels_of({7: ("a", answer("severe")), 8: ("a", answer("severe"), answer("normal", 2))})

        assert (label.value, label.raters) == ("severe", 2)

    def test_a_reader_s_correction_in_the_same_task_still_counts(self):
        [label] = labels_of({7: ("a", answer("severe"), answer("normal", minute=1)), 8: ("a", answer("normal"))})

        assert (label.value, label.raters, label.disputed) == ("normal", 1, False)

    def test_by_equal_bytes(self):
        tasks = {7: ("a", answer("normal")), 8: ("b", answer("normal", 2))}

        assert len(labels_of(tasks)) == 2
        assert [label.image.id for label in labels_of(tasks, {"a": "x", "b": "x"})] == ["7"]

    def test_a_ground_truth_of_one_task_decides_for_all(self):
        [label] = labels_of({7: ("a", answer("normal")), 8: ("a", answer("severe", 2, truth=True))})

        assert (label.image.id, label.value, label.disputed) == ("7", "severe", True)


class TestPatients:
    def test_one_task_tells_the_patient_of_another(self):
        images = TaskImages.of(mirror({1: ("a",), 2: ({"image": "a", "patient_id": "p"},)}), CONFIG).images

        assert {image.patient_id for image in images.values()} == {"p"}

    def test_two_patients_with_one_image_are_one(self):
        """Also for their other images, and where only the bytes are the same."""
        named = [("a", "q"), ("b", "p"), ("c", "q"), ("d", "r"), ("e", None)]
        read = mirror({n: ({"image": uri, "patient_id": patient},) for n, (uri, patient) in enumerate(named, 1)})

        images = TaskImages.of(read, CONFIG, {"a": "x", "b": "x"}).images

        assert [images[number].patient_id for number in range(1, 6)] == ["p", "p", "p", "r", None]

    def test_without_copies_every_image_is_as_its_task_has_it(self):
        read = mirror({n: ({"image": str(n), "patient_id": "p"},) for n in (1, 2)})

        assert [image.patient_id for image in TaskImages.of(read, CONFIG).images.values()] == ["p", "p"]


class TestCount:
    def test_images_and_tasks(self):
        read = mirror({1: ("a",), 2: ("a",), 3: ("b",), 4: ("b",), 5: ("b",), 6: ("c",)})

        found = TaskImages.of(read, CONFIG).count()

        assert (found.images, found.tasks) == (2, 5)
        assert found.sentence.startswith("2 images stand in two or more tasks (5 in all)")

    def test_none(self):
        assert TaskImages.of(mirror({1: ("a",), 2: ("b",)}), CONFIG).count().sentence == ""


def test_only_digests_that_two_addresses_share_are_kept():
    assert shared_digests({"a": "x", "b": "y", "c": "x"}) == {"a": "x", "c": "x"}


class TestGroundTruthOption:
    """Rows of three imported answers, as Label Studio stores them: all ground truths of the importing user."""

    IMPORTED = tuple(answer(value, 1, n, truth=True) for n, value in enumerate(("normal", "normal", "severe")))

    def read(self, tasks, chosen):
        annotations, exclusions = annotations_in(mirror(tasks), CONFIG, ProjectOptions(ground_truth=chosen))
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
        said = [answer(value, 10 + n, 9) for n, value in enumerate(readers)]

        [found], exclusions = self.read({1: ("a", *self.IMPORTED, *said)}, chosen)

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
        assert [exclusion.image_id for exclusion in exclusions] == ["1"]
        assert "3 marked as ground truth, which ground_truth=ignore leaves out" in exclusions[0].reason

    def test_another_value_changes_the_state_of_every_ground_truth_and_no_other(self):
        read = mirror({1: ("a", answer("normal", truth=True)), 2: ("b", answer("normal"))})
        override, reader, ignore = (read.states(chosen) for chosen in ("override", "reader", "ignore"))

        assert override == read.states()
        assert override["2.1"] == reader["2.1"] == ignore["2.1"]
        assert len({override["1.1"], reader["1.1"], ignore["1.1"]}) == 3
