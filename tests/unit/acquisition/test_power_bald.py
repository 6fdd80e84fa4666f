"""PowerBALD: its picks follow the BALD scores."""

import math

import numpy as np
import torch

from ml_backend.acquisition.batch import power_bald
from ml_backend.acquisition.pointwise import bald
from ml_backend.seeding import seeded_draws


class TestPowerBald:
    def test_hand_computed(self) -> None:
        """Two passes that are sure and contradict each other hold log 2 nats; a uniform draw of 1/2 is -log log 2."""
        probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])

        score = power_bald(probs, np.array([2**63], dtype=np.uint64)).item()

        assert math.isclose(score, math.log(math.log(2)) - math.log(math.log(2)), abs_tol=1e-12)

    def test_nothing_to_learn_is_a_number_and_comes_last(self) -> None:
        probs = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.6, 0.4], [0.4, 0.6]], [[1.0, 0.0], [1.0, 0.0]]])
        for seed in range(50):
            scores = power_bald(probs, seeded_draws(["a", "b", "c"], seed, "power_bald "))

            assert scores.isfinite().all()
            assert scores.argmax() == 1

    def test_the_first_pick_follows_bald(self) -> None:
        """4,000 seeds: an image of twice the score is picked twice as often."""
        generator = torch.Generator().manual_seed(1)
        probs = torch.softmax(2 * torch.randn(6, 8, 3, generator=generator), dim=-1)
        share = (bald(probs) / bald(probs).sum()).numpy()
        ids = [f"image {i}" for i in range(6)]

        picks = [int(power_bald(probs, seeded_draws(ids, seed, "power_bald ")).argmax()) for seed in range(4000)]

        counts = np.bincount(picks, minlength=6)
        assert ((counts - 4000 * share) ** 2 / (4000 * share)).sum() < 20.5  # chi-square, 5 degrees, 99.9 %
