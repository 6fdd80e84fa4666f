"""Times decoding and backbone of a pool by one process, and by several that share it out; prints JSON.

    python -m tests.benchmarks.processes --images 2000 --nproc 2

Each process has an equal part of the cores; beside it, one process has all of them. Caches are empty. The runs are
interleaved, so that both meet the same load. Where other work runs on the cores, compare ``cpu_s``.
"""

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from ml_backend.blas import enable_deterministic_blas
from ml_backend.config import ProjectOptions
from ml_backend.images.source import FolderSource
from ml_backend.model import inference
from ml_backend.model.distributed import Crew, Group, follow
from ml_backend.model.distributed_learner import DistributedLearner, serve
from ml_backend.model.learner import McDropoutLearner
from ml_backend.schemas import ImageRef
from tests.benchmarks.inputs import draw_radiograph

DRAWN = 20  # radiographs; the others are these with another comment, which is another content
SHARD_IMAGES = 16


def write(folder: Path, count: int) -> None:
    drawn = []
    for seed in range(DRAWN):
        buffer = io.BytesIO()
        Image.fromarray(draw_radiograph(1_250, 1_024, seed)).save(buffer, "JPEG", quality=90)
        drawn.append(buffer.getvalue())
    for number in range(count):
        jpeg = drawn[number % DRAWN]
        (folder / str(number)).write_bytes(jpeg[:2] + b"\xff\xfe\x00\x0a" + b"%08d" % number + jpeg[2:])


def learner(backbone: str, images: str, cache: str) -> McDropoutLearner:
    options = ProjectOptions(backbone=backbone, weights="none", finetune="head")
    return McDropoutLearner(options, FolderSource(Path(images)), Path(cache), device="cpu")


@contextmanager
def opened(_group: Group, task: str) -> Iterator[tuple[McDropoutLearner, str]]:
    yield learner(*json.loads(task)), ""


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fill_a_cache(
    count: int, backbone: str, images: Path, listener: socket.socket, followers: list[int]
) -> dict[str, float]:
    """Seconds by the clock, and of all processes' CPU."""
    refs = [ImageRef(id=str(number), uri=str(number)) for number in range(count + SHARD_IMAGES * (len(followers) + 1))]
    with tempfile.TemporaryDirectory() as cache:
        task = backbone, str(images), cache
        crew = Crew(listener, len(followers), 1, "", sys.exit) if followers else None
        with DistributedLearner(
            lambda *_: learner(*task), crew, json.dumps(task), lambda: "", lambda *_: None
        ) as processes:
            processes.prepare(refs[count:])  # loads libraries and backbones
            pids = [os.getpid(), *followers]
            clock, before = time.perf_counter(), sum(map(cpu_s, pids))
            processes.prepare(refs[:count])
            return {"clock_s": time.perf_counter() - clock, "cpu_s": sum(map(cpu_s, pids)) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    each = max(1, cores // given.nproc)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        write(Path(folder), given.images + SHARD_IMAGES * given.nproc)
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-m", "tests.benchmarks.processes", "follow", port]
        others = [
            subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(each)}) for _ in range(given.nproc - 1)
        ]
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(given.repeats):
            for processes, threads in ((1, each), (given.nproc, each), (1, cores)):
                torch.set_num_threads(threads)
                pids = [other.pid for other in others] if processes > 1 else []
                found = fill_a_cache(given.images, given.backbone, Path(folder), listener, pids)
                runs.setdefault(f"{processes} x {threads} threads", []).append(found)
        for other in others:
            other.kill()
            other.wait()
    medians = {
        name: {unit: round(median(one[unit] for one in found), 2) for unit in found[0]} for name, found in runs.items()
    }
    sys.stdout.write(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    enable_deterministic_blas()
    inference.SHARD_IMAGES = SHARD_IMAGES  # type: ignore[misc]
    if sys.argv[1:2] == ["follow"]:
        follow(("127.0.0.1", int(sys.argv[2])), "", 0, partial(serve, opened))
    else:
        main()
