"""The judge of batches against what can be worked out, and against every labelling counted."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.bench.judge import joint_information


def drawn(images: int, passes: int, classes: int, seed: int = 0, concentration: float = 0.5) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).dirichlet([concentration] * classes, size=(images, passes))


def by_definition(probs: npt.NDArray[np.float64]) -> float:
    """``H(y_1 .. y_b) - Σ_i mean_t H(y_i | w_t)``, labelling by labelling: another way to the same number."""
    picks, _, classes = probs.shape
    entropy = 0.0
    for labels in itertools.product(range(classes), repeat=picks):
        share = np.prod([probs[pick, :, label] for pick, label in enumerate(labels)], axis=0).mean()
        entropy -= share * math.log(share) if share > 0 else 0.0
    safe = np.where(probs > 0, probs, 1.0)
    return float(entropy + (probs * np.log(safe)).sum(axis=-1).mean(axis=1).sum())


class TestExact:
    def test_hand_computed(self):
        """Two networks that are sure and disagree about the one image: its label tells which it is, one bit."""
        probs = np.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])

        assert joint_information(probs).nats == pytest.approx(math.log(2))
        assert joint_information(probs).standard_error == 0.0

    def test_a_second_copy_tells_nothing_new(self):
        probs = np.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]] * 3)

        assert joint_information(probs).nats == pytest.approx(math.log(2))

    def test_networks_that_agree_cannot_be_told_apart(self):
        probs = np.full((4, 5, 3), 1 / 3)

        assert joint_information(probs).nats == pytest.approx(0.0, abs=1e-12)

    @pytest.mark.parametrize(("picks", "classes"), [(1, 3), (3, 2), (4, 3)])
    def test_is_what_the_definition_says(self, picks, classes):
        probs = drawn(picks, passes=7, classes=classes)

        assert joint_information(probs).nats == pytest.approx(by_definition(probs), abs=1e-12)

    def test_probabilities_of_zero_are_no_trouble(self):
        probs = drawn(3, passes=6, classes=3)
        probs[:, ::2, 0] = 0.0
        probs /= probs.sum(axis=-1, keepdims=True)

        assert joint_information(probs).nats == pytest.approx(by_definition(probs), abs=1e-12)


class TestDrawn:
    def test_agrees_with_every_labelling_counted(self):
        """Within four of its own standard errors, which must not be large to be true."""
        probs = drawn(7, passes=30, classes=3)
        exact = joint_information(probs, configurations=3**7)
        estimate = joint_information(probs, configurations=2_000)

        assert exact.standard_error == 0.0
        assert 0.0 < estimate.standard_error < 0.02
        assert abs(estimate.nats - exact.nats) < 4 * estimate.standard_error

    def test_standard_error_is_that_of_repeated_estimates(self):
        probs = drawn(8, passes=10, classes=2)
        estimates = [joint_information(probs, configurations=200, seed=seed) for seed in range(200)]

        spread = np.std([estimate.nats for estimate in estimates])
        assert np.mean([estimate.standard_error for estimate in estimates]) == pytest.approx(spread, rel=0.2)

    def test_same_seed_same_estimate(self):
        probs = drawn(12, passes=10, classes=3)

        assert joint_information(probs, 500, seed=3) == joint_information(probs, 500, seed=3)
        assert joint_information(probs, 500, seed=3) != joint_information(probs, 500, seed=4)

    @settings(deadline=None, max_examples=25)
    @given(picks=st.integers(1, 9), passes=st.integers(1, 12), classes=st.integers(2, 4), seed=st.integers(0, 99))
    def test_lies_between_nothing_and_everything(self, picks, passes, classes, seed):
        found = joint_information(drawn(picks, passes, classes, seed), configurations=300, seed=seed)

        assert -1e-9 <= found.nats <= math.log(passes) + 1e-9

    def test_one_labelling_a_network_has_no_known_error(self):
        assert joint_information(drawn(12, passes=10, classes=3), configurations=10).standard_error == math.inf


class TestRefusals:
    @pytest.mark.parametrize(("picks", "configurations"), [(0, 10), (1, 0)])
    def test_nothing_to_judge(self, picks, configurations):
        with pytest.raises(ValueError, match=f"got {picks} and {configurations}"):
            joint_information(np.full((picks, 2, 2), 0.5), configurations)
