"""A round's outputs -> what the page shows of it, and what later rounds are held against."""

from collections import Counter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.special import entr

from ml_backend.insight.records import ImageInsight, RoundInsight
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import RoundReport

__all__ = ["round_insight", "uncertainties"]

Floats: TypeAlias = npt.NDArray[np.float64]


def uncertainties(
    probs: Float[npt.NDArray[np.float32], "images passes classes"],
) -> tuple[Float[Floats, " images"], Float[Floats, " images"]]:
    """The two parts of the entropy of the mean prediction.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Aleatoric part, the mean entropy of the passes, and epistemic part, the mutual information that is left; both
        in nats, 0 to log C, never negative.

    Source:
        Depeweg et al. 2018, arXiv:1710.07283.
    """
    exact = probs.astype(np.float64)
    aleatoric = entr(exact).sum(axis=2).mean(axis=1)
    total = entr(exact.mean(axis=1)).sum(axis=1)
    return aleatoric, np.maximum(total - aleatoric, 0.0)


def round_insight(report: RoundReport, outputs: PoolOutputs) -> RoundInsight:
    """What is kept of a round beside its report.

    Args:
        report: with the ranking.
        outputs: that it ranked; images of the ranking that are not among them are left out.
    """
    ranking, row_of = report.ranking, {name: row for row, name in enumerate(outputs.image_ids)}
    control = set(ranking.control)
    shown = [
        (place, image_id)
        for place, image_id in enumerate(ranking.image_ids, start=1)
        if image_id in row_of and (place <= ranking.batch_size or image_id in control)
    ]
    chosen = outputs.probs[[row_of[image_id] for _, image_id in shown]]
    aleatoric, epistemic = uncertainties(chosen)
    means = chosen.mean(axis=1, dtype=np.float64).clip(0.0, 1.0)
    told = [
        ImageInsight(
            image_id=image_id,
            place=place,
            probs=dict(zip(outputs.classes, means[row].tolist(), strict=True)),
            score=ranking.scores[place - 1],
            aleatoric=float(aleatoric[row]),
            epistemic=float(epistemic[row]),
            control=image_id in control,
        )
        for row, (place, image_id) in enumerate(shown)
    ]
    pool = outputs.probs.mean(axis=1, dtype=np.float64)
    expected = pool.mean(axis=0).clip(0.0, 1.0) if len(pool) else np.zeros(len(outputs.classes))
    predicted = Counter(outputs.classes[index] for index in pool.argmax(axis=1).tolist())
    return RoundInsight(
        images=len(outputs.image_ids),
        expected=dict(zip(outputs.classes, expected.tolist(), strict=True)),
        predicted={name: predicted[name] for name in outputs.classes},
        batch=tuple(one for one in told if one.place <= ranking.batch_size),
        control=tuple(one for one in told if one.control),
    )
