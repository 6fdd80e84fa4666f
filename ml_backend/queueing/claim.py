"""A round that has begun: may it still publish, where is it, how did it end."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from ml_backend.errors import StaleRound
from ml_backend.queueing.status import LastError, Progress
from ml_backend.records import ProjectKey

__all__ = ["Claim"]

PROGRESS_INTERVAL_S = 0.2


class _Queue(Protocol):
    def holds(self, project: ProjectKey, token: str) -> bool: ...

    def settle(self, project: ProjectKey, token: str, error: LastError | None) -> None: ...

    def write_progress(self, project: ProjectKey, progress: Progress) -> None: ...


@dataclass(slots=True)
class Claim:
    """A round that has begun. ``progress`` and ``guard`` are what ``engine.ports`` wants under these names.

    Attributes:
        token: fences a run off from later ones; only the newest may publish.
        changes: that this round answers for.
        started: unix seconds.
    """

    queue: _Queue
    project: ProjectKey
    generation: int
    token: str
    changes: int
    started: float = field(default_factory=time.time)
    _last: Progress | None = None

    def guard(self) -> None:
        """Make sure that this run may still publish.

        Raises:
            StaleRound: a newer run of the project has begun, the project is gone, or Redis was emptied.
            QueueError: Redis does not answer.
        """
        if not self.queue.holds(self.project, self.token):
            raise StaleRound(
                f"run {self.generation} of project {self.project} publishes nothing: "
                "a newer one has begun, the project is gone, or Redis was emptied"
            )

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
        """The round came to nothing: its changes are given back, the error is kept.

        Raises:
            QueueError: Redis does not answer.
        """
        kind, message = type(error).__name__, str(error) or repr(error)
        self.queue.settle(self.project, self.token, LastError(kind=kind, message=message, at=time.time()))
