"""What a round sees is noted on the way: the labels and the pool that its manifest stands for."""

from collections.abc import Sequence

from ml_backend.consensus.outcome import Consensus
from ml_backend.engine.ports import ConsensusRule, LabelSource
from ml_backend.records import Annotation, Exclusion, ImageRef, natural_order
from ml_backend.storage.manifests import RoundInputs

__all__ = ["NotedInputs"]


class NotedInputs:
    """A label source and a rule that remember what they last said. Satisfies ``engine.ports.LabelSource``.

    Args:
        labels: the source itself.
        rule: the rule itself.
    """

    def __init__(self, labels: LabelSource, rule: ConsensusRule) -> None:
        self._labels = labels
        self._rule = rule
        self._consensus = Consensus(labels=(), exclusions=())
        self._pool: Sequence[ImageRef] = ()

    def annotations(self) -> Sequence[Annotation]:
        return self._labels.annotations()

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        self._pool, unusable = self._labels.unlabelled()
        return self._pool, unusable

    def consensus(self, annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
        """Satisfies ``engine.ports.ConsensusRule``."""
        self._consensus = self._rule(annotations, classes)
        return self._consensus

    def noted(self) -> RoundInputs:
        """The labels and the pool of the last call of each, in the order of the image ids."""
        return RoundInputs(
            labels=tuple(sorted(self._consensus.labels, key=lambda label: natural_order(label.image.id))),
            pool=tuple(sorted(self._pool, key=lambda image: natural_order(image.id))),
        )
