"""Our batches against those that batchbald-redux picked once: what they tell together, by one judge.

``tests/data/bench/batchbald_redux.json`` says which pools, and how it was made.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ml_backend.acquisition import rank
from ml_backend.bench.judge import joint_information
from ml_backend.bench.pools import near_duplicate_pool

RECORD = json.loads((Path(__file__).parents[2] / "data" / "bench" / "batchbald_redux.json").read_text())


@pytest.mark.parametrize("classes", [2, 3])
def test_batch_bald_tells_as_much(classes):
    """Half a percent less at most: the floor of the issue, in nats of mutual information with the network."""
    spec = RECORD["pool"]
    pool = near_duplicate_pool(spec["images"], spec["passes"], classes, spec["seed"])
    theirs = RECORD["picks"][str(classes)]
    ours = rank("batch_bald", torch.from_numpy(pool), len(theirs)).order[: len(theirs)].tolist()

    judged = [joint_information(pool[batch].astype(np.float64), 40_000) for batch in (ours, theirs)]
    assert max(information.standard_error for information in judged) < 0.001 * judged[1].nats
    assert judged[0].nats >= 0.995 * judged[1].nats


@pytest.mark.parametrize("classes", [2, 3])
def test_the_pool_is_the_one_of_the_record(classes):
    """Their first pick is the best single image; were the pool another one, the record would judge nothing."""
    spec = RECORD["pool"]
    pool = near_duplicate_pool(spec["images"], spec["passes"], classes, spec["seed"])
    theirs = RECORD["picks"][str(classes)]

    assert rank("bald", torch.from_numpy(pool), 1).order[0] == theirs[0]
    chance = np.random.default_rng(0).permutation(len(pool))[: len(theirs)]
    judged = [joint_information(pool[batch].astype(np.float64), 2_000).nats for batch in (theirs, chance)]
    assert judged[0] > 1.05 * judged[1]
