"""gunicorn as its own process, a worker beside it, a real Valkey behind both."""

import http.client
import json
import signal
import sys
import time
from contextlib import closing

import httpx
import pytest

from tests.integration.processes import PAYLOADS, PROJECT, free_port, wait_until

ON_A_TERMINAL = (
    sys.executable,
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, *sys.argv[1:]])))",
)
LIMIT_S = 1.0  # Label Studio hangs up then, and sends the event never again


def body(name, **project):
    found = json.loads((PAYLOADS / f"{name}.json").read_text())
    if project:
        found["project"] |= project
    return found


def answers(url):
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def post(url, path, text):
    """The status of an answer, without a kept connection, as Label Studio calls."""
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)) as connection:
        connection.request("POST", path, text, {"Content-Type": "application/json"})
        return connection.getresponse().status


@pytest.fixture
def serve(start):
    """Start the backend as users do; returns its process and its address."""

    def start_server(**extra):
        port = free_port()
        command = [sys.executable, "-m", "ml_backend", "serve", "--host", "127.0.0.1", "--port", str(port)]
        server = start(*command, **extra)
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url) or server.poll() is not None)
        assert server.poll() is None
        return server, url

    return start_server


class TestServe:
    def test_two_hundred_webhooks_while_a_round_runs(self, serve, start_worker, plan, queue):
        """Each is answered within Label Studio's limit, and none is lost."""
        _, url = serve()
        plan("burn 600")
        start_worker()
        setup = body("setup") | {"extra_params": {"retrain_after": 150}}
        assert httpx.post(f"{url}/setup", json=setup, timeout=5).status_code == 200
        wait_until(lambda: queue.status(PROJECT).running == "connected")
        event = json.dumps(body("ANNOTATION_CREATED", min_annotations_to_start_training=1))

        seconds = []
        for _ in range(200):
            begin = time.perf_counter()
            assert post(url, "/webhook", event) == 200
            seconds.append(time.perf_counter() - begin)

        status = queue.status(PROJECT)
        assert status.running == "connected"
        assert status.changes == 200
        assert status.waiting == "labels"
        assert max(seconds) < LIMIT_S, sorted(seconds)[-5:]

    def test_sigterm_ends_it_and_lets_the_open_request_end(self, serve):
        server, url = serve()
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        text = json.dumps(body("setup")).encode()
        connection.putrequest("POST", "/setup")
        connection.putheader("Content-Length", str(len(text)))
        connection.endheaders()
        connection.send(text[:100])
        time.sleep(0.3)

        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.send(text[100:])

        assert connection.getresponse().status == 200
        connection.close()
        assert server.wait(timeout=20) == 0

    @pytest.mark.parametrize("command", ["serve", "work"])
    def test_does_not_start_where_it_cannot_store(self, start, tmp_path, command):
        """A file in the place of the data folder stops root too. On a terminal, `work` is heard at once."""
        (tmp_path / "file").touch()

        process = start(*ON_A_TERMINAL, "-m", "ml_backend", command, AL_DATA_DIR=str(tmp_path / "file" / "data"))

        assert process.wait(timeout=60) == 1
        *before, last = (tmp_path / "child-0.log").read_text().splitlines()
        assert last.startswith(f"ml-backend: the data folder {tmp_path / 'file' / 'data'} cannot be written by user ")
        assert "a file is in its place" in last
        if command == "work":
            assert before[0] == "ml-backend: loading the worker's libraries, which takes some seconds"
            assert "worker starts" in before[1]
        else:
            assert before == []

    def test_needs_no_home_and_no_writable_folder(self, serve, tmp_path):
        """As a container runs it: some user, a read-only root."""
        empty = tmp_path / "nobody's"
        empty.mkdir(mode=0o500)

        _, url = serve(HOME=str(empty), TMPDIR=str(empty), XDG_RUNTIME_DIR="")

        assert httpx.get(f"{url}/health").status_code == 200
        assert list(empty.iterdir()) == []

    def test_password(self, serve):
        _, url = serve(AL_BASIC_AUTH_USER="ls", AL_BASIC_AUTH_PASS="secret")

        assert httpx.get(f"{url}/versions").status_code == 401
        assert httpx.get(f"{url}/versions", auth=("ls", "secret")).status_code == 200

    def test_redis_down(self, serve):
        _, url = serve(AL_REDIS_URL="redis://:secret@127.0.0.1:1/0")

        response = httpx.post(f"{url}/setup", json=body("setup"), timeout=5)

        assert response.status_code == 503
        assert "Redis at 127.0.0.1:1/0 does not answer" in response.json()["error"]
        assert "Redis at 127.0.0.1:1/0 does not answer" in response.reason_phrase
        assert "secret" not in response.text


class TestTheWayRound:
    def test_setup_in_pairs_asks_for_one_round(self, serve, start_worker, plan, queue, log):
        """Label Studio calls it four times in a tenth of a second, and again with every look at its settings."""
        _, url = serve()
        plan("burn 2")
        for _ in range(4):
            assert post(url, "/setup", json.dumps(body("setup"))) == 200
        start_worker()
        wait_until(lambda: queue.status(PROJECT).running)
        assert post(url, "/setup", json.dumps(body("setup"))) == 200
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

        answer = httpx.post(f"{url}/setup", json=body("setup"), timeout=5)

        assert answer.json() == {"model_version": "al-r000001"}
        assert len([line for line in log() if line["event"] == "begin"]) == 1
        assert queue.status(PROJECT).waiting is None

    def test_labels_start_the_next_round(self, serve, start_worker, queue, log):
        _, url = serve()
        httpx.post(f"{url}/setup", json=body("setup") | {"extra_params": {"retrain_after": 3}}, timeout=5)
        start_worker()
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

        for _ in range(3):
            event = body("ANNOTATION_CREATED", min_annotations_to_start_training=1)
            httpx.post(f"{url}/webhook", json=event, timeout=5)

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 2)
        assert [line["reason"] for line in log()] == ["connected", "connected", "labels", "labels"]
        assert 'al_rounds_total{outcome="published",project="2.1795384774"} 2.0' in httpx.get(f"{url}/metrics").text
