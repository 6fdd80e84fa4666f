"""The inputs of the benchmark, and our batches against those that batchbald-redux picked from the same pool."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ml_backend.acquisition import bald, rank
from ml_backend.storage import RoundStore
from tests.benchmarks.compare import joint_information
from tests.benchmarks.inputs import draw_radiograph, near_duplicate_pool, plain_pool, stored_project
from tests.system.owner_data import KEY

RECORD = json.loads((Path(__file__).parent / "batchbald_redux.json").read_text())


@pytest.mark.parametrize("draw", [near_duplicate_pool, plain_pool])
def test_rows_are_probabilities(draw):
    pool = draw(50, 8, 3, seed=1)

    assert pool.shape == (50, 8, 3)
    assert pool.dtype == np.float32
    assert pool.min() > 0.0
    assert np.allclose(pool.sum(axis=-1), 1.0, atol=1e-6)
    assert np.array_equal(pool, draw(50, 8, 3, seed=1))
    assert not np.array_equal(pool, draw(50, 8, 3, seed=6))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_best_single_images_are_a_poor_batch(classes):
    """They are copies of one another: the best of those that differ have more information together."""
    pool = near_duplicate_pool(1_000, 50, classes, seed=0)
    order = np.argsort(-bald(torch.from_numpy(pool)).numpy())
    flat, distinct = pool.reshape(1_000, -1), list[int]()
    for image in order:
        if len(distinct) < 20 and all(np.abs(flat[image] - flat[other]).mean() > 0.1 for other in distinct):
            distinct.append(int(image))

    alike, different = (joint_information(pool[batch], 2_000)[0] for batch in (order[:20], distinct))
    assert alike < 0.95 * different


@pytest.mark.parametrize("classes", [2, 3])
class TestRecordedPicks:
    def test_our_batch_has_as_much_information(self, classes):
        """At most half a percent less, in nats of mutual information with the network."""
        spec, theirs = RECORD["pool"], RECORD["picks"][str(classes)]
        pool = near_duplicate_pool(spec["images"], spec["passes"], classes, spec["seed"])
        ours = rank("batch_bald", torch.from_numpy(pool), len(theirs)).order[: len(theirs)].tolist()

        (our_nats, our_error), (their_nats, their_error) = (joint_information(pool[batch]) for batch in (ours, theirs))
        assert max(our_error, their_error) < 0.001 * their_nats
        assert our_nats >= 0.995 * their_nats

    def test_the_pool_is_that_of_the_record(self, classes):
        """Their first pick is the best single image; from another pool the record would compare nothing."""
        spec, theirs = RECORD["pool"], RECORD["picks"][str(classes)]
        pool = near_duplicate_pool(spec["images"], spec["passes"], classes, spec["seed"])
        drawn = np.random.default_rng(0).permutation(len(pool))[: len(theirs)]

        assert rank("bald", torch.from_numpy(pool), 1).order[0] == theirs[0]
        assert joint_information(pool[theirs], 2_000)[0] > 1.05 * joint_information(pool[drawn], 2_000)[0]


def test_a_radiograph_has_noise():
    """Without it an image would compress, and decode, like a drawing."""
    image = draw_radiograph(1024, 700, seed=0).astype(float)

    assert image.shape == (1024, 700)
    assert 2.0 < (image[500:520, 300:320] - image[501:521, 300:320]).std() < 10.0


def test_a_stored_project_has_ranked_its_pool(tmp_path):
    report = RoundStore(stored_project(tmp_path, 30)).project(KEY).latest()

    assert report is not None
    assert len(report.ranking.image_ids) == 30
    assert report.trained
