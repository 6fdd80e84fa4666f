"""What the owner is shown of a round's network: its predictions for the chosen images, and of the pool as a whole."""

from collections import Counter

import numpy as np
import torch
from scipy.special import entr

from ml_backend.acquisition.pointwise import bald
from ml_backend.analytics.history import ImageInsight, RoundInsight
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import RoundReport


def round_insight(report: RoundReport, outputs: PoolPredictions) -> RoundInsight:
    """Compute a round's insight.

    The entropy of the mean prediction is the sum of two parts: the mutual information of label and weights
    (epistemic), and the mean entropy of the passes (aleatoric).

    Args:
        report: with the ranking.
        outputs: predictions that it ranked, of two passes or more; images of the ranking without one are left out.

    Source:
        Depeweg et al. 2018, arXiv:1710.07283.
    """
    ranking, row_of = report.ranking, {name: row for row, name in enumerate(outputs.image_ids)}
    control = set(ranking.control)
    shown = [
        (place, image_id)
        for place, image_id in enumerate(ranking.image_ids, start=1)
        if image_id in row_of and (place <= ranking.batch_size or image_id in control)
    ]
    probs = outputs.probs[[row_of[image_id] for _, image_id in shown]]
    epistemic = bald(torch.from_numpy(probs)).numpy()
    aleatoric = entr(probs.astype(np.float64)).sum(axis=2).mean(axis=1)
    means = probs.mean(axis=1, dtype=np.float64).clip(0.0, 1.0)
    images = [
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
        batch=tuple(one for one in images if one.place <= ranking.batch_size),
        control=tuple(one for one in images if one.control),
    )
