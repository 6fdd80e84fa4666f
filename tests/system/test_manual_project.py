"""The manual followed on a live project: Redis, backend and worker started, connected and asked, line by line.

Only a reader's own values replace the examples: the project, addresses, keys, folders. Options of the environment make
the network small, and half of the published images random, so that `proof` has enough of them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from redis import Redis, RedisError
from rq.worker_registration import get_keys

from ml_backend.demo.options import DRAWN_CLASSES, draw_images
from ml_backend.demo.project import RoundFollower, create_project, upload_images
from ml_backend.demo.readers import file_name
from ml_backend.demo.services import Backend
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import NOTHING_TO_CHANGE, read_label_config
from ml_backend.processes import Service, free_port, valkey_program
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.storage import RoundStore
from tests.command_line import ShellService
from tests.manual import Command, commands, commands_run_by, pages
from tests.system.live import LiveProject

pytestmark = pytest.mark.system

COMMANDS = commands_run_by(__file__)
IMAGES, START = 84, 4  # of every class, before the first training
WITHIN_S = 120.0
SMALL = {
    "AL_BACKBONE": "resnet18",
    "AL_WEIGHTS": "none",
    "AL_IMAGE_SIDE": "64",
    "AL_EPOCHS": "5",
    "AL_MIN_LABELS_PER_CLASS": "2",
    "AL_RETRAIN_AFTER": "1000",
    "AL_NOISE_EVERY": "0",
    "AL_CONTROL_SHARE": "0.5",
    "AL_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",
}

Answer = subprocess.CompletedProcess[str]


def those(*begins: str, of: Sequence[Command] = COMMANDS) -> list[Command]:
    """The commands that begin so; there are some."""
    found = [one for one in of if one.bare.startswith(begins)]
    assert found, begins
    return found


def each(*begins: str) -> pytest.MarkDecorator:
    found = those(*begins)
    return pytest.mark.parametrize("command", found, ids=[one.text for one in found])


class Desk:
    """A reader's terminals, all in one folder.

    Args:
        folder: empty; the environment of the tests stands there as `make setup` would have built it.
        own: what an example of the manual stands for.
    """

    def __init__(self, folder: Path, own: dict[str, str]) -> None:
        self.folder = folder
        self._own = own
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "bin").mkdir()
        (folder / "bin" / "redis-server").symlink_to(valkey_program())
        path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AL_")}
        self.environ = kept | SMALL | {"PATH": os.pathsep.join(path), "COLUMNS": "200"}

    def type(self, *commands: Command, then: str = "") -> Answer:
        """Type lines into a terminal, the examples replaced by the reader's own."""
        lines = "\n".join([*map(self._line, commands), then])
        return subprocess.run(
            ["bash", "-euc", lines], cwd=self.folder, env=self.environ,
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip

    def export(self, lines: Sequence[Command]) -> dict[str, str]:
        """The variables of ours that a terminal has after these lines."""
        done = self.type(*lines, then="env -0")
        assert done.returncode == 0, done.stderr
        pairs = (entry.partition("=") for entry in done.stdout.split("\0"))
        return {name: value for name, _, value in pairs if name.startswith("AL_") and name not in SMALL}

    def leave_open(self, command: Command, ready: Callable[[], bool]) -> Service:
        """Type a line into a terminal of its own, where it runs on."""
        log = self.folder / f"{command.bare.replace(' ', '_')}.log"
        return ShellService(f"exec {self._line(command)}", log, ready, self.environ).start()

    def _line(self, command: Command) -> str:
        line = command.run_as
        for example, own in self._own.items():
            line = line.replace(example, own)
        return line


@dataclass(frozen=True)
class Office:
    """The manual followed up to the project that is to be connected."""

    desk: Desk
    exported: dict[str, dict[str, str]]  # page -> what its lines export
    live: Callable[[], LiveProject]


@pytest.fixture(scope="module")
def office(label_studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """Step 4 of docs/operators.md, and a project with images that is not connected."""
    folder = tmp_path_factory.mktemp("office")
    redis_port, port = free_port(), free_port()
    redis_url, backend_url = f"redis://127.0.0.1:{redis_port}/0", f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        client = stack.enter_context(LabelStudioClient(label_studio.url, label_studio.api_key))
        project_id, config = create_project(client, "By the manual", read_label_config("severity"))
        stack.callback(client.send, "DELETE", f"/api/projects/{project_id}/")
        drawn = draw_images(IMAGES, seed=6, side=64)
        assert list(upload_images(client, label_studio.api_key, project_id, config.image_key, drawn))[-1] == IMAGES
        own = {
            "https://label-studio.example.org": label_studio.url,
            "the-personal-access-token": label_studio.api_key,
            "redis://127.0.0.1:6379/0": redis_url,
            "--port 6379": f"--port {redis_port}",
            "/srv/active-learning": str(folder / "data"),
            "http://backend.example.org:9090": backend_url,
            "--port 9090": f"--port {port}",
            "--project 7": f"--project {project_id}",
        }
        desk = Desk(folder, own)
        data = {page: commands({page: text}) for page, text in pages().items()}
        exporting = {page for page, found in data.items() if any(one.bare.startswith("export") for one in found)}
        lines = {page: those("export", of=data[page]) for page in exporting}
        exported = {page: desk.export(found) for page, found in lines.items()}
        desk.environ |= exported["README.md"]
        running = []
        for command in those(*READY):
            ready = next(ready for begins, ready in READY.items() if command.bare.startswith(begins))
            running.append(stack.enter_context(desk.leave_open(command, partial(ready, redis_url, backend_url))))
        for service in running:
            service.wait(WITHIN_S)
        queue = RoundQueue(stack.enter_context(connect_redis(redis_url)))
        store = RoundStore(folder / "data")

        def live() -> LiveProject:
            follower = RoundFollower(client, store, queue, store.connection(project_id).project)
            truth = {image.name: image.label for image in drawn}
            backend = Backend(desk.environ, folder / "unused.log")
            return LiveProject(project_id, config, client, follower, truth, {}, backend, (), stack)

        yield Office(desk, exported, live)


def redis_answers(redis_url: str, _: str) -> bool:
    try:
        with Redis.from_url(redis_url) as redis:
            return bool(redis.ping())
    except RedisError:
        return False


def backend_answers(_: str, backend_url: str) -> bool:
    try:
        return httpx.get(f"{backend_url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def worker_waits(redis_url: str, _: str) -> bool:
    with Redis.from_url(redis_url) as redis:
        return bool(get_keys(connection=redis))


READY = {"redis-server": redis_answers, "ml-backend serve": backend_answers, "ml-backend work": worker_waits}


@pytest.fixture(scope="module")
def connected(office: Office) -> list[tuple[Command, Answer]]:
    """The answers to every line of the manual that connects the project, one after the other."""
    return [(command, office.desk.type(command)) for command in those("ml-backend connect")]


@pytest.fixture(scope="module")
def project(office: Office, connected: list[tuple[Command, Answer]]) -> LiveProject:
    """Connected, and with an order."""
    live = office.live()
    wait(live, lambda: bool(live.follower.rounds))
    return live


@pytest.fixture(scope="module")
def trained(project: LiveProject) -> LiveProject:
    """With a network, and every image labelled: the start set before it, the rest in its order."""
    truth = {image.name: image.label for image in draw_images(IMAGES, seed=6, side=64)}
    values = {number: truth[file_name(uri)] for number, uri in project.images().items()}
    start = [n for name in DRAWN_CLASSES for n in [n for n, value in values.items() if value == name][:START]]
    project.annotate({number: values[number] for number in start})
    project.start_training()
    wait(project, lambda: project.follower.trained > 0)
    project.annotate({number: value for number, value in values.items() if number not in start})
    return project


def wait(project: LiveProject, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, project.follower.poll()
        project.follower.poll(patient=True)
        time.sleep(0.1)


def test_both_pages_export_the_same(office: Office) -> None:
    """A project that README has connected is one that docs/operators.md serves."""
    assert office.exported.keys() == {"README.md", "docs/operators.md"}
    assert office.exported["README.md"] == office.exported["docs/operators.md"]
    assert office.exported["README.md"]["AL_BASIC_AUTH_PASS"] == "a-long-secret"


def test_connect_says_what_it_changed_and_a_second_time_nothing(
    office: Office, connected: list[tuple[Command, Answer]]
) -> None:
    assert [answer.stderr for _, answer in connected if answer.returncode != 0] == []
    (first, message), (again, nothing), (other, replaced) = connected
    assert first.words == again.words != other.words
    assert "strategy" in message.stdout
    assert nothing.stdout.splitlines()[2] == NOTHING_TO_CHANGE
    assert "extra_params" in replaced.stdout
    live = office.live()
    [backend] = live.client.backends(live.id)
    assert {name: str(value) for name, value in backend["extra_params"].items()} == {"profile": "best", "passes": "100"}


@each("ml-backend doctor")
def test_doctor_finds_nothing(office: Office, project: LiveProject, command: Command) -> None:
    answer = office.desk.type(command)

    assert answer.returncode == 0, answer.stdout
    assert "all is well: " in answer.stdout.splitlines()[-1]


@each("ml-backend doctor")
def test_doctor_calls_it_a_success_when_every_image_is_labelled(
    office: Office, trained: LiveProject, command: Command
) -> None:
    answer = office.desk.type(command)

    assert answer.returncode == 0, answer.stdout
    assert f"Every image is labelled: {IMAGES} images." in " ".join(answer.stdout.split())


@each("ml-backend replay")
def test_replay_comes_to_the_same(office: Office, trained: LiveProject, command: Command) -> None:
    answer = office.desk.type(command)

    assert answer.returncode == 0, answer.stdout
    assert len(answer.stdout.splitlines()) >= len(trained.follower.rounds) >= 2
    assert "FAULT" not in answer.stdout


@each("ml-backend proof")
def test_proof_compares(office: Office, trained: LiveProject, command: Command) -> None:
    answer = office.desk.type(command)

    assert answer.returncode == 0, answer.stderr
    assert "labels beyond the start set, chosen by the strategy instead of randomly" in answer.stdout


def test_every_command_is_typed() -> None:
    """By a fixture or by a test above."""
    begins = ("export", *READY, *(f"ml-backend {name}" for name in ("connect", "doctor", "replay", "proof")))

    assert [one.text for one in COMMANDS if not one.bare.startswith(begins)] == []
