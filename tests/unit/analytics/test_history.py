"""Insights of rounds, changes of the strategy, networks, answers and ground truths."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ml_backend.analytics.history import (
    Answer,
    answers_of,
    ground_truths,
    known_network,
    stored_insights,
    strategy_history,
)
from ml_backend.analytics.overview import analyse
from ml_backend.config import ProjectOptions
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.schemas import RoundReport, RoundTrigger
from ml_backend.storage import RoundStore, RoundSummary
from tests.fakes import CLASSES, NOON, make_fit, make_report, make_request
from tests.unit.label_studio.test_sync import CONFIG as TRUTH_CONFIG
from tests.unit.label_studio.test_sync import answer as vote
from tests.unit.label_studio.test_sync import cache_of as truth_cache
from tests.unit.server.memory import PROJECT


def round_of(number: int, strategy: str, reason: RoundTrigger = "labels") -> RoundSummary:
    round_id = f"r{number:06d}"
    request = make_request(round_id=round_id, strategy=strategy, reason=reason)
    at = NOON + timedelta(minutes=number)
    return RoundSummary.of(make_report(round_id).model_copy(update={"request": request, "started_at": at}))


class TestStrategyHistory:
    def test_of_a_project_without_rounds(self):
        assert strategy_history([]) == ()

    def test_every_change_and_nothing_but_changes(self):
        changes = strategy_history(
            [
                round_of(1, "entropy", "connected"),
                round_of(2, "entropy"),
                round_of(3, "bald", "rerank"),
                round_of(4, "bald"),
                round_of(5, "bald", "rerank"),
                round_of(7, "entropy"),
            ]
        )

        assert [(one.round_id, one.before, one.after, one.how) for one in changes] == [
            ("r000001", None, "entropy", "connected"),
            ("r000003", "entropy", "bald", "at once"),
            ("r000007", "bald", "entropy", "with the next round"),
        ]
        assert changes[1].at == NOON + timedelta(minutes=3)

    def test_in_words(self):
        first, second, third = strategy_history(
            [round_of(1, "entropy"), round_of(2, "bald", "rerank"), round_of(3, "margin")]
        )

        assert first.sentence == "entropy from the first round on (round 1)."
        assert second.sentence == ("bald instead of entropy since round 2: at once, by the last network.")
        assert third.sentence == "margin instead of bald since round 3: with the next round, by a new network."


def a_round(number: int, **changed: object) -> RoundReport:
    return make_report(f"r{number:06d}").model_copy(update=changed)


RANDOM = a_round(1)
TRAINED = a_round(2, fit=make_fit())
RANKED_ANEW = a_round(3, base="r000002")
ANEW_BY_RANDOM = RANKED_ANEW.model_copy(
    update={"ranking": RANKED_ANEW.ranking.model_copy(update={"strategy": "random"})}
)
GROWING_AGAIN = a_round(4)


@pytest.mark.parametrize(
    ("rounds", "trained_by", "ranks"),
    [
        ((), None, None),
        ((RANDOM,), None, None),
        ((RANDOM, TRAINED), "r000002", True),
        ((RANDOM, TRAINED, RANKED_ANEW), "r000002", True),
        ((RANDOM, TRAINED, ANEW_BY_RANDOM), "r000002", True),
        ((RANDOM, TRAINED, GROWING_AGAIN), "r000002", False),
        ((TRAINED, a_round(5, fit=make_fit()), a_round(6, base="r000002")), "r000005", True),
    ],
)
def test_a_network_stays_known(rounds, trained_by, ranks):
    found = known_network([*map(RoundSummary.of, rounds)])

    assert (found and found.round_id, found and found.ranks) == (trained_by, ranks)


def test_other_classes_are_not_known():
    found = known_network([RoundSummary.of(TRAINED)])

    assert found is not None
    assert found.knows(CLASSES)
    assert not found.knows(CLASSES[:2])


CONFIG = LabelConfig(("normal", "severe", "unreadable"), "severity", "image", "image", {})


def annotation(choice: str = "severe", **changes: Any) -> dict[str, Any]:
    said = {"from_name": "severity", "type": "choices", "value": {"choices": [choice]}}
    return {
        "id": 1, "completed_by": 7, "was_cancelled": False, "ground_truth": False, "result": [said],
        "created_at": "2026-01-01T12:00:00Z", "updated_at": "2026-01-01T12:00:00Z", "lead_time": 4.5,
    } | changes  # fmt: skip


def mirror(tasks: dict[int, list[dict[str, Any]]], data: Any = None) -> TaskCache:
    own = {n: {"data": data or {"image": f"{n}.png"}, "annotations": found} for n, found in tasks.items()}
    return TaskCache(read_at=NOON, whole_at=NOON, tasks={n: CachedTask.of(task) for n, task in own.items()})


def answers(tasks: dict[int, list[dict[str, Any]]], data: Any = None) -> list[Answer]:
    return answers_of(mirror(tasks, data), CONFIG, ProjectOptions())


class TestAnswersOf:
    def test_says_who_when_how_long_and_what(self):
        assert answers({3: [annotation()]}) == [
            Answer(image_id="3", rater="7", created_at=NOON, lead_time_s=4.5, skipped=False, value="severe")
        ]

    def test_a_skip_and_an_unreadable_image_have_no_value_but_are_told_apart(self):
        [skip, unreadable] = answers({1: [annotation(was_cancelled=True)], 2: [annotation("unreadable")]})

        assert (skip.skipped, skip.value) == (True, None)
        assert (unreadable.skipped, unreadable.value) == (False, None)

    def test_oldest_first_whatever_the_number_of_the_task(self):
        early, late = "2026-11-26T09:00:00Z", "2026-11-26T10:00:00+00:00"

        assert [a.image_id for a in answers({1: [annotation(created_at=late)], 2: [annotation(created_at=early)]})] == [
            "2",
            "1",
        ]

    @pytest.mark.parametrize("lead_time", [None, -3, float("nan"), float("inf"), "soon", True, 10**400])
    def test_a_time_that_no_clock_can_have_measured_is_none(self, lead_time):
        assert [a.lead_time_s for a in answers({1: [annotation(lead_time=lead_time)]})] == [None]

    @pytest.mark.parametrize("change", [{"created_at": "soon"}, {"created_at": None}, {"result": 3}])
    def test_what_cannot_be_read_is_left_out_and_counted(self, change):
        with capture_logs() as logs:
            found = answers({1: [annotation(**change)], 2: [annotation()]})

        assert [a.image_id for a in found] == ["2"]
        assert [entry["count"] for entry in logs] == [1]

    def test_a_task_without_an_image_is_left_out(self):
        assert answers({1: [annotation()]}, data={"text": "no film"}) == []

    @given(
        st.dictionaries(
            st.sampled_from(["created_at", "lead_time", "completed_by", "was_cancelled", "result", "updated_at"]),
            st.none()
            | st.integers()
            | st.text()
            | st.lists(st.none())
            | st.floats()
            | st.dictionaries(st.text(), st.none()),
        )
    )
    def test_never_raises(self, changes):
        assert len(answers({1: [annotation(**changes)]})) <= 1


# Four ground truths; of six answers of readers three differ from them, one of these from the median of two.
TASKS = {
    1: ("a", vote("normal", truth=True), vote("severe", 2), vote("normal", 3), vote("severe", 4)),
    2: ("b", vote("normal", 5, truth=True), vote("severe", 6, truth=True), vote("normal", 2), vote(None, 3)),
    3: ("c", vote("normal", truth=True), vote("normal", 2)),
    4: ("d", vote("severe", 2)),
}


def told(tasks, **options):
    return ground_truths(truth_cache(tasks), TRUTH_CONFIG, ProjectOptions(**options))


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
    readers = [vote(value, 2) for value in readers]

    assert told({1: ("a", vote("normal", truth=True), *readers)}).sentence == sentence


def test_nothing_is_said_where_there_is_none():
    assert told({1: ("a", vote("normal"))}).sentence == ""


@pytest.mark.parametrize(("chosen", "does"), [("reader", "count as answers of readers"), ("ignore", "are left out")])
def test_what_they_do_where_they_override_nothing(chosen, does):
    found = told(TASKS, ground_truth=chosen)

    assert (found.labels, found.overridden) == (0, 0)
    assert found.sentence == f"4 annotations are marked as ground truth and {does} (ground_truth={chosen})."


def test_the_page_has_it_from_here_and_the_images_that_stand_twice(tmp_path):
    """By their bytes as well, as soon as a round has seen them."""
    project = RoundStore(tmp_path).project(PROJECT)
    read = truth_cache(TASKS | {5: ("a",), 6: ("e",)})
    project.readings.keep_mirror(read)

    first = analyse(project, TRUTH_CONFIG, ProjectOptions())
    project.readings.keep_digests({"d": "x", "e": "x"})
    second = analyse(project, TRUTH_CONFIG, ProjectOptions())

    assert first.ground_truths == second.ground_truths == ground_truths(read, TRUTH_CONFIG, ProjectOptions())
    assert [one.duplicates and one.duplicates.images for one in (first, second)] == [1, 2]


def test_of_a_project_that_was_never_read_nothing_is_said(tmp_path):
    found = analyse(RoundStore(tmp_path).project(PROJECT), TRUTH_CONFIG, ProjectOptions())

    assert (found.ground_truths, found.duplicates) == (None, None)


def test_of_an_insight_only_the_images_that_are_asked_for_are_read(tmp_path):
    project = RoundStore(tmp_path).project(make_request().project)
    project.save(make_report(), None, None)
    row = {"place": 1, "probs": {"normal": 1.0}, "score": 0.5, "aleatoric": 0.1, "epistemic": 0.2}
    shown = {"batch": [row | {"image_id": "1"}, {"image_id": "2"}], "control": [row | {"image_id": "3"}]}
    kept = {"images": 3, "expected": {}, "predicted": {}, **shown}
    (project.folder / "rounds/r000001/insight.json").write_text(json.dumps(kept))

    found = stored_insights(project, {"1", "3"})["r000001"]

    assert [[one.image_id for one in part] for part in (found.batch, found.control)] == [["1"], ["3"]]
