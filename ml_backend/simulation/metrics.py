"""Metrics of a round's network on the test images, and how a report names them.

Accuracy alone hides the minority class, so every class is reported too; an undefined value is None, never NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

from ml_backend.analytics.agreement import cohen_kappa
from ml_backend.analytics.evaluation import expected_calibration_error
from ml_backend.schemas import FrozenModel

ECE_BINS = 15

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PerClass: TypeAlias = dict[str, Share | None]
Values: TypeAlias = Float64[npt.NDArray[np.float64], " classes"]


class RoundMetrics(FrozenModel):
    """Metrics of one network on one set of test images: fractions, except kappa; higher is better, except ECE.

    The prediction is the most probable class, of equally probable ones the least severe.

    Attributes:
        images: number of test images.
        accuracy: images that are predicted correctly.
        balanced_accuracy: mean of the recalls of the classes that occur.
        macro_f1: mean of the F1 scores of the classes that occur or are predicted.
        auroc: area under the ROC curve; None where fewer than two classes occur. Of two classes: the last (most severe)
            against the first. Of more: one class against the rest, the plain mean over the classes that occur.
        auprc: average precision, likewise. Chance level is the prevalence of the class, not 0.5: with two classes of
            which the last is the common one, use ``average_precision`` of the first.
        precision: of the images predicted as the class, those of the class; None without such a prediction.
        recall: of the images of the class, those predicted as it; None where the class does not occur.
        specificity: of the images of other classes, those not predicted as the class; None without other classes.
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


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as a report shows it.

    Attributes:
        name: short, for identifiers.
        title: heading.
        note: definition, in a line or two.
        of: value; None where it is not defined.
        higher_is_better: else it is drawn, but strategies are not compared by it.
        axis: label of the axis, where the title is too long for it.
    """

    name: str
    title: str
    note: str
    of: Callable[[RoundMetrics], float | None]
    higher_is_better: bool = True
    axis: str = ""


ACCURACY: Final = Metric(
    "accuracy", "Accuracy", "Images predicted correctly. It hides a rare class.", lambda m: m.accuracy
)
AUROC: Final = Metric(
    "auroc",
    "AU ROC",
    "Area under the ROC curve: of two classes, the most severe against the other; of more, the mean of each against "
    "the rest. 0.5 is chance level.",
    lambda m: m.auroc,
)
METRICS: Final = (
    ACCURACY,
    Metric(
        "balanced_accuracy",
        "Balanced accuracy",
        "Mean of the recalls of the classes: a rare class counts as much as a common one.",
        lambda m: m.balanced_accuracy,
    ),
    Metric("macro_f1", "Macro F1", "Mean of the F1 scores of the classes.", lambda m: m.macro_f1),
    AUROC,
    Metric(
        "auprc",
        "AU PRC",
        "Average precision, of the same classes as AU ROC. Chance level is the prevalence of the class, not 0.5.",
        lambda m: m.auprc,
    ),
    Metric(
        "kappa",
        "Quadratic-weighted kappa",
        "Agreement beyond chance; an error by two classes costs four times an error by one. 0 is chance, 1 perfect.",
        lambda m: m.quadratic_weighted_kappa,
    ),
    Metric(
        "ece",
        "Calibration error (ECE)",
        "Lower is better: the gap between the prediction's probability and its accuracy, over 15 bins of probability.",
        lambda m: m.ece,
        higher_is_better=False,
    ),
)


def rare_class_metric(class_name: str) -> Metric:
    """AU PRC of the rarest class."""
    return Metric(
        "auprc_rare",
        f"AU PRC of {class_name}",
        f"Average precision of the rarest class of the training side ({class_name}) against the rest.",
        lambda m: m.average_precision.get(class_name),
        axis="AU PRC",
    )


def round_metrics(
    probs: Float[npt.NDArray[np.floating], "images classes"],
    targets: Int[npt.NDArray[np.integer], " images"],
    classes: Sequence[str],
) -> RoundMetrics:
    """All metrics of one round's network.

    Args:
        probs: class probabilities, such as the mean over the passes; each row sums to 1.
        targets: index of every image's true class.
        classes: ordinal, least severe first.

    Raises:
        ValueError: no image, fewer than two different classes, wrong shapes, no probabilities, or another target.

    Source:
        scikit-learn, except specificity, kappa and ECE.
    """
    _check(probs, targets, classes)
    predictions, labels = probs.argmax(axis=1), np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predictions, labels=labels, zero_division=np.nan
    )
    confusion = confusion_matrix(targets, predictions, labels=labels)
    others, predicted_others = len(targets) - support, len(targets) - confusion.sum(axis=0)
    negatives = (predicted_others - support + np.diag(confusion)).astype(np.float64)
    specificity = np.divide(negatives, others, out=np.full(len(classes), np.nan), where=others > 0)
    auroc, precision_areas = _areas(probs, targets, support > 0)
    return RoundMetrics(
        images=len(targets),
        accuracy=(predictions == targets).mean(),
        balanced_accuracy=float(np.nanmean(recall)),
        macro_f1=float(np.nanmean(f1)),
        auroc=_over_classes(auroc),
        auprc=_over_classes(precision_areas),
        precision=_named(classes, precision),
        recall=_named(classes, recall),
        specificity=_named(classes, specificity),
        average_precision=_named(classes, precision_areas),
        quadratic_weighted_kappa=cohen_kappa(confusion, quadratic=True),
        ece=expected_calibration_error(probs.max(axis=1).astype(np.float64), predictions == targets, ECE_BINS),
    )


def _check(
    probs: Float[npt.NDArray[np.floating], "images classes"],
    targets: Int[npt.NDArray[np.integer], " images"],
    classes: Sequence[str],
) -> None:
    if len(set(classes)) < max(2, len(classes)):
        raise ValueError(f"metrics need at least 2 different classes, got {list(classes)}")
    if not len(targets) or probs.shape != (len(targets), len(classes)):
        raise ValueError(f"{len(targets)} targets of {len(classes)} classes but probs of shape {probs.shape}")
    # A negated comparison, so that NaN is caught.
    if not (probs.min() >= 0 and np.abs(probs.sum(axis=1, dtype=np.float64) - 1).max() <= 1e-3):
        raise ValueError("probs must be probabilities that sum to 1 in every row")
    if targets.min() < 0 or targets.max() >= len(classes):
        raise ValueError(f"targets must be indices of the {len(classes)} classes, got {sorted(set(targets.tolist()))}")


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
