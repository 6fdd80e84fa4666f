"""What an operator is alarmed by: failures in a row, an order that grows old, no worker."""

import pytest

from ml_backend.errors import QueueError
from ml_backend.scheduling import LastError
from ml_backend.schemas import PublishedRanking
from ml_backend.server.app import degraded
from tests.fakes import NOON
from tests.unit.server.memory import PROJECT

AWAY = LastError(kind="LabelStudioError", message="it is away", at=1000.0)


def refuse(*_args):
    raise QueueError("Redis does not answer")


@pytest.fixture
def failing(connected, queue):
    queue.state = queue.state.model_copy(update={"last_error": AWAY, "failures": 3, "next_attempt": 1060.0})
    return connected


class TestMetrics:
    def test_of_a_failing_project(self, failing):
        lines = failing.get("/metrics").text.splitlines()

        assert f'al_failed_rounds_in_a_row{{project="{PROJECT}"}} 3.0' in lines
        assert f'al_next_attempt_timestamp_seconds{{project="{PROJECT}"}} 1060.0' in lines
        assert "al_workers 1.0" in lines

    def test_no_next_attempt_where_there_is_none(self, connected):
        assert "al_next_attempt_timestamp_seconds{" not in connected.get("/metrics").text

    def test_age_of_the_order(self, connected, store):
        published = PublishedRanking(
            version="al-1", round_id="r000001", image_ids=("2",), seconds={}, published_at=NOON
        )
        store.project(PROJECT).set_published(published)

        name = f'al_published_timestamp_seconds{{project="{PROJECT}"}} '
        found = [line for line in connected.get("/metrics").text.splitlines() if line.startswith(name)]
        assert [float(line.removeprefix(name)) for line in found] == [NOON.timestamp()]

    def test_without_redis(self, connected, queue, monkeypatch):
        monkeypatch.setattr(queue, "status", refuse)
        monkeypatch.setattr(queue, "workers", refuse)

        text = connected.get("/metrics").text

        assert "al_unreadable_projects 1.0" in text
        assert "al_workers" not in text


class TestDegraded:
    def test_nothing_where_all_works(self, connected, store, queue):
        assert degraded(store, queue) == []

    def test_a_failing_project_is_counted_and_not_named(self, failing, store, queue):
        """Whoever asks has given no password."""
        assert degraded(store, queue) == ["the last round of 1 of 1 projects failed"]

    def test_a_project_that_is_labelled_to_the_end_is_no_failure(self, connected, store, queue):
        done = AWAY.model_copy(update={"kind": "EmptyPool"})
        queue.state = queue.state.model_copy(update={"last_error": done, "failures": 2})

        assert degraded(store, queue) == []
        assert f'al_failed_rounds_in_a_row{{project="{PROJECT}"}} 0.0' in connected.get("/metrics").text

    def test_images_that_cannot_be_used_are_a_failure(self, connected, store, queue):
        queue.state = queue.state.model_copy(update={"last_error": AWAY.model_copy(update={"kind": "UnusablePool"})})

        assert degraded(store, queue) == ["the last round of 1 of 1 projects failed"]

    def test_no_worker(self, connected, store, queue, monkeypatch):
        monkeypatch.setattr(queue, "workers", lambda: 0)

        assert degraded(store, queue) == ["no worker runs"]

    def test_nobody_is_missed_before_the_first_project(self, store, queue, monkeypatch):
        monkeypatch.setattr(queue, "workers", lambda: 0)

        assert degraded(store, queue) == []

    def test_without_redis(self, connected, store, queue, monkeypatch):
        monkeypatch.setattr(queue, "status", refuse)

        assert degraded(store, queue) == ["Redis does not answer"]

    def test_without_the_data_folder(self, store, queue, monkeypatch):
        def lost(_store):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(store), "connections", lost)

        assert degraded(store, queue) == ["the data folder cannot be read"]
