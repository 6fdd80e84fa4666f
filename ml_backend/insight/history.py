"""Which strategy ranked when: every change of it, from the rounds."""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from ml_backend.records import Record, RoundReport

__all__ = ["StrategyChange", "strategy_history"]

How = Literal["connected", "at once", "with the next round"]


class StrategyChange(Record):
    """The owner chose a strategy, and a round ranked by it.

    Attributes:
        round_id: the first round that ranked by it.
        at: when that round began.
        before: the strategy until then; None for the first.
        after: the strategy from then on.
        how: with the first round; by ranking anew what the last network had said; or with the next training.
        sentence: the same for the owner.
    """

    round_id: str
    at: datetime
    before: str | None
    after: str
    how: How
    sentence: str


def strategy_history(reports: Iterable[RoundReport]) -> tuple[StrategyChange, ...]:
    """Every change of the strategy, the first choice first.

    A round of the cold start counts with the strategy that the owner had chosen by then.

    Args:
        reports: of the project's rounds, oldest first.
    """
    changes: list[StrategyChange] = []
    for report in reports:
        request = report.request
        before = changes[-1].after if changes else None
        if request.strategy == before:
            continue
        how: How = "with the next round" if request.reason != "rerank" else "at once"
        changes.append(
            StrategyChange(
                round_id=request.round_id,
                at=report.started_at,
                before=before,
                after=request.strategy,
                how="connected" if before is None else how,
                sentence=_sentence(request.round_id, before, request.strategy, how),
            )
        )
    return tuple(changes)


def _sentence(round_id: str, before: str | None, after: str, how: How) -> str:
    if before is None:
        return f"{after} from the first round on ({round_id})."
    network = "by what the last network had said" if how == "at once" else "by a new network"
    return f"{after} instead of {before} since {round_id}: {how}, {network}."
