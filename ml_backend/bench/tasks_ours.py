"""What our side of the comparison can do: this package's public functions, as a researcher would call them."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ml_backend import acquisition
from ml_backend.acquisition import CatalogStrategy, rank
from ml_backend.bench.pools import plain_pool
from ml_backend.config import ProjectOptions
from ml_backend.images import FolderSource, decode
from ml_backend.model import McDropoutClassifier, McDropoutLearner
from ml_backend.predictions import LastLayerGradients, PoolPredictions
from ml_backend.schemas import ImageRef, Label

__all__ = [
    "TASKS",
    "backbone_features",
    "batch_bald",
    "decode_films",
    "deterministic_pass",
    "head_passes",
    "head_round",
    "kept_features",
    "mc_probs",
    "naive_passes",
    "rank_pool",
    "score",
]

_BATCH = 16  # images that go through the backbone together
_CLASSES = 3
_HIDDEN = 512  # what the last layer sees


@cache
def _network(backbone: str) -> McDropoutClassifier:
    """Untrained, which takes as long as trained."""
    return McDropoutClassifier(classes=_CLASSES, backbone=backbone, weights="none").eval()


def _images(count: int, side: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.split(torch.randn(count, 3, side, side, generator=generator), _BATCH))


def deterministic_pass(*, backbone: str, images: int, side: int) -> Callable[[], list[int]]:
    """One pass of the whole network with dropout off."""
    network, batches = _network(backbone), _images(images, side)

    @torch.inference_mode()
    def call() -> list[int]:
        return _shape(torch.cat([network(batch).softmax(dim=-1) for batch in batches]))

    return call


def mc_probs(*, backbone: str, images: int, side: int, passes: int) -> Callable[[], list[int]]:
    """The T passes as this package draws them."""
    network, batches = _network(backbone), _images(images, side)
    return lambda: _shape(network.mc_probs(batches, passes=passes, seed=0))


def naive_passes(*, backbone: str, images: int, side: int, passes: int) -> Callable[[], list[int]]:
    """T passes of the whole network with dropout on."""
    network, batches = _network(backbone), _images(images, side)

    @torch.inference_mode()
    def call() -> list[int]:
        network.head.dropout.train()
        try:
            drawn = [torch.cat([network(batch).softmax(dim=-1) for batch in batches]) for _ in range(passes)]
        finally:
            network.head.dropout.eval()
        return _shape(torch.stack(drawn, dim=1))

    return call


def backbone_features(*, backbone: str, images: int, side: int) -> Callable[[], list[int]]:
    """One pass of the backbone."""
    network, batches = _network(backbone), _images(images, side)

    @torch.inference_mode()
    def call() -> list[int]:
        return _shape(torch.cat([network.features(batch) for batch in batches]))

    return call


def head_passes(*, backbone: str, images: int, passes: int) -> Callable[[], list[int]]:
    """T passes of the head on features that are there."""
    head = _network(backbone).head
    dims = head.hidden.in_features
    features = torch.rand(images, dims, generator=torch.Generator().manual_seed(0))
    return lambda: _shape(head.passes(features, head.masks(passes, 0)))


def batch_bald(*, probs: str, batch_size: int, seed: int) -> Callable[[], list[int]]:
    """The batch of BatchBALD, in the order of its picks."""
    pool = torch.from_numpy(np.load(probs))
    return lambda: [int(image) for image in rank("batch_bald", pool, batch_size, seed).order[:batch_size]]


def score(*, function: str, probs: str) -> Callable[[], npt.NDArray[np.float64]]:
    """Scores of one pointwise function."""
    pool = torch.from_numpy(np.load(probs))
    chosen: Callable[[Tensor], Tensor] = getattr(acquisition, function)

    def call() -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = chosen(pool).numpy()
        return found

    return call


def rank_pool(
    *, strategy: str, needs: Sequence[str], images: int, dims: int, passes: int, batch_size: int
) -> Callable[[], list[str]]:
    """A batch of any strategy, from drawn outputs of the kinds that it needs."""
    generator = np.random.default_rng(0)
    probs = plain_pool(images, passes, _CLASSES, seed=0)
    mean = probs.mean(axis=1)
    own_answer = np.eye(_CLASSES, dtype=np.float32)[mean.argmax(axis=-1)]
    hidden = generator.random((images, _HIDDEN), dtype=np.float32)
    outputs = PoolPredictions(
        image_ids=tuple(str(number) for number in range(images)),
        classes=tuple(str(number) for number in range(_CLASSES)),
        probs=probs,
        features=generator.random((images, dims), dtype=np.float32) if "features" in needs else None,
        labelled_features=generator.random((batch_size, dims), dtype=np.float32) if "features" in needs else None,
        gradients=LastLayerGradients(mean - own_answer, hidden) if "gradients" in needs else None,
    )
    chosen = CatalogStrategy(strategy)
    return lambda: list(chosen.rank(outputs, batch_size, 0).image_ids[:batch_size])


def decode_films(*, files: Sequence[str], side: int, rounds: int) -> Callable[[], list[int]]:
    """Decode each file ``rounds`` times."""
    contents = [(name, Path(name).read_bytes()) for name in files]

    def call() -> list[int]:
        for _ in range(rounds):
            for name, content in contents:
                square = decode(content, side, name)
        return _shape(square)

    return call


def head_round(*, folder: str, backbone: str, side: int) -> Callable[[], dict[str, float]]:
    """Train the head on the images of a folder, once their features are kept; the class is the file name's start."""
    learner, images = _learner(folder, backbone, side)
    learner.prepare(images)
    labels = [Label(image=image, value=image.id.partition("-")[0], raters=1) for image in images]
    classes = sorted({label.value for label in labels})
    held_back = len(labels) // 5

    def call() -> dict[str, float]:
        fit = learner.fit(labels[held_back:], labels[:held_back], classes)
        return {"epochs": float(fit.epochs)}

    return call


def kept_features(*, folder: str, backbone: str, side: int) -> Callable[[], None]:
    """Read the features of images that are kept already."""
    learner, images = _learner(folder, backbone, side)
    learner.prepare(images)
    return lambda: learner.prepare(images)


def _learner(folder: str, backbone: str, side: int) -> tuple[McDropoutLearner, list[ImageRef]]:
    options = ProjectOptions(backbone=backbone, weights="none", finetune="head", image_side=side)
    kept = tempfile.TemporaryDirectory()
    learner = McDropoutLearner(options, FolderSource(Path(folder)), Path(kept.name), device="cpu")
    _KEPT.append(kept)
    # Shuffled: every class in the part that is held back.
    paths = sorted(Path(folder).iterdir(), key=lambda path: path.stem.partition("-")[2])
    return learner, [ImageRef(id=path.name, uri=path.name) for path in paths]


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends."""


def _shape(array: Tensor | npt.NDArray[Any]) -> list[int]:
    return list(array.shape)


TASKS: Mapping[str, Callable[..., Callable[[], Any]]] = {
    task.__name__: task
    for task in (
        deterministic_pass,
        mc_probs,
        naive_passes,
        backbone_features,
        head_passes,
        batch_bald,
        score,
        rank_pool,
        decode_films,
        head_round,
        kept_features,
    )
}
