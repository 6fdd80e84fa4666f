"""Whether a project has a network: a fact of its rounds, whichever of them was the last."""

from collections.abc import Iterable, Sequence

from ml_backend.records import Record
from ml_backend.storage.briefs import RoundBrief

__all__ = ["KnownNetwork", "known_network"]


class KnownNetwork(Record):
    """The newest network of a project. Its file may be deleted by now: what it has taught the order stays.

    Attributes:
        round_id: of the round that trained it.
        classes: that it tells apart.
        ranks: whether the newest order was made by a network. Not so where labels were deleted or a class was added
            since, so that a class lacks its minimum.
    """

    round_id: str
    classes: tuple[str, ...]
    ranks: bool

    def knows(self, classes: Sequence[str]) -> bool:
        """Whether these are the classes that it tells apart."""
        return self.classes == tuple(classes)


def known_network(briefs: Iterable[RoundBrief]) -> KnownNetwork | None:
    """The newest network; None before the first training.

    Args:
        briefs: of all rounds, oldest first.
    """
    found: RoundBrief | None = None
    ranks = False
    for brief in briefs:
        ranks = brief.by_network
        if brief.trained:
            found = brief
    if found is None:
        return None
    return KnownNetwork(round_id=found.request.round_id, classes=found.request.classes, ranks=ranks)
