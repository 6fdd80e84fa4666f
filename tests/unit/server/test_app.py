"""Who may call, and errors in words."""

from base64 import b64encode

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from ml_backend.errors import QueueError, StorageError
from ml_backend.server.app import create_app
from ml_backend.settings import Settings
from tests.unit.server.memory import payload

PATHS = ["/", "/setup", "/predict", "/webhook", "/versions", "/metrics", "/no-such-page"]


def basic(user, password):
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


class TestAuthentication:
    @pytest.fixture
    def guarded(self, store, queue):
        settings = Settings(data_dir=store.root, basic_auth_user="ls", basic_auth_pass=SecretStr("gehëim"))
        return create_app(settings, queue).test_client()

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            basic("ls", "wrong"),
            basic("other", "gehëim"),
            basic("", ""),
            {"Authorization": "Bearer gehëim".encode()},
        ],
    )
    def test_refuses_strangers_everywhere(self, guarded, path, headers):
        response = guarded.post(path, headers=headers)

        assert response.status_code == 401
        assert "ml-backend connect" in response.json["error"]
        assert response.headers["WWW-Authenticate"].startswith("Basic")

    def test_lets_the_right_one_in(self, guarded):
        assert guarded.get("/versions", headers=basic("ls", "gehëim")).json == {"versions": []}

    def test_health_is_open(self, guarded):
        """A container's health check has no password."""
        assert guarded.get("/health").json == {"status": "UP"}

    def test_off_by_default(self, client):
        assert client.get("/versions").status_code == 200


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status"), [(QueueError("Redis is away"), 503), (StorageError("disk is full"), 500)]
    )
    def test_ours_are_told_as_json_and_in_the_status_line(self, connected, queue, monkeypatch, error, status):
        """Label Studio shows its owner the status line, and nothing of the body."""

        def refuse(*_args, **_options):
            raise error

        monkeypatch.setattr(queue, "count_changes", refuse)

        response = connected.post("/webhook", json=payload("ANNOTATION_CREATED"))

        assert (response.status_code, response.json) == (status, {"error": str(error)})
        assert response.status == f"{status} {error}"

    def test_unexpected_ones_are_logged_and_not_told(self, connected, queue, monkeypatch):
        def fail(*_args, **_options):
            raise RuntimeError("secret detail")

        monkeypatch.setattr(queue, "count_changes", fail)

        with capture_logs() as logs:
            response = connected.post("/webhook", json=payload("ANNOTATION_CREATED"))

        assert response.status_code == 500
        assert b"secret" not in response.data
        assert b"Traceback" not in response.data
        assert any(str(entry.get("exc_info")) == "secret detail" for entry in logs)

    def test_no_such_page_and_wrong_method(self, client):
        assert client.get("/no-such-page").status_code == 404
        wrong = client.get("/webhook")
        assert (wrong.status_code, wrong.headers["Allow"]) == (405, "OPTIONS, POST")
        assert "error" in wrong.json

    def test_the_status_line_is_one_line_of_latin_1_without_markup(self, client):
        """A header cannot be smuggled in, and Label Studio cannot be made to show a script."""
        schema = "<View>\r\nSet-Cookie: x=1\r\n\r\n<script>→</script></View>"
        body = payload("setup") | {"schema": schema, "extra_params": {"strategy": "a\r\nb→<script>"}}

        response = client.post("/setup", json=body)

        assert response.status_code == 400
        assert "Set-Cookie" not in response.headers
        assert not {"\r", "\n", "<", ">", "→"} & set(response.status)
