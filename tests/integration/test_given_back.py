"""A round that one worker gives back is finished by the next, with a real network on a real Valkey."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from ml_backend.scheduling import RoundQueue
from ml_backend.schemas import Connection
from ml_backend.storage import ProjectStore, RoundStore
from tests.count_modules import OPTIONS
from tests.integration.processes import PROJECT, wait_until
from tests.unit.label_studio.studio import LABEL_CONFIG

WORKER = Path(__file__).parent / "worker_on_a_studio_in_memory.py"
START_S = 180.0  # of a process with PyTorch, on a busy machine


@pytest.fixture
def work(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., subprocess.Popen[bytes]]:
    """Start a worker on data folders, which ends when no round waits."""
    environ = {"AL_DEVICE": "cpu", "AL_LABEL_STUDIO_URL": "http://ls", "AL_LABEL_STUDIO_API_KEY": "k"}

    def start_worker(*folders: Path, hold: str = "") -> subprocess.Popen[bytes]:
        for folder in folders:
            RoundStore(folder).connect(
                Connection(project=PROJECT, hostname="http://ls", label_config=LABEL_CONFIG, extra_params=OPTIONS)
            )
        threads = {"OMP_NUM_THREADS": "1"}
        return start(sys.executable, str(WORKER), *map(str, folders), **environ, **threads, TEST_HOLD=hold)

    return start_worker


def files(folder: Path) -> dict[Path, int]:
    """Cached images and features; one that is written again gets another inode."""
    return {path: path.stat().st_ino for path in (folder / "cache").rglob("*") if path.is_file()}


def result(store: ProjectStore) -> tuple[object, ...]:
    """What a round has learned and ranked, to the bit."""
    report = store.latest()
    assert report is not None
    outputs = store.outputs(report.request.round_id)
    assert outputs is not None
    return report.request.round_id, report.fit, report.ranking, report.inputs, outputs.probs.tobytes()


def test_the_next_worker_goes_on(queue: RoundQueue, redis: Redis, work, tmp_path: Path) -> None:
    """Three workers share a round, from the features that are cached; its result is that of one worker alone."""
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    store = RoundStore(shared).project(PROJECT)
    queue.request_round(PROJECT, "labels")
    kept: dict[Path, int] = {}
    for stage in ("train", "score"):
        worker = work(shared, hold=stage)
        wait_until((shared / f"held-{stage}").exists, START_S)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
        assert queue.status(PROJECT).waiting == "labels"
        assert store.latest() is None
        assert kept.items() < files(shared).items()
        kept = files(shared)
    assert {path.relative_to(shared).parts[1] for path in kept} == {"images", "features"}
    lonely = RoundStore(alone).project(PROJECT)
    for _ in range(2):
        lonely.next_round_id()  # the numbers of the runs that were given back stay unused
    # One process for both: it loads PyTorch once, and a round of each folder runs in a process of its own.
    assert work(shared, alone).wait(timeout=START_S) == 0
    assert kept.items() <= files(shared).items()
    assert result(store) == result(lonely)
