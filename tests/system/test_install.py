"""The server as `pip install label-studio-active-learning` brings it: alone in an environment, without PyTorch."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from ml_backend.demo.options import draw_images
from ml_backend.demo.project import create_project, upload_images
from ml_backend.demo.services import Backend
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import read_label_config
from ml_backend.processes import free_port
from tests.package import CLEAN, Pip, build

pytestmark = pytest.mark.system
IMAGES = 6
SMALL = ("--option", "backbone=resnet18", "--option", "weights=none", "--option", "image_side=64")
EXTRA = "needs torch, torchvision, sklearn, safetensors, threadpoolctl, timm, which are not installed"


class InstalledBackend(Backend):
    """``ml-backend serve`` of another environment."""

    program: Path

    def start(self) -> Self:
        self.url = self.url or f"http://127.0.0.1:{free_port()}"
        self._run([str(self.program), "serve", "--port", self.url.rpartition(":")[2]], self.environ, self._log)
        return self


@pytest.fixture(scope="session")  # as Label Studio's, which would otherwise be started first
def installing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Pip]]:
    """An empty environment, and plain pip installing the wheel into it while other services start."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = build(folder / "dist").wheel
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], env=CLEAN, check=True)
    # pip compiles every module, which takes as long as all else; Python compiles what it imports.
    pip = Pip(folder / "venv", ["--no-compile", "--no-input", str(wheel)], folder)
    yield folder / "venv", pip
    pip.stop()


@pytest.fixture(scope="session")
def program(installing: tuple[Path, Pip]) -> Path:
    """``ml-backend`` of the environment."""
    folder, pip = installing
    assert "torch" not in pip.installed()
    return folder / "bin" / "ml-backend"


@pytest.fixture(scope="module")
def installed(
    installing, label_studio, worker, program: Path, backend_environ: dict[str, str]
) -> Iterator[tuple[InstalledBackend, int]]:
    """The installed server on the queue and data folder of a worker with PyTorch, and a project with images."""
    with ExitStack() as stack:
        client = stack.enter_context(LabelStudioClient(label_studio.url, label_studio.api_key))
        project_id, config = create_project(client, "Installed by pip", read_label_config("severity"))
        stack.callback(client.send, "DELETE", f"/api/projects/{project_id}/")
        images = draw_images(IMAGES, seed=3, side=64)
        assert list(upload_images(client, label_studio.api_key, project_id, config.image_key, images))[-1] == IMAGES
        # `auto` would load PyTorch to look for a GPU.
        environ = {name: value for name, value in backend_environ.items() if name in CLEAN or name.startswith("AL_")}
        environ |= {"AL_DEVICE": "auto"}
        service = InstalledBackend(environ, program.parents[2] / "backend.log")
        service.program = program
        stack.enter_context(service.start())
        yield service.wait(), project_id


@pytest.fixture
def ml_backend(program: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of the installed program."""

    def run(*words: str, environ: dict[str, str] = CLEAN) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=180, check=False
        )

    return run


class TestServer:
    def test_connects_a_project_and_is_well(self, installed, ml_backend):
        backend, project_id = installed
        project = ["--project", str(project_id), "--url", backend.url]

        connected = ml_backend("connect", *project, *SMALL, environ=backend.environ)

        assert connected.returncode == 0, connected.stdout + connected.stderr
        checked = ml_backend("doctor", *project, environ=backend.environ)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert EXTRA in " ".join(checked.stdout.split())

    def test_answers_label_studio(self, installed, ml_backend, label_studio):
        """Label Studio has called /setup, and asks for predictions, which a server without PyTorch gives."""
        backend, project_id = installed
        with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
            [row] = client.backends(project_id)

        assert row["url"].rstrip("/") == backend.url
        assert row["state"] == "CO"  # connected


class TestWithoutExtra:
    @pytest.mark.parametrize("words", ["work", "demo", "proof --project 1", "replay --project 1"])
    def test_names_what_to_install(self, ml_backend, words, tmp_path):
        done = ml_backend(*words.split())

        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert EXTRA in line
        assert "label-studio-active-learning[worker]" in line

    def test_lists_the_strategies(self, ml_backend):
        done = ml_backend("strategies")

        assert done.returncode == 0
        assert "batch_bald" in done.stdout
