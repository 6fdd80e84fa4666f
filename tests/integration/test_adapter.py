"""label-studio-ml's own server over our model class, with a real Valkey: 1.0.9, and the interface of 2.x."""

import importlib
import json
import os
import sys

import pytest

from tests.integration.processes import PAYLOADS, PROJECT, wait_until
from tests.recorded import label_studio_ml_2

# label-studio-tools, which label-studio-ml 1.0.9 imports, writes "\\$" in a plain string.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:invalid escape sequence:{category}")
    for category in ("DeprecationWarning", "SyntaxWarning")
]


def body(name):
    return json.loads((PAYLOADS / f"{name}.json").read_text())


def without_project(request):
    """A request whose tasks do not name their project."""
    return request | {
        "tasks": [{key: value for key, value in task.items() if key != "project"} for task in request["tasks"]]
    }


@pytest.fixture
def settings(valkey_url, redis, tmp_path, monkeypatch):
    """An installation of its own; True for each test's checkout of 2.x, if there is one."""
    checkout = os.environ.get("AL_LABEL_STUDIO_ML")
    for name in [name for name in os.environ if name.startswith("AL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AL_REDIS_URL", valkey_url)
    monkeypatch.setenv("AL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))  # of 2.x, for its memory
    return checkout


@pytest.fixture
def client(settings, tmp_path):
    from label_studio_ml.api import init_app

    from ml_backend.adapter import ActiveLearningBackend

    return init_app(ActiveLearningBackend, model_dir=str(tmp_path / "jobs")).test_client()


class TestActiveLearningBackend:
    def test_through_init_app(self, client, queue):
        """Set up, predict, and an event that label-studio-ml hands to a process of its own."""
        assert client.post("/setup", json=body("setup")).status_code == 200
        assert queue.status(PROJECT).waiting == "connected"

        predicted = client.post("/predict", json=body("predict"))
        assert predicted.status_code == 200
        assert predicted.json["results"] == [{"result": [], "model_version": "active-learning-live"}]

        assert client.post("/predict", json=body("predict") | {"tasks": []}).json["results"] == []
        assert client.post("/webhook", json=body("ANNOTATION_CREATED")).status_code == 201
        wait_until(lambda: queue.status(PROJECT).changes == 1, timeout_s=120)

    def test_tasks_without_a_project(self, client):
        """The request names it, as Label Studio's always do."""
        client.post("/setup", json=body("setup"))

        predicted = client.post("/predict", json=without_project(body("predict")))

        assert predicted.json["results"] == [{"result": [], "model_version": "active-learning-live"}]

    def test_no_project_at_all(self, client):
        client.post("/setup", json=body("setup"))
        request = without_project(body("predict"))
        del request["project"]

        refused = client.post("/predict", json=request)

        assert refused.status_code == 500
        assert "PayloadError: no project is named for task 4" in refused.text

    def test_a_wrong_option_is_refused(self, client, queue):
        response = client.post("/setup", json=body("setup") | {"extra_params": {"batchsize": 3}})

        assert response.status_code == 500
        assert b"batchsize (from extra_params)" in response.data
        assert queue.status(PROJECT).waiting is None

    def test_every_event_reaches_the_same_code(self, client, queue):
        """START_TRAINING, which label-studio-ml 1.0.9 itself ignores."""
        from ml_backend.adapter import ActiveLearningBackend

        client.post("/setup", json=body("setup"))
        event = body("START_TRAINING")
        model = ActiveLearningBackend(label_config=body("setup")["schema"])

        assert model.process_event(event.pop("action"), event, "1", {}) == {"outcome": "waiting"}
        annotation = body("ANNOTATION_CREATED")
        assert model.fit(annotation.pop("action"), annotation)["outcome"] == "counted"


@pytest.fixture
def client_2(settings, monkeypatch):
    """The same server code over 2.x: the recorded interface, or the checkout that ``AL_LABEL_STUDIO_ML`` names."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "label_studio_ml"]:
        monkeypatch.delitem(sys.modules, name)
    if settings:
        monkeypatch.syspath_prepend(settings)
    else:
        for name in ("label_studio_ml", "label_studio_ml.model", "label_studio_ml.api"):
            monkeypatch.setitem(sys.modules, name, label_studio_ml_2)
    monkeypatch.delitem(sys.modules, "ml_backend.adapter", raising=False)
    model_class = importlib.import_module("ml_backend.adapter").ActiveLearningBackend
    yield importlib.import_module("label_studio_ml.api").init_app(model_class).test_client()
    # The next test's import shall not find what was bound to 2.x.
    sys.modules.pop("ml_backend.adapter", None)


class TestSecondGeneration:
    def test_set_up_predict_and_train(self, client_2, queue):
        setup = client_2.post("/setup", json=body("setup") | {"extra_params": {"batch_size": 3}})
        assert setup.status_code == 200
        assert setup.json == {"model_version": "active-learning"}
        assert queue.status(PROJECT).waiting == "connected"

        predicted = client_2.post("/predict", json=body("predict"))
        assert predicted.json == {"results": [{"result": [], "model_version": "active-learning-live"}]}
        assert client_2.post("/predict", json=body("predict") | {"tasks": []}).json == {"results": []}

        trained = client_2.post("/webhook", json=body("ANNOTATION_CREATED"))
        assert trained.status_code == 201
        assert trained.json["result"]["outcome"] == "counted"
        assert queue.status(PROJECT).changes == 1

    @pytest.mark.parametrize("left", ["request", "task"])
    def test_one_of_request_and_task_names_the_project(self, client_2, left):
        """2.x makes the text None a project's id where the request has none."""
        client_2.post("/setup", json=body("setup"))
        request = body("predict")
        if left == "task":
            del request["project"]
        else:
            request = without_project(request)

        predicted = client_2.post("/predict", json=request)

        assert predicted.json["results"] == [{"result": [], "model_version": "active-learning-live"}]

    def test_no_project_at_all(self, client_2):
        client_2.post("/setup", json=body("setup"))
        request = without_project(body("predict"))
        del request["project"]

        refused = client_2.post("/predict", json=request)

        assert refused.status_code == 500
        assert "PayloadError: no project is named for task 4" in refused.text

    def test_a_wrong_option_is_refused(self, client_2, queue):
        refused = client_2.post("/setup", json=body("setup") | {"extra_params": {"batchsize": 3}})

        assert refused.status_code == 500
        assert "batchsize (from extra_params)" in refused.text
        assert queue.status(PROJECT).waiting is None
