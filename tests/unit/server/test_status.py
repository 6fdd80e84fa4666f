"""The status page and the metrics."""

import pytest

from ml_backend.errors import QueueError
from ml_backend.queueing import LastError, Progress, QueueStatus
from tests.unit.server.memory import PROJECT, payload
from tests.unit.server.test_predictions import save_round

HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture
def busy(connected, queue, store):
    save_round(store)
    queue.state = QueueStatus(
        changes=7,
        threshold=20,
        waiting="forced",
        running="labels",
        progress=Progress(generation=3, stage="train", done=4, total=50, started=0, stage_started=0, updated=0),
        last_error=LastError(kind="WeightsError", message="<b>no weights</b>", at=0),
        rounds_finished=2,
        rounds_failed=1,
    )
    return connected


class TestIndex:
    def test_json_by_default(self, busy):
        (project,) = busy.get("/").json["projects"]

        assert project["project"] == str(PROJECT)
        assert project["queue"]["progress"]["stage"] == "train"
        assert project["published"]["version"] == "al-r000001-entropy-0a1b2c"
        assert project["published"]["images"] == 1
        assert project["last_round"]["labels_per_class"] == {"normal": 0, "moderate": 0, "severe": 0}

    def test_page_for_a_browser(self, busy):
        page = busy.get("/", headers=HTML).text

        assert "a round runs (labels): train" in page
        assert "after 20 changed annotations; 7 so far" in page
        assert "&lt;b&gt;no weights&lt;/b&gt;" in page

    def test_page_says_when_rounds_do_not_start_by_themselves(self, connected):
        assert "Start model training on annotation submission" in connected.get("/", headers=HTML).text

    def test_page_without_a_project(self, client):
        assert "ml-backend connect" in client.get("/", headers=HTML).text

    def test_says_that_redis_is_down(self, connected, queue, monkeypatch):
        def refuse(_project):
            raise QueueError("Redis at localhost:6379/0 does not answer")

        monkeypatch.setattr(queue, "status", refuse)

        assert connected.get("/").json["projects"][0]["problem"] == "Redis at localhost:6379/0 does not answer"
        assert "Redis at localhost:6379/0 does not answer" in connected.get("/", headers=HTML).text
        assert "al_unreadable_projects 1.0" in connected.get("/metrics").text


class TestMetrics:
    def test_of_a_busy_project(self, busy):
        busy.post("/webhook", json=payload("ANNOTATION_CREATED"))
        busy.post("/webhook", json={"action": "SOMETHING_NEW"})

        lines = busy.get("/metrics").text.splitlines()

        for line in [
            'al_webhooks_total{action="ANNOTATION_CREATED"} 1.0',
            'al_webhooks_total{action="other"} 1.0',
            'al_queue_rounds{state="waiting"} 1.0',
            'al_queue_rounds{state="running"} 1.0',
            f'al_changes{{project="{PROJECT}"}} 8.0',
            f'al_rounds_total{{outcome="published",project="{PROJECT}"}} 2.0',
            f'al_rounds_total{{outcome="failed",project="{PROJECT}"}} 1.0',
            f'al_last_round_seconds{{project="{PROJECT}",stage="labels"}} 0.5',
            "al_unreadable_projects 0.0",
        ]:
            assert line in lines

    def test_two_apps_do_not_share_figures(self, app, client, store, queue):
        client.post("/webhook", json={"action": "SOMETHING_NEW"})
        from ml_backend.server.app import create_app
        from ml_backend.settings import Settings

        other = create_app(Settings(data_dir=store.root), queue).test_client()

        assert 'action="other"' not in other.get("/metrics").text
