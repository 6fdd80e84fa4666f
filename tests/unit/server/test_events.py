"""What each kind of event starts, on the bodies that Label Studio 1.23.2 really sent."""

import time

import numpy as np
import pytest

from ml_backend.predictions import PoolPredictions
from ml_backend.scheduling import LastError
from ml_backend.schemas import PublishedRanking
from ml_backend.server.webhook import ACTIONS
from tests.fakes import CLASSES, NOON, make_fit, make_report, make_request
from tests.unit.server.memory import PAYLOADS, PROJECT, payload

CHANGES = {
    "ANNOTATION_CREATED": 1,
    "ANNOTATION_CREATED-skipped": 1,
    "ANNOTATION_UPDATED": 1,
    "ANNOTATIONS_CREATED": 1,
    "ANNOTATIONS_DELETED": 1,
    "TASKS_DELETED": 1,
}
OTHERS = {"TASKS_CREATED", "TASKS_CREATED-annotated", "PROJECT_UPDATED", "START_TRAINING"}

ELSEWHERE = "http://backend.example.org:9090"


def published(*image_ids: str) -> PublishedRanking:
    return PublishedRanking(
        version="al-r000001-entropy-0a1b2c", round_id="r000001", image_ids=image_ids, seconds={}, published_at=NOON
    )


def save_ranked(store, classes: tuple[str, ...] = CLASSES) -> None:
    """A network has ranked by entropy, 20 together, its passes are kept, and readers are served that."""
    asked = make_request(project=PROJECT, strategy="entropy", batch_size=20, classes=classes)
    report = make_report().model_copy(update={"request": asked, "fit": make_fit()})
    passes = np.full((2, 2, len(classes)), 1 / len(classes), dtype=np.float32)
    store.project(PROJECT).save(report, PoolPredictions(("2", "1"), classes, passes), None)
    store.project(PROJECT).set_published(published("2", "1").model_copy(update={"seconds": {"delete": 0.1}}))


def body_of(name, **project):
    """A recorded body whose project row says something else."""
    body = payload(name)
    body["project"] |= project
    return body


class TestContract:
    def test_every_recorded_event_is_tested_here(self):
        recorded = {path.stem for path in PAYLOADS.glob("[A-Z]*_*.json")}

        assert recorded == CHANGES.keys() | OTHERS
        assert {name.partition("-")[0] for name in recorded} | {"PROJECT_DELETED"} == ACTIONS.keys()

    @pytest.mark.parametrize("name", sorted(CHANGES))
    def test_counts(self, connected, queue, name):
        response = connected.post("/webhook", json=payload(name))

        assert (response.status_code, response.json["outcome"]) == (200, "counted")
        assert (queue.state.changes, queue.requests) == (CHANGES[name], [])

    @pytest.mark.parametrize("name", sorted(CHANGES.keys() | OTHERS))
    def test_unknown_project_is_404(self, client, name):
        response = client.post("/webhook", json=payload(name))

        assert response.status_code == 404
        assert "project 2.1795384774 is not connected" in response.json["error"]
        assert "ml-backend connect --project 2" in response.json["error"]

    @pytest.mark.parametrize("name", sorted(CHANGES.keys() | OTHERS))
    def test_a_project_that_was_made_anew_under_the_same_id_is_unknown(self, connected, name):
        response = connected.post("/webhook", json=body_of(name, created_at="2026-12-24T00:00:00Z"))

        assert response.status_code == 404

    @pytest.mark.parametrize("name", sorted(CHANGES.keys() | OTHERS))
    def test_without_payload_is_400(self, connected, name):
        response = connected.post("/webhook", json={"action": payload(name)["action"]})

        assert response.status_code == 400
        assert "Send payload" in response.json["error"]

    @pytest.mark.parametrize("action", ["LABEL_LINK_CREATED", "PROJECT_CREATED", "SOMETHING_NEW"])
    def test_an_action_that_means_nothing_here_is_accepted(self, client, queue, action):
        response = client.post("/webhook", json={"action": action, "project": {"id": 99}})

        assert (response.status_code, response.json["outcome"]) == (200, "ignored")
        assert queue.requests == []


