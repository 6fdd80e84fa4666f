"""Tests and times the engine on one GPU, and training on two, within eight minutes, and writes a JSON file.

    python -m tests.benchmarks.gpu_check gpu-check.json

Run it in the repository's root. It needs the locked packages, but neither the installed package nor internet access:
weights are random, which does not change the time. Each part of ``PARTS`` has a budget of seconds; one that fails or
outlasts it is an error in the file, and the next part goes on in a new process. ``--tiny`` runs everything at sizes
that a CPU manages; its figures mean nothing.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeAlias

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 470.0
"""Of all parts together."""
GPU_TESTS: Final = (
    "tests/unit/model/test_learner.py",
    "tests/unit/model/test_hardware.py",
    "tests/unit/acquisition/test_ranking.py",
)
"""Files with tests that are marked ``gpu``."""
CLASSES: Final = ("normal", "moderate", "severe")
CEILING: Final = {"H200": 96_000}
"""Images a second through a ResNet50 at 224 x 224 in bfloat16: 8.2 GFLOP an image at 790 TFLOP/s, calculated."""

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much each part does; the defaults are those of docs/benchmarks.md."""

    backbone: str = "resnet50"
    side: int = 224
    labels: int = 150
    pool: int = 2_000
    epochs: int = 20
    cached: int = 4_096  # images of random pixels, on which the backbone and its training are timed
    train_batch: int = 256
    passes: int = 50
    committee: int = 5
    bald_pool: int = 100_000
    bald_passes: int = 100
    bald_batch: int = 20
    repeats: int = 5


FULL: Final = Sizes()
TINY: Final = Sizes("shufflenet_v2_x0_5", 32, 18, 20, 1, 16, 16, 20, 2, 300, 20, 4, 1)


Part: TypeAlias = Callable[[Sizes], Figures]
"""Measures at these sizes, in a process of PyTorch."""


# The parts. Each imports what it needs: the process that starts them must not load PyTorch.


def device(sizes: Sizes) -> Figures:
    """The device, and the versions that decide its speed."""
    del sizes
    import torch

    from ml_backend.model.hardware import Precision, choose_device

    chosen = choose_device("auto")
    found = {
        "device": chosen.type,
        "name": torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu",
        "precision": Precision.from_options(chosen, "auto", channels_last=True).name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
    }
    if chosen.type == "cuda" and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        driver, memory = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(",")[:2]
        found |= {"driver": driver.strip(), "memory": memory.split("\n")[0].strip()}
    return found


