"""The timed tasks, ours and the peers', and the process that times them.

A task is a function of this file: it prepares what is not timed and returns the function that is timed. Each imports
its own library, because the peers' environment runs this file too and has no ml_backend. Each library gets its input in
the layout that it likes best.

The process reads pickled ``(task, arguments, timed)`` from standard input and writes pickled ``(cpu_s, wall_s,
extra_mib, result)``, None for a task that is only prepared, or the text of an error. ``None`` as the request drops what
was prepared.
"""

import gc
import io
import logging
import math
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 16  # images that go through the backbone together
CLASSES = 3
HIDDEN = 512  # inputs of the last layer

# A shorter task is repeated for about that long, as timeit does, and the mean taken: a single call would mostly measure
# caches that the other side has emptied. A trial of the benchmark itself gives 0 as the only argument.
SHORT_S = 0.2


def versions(*, packages: Sequence[str]) -> Callable[[], dict[str, str]]:
    """Versions of installed packages."""
    return lambda: {name: version(name) for name in packages}


@cache
def _network(backbone: str, *, torchvision: bool = False) -> Any:
    """Untrained: weights do not change the time. Ours, or the same layers by torchvision alone."""
    if not torchvision:
        from ml_backend.model import McDropoutClassifier

        return McDropoutClassifier(classes=CLASSES, backbone=backbone, weights="none").eval()
    from torch import nn
    from torchvision import models

    network = models.get_model(backbone, weights=None)
    hidden = nn.Linear(network.fc.in_features, HIDDEN)
    network.fc = nn.Sequential(nn.Dropout(0.5), hidden, nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    return network.eval()


def _batches(images: int, side: int) -> list[Any]:
    import torch

    pixels = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    return list(torch.split(pixels, BATCH))


def _whole_pool(call: Callable[[Any], Any], batches: Sequence[Any]) -> Any:
    import torch

    with torch.inference_mode():
        return torch.cat([call(batch) for batch in batches])


def deterministic_pass(*, backbone: str, images: int, side: int, torchvision: bool = False) -> Callable[[], Any]:
    """One pass of the whole network with dropout off."""
    network, batches = _network(backbone, torchvision=torchvision), _batches(images, side)
    return lambda: _whole_pool(lambda batch: network(batch).softmax(dim=-1), batches).numpy()


def mc_probs(*, backbone: str, images: int, side: int, passes: int) -> Callable[[], Any]:
    """T stochastic passes as this package draws them."""
    network, batches = _network(backbone), _batches(images, side)
    return lambda: network.mc_probs(batches, passes=passes, seed=0).numpy()


def naive_passes(*, backbone: str, images: int, side: int, passes: int) -> Callable[[], Any]:
    """T passes of the whole network with dropout on."""
    network, batches = _network(backbone), _batches(images, side)

    def call() -> Any:
        network.head.dropout.train()
        drawn = [_whole_pool(lambda batch: network(batch).softmax(dim=-1), batches) for _ in range(passes)]
        network.head.dropout.eval()
        return np.stack(drawn, axis=1)

    return call


def baal_passes(*, backbone: str, images: int, side: int, passes: int) -> Callable[[], Any]:
    """Baal: ``MCDropoutModule`` and ``predict_on_batch``."""
    import copy

    import torch
    from baal.bayesian.dropout import MCDropoutModule
    from baal.modelwrapper import ModelWrapper, TrainingArgs

    pixels = torch.cat(_batches(images, side))
    # Replicating the images in memory instead takes as long and T times the memory.
    arguments = TrainingArgs(use_cuda=False, replicate_in_memory=False)
    wrapper = ModelWrapper(MCDropoutModule(copy.deepcopy(_network(backbone, torchvision=True))), arguments)
    wrapper.eval()
    return lambda: np.asarray(wrapper.predict_on_batch(pixels, iterations=passes)).transpose(0, 2, 1)


def backbone_features(*, backbone: str, images: int, side: int) -> Callable[[], Any]:
    """One pass of the backbone."""
    network, batches = _network(backbone), _batches(images, side)
    return lambda: _whole_pool(network.features, batches).numpy()


def head_passes(*, backbone: str, images: int, passes: int) -> Callable[[], Any]:
    """T passes of the head over given features."""
    import torch

    head = _network(backbone).head
    features = torch.rand(images, head.hidden.in_features, generator=torch.Generator().manual_seed(0))
    return lambda: head.passes(features, head.masks(passes, 0)).numpy()


def batch_bald(*, probs: str, batch_size: int, seed: int) -> Callable[[], list[int]]:
    """The batch of BatchBALD, in the order of its picks."""
    import torch

    from ml_backend.acquisition import rank

    pool = torch.from_numpy(np.load(probs))
    return lambda: [int(image) for image in rank("batch_bald", pool, batch_size, seed).order[:batch_size]]


def redux_batch(*, probs: str, batch_size: int, seed: int, configurations: int) -> Callable[[], list[int]]:
    """batchbald-redux: ``get_batchbald_batch`` as shipped, in float64 as in its own notebooks."""
    import torch
    from batchbald_redux.batchbald import get_batchbald_batch

    log_probs = torch.from_numpy(np.load(probs)).double().log()

    def call() -> list[int]:
        torch.manual_seed(seed)
        batch = get_batchbald_batch(log_probs, batch_size, configurations, dtype=torch.double, device="cpu")
        return [int(image) for image in batch.indices]

    return call


def baal_batch(*, probs: str, batch_size: int, seed: int, draws: int) -> Callable[[], list[int]]:
    """Baal: the first ranks by its ``BatchBALD``, which draws ``draws`` labellings from every pass."""
    import torch
    from baal.active.heuristics import BatchBALD

    predictions = np.ascontiguousarray(np.load(probs).transpose(0, 2, 1))
    heuristic = BatchBALD(num_samples=batch_size, num_draw=draws)

    def call() -> list[int]:
        torch.manual_seed(seed)
        return [int(image) for image in heuristic.get_ranks(predictions)[0][:batch_size]]

    return call


def activeml_batch(*, probs: str, batch_size: int, seed: int) -> Callable[[], list[int]]:
    """scikit-activeml: ``batch_bald`` with its default, as many labellings as passes."""
    from skactiveml.pool._bald import batch_bald as activeml_batch_bald

    probas = np.ascontiguousarray(np.load(probs).transpose(1, 0, 2)).astype(np.float64)
    return lambda: [
        int(image) for image in np.nanargmax(activeml_batch_bald(probas, batch_size, random_state=seed), axis=1)
    ]


def score(*, function: str, probs: str) -> Callable[[], Any]:
    """Scores of one pointwise function."""
    import torch

    from ml_backend import acquisition

    pool = torch.from_numpy(np.load(probs))
    return lambda: getattr(acquisition, function)(pool).numpy()


def baal_score(*, function: str, probs: str) -> Callable[[], Any]:
    """One of Baal's heuristics, by its ``get_uncertainties``."""
    from baal.active import heuristics

    names = {"mean_std": "Variance", "bald": "BALD", "least_confidence": "Certainty"}
    predictions = np.ascontiguousarray(np.load(probs).transpose(0, 2, 1))
    heuristic = getattr(heuristics, names.get(function, function.title()))()
    return lambda: heuristic.get_uncertainties(predictions)


def activeml_score(*, function: str, probs: str) -> Callable[[], Any]:
    """One of scikit-activeml's functions; the mean over the passes, which three of them need, is timed."""
    from skactiveml.pool import average_kl_divergence, uncertainty_scores, variation_ratios

    probas = np.ascontiguousarray(np.load(probs).transpose(1, 0, 2))
    if function == "bald":
        return lambda: np.asarray(average_kl_divergence(probas))
    if function == "variation_ratios":
        votes = np.ascontiguousarray(probas.argmax(axis=-1).T)
        return lambda: np.asarray(variation_ratios(votes))
    method = {"entropy": "entropy", "margin": "margin_sampling", "least_confidence": "least_confident"}[function]
    return lambda: np.asarray(uncertainty_scores(probas.mean(axis=0), method=method))


def rank_pool(*, strategy: str, images: int, dims: int, passes: int, batch_size: int) -> Callable[[], list[str]]:
    """A batch of any strategy, from drawn outputs of the kinds that it needs."""
    from ml_backend.acquisition import CatalogStrategy
    from ml_backend.predictions import LastLayerGradients, PoolPredictions
    from ml_backend.registry import STRATEGIES
    from tests.benchmarks.inputs import plain_pool

    generator, needs = np.random.default_rng(0), STRATEGIES[strategy].needs
    probs = plain_pool(images, passes, CLASSES, seed=0)
    mean = probs.mean(axis=1)
    hidden = generator.random((images, HIDDEN), dtype=np.float32)
    error = mean - np.eye(CLASSES, dtype=np.float32)[mean.argmax(axis=-1)]
    outputs = PoolPredictions(
        image_ids=tuple(map(str, range(images))),
        classes=tuple(map(str, range(CLASSES))),
        probs=probs,
        features=generator.random((images, dims), dtype=np.float32) if "features" in needs else None,
        labelled_features=generator.random((batch_size, dims), dtype=np.float32) if "features" in needs else None,
        gradients=LastLayerGradients(error, hidden) if "gradients" in needs else None,
    )
    return lambda: list(CatalogStrategy(strategy).rank(outputs, batch_size, 0).image_ids[:batch_size])


def decode(*, library: str, files: Sequence[str], side: int, repeats: int) -> Callable[[], Any]:
    """Decode each file to a gray square, ``repeats`` times; returns the last square."""
    decoder = _decoder(library, side)
    contents = [Path(name).read_bytes() for name in files]
    return lambda: [decoder(content) for _ in range(repeats) for content in contents][-1]


def _decoder(library: str, side: int) -> Callable[[bytes], Any]:
    if library == "ours":
        from ml_backend.images import decode as our_decode

        return lambda content: our_decode(content, side, "image")
    if library == "pyvips":
        import pyvips

        logging.getLogger("pyvips").setLevel(logging.ERROR)
        return lambda content: pyvips.Image.thumbnail_buffer(content, side, height=side, size="force").numpy()
    if library == "torchvision.io":
        import torch
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2.functional import resize

        def by_torchvision(content: bytes) -> Any:
            image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.GRAY)
            return resize(image, [side, side], antialias=True)[0].numpy()

        return by_torchvision
    if library.startswith("Pillow"):
        from PIL import Image

        def by_pillow(content: bytes) -> Any:
            image: Image.Image = Image.open(io.BytesIO(content))
            if library == "Pillow, draft mode":
                image.draft("L", (side, side))
            return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BILINEAR))

        return by_pillow
    import cv2

    cv2.setNumThreads(1)
    reduced = library.removeprefix("opencv").removeprefix(", reduced ")
    flag = getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduced}" if reduced else "IMREAD_GRAYSCALE")

    def by_opencv(content: bytes) -> Any:
        image: Any = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
        return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)

    return by_opencv


