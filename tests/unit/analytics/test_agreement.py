import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from ml_backend.analytics.agreement import (
    AGREEMENT,
    FIXED_SET,
    NOISE,
    Agreement,
    PredictionSnapshot,
    agreement,
    cohen_kappa,
    fixed_predictions,
    prediction_snapshot,
    seed_noise_agreement,
    stored_noise,
    stored_snapshots,
)
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import FitReport
from ml_backend.storage import ProjectStore
from tests.fakes import make_report

CLASSES = ("normal", "moderate", "severe")
FIT = FitReport(
    epochs=3,
    best_epoch=2,
    class_weights={},
    train_images=8,
    validation_images=4,
    validation_loss=0.5,
    validation_accuracy=0.75,
    validation_auroc=None,
)
answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def outputs(*classes: int, of: int = 3, ids: str = "abcdefghij") -> PoolPredictions:
    """One image a class, of which the two passes are sure on the average only."""
    probs = np.full((len(classes), 2, of), 0.1, dtype=np.float32)
    for image, place in enumerate(classes):
        probs[image, :, place] = 0.9, 0.3
    return PoolPredictions(tuple(ids[: len(classes)]), CLASSES[:of], probs)


def counted(pairs):
    counts = np.zeros((4, 4), dtype=np.int64)
    for one, other in pairs:
        counts[one, other] += 1
    return counts


class TestCohenKappa:
    def test_hand_computed(self):
        """Of 10 images 7 agree; by chance (6 * 5 + 4 * 5) / 100 = half would: (0.7 - 0.5) / 0.5."""
        assert cohen_kappa(np.array([[4, 2], [1, 3]])) == pytest.approx(0.4)

    def test_weighted_hand_computed(self):
        """Of 4 images one is off by two classes, weight 4. By chance, rows 2 1 1 and columns 1 1 2, 26 / 4."""
        counts = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]])

        assert cohen_kappa(counts, quadratic=True) == pytest.approx(1 - 4 * 4 / 26)
        assert cohen_kappa(counts) == pytest.approx((3 / 4 - 5 / 16) / (11 / 16))

    @pytest.mark.parametrize("quadratic", [False, True])
    def test_undefined(self, quadratic):
        """No image, and one class only: chance agrees always, so nothing is above it."""
        assert cohen_kappa(np.zeros((3, 3), dtype=np.int64), quadratic=quadratic) is None
        assert cohen_kappa(np.diag([0, 5, 0]), quadratic=quadratic) is None

    @settings(deadline=None)
    @given(answers)
    def test_as_scikit_learn_has_it(self, pairs):
        one, other = zip(*pairs, strict=True)
        for quadratic in (False, True):
            found = cohen_kappa(counted(pairs), quadratic=quadratic)
            if found is None:
                assert len({*one, *other}) == 1
            else:
                weights = "quadratic" if quadratic else None
                expected = cohen_kappa_score(one, other, labels=range(4), weights=weights)
                assert found == pytest.approx(expected)

    @given(answers)
    def test_does_not_mind_who_is_first(self, pairs):
        counts = counted(pairs)
        assert cohen_kappa(counts) == pytest.approx(cohen_kappa(counts.T))


class TestAgreement:
    def test_only_images_that_both_were_asked_about(self):
        found = agreement({"a": 0, "b": 1, "c": 1, "d": 2}, {"b": 1, "c": 0, "d": 2, "e": 0}, 3)

        assert found.images == 3
        assert found.agreed == pytest.approx(2 / 3)
        # By chance (b, c, d are 1 1 2, and 1 0 2): (2 * 1 + 1 * 1) / 9.
        assert found.kappa == pytest.approx((2 / 3 - 1 / 3) / (2 / 3))
        assert found.error == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5 / (2 / 3))

    def test_nothing_in_common(self):
        assert agreement({"a": 0}, {"b": 0}, 2) == Agreement(images=0)

    def test_all_called_the_same(self):
        assert agreement({"a": 1, "b": 1}, {"a": 1, "b": 1}, 2) == Agreement(images=2, agreed=1.0)


class TestFixedPredictions:
    def test_the_mean_of_the_passes_decides(self):
        assert fixed_predictions(outputs(2, 0, 1), seed=0) == {"a": 2, "b": 0, "c": 1}

    def test_successive_pools_share_their_fixed_set(self):
        """Of 1500 images 300 are labelled: those of the first 1000 that are left are among the next 1000."""
        ids = [f"{n}" for n in range(1500)]
        probs = np.full((1500, 2, 2), 0.5, dtype=np.float32)
        before = fixed_predictions(PoolPredictions(tuple(ids), ("a", "b"), probs), 3)
        after = fixed_predictions(PoolPredictions(tuple(reversed(ids[300:])), ("a", "b"), probs[300:]), 3)

        assert len(before) == len(after) == FIXED_SET
        assert {name for name in before if int(name) >= 300} <= set(after)
        assert 700 <= len(before.keys() & after.keys()) < 1000

    def test_empty_pool(self):
        assert fixed_predictions(outputs(), 0) == {}


class TestNoise:
    def test_round_against_twin_on_the_images_of_the_twin(self):
        """B is asked of the round alone. Of a, c, d two agree; chance is (2 * 1 + 1 * 2 + 0) / 9."""
        found = seed_noise_agreement(
            outputs(0, 1, 1, 0), PoolPredictions(("a", "c", "d"), CLASSES, outputs(0, 1, 1).probs)
        )

        assert found.images == 3
        assert found.agreed == pytest.approx(2 / 3)
        assert found.kappa == pytest.approx((2 / 3 - 4 / 9) / (5 / 9))

    def test_other_classes(self):
        with pytest.raises(ValueError, match="seed replicate's are"):
            seed_noise_agreement(outputs(0, 1), outputs(0, 1, of=2))


class TestStored:
    @pytest.fixture
    def project(self, tmp_path):
        return ProjectStore(tmp_path)

    def keep(self, project, number, **changes: object):
        report = make_report(f"r{number:06d}").model_copy(update={"fit": FIT, **changes})
        marks = prediction_snapshot(report, outputs(0, 1, 2))
        project.save(report, outputs(0, 1, 2), None, {} if marks is None else {AGREEMENT: marks})

    def test_trained_rounds_alone_oldest_first(self, project):
        self.keep(project, 1, fit=None)
        self.keep(project, 2)
        self.keep(project, 3, base="r000002")
        self.keep(project, 4)

        assert [(one.round_id, one.labels, one.accuracy) for one in stored_snapshots(project)] == [
            ("r000002", 0, 0.75),
            ("r000004", 0, 0.75),
        ]
        assert stored_snapshots(project)[0] == PredictionSnapshot(
            round_id="r000002", labels=0, accuracy=0.75, classes=CLASSES, predicted={"a": 0, "b": 1, "c": 2}
        )

    def test_damaged_ones_are_left_out(self, project):
        for number in (1, 2):
            self.keep(project, number)
        project.set_record("r000002", NOISE, Agreement(images=2, agreed=1.0))
        (project.folder / "rounds" / "r000001" / "agreement.json").write_text('{"round_id": ')
        (project.folder / "rounds" / "r000001" / "noise.json").write_text(json.dumps({"images": -1}))

        assert [one.round_id for one in stored_snapshots(project)] == ["r000002"]
        assert stored_noise(project, ["r000001", "r000002"]) == {"r000002": Agreement(images=2, agreed=1.0)}

    def test_nobody_reads_the_passes(self, project):
        self.keep(project, 1)
        (project.folder / "rounds" / "r000001" / "outputs.npz").write_bytes(b"damaged")

        assert len(stored_snapshots(project)) == 1
