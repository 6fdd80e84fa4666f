import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.images.phantoms import draw_phantom, draw_pool


class TestDrawPhantom:
    def test_same_seed_same_film(self) -> None:
        assert np.array_equal(draw_phantom(1, 3, 5, 64), draw_phantom(1, 3, 5, 64))
        assert not np.array_equal(draw_phantom(1, 3, 5, 64), draw_phantom(1, 3, 6, 64))

    def test_looks_like_a_chest(self) -> None:
        """Air is black, lungs are darker than the soft tissue below them, the spine is brighter."""
        film = draw_phantom(0, 3, 0, 128).astype(float)
        air, lung, belly, spine = film[:4, :4], film[45:60, 30:40], film[115:122, 30:40], film[45:60, 62:66]

        assert air.mean() < 20
        assert air.mean() + 20 < lung.mean() < belly.mean() - 40
        assert spine.mean() > lung.mean() + 60

    def test_opacities_grow_with_severity(self) -> None:
        """The lung fields brighten from class to class, and the classes overlap."""
        lungs = np.array(
            [
                [draw_phantom(severity, 3, 100 * severity + seed, 64)[20:40, 12:52].mean() for seed in range(30)]
                for severity in range(3)
            ]
        )

        assert (np.diff(lungs.mean(axis=1)) > 5).all()
        assert lungs[0].max() > lungs[1].min()
        assert lungs[1].max() > lungs[2].min()

    def test_patient_decides_the_anatomy(self) -> None:
        """Two films of one patient resemble each other more than films of two."""

        def distance(seed: int, patient: int) -> float:
            first, other = draw_phantom(0, 3, 1, 64, 10), draw_phantom(0, 3, seed, 64, patient)
            return float(np.abs(first.astype(float) - other).mean())

        assert np.mean([distance(s, 10) for s in range(2, 12)]) < np.mean([distance(s, s + 10) for s in range(2, 12)])

    @pytest.mark.parametrize(("severity", "classes"), [(3, 3), (-1, 3), (0, 1)])
    def test_refuses_a_class_that_is_none(self, severity: int, classes: int) -> None:
        with pytest.raises(ValueError, match="severity must be"):
            draw_phantom(severity, classes, 0)

    def test_refuses_a_film_too_small_to_draw(self) -> None:
        with pytest.raises(ValueError, match="at least 32"):
            draw_phantom(0, 2, 0, 16)


class TestDrawPool:
    def test_shares_to_the_film(self) -> None:
        films, labels, patients = draw_pool(50, (0.14, 0.36, 0.5), seed=0, side=32)

        assert np.bincount(labels).tolist() == [8, 18, 24]
        assert len(films) == len(patients) == 50
        assert films[0].shape == (32, 32)
        assert 50 / 4 <= len(set(patients)) < 50
        # In random order, or the first labels would all be of one class.
        assert len(set(labels[:10].tolist())) > 1

    def test_named_shares(self) -> None:
        assert np.bincount(draw_pool(4, {"normal": 1, "severe": 1}, seed=1, side=32)[1]).tolist() == [2, 2]

    @given(
        count=st.integers(3, 30), shares=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=3), seed=st.integers(0, 9)
    )
    @settings(deadline=None, max_examples=10)
    def test_every_class_occurs(self, count: int, shares: list[float], seed: int) -> None:
        films, labels, _ = draw_pool(count, shares, seed, 32)

        assert len(films) == count
        assert (np.bincount(labels, minlength=len(shares)) >= 1).all()

    @pytest.mark.parametrize(("count", "shares"), [(5, (1.0,)), (5, (0.5, 0.0)), (2, (1, 1, 1))])
    def test_refuses_a_pool_without_a_class(self, count: int, shares: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="positive shares"):
            draw_pool(count, shares, 0)