class TestThreshold:
    def test_the_change_that_reaches_it_asks_for_a_round(self, connected, queue):
        on = body_of("ANNOTATION_CREATED", min_annotations_to_start_training=1)

        answers = [connected.post("/webhook", json=on).json["outcome"] for _ in range(20)]

        assert answers == ["counted"] * 19 + ["requested"]
        assert queue.requests == ["labels"]

    def test_retrain_after_of_the_project(self, client, queue):
        client.post("/setup", json=payload("setup") | {"extra_params": {"retrain_after": 2}})
        on = body_of("ANNOTATION_CREATED", min_annotations_to_start_training=1)

        client.post("/webhook", json=on)
        client.post("/webhook", json=on)

        assert (queue.state.threshold, queue.requests) == (2, ["labels"])

    def test_lists_count_each_of_theirs(self, connected, queue):
        created, deleted = payload("ANNOTATIONS_CREATED"), payload("TASKS_DELETED")
        created["annotation"] *= 3
        deleted["tasks"] *= 4

        connected.post("/webhook", json=created)
        connected.post("/webhook", json=deleted)

        assert queue.state.changes == 7

    def test_switched_off_by_the_owner(self, connected, queue):
        """The toggle of the project is off: changes are counted, and the button alone starts a round."""
        off = body_of("ANNOTATION_CREATED", min_annotations_to_start_training=0)
        for _ in range(30):
            connected.post("/webhook", json=off)
        assert (queue.state.changes, queue.requests) == (30, [])

        connected.post("/webhook", json=payload("START_TRAINING"))

        assert queue.requests == ["forced"]

    def test_switched_on_with_enough_changes(self, connected, queue):
        for _ in range(30):
            connected.post("/webhook", json=body_of("ANNOTATION_CREATED", min_annotations_to_start_training=0))

        connected.post("/webhook", json=body_of("PROJECT_UPDATED", min_annotations_to_start_training=1))

        assert queue.requests == ["labels"]

    def test_a_mistake_in_the_options_loses_no_change(self, connected, queue, monkeypatch):
        connected.post("/webhook", json=body_of("ANNOTATION_CREATED", min_annotations_to_start_training=1))
        monkeypatch.setenv("AL_RETRAIN_AFTER", "soon")

        response = connected.post("/webhook", json=body_of("ANNOTATION_CREATED", min_annotations_to_start_training=1))

        assert response.status_code == 200
        assert (queue.state.changes, queue.state.threshold) == (2, 20)


class TestTwoConnections:
    """Label Studio sends an event once for each webhook; a deleted backend leaves its own behind."""

    @pytest.mark.parametrize("name", [*sorted(CHANGES), "TASKS_CREATED", "TASKS_CREATED-annotated"])
    def test_an_event_counts_once(self, connected, queue, name):
        first = connected.post("/webhook", json=payload(name)).json
        second = connected.post("/webhook", json=payload(name), base_url=ELSEWHERE).json

        assert first["outcome"] != "repeated"
        assert second["outcome"] == "repeated"
        assert queue.state.changes == (CHANGES | {"TASKS_CREATED-annotated": 1}).get(name, 0)
        assert queue.state.told_twice_at is not None

    def test_an_answer_that_is_changed_counts_again(self, connected, queue):
        body = payload("ANNOTATION_UPDATED")
        connected.post("/webhook", json=body)
        body["annotation"]["updated_at"] = "2026-11-23T08:00:00Z"

        assert connected.post("/webhook", json=body, base_url=ELSEWHERE).json["outcome"] == "counted"
        assert (queue.state.changes, queue.state.told_twice_at) == (2, None)

    def test_the_page_says_so_for_a_day(self, connected, queue):
        path, html = f"/projects/{PROJECT}", {"Accept": "text/html"}
        assert "more than one connection" not in connected.get(path, headers=html).text
        for url in (None, ELSEWHERE):
            connected.post("/webhook", json=payload("ANNOTATION_CREATED"), base_url=url)
        assert "more than one connection" in connected.get(path, headers=html).text
        queue.state = queue.state.model_copy(update={"told_twice_at": time.time() - 25 * 3600})
        assert "more than one connection" not in connected.get(path, headers=html).text


class TestRunsLow:
    """With the default batch of 20 and reserve of 80, 100 images are served and 40 must be left."""

    @pytest.fixture
    def serve(self, connected, store):
        def served(images, annotations=7):
            ids = tuple(map(str, range(images)))
            store.project(PROJECT).set_published(published(*ids).model_copy(update={"annotations": annotations}))

        return served

    def label(self, connected, annotations, skips=0):
        counts = {"total_annotations_number": annotations, "skipped_annotations_number": skips}
        return connected.post("/webhook", json=body_of("ANNOTATION_CREATED", **counts)).json["outcome"]

    def test_is_topped_up_when_too_few_are_left(self, connected, queue, serve):
        serve(100)

        assert self.label(connected, 7 + 60) == "counted"
        assert self.label(connected, 7 + 50, skips=11) == "requested"
        assert queue.requests == ["topup"]


class TestStartTraining:
    def test_forces_a_round(self, connected, queue):
        response = connected.post("/webhook", json=payload("START_TRAINING"))

        assert response.json["outcome"] == "requested"
        assert queue.requests == ["forced"]

    def test_ahead_of_an_annotation_is_an_echo(self, connected, queue):
        """With the toggle on, Label Studio 1.23.2 sends START_TRAINING by itself ahead of each annotation's event."""
        row = {"min_annotations_to_start_training": 1, "skipped_annotations_number": 1}
        connected.post("/webhook", json=body_of("ANNOTATION_CREATED", total_annotations_number=4, **row))

        echo = connected.post("/webhook", json=body_of("START_TRAINING", total_annotations_number=5, **row))
        connected.post("/webhook", json=body_of("ANNOTATION_CREATED", total_annotations_number=5, **row))
        assert (echo.json["outcome"], queue.requests) == ("ignored", [])

        button = connected.post("/webhook", json=body_of("START_TRAINING", total_annotations_number=5, **row))
        assert (button.json["outcome"], queue.requests) == ("requested", ["forced"])


