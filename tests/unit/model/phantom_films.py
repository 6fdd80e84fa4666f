"""60 phantoms on the disk, as images and as labels, and a learner small enough for them."""

from pathlib import Path

from ml_backend.config import ProjectOptions
from ml_backend.images.source import FolderSource
from ml_backend.model.learner import McDropoutLearner
from ml_backend.registry import Need
from ml_backend.schemas import ImageRef, Label

__all__ = ["BOTH", "CLASSES", "OPTIONS", "PROBS", "SIDE", "labelled", "learner", "pool"]

CLASSES = ("normal", "moderate", "severe")
PROBS: frozenset[Need] = frozenset({"probs"})
BOTH: frozenset[Need] = frozenset({"probs", "features"})
SIDE = 64
OPTIONS = ProjectOptions(
    backbone="shufflenet_v2_x0_5", weights="none", image_side=SIDE, passes=6, epochs=10, learning_rate=1e-3
)


def labelled(films: Path, start: int, stop: int) -> list[Label]:
    paths = sorted(films.glob("*.png"))[start:stop]
    return [Label(image=ImageRef(id=p.stem, uri=p.name), value=p.stem.split("-")[1], raters=1) for p in paths]


def pool(films: Path, start: int, stop: int) -> list[ImageRef]:
    return [label.image for label in labelled(films, start, stop)]


def learner(films: Path, cache: Path, seed: int = 0, **changes: object) -> McDropoutLearner:
    return McDropoutLearner(OPTIONS.model_copy(update=changes), FolderSource(films), cache, device="cpu", seed=seed)
