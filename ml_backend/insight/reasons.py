"""Why an image was chosen, in one plain line that depends on the strategy. Torch-free."""

import math
from collections.abc import Callable
from typing import Final

from ml_backend.insight.records import ImageInsight
from ml_backend.strategies import STRATEGIES

__all__ = ["CONTROL", "reason", "reason_unseen"]

CONTROL: Final = "by chance, to measure what the rest gains"

_UNSEEN: Final[dict[str, str]] = {
    "random": "by chance",
    "typiclust": "typical of a group of images that has no label yet",
    "core_set": "unlike every image that has a label",
}


def reason(strategy: str, image: ImageInsight) -> str:
    """Why a strategy put an image into its batch.

    Args:
        strategy: of the catalogue; of any other the score is told.
        image: what the network said of it.
    """
    if image.control:
        return CONTROL
    return _SEEN[strategy](image) if strategy in _SEEN else f"score {image.score:.3g}"


def reason_unseen(strategy: str, *, control: bool = False) -> str:
    """The same, where no network has looked at the image yet, or what it said is not kept."""
    if control:
        return CONTROL
    if strategy in _UNSEEN:
        return _UNSEEN[strategy]
    return STRATEGIES[strategy].summary if strategy in STRATEGIES else "what it said of it is not kept"


def _two_most_probable(image: ImageInsight) -> tuple[str, str]:
    # Stable: of equal classes the least severe comes first, as with ``suggestion``.
    ordered = sorted(image.probs.items(), key=lambda item: -item[1])
    told = [f"{name} {_percent(probability)}" for name, probability in ordered[:2]]
    return (told[0], told[1]) if len(told) > 1 else ("its classes", "none other")


def _disagreement(image: ImageInsight) -> str:
    return f"the passes disagree: {_of_the_most(image.epistemic, image)} of what is possible"


def _of_the_most(nats: float, image: ImageInsight) -> str:
    """Information in nats as a share of the most that a label can tell."""
    return _percent(nats / math.log(max(len(image.probs), 2)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_ALIKE: Final = "differs from the others of its batch"
_SEEN: Final[dict[str, Callable[[ImageInsight], str]]] = {
    "badge": lambda _: f"{_ALIKE}: would teach the network something else than they do",
    "bald": _disagreement,
    "batch_bald": lambda image: f"{_ALIKE}: adds {_of_the_most(image.score, image)} of what a label can tell",
    "core_set": lambda image: f"{_ALIKE}: {image.score:.3g} from the nearest labelled or chosen image",
    "entropy": lambda image: "undecided between {} and {}".format(*_two_most_probable(image)),
    "least_confidence": lambda image: f"unsure of its own answer, {_two_most_probable(image)[0]}",
    "margin": lambda image: "hardly any margin between {} and {}".format(*_two_most_probable(image)),
    "mean_std": lambda image: f"the passes disagree: {100 * image.score:.0f} points about a class's probability",
    "power_bald": lambda image: f"{_disagreement(image)}; spread over the pool by chance",
    "random": lambda _: "by chance",
    "typiclust": lambda _: f"{_ALIKE}: typical of a group of images that has no label yet",
    "variation_ratios": lambda image: f"{_percent(image.score)} of the passes vote against the most voted class",
}
