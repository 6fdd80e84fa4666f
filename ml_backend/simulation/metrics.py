"""How good a round's network is on the test images: one record a round.

Accuracy alone hides the minority class, so every class is reported too; a value that is not defined is None, never NaN.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Float64, Int, Int64
from pydantic import Field
from sklearn.metrics import average_precision_score, roc_auc_score

from ml_backend.analytics.agreement import cohen_kappa
from ml_backend.analytics.evaluation import expected_calibration_error
from ml_backend.predictions import float_array
from ml_backend.schemas import FrozenModel

ECE_BINS = 15

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PerClass: TypeAlias = dict[str, Share | None]
Values: TypeAlias = Float64[npt.NDArray[np.float64], " classes"]
Confusion: TypeAlias = Int64[npt.NDArray[np.int64], "targets predictions"]


class RoundMetrics(FrozenModel):
    """One network on one set of test images. All are shares from 0 to 1, but kappa; higher is better, but for ``ece``.

    The prediction is the most probable class, of equally probable ones the least severe.

    Attributes:
        images: how many there were.
        accuracy: images predicted right.
        balanced_accuracy: mean of the recalls of the classes that occur.
        macro_f1: mean of the F1 scores of the classes that occur or are predicted.
        auroc: area under the ROC curve; None where fewer than two classes occur. Of two classes: the last (most severe)
            against the first. Of more: one class against the rest, the plain mean over the classes that occur.
        auprc: average precision, likewise. Chance is the prevalence of the class, not 0.5: with two classes of which
            the last is the common one, look at ``average_precision`` of the first.
        precision: of the images predicted as the class, those that are; None where none was predicted so.
        recall: of the images of the class, those predicted so; None where the class does not occur.
        specificity: of the images of other classes, those predicted as another; None where there is no other class.
        average_precision: of the class against the rest; None where the class, or the rest, does not occur.
        quadratic_weighted_kappa: -1 to 1, agreement beyond chance where a miss by two classes costs four times a miss
            by one; the classes count as equally spaced. None where targets and predictions are all one class.
        ece: expected calibration error of the prediction's probability, in ``ECE_BINS`` bins of equal width, each
            closed above: the gap between mean probability and accuracy in a bin, weighted by its images.

    Source:
        Davis & Goadrich 2006 (why average precision and not a trapezoid); Cohen 1968, doi:10.1037/h0026256 (kappa);
        Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599 (ece).
    """

    images: Annotated[int, Field(ge=1)]
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    auroc: Share | None
    auprc: Share | None
    precision: PerClass
    recall: PerClass
    specificity: PerClass
    average_precision: PerClass
    quadratic_weighted_kappa: Annotated[float, Field(ge=-1.0, le=1.0)] | None
    ece: Share


def round_metrics(
    probs: Float[npt.NDArray[np.floating], "images classes"],
    targets: Int[npt.NDArray[np.integer], " images"],
    classes: Sequence[str],
) -> RoundMetrics:
    """Everything that is measured about one round's network.

    Args:
        probs: probabilities of the classes (the mean over the passes, say); each row sums to 1. An array or a tensor
            of a floating type.
        targets: the true class of every image, as its place in ``classes``; integers.
        classes: ordinal, least severe first.

    Raises:
        ValueError: no image; fewer than two classes or one named twice; shapes that do not fit each other; rows that
            are no probabilities; a target that is no class.

    Source:
        scikit-learn for AU ROC and average precision; the rest are ratios of the confusion matrix.
    """
    probs, targets = float_array("probs", probs), _places(targets)
    _check(probs, targets, classes)
    predictions = probs.argmax(axis=1)
    confusion = _confusion(targets, predictions, len(classes))
    hits, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    others = len(targets) - actual
    recall = _ratio(hits, actual)
    auroc, precision_areas = _areas(probs, targets, actual > 0)
    return RoundMetrics(
        images=len(targets),
        accuracy=hits.sum() / len(targets),
        balanced_accuracy=float(np.nanmean(recall)),
        # 2 TP / (2 TP + FP + FN): defined where a class occurs or is predicted, and then 0 without a hit.
        macro_f1=float(np.nanmean(_ratio(2 * hits, actual + predicted))),
        auroc=_over_classes(auroc),
        auprc=_over_classes(precision_areas),
        precision=_named(classes, _ratio(hits, predicted)),
        recall=_named(classes, recall),
        specificity=_named(classes, _ratio(others - predicted + hits, others)),
        average_precision=_named(classes, precision_areas),
        quadratic_weighted_kappa=cohen_kappa(confusion, quadratic=True),
        ece=expected_calibration_error(probs.max(axis=1).astype(np.float64), predictions == targets, ECE_BINS),
    )


def _places(targets: Any) -> npt.NDArray[np.integer]:
    """The targets as an array of integers, from an array, a tensor or a list."""
    if callable(getattr(targets, "detach", None)):
        targets = targets.detach().cpu()
    array = np.asarray(targets)
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"targets must be integers, the places of the classes, got {array.dtype}")
    return array.astype(np.int64)


def _check(
    probs: Float[npt.NDArray[np.floating], "images classes"],
    targets: Int[npt.NDArray[np.integer], " images"],
    classes: Sequence[str],
) -> None:
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"metrics need at least 2 different classes, got {list(classes)}")
    if targets.ndim != 1 or not len(targets):
        raise ValueError(f"the metrics of no image are not defined: got targets of shape {targets.shape}")
    if probs.shape != (len(targets), len(classes)):
        raise ValueError(f"{len(targets)} targets of {len(classes)} classes but probs of shape {probs.shape}")
    # A negated comparison, so that NaN is caught.
    wrong = ~((probs >= 0).all(axis=1) & (np.abs(probs.sum(axis=1, dtype=np.float64) - 1) <= 1e-3))
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"probs of image {first} are {probs[first].tolist()}: give probabilities that sum to 1")
    unknown = (targets < 0) | (targets >= len(classes))
    if unknown.any():
        raise ValueError(f"target {targets[unknown][0]} is none of the {len(classes)} classes, 0 to {len(classes) - 1}")


def _confusion(
    targets: Int[npt.NDArray[np.integer], " images"], predictions: Int64[npt.NDArray[np.int64], " images"], classes: int
) -> Confusion:
    flat = targets.astype(np.int64) * classes + predictions
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def _ratio(parts: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64]) -> Values:
    """NaN where there is nothing to take a share of."""
    shares = np.full(len(wholes), np.nan)
    np.divide(parts, wholes, out=shares, where=wholes > 0)
    return shares


def _areas(
    probs: Float[npt.NDArray[np.floating], "images classes"],
    targets: Int[npt.NDArray[np.integer], " images"],
    occurs: Bool[npt.NDArray[np.bool_], " classes"],
) -> tuple[Values, Values]:
    """AU ROC and average precision of every class against the rest; NaN for a class that does not occur."""
    auroc, average_precision = np.full((2, len(occurs)), np.nan)
    if occurs.sum() >= 2:
        # All classes in one call: scikit-learn takes longer to check its input than to compute.
        truth = targets[:, None] == np.flatnonzero(occurs)
        auroc[occurs] = roc_auc_score(truth, probs[:, occurs], average=None)
        average_precision[occurs] = average_precision_score(truth, probs[:, occurs], average=None)
    # Sums of many steps: 1 can come out as 1 + 2e-16.
    return auroc.clip(0, 1), average_precision.clip(0, 1)


def _over_classes(areas: Values) -> float | None:
    defined = areas[~np.isnan(areas)]
    if not len(defined):
        return None
    # Of two classes the first has the same ROC curve again, and a precision that nobody means by AU PRC.
    return float(areas[-1] if len(areas) == 2 else defined.mean())


def _named(classes: Sequence[str], values: Values) -> PerClass:
    return {name: None if np.isnan(value) else value for name, value in zip(classes, values.tolist(), strict=True)}
