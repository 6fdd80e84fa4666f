"""The status page and the metrics."""

from datetime import UTC, datetime

import pytest

from ml_backend import errors
from ml_backend.errors import QueueError
from ml_backend.label_studio.publisher import Serving
from ml_backend.scheduling import LastError, Progress, QueueStatus
from ml_backend.schemas import FitReport
from ml_backend.server.status import LISTED_IMAGES, REMEDIES
from ml_backend.storage.project_state import Quarantine, ReadingStore
from tests.fakes import make_report
from tests.unit.server.memory import PROJECT, payload
from tests.unit.server.test_predictions import save_round

HTML = {"Accept": "text/html,application/xhtml+xml"}
EMPTY_POOL = LastError(kind="EmptyPool", message="project 2 has no unlabelled image left", at=0)

SEEN = {"there": 1, "held": 0, "model_version": "", "sampling": None, "maximum_annotations": 1} | {
    "show_collab_predictions": True
}


def page_of(client) -> str:
    """The page's text as a browser shows it, in that spaces do not count."""
    return " ".join(client.get("/", headers=HTML).text.split())


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
        next_attempt=1_767_225_600.0,
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

    def test_page_for_a_browser(self, busy, store):
        page = page_of(busy)

        assert '/projects/2/data">Open project 2 in Label Studio</a>' in page
        assert "A round trains the network." in page
        assert "7 of 20" in page
        assert "<dd>none yet</dd>" in page
        assert "Readers go on labelling meanwhile" in page
        ReadingStore(store.project(PROJECT).folder).note_problem("it is down")
        assert "Readers go on labelling meanwhile" not in page_of(busy)

    def test_a_round_without_a_worker_is_not_said_to_run(self, busy, queue, monkeypatch):
        monkeypatch.setattr(queue, "workers", lambda: 0)

        page = page_of(busy)

        assert "The round stopped: no worker answers. It starts again with a worker." in page
        assert "Ask your operator to start a worker." in page
        assert "Working" not in page

    def test_a_failure_begins_with_its_remedy(self, busy, queue):
        queue.state = queue.state.model_copy(update={"running": None, "waiting": None})

        for page in (page_of(busy), " ".join(busy.get(f"/projects/{PROJECT}", headers=HTML).text.split())):
            remedy, cause = page.index("Ask your operator to provide the weights"), page.index("&lt;b&gt;no weights")
            assert remedy < cause
            assert 'again by itself at <time datetime="2026-01-01T00:00:00+00:00">2026-01-01 00:00 UTC</time>' in page

    def test_remedies_are_of_errors_that_exist(self):
        assert {name for name in REMEDIES if not issubclass(getattr(errors, name), errors.BackendError)} == set()

    def test_is_named_as_in_label_studio(self, connected, store):
        named = Serving.model_validate(SEEN | {"version": None, "title": "<b>Chest</b>"})
        ReadingStore(store.project(PROJECT).folder).keep_serving(named)

        assert connected.get("/").json["projects"][0]["title"] == "<b>Chest</b>"
        for path in ("/", f"/projects/{PROJECT}"):
            assert "&lt;b&gt;Chest&lt;/b&gt;</" in connected.get(path, headers=HTML).text

    def test_why_label_studio_cannot_be_read(self, connected, store):
        ReadingStore(store.project(PROJECT).folder).note_problem("Label Studio answered 401")

        assert connected.get("/").json["projects"][0]["unreadable"] == "Label Studio answered 401"
        page = page_of(connected)
        assert "could not be read when it was last tried: Label Studio answered 401</p>" in page
        assert "Served now" not in page

    def test_an_order_that_label_studio_has_lost_is_not_said_to_be_served(self, connected, store):
        save_round(store)
        lost = Serving(
            version="al-r000001-entropy-0a1b2c",
            there=1,
            held=0,
            model_version="al-r000001-entropy-0a1b2c",
            sampling="Uniform sampling",
            maximum_annotations=1,
            show_collab_predictions=True,
        )
        ReadingStore(store.project(PROJECT).folder).keep_serving(lost)
        project = connected.get(f"/projects/{PROJECT}", headers=HTML).text

        told = connected.get("/").json["projects"][0]["serving"]
        assert [(one["aspect"], one["mended"]) for one in told] == [("sampling", False), ("predictions", True)]
        for page in (page_of(connected), " ".join(project.split())):
            assert "holds 0 predictions of al-r000001-entropy-0a1b2c" in page
            assert "Label Studio has lost" in page
            assert "published image in the order" not in page
        assert "connect --project 2" in project

    def test_the_ranking_of_another_installation_has_its_own_way_out(self, connected, store):
        """`ml-backend connect` would change nothing."""
        save_round(store)
        ours, theirs = "al-r000001-entropy-0a1b2c", "al-r000009-bald-0a1b2c"
        row = {"version": ours, "there": 1, "held": 1, "model_version": theirs, "sampling": "Uncertainty sampling"}
        seen = row | {"maximum_annotations": 1, "show_collab_predictions": True, "foreign": True}
        ReadingStore(store.project(PROJECT).folder).keep_serving(Serving.model_validate(seen))
        project = connected.get(f"/projects/{PROJECT}", headers=HTML).text

        assert "To correct it, stop the other installation" in project
        assert "sets it back" not in project

    def test_what_was_read_of_an_earlier_order_says_nothing_of_this_one(self, connected, store):
        save_round(store)
        earlier = Serving.model_validate(SEEN | {"version": "al-r000000-random-aaaaaa"})
        ReadingStore(store.project(PROJECT).folder).keep_serving(earlier)

        assert connected.get("/").json["projects"][0]["serving"] == []
        assert "1 published image in the order" in page_of(connected)
        project = store.project(PROJECT)
        order = project.published()
        again = {"image_ids": (*order.image_ids, "9"), "rereads": ("9",)}
        project.set_published(order.model_copy(update=again))
        assert "1 published image for a first read and 1 for another reader in the order" in page_of(connected)

    def test_page_tells_how_good_the_network_is(self, connected, store):
        fit = FitReport(
            epochs=3,
            best_epoch=2,
            class_weights={},
            train_images=9,
            validation_images=4,
            validation_loss=0.5,
            validation_accuracy=0.75,
            validation_auroc=None,
        )
        store.project(PROJECT).save(make_report().model_copy(update={"fit": fit}), None, None)

        assert "right for 75 % of 4 validation images" in page_of(connected)

    def test_page_goes_by_the_options_of_the_next_round(self, client, queue):
        """Redis learns a new ``retrain_after`` with the next event only."""
        client.post("/setup", json=payload("setup") | {"extra_params": {"retrain_after": 5}})
        queue.state = QueueStatus(threshold=20, changes=2)

        assert "2 of 5" in page_of(client)

    def test_page_says_when_rounds_do_not_start_by_themselves(self, connected, queue):
        queue.state = QueueStatus(annotations=3)

        assert "Start model training on annotation submission" in page_of(connected)

    def test_page_blames_no_setting_before_the_first_event(self, connected):
        """Nor after a restart of a Redis that forgets."""
        page = page_of(connected)

        assert "Nothing received from Label Studio yet" in page
        assert "Start model training on annotation submission" not in page

    def test_page_calls_it_no_failure_where_no_image_waits(self, connected, queue):
        """And nothing was read that could tell more."""
        queue.state = QueueStatus(threshold=20, last_error=EMPTY_POOL)

        page = page_of(connected)

        assert "The last round ranked nothing" in page
        assert "round failed" not in page

    def test_says_that_the_label_config_or_an_option_is_wrong(self, connected, store):
        """As an owner's edit in Label Studio's settings can make it: the next round would fail."""
        connection = store.connection(PROJECT.id)
        store.connect(connection.model_copy(update={"label_config": "<View/>"}))

        assert "has no Image tag" in connected.get("/").json["projects"][0]["mistake"]
        assert "has no Image tag" in page_of(connected)

    def test_page_without_a_project(self, client, queue, monkeypatch):
        assert "ml-backend connect" in client.get("/", headers=HTML).text
        assert "Redis" not in client.get("/", headers=HTML).text

        def refuse():
            raise QueueError("it is away")

        monkeypatch.setattr(queue, "workers", refuse)
        assert "Redis does not answer: the backend's log says why" in client.get("/", headers=HTML).text

    def test_says_that_redis_is_down(self, connected, queue, store, monkeypatch):
        def refuse(*_):
            raise QueueError("Redis at localhost:6379/0 does not answer")

        assert connected.get("/").json["projects"][0]["workers"] == 1
        save_round(store)
        ReadingStore(store.project(PROJECT).folder).keep_serving(
            Serving.model_validate(SEEN | {"version": None, "title": "Chest"})
        )
        monkeypatch.setattr(queue, "status", refuse)
        monkeypatch.setattr(queue, "workers", refuse)

        assert connected.get("/").json["projects"][0]["workers"] is None

        assert connected.get("/").json["projects"][0]["problem"] == "Redis at localhost:6379/0 does not answer"
        assert "Redis at localhost:6379/0 does not answer" in page_of(connected)
        page = " ".join(connected.get(f"/projects/{PROJECT}", headers=HTML).text.split())
        assert "1 published image in the order of round 1" in page
        assert all(word in page for word in ("<title>Problem: Chest", "Not known at the moment"))
        assert not any(word in page for word in ("no order yet", "Nothing received", "Idle", "Project 2"))
        assert "al_unreadable_projects 1.0" in connected.get("/metrics").text


