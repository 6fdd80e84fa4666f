"""Real processes share out a pool with a real network, over gloo."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from ml_backend.config import ProjectOptions, Settings
from ml_backend.images.synthetic import draw_pool
from ml_backend.model import distributed_learner, inference
from ml_backend.model.distributed import Crew
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.live import open_project
from ml_backend.scheduling.followers import Followers, Processes, token
from ml_backend.schemas import Connection, ImageRef, Label
from ml_backend.storage import RoundStore
from tests.integration.follower_with_mischief import SHARD_IMAGES
from tests.integration.processes import PROJECT

CLASSES = ("normal", "severe")
NEEDS: frozenset[Need] = frozenset({"probs", "features", "gradients"})
OPTIONS = ProjectOptions(backbone="resnet18", weights="none", image_side=32, passes=5, epochs=2, finetune="head")


def draw(count: int) -> list[ImageRef]:
    """Images that need no server."""
    arrays, _, _ = draw_pool(count, (1, 1), seed=0, side=32)
    found = []
    for number, array in enumerate(arrays, start=1):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        found.append(ImageRef(id=str(number), uri=uri))
    return found


IMAGES = draw(12 + 5 * SHARD_IMAGES)
LABELS = [Label(image=image, value=CLASSES[index % 2], raters=1) for index, image in enumerate(IMAGES[:12])]
POOL = [*IMAGES[12:-1], ImageRef(id="broken", uri="data:image/png;base64,AAAA")]


class Lost(Exception):
    """A process of the round is gone."""


class Rounds:
    """Rounds of one project, by this process and its followers."""

    def __init__(self, settings: Settings, followers: Followers, mischief: Path) -> None:
        self._settings = settings
        self._followers = followers
        self._mischief = mischief
        self._lost: list[str] = []

    def _tick(self, *_: object) -> None:
        if self._lost:
            raise Lost(*self._lost)

    def outputs(self, processes: int, step: str = "") -> PoolPredictions:
        """Of a network that is trained in one process or several."""
        self._mischief.write_text(step)
        assert self._followers.listener is not None
        listener = self._followers.listener
        crew = Crew(listener, processes - 1, processes, token(self._settings), self._lost.append)
        with (
            open_project(self._settings, PROJECT, crew=(lambda: crew) if processes > 1 else None) as context,
            context.distributed(OPTIONS, self._tick) as learner,
        ):
            learner.fit(LABELS[:8], LABELS[8:], CLASSES)
            return learner.outputs(POOL, NEEDS)


@pytest.fixture
def rounds(monkeypatch, tmp_path) -> Iterator[Rounds]:
    monkeypatch.setattr(inference, "SHARD_IMAGES", SHARD_IMAGES)
    monkeypatch.setattr(distributed_learner, "SLOW_S", 1.0)
    program = str(Path(__file__).parent / "follower_with_mischief.py")
    monkeypatch.setattr(Followers, "program", (program,))
    environ = {
        "AL_DATA_DIR": str(tmp_path / "elsewhere"),  # as another machine's
        "AL_DEVICE": "cpu",
        "AL_LABEL_STUDIO_URL": "http://127.0.0.1:9",
        "AL_LABEL_STUDIO_API_KEY": "k",
        "TEST_MISCHIEF": str(tmp_path / "mischief"),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load(data_dir=tmp_path / "data")
    RoundStore(settings.data_dir).connect(Connection(project=PROJECT, hostname="http://ls", label_config="<View/>"))
    threads = torch.get_num_threads()
    with Followers(Processes(nproc=3)) as followers:
        yield Rounds(settings, followers, tmp_path / "mischief")
    torch.set_num_threads(threads)


def test_the_result_is_that_of_one_process(rounds) -> None:
    wanted = rounds.outputs(1)
    for n in (3,):
        found = rounds.outputs(n)
        assert found.probs.tobytes() == wanted.probs.tobytes()