def head_round(*, folder: str, backbone: str, side: int, features_only: bool) -> Callable[[], Any]:
    """Train the head on images whose features are cached, or only read the features; ``<class>-<number>.png``."""
    from ml_backend.config import ProjectOptions
    from ml_backend.images import FolderSource
    from ml_backend.model import McDropoutLearner
    from ml_backend.schemas import ImageRef, Label

    options = ProjectOptions(backbone=backbone, weights="none", finetune="head", image_side=side)
    cache_folder = tempfile.TemporaryDirectory()
    learner = McDropoutLearner(options, FolderSource(Path(folder)), Path(cache_folder.name), device="cpu")
    # By number: the part for validation then holds every class.
    names = sorted((path.name for path in Path(folder).iterdir()), key=lambda name: name.partition("-")[2])
    labels = [Label(image=ImageRef(id=name, uri=name), value=name[0], raters=1) for name in names]
    images, classes, held_out = [label.image for label in labels], sorted({name[0] for name in names}), len(labels) // 5
    learner.prepare(images)

    def call(_: object = cache_folder) -> int | None:  # which lives as long as the task
        if features_only:
            learner.prepare(images)
            return None
        return learner.fit(labels[held_out:], labels[:held_out], classes).epochs

    return call


def page_request(*, data_folder: str, path: str) -> Callable[[], int]:
    """One warm request to the web server's app, over a stored project; returns the length of the body."""
    from ml_backend.config import Settings
    from ml_backend.server.app import create_app
    from tests.unit.server.memory import MemoryQueue

    client = create_app(Settings(data_dir=Path(data_folder)), MemoryQueue()).test_client()

    def call() -> int:
        if path == "/predict":
            response = client.post(path, json={"project": "7.1795000000", "tasks": [{"id": 100_001}, {"id": 100_500}]})
        else:
            response = client.get(path, headers={"Accept": "text/html"})
        assert response.status_code == 200, response.status
        return len(response.data)

    call()
    return call


