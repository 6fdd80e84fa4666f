"""A small installation on a real Label Studio: Valkey, server, two workers, a disk, and a project with readers."""

import contextlib
import json
import os
import resource
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from ml_backend.demo.options import DRAWN_CLASSES, draw_images
from ml_backend.demo.project import create_project, upload_images
from ml_backend.demo.readers import Reader, ReadingRoom, SimulatedLabels, Submission, choice_result, file_name
from ml_backend.demo.services import Backend, Worker
from ml_backend.errors import LabelStudioError, QueueError, RequestRefused
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import connect_project, read_label_config
from ml_backend.processes import Service, Valkey, valkey_program
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.schemas import ImportedVersion, ProjectKey, PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore, RoundStore
from tests.system.chaos.relay import Relay

RETRAIN_AFTER = 5
OPTIONS: dict[str, object] = {
    "backbone": "mobilenet_v3_small",
    "weights": "none",
    "finetune": "full",
    "image_side": 32,
    "passes": 5,
    # Long enough that a moment in the middle of the training can be met.
    "epochs": 8,
    "min_epochs": 8,
    "batch_size": 5,
    "reserve": 40,
    "retrain_after": RETRAIN_AFTER,
    "min_labels_per_class": 2,
}
FIRST_LABELS = 4  # of each class, before the first round
READERS = 2
START_S = 240.0  # two workers load PyTorch beside a server
PACE_S = 0.2
LONGEST_S = 120.0


class RestartableValkey(Valkey):
    """A Valkey that starts again on the port and the append-only file of its first start."""

    def start(self) -> Self:
        if not self.url:
            return super().start()
        self._run([valkey_program(), "valkey.conf"], os.environ, self._folder / "valkey.log", cwd=self._folder)
        return self


def kill(service: Service, *, group: bool = False) -> None:
    """Kill a service, alone or with its whole process group, as the end of a container does."""
    process = service._process
    assert process is not None
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def children(pid: int) -> list[int]:
    """Child processes of ``pid``; none where it has ended."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def suspended(url: str, seconds: float) -> Iterator[None]:
    """Suspend the Label Studio at ``url`` for the block and ``seconds`` more: it does not answer."""
    port = str(urlsplit(url).port).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"label-studio") for word in words) and port in words:
                found.append(int(folder.name))
    assert found, f"no process of this machine is the Label Studio at {url}"
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(seconds)
    finally:
        for pid in found:
            os.kill(pid, signal.SIGCONT)


class SmallDisk:
    """A disk that can be filled: a tmpfs of its own where this process may mount one.

    Elsewhere the work-horse alone cannot write any further byte, to its log either.

    Args:
        folder: mount point; created here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_mounted = False

    @property
    def way(self) -> str:
        return "tmpfs, ENOSPC" if self.is_mounted else "RLIMIT_FSIZE of the work-horse, EFBIG"

    def fill(self, horse: int) -> None:
        """Leave no space from now on."""
        if not self.is_mounted:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(horse, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        for _ in range(100):
            disk = os.statvfs(self.folder)
            used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
            # Refused after a write in between.
            if self._mount(f"remount,size={max(used, disk.f_frsize)}"):
                return
        raise AssertionError("the disk could not be filled")

    def free(self) -> None:
        """Provide space again; a limited work-horse ends by itself."""
        assert not self.is_mounted or self._mount("remount,size=1g")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self.is_mounted = os.geteuid() == 0 and self._mount("size=1g")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


class BackgroundReaders:
    """Readers in turn, who repeat what fails while Label Studio is suspended or busy.

    A refused request (status 4xx) is an error: a reader at the page could not go on.

    Args:
        room: the readers.
        first: tasks that were labelled before, and when.
    """

    def __init__(self, room: ReadingRoom, first: dict[str, datetime]) -> None:
        self._room = room
        self._first = first
        self._reading = threading.Event()
        self._over = threading.Event()
        self._problem: Exception | None = None
        self._turn = threading.Lock()
        self.refused: list[str] = []
        self._thread = threading.Thread(target=self._run, name="readers", daemon=True)
        self._thread.start()

    @property
    def submissions(self) -> list[Submission]:
        """Labels that Label Studio has accepted."""
        return list(self._room.submissions)

    def labelled(self) -> dict[str, datetime]:
        """Task -> when Label Studio had accepted its label."""
        return self._first | {one.image_id: one.answered_at for one in self.submissions}

    def read(self) -> None:
        """Go on labelling."""
        self._reading.set()

    def pause(self) -> None:
        """Stop labelling, after the current image."""
        self._reading.clear()
        with self._turn:
            self.check()

    def submit(self, count: int) -> None:
        """Label ``count`` images more, and pause."""
        goal = len(self._room.submissions) + count
        if count:
            self.read()
            self.wait(lambda: len(self._room.submissions) >= goal)
        self.pause()

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not until():
            self.check()
            assert time.monotonic() < deadline, f"the readers did not get on: {self.refused[-3:]}"
            time.sleep(0.02)

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self._problem is not None:
            raise self._problem

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PACE_S):
            if not self._reading.is_set():
                continue
            with self._turn:
                try:
                    assert self._room.turn(), "no image is left to label"
                except LabelStudioError as error:
                    if isinstance(error, RequestRefused) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        self._problem = error
                        return
                    self.refused.append(str(error))
                except Exception as error:  # noqa: BLE001 - raised again in the test's own thread
                    self._problem = error
                    return


