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
    would be an answer that nobody gave.

    Args:
        annotations: in any order; which of them count, see ``answers.gather``.
        classes: ordinal, least severe first.

    Returns:
        Labels and exclusions in the order of the image ids. ``raters`` of a label counts the readers whose answer was
        weighed: 1 where a ground truth decided.

    Source:
        Gabriel et al. 2025, arXiv:2508.21263, for the median; the even case is ours.
    """
    answers, exclusions = gather(annotations, classes)
    labels = []
    for answer in answers:
        lower, upper = answer.votes[(len(answer.votes) - 1) // 2], answer.votes[len(answer.votes) // 2]
        labels.append(
            Label(image=answer.image, value=classes[upper], raters=len(answer.votes), disputed=lower != upper)
        )
    return Consensus(tuple(labels), tuple(exclusions))
