"""The app over a folder of the test and a queue in memory."""

from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from ml_backend.config import ProjectOptions, Settings
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore
from tests.unit.server.memory import MemoryQueue, payload


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, *ProjectOptions.model_fields):
        monkeypatch.delenv(f"AL_{name.upper()}", raising=False)


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def store(tmp_path: Path) -> RoundStore:
    return RoundStore(tmp_path)


@pytest.fixture
def app(store: RoundStore, queue: MemoryQueue) -> Flask:
    return create_app(Settings(data_dir=store.root), queue)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def connected(client: FlaskClient, queue: MemoryQueue) -> FlaskClient:
    """The project of the payloads has been set up; what that asked of the queue is left out."""
    assert client.post("/setup", json=payload("setup")).status_code == 200
    queue.idle_requests.clear()
    return client
