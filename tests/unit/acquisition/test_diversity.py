"""Core-set, BADGE and TypiClust by hand-worked values, laws and references."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend.acquisition import diversity as module
from ml_backend.acquisition.diversity import (
    badge,
    computable,
    core_set,
    nearest,
    squared_distances,
    squared_lengths,
    typiclust,
)
from ml_backend.acquisition.inputs import Gradients
from ml_backend.seeding import gumbel, redrawn, seeded_draws


class TestSquaredDistances:
    def test_hand_computed(self) -> None:
        rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]])

        assert squared_distances(rows, torch.tensor([0.0, 1.0])).tolist() == [18.0, 2.0]
        assert squared_distances(rows, torch.tensor([[0.0, 0.0], [1.0, 2.0]])).tolist() == [25.0, 4.0]
        assert squared_lengths(rows).tolist() == [25.0, 1.0]

    def test_a_row_alone_and_anywhere(self) -> None:
        """Copies lie at the same distance to the last bit, in whichever chunk, and at 0 of each other."""
        rows = torch.rand(3 * module._CHUNK_ELEMENTS // 100, 100, generator=torch.Generator().manual_seed(0))
        rows[[1, 4000, len(rows) - 1]] = rows[0].clone()

        apart = squared_distances(rows, rows[7])

        assert (
            len(set(apart[[0, 1, 4000, len(rows) - 1]].tolist() + squared_distances(rows[:1], rows[7]).tolist())) == 1
        )
        assert squared_distances(rows, rows[0])[[0, 1, 4000, len(rows) - 1]].tolist() == [0.0] * 4


class TestNearest:
    def test_hand_computed(self) -> None:
        rows, centres = torch.tensor([[0.0], [4.0], [9.0]]), torch.tensor([[1.0], [10.0], [5.0]])

        assert nearest(rows, centres).tolist() == [1.0, 1.0, 1.0]

    def test_across_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_CENTRES", 7)
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 25)
        generator = torch.Generator().manual_seed(0)
        rows, centres = torch.randn(40, 3, generator=generator), torch.randn(33, 3, generator=generator)

        by_hand = (rows[:, None].double() - centres[None].double()).square().sum(dim=-1).amin(dim=1)

        assert nearest(rows, centres).tolist() == pytest.approx(by_hand.tolist(), rel=1e-5)


class TestComputable:
    def test_half_precision_is_widened_and_the_rest_left(self) -> None:
        assert computable(torch.ones(1, 1, dtype=torch.bfloat16)).dtype == torch.float32
        assert computable(torch.ones(1, 1, dtype=torch.float64)).dtype == torch.float64


def features(images: int, dims: int = 3, seed: int = 0) -> Tensor:
    """Small whole numbers: copies and level distances are common."""
    return torch.randint(0, 4, (images, dims), generator=torch.Generator().manual_seed(seed)).float()


def radius(rows: Tensor, centres: Tensor) -> float:
    """Distance of the image that lies farthest from its nearest centre."""
    return float((rows[:, None] - centres[None]).norm(dim=-1).amin(dim=1).max())


class TestCoreSetHandWorked:
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


class TestCoreSetLaws:
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


class TestBadgeHandWorked:
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


class TestBadgeLaws:
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


def groups(sizes: list[int], spread: float = 0.05, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Directions scattered about one axis a group; and the group of each image."""
    generator = torch.Generator().manual_seed(seed)
    of = [group for group, size in enumerate(sizes) for _ in range(size)]
    rows = torch.eye(len(sizes))[of] + spread * torch.randn(len(of), len(sizes), generator=generator)
    return rows * (1 + torch.rand(len(of), 1, generator=generator)), of


def typicality(rows: Tensor, of: list[int], image: int) -> float:
    """By hand: over the images of its group."""
    rows = rows.double() / rows.double().norm(dim=1, keepdim=True)
    others = [i for i in range(len(of)) if of[i] == of[image] and i != image]
    distances = (rows[others] - rows[image]).norm(dim=1).sort().values[:20]
    return 1 / (float(distances.mean()) + 1e-5)


