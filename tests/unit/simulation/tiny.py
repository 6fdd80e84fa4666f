"""A study that takes no time: 48 images in the pool, 9 to stop by, 12 to test on, and a learner that only hashes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.config import ProjectOptions
from ml_backend.schemas import ImageRef
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.plan import StudyPlan
from ml_backend.simulation.run import Study
from ml_backend.simulation.tables import Side
from tests.fakes import CLASSES, FakeLearner

SIZES: dict[Side, int] = {"train": 48, "val": 9, "test": 12}


def make_data(sizes: dict[Side, int] | None = None, dims: int = 8) -> DataSet:
    """Images of two a patient, classes in turn; features that tell the class, with noise."""
    images: list[ImageRef] = []
    truth: dict[str, str] = {}
    split: dict[str, Side] = {}
    for side, count in (sizes or SIZES).items():
        for number in range(count):
            name = f"{side}/{number:03d}.png"
            images.append(ImageRef(id=name, uri=name, patient_id=f"{side}-{number // 2}"))
            truth[name] = CLASSES[number % 3]
            split[name] = side
    images.sort(key=lambda image: (len(image.id), image.id))
    noise = np.random.default_rng(0).normal(size=(len(images), dims))
    for row, image in enumerate(images):
        noise[row, CLASSES.index(truth[image.id])] += 2.0
    return DataSet(CLASSES, tuple(images), truth, split, features=noise.astype(np.float32))


def make_plan(**changes: object) -> StudyPlan:
    """Two labels a class to start with, five a round, 30 at most: rounds on 6, 11, 16, 21 and 26 labels."""
    fields: dict[str, object] = {
        "command": "ml-backend simulate --labels l.csv --out o",
        "started_at": "2026-01-01T12:00:00+00:00",
        "images": None,
        "labels": "/data/labels.csv",
        "ratings": None,
        "features": "/data/features.npz",
        "task": None,
        "imbalance": {},
        "strategies": ("random", "entropy"),
        "losses": ("weighted",),
        "seeds": (0, 1),
        "profile": "paper",
        "initial": 2,
        "budget": 30,
        "options": ProjectOptions(batch_size=5, passes=4, finetune="head").model_dump(mode="json"),
        "device": "cpu",
        "digests": {"labels": "aa", "features": "bb"},
        "versions": {"python": "3.11"},
    }
    return StudyPlan.model_validate(fields | changes)


def make_study(plan: StudyPlan | None = None, data: DataSet | None = None, unreadable: Sequence[str] = ()) -> Study:
    return Study(plan or make_plan(), data or make_data(), lambda _options: FakeLearner(unreadable))


def write_tables(folder: Path) -> dict[str, Any]:
    """Write the labels and the features of ``make_data``: two options of a study."""
    data = make_data()
    rows = [f"{image.id},{data.truth[image.id]},{image.patient_id},{data.split[image.id]}" for image in data.images]
    (folder / "labels.csv").write_text("\n".join(["path,label,patient_id,split", *rows]) + "\n")
    assert data.features is not None
    np.savez(folder / "features.npz", X=data.features, path=np.array([image.id for image in data.images]))
    return {"labels": folder / "labels.csv", "features": folder / "features.npz"}
