"""A round that a worker gives back, or that dies, is finished by the next, with a real network on a real Valkey."""

import re
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

    def start_worker(*folders: Path, hold: str = "", **extra: str) -> subprocess.Popen[bytes]:
        for folder in folders:
            RoundStore(folder).connect(
                Connection(project=PROJECT, hostname="http://ls", label_config=LABEL_CONFIG, extra_params=OPTIONS)
            )
        threads = {"OMP_NUM_THREADS": "1"}
        return start(sys.executable, str(WORKER), *map(str, folders), **environ, **threads, **extra, TEST_HOLD=hold)

    return start_worker


def files(folder: Path) -> dict[Path, int]:
    """Cached images, and the table of features; one that is written again gets another inode."""
    cached = (path for path in (folder / "cache").rglob("*") if path.is_file())
    return {path: path.stat().st_ino for path in cached if not path.name.endswith("-journal")}


def result(store: ProjectStore) -> tuple[object, ...]:
    """What a round has learned and ranked, to the bit."""
    report = store.latest()
    assert report is not None
    outputs = store.outputs(report.request.round_id)
    assert outputs is not None
    return report.request.round_id, report.fit, report.ranking, report.inputs, outputs.probs.tobytes()


@pytest.mark.timeout(1800)  # seven processes with PyTorch, one after the other; a minute where the machine is idle
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
    lonely.next_round_id()  # as many numbers stay unused: of the runs that were given back, of one and of one that dies
    # One worker for both: it loads PyTorch once. The round of the second folder is shared out to two processes, one of
    # which is killed: it comes again, and its result is the same.
    mischief = tmp_path / "mischief"
    mischief.write_text("die")
    assert work(shared, alone, TEST_MISCHIEF=str(mischief)).wait(timeout=3 * START_S) == 0
    assert not mischief.exists()
    log = (tmp_path / "child-2.log").read_text()
    assert "rank 1 of 2 (on " in log
    assert log.count("images shared out") == 1
    assert "ended by an unexpected error" not in log
    assert not any(Path(f"/proc/{pid}").exists() for pid in re.findall(r"process (\d+)", log))
    assert kept.items() <= files(shared).items()
    assert result(store) == result(lonely)