class TestQuarantine:
    @pytest.fixture
    def unreadable(self, connected, store):
        quarantine = Quarantine(store.project(PROJECT).folder, lambda: datetime(2026, 11, 23, 9, 0, tzinfo=UTC))
        with quarantine.settled():
            for number in range(LISTED_IMAGES + 5):
                quarantine.enter(str(number), "file", "damaged", f"<i>film {number}</i> is cut off", passing=False)
        return connected

    def test_json_has_the_number_and_the_first_with_their_reasons(self, unreadable):
        quarantined = unreadable.get("/").json["projects"][0]["quarantined"]

        assert quarantined["images"] == LISTED_IMAGES + 5
        assert len(quarantined["listed"]) == LISTED_IMAGES
        assert quarantined["listed"][7] == {
            "image_id": "7",
            "trouble": "damaged",
            "reason": "<i>film 7</i> is cut off",
            "first_seen": "2026-11-23T09:00:00Z",
            "last_tried": "2026-11-23T09:00:00Z",
            "next_try": "2026-11-23T09:01:00Z",
            "times": 1,
        }

    def test_page_lists_them_for_the_owner(self, unreadable):
        page = page_of(unreadable)

        assert f"{LISTED_IMAGES + 5} images, left out of the rounds until they can be read" in page
        assert '/projects/2/data?task=7">Task 7</a>: &lt;i&gt;film 7&lt;/i&gt; is cut off (damaged since <time' in page
        assert f"The first {LISTED_IMAGES}; all of them are listed in the project's quarantine.json." in page

    def test_none(self, connected):
        assert connected.get("/").json["projects"][0]["quarantined"] == {"images": 0, "listed": []}
        assert "Unreadable" not in page_of(connected)


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
        from ml_backend.config import Settings
        from ml_backend.server.app import create_app

        other = create_app(Settings(data_dir=store.root), queue).test_client()

        assert 'action="other"' not in other.get("/metrics").text
