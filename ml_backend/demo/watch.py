"""Follows the rounds of one project from outside: what is published, what runs, what went wrong."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from ml_backend.errors import RoundError
from ml_backend.queueing import Progress as RoundProgress
from ml_backend.queueing import QueueStatus
from ml_backend.records import ProjectKey, Published, RoundReport
from ml_backend.storage import RoundStore

__all__ = ["ProjectReader", "RoundFollower", "StatusReader"]

STALL_S = 300.0  # without any progress: the slowest step of a demo round takes a tenth of that


class ProjectReader(Protocol):
    """What is asked of Label Studio."""

    def project(self, project_id: int) -> Mapping[str, Any]: ...


class StatusReader(Protocol):
    """What is asked of the queue."""

    def status(self, project: ProjectKey) -> QueueStatus: ...


class RoundFollower:
    """What has happened to a project's rounds so far.

    Args:
        client: of the project's owner.
        store: the data folder that server and worker share.
        queue: their Redis.
        project: to follow.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: ProjectReader,
        store: RoundStore,
        queue: StatusReader,
        project: ProjectKey,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._queue = queue
        self._project = project
        self._store = store.project(project)
        self._clock = clock
        self._moved_at = clock()
        self._last_seen: object = None
        self.rounds: list[tuple[RoundReport, Published]] = []  # oldest first
        self.visible_at: dict[str, datetime] = {}  # version -> when Label Studio was first seen to serve by it
        self.claimed_at: dict[str, datetime] = {}  # version -> when the worker took its round from the queue
        self._claim: datetime | None = None

    @property
    def rankings(self) -> dict[str, tuple[str, ...]]:
        """Version -> image ids in the order in which they should be served."""
        return {published.version: published.image_ids for _, published in self.rounds}

    @property
    def trained(self) -> int:
        """Published rounds that had a network."""
        return sum(report.trained for report, _ in self.rounds)

    def is_newer(self, progress: RoundProgress) -> bool:
        """Whether it is of a round after the newest published one."""
        return not self.rounds or progress.started > self.rounds[-1][0].started_at.timestamp()

    def version(self) -> str:
        """The version that Label Studio serves by now; empty where there is none."""
        version = str(self._client.project(self._project.id).get("model_version") or "")
        self.visible_at.setdefault(version, datetime.now(UTC))
        return version

    def poll(self, *, patient: bool = False) -> QueueStatus:
        """Look once.

        Args:
            patient: nothing has to move, because nobody may be labelling.

        Raises:
            RoundError: the last round failed, or nothing has moved for five minutes.
            QueueError, StorageError: these cannot be read.
        """
        status = self._queue.status(self._project)
        if status.last_error is not None and status.failing:
            raise RoundError(f"a round failed: {status.last_error.message} ({status.last_error.kind})")
        # Before the progress of the next round takes its place.
        if (published := self._store.published()) is not None:
            self._note(published)
        if status.progress is not None:
            self._claim = datetime.fromtimestamp(status.progress.started, UTC)
        if not patient:
            self._check_moving(status, published)
        return status

    def _note(self, published: Published) -> None:
        if self.rounds and self.rounds[-1][1].version == published.version:
            # Written a second time with the time that the deletion of the old version took.
            self.rounds[-1] = (self.rounds[-1][0], published)
            return
        report = self._store.report(published.round_id)
        self.rounds.append((report, published))
        claimed = self._claim is not None and self._claim <= report.started_at
        self.claimed_at[published.version] = self._claim if claimed and self._claim else report.started_at

    def _check_moving(self, status: QueueStatus, published: Published | None) -> None:
        seen = (status, published)
        if seen != self._last_seen:
            self._last_seen, self._moved_at = seen, self._clock()
        elif self._clock() - self._moved_at > STALL_S:
            state = f"running: {status.running}, waiting: {status.waiting}, changes: {status.changes}"
            raise RoundError(f"no round has moved for {STALL_S:.0f} s ({state}): see the worker's log")
