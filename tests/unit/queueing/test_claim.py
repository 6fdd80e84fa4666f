"""A round that has begun, over a queue in memory."""

import pytest

from ml_backend.errors import StaleRound
from ml_backend.queueing.claim import Claim
from ml_backend.queueing.status import LastError, Progress
from ml_backend.records import ProjectKey

PROJECT = ProjectKey(id=2, created=1795384774)


class MemoryQueue:
    """Remembers what a claim tells it."""

    def __init__(self) -> None:
        self.newest = "token"
        self.written: list[Progress] = []
        self.ends: list[LastError | None] = []

    def holds(self, project: ProjectKey, token: str) -> bool:
        return token == self.newest

    def settle(self, project: ProjectKey, token: str, error: LastError | None) -> None:
        self.ends.append(error)

    def write_progress(self, project: ProjectKey, progress: Progress) -> None:
        self.written.append(progress)


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def claim(queue: MemoryQueue) -> Claim:
    return Claim(queue, PROJECT, generation=3, token="token", changes=20, started=100.0)


class TestGuard:
    def test_holds_until_a_newer_run_begins(self, claim, queue):
        claim.guard()
        queue.newest = "another"
        with pytest.raises(StaleRound, match="run 3 of project"):
            claim.guard()


class TestProgress:
    def test_at_most_five_times_a_second_but_for_a_new_stage_and_its_end(self, claim, queue, monkeypatch):
        """1024 calls in a second of 'train' make six writes: the first, one after every 0.2 s (205 calls), the last."""
        now = 1024.0
        monkeypatch.setattr("ml_backend.queueing.claim.time.time", lambda: now)
        for done in range(1, 1025):
            now = 1024.0 + (done - 1) / 1024
            claim.progress("train", done, 1024)
        assert [p.done for p in queue.written] == [1, 206, 411, 616, 821, 1024]

        claim.progress("score", 0, 10)

        first, last = queue.written[0], queue.written[-1]
        assert (last.stage, last.done, last.total, last.generation) == ("score", 0, 10, 3)
        assert (first.started, first.stage_started, last.started, last.stage_started) == (100.0, 1024.0, 100.0, now)


class TestEnd:
    def test_finish(self, claim, queue):
        claim.finish()
        assert queue.ends == [None]

    def test_fail_keeps_the_error_in_words(self, claim, queue):
        claim.fail(RuntimeError("out of memory"))
        claim.fail(MemoryError())

        told = [(error.kind, error.message) for error in queue.ends]
        assert told == [("RuntimeError", "out of memory"), ("MemoryError", "MemoryError()")]
