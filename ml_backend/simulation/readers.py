"""Readers of a simulation: who answers about an image, and with which class.

Real ratings are played back; synthetic readers answer by a confusion matrix over the true class.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import TypeAdapter, ValidationError

from ml_backend.errors import SettingsError, did_you_mean
from ml_backend.schemas import Annotation
from ml_backend.seeding import seeded_draws
from ml_backend.simulation.dataset import READ_AT, DataSet

Matrix: TypeAlias = dict[str, dict[str, float]]
"""True class -> answer -> its probability; each row adds up to 1."""

NAMED: Final[Mapping[str, tuple[float, Callable[[int], bool]]]] = {
    "good": (0.9, lambda steps: abs(steps) == 1),
    "fair": (0.75, lambda steps: abs(steps) == 1),
    "poor": (0.5, lambda steps: steps != 0),
    "severe": (0.6, lambda steps: steps == 1),
    "mild": (0.6, lambda steps: steps == -1),
}
"""Synthetic reader -> probability of the true class, and whether an answer so many classes above it is another one."""
TOLERANCE: Final = 1e-6  # of a row's sum
_FORMS: Final = (
    "expected names such as good*4,poor, a CSV file with columns reader,class and one column for each class, or a JSON "
    "file {reader: rows of probabilities}"
)


def named_matrix(name: str, classes: Sequence[str]) -> Matrix:
    """Confusion matrix of a reader of ``NAMED``.

    ``good`` and ``fair`` err to the next class, ``poor`` to any, ``severe`` and ``mild`` to the next on one side; the
    wrong answers share the rest evenly. Where there is none, as for ``severe`` at the most severe class, the answer is
    the true class.
    """
    right, errs = NAMED[name]
    matrix: Matrix = {}
    for true, row in enumerate(classes):
        wrong = [answer for place, answer in enumerate(classes) if errs(place - true)]
        matrix[row] = {row: right if wrong else 1.0} | dict.fromkeys(wrong, (1.0 - right) / max(len(wrong), 1))
    return matrix


def read_readers(text: str, classes: Sequence[str]) -> dict[str, Matrix]:
    """Parse ``--readers``.

    Args:
        text: names of ``NAMED`` with their numbers (``good*4,poor``), a CSV file (``reader,class`` and a column for
            each answer), a JSON file, or JSON itself (``{"anna": [[0.9, 0.1], [0.2, 0.8]]}``; rows and columns in the
            order of the classes).
        classes: of the data, least severe first.

    Returns:
        Reader -> confusion matrix.

    Raises:
        SettingsError: names the reader, the class and the value; what was expected and the way out.
    """
    try:
        if text.lstrip().startswith("{"):
            return _checked(_from_json(text, classes), classes)
        if text.endswith(".json"):
            return _checked(_from_json(Path(text).read_text(encoding="utf-8-sig"), classes), classes)
        if text.endswith(".csv"):
            return _checked(_from_csv(Path(text).read_text(encoding="utf-8-sig"), classes), classes)
        return _from_names(text, classes)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--readers {text!r} cannot be read: {error}; {_FORMS}") from error
    except ValueError as error:
        raise SettingsError(f"--readers {text!r}: {error}") from error


def _from_names(text: str, classes: Sequence[str]) -> dict[str, Matrix]:
    readers: dict[str, Matrix] = {}
    for part in text.split(","):
        name, star, count = (piece.strip() for piece in part.partition("*"))
        if name not in NAMED:
            raise ValueError(
                f"there is no reader {name!r}; known are {', '.join(NAMED)}{did_you_mean(name, NAMED)}; {_FORMS}"
            )
        if star and not (count.isdecimal() and int(count)):
            raise ValueError(f"{part.strip()!r}: expected a number of readers from 1 after the *, as in good*4")
        for _ in range(int(count or 1)):
            readers[f"{name}-{len(readers) + 1}"] = named_matrix(name, classes)
    return readers


def _from_json(text: str, classes: Sequence[str]) -> dict[str, Matrix]:
    expected = (
        f"expected {len(classes)} rows of {len(classes)} numbers, in the order of the classes {', '.join(classes)}"
    )
    try:
        found = TypeAdapter(dict[str, list[list[float]]]).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'/'.join(map(str, first['loc']))}: {first['msg']}; {expected} for each reader") from error
    readers: dict[str, Matrix] = {}
    for reader, rows in found.items():
        if [len(row) for row in rows] != [len(classes)] * len(classes):
            raise ValueError(f"reader {reader!r} has {len(rows)} rows of {len(rows[0]) if rows else 0}: {expected}")
        readers[reader] = {name: dict(zip(classes, row, strict=True)) for name, row in zip(classes, rows, strict=True)}
    return readers


def _from_csv(text: str, classes: Sequence[str]) -> dict[str, Matrix]:
    table = csv.DictReader(text.splitlines())
    columns = [name.strip() for name in table.fieldnames or ()]
    answers = [name for name in columns if name not in {"reader", "class"}]
    if len(answers) + 2 != len(columns) or set(answers) != set(classes):
        raise ValueError(
            f"its columns are {', '.join(columns) or 'none'}: expected reader, class, {', '.join(classes)}; "
            "the last are the classes of the data, which --task names and joins"
        )
    readers: dict[str, Matrix] = {}
    for line, cells in enumerate(table, start=2):
        row = {name.strip(): (cell or "").strip() for name, cell in cells.items() if name is not None}
        matrix = readers.setdefault(row["reader"], {})
        if row["class"] in matrix:
            raise ValueError(
                f"line {line}: reader {row['reader']!r} has a second row of class {row['class']!r}; keep one"
            )
        matrix[row["class"]] = {name: _number(row[name]) for name in answers}
    return readers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _checked(readers: dict[str, Matrix], classes: Sequence[str]) -> dict[str, Matrix]:
    if not readers:
        raise ValueError(f"it has no reader; {_FORMS}")
    for reader, matrix in readers.items():
        if odd := sorted(set(matrix) ^ set(classes)):
            which = "a row of" if odd[0] in matrix else "no row of"
            raise ValueError(
                f"reader {reader!r} has {which} class {odd[0]!r}: expected one for each class of the data, "
                f"{', '.join(classes)}; --task names and joins them"
            )
        for name, row in matrix.items():
            total = math.fsum(row.values())
            # Negated comparisons, so that NaN is caught.
            if not (min(row.values()) >= 0 and abs(total - 1) <= TOLERANCE):
                raise ValueError(
                    f"reader {reader!r}, class {name!r}: {', '.join(f'{share:g}' for share in row.values())} add up to "
                    f"{total:g}; expected probabilities from 0 to 1 that add up to 1: correct the row"
                )
    return readers


def answers_of(data: DataSet, readers: Mapping[str, Matrix], reads: int | None, seed: int) -> list[Annotation]:
    """The answers about every image outside the test side, in the order in which its readers have their turns.

    Who reads an image, and what a synthetic reader answers, follows from the seed, the reader and the image alone: two
    strategies or rules meet the same answers, and one more read an image adds to those that were there.

    Args:
        data: with the truth, and with ``ratings`` where there are no synthetic readers.
        readers: synthetic readers; where there are none, the ratings are played back.
        reads: answers an image at most; None for all.
        seed: of the run.

    Returns:
        None at all where the data set has neither readers nor ratings.
    """
    rated: dict[str, dict[str, str | None]] = {}
    for rating in data.ratings:
        rated.setdefault(rating.image.id, {})[rating.rater] = rating.value
    images = [image for image in data.images if data.split[image.id] != "test"]
    pairs = [(image, reader) for image in images for reader in (readers or rated.get(image.id, {}))]
    names = [f"{reader} of {image.id}" for image, reader in pairs]
    turns = seeded_draws(names, seed, "turn ").tolist()
    draws = (seeded_draws(names, seed, "answer ") / 2.0**64).tolist()
    by_image: dict[str, list[int]] = {}
    for place, (image, _) in enumerate(pairs):
        by_image.setdefault(image.id, []).append(place)
    answers = []
    for image_id, found in by_image.items():
        for place in sorted(found, key=turns.__getitem__)[:reads]:
            image, reader = pairs[place]
            value = _drawn(readers[reader][data.truth[image_id]], draws[place]) if readers else rated[image_id][reader]
            answers.append(Annotation(image=image, rater=reader, value=value, updated_at=READ_AT))
    return answers


def _drawn(row: Mapping[str, float], draw: float) -> str:
    """The answer in whose part of [0, 1) the draw lies."""
    reached, answer = 0.0, ""
    for name, share in row.items():
        if share > 0.0:
            answer = name
            if draw < (reached := reached + share):
                break
    return answer
