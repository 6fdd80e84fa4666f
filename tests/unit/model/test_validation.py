import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from ml_backend.model.validation import accuracy, auroc, recalls


def array(rows: list[list[float]]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


THREE = array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]])


def test_accuracy() -> None:
    assert accuracy(THREE, np.array([0, 1, 2, 1])) == 0.75
    with pytest.raises(ValueError, match="no image"):
        accuracy(THREE[:0], np.array([], dtype=np.int64))


class TestAuroc:
    def test_hand_computed(self) -> None:
        """Class 0: 0.6 beats all three: 1. Class 1: 0.4 and 0.5 against 0.3 and 0.3: 1. Class 2: 1."""
        assert auroc(THREE, np.array([0, 1, 2, 1])) == 1.0
        # Class 0 (images 0, 1): 1. Class 1 (image 2, at 0.3, ties with one of 0.3, 0.4, 0.5): 0.5 / 3. Class 2: 2 / 3.
        assert auroc(THREE, np.array([0, 0, 1, 2])) == pytest.approx((1 + 0.5 / 3 + 2 / 3) / 3)

    def test_two_classes_as_scikit_learn(self) -> None:
        """Image 2 ranks above image 1 although it is of the other class."""
        probs = array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
        targets = np.array([0, 1, 0, 1])

        assert auroc(probs, targets) == pytest.approx(roc_auc_score(targets, probs[:, 1])) == 0.75

    def test_absent_class_is_left_out(self) -> None:
        assert auroc(THREE, np.array([0, 0, 2, 2])) == pytest.approx((1.0 + 1.0) / 2)

    def test_one_class_alone_has_none(self) -> None:
        assert auroc(THREE, np.array([1, 1, 1, 1])) is None


def test_recalls() -> None:
    """Images 0 and 1 are taken for a, image 2 for c, image 3 for b."""
    assert recalls(THREE, np.array([0, 1, 1, 2]), ("a", "b", "c")) == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert recalls(THREE, np.array([0, 0, 1, 1]), ("a", "b", "c")) == {"a": 1.0, "b": 0.5, "c": None}