def consensus(*, rule: str, images: int) -> Callable[[], int]:
    """A consensus rule from the annotations to the labels; returns their number."""
    from datetime import UTC, datetime, timedelta

    from ml_backend.consensus import RULES
    from ml_backend.schemas import Annotation, ImageRef

    draws, classes = np.random.default_rng(0), ("normal", "moderate", "severe")
    annotations = list[Annotation]()
    for number in range(images):
        image, truth = ImageRef(id=str(number + 1), uri=f"{number}.png"), draws.integers(3)
        for reader in draws.choice(50, 3, replace=False):
            # A tenth of the readers is poor.
            value = classes[truth if draws.random() < (0.4 if reader < 5 else 0.8) else draws.integers(3)]
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=len(annotations))
            annotations.append(Annotation(image=image, rater=str(reader), value=value, updated_at=at))
    return lambda: len(RULES[rule](annotations, classes).labels)


def main(replies: io.BufferedIOBase, short_s: float) -> None:
    """Time tasks until standard input ends."""
    prepared: dict[str, Callable[[], Any]] = {}
    with suppress(EOFError):
        while True:
            request = pickle.load(sys.stdin.buffer)
            try:
                if request is None:
                    prepared.clear()
                    reply: object = None
                else:
                    name, arguments, timed = request
                    key = f"{name} {arguments}"
                    if key not in prepared:
                        prepared[key] = globals()[name](**arguments)
                    reply = measure(prepared[key], short_s) if timed else None
            except Exception as error:  # noqa: BLE001 - the parent reports whatever a library raises, and ends
                reply = f"{name}: {type(error).__name__}: {error}"
            pickle.dump(reply, replies)
            replies.flush()


def measure(call: Callable[[], Any], short_s: float = SHORT_S) -> tuple[float, float, float | None, Any]:
    """CPU and wall seconds of one call, peak MiB above what was resident before it, and its result."""
    gc.collect()
    resident = _reset_peak()
    cpu_s, wall_s, result = _timed(call, 1)
    extra = None if resident is None else (_status_kib("VmHWM") - resident) / 1024
    if wall_s < short_s:
        cpu_s, wall_s, _ = _timed(call, math.ceil(short_s / max(wall_s, 1e-4)))
    return cpu_s, wall_s, extra, result


def _timed(call: Callable[[], Any], times: int) -> tuple[float, float, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        result = call()
    return (time.process_time() - cpu) / times, (time.perf_counter() - wall) / times, result


def _reset_peak() -> int | None:
    """Resident KiB, after the kernel's record of the peak was reset; None where that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_kib("VmRSS")
    except OSError:
        return None


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    # A library that prints must not write into the replies: its output goes to the log.
    with os.fdopen(os.dup(1), "wb") as stream:
        os.dup2(2, 1)
        main(stream, float(sys.argv[1]) if len(sys.argv) > 1 else SHORT_S)
