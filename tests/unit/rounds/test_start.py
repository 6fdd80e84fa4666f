"""The order before the first network."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.errors import EmptyPool
from ml_backend.rounds.cold_start import random_order, typical_order
from ml_backend.schemas import ImageRef
from tests.fakes import FakeLearner, make_image

IDS = st.lists(st.integers(1, 10**6).map(str), unique=True, max_size=20)


def images(ids: list[str]) -> list[ImageRef]:
    return [ImageRef(id=i, uri=f"{i}.png") for i in ids]


class TestRandomOrder:
    def test_pinned(self) -> None:
        """A round replayed years later shows the same images: this order may never change."""
        ranking = random_order(images([str(i) for i in range(1, 9)]), 3, 0)

        assert ranking.image_ids == ("6", "4", "1", "2", "5", "3", "8", "7")
        assert ranking.scores == (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
        assert (ranking.strategy, ranking.batch_size) == ("random", 3)

    @settings(deadline=None)
    @given(ids=IDS, seed=st.integers(0, 100), data=st.data())
    def test_labelled_and_new_images_do_not_disturb_the_rest(
        self, ids: list[str], seed: int, data: st.DataObject
    ) -> None:
        before = random_order(images(ids), 5, seed).image_ids
        left = data.draw(st.permutations(ids))[len(ids) // 2 :]
        new = data.draw(IDS)

        after = random_order(images(sorted({*left, *new})), 5, seed).image_ids

        assert [i for i in after if i in left] == [i for i in before if i in left]

    @settings(deadline=None)
    @given(ids=IDS)
    def test_scores_fall_from_1_and_stay_above_0(self, ids: list[str]) -> None:
        scores = random_order(images(ids), 5, 0).scores

        assert list(scores) == sorted(set(scores), reverse=True)
        assert all(0 < score <= 1 for score in scores)

    def test_seeds_differ(self) -> None:
        ids = [str(i) for i in range(30)]

        assert len({random_order(images(ids), 5, seed).image_ids for seed in range(10)}) == 10


def pool(groups: int = 6, each: int = 12) -> list[ImageRef]:
    """Ids end in the digit of their group, by which the fake's features tell them apart."""
    return [make_image(10 * number + group) for number in range(1, each + 1) for group in range(groups)]


def groups_of(image_ids: Sequence[str]) -> set[str]:
    return {image_id[-1] for image_id in image_ids}


class TestTypicalOrder:
    def test_an_image_of_every_group_among_the_first(self):
        ranking = typical_order(FakeLearner(), [], pool(), 6, seed=0)

        assert groups_of(ranking.image_ids[:6]) == set("012345")
        assert (ranking.strategy, ranking.batch_size) == ("typiclust", 6)
        assert sorted(ranking.image_ids) == sorted(image.id for image in pool())

    def test_which_chance_does_not_give(self):
        """Of six draws from six groups all differ in 1 of 65 cases; on the average 4.0 groups are seen."""
        seen = [len(groups_of(random_order(pool(), 6, seed).image_ids[:6])) for seed in range(100)]

        assert np.mean(seen) == pytest.approx(4.0, abs=0.4)

    def test_groups_that_hold_a_label_come_later(self):
        """Four groups are labelled: the batch of two is of the other two."""
        labelled = [make_image(1000 + group) for group in range(4)]
        ranking = typical_order(FakeLearner(), labelled, pool(), 2, seed=0)

        assert groups_of(ranking.image_ids[:2]) == set("45")

    @pytest.mark.parametrize("seed", range(3))
    def test_the_same_however_the_pool_arrives(self, seed):
        there = typical_order(FakeLearner(), [], pool(), 6, seed)

        assert typical_order(FakeLearner(), [], pool()[::-1], 6, seed) == there
        assert typical_order(FakeLearner(), [], pool(), 6, seed) == there

    def test_unreadable_images_are_named(self):
        ranking = typical_order(FakeLearner(unreadable=["10", "25"]), [], pool(), 6, seed=0)

        assert [exclusion.image_id for exclusion in ranking.exclusions] == ["10", "25"]
        assert len(ranking.image_ids) == len(pool()) - 2

    def test_nothing_readable(self):
        with pytest.raises(EmptyPool, match="none of the 72 unlabelled images could be read"):
            typical_order(FakeLearner(unreadable=[image.id for image in pool()]), [], pool(), 6, seed=0)
