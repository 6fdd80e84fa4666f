"""Core-set against brute force, and its bound against the best batch there is."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend.acquisition.diversity import core_set


def features(images: int, dims: int = 3, seed: int = 0) -> Tensor:
    """Small whole numbers: copies and level distances are common."""
    return torch.randint(0, 4, (images, dims), generator=torch.Generator().manual_seed(seed)).float()


def radius(rows: Tensor, centres: Tensor) -> float:
    """Distance of the image that lies farthest from its nearest centre."""
    return float((rows[:, None] - centres[None]).norm(dim=-1).amin(dim=1).max())


class TestHandWorked:
    def test_farthest_from_what_has_a_label(self) -> None:
        """On a line, with a label at 0: 10 is farthest; then 4 (4 from 0) before 7 (3 from 10); then 7; 1 is left."""
        rows = torch.tensor([[1.0, 0.0], [4.0, 0.0], [7.0, 0.0], [10.0, 0.0]])

        chosen = core_set(rows, 3, ties=np.arange(4), labelled_features=torch.tensor([[0.0, 0.0]]))

        assert chosen.picks.tolist() == [3, 1, 2]
        assert chosen.scores.tolist() == [1.0, 4.0, 3.0, 10.0]

    def test_without_labels_the_first_is_nearest_the_mean(self) -> None:
        """The mean of 0, 4, 5 and 15 is 6: 5 is next to it, and 15 lies 10 from that."""
        rows = torch.tensor([[0.0], [4.0], [5.0], [15.0]])

        for none in (None, torch.empty(0, 1)):
            chosen = core_set(rows, 2, ties=np.arange(4), labelled_features=none)

            assert chosen.picks.tolist() == [2, 3]
            assert chosen.scores.tolist() == [5.0, 1.0, 10.0, 10.0]

    def test_level_images_go_by_their_place_in_the_order_of_ties(self) -> None:
        chosen = core_set(torch.ones(5, 2), 5, ties=np.array([3, 0, 4, 1, 2]))

        assert chosen.picks.tolist() == [1, 3, 4, 0, 2]
        assert chosen.scores.tolist() == [0.0] * 5

    def test_copies_lie_at_0_exactly_however_far_from_the_origin(self) -> None:
        row = 1000 + torch.rand(1, 300, generator=torch.Generator().manual_seed(0))

        chosen = core_set(row.repeat(40, 1), 1, ties=np.arange(40), labelled_features=row)

        assert chosen.scores.tolist() == [0.0] * 40

    def test_half_precision_does_not_overflow(self) -> None:
        rows = torch.tensor([[0.0], [300.0], [1000.0]], dtype=torch.float16)

        assert core_set(rows, 1, ties=np.arange(3)).scores.tolist() == [300.0, 700.0, 700.0]


class TestLaws:
    @settings(deadline=None, max_examples=40)
    @given(images=st.integers(1, 12), labelled=st.integers(0, 4), batch=st.integers(1, 14), seed=st.integers(0, 999))
    def test_every_pick_is_the_one_that_brute_force_finds(
        self, images: int, labelled: int, batch: int, seed: int
    ) -> None:
        rows, known = features(images, seed=seed), features(labelled, seed=seed + 1)
        ties = np.random.default_rng(seed).permutation(images)

        chosen = core_set(rows, batch, ties=ties, labelled_features=known)

        picks = chosen.picks.tolist()
        assert len(set(picks)) == len(picks) == min(batch, images)
        for step, pick in enumerate(picks):
            centres = torch.cat([known, rows[picks[:step]]])
            left = [i for i in range(images) if i not in picks[:step]]
            if len(centres):
                far = {i: float((rows[i] - centres).norm(dim=1).min()) for i in left}
                assert chosen.scores[pick].item() == pytest.approx(far[pick], abs=1e-6)
            else:
                far = {i: -float((rows[i] - rows.mean(dim=0)).norm()) for i in left}
            assert far[pick] == pytest.approx(max(far.values()), abs=1e-6)
        centres = torch.cat([known, rows[picks]])
        for i in set(range(images)) - set(picks):
            assert chosen.scores[i].item() == pytest.approx(float((rows[i] - centres).norm(dim=1).min()), abs=1e-6)

    @settings(deadline=None, max_examples=25)
    @given(images=st.integers(2, 8), batch=st.integers(1, 4), seed=st.integers(0, 999))
    def test_at_most_twice_as_far_as_the_best_batch(self, images: int, batch: int, seed: int) -> None:
        rows, known = features(images, 2, seed), features(1, 2, seed + 1)
        best = min(
            radius(rows, torch.cat([known, rows[list(some)]]))
            for some in itertools.combinations(range(images), min(batch, images))
        )

        picks = core_set(rows, batch, ties=np.arange(images), labelled_features=known).picks

        assert radius(rows, torch.cat([known, rows[picks]])) <= 2 * best + 1e-6

    def test_scores_of_picks_never_rise(self) -> None:
        rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))

        chosen = core_set(rows, 30, ties=np.arange(200))

        gains = chosen.scores[chosen.picks].tolist()
        assert gains == sorted(gains, reverse=True)
        assert chosen.scores[chosen.scores < gains[-1]].numel() == 170

    def test_more_labelled_images_than_fit_one_product(self) -> None:
        """Judged against every distance computed by itself."""
        generator = torch.Generator().manual_seed(0)
        rows, known = torch.randn(50, 4, generator=generator), torch.randn(2500, 4, generator=generator)
        by_hand = (rows[:, None].double() - known[None].double()).norm(dim=-1).amin(dim=1)

        chosen = core_set(rows, 1, ties=np.arange(50), labelled_features=known)

        assert chosen.scores.tolist() == pytest.approx(by_hand.tolist(), abs=1e-6)
        assert chosen.picks.item() == by_hand.argmax()
        assert math.isfinite(chosen.scores.max())
