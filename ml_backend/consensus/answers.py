"""Which annotations count: what every consensus rule agrees on before it weighs a single vote."""

from collections.abc import Sequence
from dataclasses import dataclass

from ml_backend.records import Annotation, Exclusion, ImageRef, natural_order

__all__ = ["Answers", "gather"]


@dataclass(frozen=True, slots=True)
class Answers:
    """The votes about one image: never empty, every one a class.

    Attributes:
        image: as the latest of its annotations has it.
        votes: index of the class in the ordinal list, least severe first; one a reader, in ascending order.
        ground_truth: the one vote is an annotation marked as ground truth, which overrides the readers.
    """

    image: ImageRef
    votes: tuple[int, ...]
    ground_truth: bool = False


def gather(annotations: Sequence[Annotation], classes: Sequence[str]) -> tuple[list[Answers], list[Exclusion]]:
    """Sort the annotations by image and keep those that count.

    Of one reader's annotations of an image the latest counts. If any annotation of the image is marked as ground
    truth, the latest of those alone counts, whoever made it. A reader who skipped the image or called it unreadable
    casts no vote.

    Args:
        annotations: in any order.
        classes: ordinal, least severe first.

    Returns:
        Images with at least one vote, and the images that can have no label, each with the reason; both in the order
        of their ids, however the annotations came.
    """
    by_image: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        by_image.setdefault(annotation.image.id, []).append(annotation)
    answers: list[Answers] = []
    exclusions: list[Exclusion] = []
    for image_id in sorted(by_image, key=natural_order):
        found = _of_one_image(by_image[image_id], classes)
        if isinstance(found, Answers):
            answers.append(found)
        else:
            exclusions.append(found)
    return answers, exclusions


def _of_one_image(annotations: Sequence[Annotation], classes: Sequence[str]) -> Answers | Exclusion:
    # Equal times must not leave the choice to the order of arrival: then the more severe answer counts.
    severity = {name: index for index, name in enumerate(classes)}
    in_time = sorted(annotations, key=lambda a: (a.updated_at, severity.get(a.value or "", -1), a.value or "", a.rater))
    image = in_time[-1].image
    truths = [annotation for annotation in in_time if annotation.ground_truth]
    latest = truths[-1:] or list({annotation.rater: annotation for annotation in in_time}.values())
    values = [annotation.value for annotation in latest if annotation.value is not None]
    if unknown := sorted(set(values) - severity.keys()):
        return Exclusion(
            image_id=image.id,
            reason=f"image {image.id} is labelled {', '.join(map(repr, unknown))}, which is no class of this project: "
            f"known are {', '.join(classes)}; correct the annotation, or, if a class was renamed in Label Studio, add "
            f"alias={unknown[0]!r} to its Choice, which keeps these labels",
        )
    if not values:
        who = "its ground truth" if truths else f"every one of its {len(latest)} readers"
        if all(annotation.unanswered for annotation in latest):
            return Exclusion(
                image_id=image.id,
                reason=f"unanswered: {who} gave image {image.id} no answer to the question: it is optional, or its "
                "condition was not met",
            )
        return Exclusion(image_id=image.id, reason=f"unreadable: {who} skipped image {image.id} or gave it no class")
    return Answers(image, tuple(sorted(severity[value] for value in values)), ground_truth=bool(truths))
