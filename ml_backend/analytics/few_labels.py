"""Classes with few labels: when a first network can be trained without them, and which of them are sought."""

from collections.abc import Mapping
from typing import Final

TRAINABLE: Final = 2
"""Classes with enough labels from which on a network is trained."""
FEW: Final = 0.5
"""Of the labels of the most frequent class: a class that has more is not sought."""


def can_train(labels_per_class: Mapping[str, int], minimum: int) -> bool:
    """Whether a first network is due: two classes have ``minimum`` labels, and the others are not waited for."""
    return sum(count >= minimum for count in labels_per_class.values()) >= TRAINABLE


def seeks(order: str, weights: object) -> bool:
    """Whether classes with few labels are sought: random stays random, and an untrained backbone finds no class.

    Args:
        order: strategy that ranks the other images, of the cold start or of a network.
        weights: the option; ``none`` for an untrained backbone.
    """
    return order != "random" and weights != "none"


def sought_classes(labels_per_class: Mapping[str, int], minimum: int) -> tuple[str, ...]:
    """The classes whose images are sought, fewest labels first.

    Those that have a label, fewer than ``minimum``, and at most half as many as the most frequent class.

    Args:
        labels_per_class: labels so far.
        minimum: labels below which a class has few.
    """
    most = max(labels_per_class.values(), default=0)
    few = [name for name, count in labels_per_class.items() if 0 < count < minimum and count <= FEW * most]
    return tuple(sorted(few, key=lambda name: labels_per_class[name]))
