"""How far the readers of a project have come, and how fast."""

from collections.abc import Sequence
from datetime import date
from statistics import median
from typing import Final

from ml_backend.analytics.history import Answer, Count
from ml_backend.analytics.stopping import LONGEST_ANSWER_S
from ml_backend.schemas import FrozenModel

RECENT: Final = 100
"""Answers that the pace is measured on."""


class ReadingProgress(FrozenModel):
    """What readers have answered, without skips.

    Attributes:
        images: with an answer.
        day: of the last answer given in a browser, in the time zone of this machine; None before the first.
        images_of_day: that were answered in a browser on this day; imported answers have no lead time.
        seconds: median lead time of the last ``RECENT`` answers, without those of 0 s and above 30 minutes; None where
            none is left.
    """

    images: Count
    day: date | None = None
    images_of_day: Count = 0
    seconds: float | None = None

    def images_on(self, day: date) -> int:
        """Images that were answered on a day, which is not before the last answer."""
        return self.images_of_day if day == self.day else 0


def reading_progress(answers: Sequence[Answer]) -> ReadingProgress:
    """Count the answers of a project.

    Args:
        answers: oldest first.
    """
    given = [one for one in answers if not one.skipped]
    timed = [one for one in given if one.lead_time_s is not None]
    days = {one.image_id: one.created_at.astimezone().date() for one in timed}
    newest = max(days.values(), default=None)
    seconds = [s for one in timed if (s := one.lead_time_s) is not None and 0.0 < s <= LONGEST_ANSWER_S][-RECENT:]
    return ReadingProgress(
        images=len({one.image_id for one in given}),
        day=newest,
        images_of_day=sum(day == newest for day in days.values()),
        seconds=median(seconds) if seconds else None,
    )