class TestTasksCreated:
    def test_first_images_are_ranked_at_once(self, connected, queue):
        connected.post("/webhook", json=payload("TASKS_CREATED"))

        assert queue.requests == ["images"]

    def test_wait_for_the_next_round_while_a_ranking_is_served(self, connected, queue, store):
        store.project(PROJECT).set_published(published("1", "2"))

        response = connected.post("/webhook", json=payload("TASKS_CREATED"))

        assert response.json["outcome"] == "ignored"
        assert queue.requests == []

    def test_their_annotations_count(self, connected, queue, store):
        """No other event tells of annotations that an import brings along."""
        store.project(PROJECT).set_published(published("1", "2"))
        body = body_of("TASKS_CREATED-annotated", min_annotations_to_start_training=1)

        connected.post("/webhook", json=body)
        assert (queue.state.changes, queue.requests) == (1, [])

        body["tasks"] *= 19
        connected.post("/webhook", json=body)
        assert (queue.state.changes, queue.requests) == (20, ["labels"])


class TestProjectUpdated:
    def test_our_own_patch_starts_nothing(self, connected, queue, store):
        """The publisher sets model_version, and Label Studio tells us so."""
        store.project(PROJECT).set_published(published("1", "2"))
        before = store.connection(2)

        response = connected.post("/webhook", json=payload("PROJECT_UPDATED"))

        assert (response.status_code, response.json["outcome"]) == (200, "ignored")
        assert (queue.state.changes, queue.requests, queue.idle_requests) == (0, [], [])
        assert store.connection(2) == before

    def test_our_own_patch_starts_nothing_even_when_enough_changed(self, connected, queue):
        for _ in range(20):
            connected.post("/webhook", json=body_of("ANNOTATION_CREATED", min_annotations_to_start_training=1))
        queue.requests.clear()

        connected.post("/webhook", json=body_of("PROJECT_UPDATED", min_annotations_to_start_training=1))

        assert queue.requests == []

    def test_a_changed_label_config_is_kept(self, connected, store):
        """Label Studio does not call /setup then."""
        body = payload("PROJECT_UPDATED")
        body["project"]["label_config"] = body["project"]["label_config"].replace("moderate", "mild")

        response = connected.post("/webhook", json=body)

        assert response.json["outcome"] == "stored"
        assert 'value="mild"' in store.connection(2).label_config
        assert store.connection(2).extra_params == {"strategy": "entropy", "batch_size": 20}

    def test_a_mended_label_config_asks_at_once_after_a_failed_round(self, connected, queue):
        error = LastError(kind="SettingsError", message="too few classes", at=0.0)
        queue.state = queue.state.model_copy(update={"last_error": error})
        body = payload("PROJECT_UPDATED")
        unchanged = connected.post("/webhook", json=body)
        body["project"]["label_config"] = body["project"]["label_config"].replace("moderate", "mild")

        response = connected.post("/webhook", json=body)

        assert (unchanged.json["outcome"], response.json["outcome"]) == ("ignored", "requested")
        assert queue.requests == ["connected"]

    @pytest.mark.parametrize("outcome", ["requested", "waiting"])
    def test_another_strategy_in_the_label_config_asks_for_its_order(self, client, store, queue, outcome):
        """Label Studio does not call /setup then; and it tells us of every patch of the project."""
        setup, body = payload("setup") | {"extra_params": {}}, payload("PROJECT_UPDATED")
        named = body["project"]["label_config"].replace('"mean_std"', '"bald"')
        assert named != body["project"]["label_config"]
        assert client.post("/setup", json=setup | {"schema": body["project"]["label_config"]}).status_code == 200
        save_ranked(store)
        queue.refuses = outcome == "waiting"

        first = client.post("/webhook", json=body_of("PROJECT_UPDATED", label_config=named))
        again = client.post("/webhook", json=body_of("PROJECT_UPDATED", label_config=named))

        assert (first.json["outcome"], again.json["outcome"]) == (outcome, "ignored")
        assert queue.requests == ["rerank"]

    def test_a_row_without_a_label_config_changes_nothing(self, connected, store):
        before = store.connection(2)

        response = connected.post("/webhook", json=body_of("PROJECT_UPDATED", label_config=None))

        assert response.json["outcome"] == "ignored"
        assert store.connection(2) == before

    @pytest.mark.parametrize("created", ["1969-12-31T23:59:59Z", "1970-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z"])
    def test_a_time_before_all_times_is_400(self, connected, created):
        response = connected.post("/webhook", json=body_of("PROJECT_UPDATED", created_at=created))

        assert response.status_code == 400
        assert "project.created_at: must not lie before 1970" in response.json["error"]


class TestProjectDeleted:
    def test_is_forgotten(self, connected, queue):
        queue.count_changes(PROJECT, 5)

        response = connected.post("/webhook", json={"action": "PROJECT_DELETED", "project": {"id": 2}})

        assert (response.status_code, response.json["outcome"]) == (200, "forgotten")
        assert queue.state.changes == 0
