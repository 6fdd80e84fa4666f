"""Real services of the system tests: one Label Studio, Valkey, backend and worker per session.

A session is each process of xdist: `make test` runs two of them side by side.

``AL_LABEL_STUDIO_BIN`` names the program of another release, and ``AL_TEST_LABEL_STUDIO_DATABASE=postgres`` puts it on
Postgres, as ``make compat`` does. ``AL_TEST_LABEL_STUDIO_URL`` and ``AL_TEST_LABEL_STUDIO_TOKEN`` (a legacy token) name
a Label Studio that runs already, which saves its first start while developing.
"""

import fcntl
import hashlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from selenium import webdriver

from ml_backend.demo.options import DemoImage
from ml_backend.demo.project import RoundFollower, create_project, upload_images
from ml_backend.demo.services import Backend, LabelStudio, Login, Worker
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import connect_project, read_label_config
from ml_backend.processes import Valkey
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.storage import RoundStore
from tests.system.live import LiveProject, RunningLabelStudio
from tests.system.postgres import label_studio_on_postgres
from tests.system.recording import RecordingBackend

LOCKED = Path(__file__).parents[2] / "requirements-label-studio.lock"  # which Label Studio it is

# Two processes of xdist take a file in turn: what takes long comes first, so that none waits for the other at the end.
# Second and third what needs no Label Studio: meanwhile the first process makes the database for both.
LONGEST_FIRST = (
    *("chaos", "page", "report", "postgres", "browser", "nginx", "demo", "manual_project", "events", "proof"),
    *("doctor", "connect", "publisher", "order", "install", "newcomer", "rerank", "noise", "typical_start", "upgrade"),
    *("several_readers", "reconcile", "bad_input"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        ours = item.path.parent == Path(__file__).parent
        return LONGEST_FIRST.index(name) if ours and name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI needs {what}", pytrace=False)
    pytest.skip(f"SYSTEM TESTS SKIPPED: {what} is missing")


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Skips loudly on a developer's machine and fails in CI, where a skipped system test would be a hole."""
    return _missing


BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)


@pytest.fixture(scope="module")
def browsers(
    tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]
) -> Iterator[Callable[[], webdriver.Chrome]]:
    """Starts Chromiums without a window, each with a profile of its own; tests take ``browser`` where one will do."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        missing("chromium and chromedriver (Debian: chromium, chromium-driver)")

    with ExitStack() as stack:

        def start() -> webdriver.Chrome:
            options = webdriver.ChromeOptions()
            options.binary_location = program
            options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
            options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
            for flag in (*BROWSER_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
                options.add_argument(flag)
            running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
            stack.callback(running.quit)
            return running

        yield start


@pytest.fixture(scope="module")
def chromium(browsers: Callable[[], webdriver.Chrome]) -> webdriver.Chrome:
    """The module's Chromium; tests take ``browser``."""
    return browsers()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> webdriver.Chrome:
    """The module's Chromium as it was started, which notes what pages write to their console."""
    chromium.get("about:blank")
    for command in ("Network.clearBrowserCookies", "Network.clearBrowserCache", "Emulation.clearDeviceMetricsOverride"):
        chromium.execute_cdp_cmd(command, {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    for log in ("browser", "performance"):
        chromium.get_log(log)  # which empties it
    return chromium


@pytest.fixture(scope="session")
def start_on_sqlite(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Callable[[Path], LabelStudio]], AbstractContextManager[LabelStudio]]:
    """Starts what a function makes of a data folder, which holds a copy of the database of a first start."""
    if not LabelStudio.default_binary().exists():
        _missing(f"{LabelStudio.default_binary()} (run `make setup`)")
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("label-studio")
    program = f"{LabelStudio.default_binary()} {LOCKED.read_text()}"
    made = cache / hashlib.sha256(program.encode()).hexdigest()

    @contextmanager
    def start(make: Callable[[Path], LabelStudio]) -> Iterator[LabelStudio]:
        folder = tmp_path_factory.mktemp("label-studio")
        with ExitStack() as stack:
            with _one_at_a_time(cache / "lock"):
                if made.exists():
                    shutil.copytree(made, folder, dirs_exist_ok=True)
                service = stack.enter_context(make(folder).start()).wait()
                if not made.exists():
                    _keep_empty(folder, made)
            yield service

    return start


class WithLocalFiles(LabelStudio):
    """Serves the files in the folder ``local`` of its data folder too."""

    @property
    def document_root(self) -> Path:
        return self._folder / "local"

    def _environ(self) -> dict[str, str]:
        local = {"SERVING_ENABLED": "true", "DOCUMENT_ROOT": str(self.document_root)}
        return super()._environ() | {f"LABEL_STUDIO_LOCAL_FILES_{name}": value for name, value in local.items()}


@pytest.fixture(scope="session")
def label_studio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningLabelStudio]:
    if url := os.environ.get("AL_TEST_LABEL_STUDIO_URL"):
        token = os.environ["AL_TEST_LABEL_STUDIO_TOKEN"]
        email = os.environ.get("AL_TEST_LABEL_STUDIO_EMAIL", "admin@example.com")
        password = os.environ.get("AL_TEST_LABEL_STUDIO_PASSWORD", "adminpass1")
        yield RunningLabelStudio(url, token, Login(email, password, token))
        return
    if (database := os.environ.get("AL_TEST_LABEL_STUDIO_DATABASE", "sqlite")) not in {"sqlite", "postgres"}:
        pytest.fail(f"AL_TEST_LABEL_STUDIO_DATABASE={database!r}: expected sqlite or postgres", pytrace=False)
    if database == "postgres":
        if not LabelStudio.default_binary().exists():
            _missing(f"{LabelStudio.default_binary()} (run `make setup`)")
        with label_studio_on_postgres(tmp_path_factory.mktemp("label-studio"), _missing) as (on_postgres, _):
            yield RunningLabelStudio(on_postgres.url, on_postgres.admin.token, on_postgres.admin)
        return
    with request.getfixturevalue("start_on_sqlite")(WithLocalFiles) as service:
        yield RunningLabelStudio(service.url, service.admin.token, service.admin, service.document_root)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _keep_empty(folder: Path, made: Path) -> None:
    """Keep the database of a first start: another takes 45 s of a core, and a start on a copy of it takes 5."""
    extra = made.with_suffix(f".{os.getpid()}")
    extra.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(folder / "login.json", extra)
    with (
        closing(sqlite3.connect(folder / "label_studio.sqlite3")) as database,
        closing(sqlite3.connect(extra / "label_studio.sqlite3")) as copy,
    ):
        database.backup(copy)
    extra.rename(made)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")).start() as service:
        yield service.wait()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder that backend and worker share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def backend_environ(label_studio: RunningLabelStudio, valkey: Valkey, data_dir: Path) -> dict[str, str]:
    own = {
        "AL_REDIS_URL": valkey.url,
        "AL_DATA_DIR": str(data_dir),
        "AL_LABEL_STUDIO_URL": label_studio.url,
        "AL_LABEL_STUDIO_API_KEY": label_studio.api_key,
        # The worker loads PyTorch once, and not its work-horse at each round.
        "AL_DEVICE": "cpu",
        # Two cores for everything: more threads than that only get into each other's way.
        "OMP_NUM_THREADS": "1",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("AL_")} | own


