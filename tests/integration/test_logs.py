"""The logs of real processes: every line is JSON, with its project and round."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.processes import FAKE_WORKER, PAYLOADS, PROJECT, free_port, wait_until

SECRETS = {"AL_BASIC_AUTH_PASS": "pass-of-the-backend", "AL_LABEL_STUDIO_API_KEY": "key-of-label-studio"}

Logged = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    """The lines of the first child; fails where one is no JSON."""
    return lambda: [json.loads(line) for line in (tmp_path / "child-0.log").read_text().splitlines()]


def body(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PAYLOADS / f"{name}.json").read_text())
    return found


def about(lines: list[dict[str, Any]], event: str) -> list[tuple[str | None, str | None]]:
    return [(line.get("project"), line.get("round")) for line in lines if line["event"] == event]


class TestServer:
    @pytest.fixture
    def client(self, start):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        server = start(
            *(sys.executable, "-m", "ml_backend", "serve", "--port", str(port)),
            **SECRETS,
            AL_BASIC_AUTH_USER="ls",
            AL_LOG_LEVEL="DEBUG",
            AL_LABEL_STUDIO_URL="http://127.0.0.1:1",
        )

        def answers() -> bool:
            assert server.poll() is None
            try:
                return httpx.get(f"{url}/health", timeout=5).is_success
            except httpx.TransportError:
                return False

        wait_until(answers)
        with httpx.Client(base_url=url, timeout=10, auth=("ls", SECRETS["AL_BASIC_AUTH_PASS"])) as client:
            yield client, server

    def test_every_line_about_a_project_names_it(self, client, logged: Logged):
        http, server = client
        http.post("/setup", json=body("setup")).raise_for_status()
        http.post("/webhook", json=body("ANNOTATION_CREATED")).raise_for_status()
        stranger = body("setup") | {"project": "77.5", "schema": "<View/>"}
        assert http.post("/setup", json=stranger).status_code == 400
        assert http.get("/versions", auth=("ls", "wrong")).status_code == 401
        server.terminate()
        assert server.wait(timeout=30) == 0

        lines = logged()
        assert about(lines, "webhook") == [(str(PROJECT), None)]
        refused = [line for line in lines if line["event"] == "refused"]
        assert [(line["path"], line.get("project")) for line in refused] == [("/setup", "77.5"), ("/versions", None)]
        assert "gunicorn.error" in {line["logger"] for line in lines}
        assert {"event", "level", "logger", "timestamp"} <= set.intersection(*map(set, lines))
        for secret in SECRETS.values():
            assert secret not in json.dumps(lines)

    def test_the_reconciler_names_the_project_that_it_cannot_read(self, start, environ, tmp_path, logged: Logged):
        folder = Path(environ["AL_DATA_DIR"]) / "projects" / str(PROJECT)
        folder.mkdir(parents=True)
        connection = {"project": PROJECT.model_dump(), "hostname": "http://127.0.0.1:1", "label_config": "<View/>"}
        (folder / "connection.json").write_text(json.dumps(connection))

        start(
            *(sys.executable, "-m", "ml_backend", "serve", "--port", str(free_port())),
            AL_LABEL_STUDIO_API_KEY="key-of-label-studio",
            AL_LABEL_STUDIO_URL="http://127.0.0.1:1",
        )

        event = "a project could not be compared with Label Studio"
        wait_until(lambda: event in (tmp_path / "child-0.log").read_text())
        assert about(logged(), event) == [(str(PROJECT), None)]


class TestWorker:
    def test_project_and_round_from_the_moment_that_they_are_known(self, queue, start_worker, plan, logged: Logged):
        plan("quick", "empty", "bug")
        start_worker()

        def ended(number: int) -> bool:
            status = queue.status(PROJECT)
            return bool(status.rounds_finished + status.rounds_failed == number)

        for number in (1, 2, 3):
            queue.request_round(PROJECT, "forced")
            wait_until(partial(ended, number))
        wait_until(lambda: any("a bug" in line["event"] for line in logged()))

        lines = logged()
        assert about(lines, "waiting for rounds") == [(None, None)]
        assert about(lines, "round begins") == [(str(PROJECT), None)] * 3
        assert about(lines, "round published") == [(str(PROJECT), "r000001")]
        assert about(lines, "nothing to rank") == [(str(PROJECT), "r000002")]
        assert about(lines, "round failed") == [(str(PROJECT), "r000003")]
        found = [(line["project"], line["round"]) for line in lines if line["logger"] == "rq.worker"]
        assert set(found) == {(str(PROJECT), "r000003")}
        [bug] = [line for line in lines if "exception" in line]
        assert [(e["exc_type"], e["exc_value"]) for e in bug["exception"]] == [("RuntimeError", "a bug")]
        assert all("locals" not in frame for frame in bug["exception"][0]["frames"])

    def test_the_end_of_a_killed_process_names_the_project(self, queue, start_worker, plan, logged: Logged):
        """Logged by the parent, which does not know the round's number."""
        plan("kill", "quick")
        start_worker()
        queue.request_round(PROJECT, "forced")
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

        assert about(logged(), "work-horse gone") == [(str(PROJECT), None)]
        assert {line["project"] for line in logged() if line["logger"] == "rq.worker"} == {str(PROJECT)}

    def test_for_people_on_demand(self, queue, start, tmp_path):
        start(sys.executable, str(FAKE_WORKER), AL_LOG_FORMAT="console")
        queue.request_round(PROJECT, "forced")
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

        text = (tmp_path / "child-0.log").read_text()
        assert f"project={PROJECT}" in text
        with pytest.raises(json.JSONDecodeError):
            json.loads(text.splitlines()[0])
