"""A study of synthetic images and simulated readers, for experiments that run anywhere."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float64
from PIL import Image
from scipy.special import ndtri

from ml_backend.errors import SettingsError
from ml_backend.images.synthetic import plan_pool
from ml_backend.seeding import seeded_draws

MARKER = "phantoms.json"
FORMAT = 1  # counted up when the same parameters draw other images
READERS_PER_IMAGE = (3, 6)
# In steps between neighbouring classes. With them two readers of an image in the middle of its class agree six times in
# seven, two readers of an image on the border between two classes every other time.
BIAS = 0.15
NOISE = (0.15, 0.35)


@dataclass(frozen=True, slots=True)
class SyntheticStudy:
    """The folder and the tables of a synthetic study, as ``dataset.load_dataset`` takes them."""

    images: Path
    labels: Path
    ratings: Path


def simulated_ratings(
    severity: Mapping[str, float], classes: Sequence[str], raters: int, seed: int
) -> list[tuple[str, str, str]]:
    """Simulate the answers of a panel of readers about images of known severity.

    A reader sees the severity with a bias, the same for all images, and with noise of the reader's own spread, drawn
    anew for every image, and answers with the nearest class. Readers thus disagree most near the border between two
    classes. Which 3 to 6 of the panel read an image, and their answers, follow from the seed and the image's path.

    Args:
        severity: path -> severity of the image, in steps between classes: 0 is typical of the first class.
        classes: ordinal, least severe first.
        raters: readers on the panel, at least 3.
        seed: of the panel and of its answers.

    Returns:
        Rows of path, reader, class: image by image in the order given, the readers of an image by name.

    Raises:
        ValueError: fewer than 3 readers, or fewer than 2 classes.
    """
    least, most = READERS_PER_IMAGE
    if raters < least or len(classes) < 2:
        raise ValueError(f"expected {least} readers and 2 classes or more, got {raters} and {len(classes)}")
    panel = np.random.default_rng([7, seed])
    bias, noise = panel.normal(0.0, BIAS, raters), panel.uniform(*NOISE, raters)
    names = [f"reader-{number + 1:02d}" for number in range(raters)]
    paths = list(severity)
    pairs = [f"{name} of {path}" for path in paths for name in names]
    errors = ndtri(_uniform([f"answer {pair}" for pair in pairs], seed)).reshape(len(paths), raters)
    turns = _uniform([f"turn {pair}" for pair in pairs], seed).reshape(len(paths), raters)
    counts = least + np.floor(_uniform([f"readers {path}" for path in paths], seed) * (min(most, raters) - least + 1))
    seen = np.array(list(severity.values()))[:, None] + bias + noise * errors
    answers = np.clip(np.floor(seen + 0.5), 0, len(classes) - 1).astype(int)
    return [
        (path, names[reader], classes[answers[image, reader]])
        for image, path in enumerate(paths)
        for reader in sorted(turns[image].argsort()[: int(counts[image])].tolist())
    ]


def write_synthetic_study(
    folder: Path,
    *,
    count: int,
    shares: Mapping[str, float],
    seed: int,
    side: int = 224,
    raters: int = 8,
    difficulty: float = 0.5,
    centres: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticStudy:
    """Write a synthetic study: ``images/``, ``labels.csv`` (with patient and source) and ``ratings.csv``.

    A folder that holds this very study is left as it is. An incomplete one, and one of other parameters, is rewritten.

    Args:
        folder: to write to; made where it is missing. Paths in the tables start from it.
        count: images.
        shares: class -> share of the images, least severe first.
        seed: of images and readers.
        side: of an image, in pixels.
        raters: readers on the panel, see ``simulated_ratings``.
        difficulty: 0 to 1, see ``images.synthetic``.
        centres: that the patients come from; the ``source`` of an image.
        progress: called with the images written and all images.

    Raises:
        SettingsError: the folder holds something else.
        ValueError: see ``plan_pool`` and ``simulated_ratings``.
    """
    study = SyntheticStudy(folder, folder / "labels.csv", folder / "ratings.csv")
    parameters: dict[str, object] = {
        "format": FORMAT, "count": count, "shares": [[*item] for item in shares.items()], "seed": seed, "side": side,
        "raters": raters, "difficulty": difficulty, "centres": centres,
    }  # fmt: skip
    if _marker(folder) == parameters | {"complete": True}:
        return study
    classes = list(shares)
    plans = plan_pool(count, shares, seed, difficulty=difficulty, centres=centres)
    # The readers' draws follow from these names.
    paths = [f"images/film-{index:05d}.png" for index in range(count)]
    severity = {path: plan.latent_severity for path, plan in zip(paths, plans, strict=True)}
    ratings = simulated_ratings(severity, classes, raters, seed)
    _begin(folder, parameters)
    for index, (path, plan) in enumerate(zip(paths, plans, strict=True)):
        content = io.BytesIO()
        Image.fromarray(plan.draw(side)).save(content, "PNG")
        _write(folder / path, content.getvalue())
        if progress is not None:
            progress(index + 1, count)
    rows = [
        (path, classes[plan.severity], plan.patient, f"centre-{plan.centre + 1}")
        for path, plan in zip(paths, plans, strict=True)
    ]
    _write_table(study.labels, ("path", "label", "patient_id", "source"), rows)
    _write_table(study.ratings, ("path", "rater", "label"), ratings)
    _write(folder / MARKER, json.dumps(parameters | {"complete": True}, indent=1).encode())
    return study


def _uniform(names: Sequence[str], seed: int) -> Float64[npt.NDArray[np.float64], " names"]:
    """One draw a name, above 0 and below 1."""
    return ((seeded_draws(names, seed) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _marker(folder: Path) -> object:
    try:
        return json.loads((folder / MARKER).read_bytes())
    except (OSError, ValueError):
        return None


def _begin(folder: Path, parameters: dict[str, object]) -> None:
    """Make the folder, mark it as incomplete, and remove the images of other parameters."""
    begun = parameters | {"complete": False}
    there = _marker(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name} if folder.exists() else set()
    if there is None and names - {f"{MARKER}.half"}:
        raise SettingsError(f"{folder} holds something else than drawn images: name an empty folder, or a new one")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MARKER, json.dumps(begun, indent=1).encode())
    (folder / "images").mkdir(exist_ok=True)
    if there not in (None, begun):
        for old in (folder / "images").glob("film-*.png"):
            old.unlink(missing_ok=True)


def _write(file: Path, content: bytes) -> None:
    # Renamed into place: a reader sees the whole file or none. Without fsync, which thousands of images cannot afford.
    half = file.with_name(f"{file.name}.half")
    half.write_bytes(content)
    half.replace(file)


def _write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    _write(file, pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n").encode())
