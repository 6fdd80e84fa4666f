"""Which strategy ranked when."""

from datetime import timedelta

from ml_backend.analytics.history import strategy_history
from ml_backend.schemas import RoundTrigger
from ml_backend.storage import RoundSummary
from tests.fakes import NOON, make_report, make_request


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

        assert first.sentence == "entropy from the first round on (r000001)."
        assert second.sentence == ("bald instead of entropy since r000002: at once, by the last network.")
        assert third.sentence == "margin instead of bald since r000003: with the next round, by a new network."
