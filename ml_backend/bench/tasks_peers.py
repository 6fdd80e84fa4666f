"""What the peers' side of the comparison can do. Stand-alone: runs in the peers' environment, without this package.

Each library gets its input as it likes it best; bringing it into that form is not timed.
"""

# ruff: noqa: PLC0415 - a task imports its library; the others are not slowed down by it
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "TASKS",
    "activeml_batch",
    "activeml_score",
    "baal_batch",
    "baal_passes",
    "baal_score",
    "decode_films",
    "deterministic_pass",
    "redux_batch",
]

_CLASSES = 3
_HIDDEN = 512

logging.getLogger("pyvips").setLevel(logging.ERROR)


@cache
def _network(backbone: str) -> Any:
    """The same layers as ours, by torchvision alone."""
    import torch
    from torch import nn
    from torchvision import models

    torch.manual_seed(0)
    network = models.get_model(backbone, weights=None)
    network.fc = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(network.fc.in_features, _HIDDEN),
        nn.BatchNorm1d(_HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, _CLASSES),
    )
    return network.eval()


def deterministic_pass(*, backbone: str, images: int, side: int) -> Callable[[], list[int]]:
    """One pass with dropout off."""
    import torch

    network, batch = _network(backbone), torch.randn(images, 3, side, side)

    def call() -> list[int]:
        with torch.inference_mode():
            return list(network(batch).softmax(dim=-1).shape)

    return call


def baal_passes(*, backbone: str, images: int, side: int, passes: int) -> Callable[[], list[int]]:
    """Baal: ``MCDropoutModule`` and ``predict_on_batch``, one pass after the other."""
    import copy

    import torch
    from baal.bayesian.dropout import MCDropoutModule  # type: ignore[import-not-found]
    from baal.modelwrapper import ModelWrapper, TrainingArgs  # type: ignore[import-not-found]

    batch = torch.randn(images, 3, side, side)
    # Replicating the images in memory instead takes as long and T times the memory.
    arguments = TrainingArgs(use_cuda=False, replicate_in_memory=False)
    wrapper = ModelWrapper(MCDropoutModule(copy.deepcopy(_network(backbone))), arguments)
    wrapper.eval()
    return lambda: list(wrapper.predict_on_batch(batch, iterations=passes).shape)


def redux_batch(*, probs: str, batch_size: int, configurations: int, seed: int) -> Callable[[], list[int]]:
    """batchbald-redux: ``get_batchbald_batch`` as shipped, in float64 as its own notebooks."""
    import torch
    from batchbald_redux.batchbald import get_batchbald_batch  # type: ignore[import-not-found]

    log_probs = torch.from_numpy(np.load(probs)).double().log()

    def call() -> list[int]:
        torch.manual_seed(seed)
        batch = get_batchbald_batch(log_probs, batch_size, configurations, dtype=torch.double, device="cpu")
        return [int(image) for image in batch.indices]

    return call


def baal_batch(*, probs: str, batch_size: int, draws: int, seed: int) -> Callable[[], list[int]]:
    """Baal: the first of the ranks by its ``BatchBALD``; it draws ``draws`` labellings from every pass."""
    import torch
    from baal.active.heuristics import BatchBALD  # type: ignore[import-not-found]

    predictions = np.ascontiguousarray(np.load(probs).transpose(0, 2, 1))
    heuristic = BatchBALD(num_samples=batch_size, num_draw=draws)

    def call() -> list[int]:
        torch.manual_seed(seed)
        ranks, _ = heuristic.get_ranks(predictions)
        return [int(image) for image in ranks[:batch_size]]

    return call


def activeml_batch(*, probs: str, batch_size: int, seed: int) -> Callable[[], list[int]]:
    """scikit-activeml: ``batch_bald`` with its default, as many labellings as passes."""
    from skactiveml.pool._bald import batch_bald  # type: ignore[import-not-found]

    probas = np.ascontiguousarray(np.load(probs).transpose(1, 0, 2)).astype(np.float64)

    def call() -> list[int]:
        utilities = batch_bald(probas, batch_size, random_state=seed)
        return [int(image) for image in np.nanargmax(utilities, axis=1)]

    return call


