"""Greedy facility location by hand-worked values, laws and brute force."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend.acquisition import coverage as module
from ml_backend.acquisition.coverage import facility_location, herding, neighbour_distance
from ml_backend.rounds import seek
from ml_backend.rounds.seek import resemblance


def unit_rows(images: int, dims: int, seed: int) -> Tensor:
    rows = torch.randn(images, dims, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def kernel(rows: Tensor, others: Tensor, width: float) -> npt.NDArray[np.float64]:
    apart = (rows.double()[:, None] - others.double()[None]).square().sum(dim=2)
    return torch.exp(-apart / width**2).numpy()


def value(similarity: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], picks: tuple[int, ...]) -> float:
    """Coverage of the pool by some images: the sum of each image's largest similarity to one of them."""
    return float(weights @ similarity[:, list(picks)].max(axis=1)) if picks else 0.0


class TestFacilityLocation:
    def test_hand_computed(self) -> None:
        """Three directions at 0, 60 and 180 degrees: squared distances 1, 4 and 3; the middle one covers most."""
        rows = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(0.75)], [-1.0, 0.0]])

        chosen = facility_location(rows, 2, ties=np.arange(3), width=1.0)

        assert chosen.picks.tolist() == [1, 2]
        first = 1 + math.exp(-1) + math.exp(-3)
        assert chosen.scores.tolist() == pytest.approx([1 - math.exp(-1), first, 1 - math.exp(-3)], abs=1e-6)

    def test_covered_images_and_their_copies_come_last(self) -> None:
        rows = unit_rows(30, 4, seed=0)
        rows[7] = rows[3]

        chosen = facility_location(rows, 30, ties=np.arange(30), width=0.5, covered=rows[[3, 11]])

        assert sorted(chosen.picks[-3:].tolist()) == [3, 7, 11]
        assert chosen.scores[[3, 7, 11]].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)

    def test_an_image_without_weight_is_not_looked_after(self) -> None:
        """The crowd without weight adds nothing: the lone image is picked."""
        rows = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [0.0, 1.0]])
        weights = np.array([0.0, 0.0, 0.0, 1.0])

        assert facility_location(rows, 1, ties=np.arange(4), width=0.5, weights=weights).picks.tolist() == [3]
        assert facility_location(rows, 1, ties=np.arange(4), width=0.5).picks.tolist() == [1]

    def test_level_images_by_the_order_of_ties(self) -> None:
        chosen = facility_location(torch.ones(6, 2), 3, ties=np.array([4, 1, 0, 5, 3, 2]), width=0.5)

        assert chosen.picks.tolist() == [2, 1, 5]

    def test_a_batch_larger_than_the_pool_and_an_empty_pool(self) -> None:
        rows = unit_rows(3, 2, seed=0)

        assert sorted(facility_location(rows, 9, ties=np.arange(3), width=0.5).picks.tolist()) == [0, 1, 2]
        assert facility_location(rows[:0], 9, ties=np.arange(0), width=0.5, covered=rows).scores.tolist() == []

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 14), st.integers(1, 5), st.integers(0, 99), st.sampled_from([0.2, 0.7, 2.0]))
    def test_equals_the_plain_greedy_search(self, images: int, batch: int, seed: int, width: float) -> None:
        """Every pick is the image whose addition covers most, computed anew over the whole pool."""
        rows, covered = unit_rows(images, 3, seed), unit_rows(seed % 3, 3, seed + 100)
        weights = np.random.default_rng(seed).random(images)

        chosen = facility_location(rows, batch, ties=np.arange(images), width=width, weights=weights, covered=covered)

        similarity = kernel(rows, torch.cat([rows, covered]), width)
        known = tuple(range(images, images + len(covered)))
        picked: tuple[int, ...] = ()
        for pick in chosen.picks.tolist():
            have = value(similarity, weights, known + picked)
            gains = [value(similarity, weights, (*known, *picked, one)) - have for one in range(images)]
            assert gains[pick] == pytest.approx(max(gains), abs=1e-5)
            assert chosen.scores[pick].item() == pytest.approx(gains[pick], abs=1e-5)
            picked += (pick,)
        assert len(set(picked)) == min(batch, images)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 99))
    def test_is_near_the_best_batch(self, seed: int) -> None:
        """Greedy reaches 1 - 1/e of the best coverage; brute force over every batch of three of nine."""
        rows = unit_rows(9, 3, seed)
        similarity, weights = kernel(rows, rows, 0.7), np.ones(9)

        found = value(
            similarity, weights, tuple(facility_location(rows, 3, ties=np.arange(9), width=0.7).picks.tolist())
        )

        best = max(value(similarity, weights, batch) for batch in itertools.combinations(range(9), 3))
        assert (1 - 1 / math.e) * best - 1e-5 <= found <= best + 1e-5

    @settings(max_examples=20, deadline=None)
    @given(st.permutations(range(40)), st.integers(0, 9))
    def test_the_order_of_arrival_changes_nothing(self, order: list[int], seed: int) -> None:
        rows, covered = unit_rows(40, 5, seed), unit_rows(6, 5, seed + 100)
        weights = np.random.default_rng(seed).random(40)

        one = facility_location(rows, 8, ties=np.arange(40), width=0.6, weights=weights, covered=covered)
        other = facility_location(
            rows[order], 8, ties=np.array(order), width=0.6, weights=weights[order], covered=covered.flip(0)
        )

        assert [order[pick] for pick in other.picks.tolist()] == one.picks.tolist()
        assert torch.equal(other.scores, one.scores[order])

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        rows, before = unit_rows(3000, 64, seed=0), torch.get_num_threads()
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(facility_location(rows, 10, ties=np.arange(3000), width=0.5, covered=rows[:50]))
        torch.set_num_threads(before)

        assert torch.equal(found[0].picks, found[1].picks)
        assert torch.equal(found[0].scores, found[1].scores)

    def test_a_part_stands_for_a_larger_pool(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_IMAGES", 10)
        rows, ties = unit_rows(30, 3, seed=0), np.random.default_rng(0).permutation(30)
        part = np.argsort(ties)[:10]

        chosen = facility_location(rows, 4, ties=ties, width=0.5)
        alone = facility_location(rows[part], 4, ties=np.arange(10), width=0.5)

        assert chosen.picks.tolist() == part[alone.picks].tolist()
        assert torch.equal(chosen.scores[part], alone.scores)
        assert chosen.scores.sum() == alone.scores.sum()

    def test_what_cannot_be_computed_with(self) -> None:
        for width in (0.0, math.nan):
            with pytest.raises(ValueError, match="width must be above 0"):
                facility_location(torch.eye(2), 1, ties=np.arange(2), width=width)
        for weights in ([1.0, -1.0], [1.0, math.nan]):
            with pytest.raises(ValueError, match="weights must be finite"):
                facility_location(torch.eye(2), 1, ties=np.arange(2), width=1.0, weights=np.array(weights))


class TestHerding:
    def test_the_largest_group_first_and_soon_every_group(self) -> None:
        """Four groups of 8, 16, 24 and 32 images; labelled ones cover the largest."""
        sizes, generator = (8, 16, 24, 32), torch.Generator().manual_seed(0)
        groups = np.repeat(np.arange(4), sizes)
        rows = torch.eye(4)[groups] + 0.05 * torch.randn(80, 4, generator=generator)

        chosen = groups[herding(rows, 20, ties=np.arange(80)).picks]
        beside = groups[herding(rows, 20, ties=np.arange(80), labelled_features=rows[48:60]).picks]

        assert chosen[0] == 3
        assert set(chosen) == {0, 1, 2, 3}
        assert beside[0] == 2
        assert sum(beside == 3) < sum(chosen == 3)

    def test_the_width_is_the_median_distance_to_the_nearest_neighbour(self) -> None:
        """At 0, 60, 90 and 180 degrees the nearest neighbours are 60, 30, 30 and 90 degrees away."""
        angles = torch.deg2rad(torch.tensor([0.0, 60.0, 90.0, 180.0]))
        rows = 3.0 * torch.stack([angles.cos(), angles.sin()], dim=1)

        # Of an even number the lower median: 2 sin(30° / 2).
        assert neighbour_distance(rows, np.arange(4)) == pytest.approx(2 * math.sin(math.radians(15)), abs=1e-5)
        assert neighbour_distance(rows[:1], np.arange(1)) == 1.0
        assert neighbour_distance(torch.ones(9, 2), np.arange(9)) == 0.01


class TestResemblance:
    def test_hand_computed(self) -> None:
        rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
        own, others = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])

        assert resemblance(rows, own, others).tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)
        assert resemblance(rows, own, others[:0]).tolist() == pytest.approx([0.0, 1.0, math.sqrt(0.5)], abs=1e-6)

    def test_neither_threads_nor_the_order_of_the_labelled_change_a_bit(self) -> None:
        rows, own, others = unit_rows(2000, 64, 0), unit_rows(30, 64, 1), unit_rows(300, 64, 2)
        before, found = torch.get_num_threads(), []
        for threads, one, other in ((1, own, others), (2, own.flip(0), others.flip(0))):
            torch.set_num_threads(threads)
            found.append(resemblance(rows, one, other))
        torch.set_num_threads(before)

        assert torch.equal(*found)
        assert torch.equal(resemblance(rows.flip(0), own, others), found[0].flip(0))

    def test_in_blocks_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows, own, others = 3.0 * unit_rows(50, 64, 0), unit_rows(5, 64, 1), unit_rows(9, 64, 2)
        whole = resemblance(rows, own, others)
        monkeypatch.setattr(seek, "BLOCK_ROWS", 20)

        cosines = torch.nn.functional.normalize(rows).double() @ torch.cat([own, others]).double().T
        expected = cosines[:, :5].amax(dim=1) - cosines[:, 5:].amax(dim=1)
        assert resemblance(rows, own, others).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
        assert torch.equal(resemblance(rows, own, others), whole)
