"""Real processes share out a pool with a real network, over gloo."""

import base64
import io
import socket
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs

from ml_backend.config import ProjectOptions, Settings
from ml_backend.images.synthetic import draw_pool
from ml_backend.model import distributed, distributed_learner, inference
from ml_backend.model.distributed import Crew
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.live import open_project
from ml_backend.scheduling.followers import Followers, Processes, token
from ml_backend.schemas import Connection, ImageRef, Label
from ml_backend.storage import RoundStore
from tests.integration.follower_with_mischief import SHARD_IMAGES
from tests.integration.processes import PROJECT, free_port

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
    """Rounds of one project, by this process and others."""

    def __init__(self, settings: Settings, listener: socket.socket, mischief: Path) -> None:
        self._settings = settings
        self._listener = listener
        self._mischief = mischief
        self._lost: list[str] = []

    def _tick(self, *_: object) -> None:
        if self._lost:
            raise Lost(*self._lost)

    def outputs(self, processes: int, mischief: str = "", **options: object) -> PoolPredictions:
        """Of a network that is trained now; a follower's mischief begins with the passes."""
        self._mischief.write_text(mischief)

        def crew() -> Crew:
            return Crew(self._listener, processes - 1, 1, token(self._settings), self._lost.append)

        with (
            open_project(self._settings, PROJECT, crew=crew if processes > 1 else None) as context,
            context.distributed(OPTIONS.model_copy(update=options), self._tick) as learner,
        ):
            if not mischief:
                learner.prepare(POOL)
            learner.fit(LABELS[:8], LABELS[8:], CLASSES)
            return learner.outputs(POOL, NEEDS)


@pytest.fixture
def rounds(monkeypatch, tmp_path) -> Iterator[Rounds]:
    """With two followers on "another machine" that has another data folder."""
    monkeypatch.setattr(inference, "SHARD_IMAGES", SHARD_IMAGES)
    monkeypatch.setattr(distributed, "JOIN_S", 600.0)
    monkeypatch.setattr(distributed, "GRACE_S", 0.1)
    monkeypatch.setattr(distributed_learner, "SLOW_S", 1.0)
    monkeypatch.setattr(Followers, "program", (str(Path(__file__).parent / "follower_with_mischief.py"),))
    environ = {
        "AL_DATA_DIR": tmp_path / "elsewhere",
        "AL_DEVICE": "cpu",
        "AL_LABEL_STUDIO_URL": "http://127.0.0.1:9",
        "AL_LABEL_STUDIO_API_KEY": "k",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": 1,
        "TEST_MISCHIEF": tmp_path / "mischief",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, str(value))
    settings = Settings.load(data_dir=tmp_path / "data")
    RoundStore(settings.data_dir).connect(Connection(project=PROJECT, hostname="http://ls", label_config="<View/>"))
    master = f"127.0.0.1:{free_port()}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        Followers(Processes(nproc=1, nnodes=2, master=master)) as here,
        Followers(Processes(nproc=2, nnodes=2, node_rank=1, master=master)),
    ):
        assert here.listener is not None
        yield Rounds(settings, here.listener, tmp_path / "mischief")
    torch.set_num_threads(threads)


def logged(logs: list[MutableMapping[str, Any]], **wanted: object) -> MutableMapping[str, Any]:
    [found] = [line for line in logs if wanted.items() <= line.items()]
    return found


def test_processes_share_out_a_pool(rounds) -> None:
    """Whatever happens to them, the result is that of one process, or the round ends with the reason."""

    def assert_same(found: PoolPredictions) -> None:
        assert (found.image_ids, found.classes, found.exclusions) == (
            wanted.image_ids,
            wanted.classes,
            wanted.exclusions,
        )
        assert len(found.image_ids) == len(POOL) - 1
        for name in ("probs", "features", "labelled_features"):
            assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes()
        assert found.gradients is not None
        assert found.gradients.residuals.tobytes() == wanted.gradients.residuals.tobytes()
        assert found.gradients.hidden.tobytes() == wanted.gradients.hidden.tobytes()

    wanted = rounds.outputs(1)
    assert_same(rounds.outputs(2))
    with capture_logs() as logs:
        assert_same(rounds.outputs(3, "sleep 2"))
    slow = logged(logs, event="a rank is slow, and the others wait for it", command="outputs", rank=2)
    assert slow["waited"][0] - slow["waited"][2] >= 1.0
    assert slow["of"].startswith(f"{socket.gethostname()}, process ")

    full = {"finetune": "full", "epochs": 1, "train_batch": 8}
    trained = [rounds.outputs(processes, **full).probs for processes in (1, 2)]
    assert np.abs(trained[0] - trained[1]).max() < 1e-3
    assert np.abs(trained[0] - wanted.probs).max() > 1e-2

    wanted = rounds.outputs(1, image_side=40)
    with capture_logs() as logs:
        assert_same(rounds.outputs(3, "blind 1", image_side=40))
    event = "a rank could not read an image that can be read here: its part is computed again"
    assert logged(logs, event=event, rank=1)["image"] == POOL[2 * SHARD_IMAGES].id

    with pytest.raises(Lost, match=r"^rank 1 of 3 \(on .*, process \d+\) failed: RuntimeError: a bug$"):
        rounds.outputs(3, "fail 1")
