"""/predict and /versions: from the store, never under the version of the ranking."""

import pytest

from ml_backend.schemas import Ranking
from tests.fakes import make_report
from tests.unit.server.memory import PROJECT, payload
from tests.unit.server.test_events import published

RANKING = "al-r000001-entropy-0a1b2c"


def tasks(*numbers):
    body = payload("predict")
    return body | {"tasks": [body["tasks"][0] | {"id": number} for number in numbers]}


def save_round(store, **suggestions):
    report = make_report()
    ranking = Ranking(strategy="fake", image_ids=("4",), scores=(1.0,), batch_size=1, suggestions=suggestions)
    store.project(PROJECT).save(report.model_copy(update={"ranking": ranking}), None, None)
    store.project(PROJECT).set_published(published("4"))


class TestPredict:
    def test_recorded_body(self, connected):
        response = connected.post("/predict", json=payload("predict"))

        assert response.status_code == 200
        assert response.json == {"results": [{"result": [], "model_version": "active-learning-live"}]}

    def test_one_answer_a_task_never_under_the_version_of_the_ranking(self, connected, store):
        """Under that version an unranked image would enter the order; a score is left out for the same reason."""
        save_round(store)

        results = connected.post("/predict", json=tasks(4, 9, 5)).json["results"]

        assert results == [{"result": [], "model_version": f"{RANKING}-live"}] * 3

    def test_suggests_nothing_unless_the_owner_wants_it(self, connected, store):
        save_round(store, **{"4": "severe"})

        assert connected.post("/predict", json=tasks(4)).json["results"][0]["result"] == []

    def test_suggests_the_last_rounds_answer_in_the_order_of_the_tasks(self, client, store):
        client.post("/setup", json=payload("setup") | {"extra_params": {"prelabel": True}})
        save_round(store, **{"4": "severe", "5": "normal", "6": "a class that is no more"})

        results = client.post("/predict", json=tasks(5, 6, 4)).json["results"]

        assert [answer["result"] and answer["result"][0]["value"] for answer in results] == [
            {"choices": ["normal"]},
            [],
            {"choices": ["severe"]},
        ]
        assert results[0]["result"][0] == {
            "from_name": "severity",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": ["normal"]},
        }

    def test_no_tasks(self, connected):
        assert connected.post("/predict", json=tasks()).json == {"results": []}

    def test_unknown_project(self, client):
        response = client.post("/predict", json=payload("predict"))

        assert response.status_code == 404
        assert "ml-backend connect" in response.json["error"]

    @pytest.mark.parametrize("change", [{"tasks": None}, {"tasks": [{"id": "4"}]}, {"tasks": {}}, {"project": 2}])
    def test_wrong_types(self, connected, change):
        response = connected.post("/predict", json=payload("predict") | change)

        assert response.status_code == 400
        assert next(iter(change)) in response.json["error"]


class TestVersions:
    def test_of_all_projects(self, connected, store):
        """Label Studio asks with GET and names no project."""
        assert connected.get("/versions").json == {"versions": ["active-learning"]}
        save_round(store)
        assert connected.get("/versions").json == {"versions": [RANKING]}

    def test_of_one_project(self, connected, store):
        save_round(store)

        assert connected.post("/versions", json={"project": str(PROJECT)}).json == {"versions": [RANKING]}
        assert connected.post("/versions", json={"project": "3.5"}).json == {"versions": ["active-learning"]}
        assert connected.post("/versions", json={}).status_code == 400
