"""The demo's images and their truth: drawn chest films, or a visitor's own folder with a table."""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ml_backend.errors import SettingsError
from ml_backend.images.synthetic import draw_pool
from ml_backend.schemas import patient_of
from ml_backend.simulation.tables import read_rows, unlike_spellings

DRAWN_CLASSES = ("normal", "moderate", "severe")
# The imbalance of the paper's chest films: arXiv:2508.21263.
SHARES = {"normal": 0.14, "moderate": 0.36, "severe": 0.50}
COLUMNS = ("path", "label")
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Film:
    """One image to upload. ``label`` stays with the simulated readers."""

    name: str  # of the uploaded file: unique, and silent about label and patient
    content: bytes  # PNG or JPEG
    label: str
    patient_id: str | None


def draw_films(count: int, seed: int, side: int) -> list[Film]:
    """Draw chest-film phantoms, ``side`` pixels square, at 14 % normal, 36 % moderate and 50 % severe."""
    arrays, labels, patients = draw_pool(count, [SHARES[name] for name in DRAWN_CLASSES], seed, side)
    films = []
    for i, (array, label, patient) in enumerate(zip(arrays, labels, patients, strict=True)):
        content = io.BytesIO()
        Image.fromarray(array).save(content, "PNG")
        films.append(Film(f"film-{i:05d}.png", content.getvalue(), DRAWN_CLASSES[int(label)], patient))
    return films


def labels_in(table: Path) -> set[str]:
    """The labels that a table names, whatever its images are.

    Raises:
        SettingsError: the table cannot be read.
    """
    rows = read_rows(table, COLUMNS, lambda line, row: (line, row["label"]), whole=unlike_spellings)
    return {label for _, label in rows}


def read_films(folder: Path, table: Path, classes: Sequence[str]) -> list[Film]:
    """Read a visitor's images.

    Args:
        folder: that the paths in the table start from.
        table: CSV with the columns ``path`` and ``label``, and ``patient_id`` where it is known.
        classes: that a label may name.

    Raises:
        SettingsError: names every bad row by its line and column (the first ten of many).
    """
    if not folder.is_dir():
        raise SettingsError(f"IMAGES={str(folder)!r} is no folder: name the folder that the paths in LABELS start from")
    numbers = itertools.count()
    return read_rows(table, COLUMNS, lambda _, row: _film(folder, row, classes, next(numbers)), key=("path",))


def _film(folder: Path, row: Mapping[str, str], classes: Sequence[str], index: int) -> Film:
    """One row as a film.

    Raises:
        ValueError: names the column, the value seen and the value wanted.
    """
    path, label = row["path"], row["label"]
    if label not in classes:
        raise ValueError(f"column label: {label!r} is no class; known are {', '.join(classes)}")
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"column path: {path!r} is no path inside {folder}")
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"column path: {path!r} is no {', '.join(SUFFIXES)} file")
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"column path: {path!r} is no readable image ({error})") from error
    # The visitor's own file names may hold names of patients or of classes; Label Studio shows them to readers.
    return Film(f"film-{index:05d}{file.suffix.lower()}", content, label, patient_of(row.get("patient_id")))