class TestTypiclustHandWorked:
    def test_the_most_typical_of_the_largest_groups_first(self) -> None:
        rows, of = groups([40, 30, 20])

        chosen = typiclust(rows, 3, ties=np.arange(90))

        assert [of[i] for i in chosen.picks.tolist()] == [0, 1, 2]
        by_hand = [typicality(rows, of, image) for image in range(90)]
        assert chosen.scores.tolist() == pytest.approx(by_hand, rel=1e-4)
        for pick in chosen.picks.tolist():
            assert by_hand[pick] == max(by_hand[i] for i in range(90) if of[i] == of[pick])

    def test_a_group_with_a_label_waits(self) -> None:
        """Four clusters for three groups and one label: the largest group is covered."""
        rows, of = groups([40, 30, 20])
        labelled = torch.tensor([[3.0, 0.0, 0.0]])

        chosen = typiclust(rows, 2, ties=np.arange(90), labelled_features=labelled)

        assert [of[i] for i in chosen.picks.tolist()] == [1, 2]

    def test_a_handful_of_outliers_comes_last(self) -> None:
        """Of 3 clusters one holds 3 images: the fourth pick goes round to the largest again, not to them."""
        rows, of = groups([30, 20, 3], spread=0.01)
        rows = torch.cat([rows, rows[:0]])

        chosen = typiclust(rows, 3, ties=np.arange(53))

        assert [of[i] for i in chosen.picks.tolist()] == [0, 1, 0]

    def test_length_decides_nothing(self) -> None:
        rows, _ = groups([10, 8])
        long = rows * torch.arange(1, 19)[:, None]

        assert typiclust(rows, 4, ties=np.arange(18)).picks.tolist() == (
            typiclust(long, 4, ties=np.arange(18)).picks.tolist()
        )

    def test_copies_go_by_their_place_in_the_order_of_ties(self) -> None:
        """One distinct image, three clusters wanted: no warning, and a typicality of 100,000."""
        chosen = typiclust(torch.ones(6, 2), 3, ties=np.array([4, 1, 0, 5, 3, 2]))

        assert chosen.picks.tolist() == [2, 1, 5]
        assert chosen.scores.tolist() == pytest.approx([1e5] * 6)

    def test_an_image_alone(self) -> None:
        """Nothing to be typical of: a distance of 2, the largest there is; and a feature of length 0 is no failure."""
        for row in (torch.ones(1, 3), torch.zeros(1, 3)):
            chosen = typiclust(row, 20, ties=np.array([0]))

            assert chosen.picks.tolist() == [0]
            assert chosen.scores.tolist() == pytest.approx([0.5], abs=1e-4)


class TestTypiclustLaws:
    @settings(deadline=None, max_examples=25)
    @given(
        images=st.integers(1, 15), labelled=st.integers(0, 5), batch=st.integers(1, 17), seed=st.integers(-9, 10**11)
    )
    def test_any_pool(self, images: int, labelled: int, batch: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(abs(seed))
        rows = torch.randint(0, 2, (images, 3), generator=generator).float()
        known = torch.randint(0, 2, (labelled, 3), generator=generator).float()

        chosen = typiclust(rows, batch, ties=np.arange(images), seed=seed, labelled_features=known)

        assert len(set(chosen.picks.tolist())) == len(chosen.picks) == min(batch, images)
        assert chosen.scores.isfinite().all()
        assert chosen.scores.min() > 0

    def test_many_clusters(self) -> None:
        """80 groups of 8, by mini-batches: no group gives two picks before most have given one."""
        rows, of = groups([8] * 80, spread=0.01)

        picks = typiclust(rows, 80, ties=np.arange(640)).picks.tolist()

        assert len({of[i] for i in picks}) > 50

    def test_neighbours_in_a_large_cluster_are_those_among_an_even_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One cluster of 50 with 20 references, against distances in full; in blocks of 7."""
        monkeypatch.setattr(module, "_REFERENCES", 20)
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 7 * 20)
        rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
        part = [int(2.5 * i) for i in range(20)]

        scores = typiclust(rows, 1, ties=np.arange(50)).scores

        unit = torch.nn.functional.normalize(rows.double(), dim=1)
        for image, score in enumerate(scores.tolist()):
            apart = sorted(float((unit[image] - unit[other]).norm()) for other in part if other != image)[:19]
            assert score == pytest.approx(1 / (sum(apart) / 19 + 1e-5), rel=1e-4)

    def test_k_means_of_a_large_pool_learns_from_a_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four groups and a labelled image in the first: the other three come first, in any order of arrival."""
        monkeypatch.setattr(module, "_CLUSTERED", 40)
        monkeypatch.setattr(module, "_PREDICTED", 30)
        rows, of = groups([50] * 4, spread=0.01)
        ties, moved = (np.random.default_rng(seed).permutation(200) for seed in range(2))

        chosen = typiclust(rows, 3, ties=ties, labelled_features=rows[:1])
        again = typiclust(rows[moved], 3, ties=ties[moved], labelled_features=rows[:1])

        assert sorted(of[i] for i in chosen.picks.tolist()) == [1, 2, 3]
        assert moved[again.picks].tolist() == chosen.picks.tolist()
        assert again.scores.tolist() == chosen.scores[moved].tolist()

    def test_candidates_of_a_large_pool(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if there were no other image: the first in the order of ties; the others score 0."""
        rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        ties = np.random.default_rng(0).permutation(60)
        first = np.flatnonzero(ties < 45)
        alone = typiclust(rows[first], 6, ties=ties[first])
        whole = typiclust(rows, 6, ties=ties)

        monkeypatch.setattr(module, "MOST_IMAGES", 45)
        chosen = typiclust(rows, 6, ties=ties)
        monkeypatch.setattr(module, "MOST_IMAGES", 60)

        assert chosen.picks.tolist() == first[alone.picks].tolist()
        assert chosen.scores[first].tolist() == alone.scores.tolist()
        assert chosen.scores[ties >= 45].tolist() == [0.0] * 15
        assert typiclust(rows, 6, ties=ties).scores.tolist() == whole.scores.tolist()

    def test_leaves_threads_as_they_were(self) -> None:
        before = torch.get_num_threads()

        typiclust(torch.eye(6), 2, ties=np.arange(6))

        assert torch.get_num_threads() == before
