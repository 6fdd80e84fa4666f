"""A consensus rule outside ml_backend."""

from collections.abc import Sequence

from ml_backend.consensus import Consensus
from ml_backend.consensus.rules import gather
from ml_backend.schemas import Annotation, Label


def most_severe(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The most severe answer of each image.

    Args:
        annotations: of all readers, in any order.
        classes: ordinal, least severe first.
    """
    answers, exclusions = gather(annotations, classes)
    labels = tuple(
        Label(
            image=answer.image,
            value=classes[answer.votes[-1]],
            raters=len(answer.votes),
            disputed=answer.votes[0] != answer.votes[-1],
        )
        for answer in answers
    )
    return Consensus(labels, tuple(exclusions))
