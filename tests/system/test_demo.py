"""The demo as a visitor without a terminal runs it: its exit status, its table, and that it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_backend.demo.summary import Summary

pytestmark = pytest.mark.system

# A project small enough for seconds; the demo takes the place of its own defaults with these.
OPTIONS = {
    "AL_BACKBONE": "resnet18",
    "AL_WEIGHTS": "none",
    "AL_IMAGE_SIDE": "64",
    "AL_PASSES": "5",
    "AL_EPOCHS": "5",
    "AL_BATCH_SIZE": "10",
    "AL_RETRAIN_AFTER": "10",
    "AL_MIN_LABELS_PER_CLASS": "2",
}


@pytest.fixture
def environ(label_studio) -> dict[str, str]:
    """A demo that uses the running Label Studio and starts the rest."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AL_")} | {
        **OPTIONS,
        "AL_DEMO_LABEL_STUDIO_URL": label_studio.url,
        "AL_DEMO_LABEL_STUDIO_EMAIL": label_studio.admin.email,
        "AL_DEMO_LABEL_STUDIO_PASSWORD": label_studio.admin.password,
        "AL_DEMO_LABEL_STUDIO_TOKEN": label_studio.admin.token,
    }


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """What a shell runs in the background is born deaf to Ctrl-C, and so would be what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ml_backend", "demo", *map(str, arguments)]


def descendants(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    children = [int(child) for child in text.split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestDemo:
    def test_ends_with_0_and_writes_the_table(self, environ, tmp_path):
        table = tmp_path / "table.json"
        arguments = command("--rounds", 1, "--count", 80, "--folder", tmp_path / "demo", "--json", table)

        done = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=300, check=False)

        assert done.returncode == 0, done.stdout + done.stderr
        summary = Summary.model_validate_json(table.read_text())
        trained = [row for row in summary.rounds if row.training_s is not None]
        assert len(trained) == 1
        assert all(row.served == row.in_order > 0 for row in summary.rounds)
        assert trained[0].delay is not None
        assert 0 < trained[0].delay.total_s < 120
        assert trained[0].validation_accuracy is not None
        assert "served in exactly the chosen order" in done.stdout
        assert json.loads(table.read_text())["weights"] == "none"

    def test_a_visitors_table_with_a_bad_row_is_refused_before_anything_starts(self, environ, tmp_path):
        (tmp_path / "labels.csv").write_text("path,label\na.png,mild\n")
        arguments = command("--images", tmp_path, "--labels", tmp_path / "labels.csv", "--folder", tmp_path / "demo")

        done = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60, check=False)

        assert done.returncode == 1
        assert "line 2, column label: 'mild' is no class" in done.stderr
        assert not (tmp_path / "demo" / "backend.log").exists()

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
    def test_however_it_ends_nothing_of_it_runs_on(self, environ, ctrl_c, tmp_path, ending):
        arguments = command("--rounds", 1, "--count", 30, "--folder", tmp_path / "demo")
        demo = subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True)
        assert demo.stdout is not None
        for line in demo.stdout:
            if "begin to label" in line:
                break
        started = descendants(demo.pid)

        demo.send_signal(ending)
        demo.wait(60)

        assert len(started) >= 4  # Valkey, the backend with its worker, the worker
        deadline = time.monotonic() + 30
        while any(alive(pid) for pid in started):
            assert time.monotonic() < deadline, f"of {started} some still run"
            time.sleep(0.1)
        if ending == signal.SIGINT:
            assert demo.returncode == 130
            assert "stopped" in demo.stdout.read()
        demo.stdout.close()
