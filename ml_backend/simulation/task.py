"""Which labels of a table make which class."""

from collections.abc import Mapping
from dataclasses import dataclass

from ml_backend.errors import SettingsError

__all__ = ["TaskMapping", "parse_task"]


@dataclass(frozen=True, slots=True)
class TaskMapping:
    """The classes of a study.

    Attributes:
        classes: ordinal, least severe first.
        of: label of the table -> class; a label that is not in it belongs to no class.
    """

    classes: tuple[str, ...]
    of: Mapping[str, str]


def parse_task(text: str) -> TaskMapping:
    """Read ``normal=normal;diseased=bacterial,viral``: classes from least to most severe, each with its labels.

    A class without ``=`` is the label of that name: ``normal;moderate;severe`` only states the order.

    Raises:
        SettingsError: fewer than two classes, an empty name, or a class or a label that is mentioned twice.
    """
    of: dict[str, str] = {}
    classes: list[str] = []
    for part in (part.strip() for part in text.split(";")):
        if not part:  # a semicolon at the end
            continue
        name, equals, listed = (piece.strip() for piece in part.partition("="))
        labels = [label.strip() for label in listed.split(",")] if equals else [name]
        if not name or not all(labels):
            raise _refused(text, f"{part!r} has an empty name")
        if name in classes:
            raise _refused(text, f"class {name!r} is there twice")
        classes.append(name)
        for label in labels:
            if of.setdefault(label, name) != name or labels.count(label) > 1:
                raise _refused(text, f"label {label!r} is there twice")
    if len(classes) < 2:
        raise _refused(text, f"{len(classes)} classes, 2 are the least")
    return TaskMapping(tuple(classes), of)


def _refused(text: str, reason: str) -> SettingsError:
    return SettingsError(
        f"task {text!r}: {reason}; write it as 'normal=normal;diseased=bacterial,viral', least severe class first"
    )
