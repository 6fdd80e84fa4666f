"""Seeded chance by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.acquisition.chance import places, seeded_draws, seeded_order

IDS = st.lists(st.text(max_size=6), unique=True, max_size=12)


class TestSeededDraws:
    def test_pinned(self) -> None:
        """What `printf 0:1 | b2sum -l 64` says, read little-endian: no version of anything may change it."""
        assert seeded_draws(["1", "12"], 0).tolist() == [5509842535781378034, 9998001482413979961]

    def test_uniform(self) -> None:
        """10,000 draws in 10 bins: chi-square with 9 degrees of freedom stays under its 99.9 % point."""
        counts = np.bincount((seeded_draws([str(i) for i in range(10_000)], 7) >> np.uint64(32)) * 10 >> np.uint64(32))

        assert ((counts - 1000) ** 2 / 1000).sum() < 27.9

    def test_another_seed_draws_anew(self) -> None:
        assert set(seeded_draws(["1", "2"], 1).tolist()).isdisjoint(seeded_draws(["1", "2"], 11).tolist())


class TestSeededOrder:
    @settings(deadline=None)
    @given(ids=IDS, seed=st.integers(), data=st.data())
    def test_the_same_however_the_ids_arrive_and_whoever_leaves(
        self, ids: list[str], seed: int, data: st.DataObject
    ) -> None:
        order = [ids[i] for i in seeded_order(ids, seed)]
        some = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []

        assert sorted(order) == sorted(ids)
        assert [some[i] for i in seeded_order(some, seed)] == [name for name in order if name in some]

    def test_seeds_differ(self) -> None:
        ids = [str(i) for i in range(50)]

        assert len({tuple(seeded_order(ids, seed)) for seed in range(20)}) == 20


class TestPlaces:
    @pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [1.0]), (4, [1.0, 0.75, 0.5, 0.25])])
    def test_fall_evenly(self, count: int, expected: list[float]) -> None:
        assert places(count).tolist() == expected
