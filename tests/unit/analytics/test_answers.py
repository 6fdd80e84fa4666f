"""Answers as they stand in the task mirror."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ml_backend.analytics.history import Answer, answers_of
from ml_backend.config import ProjectOptions
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.sync import TaskCache

CONFIG = LabelConfig(("normal", "severe", "unreadable"), "severity", "image", "image", {})
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def annotation(choice: str = "severe", **changes: Any) -> dict[str, Any]:
    said = {"from_name": "severity", "type": "choices", "value": {"choices": [choice]}}
    return {
        "id": 1, "completed_by": 7, "was_cancelled": False, "ground_truth": False, "result": [said],
        "created_at": "2026-11-26T12:00:00Z", "updated_at": "2026-11-26T12:00:00Z", "lead_time": 4.5,
    } | changes  # fmt: skip


def mirror(tasks: dict[int, list[dict[str, Any]]], data: Any = None) -> TaskCache:
    rows = [{"id": n, "data": data or {"image": f"{n}.png"}, "annotations": found} for n, found in tasks.items()]
    return TaskCache(read_at=NOON, whole_at=NOON, tasks={}).renewed(rows, NOON)


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

    @pytest.mark.parametrize("lead_time", [None, -3, float("nan"), float("inf"), "soon", True])
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
