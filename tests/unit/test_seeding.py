"""Seeded chance by name."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend import seeding as module
from ml_backend.seeding import derive, gumbel, places, redrawn, seeded_draws, seeded_order

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

    def test_another_salt_draws_anew(self) -> None:
        ids = [str(i) for i in range(2000)]
        plain, salted = (seeded_draws(ids, 0, salt).astype(np.float64) for salt in ("", "noise "))

        assert abs(np.corrcoef(plain, salted)[0, 1]) < 0.08


class TestRedrawn:
    def test_pinned(self) -> None:
        """The first and second output of SplitMix64 from state 0, as its reference code prints them."""
        draws = np.zeros(1, dtype=np.uint64)

        assert [int(redrawn(draws, step)[0]) for step in (0, 1)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]

    def test_steps_are_independent(self) -> None:
        draws = seeded_draws([str(i) for i in range(2000)], 0)
        steps = np.array([redrawn(draws, step) for step in range(5)]).astype(np.float64)

        assert np.abs(np.corrcoef(steps) - np.eye(5)).max() < 0.08


class TestGumbel:
    def test_hand_computed(self) -> None:
        """The uniform draws 1/4 and 1/2, to the last of 52 digits."""
        draws = np.array([2**62, 2**63], dtype=np.uint64)

        assert gumbel(draws).tolist() == pytest.approx([-np.log(np.log(4)), -np.log(np.log(2))])

    def test_ends_are_finite(self) -> None:
        assert np.isfinite(gumbel(np.array([0, 2**64 - 1], dtype=np.uint64))).all()


class TestSeededOrder:
    def test_level_draws_go_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def level_draws(names: list[str], seed: int) -> npt.NDArray[np.uint64]:
            return np.array([5, 5, 1, 5], dtype=np.uint64)

        monkeypatch.setattr(module, "seeded_draws", level_draws)

        assert seeded_order(["c", "a", "d", "b"], 0).tolist() == [2, 1, 3, 0]

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


def test_derived_seeds_are_pinned() -> None:
    """`printf '0|masks' | sha256sum`: b7723ed8d942a81b..., halved. Another derivation would change every ranking."""
    assert derive(0, "masks") == 0xB7723ED8D942A81B >> 1
    assert derive(0, "masks") != derive(0, "order") != derive(1, "order")
    assert 0 <= derive(-5, "x") < 2**63
