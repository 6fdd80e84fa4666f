"""Knows the label of every image, and tells only those that a reader would have given by now."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ml_backend.engine.start import random_order
from ml_backend.records import Annotation, Exclusion, ImageRef, Label, natural_order

__all__ = ["Oracle", "read_truth"]

RATER = "oracle"
FIRST_ANSWER = datetime(2000, 1, 1, tzinfo=UTC)  # a fixed clock, so that two runs write the same annotations


class Oracle:
    """All labels of a data set, revealed image by image. Satisfies ``engine.ports.LabelSource``.

    Args:
        truth: one label an image.

    Raises:
        ValueError: an image stands in the truth twice, or the truth is empty.
    """

    def __init__(self, truth: Iterable[Label]) -> None:
        # Sorted: the pool must not depend on the order of the table's rows.
        ordered = sorted(truth, key=lambda label: natural_order(label.image.id))
        repeated = [image for image, times in Counter(label.image.id for label in ordered).items() if times > 1]
        if repeated:
            raise ValueError(f"image {repeated[0]!r} has more than one true label: keep one row an image")
        if not ordered:
            raise ValueError("the truth holds no image: give at least one")
        self._truth = {label.image.id: label for label in ordered}
        self._revealed: list[str] = []

    @property
    def revealed(self) -> tuple[str, ...]:
        """The images labelled so far, in the order in which they were labelled."""
        return tuple(self._revealed)

    def annotations(self) -> Sequence[Annotation]:
        """One answer for every revealed image, a second apart."""
        return [
            Annotation(
                image=self._truth[image_id].image,
                rater=RATER,
                value=self._truth[image_id].value,
                updated_at=FIRST_ANSWER + timedelta(seconds=number),
            )
            for number, image_id in enumerate(self._revealed)
        ]

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The pool: every image that is not revealed yet."""
        known = set(self._revealed)
        return [label.image for image_id, label in self._truth.items() if image_id not in known], []

    def reveal(self, image_ids: Iterable[str]) -> None:
        """Label these images, in this order.

        Raises:
            ValueError: an image is unknown or was labelled before; nothing is revealed then.
        """
        asked = list(image_ids)
        seen = set(self._revealed)
        for image_id in asked:
            if image_id not in self._truth:
                raise ValueError(f"the oracle knows no image {image_id!r}; it knows {len(self._truth)} others")
            if image_id in seen:
                raise ValueError(f"image {image_id!r} was labelled before: a round may ask for it only once")
            seen.add(image_id)
        self._revealed += asked

    def start_set(self, per_class: int, seed: int) -> tuple[str, ...]:
        """Draw the images that are labelled before the first round.

        Args:
            per_class: images of every class.
            seed: of the draw; the order of the truth's rows does not matter.

        Raises:
            ValueError: a class has fewer images.
        """
        by_class: dict[str, list[ImageRef]] = {}
        for label in self._truth.values():
            by_class.setdefault(label.value, []).append(label.image)
        start: list[str] = []
        for name, images in sorted(by_class.items()):
            if len(images) < per_class:
                raise ValueError(f"class {name!r} has {len(images)} images but the start set needs {per_class}")
            start += random_order(images, 1, seed).image_ids[:per_class]
        return tuple(start)


def read_truth(table: Path, classes: Sequence[str]) -> list[Label]:
    """Read a table with the columns ``path``, ``label`` and, where patients are known, ``patient_id``.

    Args:
        table: CSV in UTF-8 with a header; further columns are ignored. Paths stay as they are written.
        classes: the labels that may stand in it.

    Raises:
        ValueError: it is no CSV in UTF-8, a column is missing, or a row has no path or an unknown label; names the line
            and the column.
    """
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        try:
            missing = {"path", "label"} - set(rows.fieldnames or ())
            if missing:
                raise ValueError(
                    f"{table} has no column {' and no column '.join(sorted(missing))}: wanted is path,label"
                )
            return [_label(row, f"{table}, line {rows.line_num}", classes) for row in rows]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{table} cannot be read: {error}; expected a CSV file in UTF-8") from error


def _label(row: dict[str, str | None], where: str, classes: Sequence[str]) -> Label:
    path, value, patient = ((row.get(column) or "").strip() for column in ("path", "label", "patient_id"))
    if not path:
        raise ValueError(f"{where}, column path: empty, give the image's path")
    if value not in classes:
        raise ValueError(f"{where}, column label: {value!r} is none of {', '.join(classes)}")
    return Label(image=ImageRef(id=path, uri=path, patient_id=patient or None), value=value, raters=1)