@pytest.fixture(scope="session")
def backend(backend_environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    service = Backend(backend_environ, tmp_path_factory.mktemp("backend") / "backend.log")
    # Which Label Studio's own requests send as Latin-1, the webhook and browsers as UTF-8.
    service.user, service.password = "rädiologie", f"gehëim: ß %41 {service.password}"
    service.environ |= {"AL_BASIC_AUTH_USER": service.user, "AL_BASIC_AUTH_PASS": service.password}
    with service.start():
        yield service.wait()


@pytest.fixture(scope="session")
def worker(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(backend.environ, tmp_path_factory.mktemp("worker") / "worker.log").start() as service:
        # It loads PyTorch first, while the two processes of the tests start other services.
        yield service.wait(180.0)


@pytest.fixture(scope="module")
def live_project(
    label_studio: RunningLabelStudio, valkey: Valkey, backend: Backend, worker: Worker
) -> Iterator[Callable[..., LiveProject]]:
    """Creates projects with the severity question from images and options; deletes them at the end of the module."""
    store = RoundStore(Path(backend.environ["AL_DATA_DIR"]))
    with ExitStack() as stack:
        client = stack.enter_context(LabelStudioClient(label_studio.url, label_studio.api_key))
        queue = RoundQueue(stack.enter_context(connect_redis(valkey.url)))

        def make(
            images: Sequence[DemoImage],
            options: dict[str, object],
            upload: Any = upload_images,
            label_config: str = read_label_config("severity"),
        ) -> LiveProject:
            project_id, config = create_project(client, "System test", label_config)
            stack.callback(client.send, "DELETE", f"/api/projects/{project_id}/")
            uploads = upload(client, label_studio.api_key, project_id, config.image_key, images)
            assert list(uploads)[-1] == len(images)
            connect_project(backend.settings, project_id, backend.url, options, client)
            follower = RoundFollower(client, store, queue, store.connection(project_id).project)
            truth = {image.name: image.label for image in images}
            services = (valkey, backend, worker)
            return LiveProject(project_id, config, client, follower, truth, options, backend, services, stack)

        yield make


@pytest.fixture
def recorder() -> Iterator[RecordingBackend]:
    with RecordingBackend() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
