"""/setup, as Label Studio calls it: often, in pairs, and with whatever the owner typed."""

import pytest

from ml_backend.scheduling import LastError
from tests.fakes import make_fit, make_report
from tests.unit.server.memory import PROJECT, payload
from tests.unit.server.test_events import published, save_ranked


class TestSetup:
    def test_remembers_the_project(self, client, store):
        response = client.post("/setup", json=payload("setup"))

        assert (response.status_code, response.json) == (200, {"model_version": "active-learning"})
        connection = store.connection(2)
        assert connection.project == PROJECT
        assert connection.hostname == "http://label-studio.example:8080"
        assert connection.extra_params == {"strategy": "entropy", "batch_size": 20}
        assert "moderate" in connection.label_config

    def test_does_not_keep_the_access_token(self, client, tmp_path):
        client.post("/setup", json=payload("setup"))

        assert not any(b"access_token" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    def test_asks_for_the_first_round_when_idle(self, client, queue):
        client.post("/setup", json=payload("setup"))

        assert (queue.idle_requests, queue.requests) == (["connected"], [])

    def test_asks_for_nothing_once_a_ranking_is_served(self, client, store, queue):
        store.project(PROJECT).set_published(published("1"))

        response = client.post("/setup", json=payload("setup"))

        assert response.json == {"model_version": "al-r000001-entropy-0a1b2c"}
        assert queue.idle_requests == []

    @pytest.mark.parametrize(("failed", "asked"), [(True, ["connected"]), (False, [])])
    def test_mended_options_ask_at_once_after_a_failed_round(self, client, store, queue, failed, asked):
        """Once: Label Studio calls in pairs, and on every view of its page."""
        store.project(PROJECT).set_published(published("1"))
        client.post("/setup", json=payload("setup"))
        if failed:
            error = LastError(kind="WeightsError", message="name a file", at=0.0)
            queue.state = queue.state.model_copy(update={"last_error": error})

        for _ in range(2):
            client.post("/setup", json=payload("setup") | {"extra_params": {"weights": "none"}})

        assert (queue.requests, queue.idle_requests) == (asked, [])

    @pytest.mark.parametrize("extra", [None, "", {}])
    def test_no_options(self, client, store, extra):
        assert client.post("/setup", json=payload("setup") | {"extra_params": extra}).status_code == 200
        assert store.connection(2).extra_params == {}

    def test_options_typed_as_text(self, client, store):
        client.post("/setup", json=payload("setup") | {"extra_params": '{"passes": 30}'})

        assert store.connection(2).extra_params == {"passes": 30}


@pytest.fixture
def ranked(client, store, queue):
    """The project of the payloads serves what a network has ranked by entropy, 20 together; its passes are kept."""
    client.post("/setup", json=payload("setup"))
    queue.idle_requests.clear()
    save_ranked(store)
    return client


def choose(client, **options: object) -> None:
    response = client.post(
        "/setup", json=payload("setup") | {"extra_params": {"strategy": "entropy", "batch_size": 20} | options}
    )
    assert response.status_code == 200


class TestAnotherStrategy:
    @pytest.mark.parametrize("options", [{"strategy": "bald"}, {"batch_size": 5}, {"control_share": 0.1}], ids=str)
    def test_asks_for_its_order_at_once_and_once(self, ranked, queue, options):
        for _ in range(3):
            choose(ranked, **options)

        assert (queue.requests, queue.idle_requests) == (["rerank"], [])

    @pytest.mark.parametrize("options", [{}, {"reserve": 7}, {"retrain_after": 3}, {"passes": 9}], ids=str)
    def test_what_ranks_nothing_asks_for_nothing(self, ranked, queue, options):
        choose(ranked, **options)

        assert (queue.requests, queue.idle_requests) == ([], [])

    def test_what_needs_the_network_waits_where_that_is_gone(self, ranked, queue):
        choose(ranked, strategy="core_set")

        assert queue.requests == []

    def test_other_classes_wait_for_a_training(self, ranked, queue):
        schema = payload("setup")["schema"].replace('value="moderate"', 'value="mild"')

        ranked.post("/setup", json=payload("setup") | {"schema": schema, "extra_params": {"strategy": "bald"}})

        assert queue.requests == []

    def test_before_a_network_has_ranked_anything(self, client, store, queue):
        client.post("/setup", json=payload("setup"))
        store.project(PROJECT).save(make_report(), None, None)
        store.project(PROJECT).set_published(published("1"))

        choose(client, strategy="bald")

        assert queue.requests == []

    def test_a_damaged_round_refuses_no_connection(self, ranked, store, queue):
        (store.project(PROJECT).folder / "rounds" / "r000001" / "report.json").write_text("{")

        choose(ranked, strategy="bald")

        assert queue.requests == []
        assert store.connection(2).extra_params == {"batch_size": 20, "strategy": "bald"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"extra_params": {"batchsize": 20}}, ["batchsize", "extra_params", "batch_size"]),
            ({"extra_params": {"passes": 1}}, ["passes=1", "extra_params", "greater than or equal to 2"]),
            ({"extra_params": {"strategy": "best"}}, ["strategy='best'", "entropy"]),
            ({"extra_params": "strategy=best"}, ["extra_params", "not a JSON object", "strategy=best"]),
            ({"extra_params": [1]}, ["extra_params"]),
            ({"schema": "<View></View>"}, ["no Image tag"]),
            ({"schema": "no xml"}, ["label config"]),
            ({"schema": None}, ["schema"]),
            ({"project": "2"}, ["'<id>.<unix seconds>'", "'2'"]),
            ({"project": "0.5"}, ["'0.5'"]),
            ({"project": "../../etc.1"}, ["project"]),
            ({"hostname": "label-studio"}, ["hostname"]),
        ],
    )
    def test_says_what_is_wrong_where_label_studio_shows_it(self, client, store, queue, change, words):
        response = client.post("/setup", json=payload("setup") | change)

        assert response.status_code == 400
        for word in words:
            assert word in response.json["error"]
            assert word.replace("<", "[").replace(">", "]") in response.status
        assert store.connections() == []
        assert queue.idle_requests == []

    def test_fewer_than_two_classes(self, client):
        schema = payload("setup")["schema"].replace('<Choice value="moderate" hotkey="2"/>', "")
        schema = schema.replace('<Choice value="severe" hotkey="3"/>', "")

        response = client.post("/setup", json=payload("setup") | {"schema": schema})

        assert response.status_code == 400
        assert "at least 2" in response.json["error"]

    def test_a_wrong_choice_leaves_the_former_connection(self, client, store):
        client.post("/setup", json=payload("setup"))

        client.post("/setup", json=payload("setup") | {"extra_params": {"passes": "many"}})

        assert store.connection(2).extra_params == {"strategy": "entropy", "batch_size": 20}


class TestWhatTheFirstTrainingWaitsFor:
    @pytest.mark.parametrize(
        ("options", "asked"),
        [
            ({"ignore_classes": "severe"}, ["connected"]),
            ({"min_labels_per_class": 5}, ["connected"]),
            ({"cold_start": "herding"}, ["connected"]),
            ({"seed": 3}, []),
        ],
    )
    @pytest.mark.parametrize("fit", [None, make_fit()])
    def test_is_asked_for_at_once_when_it_changes(self, client, store, queue, options, asked, fit):  # noqa: PLR0917
        """With a network there is an order already: the next training goes by it."""
        store.project(PROJECT).save(make_report().model_copy(update={"fit": fit}), None, None)
        store.project(PROJECT).set_published(published("1"))
        client.post("/setup", json=payload("setup"))

        for _ in range(2):
            client.post("/setup", json=payload("setup") | {"extra_params": {"strategy": "entropy"} | options})

        assert queue.requests == ([] if fit else asked)
