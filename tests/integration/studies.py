"""A study on real networks that takes seconds: 60 tiny films, a resnet18 that nobody has trained, three rounds."""

from pathlib import Path

import numpy as np
from PIL import Image

from ml_backend.config import ProjectOptions
from ml_backend.simulation.dataset import load_dataset, parse_task
from ml_backend.simulation.plan import StudyPlan
from ml_backend.storage.atomic import write_record

CLASSES = ("dark", "grey", "bright")
OPTIONS = {
    "backbone": "resnet18",
    "weights": "none",
    "finetune": "head",
    "image_side": 32,
    "passes": 4,
    "epochs": 2,
    "batch_size": 4,
    "precision": "float32",
}
LIVE: dict[str, object] = {
    "start": "live",
    "initial": 0,
    "budget": 24,
    "options": ProjectOptions.resolve({**OPTIONS, "min_labels_per_class": 3}, environ={}).model_dump(mode="json"),
}
"""Changes of a plan: seven rounds, the first of them without a network."""


def draw_table(folder: Path, *, validation: bool = True) -> Path:
    """Films of three brightnesses with noise, six a patient, and the table of their labels."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["path,label,patient_id,split"]
    for number in range(60):
        side = "test" if number >= 48 else "val" if number >= 36 and validation else "train"
        pixels = random.normal(60 + 50 * (number % 3), 40, size=(32, 32)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png,{CLASSES[number % 3]},p{number // 6},{side}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def begin_study(folder: Path, out: Path, **changes: object) -> StudyPlan:
    """Draw the films where they are not, and write the plan of a study about them."""
    table = folder / "labels.csv"
    if not table.exists():
        draw_table(folder)
    data = load_dataset(folder / "images", table, task=parse_task(";".join(CLASSES)))
    fields: dict[str, object] = {
        "command": "ml-backend simulate --labels labels.csv --out out",
        "started_at": "2026-01-01T12:00:00+00:00",
        "images": str(folder / "images"),
        "labels": str(table),
        "ratings": None,
        "features": None,
        "task": ";".join(CLASSES),
        "imbalance": {},
        "strategies": ("random", "entropy"),
        "losses": ("weighted",),
        "seeds": (0,),
        "profile": "paper",
        "initial": 2,
        "budget": 14,
        "options": ProjectOptions.resolve(OPTIONS, environ={}).model_dump(mode="json"),
        "device": "cpu",
        "digests": dict(data.digests),
        "versions": {},
    }
    plan = StudyPlan.model_validate(fields | changes)
    write_record(out / "plan.json", plan)
    return plan
