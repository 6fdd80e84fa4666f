"""TypiClust on clusters that can be seen by eye."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend.acquisition.diversity import typiclust


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


class TestHandWorked:
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


class TestLaws:
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

    def test_leaves_threads_as_they_were(self) -> None:
        before = torch.get_num_threads()

        typiclust(torch.eye(6), 2, ties=np.arange(6))

        assert torch.get_num_threads() == before
