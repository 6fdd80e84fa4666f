"""What a project is doing, in words, and how long it may still take. Pure: it is told the time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from ml_backend.insight.lines import RoundLine
from ml_backend.queueing import Progress
from ml_backend.records import AFTER_A_ROUND, STAGES, Reason

__all__ = ["REASONS", "Running", "duration", "running", "usual_seconds"]

REASONS: Final[dict[Reason, str]] = {
    "connected": "the project was connected, or its set-up mended",
    "images": "new images came",
    "labels": "enough labels changed",
    "forced": "somebody asked for it",
    "topup": "readers need more images; nothing is trained",
    "rerank": "another strategy was chosen; nothing is trained, unless the last network cannot be used",
}
USUAL_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Running:
    """Where a round is.

    Attributes:
        does: the stage as what the round does.
        done: share of the stage, 0 to 1.
        left_s: seconds that the round may still take; None where that cannot be told.
        silent_s: seconds since the last sign of progress.
    """

    does: str
    done: float
    left_s: float | None
    silent_s: float

    @property
    def left(self) -> str:
        """The time left in words."""
        return "time left not known yet: no round like this has ended" if self.left_s is None else duration(self.left_s)


def usual_seconds(lines: Sequence[RoundLine]) -> dict[str, float]:
    """Seconds that each stage took, the median of the last rounds that trained."""
    trained = [line.seconds for line in lines if line.trained][-USUAL_ROUNDS:]
    stages = {stage for seconds in trained for stage in seconds}
    return {stage: median(seconds[stage] for seconds in trained if stage in seconds) for stage in stages}


def running(progress: Progress, usual: Mapping[str, float], now: float) -> Running:
    """Read the progress of a round.

    The stage that runs goes on at its rate so far; what comes after it takes as long as it usually did.

    Args:
        progress: as the round last told it.
        usual: seconds by stage.
        now: unix seconds.
    """
    elapsed = max(now - progress.stage_started, 0.0)
    done = min(max(progress.done / progress.total, 0.0), 1.0) if progress.total > 0 else 0.0
    return Running(
        does=STAGES.get(progress.stage, progress.stage),
        done=done,
        left_s=_left(progress.stage, done, elapsed, usual),
        silent_s=max(now - progress.updated, 0.0),
    )


def _left(stage: str, done: float, elapsed: float, usual: Mapping[str, float]) -> float | None:
    by_rate = elapsed * (1 - done) / done if done > 0 else math.inf
    by_habit = max(usual[stage] - elapsed, 0.0) if stage in usual else math.inf
    here = by_rate if done > 0 else by_habit
    if stage == "train" and by_habit > 0:
        # Training stops when the network no longer gets better, mostly long before its last epoch.
        here = min(by_rate, by_habit)
    order = [name for name in STAGES if name not in AFTER_A_ROUND]
    later = order[order.index(stage) + 1 :] if stage in order else []
    if math.isinf(here) or (stage in {"labels", "train"} and "score" not in usual):
        return None
    return here + sum(usual.get(name, 0.0) for name in later)


def duration(seconds: float) -> str:
    """A duration in the unit that a person would say it in."""
    if seconds < 1:
        return "less than a second"
    for size, name in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            return f"about {round(seconds / size)} {name}s"
    whole = max(round(seconds), 1)
    return f"about {whole} second{'' if whole == 1 else 's'}"
