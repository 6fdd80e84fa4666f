"""How many labels are ground truths, and how many readers' answers they override."""

import pytest

from ml_backend.analytics.history import ground_truths
from ml_backend.analytics.overview import Memory, Question, overview
from ml_backend.config import ProjectOptions
from ml_backend.storage import RoundStore
from ml_backend.storage.annotations import ReadingStore
from tests.unit.label_studio.test_sync import CONFIG, answer, cache_of
from tests.unit.server.memory import PROJECT

# Four ground truths; of six answers of readers three differ from them, one of these from the median of two.
TASKS = {
    1: ("a", answer("normal", truth=True), answer("severe", 2), answer("normal", 3), answer("severe", 4)),
    2: ("b", answer("normal", 5, truth=True), answer("severe", 6, truth=True), answer("normal", 2), answer(None, 3)),
    3: ("c", answer("normal", truth=True), answer("normal", 2)),
    4: ("d", answer("severe", 2)),
}


def told(tasks, **options):
    return ground_truths(cache_of(tasks), CONFIG, ProjectOptions(**options))


def test_labels_and_differing_answers():
    found = told(TASKS)

    assert (found.annotations, found.labels, found.overridden) == (4, 3, 3)
    assert found.sentence == "3 labels are ground truths; they override 3 differing answers of readers."


@pytest.mark.parametrize(
    ("readers", "sentence"),
    [
        ([], "1 label is a ground truth; it overrides 0 differing answers of readers."),
        (["severe"], "1 label is a ground truth; it overrides 1 differing answer of readers."),
    ],
)
def test_one(readers, sentence):
    readers = [answer(value, 2) for value in readers]

    assert told({1: ("a", answer("normal", truth=True), *readers)}).sentence == sentence


def test_nothing_is_said_where_there_is_none():
    assert told({1: ("a", answer("normal"))}).sentence == ""


@pytest.mark.parametrize(("chosen", "does"), [("reader", "count as answers of readers"), ("ignore", "are left out")])
def test_what_they_do_where_they_override_nothing(chosen, does):
    found = told(TASKS, ground_truth=chosen)

    assert (found.labels, found.overridden) == (0, 0)
    assert found.sentence == f"4 annotations are marked as ground truth and {does} (ground_truth={chosen})."


def test_the_page_has_it_from_here_and_the_images_that_stand_twice(tmp_path):
    """By their bytes as well, as soon as a round has seen them."""
    folder, memory = RoundStore(tmp_path).project(PROJECT).folder, Memory()
    store, question = ReadingStore(folder), Question(CONFIG, ProjectOptions())
    read = cache_of(TASKS | {5: ("a",), 6: ("e",)})
    store.keep_mirror(read)

    first = overview(RoundStore(tmp_path).project(PROJECT), memory, question)
    store.keep_digests({"d": "x", "e": "x"})
    second = overview(RoundStore(tmp_path).project(PROJECT), memory, question)

    assert first.ground_truths == second.ground_truths == ground_truths(read, *question)
    assert [one.duplicates and one.duplicates.images for one in (first, second)] == [1, 2]


def test_of_a_project_that_was_never_read_nothing_is_said(tmp_path):
    found = overview(RoundStore(tmp_path).project(PROJECT), Memory(), Question(CONFIG, ProjectOptions()))

    assert (found.ground_truths, found.duplicates) == (None, None)
