"""Whether a network doubts where readers disagree: its uncertainty about test images against the readers' answers."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits
from torch import Tensor

from ml_backend.acquisition import bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.errors import SettingsError
from ml_backend.model.threads import one_thread
from ml_backend.records import Annotation
from ml_backend.storage.files import write_atomically
from ml_backend.study.experiment_reading import Finished, Interval, Reading, interval
from ml_backend.study.options import make_plan
from ml_backend.study.parts import Study, open_study
from ml_backend.study.plan import Run
from ml_backend.study.run import fit_on_all

__all__ = [
    "FUNCTIONS",
    "disagreement",
    "quality_reading",
    "rank_correlation",
    "read_uncertainty",
    "share_in_top",
]

TOP: Final = 0.1
MOST: Final = ("entropy", "least_confidence", "margin")  # total uncertainty
FUNCTIONS: Final[Mapping[str, Callable[[Float[Tensor, "images passes classes"]], Float[Tensor, " images"]]]] = {
    "bald": bald,
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "mean_std": mean_std,
    "variation_ratios": variation_ratios,
}
"""Every function that gives an image a score of its own, without chance in it."""

Values: TypeAlias = Float[npt.NDArray[np.floating[Any]], " images"]


def disagreement(ratings: Sequence[Annotation]) -> dict[str, float]:
    """Share of the pairs of readers of an image that gave it different classes, 0 to 1.

    By pairs, because the entropy of three answers is biased against that of six. Images with fewer than two readers who
    gave a class are left out.

    Args:
        ratings: answers; those without a class do not count.
    """
    answers: dict[str, list[str]] = {}
    for rating in ratings:
        if rating.value is not None:
            answers.setdefault(rating.image.id, []).append(rating.value)
    return {
        image_id: sum(a != b for a, b in combinations(values, 2)) / math.comb(len(values), 2)
        for image_id, values in answers.items()
        if len(values) > 1
    }


def rank_correlation(uncertainty: Values, disagreeing: Values) -> float:
    """Spearman's correlation, -1 to 1; 0 where one of the two is the same for all images.

    Raises:
        ValueError: fewer than 3 images, or not one value an image in both.

    Source:
        Spearman 1904, doi:10.2307/1412159; SciPy.
    """
    if len(uncertainty) != len(disagreeing) or len(uncertainty) < 3:
        raise ValueError(f"a correlation needs 3 images or more, got {len(uncertainty)} and {len(disagreeing)}")
    if np.ptp(uncertainty) == 0.0 or np.ptp(disagreeing) == 0.0:
        return 0.0
    return float(spearmanr(uncertainty, disagreeing).statistic)


def share_in_top(uncertainty: Values, disagreeing: Values, top: float = TOP) -> float:
    """How much of all disagreement the most uncertain images hold, 0 to 1; by chance it is ``top``.

    Of images that are equally uncertain at the border, each counts in part: the order of a table decides nothing.

    Args:
        uncertainty: one an image, higher is less sure.
        disagreeing: one an image, 0 or more.
        top: share of the images, above 0 to 1; at least one image.

    Raises:
        ValueError: lengths that differ, no disagreement at all, or a share out of its range.
    """
    if len(uncertainty) != len(disagreeing) or not 0.0 < top <= 1.0:
        raise ValueError(
            f"{len(uncertainty)} images and {len(disagreeing)} values, top {top}: give as many, 0 < top <= 1"
        )
    if not (total := float(disagreeing.sum())) > 0.0:
        raise ValueError("no two readers disagree about any image: there is nothing to hold")
    count = max(1, round(top * len(uncertainty)))
    border = np.sort(uncertainty)[-count]
    above, at = uncertainty > border, uncertainty == border
    held = disagreeing[above].sum() + disagreeing[at].sum() * (count - above.sum()) / at.sum()
    return float(held) / total


def quality_reading(
    correlations: Mapping[str, Sequence[float]], shares: Mapping[str, Sequence[float]], images: int, ceiling: float
) -> Reading:
    """The answer in words.

    Args:
        correlations: function -> one a seed.
        shares: function -> one a seed, of ``share_in_top``.
        images: on the test side.
        ceiling: what the images that readers disagree about most hold.
    """
    ranks: dict[str, Interval] = {name: interval(values) for name, values in correlations.items()}
    held = {name: interval(values) for name, values in shares.items()}
    order = sorted(ranks, key=lambda name: -ranks[name].mean)
    rows = tuple((name, str(ranks[name]), str(held[name])) for name in order)
    found = (
        f"{images} test images; closest to the readers: {order[0]}, Spearman correlation {ranks[order[0]]}.",
        f"The {TOP:.0%} of the images that {order[0]} is least sure of hold {held[order[0]]} of all disagreement; "
        f"by chance {TOP:.2f}, at most {ceiling:.3f}.",
        "Intervals are over seeds, that is over networks; the test images are the same ones.",
    )
    surprises = [
        f"the correlation of {name} is not above 0 by more than luck ({ranks[name]})"
        for name in MOST
        if not ranks[name].is_above_zero
    ]
    if held["entropy"].mean <= TOP:
        surprises.append(f"the top {TOP:.0%} by entropy hold no more disagreement than chance ({held['entropy']})")
    if ranks["entropy"].mean < ranks["bald"].mean:
        surprises.append(f"bald ({ranks['bald']}) is closer to the readers than entropy ({ranks['entropy']})")
    columns = ("function", "Spearman correlation", f"disagreement held by the top {TOP:.0%}")
    return Reading(found, columns, rows, tuple(surprises))


def read_uncertainty(finished: Sequence[Finished]) -> Reading:
    """Fit the baseline of every seed again, and hold its uncertainty about the test side against the readers.

    ``uncertainty.csv`` in the study's folder has every image and seed.

    Raises:
        SettingsError: there are no ratings, or no two readers disagree about a test image.
    """
    options = finished[0].arm.options
    plan, data = make_plan(options)
    test = {label.image.id for label in data.labels("test")}
    apart = {image_id: value for image_id, value in disagreement(data.ratings).items() if image_id in test}
    if len(apart) < 3 or not any(apart.values()):
        disputed = sum(value > 0.0 for value in apart.values())
        raise SettingsError(
            "uncertainty-quality needs 3 test images or more that two readers have rated, not all of them alike; there "
            f"are {len(apart)}, of which readers dispute {disputed}: give other --ratings"
        )
    study = open_study(plan, options.out, data)
    correlations: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    shares: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    lines: list[tuple[object, ...]] = []
    for run in (run for run in plan.runs() if run.is_baseline):
        image_ids, scores = _uncertainty(run, study)
        rows = [row for row, image_id in enumerate(image_ids) if image_id in apart]
        readers = np.array([apart[image_ids[row]] for row in rows])
        for name, values in scores.items():
            correlations[name].append(rank_correlation(values[rows], readers))
            shares[name].append(share_in_top(values[rows], readers))
        lines += [
            (run.seed, image_ids[row], apart[image_ids[row]], *(float(values[row]) for values in scores.values()))
            for row in rows
        ]
    _write(options.out / "uncertainty.csv", lines)
    everyone = np.array(list(apart.values()))
    return quality_reading(correlations, shares, len(apart), share_in_top(everyone, everyone))


def _uncertainty(run: Run, study: Study) -> tuple[tuple[str, ...], dict[str, Values]]:
    with one_thread(), threadpool_limits(1):  # as the study's own rounds
        learner, _, _ = fit_on_all(run, study)
        outputs = learner.judge([label.image for label in study.data.labels("test")])
        probs = torch.from_numpy(outputs.probs)
        return outputs.image_ids, {name: score(probs).double().numpy() for name, score in FUNCTIONS.items()}


def _write(file: Path, lines: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("seed", "image_id", "disagreement", *FUNCTIONS))
    writer.writerows(lines)
    write_atomically(file, text.getvalue().encode())
