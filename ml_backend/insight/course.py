"""How the accuracy on images that came by chance went: round by round, and the newest of them against those before."""

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

from pydantic import Field

from ml_backend.insight.control import ControlLabel
from ml_backend.insight.intervals import newcombe, wilson
from ml_backend.records import Record

__all__ = ["ControlRound", "ControlTrend", "by_round", "running", "trend"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class ControlRound(Record):
    """Control images as they are told at one round; ``low`` and ``high`` end Wilson's 95 % interval of the share."""

    round_id: str
    n: Count
    correct: Count
    low: Share
    high: Share

    @classmethod
    def of(cls, round_id: str, images: Sequence[ControlLabel]) -> "ControlRound":
        """Count them."""
        correct = sum(one.correct for one in images)
        low, high = wilson(correct, len(images))
        return cls(round_id=round_id, n=len(images), correct=correct, low=low, high=high)

    @property
    def accuracy(self) -> float:
        """Share right; there is at least one image."""
        return self.correct / self.n


class ControlTrend(Record):
    """The newest control images against as many before them: no image is in both, so that the two are independent.

    Attributes:
        n: images of each part.
        since: round of the first of the newest.
        correct: of the newest; ``before`` of those before them.
        difference: of the accuracies, the newest minus those before, -1 to 1.
        low: lower end of its 95 % interval; ``high`` its upper end.
    """

    n: Count
    since: str
    correct: Count
    before: Count
    difference: float
    low: float
    high: float

    @property
    def rises(self) -> bool:
        """Whether a rise is told from luck."""
        return self.low > 0

    @property
    def told(self) -> str:
        """The counts and their difference, as part of a sentence."""
        return (
            f"the network was right about {self.correct} of the last {self.n}, since {self.since}, and about "
            f"{self.before} of the {self.n} before ({100 * self.difference:+.0f} points, 95 % interval "
            f"{100 * self.low:+.0f} to {100 * self.high:+.0f})"
        )


def by_round(images: Sequence[ControlLabel]) -> tuple[ControlRound, ...]:
    """Those of each round by themselves, oldest round first.

    Args:
        images: oldest first, so that those of a round stand together.
    """
    return tuple(ControlRound.of(name, list(group)) for name, group in groupby(images, key=lambda one: one.round_id))


def running(images: Sequence[ControlLabel], *, window: int, enough: int) -> tuple[ControlRound, ...]:
    """The estimate as it stood after each round, oldest first: of the newest images until then.

    Successive estimates share most of their images, and networks of several rounds have answered them: a rise shows
    late, and less steep than it is.

    Args:
        images: oldest first.
        window: images that an estimate is about, at most.
        enough: images that it takes; rounds at which there were fewer are left out.
    """
    found, until = [], 0
    for one in by_round(images):
        until += one.n
        if until >= enough:
            found.append(ControlRound.of(one.round_id, images[max(until - window, 0) : until]))
    return tuple(found)


def trend(images: Sequence[ControlLabel], *, window: int, enough: int) -> ControlTrend | None:
    """Whether the accuracy rises: the newest half of the images against the other.

    Args:
        images: oldest first.
        window: images of each half, at most; what is older is left out.
        enough: images that each half takes; None where there are fewer.
    """
    n = min(len(images) // 2, window)
    if n < enough:
        return None
    newest, older = images[-n:], images[-2 * n : -n]
    correct, before = sum(one.correct for one in newest), sum(one.correct for one in older)
    low, high = newcombe(correct, n, before, n)
    return ControlTrend(
        n=n,
        since=newest[0].round_id,
        correct=correct,
        before=before,
        difference=(correct - before) / n,
        low=low,
        high=high,
    )