def gpu_tests(sizes: Sizes) -> Figures:
    """The tests marked ``gpu``: bfloat16, a full memory, scores as on a CPU. Without a GPU all are skipped.

    Raises:
        RuntimeError: some failed, or none was found.
    """
    del sizes
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junit-xml={report}", *GPU_TESTS]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=85)
        if not report.exists():
            raise RuntimeError(f"pytest ended without a report: {(done.stdout + done.stderr)[-1000:]}")
        suite = ET.parse(report).getroot().find("testsuite")
    counts = (
        {} if suite is None else {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{counts}: {done.stdout[-2000:]}")
    return counts


def rounds(sizes: Sizes) -> Figures:
    """One round that trains the whole network, and two of the head alone: before and after the features are cached."""
    figures: Figures = {"labels": sizes.labels, "pool": sizes.pool}
    with tempfile.TemporaryDirectory() as folder:
        cache_folder = Path(folder)
        for name, finetune in (("full", "full"), ("head", "head"), ("head, features cached", "head")):
            report = _run_round(sizes, cache_folder, finetune)
            assert report.fit is not None
            seen = report.fit.train_images * report.fit.epochs
            figures[name] = {
                "seconds": sum(report.seconds.values()),
                "stages": dict(report.seconds),
                "epochs": report.fit.epochs,
                "training images/s": seen / report.seconds["train"],
                "scored images/s": len(report.ranking.image_ids) / report.seconds["score"],
            }
    return figures


def _run_round(sizes: Sizes, cache_folder: Path, finetune: str) -> Any:
    from ml_backend.acquisition.strategy import CatalogStrategy
    from ml_backend.rounds.run import run_round
    from tests.fakes import FakeLabels, FakeProject, make_annotation, make_request

    images, values = _drawn(sizes)
    labels = [
        make_annotation(number, CLASSES[value]).model_copy(update={"image": image})
        for number, (image, value) in enumerate(zip(images[: sizes.labels], values, strict=False))
    ]
    request = make_request(classes=CLASSES, strategy="bald", batch_size=sizes.bald_batch)
    project = FakeProject(FakeLabels(labels, images[sizes.labels :]))
    learner = _learner(sizes, cache_folder, finetune=finetune)
    run_round(request, project, learner, CatalogStrategy("bald"))
    return project.published[-1]


def uint8_cache(sizes: Sizes) -> Figures:
    """Images a second through the frozen backbone: from decoded images in the cache on disk, and from memory.

    The first is what a round takes to score a pool of decoded images; the second leaves the disk out.
    """
    images, _ = _drawn(sizes)
    with tempfile.TemporaryDirectory() as folder:
        _learner(sizes, Path(folder), finetune="full").prepare(images)  # decodes only
        learner = _learner(sizes, Path(folder), finetune="head")
        learner.prepare(images[:1])  # loads the backbone
        from_disk = len(images) / _seconds(lambda: learner.prepare(images), repeats=1)
    extractor, pixels = _extractor(sizes), _pixels(sizes)
    from_memory = len(pixels) / _seconds(lambda: extractor.run(pixels), sizes.repeats)
    ceiling = _ceiling()
    return {
        "images/s from the cache on disk": from_disk,
        "images/s from memory": from_memory,
        "ceiling, images/s": ceiling,
        "share of the ceiling": None if ceiling is None else from_memory / ceiling,
    }


def mc_passes(sizes: Sizes) -> Figures:
    """T dropout passes over one, backbone included, and the head alone."""
    from ml_backend.model.network import McDropoutClassifier

    extractor, pixels = _extractor(sizes), _pixels(sizes)
    head = McDropoutClassifier(len(CLASSES), sizes.backbone, weights="none").head.eval().to(_device())

    def score(passes: int) -> Any:
        return head.passes(extractor.run(pixels), head.masks(passes, 0))

    features = extractor.run(pixels)
    one, many = (_seconds(partial(score, passes), sizes.repeats) for passes in (1, sizes.passes))
    alone = _seconds(lambda: head.passes(features, head.masks(sizes.passes, 0)), sizes.repeats)
    return {
        "passes": sizes.passes,
        "one pass, s": one,
        "all passes, s": many,
        "ratio": many / one,
        "head alone, s": alone,
    }


def batch_bald(sizes: Sizes) -> Figures:
    """A batch by BatchBALD, on the device, and on the CPU as a round ranks."""
    import torch

    from ml_backend.acquisition import rank
    from tests.benchmarks.inputs import near_duplicate_pool

    pool = torch.from_numpy(near_duplicate_pool(sizes.bald_pool, sizes.bald_passes, len(CLASSES), seed=0))
    figures: Figures = {"pool": sizes.bald_pool, "passes": sizes.bald_passes, "batch": sizes.bald_batch}
    for name in dict.fromkeys((_device().type, "cpu")):
        probs = pool.to(name)
        figures[f"{name}, s"] = _seconds(partial(rank, "batch_bald", probs, sizes.bald_batch, 0), sizes.repeats)
    return figures


def ensemble(sizes: Sizes) -> Figures:
    """A round's training and scoring by an ensemble over the same by one network, both whole."""
    images, _ = _drawn(sizes)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for committee in (1, 1, sizes.committee):  # the first warms up, and does not count
            learner = _learner(sizes, Path(folder), finetune="full", committee=committee)
            learner.prepare(images)

            def fit_and_score(learner: Any = learner) -> None:
                learner.fit(*_labels(sizes), CLASSES)
                learner.outputs(images[sizes.labels :], frozenset({"probs"}))

            seconds[committee] = _seconds(fit_and_score, repeats=1)
    one, all_ = seconds.values()
    return {"networks": sizes.committee, "one network, s": one, "ensemble, s": all_, "ratio": all_ / one}


def group(sizes: Sizes) -> Figures:
    """Images a second of a full fine-tuning in a group of one process and, where two GPUs are, of two; no GPU: skipped.

    A step takes three times the arithmetic of a forward pass.
    """
    import torch

    figures: Figures = {"batch": sizes.train_batch, "GPUs": torch.cuda.device_count()}
    for size in range(1, min(2, torch.cuda.device_count()) + 1):
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(size) as pool:
            ranks = [(sizes, rank, size, f"file://{folder}/store") for rank in range(size)]
            speed = figures[f"{size}, training images/s"] = min(pool.starmap(_train_in_group, ranks, chunksize=1))
            ceiling = _ceiling()
            figures[f"{size}, share of the ceiling"] = None if ceiling is None else speed / (ceiling / 3 * size)
    return figures


def _train_in_group(sizes: Sizes, rank: int, size: int, store: str) -> float:
    """Images a second of the last of three epochs, in a process of its own."""
    import torch
    from torch import distributed

    from ml_backend.model.data import PixelExamples
    from ml_backend.model.distributed import Group
    from ml_backend.model.hardware import Precision
    from ml_backend.model.network import McDropoutClassifier
    from ml_backend.model.training import OptimizerConfig, train

    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store, rank=rank, world_size=size)
    precision = Precision.from_options(_device(), "auto", channels_last=True)
    network = precision.place(McDropoutClassifier(len(CLASSES), sizes.backbone, weights="none"))
    pixels = _pixels(sizes)
    data = PixelExamples(pixels, (torch.arange(len(pixels)) % len(CLASSES)).to(_device()))
    ends: dict[int, float] = {}  # of each epoch

    def note(done: int, total: int) -> None:
        del total
        ends.setdefault(done, time.perf_counter())

    train(
        network,
        data,
        data.select(torch.arange(2)),
        CLASSES,
        config=OptimizerConfig(3, 3, sizes.train_batch, 1e-4, 0.0),
        precision=precision,
        seed=0,
        progress=note,
        group=Group(rank, size),
    )
    distributed.destroy_process_group()
    return len(pixels) / (ends[3] - ends[2])


def two_processes(sizes: Sizes) -> Figures:
    """A network that another process restores gives the same probabilities to the bit, and the same ranking.

    Raises:
        RuntimeError: it does not.
    """
    images, _ = _drawn(sizes)
    with tempfile.TemporaryDirectory() as folder:
        learner = _learner(sizes, Path(folder) / "cache", finetune="full")
        learner.fit(*_labels(sizes), CLASSES)
        learner.save(folder)
        own = learner.outputs(images[sizes.labels :], frozenset({"probs"}))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            others = pool.apply(_restore_and_score, (sizes, folder))
        figures = {
            "equal probabilities": own.probs.tobytes() == others.probs.tobytes(),
            "equal ranking": _order(own) == _order(others),
        }
    if not all(figures.values()):
        raise RuntimeError(str(figures))
    return figures


def _restore_and_score(sizes: Sizes, folder: str) -> Any:
    """In the other process, with a cache of its own."""
    learner = _learner(sizes, Path(folder) / "other", finetune="full")
    learner.restore(folder)
    return learner.outputs(_drawn(sizes)[0][sizes.labels :], frozenset({"probs"}))


def _order(outputs: Any) -> tuple[str, ...]:
    from ml_backend.acquisition.strategy import CatalogStrategy

    return CatalogStrategy("batch_bald").rank(outputs, 20, 0).image_ids


PARTS: Final[dict[str, tuple[Part, float]]] = {
    "device": (device, 60.0),
    "tests": (gpu_tests, 90.0),
    "two processes": (two_processes, 90.0),
    "uint8 cache": (uint8_cache, 60.0),
    "group": (group, 90.0),
    "passes": (mc_passes, 40.0),
    "BatchBALD": (batch_bald, 60.0),
    "rounds": (rounds, 120.0),
    "ensemble": (ensemble, 120.0),
}
"""What is measured, the most important first, and the seconds that it may take."""


# What the parts share.


def _device() -> Any:
    from ml_backend.model.hardware import choose_device

    return choose_device("auto")


def _ceiling() -> int | None:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return next((limit for part, limit in CEILING.items() if part in name), None)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Median of the seconds of a call, until the GPU is done too; the first call of several is not counted."""
    import torch

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    taken = []
    for _ in range(repeats if repeats == 1 else repeats + 1):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[-repeats:])


@cache
def _drawn(sizes: Sizes) -> tuple[list[Any], list[int]]:
    """Drawn images in files, and the index of the class of each."""
    from PIL import Image

    from ml_backend.images.synthetic import draw_pool
    from ml_backend.schemas import ImageRef

    folder = _image_folder()
    arrays, labels, _ = draw_pool(sizes.labels + sizes.pool, (1, 1, 1), seed=0, side=sizes.side)
    images = []
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number}.png", compress_level=1)
        images.append(ImageRef(id=str(number), uri=f"{number}.png"))
    return images, labels.tolist()


@cache
def _image_folder() -> Path:
    return Path(tempfile.mkdtemp())


def _labels(sizes: Sizes) -> tuple[list[Any], list[Any]]:
    """A fifth of the labels validates."""
    from ml_backend.schemas import Label

    images, values = _drawn(sizes)
    labels = [Label(image=images[row], value=CLASSES[values[row]], raters=1) for row in range(sizes.labels)]
    return labels[sizes.labels // 5 :], labels[: sizes.labels // 5]


def _learner(sizes: Sizes, cache_folder: Path, *, finetune: str, committee: int = 1) -> Any:
    from ml_backend.config import ProjectOptions
    from ml_backend.images.source import FolderSource
    from ml_backend.model.ensemble import make_learner
    from ml_backend.model.learner import McDropoutLearner
    from ml_backend.rounds.split import fold_split

    _drawn(sizes)
    options = ProjectOptions.model_validate(
        {
            "backbone": sizes.backbone,
            "weights": "none",
            "image_side": sizes.side,
            "finetune": finetune,
            "epochs": sizes.epochs,
            "passes": sizes.passes,
            "committee": committee,
        }
    )

    def make(options: ProjectOptions, seed: int, progress: Any) -> McDropoutLearner:
        return McDropoutLearner(options, FolderSource(_image_folder()), cache_folder, seed=seed, progress=progress)

    return make_learner(make, options, partial(fold_split, seed=0), lambda *_: None)


@cache
def _extractor(sizes: Sizes) -> Any:
    """The frozen backbone as a round runs it, without a cache of features."""
    from ml_backend.images.cache import ImageCache
    from ml_backend.images.source import FolderSource
    from ml_backend.model.backbones import load_backbone
    from ml_backend.model.data import FeatureExtractor
    from ml_backend.model.hardware import Precision

    images = ImageCache(FolderSource(_image_folder()), _image_folder() / "cache", sizes.side)
    precision = Precision.from_options(_device(), "auto", channels_last=True)
    return FeatureExtractor(load_backbone(sizes.backbone, "none"), images, precision, None)


@cache
def _pixels(sizes: Sizes) -> Any:
    import torch

    shape = (sizes.cached, sizes.side, sizes.side)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# The process that starts the parts.


class PartRunner:
    """Runs parts in a child process, one after the other; a new child follows one that died or was too slow.

    Args:
        sizes: of the parts.
        folder: of the children's temporary files.
    """

    def __init__(self, sizes: Sizes, folder: str) -> None:
        self._sizes = sizes
        self._folder = folder
        self._child: tuple[Any, Connection] | None = None

    def run(self, part: Part, budget_s: float) -> Figures:
        """The figures of a part, or its ``error``."""
        process, pipe = self._child = self._child or self._start()
        pipe.send(part)
        try:
            if pipe.poll(budget_s):
                found: Figures = pipe.recv()
                return found
            error = f"not done within {budget_s:.0f} s"
        except EOFError:
            process.join()
            error = f"the process died with status {process.exitcode}"
        self.close()
        return {"error": error}

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            process, pipe = self._child
            pipe.close()
            process.kill()
            process.join()
            self._child = None

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._sizes, self._folder))
        process.start()
        theirs.close()
        return process, ours


def _serve(pipe: Connection, sizes: Sizes, folder: str) -> None:
    """In the child: run the parts that are asked for."""
    tempfile.tempdir = folder
    while True:
        try:
            part: Part = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send({"figures": part(sizes)})
        except Exception as error:  # noqa: BLE001 - any error is a result
            pipe.send({"error": f"{type(error).__name__}: {error}"})


def check(path: Path, sizes: Sizes) -> dict[str, Any]:
    """Run all parts; the file is complete after each of them."""
    started = time.monotonic()
    report: dict[str, Any] = {"tiny": sizes is TINY, "sizes": asdict(sizes), "parts": {}}
    with tempfile.TemporaryDirectory() as folder, closing(PartRunner(sizes, folder)) as runner:
        for name, (part, budget_s) in PARTS.items():
            began = time.monotonic()
            left = LIMIT_S - (began - started)
            found = runner.run(part, min(budget_s, left)) if left > 0 else {"error": "no time was left"}
            ended = time.monotonic()
            report["parts"][name] = {"seconds": ended - began, "budget_s": budget_s} | found
            report["seconds"] = ended - started
            unfinished = path.with_name(f".{path.name}")
            unfinished.write_text(json.dumps(report, indent=2) + "\n")
            unfinished.replace(path)
            sys.stdout.write(f"{name}: {json.dumps(found)}\n")
            sys.stdout.flush()
    return report


def main() -> None:
    """Exit status 1 where a part has an error."""
    parser = argparse.ArgumentParser(description="Test and time the engine on one GPU.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("gpu-check.json"), help="default: gpu-check.json")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU manages; the figures mean nothing")
    given = parser.parse_args()
    report = check(given.file, TINY if given.tiny else FULL)
    sys.exit(any("error" in part for part in report["parts"].values()))


if __name__ == "__main__":
    main()
