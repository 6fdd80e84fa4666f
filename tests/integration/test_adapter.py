"""label-studio-ml's own server over our model class, with a real Valkey."""

import json
import os

import pytest

from tests.integration.processes import PAYLOADS, PROJECT, wait_until

# label-studio-tools, which label-studio-ml 1.0.9 imports, writes "\\$" in a plain string.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:invalid escape sequence:{category}")
    for category in ("DeprecationWarning", "SyntaxWarning")
]


def body(name):
    return json.loads((PAYLOADS / f"{name}.json").read_text())


@pytest.fixture
def client(valkey_url, redis, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AL_REDIS_URL", valkey_url)
    monkeypatch.setenv("AL_DATA_DIR", str(tmp_path / "data"))
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
