"""The demo without a terminal: its exit status, its table, and that it leaves no process behind."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ml_backend.demo.options import draw_images
from ml_backend.demo.summary import Summary
from ml_backend.label_studio.client import LabelStudioClient
from tests.command_line import run_cli
from tests.manual import ROOT, Command, commands_run_by

pytestmark = pytest.mark.system

VISITORS_IMAGES = 60

# A project small enough for seconds; the demo takes the place of its own defaults with these.
OPTIONS = {
    "AL_BACKBONE": "resnet18",
    "AL_WEIGHTS": "none",
    "AL_IMAGE_SIDE": "64",
    "AL_PASSES": "5",
    "AL_EPOCHS": "5",
    "AL_BATCH_SIZE": "12",
    "AL_RESERVE": "20",
    "AL_RETRAIN_AFTER": "12",
    "AL_MIN_LABELS_PER_CLASS": "2",
    # Two cores for everything: more threads than that only get into each other's way.
    "OMP_NUM_THREADS": "1",
}
# Of a command that says how many, instead of what it says: one more than the environment has.
ROUNDS = 2


@pytest.fixture
def environ(label_studio) -> dict[str, str]:
    """A demo that uses the running Label Studio and starts the rest."""
    # Nor what a `make test` that runs this passes on to what it calls.
    passed_on = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "ROUNDS", "IMAGES", "LABELS"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AL_") and name not in passed_on}
    return kept | {
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like a checkout, linked to what is built, with images of the visitor."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-label-studio.lock", ".tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    images = draw_images(VISITORS_IMAGES, seed=2, side=64)
    (tmp_path / "images").mkdir()
    for image in images:
        (tmp_path / "images" / image.name).write_bytes(image.content)
    lines = ["path,label", *(f"{image.name},{image.label}" for image in images)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def shortened(text: str) -> tuple[str, int]:
    """The command with fewer rounds if it has ROUNDS, and its expected number of trained rounds."""
    short, replaced = re.subn(r"\bROUNDS=\d+", f"ROUNDS={ROUNDS}", text)
    return short, ROUNDS if replaced else 1


def asked(command: Command) -> set[str]:
    """The words of a command of the manual, with its `ARGS` split."""
    return {word for part in command.words for word in shlex.split(part.removeprefix("ARGS="))}


def worth_running(data: Sequence[Command]) -> list[Command]:
    """The commands whose words are not a subset of another command's."""
    return [one for one in data if not any(asked(one) < asked(other) for other in data)]


COMMANDS = worth_running(commands_run_by(__file__))


class TestManual:
    @pytest.mark.parametrize("command", COMMANDS, ids=[one.text for one in COMMANDS])
    def test_its_command_ends_with_0_and_shows_the_order_kept(self, environ, checkout, command):
        text, rounds = shortened(command.text)
        # `make` takes ARGS from the environment too, where the command has none.
        small = environ | {"ROUNDS": "1", "ARGS": "--count 80"}

        done = subprocess.run(
            ["bash", "-euc", text], cwd=checkout, env=small, capture_output=True, text=True, timeout=300, check=False
        )

        assert done.returncode == 0, done.stdout + done.stderr
        assert "served in exactly the chosen order" in done.stdout
        [[served, of]] = re.findall(r"(\d+) of (\d+) images were served", done.stdout)
        assert int(served) == int(of) >= 12 * rounds
        assert " ".join(done.stdout.split()).count("; validation accuracy ") == rounds
        assert (checkout / ".demo").is_dir()
        exports = (checkout / ".demo" / "exports.sh").read_text()
        project = re.search(r"replay --project (\d+)", done.stdout)
        assert project is not None
        named = dict(shlex.split(line)[1].split("=", 1) for line in exports.splitlines())
        replayed = run_cli(["replay", "--project", project[1]], named, checkout)
        assert (replayed.returncode, replayed.stderr) == (0, "")
        assert len(replayed.stdout.splitlines()) >= rounds
        if "--summary" in command.text:
            self.require_the_table(checkout / "demo.json", shlex.split(command.words[-1].removeprefix("ARGS=")))
        if "IMAGES=" in command.text:
            assert "drawing images" not in done.stdout

    @staticmethod
    def require_the_table(table: Path, words: list[str]) -> None:
        """What was asked for, and every round in order."""
        summary = Summary.model_validate_json(table.read_text())
        trained = [row for row in summary.rounds if row.training_s is not None]
        assert summary.readers == int(words[words.index("--readers") + 1])
        assert summary.strategy == words[words.index("--strategy") + 1]
        assert len(trained) == 1
        assert all(row.served == row.in_order > 0 for row in summary.rounds)
        assert trained[0].delay is not None
        assert 0 < trained[0].delay.total_s < 120
        assert trained[0].validation_accuracy is not None
        assert json.loads(table.read_text())["weights"] == "none"

    def test_what_is_not_run_is_part_of_what_is(self):
        """`make demo` of `make demo ROUNDS=5`; another option would be run."""
        data = commands_run_by(__file__)
        new = Command('make demo ARGS="--count 50"', "docs/new.md")

        assert [command.text for command in data if command not in COMMANDS] == [
            "make demo", 'make demo ARGS="--summary demo.json"'
        ]  # fmt: skip
        assert new in worth_running([*data, new])


class TestDemo:
    def test_a_visitors_table_with_a_bad_row_is_refused_before_anything_starts(self, environ, tmp_path):
        (tmp_path / "labels.csv").write_text("path,label\na.png,mild\n")
        arguments = command("--images", tmp_path, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "demo")

        done = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60, check=False)

        assert done.returncode == 1
        assert "line 2, column label: 'mild' is not a class" in done.stderr
        assert not (tmp_path / "demo" / "backend.log").exists()

    @staticmethod
    def require_exports(file: Path, line: str) -> None:
        """They let `doctor` work on the running demo, and only their owner reads them."""
        assert file.stat().st_mode & 0o777 == 0o600
        named = dict(shlex.split(line)[1].split("=", 1) for line in file.read_text().splitlines())
        project = line.split()[1]
        with LabelStudioClient(named["AL_LABEL_STUDIO_URL"], named["AL_LABEL_STUDIO_API_KEY"]) as client:
            [url] = client.backends(int(project))

        done = run_cli(["doctor", "--project", project, "--url", url["url"], "--json"], named)

        found = {one["name"]: one["verdict"] for one in json.loads(done.stdout)["findings"]}
        assert {name for name, verdict in found.items() if verdict == "FAIL"} == set(), done.stdout
        assert all(
            found[name] == "ok" for name in ("API key", "backend", "webhook", "event arrives", "Redis", "worker")
        )

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
    def test_however_it_ends_nothing_of_it_runs_on(self, environ, ctrl_c, tmp_path, ending):
        arguments = command("--rounds", 1, "--count", 30, "--out", tmp_path / "demo")
        demo = subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True)
        assert demo.stdout is not None
        for line in demo.stdout:
            if "begin to label" in line:
                break
        started = descendants(demo.pid)
        if ending == signal.SIGINT:
            self.require_exports(tmp_path / "demo" / "exports.sh", line)

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
