"""Synthetic images on the disk, as images and as labels, with a small learner; and random images in memory."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ml_backend.config import ProjectOptions
from ml_backend.errors import ImageError
from ml_backend.images.source import FolderSource
from ml_backend.model.learner import McDropoutLearner
from ml_backend.registry import Need
from ml_backend.schemas import ImageRef, Label

CLASSES = ("normal", "moderate", "severe")
PROBS: frozenset[Need] = frozenset({"probs"})
BOTH: frozenset[Need] = frozenset({"probs", "features"})
SIDE = 64
OPTIONS = ProjectOptions(
    backbone="shufflenet_v2_x0_5", weights="none", image_side=SIDE, passes=6, epochs=10, learning_rate=1e-3
)


def labelled(folder: Path, start: int, stop: int) -> list[Label]:
    paths = sorted(folder.glob("*.png"))[start:stop]
    return [Label(image=ImageRef(id=p.stem, uri=p.name), value=p.stem.split("-")[1], raters=1) for p in paths]


def pool(folder: Path, start: int, stop: int) -> list[ImageRef]:
    return [label.image for label in labelled(folder, start, stop)]


def learner(
    folder: Path, cache: Path, seed: int = 0, warm_from: Path | None = None, **changes: object
) -> McDropoutLearner:
    options = OPTIONS.model_copy(update=changes)
    return McDropoutLearner(options, FolderSource(folder), cache, device="cpu", seed=seed, warm_from=warm_from)


class RandomImages:
    """An image source of random images, whose address is a number; every seventh is unreadable: 3, 10, 17, ..."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def fetch(self, image: ImageRef) -> bytes:
        self.fetched.append(image.uri)
        if int(image.uri) % 7 == 3:
            raise ImageError(f"image {image.uri} is gone")
        levels = np.random.default_rng(int(image.uri)).integers(0, 256, (32, 32), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "PNG")
        return file.getvalue()

    def cache_key(self, image: ImageRef) -> str:
        return image.uri


def random_refs(count: int) -> Sequence[ImageRef]:
    return [ImageRef(id=f"task {index}", uri=str(index)) for index in range(count)]
