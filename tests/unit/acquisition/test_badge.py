"""BADGE in factors against the same seeding on the gradients written out."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.acquisition.diversity import badge
from ml_backend.acquisition.inputs import Gradients
from ml_backend.seeding import gumbel, redrawn, seeded_draws


def gradients(images: int, classes: int = 3, dims: int = 5, seed: int = 0) -> Gradients:
    """Every third image is a copy of the one before it; every seventh is sure, so that its gradient is 0."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(images, classes, generator=generator, dtype=torch.float64), dim=-1)
    hidden = torch.randn(images, dims, generator=generator, dtype=torch.float64).relu()
    for i in range(2, images, 3):
        probs[i], hidden[i] = probs[i - 1], hidden[i - 1]
    residuals = probs - torch.nn.functional.one_hot(probs.argmax(dim=-1), classes)
    residuals[::7] = 0.0
    return Gradients(residuals, hidden)


def draws(images: int, seed: int = 0) -> npt.NDArray[np.uint64]:
    return seeded_draws([str(i) for i in range(images)], seed, "badge ")


class TestHandWorked:
    def test_longest_first_and_a_copy_last(self) -> None:
        """Squared lengths 8, 8 (a copy), 0.5 and 0; seen from the first, (0.5, -0.5) ⊗ (0, 1) lies at 8.5."""
        residuals = torch.tensor([[1.0, -1.0], [1.0, -1.0], [0.5, -0.5], [0.0, 0.0]])
        hidden = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])

        chosen = badge(Gradients(residuals, hidden), 2, draws=draws(4), ties=np.array([1, 0, 2, 3]))

        assert chosen.picks[0] == 1
        assert chosen.picks[1].item() in {2, 3}
        assert chosen.scores[[0, 1]].tolist() == [0.0, 8.0]
        assert chosen.scores[[2, 3]].tolist() in ([8.5, 0.5], [0.5, 8.0])

    def test_all_sure(self) -> None:
        """No gradient anywhere: the order of ties, and scores of 0."""
        nothing = Gradients(torch.zeros(6, 3), torch.rand(6, 4, generator=torch.Generator().manual_seed(0)))
        ties = np.array([2, 0, 5, 1, 4, 3])

        chosen = badge(nothing, 6, draws=draws(6), ties=ties)

        assert ties[chosen.picks.numpy()].tolist() == list(range(6))
        assert chosen.scores.tolist() == [0.0] * 6

    def test_picks_follow_the_squared_distance(self) -> None:
        """From the first at 4, images at 3, 2, 0 lie 1, 4 and 16 away: drawn 1, 4 and 16 times in 21."""
        residuals = torch.tensor([[4.0], [3.0], [2.0], [0.0]])
        one_long = Gradients(residuals, torch.ones(4, 1))

        counts = np.zeros(4)
        for seed in range(2100):
            counts[badge(one_long, 2, draws=draws(4, seed), ties=np.arange(4)).picks[1]] += 1

        expected = 2100 * np.array([1, 4, 16]) / 21
        assert counts[0] == 0
        assert ((counts[1:] - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, 99.9 %


class TestLaws:
    @settings(deadline=None, max_examples=30)
    @given(images=st.integers(1, 25), batch=st.integers(1, 28), seed=st.integers(0, 999))
    def test_the_same_seeding_on_the_outer_products(self, images: int, batch: int, seed: int) -> None:
        factors = gradients(images, seed=seed)
        noise, ties = draws(images, seed), np.random.default_rng(seed).permutation(images)
        full = torch.einsum("ic,id->icd", *factors).flatten(start_dim=1).numpy()
        values, least = (full**2).sum(axis=1), np.full(images, np.inf)
        picks, gains = [], []
        for step in range(min(batch, images)):
            level = np.flatnonzero(values >= values.max() - 1e-12)
            pick = int(level[ties[level].argmin()])
            picks.append(pick)
            gains.append(least[pick] if step else values[pick])
            least = np.minimum(least, ((full - full[pick]) ** 2).sum(axis=1))
            with np.errstate(divide="ignore"):
                values = np.where(least > 1e-12, np.log(least) + gumbel(redrawn(noise, step)), -1e300)
            values[picks] = -np.inf

        chosen = badge(factors, batch, draws=noise, ties=ties)

        assert chosen.picks.tolist() == picks
        least[picks] = gains
        assert chosen.scores.tolist() == pytest.approx(least.tolist(), abs=1e-9)

    def test_copies_of_picks_come_last(self) -> None:
        """300 images of which 100 are copies: none of them is drawn while another is left."""
        factors = gradients(300)
        distinct = len(torch.unique(torch.einsum("ic,id->icd", *factors).flatten(start_dim=1), dim=0))

        chosen = badge(Gradients(*(rows.float() for rows in factors)), 300, draws=draws(300), ties=np.arange(300))

        gains = chosen.scores[chosen.picks]
        assert (gains[: distinct - 1] > 0).all()
        assert (gains[distinct:] == 0).all()
