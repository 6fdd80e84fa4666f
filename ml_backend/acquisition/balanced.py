"""A batch divided over the classes: class-stratified entropy."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ml_backend.acquisition.inputs import AcquisitionInputs, Selection, float_tensor, given, largest
from ml_backend.acquisition.pointwise import entropy
from ml_backend.registry import acquisition_function

STRATIFIED: Final = 0.66
"""Fraction of the batch that is divided over the classes."""


@acquisition_function(
    "class_balanced",
    summary="uncertain images of every class: more places for the classes whose predictions are less sure",
    unit="nats",
    range="0 .. log C: entropy, of a pick for a class times the probability of the class",
    source="after Lüth, Traub, Kahl et al. 2026, arXiv:2601.13677",
    batch=True,
)
def rank_class_balanced(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``class_balanced``, then the rest by entropy."""
    return class_balanced(given(inputs.probs, "probs", "class_balanced"), batch_size, ties=inputs.ties(seed))


def class_balanced(
    probs: Float[Tensor, "images passes classes"], batch_size: int, *, ties: Int64[npt.NDArray[np.int64], " images"]
) -> Selection:
    """Select for every class the images that are uncertain and likely of that class, and others by uncertainty alone.

    Of the batch, 66 % is divided over the classes: the best images by ``p̄_c(x) H(p̄(x))`` for class c, the rest by
    ``H(p̄(x))``. Class c gets places in proportion to the mean entropy of the images that are predicted as c: an easy
    class needs few, though it may be rare. Places are filled in turn, so that every part of the batch is divided alike.

    The paper divides evenly, and adds noise to the logarithm of the scores, less of it the more labels there are.
    Neither is done here; see docs/researchers.md#strategies.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins.

    Returns:
        Picks in order. Scores in nats: of an image picked for a class ``p̄_c H(p̄)``, of every other ``H(p̄)``; 0 to
        ``log C``.

    Source:
        After Lüth, Traub, Kahl et al. 2026, arXiv:2601.13677 (ClaSP PE).
    """
    probs = float_tensor("probs", probs)
    uncertainty = entropy(probs).cpu().numpy()
    mean = probs.mean(dim=1, dtype=torch.float64).cpu().numpy()
    quotas = np.append(STRATIFIED * _shares(mean, uncertainty), 1.0 - STRATIFIED)
    by_kind = np.vstack([mean.T * uncertainty, uncertainty])
    waiting, scores = by_kind.copy(), uncertainty.copy()
    taken = np.zeros(len(quotas))
    picks: list[int] = []
    while len(picks) < min(batch_size, len(uncertainty)):
        kind = int(np.argmax(quotas * (len(picks) + 1) - taken))
        pick = largest(waiting[kind], ties)
        picks.append(pick)
        taken[kind] += 1
        scores[pick] = by_kind[kind, pick]
        waiting[:, pick] = -1.0
    return Selection(torch.tensor(picks, dtype=torch.int64), torch.from_numpy(scores))


def _shares(
    mean: Float[npt.NDArray[np.float64], "images classes"], uncertainty: Float[npt.NDArray[np.float64], " images"]
) -> Float[npt.NDArray[np.float64], " classes"]:
    """Of each class in the stratified part of the batch; together 1."""
    predicted = mean.argmax(axis=1)
    of_class = [uncertainty[predicted == label] for label in range(mean.shape[1])]
    # A class that is predicted nowhere counts as the pool as a whole.
    groups = [one if len(one) else uncertainty for one in of_class]
    # The exact sum, so that the order of arrival has no influence.
    doubt = np.array([math.fsum(one) / max(1, len(one)) for one in groups])
    return doubt / doubt.sum() if doubt.sum() > 0 else np.full(len(doubt), 1.0 / len(doubt))
