"""What a project holds now, at the cost of what changed since it was last read.

Label Studio renews a task's ``updated_at`` with every annotation made, changed, skipped or deleted, so that the tasks
changed since the last reading are one short request. A deleted task answers to no filter; the project's own counts
tell that one is missing, and halving the ids tells which. Where the counts and the mirror do not agree in the end, the
project is read whole, and so it is once a day, whatever the counts say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.mirror import Counts, Mirror

__all__ = ["Reading", "read_project"]

# A task's time is taken before its row can be seen, and a proxy's clock is not Label Studio's.
OVERLAP = timedelta(seconds=60)
WHOLE_EVERY = timedelta(days=1)  # an error that no count shows lives no longer
TRIES = 3  # readers who label in between make counts and tasks disagree for a moment
SEARCHES = 60  # requests for deleted tasks, about 0.1 s each; beyond them the whole is cheaper

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """A project as it was read.

    Attributes:
        mirror: its tasks.
        project: its row in Label Studio.
        rows: tasks that were transferred.
        whole: whether all of it was read.
    """

    mirror: Mirror
    project: Mapping[str, Any]
    rows: int
    whole: bool


def read_project(client: LabelStudioClient, project_id: int, kept: Mirror | None) -> Reading:
    """Read what changed since ``kept`` was, or everything.

    Args:
        client: of Label Studio.
        project_id: the project.
        kept: the mirror of the last reading; None where there is none.

    Raises:
        RequestRefused, LabelStudioError, PayloadError: see ``LabelStudioClient``.
    """
    reading = None if kept is None else _read_changes(client, project_id, kept)
    reading = reading or _read_whole(client, project_id)
    if (skip_queue := reading.project.get("skip_queue")) != reading.mirror.skip_queue:
        reading = replace(reading, mirror=reading.mirror.model_copy(update={"skip_queue": skip_queue}))
    return reading


def _read_changes(client: LabelStudioClient, project_id: int, kept: Mirror) -> Reading | None:
    """None where the mirror cannot be brought to what the project's counts say."""
    mirror, rows = kept, 0
    for _ in range(TRIES):
        project, clock = client.project_and_clock(project_id)
        if clock is None or not _usable(mirror, clock):
            return None
        counts = Counts.of(project)
        changed = list(client.changed_tasks(project_id, mirror.read_at - OVERLAP))
        rows += len(changed)
        # A mirror that nothing was added to keeps its time: there is nothing to write, and no more to read next time.
        mirror = mirror.renewed(changed, clock) if changed else mirror
        if mirror.counts == counts:
            return Reading(mirror, project, rows, whole=False)
        if mirror.counts.tasks > counts.tasks:
            gone = _deleted(client, project_id, sorted(mirror.tasks))
            if gone is None:
                return None
            mirror = mirror.renewed((), clock, gone)
    log.info("reading whole: the counts differ", read=mirror.counts, counted=counts)
    return None


def _read_whole(client: LabelStudioClient, project_id: int) -> Reading:
    project, clock = client.project_and_clock(project_id)
    # Without a clock nothing can be said about what changes from now on: the next reading is whole again.
    start = clock or datetime(1970, 1, 1, tzinfo=UTC)
    mirror = Mirror(read_at=start, whole_at=start, tasks={}).renewed(client.changed_tasks(project_id), start)
    return Reading(mirror, project, len(mirror.tasks), whole=True)


def _usable(mirror: Mirror, clock: datetime) -> bool:
    # A clock that was set back gives changes a time before the last reading.
    return mirror.read_at <= clock and mirror.whole_at <= clock < mirror.whole_at + WHOLE_EVERY


def _deleted(client: LabelStudioClient, project_id: int, ids: Sequence[int]) -> set[int] | None:
    """Which of these tasks, in ascending order, are gone; None where that takes too long to find out."""
    searches = 0
    gone: set[int] = set()
    open_ranges = [(ids, client.count_tasks(project_id, ids[0], ids[-1]))]
    while open_ranges:
        found, there = open_ranges.pop()
        if there == 0:
            gone.update(found)
        elif there != len(found):
            searches += 1
            # More tasks than we know, or fewer than none: somebody imports or deletes at this moment.
            if searches > SEARCHES or not 0 <= there < len(found):
                return None
            left, right = found[: len(found) // 2], found[len(found) // 2 :]
            in_left = client.count_tasks(project_id, left[0], left[-1])
            open_ranges += [(left, in_left), (right, there - in_left)]
    return gone
