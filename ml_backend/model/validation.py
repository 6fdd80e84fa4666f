"""How good a network is on labels that it was not trained on."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from sklearn.metrics import roc_auc_score


def accuracy(
    probs: Float[npt.NDArray[np.float32], "images classes"], targets: Int[npt.NDArray[np.int64], " images"]
) -> float:
    """Share of the images whose most probable class is theirs; 0 to 1.

    Raises:
        ValueError: no image.
    """
    if not len(targets):
        raise ValueError("the accuracy of no image is not defined")
    return float((probs.argmax(axis=1) == targets).mean())


def auroc(
    probs: Float[npt.NDArray[np.float32], "images classes"], targets: Int[npt.NDArray[np.int64], " images"]
) -> float | None:
    """Area under the ROC curve, one class against the rest, the plain mean over the classes that occur.

    Returns:
        0 to 1, 0.5 for chance; None where fewer than two classes occur.

    Source:
        Hand & Till 2001 discuss the alternatives; this is scikit-learn's ``ovr`` with ``macro``.
    """
    present = np.unique(targets)
    if len(present) < 2:
        return None
    return float(np.mean([roc_auc_score(targets == index, probs[:, index]) for index in present]))


def recalls(
    probs: Float[npt.NDArray[np.float32], "images classes"],
    targets: Int[npt.NDArray[np.int64], " images"],
    classes: Sequence[str],
) -> dict[str, float | None]:
    """Of every class, the share of its images whose most probable class it is; 0 to 1, None where it has no image."""
    found = probs.argmax(axis=1)
    return {
        name: float((found[targets == index] == index).mean()) if (targets == index).any() else None
        for index, name in enumerate(classes)
    }
