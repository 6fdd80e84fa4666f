"""``/metrics`` and ``/health``: what the rounds have learned, and what an operator is alarmed by."""

from datetime import timedelta
from importlib.metadata import version

import pytest

from ml_backend.analytics import INSIGHT, RoundInsight
from ml_backend.errors import QueueError
from ml_backend.scheduling import LastError, Progress, QueueStatus
from ml_backend.schemas import Connection, FitReport, PublishedRanking
from ml_backend.server.app import degraded
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause
from tests.fakes import NOON, make_report
from tests.unit.server.memory import PROJECT, payload

RUNNING = QueueStatus(
    changes=7,
    threshold=20,
    running="labels",
    progress=Progress(generation=3, stage="train", done=4, total=50, started=900.0, stage_started=950, updated=990),
    last_error=LastError(kind="LabelStudioError", message="it is away", at=1000.0),
    next_attempt=1060.0,
)
FIT = FitReport(
    epochs=3,
    best_epoch=2,
    class_weights={},
    train_images=90,
    validation_images=40,
    validation_loss=0.5,
    validation_accuracy=0.75,
    validation_auroc=0.875,
    validation_recall={"normal": 1.0, "moderate": 0.5, "severe": None},
)
POOL = RoundInsight(
    images=512,
    expected={"normal": 0.5, "moderate": 0.25, "severe": 0.25},
    predicted={"normal": 300, "moderate": 112, "severe": 100},
    batch=(),
)


def learned(store: RoundStore) -> None:
    """Round 1 has trained a network, round 2 has saved its labels and trained none."""
    setup = payload("setup")
    store.connect(Connection(project=PROJECT, hostname=setup["hostname"], label_config=setup["schema"]))
    project = store.project(PROJECT)
    project.save(make_report().model_copy(update={"fit": FIT}), None, None, {INSIGHT: POOL})
    counts = {"normal": 30, "moderate": 6, "severe": 4}
    later = {"labels_per_class": counts, "disputed": ("5", "6"), "started_at": NOON + timedelta(hours=1)}
    project.save(make_report("r000002").model_copy(update=later), None, None)
    project.set_published(
        PublishedRanking(
            version="al-1", round_id="r000001", image_ids=("2", "3"), seconds={"import": 0.5}, published_at=NOON
        )
    )


@pytest.fixture
def lines(client, store, queue):
    learned(store)
    queue.state = RUNNING

    def scrape():
        return client.get("/metrics").text.splitlines()

    return scrape


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


class TestLearningMetrics:
    def test_of_a_project_that_has_learned(self, lines):
        found = lines()

        for line in [
            f'al_labels{{class="normal",project="{PROJECT}"}} 30.0',
            f'al_labels{{class="severe",project="{PROJECT}"}} 4.0',
            f'al_labels_wanted_per_class{{project="{PROJECT}"}} {make_report().request.min_labels_per_class}.0',
            f'al_disputed_labels{{project="{PROJECT}"}} 2.0',
            f'al_validation_images{{project="{PROJECT}"}} 40.0',
            f'al_validation_accuracy_ratio{{project="{PROJECT}"}} 0.75',
            f'al_validation_auroc_ratio{{project="{PROJECT}"}} 0.875',
            f'al_validation_recall_ratio{{class="moderate",project="{PROJECT}"}} 0.5',
            f'al_pool_images{{project="{PROJECT}"}} 512.0',
            f'al_pool_expected_ratio{{class="moderate",project="{PROJECT}"}} 0.25',
            f'al_published_images{{project="{PROJECT}"}} 2.0',
            "al_projects 1.0",
        ]:
            assert line in found
        began = (NOON + timedelta(hours=1)).timestamp()
        [newest] = [line for line in found if line.startswith("al_newest_round_timestamp_seconds{")]
        assert float(newest.split()[-1]) == began

    def test_a_class_without_a_validation_image_has_no_recall(self, lines):
        """0 would be a network that gets every one of them wrong."""
        assert not [line for line in lines() if line.startswith("al_validation_recall") and "severe" in line]

    def test_a_round_that_runs(self, lines):
        found = lines()

        assert f'al_round_progress_done{{project="{PROJECT}",stage="train"}} 4.0' in found
        assert f'al_round_progress_steps{{project="{PROJECT}",stage="train"}} 50.0' in found
        assert f'al_round_started_timestamp_seconds{{project="{PROJECT}"}} 900.0' in found
        assert f'al_changes_threshold{{project="{PROJECT}"}} 20.0' in found

    def test_no_progress_of_a_round_that_is_over(self, lines, queue):
        """Redis keeps the last word of it for a while."""
        queue.state = RUNNING.model_copy(update={"running": None})

        assert not [line for line in lines() if line.startswith("al_round_")]

    def test_a_new_network_is_seen_at_once(self, lines, store):
        """Rounds are cached as long as their files stay the same."""
        assert f'al_pool_images{{project="{PROJECT}"}} 512.0' in lines()
        better = FIT.model_copy(update={"validation_accuracy": 0.875})
        report = make_report("r000003").model_copy(update={"fit": better})
        store.project(PROJECT).save(report, None, None, {INSIGHT: POOL.model_copy(update={"images": 500})})

        found = lines()

        assert f'al_validation_accuracy_ratio{{project="{PROJECT}"}} 0.875' in found
        assert f'al_pool_images{{project="{PROJECT}"}} 500.0' in found

    @pytest.mark.parametrize("name", ["report", "insight"])
    def test_what_is_damaged_is_left_out(self, lines, store, name):
        (store.project(PROJECT).folder / "rounds" / "r000001" / f"{name}.json").write_text("{")

        found = lines()

        assert f'al_labels{{class="normal",project="{PROJECT}"}} 30.0' in found
        gone = "al_validation_accuracy_ratio{" if name == "report" else "al_pool_images{"
        assert not [line for line in found if line.startswith(gone)]

    def test_what_its_owner_has_to_see_to(self, lines, store):
        for metric, value in [("paused", 0), ("configuration_usable", 1), ("label_studio_readable", 1)]:
            assert f'al_{metric}{{project="{PROJECT}"}} {value}.0' in lines()
        Pause(store.project(PROJECT).folder).begin(threshold=20)
        store.connect(store.connection(PROJECT.id).model_copy(update={"label_config": "<View/>"}))

        assert f'al_paused{{project="{PROJECT}"}} 1.0' in lines()
        assert f'al_configuration_usable{{project="{PROJECT}"}} 0.0' in lines()

    def test_nothing_of_a_project_that_has_no_round(self, connected):
        text = connected.get("/metrics").text

        assert "al_projects 1.0" in text
        assert "al_labels{" not in text
        assert "al_pool_images{" not in text

    def test_which_version_runs(self, client):
        [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith("al_build_info{")]

        assert f'version="{version("label-studio-active-learning")}"' in line
        assert line.endswith("} 1.0")
