"""Metrics of a round: a case worked by hand, agreement with scikit-learn, and laws."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ml_backend.simulation.metrics import ECE_BINS, RoundMetrics, round_metrics

CLASSES = ("normal", "moderate", "severe")


def certain(predictions: list[int], classes: int = 3) -> npt.NDArray[np.float64]:
    return np.eye(classes)[predictions]


@st.composite
def rounds(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Any network on any test set: 1 to 12 images, 2 to 4 classes; ties, absent classes and certainty are common."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    weights = draw(hnp.arrays(np.int64, (images, classes), elements=st.integers(0, 5)))
    weights[weights.sum(axis=1) == 0] = 1
    targets = draw(hnp.arrays(np.int64, images, elements=st.integers(0, classes - 1)))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), targets


def names(probs: npt.NDArray[Any]) -> tuple[str, ...]:
    return tuple("abcd"[: probs.shape[1]])


class TestByHand:
    """Six images: targets 0 0 0 1 1 2, predictions 0 0 1 1 2 2.

    Rows of the confusion matrix are targets: [2 1 0], [0 1 1], [0 0 1]; its transpose has other precisions and recalls.
    """

    METRICS = round_metrics(certain([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 2]), CLASSES)

    def test_of_all_images(self):
        assert self.METRICS.images == 6
        assert self.METRICS.accuracy == pytest.approx(4 / 6)
        assert self.METRICS.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
        # 2 TP / (2 TP + FP + FN): 4/5, 2/4, 2/3.
        assert self.METRICS.macro_f1 == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)

    def test_per_class(self):
        assert self.METRICS.precision == pytest.approx({"normal": 1.0, "moderate": 1 / 2, "severe": 1 / 2})
        assert self.METRICS.recall == pytest.approx({"normal": 2 / 3, "moderate": 1 / 2, "severe": 1.0})
        # Of 3, 4 and 5 images of other classes: 0, 1 and 1 are taken for the class.
        assert self.METRICS.specificity == pytest.approx({"normal": 1.0, "moderate": 3 / 4, "severe": 4 / 5})

    def test_areas(self):
        """Certain predictions: a ROC curve with one corner, so the mean of recall and specificity."""
        assert self.METRICS.auroc == pytest.approx((5 / 6 + 5 / 8 + 9 / 10) / 3)
        # Recall x precision at the corner, then the rest of the recall at the prevalence.
        expected = {"normal": 2 / 3 + 1 / 3 * 3 / 6, "moderate": 1 / 4 + 1 / 2 * 2 / 6, "severe": 1 / 2}
        assert self.METRICS.average_precision == pytest.approx(expected)
        assert self.METRICS.auprc == pytest.approx(sum(expected.values()) / 3)

    def test_kappa(self):
        """Two misses by one class cost 2; by chance, margins 3 2 1 and 2 2 2 cost (3 * 10 + 2 * 4 + 1 * 10) / 6."""
        assert self.METRICS.quadratic_weighted_kappa == pytest.approx(1 - 2 / 8)

    def test_kappa_charges_four_times_for_two_classes(self):
        """Margins 2 1 1 and 2 1 1 either way; the near miss swaps 0 with 1 and 1 with 2, the far one 0 with 2."""
        near = round_metrics(certain([0, 1, 0, 2]), np.array([0, 0, 1, 2]), CLASSES).quadratic_weighted_kappa
        far = round_metrics(certain([0, 2, 1, 0]), np.array([0, 0, 1, 2]), CLASSES).quadratic_weighted_kappa

        # By chance: (2 * (1 + 4) + 1 * (2 + 1) + 1 * (8 + 1)) / 4 = 5.5.
        assert near == pytest.approx(1 - 2 / 5.5)
        assert far == pytest.approx(1 - 8 / 5.5)

    def test_kappa_counts_the_distance_over_a_class_that_does_not_occur(self):
        """Of grades 0 to 3 nobody says 1, and the miss from 0 to 2 still costs 4.

        By chance, margins 2 0 1 1 and 1 0 2 1: (2 * 17 + 5 + 11) / 4 = 12.5. With 1 closed up, kappa is 0.8.
        """
        metrics = round_metrics(certain([0, 2, 2, 3], 4), np.array([0, 0, 2, 3]), tuple("abcd"))

        assert metrics.quadratic_weighted_kappa == pytest.approx(1 - 4 / 12.5)

    def test_calibration(self):
        """Three bins hold images.

        0.9 and 0.92 share (13/15, 14/15], one right of two: |1 - 1.82|. 0.6 lies on the upper edge of its bin and 0.61
        beyond it: |1 - 0.6| and |0 - 0.61|. In one bin they would be |1 - 1.21|.
        """
        probs = np.array([[0.9, 0.1], [0.08, 0.92], [0.6, 0.4], [0.39, 0.61]])

        metrics = round_metrics(probs, np.array([0, 0, 0, 0]), ("normal", "diseased"))

        assert ECE_BINS == 15
        assert metrics.ece == pytest.approx((0.82 + 0.4 + 0.61) / 4)


class TestTwoClasses:
    PROBS = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], dtype=np.float32)
    METRICS = round_metrics(PROBS, np.array([0, 1, 0, 1]), ("normal", "diseased"))

    def test_auroc_is_the_usual(self):
        """Image 2 ranks above image 1 although it is of the other class: 3 of 4 pairs are in order."""
        assert self.METRICS.auroc == pytest.approx(0.75)

    def test_auprc_is_of_the_last_class(self):
        """Diseased first by probability: right, wrong, right: (1 + 2/3) / 2; normal: (1 + 2/3) / 2 by its own order."""
        assert self.METRICS.auprc == pytest.approx((1 + 2 / 3) / 2)
        assert self.METRICS.auprc == self.METRICS.average_precision["diseased"]

    def test_rounding_of_the_other_class_does_not_matter(self):
        """1 - p in float32 can part two equal probabilities; the usual AU ROC looks at one column alone."""
        probs = np.array([[0.5, 0.5], [0.5 + 1e-7, 0.5], [0.3, 0.7]])

        assert round_metrics(probs, np.array([0, 1, 1]), ("normal", "diseased")).auroc == pytest.approx(0.75)

    def test_kappa_is_cohens(self):
        """One disagreement of four: accuracy 3/4, by chance 1/2."""
        assert self.METRICS.quadratic_weighted_kappa == pytest.approx(0.5)


class TestUndefined:
    def test_absent_class_has_no_recall_and_takes_no_part_in_a_mean(self):
        metrics = round_metrics(certain([0, 0, 2, 0]), np.array([0, 0, 2, 2]), CLASSES)

        assert metrics.recall == pytest.approx({"normal": 1.0, "moderate": None, "severe": 0.5})
        assert metrics.precision == pytest.approx({"normal": 2 / 3, "moderate": None, "severe": 1.0})
        assert metrics.specificity == pytest.approx({"normal": 0.5, "moderate": 1.0, "severe": 1.0})
        assert metrics.average_precision["moderate"] is None
        assert metrics.balanced_accuracy == pytest.approx(0.75)
        assert metrics.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
        assert metrics.auroc == pytest.approx(0.75)

    def test_class_that_is_predicted_without_occurring_has_an_f1_of_0(self):
        metrics = round_metrics(certain([0, 1, 2, 2]), np.array([0, 0, 2, 2]), CLASSES)

        assert metrics.precision["moderate"] == 0.0
        assert metrics.macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3)

    def test_one_class_alone(self):
        metrics = round_metrics(certain([1, 1]), np.array([1, 1]), CLASSES)

        assert metrics.auroc is metrics.auprc is metrics.quadratic_weighted_kappa is None
        assert metrics.specificity == pytest.approx({"normal": 1.0, "moderate": None, "severe": 1.0})
        assert metrics.average_precision == dict.fromkeys(CLASSES)
        assert metrics.accuracy == metrics.balanced_accuracy == metrics.macro_f1 == 1.0

    def test_one_class_that_is_missed_has_a_kappa(self):
        """All targets normal, one prediction not: the observed cost is what chance would cost, kappa 0."""
        assert round_metrics(certain([0, 2]), np.array([0, 0]), CLASSES).quadratic_weighted_kappa == 0.0


class TestLaws:
    @given(rounds(), st.randoms(use_true_random=False))
    @settings(deadline=None)
    def test_order_of_the_images_changes_nothing(self, case, random):
        probs, targets = case
        order = list(range(len(targets)))
        random.shuffle(order)

        shuffled = round_metrics(probs[order], targets[order], names(probs))

        assert flat(shuffled) == pytest.approx(flat(round_metrics(probs, targets, names(probs))), nan_ok=True)

    @given(rounds())
    @settings(deadline=None)
    def test_survives_json(self, case):
        """NaN would come back as None or not at all."""
        probs, targets = case
        got = round_metrics(probs, targets, names(probs))

        assert RoundMetrics.model_validate_json(got.model_dump_json()) == got


class TestRefuses:
    @pytest.mark.parametrize(
        ("probs", "targets", "classes", "message"),
        [
            (np.zeros((0, 3)), np.zeros(0, np.int64), CLASSES, "0 targets of 3 classes"),
            (certain([0, 1]), np.array([0]), CLASSES, r"1 targets of 3 classes but probs of shape \(2, 3\)"),
            (certain([0]), np.array([3]), CLASSES, r"indices of the 3 classes, got \[3\]"),
            (certain([0]), np.array([-1]), CLASSES, r"got \[-1\]"),
            (certain([0]) * 2, np.array([0]), CLASSES, "sum to 1"),
            (np.array([[1.5, -0.5, 0.0]]), np.array([0]), CLASSES, "probabilities"),
            (np.array([[1.0, 0.0, 0.0], [np.nan, 0.5, 0.5]]), np.array([0, 0]), CLASSES, "probabilities"),
            (np.ones((1, 1)), np.array([0]), ("normal",), "at least 2"),
            (np.ones((1, 2)) / 2, np.array([0]), ("normal", "normal"), "at least 2 different"),
        ],
    )
    def test_bad_input(self, probs, targets, classes, message):
        with pytest.raises(ValueError, match=message):
            round_metrics(probs, targets, classes)


def optional(values: dict[str, float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values.values()]


def flat(metrics: RoundMetrics) -> list[float]:
    dumped = metrics.model_dump()
    return optional(
        {
            f"{name} {key}": value
            for name, field in dumped.items()
            for key, value in (field.items() if isinstance(field, dict) else [("", field)])
        }
    )
