"""How many labels are ground truths, and how many readers' answers they override. Pure."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ml_backend.consensus import RULES
from ml_backend.consensus.answers import gather
from ml_backend.label_studio.duplicates import TaskImages
from ml_backend.label_studio.formats import LabelConfig, training_classes
from ml_backend.label_studio.labels import annotations_in
from ml_backend.label_studio.mirror import Mirror
from ml_backend.records import Annotation, Record
from ml_backend.settings import ProjectOptions

__all__ = ["GroundTruths", "ground_truths"]

Count = Annotated[int, Field(ge=0)]


class GroundTruths(Record):
    """Annotations marked as ground truth, and what they do.

    Attributes:
        annotations: that are marked.
        labels: images whose label they decide; 0 where they do not override.
        overridden: answers of readers that differ from these labels.
        sentence: for the owner; empty where no annotation is marked.
    """

    annotations: Count
    labels: Count
    overridden: Count
    sentence: str


def ground_truths(
    mirror: Mirror, config: LabelConfig, options: ProjectOptions, images: TaskImages | None = None
) -> GroundTruths:
    """Count them.

    Args:
        mirror: of the last reading.
        config: the project's question.
        options: its owner's.
        images: of the mirror; by default as the addresses tell them apart.

    Raises:
        SettingsError: fewer than two classes are left.
    """
    marked = sum(bool(item.get("ground_truth")) for task in mirror.tasks.values() for item in task.annotations)
    if not marked:
        return GroundTruths(annotations=0, labels=0, overridden=0, sentence="")
    if options.ground_truth != "override":
        does = {"reader": "count as answers of readers", "ignore": "are left out"}[options.ground_truth]
        sentence = f"{marked} annotations are marked as ground truth and {does} (ground_truth={options.ground_truth})."
        return GroundTruths(annotations=marked, labels=0, overridden=0, sentence=sentence)
    annotations, _ = annotations_in(mirror, config, options, images)
    labels, overridden = _counted(annotations, training_classes(config, options), options)
    are = f"{labels} label{' is a ground truth; it overrides' if labels == 1 else 's are ground truths; they override'}"
    sentence = f"{are} {overridden} differing answer{'' if overridden == 1 else 's'} of readers."
    return GroundTruths(annotations=marked, labels=labels, overridden=overridden, sentence=sentence)


def _counted(annotations: Sequence[Annotation], classes: Sequence[str], options: ProjectOptions) -> tuple[int, int]:
    answers, _ = gather(annotations, classes)
    value_of = {label.image.id: label.value for label in RULES[options.consensus](annotations, classes).labels}
    decided = [one for one in answers if one.ground_truth]
    return len(decided), sum(one.disputes(value_of[one.image.id]) for one in decided)
