"""schemathesis reads what the server publishes, and sends whatever that allows and whatever it does not."""

import json
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from redis import Redis
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ml_backend.config import Settings
from ml_backend.scheduling import RoundQueue
from ml_backend.server.actions import ACTIONS
from ml_backend.server.app import create_app
from tests.integration.processes import PAYLOADS

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
EXAMPLES = 30
KEY = {"Authorization": f"Basic {b64encode(b'ls:secret').decode()}"}


@pytest.fixture(scope="module")
def server(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> schemathesis.BaseSchema:
    """The real app over a real Valkey, with the project of the payloads connected."""
    folder: Path = tmp_path_factory.mktemp("data")
    redis = Redis.from_url(valkey_url)
    redis.flushdb()
    app = create_app(Settings.load(data_dir=folder, basic_auth_user="ls", basic_auth_pass="secret"), RoundQueue(redis))
    setup = json.loads((PAYLOADS / "setup.json").read_text())
    assert app.test_client().post("/setup", json=setup, headers=KEY).status_code == 200
    return schemathesis.openapi.from_wsgi("/openapi.json", app, headers=KEY)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_as_it_says(server: schemathesis.BaseSchema, mode: GenerationMode) -> None:
    """Every operation, with what the document allows (positive) and with what it does not (negative)."""
    asked: Counter[str] = Counter()
    for found in server.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case[Any]) -> None:
            asked[f"{case.method} {case.path}"] += 1
            case.call_and_validate(checks=CHECKS, headers=KEY)

        try:
            ask()
        except Unsatisfiable:
            # A route without a body or a parameter has nothing that could be wrong.
            assert mode is GenerationMode.NEGATIVE
            assert operation.method == "get"

    posts = {key: count for key, count in asked.items() if key.startswith("POST")}
    assert set(posts) == {
        *("POST /predict", "POST /setup", "POST /versions", "POST /webhook"),
        *(f"POST /projects/{{key}}/{action}" for action in (*ACTIONS, "options", "similar/{image_id}")),
    }
    assert min(posts.values()) >= EXAMPLES


def test_a_stranger_does_not_get_the_document(server: schemathesis.BaseSchema) -> None:
    assert server.app.test_client().get("/openapi.json").status_code == 401
