"""A project runs on what an installed package adds: acquisition function, backbone, consensus rule, image source."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.golden_services import free_port, valkey
from tests.golden_studio import CLASSES, Studio, key, worker

OPTIONS: dict[str, Any] = {
    "strategy": "least_seen",
    "consensus": "most_severe",
    "backbone": "pooled",
    "weights": "none",
    "min_labels_per_class": 2,
    "batch_size": 6,
    "reserve": 20,
}
PROJECT = 1


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)


def is_quiet(client: httpx.Client) -> bool:
    try:
        projects = client.get("/").json()["projects"]
    except httpx.TransportError:
        return False
    return all(not (one["queue"]["running"] or one["queue"]["waiting"]) for one in projects)


def test_a_plugin_ranks_a_live_project(plugin: Path, tmp_path: Path) -> None:
    with valkey() as (_, redis_url), Studio().serving() as studio:
        environ = {
            "PYTHONPATH": str(plugin),
            "AL_DATA_DIR": str(tmp_path / "data"),
            "AL_REDIS_URL": redis_url,
            "AL_LABEL_STUDIO_URL": studio.url,
        }
        port = free_port()
        serve = [sys.executable, "-m", "ml_backend", "serve", "--port", str(port)]
        log = tmp_path / "worker.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AL_")}
        with (
            subprocess.Popen(serve, env=kept | environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
            worker(environ, log),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"accept": "application/json"}) as client,
        ):
            try:
                wait_for(lambda: is_quiet(client), log)
                studio.add_project(PROJECT)
                for number, task in studio.tasks[PROJECT].items():
                    task["data"]["image"] = f"drawn://{CLASSES[number % 3]}/{number}"
                assert client.post("/setup", json=studio.setup(PROJECT, OPTIONS)).status_code == 200
                wait_for(lambda: is_quiet(client), log)
                client.post("/webhook", json=studio.event(PROJECT, studio.label(PROJECT, 20)))
                wait_for(lambda: is_quiet(client), log)
                project = client.get(f"/projects/{key(PROJECT)}").json()
                strategies = client.get(f"/projects/{key(PROJECT)}", headers={"accept": "text/html"}).text
            finally:
                server.terminate()

    assert project["rounds"], log.read_text()[-3000:]
    newest = project["rounds"][-1]
    assert newest["strategy"] == "least_seen"
    assert newest["fit"]["train_images"] + newest["fit"]["validation_images"] == 20
    assert len(studio.served(PROJECT)) == OPTIONS["batch_size"] + OPTIONS["reserve"]
    assert "least_seen" in strategies
    # The worker's thumbnails are read through the package's image source too.
    thumbnails = list((tmp_path / "data").glob(f"projects/*/rounds/{newest['round_id']}/films/*.jpg"))
    assert len(thumbnails) >= OPTIONS["batch_size"]  # and those of previews


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"consensus": "least_severe"},
            "unknown consensus rule 'least_severe': known are median, .*latest, most_severe",
        ),
        ({"strategy": "most_seen"}, "unknown strategy 'most_seen': known are .*least_seen"),
    ],
)
def test_an_unknown_name_lists_the_plugins(plugin: Path, options: dict[str, str], words: str) -> None:
    code = f"from ml_backend.config import ProjectOptions\nProjectOptions.resolve({options})"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(plugin)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert re.search(words, done.stderr)
