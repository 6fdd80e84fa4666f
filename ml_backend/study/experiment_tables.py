"""Tables that an experiment makes of the ones it was given: of two centres, of a pool of a given size, of two sides."""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ml_backend.acquisition import seeded_order
from ml_backend.errors import SettingsError
from ml_backend.records import ImageRef
from ml_backend.simulation.dataset import DataSet
from ml_backend.storage.files import write_atomically
from ml_backend.study.experiment_ground import Tables

__all__ = ["across_centres", "two_centres", "with_pool_of", "without_validation"]


def two_centres(data: DataSet) -> tuple[str, str]:
    """The two sources with the most images, by name.

    Raises:
        SettingsError: there are fewer than two.
    """
    sizes = Counter((data.source or {}).values())
    if len(sizes) < 2:
        known = ", ".join(sizes) or "none at all"
        raise SettingsError(
            f"cross-centre needs images of two sources, and the labels name {known}: add a column `source` with the "
            "hospital or the machine of every image"
        )
    first, second = sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:2])
    return first, second


def across_centres(tables: Tables, data: DataSet, trained: str, tested: str, file: Path) -> Tables:
    """Training and validation side of one centre, test side of one (the same or another).

    The sides are those of the whole table: no patient is on two of them, also one who was in both centres. Readers'
    answers are left out: the label is the truth.

    Args:
        tables: that ``data`` was read from.
        data: all centres.
        trained: whose images are learnt from.
        tested: whose images are judged.
        file: of the new table.
    """
    source = data.source or {}
    kept = [
        image
        for image in data.images
        if source.get(image.id) == (tested if data.split[image.id] == "test" else trained)
    ]
    return _written(tables, data, kept, file)


def with_pool_of(tables: Tables, data: DataSet, pool: int, initial: int, file: Path) -> Tables:
    """A training side that is a start set and a pool of so many images; all of it where it is smaller.

    Which images stay follows from their ids. The other sides stay as they are.

    Args:
        tables: that ``data`` was read from.
        data: whose training side is cut.
        pool: images without a label.
        initial: labels of every class at the start: so many of every class stay, if there are.
        file: of the new table.
    """
    train = [image for image in data.images if data.split[image.id] == "train"]
    order = [train[place].id for place in seeded_order([f"pool of {image.id}" for image in train], 0)]
    first = {
        image_id
        for name in data.classes
        for image_id in [image_id for image_id in order if data.truth[image_id] == name][:initial]
    }
    in_turn = [*(i for i in order if i in first), *(i for i in order if i not in first)]
    stay = set(in_turn[: pool + initial * len(data.classes)])
    kept = [image for image in data.images if data.split[image.id] != "train" or image.id in stay]
    return _written(tables, data, kept, file)


def without_validation(tables: Tables, data: DataSet, file: Path) -> Tables:
    """The validation side joins the training side: validation is drawn from the labels then, as in a live loop.

    Args:
        tables: that ``data`` was read from.
        data: all sides.
        file: of the new table; where there is no validation side, none is needed.
    """
    if not data.labels("val"):
        return tables
    joined = {image: "train" if side == "val" else side for image, side in data.split.items()}
    return _written(tables, replace(data, split=joined), data.images, file)


def _written(tables: Tables, data: DataSet, images: Iterable[ImageRef], file: Path) -> Tables:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "patient_id", "split"))
    writer.writerows((image.id, data.truth[image.id], image.patient_id or "", data.split[image.id]) for image in images)
    write_atomically(file, text.getvalue().encode())
    return replace(tables, labels=file, ratings=None, task=";".join(data.classes))