class Installation:
    """All services but Label Studio, with a disk of their own; the workers reach Label Studio through a relay.

    Args:
        folder: for data and logs.
        url: address of Label Studio.
        api_key: key of its owner.
    """

    def __init__(self, folder: Path, url: str, api_key: str) -> None:
        self.url = url
        self.api_key = api_key
        self.disk = SmallDisk(folder / "data")
        self.relay = Relay(urlsplit(url).port or 80)
        self.valkey = RestartableValkey(folder / "valkey")
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> "Installation":
        with ExitStack() as stack:
            stack.enter_context(self.disk)
            stack.enter_context(self.relay)
            stack.enter_context(self.valkey.start()).wait()
            environ = {name: value for name, value in os.environ.items() if not name.startswith("AL_")} | {
                "AL_REDIS_URL": self.valkey.url,
                "AL_DATA_DIR": str(self.disk.folder),
                "AL_LABEL_STUDIO_URL": self.url,
                "AL_LABEL_STUDIO_API_KEY": self.api_key,
                "AL_DEVICE": "cpu",
                "OMP_NUM_THREADS": "1",
            }
            self.server = stack.enter_context(Backend(environ, self._folder / "server.log").start())
            behind_relay = self.server.environ | {"AL_LABEL_STUDIO_URL": self.relay.url}
            self.workers = [
                stack.enter_context(Worker(behind_relay, self._folder / f"worker-{number}.log").start())
                for number in range(2)
            ]
            for service in (self.server, *self.workers):
                service.wait(START_S)
            self.client = stack.enter_context(LabelStudioClient(self.url, self.api_key))
            self.redis = stack.enter_context(connect_redis(self.valkey.url))
            self.queue = RoundQueue(self.redis)
            self.store = RoundStore(self.disk.folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def worker_of(self, key: ProjectKey) -> tuple[Worker, int] | None:
        """The worker that runs the project's round, and its work-horse; None where none does."""
        generation = self.redis.hget(f"al:{key}", "running")
        if generation is None:
            return None
        name = self.redis.hget(f"rq:job:round-{key.id}-{key.created}-{int(generation)}", "worker_name")
        if name is None:
            return None
        pid = self.redis.hget(f"rq:worker:{name.decode()}", "pid")
        for worker in self.workers:
            if pid is not None and worker.pid == int(pid) and (horses := children(int(pid))):
                return worker, horses[0]
        return None

    def miss_heartbeats(self) -> None:
        """Let the rounds that run now have had no heartbeat for as long as another worker waits for one."""
        for job in self.redis.zrange("rq:wip:rounds", 0, -1):
            self.redis.zadd("rq:wip:rounds", {job: time.time() - 1}, xx=True)

    def end_pause(self, key: ProjectKey) -> None:
        """Let the pause after a failed round of the project be over."""
        if self.redis.hexists(f"al:{key}", "not_before"):
            self.redis.hset(f"al:{key}", "not_before", time.time())

    def logs(self, lines: int = 12) -> str:
        """The ends of all logs, for the message of a failure."""
        found = []
        for path in sorted(self._folder.glob("*.log")):
            found += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(found)


class LabelledProject:
    """A project of the installation with readers who label.

    Args:
        installation: where it is connected.
        images: number of images.
        seed: of images and labels.
    """

    def __init__(self, installation: Installation, images: int, seed: int) -> None:
        self.installation = installation
        client = installation.client
        drawn = draw_images(images, seed=seed, side=32)
        truth = {image.name: image.label for image in drawn}
        self.id, self.config = create_project(client, "Chaos", read_label_config("severity"))
        assert list(upload_images(client, installation.api_key, self.id, self.config.image_key, drawn))[-1] == images
        first = self._first_labels(truth)
        server = installation.server
        connect_project(server.settings, self.id, server.url, OPTIONS, client)
        self.key = installation.store.connection(self.id).project
        invite = str(client.request("GET", "/api/invite", dict)["invite_url"])
        self._stack = ExitStack()
        readers = [
            self._stack.enter_context(Reader(f"chaos-{number}", client.url)).sign_up(invite)
            for number in range(READERS)
        ]
        answers = SimulatedLabels(truth, DRAWN_CLASSES, 0.0, seed)
        room = ReadingRoom(readers, self.id, self.config, answers, lambda: "")
        self.readers = BackgroundReaders(room, first)
        self._stack.callback(self.readers.stop)

    def _first_labels(self, truth: dict[str, str]) -> dict[str, datetime]:
        client = self.installation.client
        tasks = {str(task["id"]): truth[file_name(task["data"]["image"])] for task in client.unlabelled_tasks(self.id)}
        chosen = [
            (n, v) for name in DRAWN_CLASSES for n, v in [x for x in tasks.items() if x[1] == name][:FIRST_LABELS]
        ]
        for number, value in chosen:
            body = {"result": choice_result(value, self.config)}
            client.send("POST", f"/api/tasks/{number}/annotations/", body=body)
        return {number: datetime.now(UTC) for number, _ in chosen}

    @property
    def folder(self) -> ProjectStore:
        return self.installation.store.project(self.key)

    def left(self) -> int:
        """Number of unlabelled images."""
        return sum(1 for _ in self.installation.client.unlabelled_tasks(self.id))

    def learned(self, round_id: str) -> set[str]:
        """The tasks from whose annotations a round learned."""
        path = self.folder.folder / "learned" / f"{round_id}.json"
        return {name.partition(".")[0] for name in json.loads(path.read_bytes())["states"]}

    def order(self) -> list[str]:
        """The ranked tasks as Label Studio serves them: by their score under the project's model version."""
        query = {
            "project": str(self.id),
            "query": json.dumps({"ordering": ["tasks:predictions_score"]}),
            "fields": "all",
            "include": "id,predictions_score",
            "page_size": "10000",
        }
        tasks = self.installation.client.request("GET", "/api/tasks", dict, query=query)["tasks"]
        return [str(task["id"]) for task in tasks if task["predictions_score"] is not None]

    def leave_an_expired_version(self) -> None:
        """Record a version that no reader can hold any more: the next publish deletes it."""
        name = f"al-r000000-expired-{secrets.token_hex(3)}"
        task = next(iter(self.installation.client.unlabelled_tasks(self.id)))
        left = {"task": int(task["id"]), "result": [], "score": 1.0, "model_version": name}
        expired = ImportedVersion(version=name, replaced_at=datetime.now(UTC) - timedelta(days=8))
        self.folder.set_imported_versions((expired, *self.folder.imported_versions()))
        self.installation.client.import_predictions(self.id, [left])

    def versions(self) -> dict[str, int]:
        """Version in Label Studio -> number of its predictions."""
        return self.installation.client.model_versions(self.id)

    def served(self) -> tuple[RoundReport, PublishedRanking] | None:
        """The completely published round that Label Studio serves; None while there is none."""
        published = self.folder.published()
        if published is None or "delete" not in published.seconds:
            return None
        report = self.folder.report(published.round_id)
        if self.installation.client.project(self.id).get("model_version") != published.version:
            return None
        return report, published

    def is_quiet(self) -> bool:
        """Whether no round runs, waits or is to be repeated."""
        try:
            status = self.installation.queue.status(self.key)
        except QueueError:
            return False
        return status.running is None and status.waiting is None and status.next_attempt is None

    def await_order(self, within_s: float) -> tuple[RoundReport, PublishedRanking]:
        """Wait until no round runs and the served one has learned from all labels but fewer than start another."""
        deadline = time.monotonic() + within_s
        while True:
            if self.is_quiet() and (found := self.served()) is not None:
                unlearned = self.readers.labelled().keys() - self.learned(found[1].round_id)
                if len(unlearned) < RETRAIN_AFTER:
                    return found
            if time.monotonic() > deadline:
                raise AssertionError(self._why())
            time.sleep(0.25)

    def close(self) -> None:
        self._stack.close()
        self.installation.client.send("DELETE", f"/api/projects/{self.id}/")

    def _why(self) -> str:
        published = self.folder.published()
        learned = self.learned(published.round_id) if published else set()
        return (
            f"no complete order in time. Labelled {len(self.readers.labelled())}, learned {len(learned)}, served "
            f"{published and published.version} of {self.versions()}; {self.installation.queue.status(self.key)!r}"
            f"\n{self.installation.logs()}"
        )
