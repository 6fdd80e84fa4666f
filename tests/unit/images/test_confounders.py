"""What is on a film besides the disease."""

import numpy as np
import pytest

from ml_backend.images.synthetic import Scanner, add_confounders

AXIS = np.linspace(-1.0, 1.0, 48, dtype=np.float32)
X, Y = np.meshgrid(AXIS, AXIS)
LUNGS = (np.abs(np.abs(X) - 0.45) < 0.3).astype(np.float32) * (np.abs(Y) < 0.7)


def add(seed: int, difficulty: float) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    return add_confounders(np.random.default_rng(seed), X, Y, LUNGS, difficulty)


class TestAddConfounders:
    def test_only_adds(self) -> None:
        for seed in range(20):
            plane = add(seed, 1.0)
            assert plane.shape == X.shape
            assert (plane >= 0.0).all()
            assert (plane < 1.5).all()

    def test_more_of_them_with_difficulty(self) -> None:
        """A film keeps what it has when it becomes harder."""
        counts = [sum(add(seed, difficulty).max() > 0.05 for seed in range(60)) for difficulty in (0.05, 0.5, 1.0)]

        assert counts[0] < 15 < counts[1] < counts[2]
        assert all((add(seed, 1.0) >= add(seed, 0.5) - 1e-6).all() for seed in range(20))

    def test_the_seed_decides(self) -> None:
        assert np.array_equal(add(3, 1.0), add(3, 1.0))
        assert len({add(seed, 1.0).tobytes() for seed in range(10)}) > 5


class TestScanner:
    def test_every_centre_has_its_own_look(self) -> None:
        plane = np.full_like(X, 0.4)
        looks = [Scanner.of(centre).look(plane, X, Y) for centre in range(1, 6)]

        greys = [float(np.median(look)) for look in looks]
        assert len({round(grey, 3) for grey in greys}) == 5
        assert all(abs(grey - 0.4) > 0.05 for grey in greys)
        assert Scanner.of(2) == Scanner.of(2)

    def test_burns_in_a_marker_beside_the_patient(self) -> None:
        look = Scanner.of(1).look(np.zeros_like(X), X, Y)

        assert look.max() == pytest.approx(0.95)
        assert (np.abs(X[look > 0.5]) > 0.8).all()
        assert (Y[look > 0.5] < -0.7).all()

    def test_keeps_to_its_range(self) -> None:
        look = Scanner.of(3).look(np.linspace(-0.5, 1.5, X.size, dtype=np.float32).reshape(X.shape), X, Y)

        assert look.min() >= 0.0
        assert look.max() <= 1.0
