"""The pools: valid, seeded, and hard for a function that judges images alone."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ml_backend.bench.judge import joint_information
from ml_backend.bench.pools import near_duplicate_pool, plain_pool


def single_information(pool: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """BALD of every image, in float64."""
    exact = pool.astype(np.float64)
    mean = exact.mean(axis=1)
    information: npt.NDArray[Any] = (exact * np.log(exact)).sum(axis=-1).mean(axis=1)
    information -= (mean * np.log(mean)).sum(axis=-1)
    return information


@pytest.mark.parametrize("draw", [near_duplicate_pool, plain_pool])
class TestBoth:
    def test_rows_are_probabilities(self, draw):
        pool = draw(50, 8, 3, seed=1)

        assert pool.shape == (50, 8, 3)
        assert pool.dtype == np.float32
        assert pool.min() > 0.0
        assert np.allclose(pool.sum(axis=-1), 1.0, atol=1e-6)

    def test_same_seed_same_pool(self, draw):
        assert np.array_equal(draw(20, 4, 3, seed=5), draw(20, 4, 3, seed=5))
        assert not np.array_equal(draw(20, 4, 3, seed=5), draw(20, 4, 3, seed=6))


class TestNearDuplicates:
    def test_many_images_have_a_near_copy(self):
        """All T networks say nearly the same about both, much more so than about two images of a plain pool."""
        near = []
        for pool in (near_duplicate_pool(200, 20, 3, seed=0), plain_pool(200, 20, 3, seed=0)):
            flat = pool.reshape(200, -1)
            distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + 99 * np.eye(200)
            near.append(np.median(distances.min(axis=1)) / np.median(distances[distances < 99]))

        assert near[0] < 0.25
        assert near[1] > 0.5

    @pytest.mark.parametrize("classes", [2, 3])
    def test_the_best_single_images_are_a_poor_batch(self, classes):
        """They are copies of one another: the best of images that are not tell more together."""
        pool = near_duplicate_pool(1_000, 50, classes, seed=0)
        flat = pool.reshape(1_000, -1)
        order = np.argsort(-single_information(pool))
        spread: list[int] = []
        for image in order:
            if len(spread) < 20 and all(np.abs(flat[image] - flat[other]).mean() > 0.1 for other in spread):
                spread.append(int(image))

        alike, different = (joint_information(pool[batch].astype(float), 2_000).nats for batch in (order[:20], spread))
        assert alike < 0.95 * different
