"""The order before the first network."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.engine.start import random_order
from ml_backend.records import ImageRef

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
