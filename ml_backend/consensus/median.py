"""The paper's rule: the label is the median of the readers' answers."""

from collections.abc import Sequence

from ml_backend.consensus.answers import gather
from ml_backend.consensus.outcome import Consensus
from ml_backend.records import Annotation, Label

__all__ = ["median"]


def median(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The ordinal median of each image's answers.

    With an odd number of readers it is the middle answer. With an even number the two middle answers can differ; then
    the more severe one is taken, since a disease overlooked costs more than one suspected, and the label is marked as
    disputed. That holds for ``normal`` against ``severe`` too: an ordinal scale has no midpoint, and ``moderate``
    would be an answer that nobody gave. Ground truths are weighed in the same way; the label is marked as disputed
    where any two of them differ, or where they override a reader's answer that differs.

    Args:
        annotations: in any order; which of them count, see ``answers.gather``.
        classes: ordinal, least severe first.

    Returns:
        Labels and exclusions in the order of the image ids. ``raters`` of a label counts the readers whose answer was
        weighed; where ground truths decided, these.

    Source:
        Gabriel et al. 2025, arXiv:2508.21263, for the median; the even case is ours.
    """
    answers, exclusions = gather(annotations, classes)
    labels = []
    for answer in answers:
        lower, upper = answer.votes[(len(answer.votes) - 1) // 2], answer.votes[len(answer.votes) // 2]
        value, disputed = classes[upper], lower != upper
        if answer.ground_truth:
            disputed = len(set(answer.votes)) > 1 or answer.unsure or answer.disputes(value) > 0
        labels.append(Label(image=answer.image, value=value, raters=len(answer.votes), disputed=disputed))
    return Consensus(tuple(labels), tuple(exclusions))
