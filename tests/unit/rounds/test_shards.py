"""A pool in parts, and the whole again."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.predictions import LastLayerGradients, PoolPredictions, join
from ml_backend.rounds.sharding import cut, misfit
from ml_backend.schemas import Exclusion
from tests.fakes import make_image


def outputs_of(
    *numbers: int, passes: int = 2, features: bool = True, unreadable: tuple[int, ...] = ()
) -> PoolPredictions:
    """Numbers that tell images, passes and axes apart."""
    n = len(numbers)
    rows = np.array(numbers, np.float32)
    return PoolPredictions(
        image_ids=tuple(str(number) for number in numbers),
        classes=("a", "b", "c"),
        probs=(rows[:, None, None] * 100 + np.arange(passes * 3, dtype=np.float32).reshape(1, passes, 3)),
        features=rows[:, None] + np.arange(5, dtype=np.float32)[None] if features else None,
        gradients=LastLayerGradients(np.repeat(rows[:, None], 3, 1), np.repeat(rows[:, None], 4, 1)) if n else None,
        exclusions=tuple(Exclusion(image_id=str(number), reason=f"no {number}") for number in unreadable),
    )


def assert_same(found: PoolPredictions, wanted: PoolPredictions) -> None:
    """To the bit."""
    assert (found.image_ids, found.classes, found.exclusions) == (
        wanted.image_ids,
        wanted.classes,
        wanted.exclusions,
    )
    for name in ("probs", "features", "labelled_features"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), name
    assert (found.gradients is None) == (wanted.gradients is None)
    if found.gradients is not None and wanted.gradients is not None:
        assert found.gradients.residuals.tobytes() == wanted.gradients.residuals.tobytes()
        assert found.gradients.hidden.tobytes() == wanted.gradients.hidden.tobytes()


class TestCut:
    def test_by_hand(self):
        assert cut([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]

    def test_an_empty_pool_has_no_shard(self):
        assert cut([], 2) == []

    def test_an_empty_shard_is_refused(self):
        with pytest.raises(ValueError, match="size=0"):
            cut([1], 0)

    @given(st.lists(st.integers()), st.integers(1, 20))
    @settings(deadline=None)
    def test_nothing_is_lost_and_all_but_the_last_are_full(self, pool, size):
        shards = cut(pool, size)

        assert [one for shard in shards for one in shard] == pool
        assert all(len(shard) == size for shard in shards[:-1])
        assert all(shards)


class TestJoin:
    def test_by_hand(self):
        labelled = np.ones((2, 5), np.float32)
        first = replace(outputs_of(1, 2, unreadable=(8,)), labelled_features=labelled)

        joined = join([first, outputs_of(3, unreadable=(9,))])

        assert_same(joined, replace(outputs_of(1, 2, 3, unreadable=(8, 9)), labelled_features=labelled))

    @given(st.lists(st.integers(0, 99), min_size=1, unique=True), st.integers(1, 7))
    @settings(deadline=None)
    def test_undoes_a_cut(self, numbers, size):
        parts = [outputs_of(*part) for part in cut(numbers, size)]

        assert_same(join(parts), outputs_of(*numbers))

    def test_a_shard_of_unreadable_images_changes_nothing(self):
        empty = PoolPredictions(
            image_ids=(),
            classes=("a", "b", "c"),
            probs=np.empty((0, 2, 3), np.float32),
            features=np.empty((0, 5), np.float32),
            gradients=LastLayerGradients(np.empty((0, 3), np.float32), np.empty((0, 4), np.float32)),
        )

        assert_same(join([outputs_of(1), empty, outputs_of(2)]), outputs_of(1, 2))

    def test_nothing_to_join(self):
        with pytest.raises(ValueError, match="at least one"):
            join([])

    def test_other_classes(self):
        with pytest.raises(ValueError, match="different networks"):
            join([outputs_of(1), replace(outputs_of(2), classes=("a", "c", "b"))])

    def test_features_of_some_only(self):
        with pytest.raises(ValueError, match="features of 1 shards only, out of 2"):
            join([outputs_of(1), outputs_of(2, features=False)])


class TestMisfit:
    SHARD = (make_image(1), make_image(2), make_image(3))

    def test_what_fits(self):
        assert misfit(self.SHARD, outputs_of(1, 2, 3), outputs_of(9)) is None
        assert misfit(self.SHARD, outputs_of(1, 3, unreadable=(2,)), outputs_of(9)) is None

    @pytest.mark.parametrize(
        ("outputs", "reason"),
        [
            (outputs_of(1, 2), "other images: 2 scored and 0 excluded of 3"),
            (outputs_of(1, 3, 2), "other images"),
            (outputs_of(1, 2, 3, unreadable=(4,)), "other images"),
            (replace(outputs_of(1, 2, 3), classes=("a", "b", "d")), "other classes"),
            (outputs_of(1, 2, 3, passes=3), r"other arrays"),
            (outputs_of(1, 2, 3, features=False), "other arrays"),
            (replace(outputs_of(1, 2, 3), gradients=None), "other arrays"),
        ],
    )
    def test_what_does_not(self, outputs, reason):
        assert reason in str(misfit(self.SHARD, outputs, outputs_of(9)))
