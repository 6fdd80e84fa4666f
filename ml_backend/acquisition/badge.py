"""BADGE: images that would each move the last layer far, and in different directions."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt64

from ml_backend.acquisition.distances import computable, squared_distances, squared_lengths
from ml_backend.acquisition.evidence import Gradients
from ml_backend.acquisition.selection import Selection, largest
from ml_backend.chance import gumbel, redrawn

__all__ = ["badge"]


def badge(
    gradients: Gradients,
    batch_size: int,
    *,
    draws: UInt64[npt.NDArray[np.uint64], " images"],
    ties: Int64[npt.NDArray[np.int64], " images"],
) -> Selection:
    """Seed k-means++ on the last layer's gradients: long ones are likely, and none is near another.

    The first pick is the longest gradient; each pick after it is drawn with a probability proportional to the squared
    distance D² to the nearest pick before it. Drawn as the largest ``log D² + Gumbel noise``, each image with noise
    of its own: a running sum's last bit, which depends on the thread count, would move every draw behind it.

    The gradients are never written out, since ``<g_i, g_j> = <residuals_i, residuals_j> <hidden_i, hidden_j>``: memory
    is a few numbers an image.

    Args:
        gradients: of the pool, in factors.
        batch_size: images to pick; a smaller pool is picked whole.
        draws: one uniform draw an image, from which the noise of every pick is made.
        ties: place of each image in the order that settles ties; the lower wins. Once every gradient left is that of a
            pick, it alone decides.

    Returns:
        Picks in order. Scores are squared gradient lengths: of the first pick its own, of the others D² when picked,
        of the rest D² after the last pick.

    Source:
        Ash, Zhang, Krishnamurthy, Langford & Agarwal 2020, arXiv:1906.03671, algorithm 1; the longest first as in the
        authors' code.
    """
    residuals, hidden = computable(gradients.residuals, "residuals"), computable(gradients.hidden, "hidden")
    sizes = squared_lengths(residuals), squared_lengths(hidden)
    lengths = sizes[0] * sizes[1]
    values = lengths.cpu().numpy()
    least: npt.NDArray[np.float64] = np.full(len(values), np.inf)
    picks: list[int] = []
    gains: list[float] = []
    for step in range(min(batch_size, len(hidden))):
        pick = largest(values, ties)
        gains.append(float(least[pick] if picks else values[pick]))
        picks.append(pick)
        inner = torch.ones_like(lengths)
        for rows, size in ((residuals, sizes[0]), (hidden, sizes[1])):
            # From the distance, so that the gradient of a copy lies at 0 exactly.
            inner *= (size + size[pick] - squared_distances(rows, rows[pick])) / 2
        apart = (lengths + lengths[pick] - 2 * inner).clamp(min=0.0).cpu().numpy()
        least = np.minimum(least, apart)
        least[picks] = -1.0
        values = _log(least) + gumbel(redrawn(draws, step))
    scores = least.clip(min=0.0)
    scores[picks] = gains
    return Selection(torch.tensor(picks, dtype=torch.int64), torch.from_numpy(scores))


def _log(squared: Float[npt.NDArray[np.float64], " images"]) -> Float[npt.NDArray[np.float64], " images"]:
    """A copy of a pick is drawn only when nothing else is left, a pick never again."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: npt.NDArray[np.float64] = np.where(squared > 0, np.log(squared), np.where(squared < 0, -np.inf, -1e300))
    return logs
