"""What needs no Redis: addresses, and a claimed round over a queue in memory; ``tests/integration`` has the rest."""

import importlib
import signal

import pytest
from structlog.testing import capture_logs

from ml_backend.config import Settings
from ml_backend.errors import (
    EmptyPool,
    LabelStudioError,
    QueueError,
    SettingsError,
    StaleRound,
    StorageError,
    TooFewLabels,
    UnknownProject,
    WorkerStopping,
)
from ml_backend.scheduling import JOB, Claim, LastError, Progress, QueueStatus, RoundQueue, connect_redis
from ml_backend.scheduling.queue import Shutdown
from ml_backend.schemas import ProjectKey, RoundTrigger

PROJECT = ProjectKey(id=2, created=1795384774)


class MemoryQueue(RoundQueue):
    """Remembers what a claim tells it."""

    def __init__(self) -> None:
        self.token: str | None = "token"
        self.away = False
        self.waiting: RoundTrigger | None = None
        self.written: list[Progress] = []
        self.ends: list[tuple[LastError | None, bool]] = []
        self.learns: list[tuple[str, RoundTrigger]] = []

    def newest_token(self, project: ProjectKey) -> str | None:
        if self.away:
            raise QueueError("Redis does not answer")
        return self.token

    def status(self, project: ProjectKey) -> QueueStatus:
        if self.away:
            raise QueueError("Redis does not answer")
        return QueueStatus(waiting=self.waiting)

    def start_training(self, project: ProjectKey, token: str, reason: RoundTrigger) -> int:
        if self.away:
            raise QueueError("Redis does not answer")
        self.learns.append((token, reason))
        return 27

    def settle(self, project: ProjectKey, token: str, error: LastError | None, *, retry: bool = True) -> None:
        self.ends.append((error, retry))

    def write_progress(self, project: ProjectKey, progress: Progress) -> None:
        self.written.append(progress)


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def claim(queue: MemoryQueue) -> Claim:
    return Claim(queue, PROJECT, generation=3, token="token", changes=20, started=100.0)


class TestMakeWay:
    """For what readers can do without: a network that only measures."""

    @pytest.mark.parametrize("reason", ["labels", "topup"])
    def test_for_whatever_waits(self, claim, queue, reason):
        claim.raise_if_preempted()
        queue.waiting = reason
        with pytest.raises(StaleRound, match=rf"waits \({reason}\)"):
            claim.raise_if_preempted()

    def test_for_a_newer_run(self, claim, queue):
        queue.token = "another"
        with pytest.raises(StaleRound, match="run 3 of project"):
            claim.raise_if_preempted()

    def test_not_for_a_redis_that_is_away(self, claim, queue):
        queue.away = True
        claim.raise_if_preempted()


class TestLearn:
    def test_takes_the_changes(self, claim, queue):
        assert claim.start_training() == claim.reason == "forced"

        assert claim.changes == 27
        assert queue.learns == [("token", "forced")]

    def test_goes_on_without_redis(self, claim, queue):
        queue.away = True
        with capture_logs() as logs:
            assert claim.start_training() == "forced"

        assert claim.changes == 20
        assert [line["event"] for line in logs] == ["the round continues without Redis"]


class TestGuard:
    def test_holds_until_a_newer_run_begins(self, claim, queue):
        claim.ensure_current()
        queue.token = "another"
        with pytest.raises(StaleRound, match="run 3 of project"):
            claim.ensure_current()

    def test_an_emptied_redis_is_no_reason_to_lose_the_round(self, claim, queue):
        queue.token = None
        claim.ensure_current()

    def test_nor_is_one_that_is_away(self, claim, queue):
        queue.away = True
        with capture_logs() as logs:
            claim.ensure_current()
        assert [log["event"] for log in logs] == ["the round continues without Redis"]


class TestProgress:
    def test_at_most_five_times_a_second_but_for_a_new_stage_and_its_end(self, claim, queue, monkeypatch):
        """1024 calls in a second of 'train' make six writes: the first, one after every 0.2 s (205 calls), the last."""
        now = 1024.0
        monkeypatch.setattr("ml_backend.scheduling.queue.time.time", lambda: now)
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
        assert [error for error, _ in queue.ends] == [None]

    def test_fail_keeps_the_error_in_words(self, claim, queue):
        claim.fail(RuntimeError("out of memory"))
        claim.fail(MemoryError())

        told = [(error.kind, error.message) for error, _ in queue.ends]
        assert told == [("RuntimeError", "out of memory"), ("MemoryError", "MemoryError()")]

    @pytest.mark.parametrize(
        ("error", "again"),
        [
            (RuntimeError("a bug, or too little memory"), True),
            (LabelStudioError("it is away"), True),
            (StorageError("the disk is full"), True),
            (SettingsError("no key: a worker started with one mends it"), True),
            (StaleRound("outdated on disk alone"), True),
            (EmptyPool("images come with an event"), False),
            (TooFewLabels("labels come with an event"), False),
            (UnknownProject("gone"), False),
        ],
    )
    def test_time_alone_starts_again_what_it_can_mend(self, claim, queue, error, again):
        claim.fail(error)

        assert [tried for _, tried in queue.ends] == [again]


class TestConnectRedis:
    @pytest.mark.parametrize(
        "url", ["localhost:6379", "http://:hidden@localhost", "redis://:hidden@localhost:port/0", "redis://[hidden/0"]
    )
    def test_refuses_what_is_no_url_without_telling_the_password(self, url):
        with pytest.raises(SettingsError, match="expected redis://") as caught:
            connect_redis(url)
        assert "AL_REDIS_URL" in str(caught.value)
        assert "hidden" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "address"),
        [("redis://u:hidden@10.0.0.1:7000/3", "10.0.0.1:7000/3"), ("unix:///run/valkey.sock", "/run/valkey.sock")],
    )
    def test_address(self, url, address):
        assert RoundQueue(connect_redis(url)).address == address


class TestFromSettings:
    def test_opens_no_connection(self):
        assert RoundQueue.from_settings(Settings(redis_url="redis://127.0.0.1:1/5")).address == "127.0.0.1:1/5"


def test_the_dotted_path_of_the_job_resolves():
    module, _, name = JOB.rpartition(".")

    assert callable(getattr(importlib.import_module(module), name))


class TestShutdown:
    def test_stops_a_job_between_two_steps(self):
        """What ends a stage is no such step: a published round would be given back."""
        shutdown = Shutdown()
        shutdown.raise_if_requested("train", 1, 2)
        shutdown.request(signal.SIGTERM, None)

        shutdown.raise_if_requested("publish", 1, 1)
        with pytest.raises(WorkerStopping, match="SIGTERM at stage 'train', 12 of 90"):
            shutdown.raise_if_requested("train", 12, 90)
