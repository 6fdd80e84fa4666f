"""A round that has begun: may it still publish, where is it, how did it end."""

import time
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from ml_backend.errors import EmptyPool, QueueError, StaleRound, TooFewLabels, UnknownProject
from ml_backend.queueing.status import LastError, Progress, QueueStatus
from ml_backend.records import ProjectKey, Reason

__all__ = ["Claim"]

PROGRESS_INTERVAL_S = 0.2
# Time alone mends none of these: images, labels and a connection come with an event of their own.
WAITS_FOR_AN_EVENT = (EmptyPool, TooFewLabels, UnknownProject)

log = structlog.get_logger()


class _Queue(Protocol):
    def newest(self, project: ProjectKey) -> str | None: ...

    def status(self, project: ProjectKey) -> QueueStatus: ...

    def learn(self, project: ProjectKey, token: str, reason: Reason) -> int: ...

    def settle(self, project: ProjectKey, token: str, error: LastError | None, *, again: bool = True) -> None: ...

    def write_progress(self, project: ProjectKey, progress: Progress) -> None: ...


@dataclass(slots=True)
class Claim:
    """A round that has begun. ``progress`` and ``guard`` are what ``engine.ports`` wants under these names.

    Attributes:
        token: fences a run off from later ones; only the newest may publish.
        changes: that this round answers for.
        reason: what calls for the round; another than that of the request where a stronger one came while it waited.
        started: unix seconds.
    """

    queue: _Queue
    project: ProjectKey
    generation: int
    token: str
    changes: int
    reason: Reason = "labels"
    started: float = field(default_factory=time.time)
    _last: Progress | None = None

    def guard(self) -> None:
        """Make sure that no newer run of the project has begun, as far as Redis knows.

        Redis may be away, or emptied: it is no reason to lose a round. ``storage.ProjectStore.require_newest`` stands
        guard beside this.

        Raises:
            StaleRound: a newer run has begun.
        """
        try:
            newest = self.queue.newest(self.project)
        except QueueError as error:
            log.warning("the round goes on without Redis", error=str(error))
            return
        if newest is not None and newest != self.token:
            raise StaleRound(
                f"run {self.generation} of project {self.project} publishes nothing: a newer one has begun"
            )

    def make_way(self) -> None:
        """Make sure that no other run of the project has begun or waits: for what readers can do without.

        Raises:
            StaleRound: one has begun, or waits for this one to end.
        """
        self.guard()
        try:
            waiting = self.queue.status(self.project).waiting
        except QueueError:
            return
        if waiting is not None:
            raise StaleRound(f"a round of project {self.project} waits ({waiting})")

    def learn(self) -> Reason:
        """Go on as a round that learns: what was asked for can be had in no other way.

        A Redis that is away is no reason to lose it; then the changes that it learns from may call for another round.

        Returns:
            The reason of the round from now on.
        """
        self.reason = "forced"
        try:
            self.changes = self.queue.learn(self.project, self.token, self.reason)
        except QueueError as error:
            log.warning("the round goes on without Redis", error=str(error))
        return self.reason

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show where the round is, at most five times a second within a stage. Never raises."""
        now, last = time.time(), self._last
        same_stage = last is not None and last.stage == stage
        if last is not None and same_stage and done < total and now - last.updated < PROGRESS_INTERVAL_S:
            return
        self._last = Progress(
            generation=self.generation,
            stage=stage,
            done=done,
            total=total,
            started=self.started,
            stage_started=last.stage_started if last is not None and same_stage else now,
            updated=now,
        )
        self.queue.write_progress(self.project, self._last)

    def finish(self) -> None:
        """The ranking is published.

        Raises:
            QueueError: Redis does not answer.
        """
        self.queue.settle(self.project, self.token, None)

    def fail(self, error: BaseException) -> None:
        """The round came to nothing: its changes are given back, the error is kept, and time alone starts it again.

        What waits for images, for labels or for a connection comes again with these.

        Raises:
            QueueError: Redis does not answer.
        """
        kind, message = type(error).__name__, str(error) or repr(error)
        told = LastError(kind=kind, message=message, at=time.time())
        self.queue.settle(self.project, self.token, told, again=not isinstance(error, WAITS_FOR_AN_EVENT))
