"""Orders before the first network, and the record of the features that a typical one was made from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.errors import EmptyPool
from ml_backend.images.cache import DiskCache
from ml_backend.predictions import ImageFeatures
from ml_backend.rounds.cold_start import Embedded, FeaturesLost, StartFeatures, random_order
from ml_backend.schemas import ColdStart, ImageRef, Label, Ranking, natural_order
from tests.fakes import FakeLearner, make_image

IDS = st.lists(st.integers(1, 10**6).map(str), unique=True, max_size=20)


class TestRandomOrder:
    def test_pinned(self) -> None:
        """A round replayed years later shows the same images: this order may never change."""
        ranking = random_order([str(i) for i in range(1, 9)], 3, 0)

        assert ranking.image_ids == ("6", "4", "1", "2", "5", "3", "8", "7")
        assert ranking.scores == (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
        assert (ranking.strategy, ranking.batch_size) == ("random", 3)

    @settings(deadline=None)
    @given(ids=IDS, seed=st.integers(0, 100), data=st.data())
    def test_labelled_and_new_images_do_not_disturb_the_rest(
        self, ids: list[str], seed: int, data: st.DataObject
    ) -> None:
        before = random_order(ids, 5, seed).image_ids
        left = data.draw(st.permutations(ids))[len(ids) // 2 :]
        new = data.draw(IDS)

        after = random_order(sorted({*left, *new}), 5, seed).image_ids

        assert [i for i in after if i in left] == [i for i in before if i in left]

    @settings(deadline=None)
    @given(ids=IDS)
    def test_scores_fall_from_1_and_stay_above_0(self, ids: list[str]) -> None:
        scores = random_order(ids, 5, 0).scores

        assert list(scores) == sorted(set(scores), reverse=True)
        assert all(0 < score <= 1 for score in scores)

    def test_seeds_differ(self) -> None:
        assert len({random_order([str(i) for i in range(30)], 5, seed).image_ids for seed in range(10)}) == 10


def pool(groups: int = 6, each: int = 12) -> list[ImageRef]:
    """Ids end in the digit of their group, by which the fake's features differ."""
    return [make_image(10 * number + group) for number in range(1, each + 1) for group in range(groups)]


def groups_of(image_ids: Sequence[str]) -> set[str]:
    return {image_id[-1] for image_id in image_ids}


def labels(*images: ImageRef) -> list[Label]:
    return [Label(image=image, value="normal", raters=1) for image in images]


def ranked(
    by: ColdStart, images: Sequence[ImageRef], batch_size: int = 6, seed: int = 0, *, labelled: Sequence[ImageRef] = ()
) -> Ranking:
    return Embedded.by(FakeLearner(), labels(*labelled), images).rank(by, batch_size, seed)


@pytest.mark.parametrize("by", ["typiclust", "herding"])
class TestOrderByFeatures:
    def test_an_image_of_every_group_among_the_first(self, by):
        ranking = ranked(by, pool())

        assert groups_of(ranking.image_ids[:6]) == set("012345")
        assert (ranking.strategy, ranking.batch_size) == (by, 6)
        assert sorted(ranking.image_ids) == sorted(image.id for image in pool())

    def test_a_random_order_has_fewer(self, by):
        """Of six draws from six groups all differ in 1 of 65 cases; on average 4.0 groups are seen."""
        ids = [image.id for image in pool()]
        seen = [len(groups_of(random_order(ids, 6, seed).image_ids[:6])) for seed in range(100)]

        assert np.mean(seen) == pytest.approx(4.0, abs=0.4)

    def test_groups_that_hold_a_label_come_later(self, by):
        """Four groups are labelled: the batch of two is of the other two."""
        ranking = ranked(by, pool(), 2, labelled=[make_image(1000 + group) for group in range(4)])

        assert groups_of(ranking.image_ids[:2]) == set("45")

    @pytest.mark.parametrize("seed", range(3))
    def test_the_same_however_the_pool_arrives(self, by, seed):
        assert ranked(by, pool()[::-1], seed=seed) == ranked(by, pool(), seed=seed) == ranked(by, pool(), seed=seed)

    def test_unreadable_images_are_named(self, by):
        ranking = Embedded.by(FakeLearner(unreadable=["10", "25"]), [], pool()).rank(by, 6, seed=0)

        assert [exclusion.image_id for exclusion in ranking.exclusions] == ["10", "25"]
        assert len(ranking.image_ids) == len(pool()) - 2


class TestEmbedded:
    def test_nothing_readable(self):
        with pytest.raises(EmptyPool, match="none of the 72 unlabelled images could be read"):
            Embedded.by(FakeLearner(unreadable=[image.id for image in pool()]), [], pool())

    def test_records_where_the_features_of_pool_and_labelled_images_are_cached(self):
        class Caching(FakeLearner):
            def embed(self, images):
                features = super().embed(images)
                return replace(features, keys=tuple(f"{image_id}|weights" for image_id in features.image_ids))

        images = [make_image(10), make_image(11)]
        record = Embedded.by(Caching(unreadable=["11"]), labels(make_image(2)), images).record()

        assert record is not None
        assert {name: kept.split()[0] for name, kept in record.kept.items()} == {"2": "2", "10": "10"}
        assert record.ending == "|weights"

    def test_a_learner_without_a_cache_leaves_no_record(self):
        assert Embedded.by(FakeLearner(), [], pool()).record() is None


ROWS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
SEEN = ImageFeatures(("12", "3", "7"), ROWS, keys=("a1|side|weights", "b1|side|weights", "c1|side|weights"))


def record(features: ImageFeatures = SEEN) -> StartFeatures:
    found = StartFeatures.of(features)
    assert found is not None
    return found


class TestStartFeatures:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        kept = DiskCache(tmp_path / "features")
        for key, row in zip(SEEN.keys, ROWS, strict=True):
            kept.put(key, row.astype("<f4").tobytes())
        return tmp_path

    def test_holds_each_image_once_and_the_common_end_of_the_keys_once(self):
        found = record()

        assert found.ending == "|side|weights"
        assert list(found.kept) == sorted(SEEN.image_ids, key=natural_order)
        assert [kept.split()[0] for kept in found.kept.values()] == ["b1", "c1", "a1"]
        assert StartFeatures.model_validate_json(found.model_dump_json()) == found

    def test_reads_the_same_bits_in_the_order_asked_for(self, cache):
        assert record().read(["3", "12"], cache).tobytes() == ROWS[[1, 0]].tobytes()

    def test_reads_keys_without_a_common_end(self, tmp_path):
        seen = replace(SEEN, keys=("a|one", "b|two", "c"))
        for key, row in zip(seen.keys, ROWS, strict=True):
            DiskCache(tmp_path / "features").put(key, row.tobytes())

        assert record(seen).read(seen.image_ids, tmp_path).tobytes() == ROWS.tobytes()

    def test_another_row_under_the_key_counts_as_changed(self, cache):
        """One last bit differs."""
        row = ROWS[1].copy()
        row[4] = np.nextafter(row[4], np.float32(9))
        DiskCache(cache / "features").put(SEEN.keys[1], row.tobytes())

        with pytest.raises(FeaturesLost, match=r"^1 of 3 have changed \(first: image 3\)$"):
            record().read(SEEN.image_ids, cache)

    def test_an_image_that_is_not_recorded(self, cache):
        with pytest.raises(ValueError, match="image 8: the round did not record"):
            record().read(["12", "8"], cache)
