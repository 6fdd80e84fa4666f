"""A queue in memory, and the recorded payloads."""

import json
import time
from pathlib import Path
from typing import Any

from ml_backend.scheduling import QueueStatus, RoundQueue
from ml_backend.schemas import ProjectKey, RoundTrigger

PROJECT = ProjectKey(id=2, created=1795384774)  # of the payloads
PAYLOADS = Path(__file__).parents[2] / "data" / "payloads"


class MemoryQueue(RoundQueue):
    """Notes what is asked of it; one project, nobody runs anything. The real one is tested on a real Redis."""

    def __init__(self) -> None:
        self.state = QueueStatus()
        self.told: dict[str, str] = {}  # event -> address that it came to first
        self.requests: list[RoundTrigger] = []
        self.idle_requests: list[RoundTrigger] = []
        self.refuses = False  # as where a round waits already
        self.refuses_idle = False  # as in the pause after a failure

    def count_changes(
        self, project: ProjectKey, n: int, threshold: int | None = None, annotations: int | None = None
    ) -> QueueStatus:
        state = self.state
        self.state = state.model_copy(
            update={
                "changes": state.changes + n,
                "threshold": state.threshold if threshold is None else threshold,
                "annotations": state.annotations if annotations is None else annotations,
            }
        )
        return self.state

    def is_duplicate_event(self, project: ProjectKey, event: str, address: str) -> bool:
        if again := self.told.setdefault(event, address) != address:
            self.state = self.state.model_copy(update={"told_twice_at": time.time()})
        return again

    def request_round(self, project: ProjectKey, reason: RoundTrigger, *, only_if_idle: bool = False) -> bool:
        (self.idle_requests if only_if_idle else self.requests).append(reason)
        return not (self.refuses_idle if only_if_idle else self.refuses)

    def status(self, project: ProjectKey) -> QueueStatus:
        return self.state

    def forget(self, project: ProjectKey) -> None:
        self.state = QueueStatus()

    def workers(self) -> int:
        return 1


def payload(name: str) -> dict[str, Any]:
    """A body that Label Studio 1.23.2 really sent."""
    body: dict[str, Any] = json.loads((PAYLOADS / f"{name}.json").read_text())
    return body
