"""How the accuracy on control images went, counted by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from ml_backend.analytics.evaluation import HoldoutLabel, by_round, newcombe, running, trend, wilson
from ml_backend.schemas import Label
from tests.fakes import make_image

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def answered(*rounds: str) -> Sequence[HoldoutLabel]:
    """A word a round, from r000001 on: "y" an image that the network had right, "n" one that it had not."""
    return [
        HoldoutLabel(
            Label(image=make_image(100 * number + place), value="severe" if said == "y" else "normal", raters=1),
            f"r{number:06d}",
            {"normal": 0.2, "severe": 0.8},
            NOON,
        )
        for number, word in enumerate(rounds, start=1)
        for place, said in enumerate(word)
    ]


def counts(told):
    return [(one.round_id, one.correct, one.n) for one in told]


class TestByRound:
    def test_each_for_itself(self):
        found = by_round(answered("yyn", "", "ny"))

        assert counts(found) == [("r000001", 2, 3), ("r000003", 1, 2)]
        assert (found[0].low, found[0].high) == wilson(2, 3)
        assert found[0].accuracy == pytest.approx(2 / 3)


class TestRunning:
    def test_of_the_newest_until_then(self):
        """The window of 4 after round 3 holds "n" of round 1, "ny" of round 2 and "y" of round 3."""
        found = running(answered("yyn", "ny", "y"), window=4, enough=2)

        assert counts(found) == [("r000001", 2, 3), ("r000002", 2, 4), ("r000003", 2, 4)]
        assert (found[2].low, found[2].high) == wilson(2, 4)

    def test_nothing_is_told_before_there_are_enough(self):
        assert counts(running(answered("yy", "n", "y"), window=9, enough=3)) == [("r000002", 2, 3), ("r000003", 3, 4)]
        assert running(answered("yy"), window=9, enough=3) == ()

    def test_a_round_in_which_none_was_labelled_has_no_point_of_its_own(self):
        assert counts(running(answered("yy", "", "n"), window=9, enough=1)) == [("r000001", 2, 2), ("r000003", 2, 3)]


class TestTrend:
    def test_the_newest_half_against_the_other(self):
        """Of "nny" "ny" "yy" the last three are "yyy", the first of round 2, and before them stand "nyn"."""
        found = trend(answered("nny", "ny", "yy"), window=9, enough=3)

        assert found is not None
        assert (found.n, found.since, found.correct, found.before) == (3, "r000002", 3, 1)
        assert found.difference == pytest.approx(2 / 3)
        assert (found.low, found.high) == newcombe(3, 3, 1, 3)

    def test_what_is_older_than_two_windows_is_left_out(self):
        found = trend(answered("yyyyy", "yn", "yn"), window=2, enough=2)

        assert found is not None
        assert (found.n, found.since, found.correct, found.before) == (2, "r000003", 1, 1)

    def test_none_where_a_half_is_too_small(self):
        assert trend(answered("yyyyy"), window=9, enough=3) is None
        assert trend(answered("yyyyyy"), window=9, enough=3) is not None

    def test_rises_only_where_luck_is_ruled_out(self):
        clearly = trend(answered("n" * 30, "y" * 30), window=100, enough=30)
        hardly = trend(answered("n" * 15 + "y" * 15, "n" * 13 + "y" * 17), window=100, enough=30)

        assert clearly is not None
        assert clearly.rises
        assert hardly is not None
        assert not hardly.rises

    def test_in_words(self):
        found = trend(answered("n" * 12 + "y" * 18, "n" * 3 + "y" * 27), window=100, enough=30)

        assert found is not None
        assert found.summary == (
            "the network was right about 27 of the last 30, since r000002, and about 18 of the 30 before "
            f"(+30 points, 95 % interval {100 * found.low:+.0f} to {100 * found.high:+.0f})"
        )