def baal_score(*, function: str, probs: str) -> Callable[[], npt.NDArray[Any]]:
    """One of Baal's heuristics, by its ``get_uncertainties``."""
    from baal.active import heuristics  # type: ignore[import-not-found]

    names = {
        "entropy": "Entropy",
        "mean_std": "Variance",
        "bald": "BALD",
        "margin": "Margin",
        "least_confidence": "Certainty",
    }
    predictions = np.ascontiguousarray(np.load(probs).transpose(0, 2, 1))
    heuristic = getattr(heuristics, names[function])()

    def call() -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = heuristic.get_uncertainties(predictions)
        return found

    return call


def activeml_score(*, function: str, probs: str) -> Callable[[], npt.NDArray[Any]]:
    """One of scikit-activeml's functions; the mean over the passes, which three of them need, is timed."""
    from skactiveml.pool import average_kl_divergence, uncertainty_scores, variation_ratios  # type: ignore[import-not-found]

    probas = np.ascontiguousarray(np.load(probs).transpose(1, 0, 2))
    methods = {"entropy": "entropy", "margin": "margin_sampling", "least_confidence": "least_confident"}
    if function in methods:
        return lambda: np.asarray(uncertainty_scores(probas.mean(axis=0), method=methods[function]))
    if function == "bald":
        return lambda: np.asarray(average_kl_divergence(probas))
    if function == "variation_ratios":
        votes = np.ascontiguousarray(probas.argmax(axis=-1).T)
        return lambda: np.asarray(variation_ratios(votes))
    raise ValueError(f"scikit-activeml has no function for {function}")


def decode_films(*, way: str, files: Sequence[str], side: int, rounds: int) -> Callable[[], list[int]]:
    """Decode each file ``rounds`` times by one library, to a gray square."""
    one = _WAYS[way](side)
    contents = [Path(name).read_bytes() for name in files]

    def call() -> list[int]:
        for _ in range(rounds):
            for content in contents:
                square = one(content)
        return list(square.shape)

    return call


def _pillow(side: int) -> Callable[[bytes], Any]:
    return _by_pillow(side, draft=False)


def _pillow_draft(side: int) -> Callable[[bytes], Any]:
    return _by_pillow(side, draft=True)


def _by_pillow(side: int, *, draft: bool) -> Callable[[bytes], Any]:
    import io

    from PIL import Image

    def one(content: bytes) -> Any:
        image: Image.Image = Image.open(io.BytesIO(content))
        if draft:
            image.draft("L", (side, side))
        return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BILINEAR))

    return one


def _torchvision(side: int) -> Callable[[bytes], Any]:
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional

    def one(content: bytes) -> Any:
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.GRAY)
        return functional.resize(image, [side, side], antialias=True)[0]

    return one


def _opencv(reading: str) -> Callable[[int], Callable[[bytes], Any]]:
    def way(side: int) -> Callable[[bytes], Any]:
        import cv2

        cv2.setNumThreads(1)
        flag = getattr(cv2, reading)

        def one(content: bytes) -> Any:
            image: Any = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
            return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)

        return one

    return way


def _pyvips(side: int) -> Callable[[bytes], Any]:
    import pyvips

    def one(content: bytes) -> Any:
        return pyvips.Image.thumbnail_buffer(content, side, height=side, size="force").numpy()

    return one


_WAYS: Mapping[str, Callable[[int], Callable[[bytes], Any]]] = {
    "Pillow": _pillow,
    "Pillow, draft mode": _pillow_draft,
    "torchvision.io": _torchvision,
    "opencv": _opencv("IMREAD_GRAYSCALE"),
    "opencv, reduced 4": _opencv("IMREAD_REDUCED_GRAYSCALE_4"),
    "opencv, reduced 8": _opencv("IMREAD_REDUCED_GRAYSCALE_8"),
    "pyvips": _pyvips,
}

TASKS: Mapping[str, Callable[..., Callable[[], Any]]] = {
    task.__name__: task
    for task in (
        deterministic_pass,
        baal_passes,
        redux_batch,
        baal_batch,
        activeml_batch,
        baal_score,
        activeml_score,
        decode_films,
    )
}
