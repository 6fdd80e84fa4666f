"""What a round is doing, and how long it may still take."""

from typing import get_args

import pytest

from ml_backend.scheduling import Progress
from ml_backend.schemas import AFTER_A_ROUND, STAGES, Stage
from ml_backend.server.views import duration, running, usual_seconds
from ml_backend.storage import RoundSummary
from tests.fakes import make_report

USUAL = {"labels": 1.0, "train": 60.0, "score": 40.0, "rank": 2.0}


def progress(stage, done, total, began=0.0):
    return Progress(
        generation=1, stage=stage, done=done, total=total, started=0, stage_started=began, updated=began + 10
    )


def test_every_stage_has_words():
    assert set(STAGES) == set(get_args(Stage))
    assert set(AFTER_A_ROUND) < set(STAGES)


class TestRunning:
    def test_rate_of_the_stage_and_the_usual_time_of_those_after_it(self):
        """A quarter in 10 s leaves 30 s; ranking takes 2 s more."""
        found = running(progress("score", 1, 4), USUAL, now=10.0)

        assert (found.done, found.left_s) == (0.25, 32.0)
        assert found.left == "about 32 seconds"

    def test_training_mostly_ends_before_its_last_epoch(self):
        """At its rate 90 s are left, but it usually takes 60 s, of which 10 are over."""
        assert running(progress("train", 5, 50), USUAL, now=10.0).left_s == 50.0 + 42.0

    def test_not_told_where_nothing_is_known(self):
        found = running(progress("train", 0, 50), {}, now=10.0)

        assert found.left_s is None
        assert "not known" in found.left

    def test_says_how_long_it_has_been_silent(self):
        assert running(progress("train", 1, 50), USUAL, now=400.0).silent_s == 390.0

    def test_a_stage_of_another_version(self):
        assert running(progress("dream", 1, 2), USUAL, now=10.0).does == "dream"

    @pytest.mark.parametrize(("done", "total"), [(0, 0), (5, 0), (9, 4), (-1, 4)])
    def test_odd_counts(self, done, total):
        assert 0.0 <= running(progress("score", done, total), USUAL, now=10.0).done <= 1.0


class TestUsual:
    def test_rounds_without_a_training_do_not_count(self):
        assert usual_seconds([RoundSummary.of(make_report())]) == {}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "less than a second"),
        (1, "about 1 second"),
        (42.4, "about 42 seconds"),
        (90, "about 2 minutes"),
        (4000, "about 67 minutes"),
        (5400, "about 2 hours"),
        (2e5, "about 2 days"),
    ],
)
def test_durations_in_words(seconds, told):
    assert duration(seconds) == told
