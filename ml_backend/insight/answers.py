"""When readers answered, how long it took them, and what they said: Label Studio's annotations as they were read."""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any

import structlog
from pydantic import AwareDatetime, Field

from ml_backend.errors import PayloadError
from ml_backend.label_studio.formats import LabelConfig, read_annotation, read_image
from ml_backend.label_studio.mirror import Mirror
from ml_backend.records import Record
from ml_backend.settings import ProjectOptions

__all__ = ["Answer", "answers_of"]

log = structlog.get_logger(__name__)


class Answer(Record):
    """One reader's answer about one image.

    Attributes:
        created_at: when it was submitted first; an edit leaves it as it is.
        lead_time_s: seconds that the image was open, as the reader's browser measured them; edits add to it. None where
            it was not measured.
        skipped: by the button of that name.
        value: the class; None where the reader skipped or called the image unreadable.
    """

    image_id: str
    rater: str
    created_at: AwareDatetime
    lead_time_s: Annotated[float, Field(ge=0.0)] | None = None
    skipped: bool = False
    value: str | None = None


def answers_of(mirror: Mirror, config: LabelConfig, options: ProjectOptions) -> list[Answer]:
    """Every answer of a project, oldest first.

    Never raises: annotations that cannot be read are left out, and the log counts them.

    Args:
        mirror: of the last reading.
        config: the project's question.
        options: its owner's, that say which choice means unreadable.
    """
    found: list[Answer] = []
    left_out = 0
    for task in mirror.annotated():
        for item in task["annotations"]:
            answer = _answer(item, task, config, options)
            if answer is None:
                left_out += 1
            else:
                found.append(answer)
    if left_out:
        log.warning("some annotations cannot be read, and are left out of what is told", count=left_out)
    return sorted(found, key=lambda answer: answer.created_at)  # stable: of one moment, by task


def _answer(
    item: Mapping[str, Any], task: Mapping[str, Any], config: LabelConfig, options: ProjectOptions
) -> Answer | None:
    try:
        said = read_annotation(item, read_image(task, config), config, options)
        created_at = datetime.fromisoformat(item["created_at"])
    except (PayloadError, KeyError, TypeError, ValueError):
        return None
    return Answer(
        image_id=said.image.id,
        rater=said.rater,
        created_at=created_at if created_at.tzinfo else created_at.replace(tzinfo=UTC),
        lead_time_s=_seconds(item.get("lead_time")),
        skipped=bool(item["was_cancelled"]),
        value=said.value,
    )


def _seconds(value: object) -> float | None:
    """A measured time; what no clock can have measured is None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) and value >= 0 else None
