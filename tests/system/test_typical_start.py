"""``cold_start=typiclust``: readers get a random order at once, and the typical one as soon as it is there."""

import json

import pytest

from ml_backend.demo.options import draw_images
from ml_backend.rounds.cold_start import random_order
from tests.system.owned import Owned

pytestmark = pytest.mark.system

BATCH = 6
OPTIONS: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    "image_side": 64,
    "batch_size": BATCH,
    "retrain_after": BATCH,
    "min_labels_per_class": 25,
    "cold_start": "typiclust",
}


@pytest.fixture(scope="module")
def owned(live_project, backend) -> Owned:
    owned = Owned.of(live_project, backend, draw_images(40, seed=17, side=64), OPTIONS)
    owned.wait_for(lambda report: report.ranking.strategy == "typiclust")
    return owned


class TestTypicalStart:
    """One story: the tests stand in its order."""

    def test_a_random_order_first_and_the_typical_one_after_it(self, owned):
        random, typical = map(owned.store.report, owned.store.round_ids())

        assert (random.ranking.strategy, typical.ranking.strategy) == ("random", "typiclust")
        assert random.fit is typical.fit is None
        assert random.ranking == random_order(list(owned.project.images()), BATCH, 0)
        served = owned.store.orders()
        assert [order.round_id for order in served] == [random.request.round_id, typical.request.round_id]
        # Readers had the first while the features for the second were computed.
        assert served[0].published_at < typical.started_at < served[1].published_at
        assert typical.seconds["features"] > 0

    def test_the_next_task_is_the_first_of_the_typical_order(self, owned):
        random, typical = map(owned.store.report, owned.store.round_ids())

        assert owned.served_first("ann") == typical.ranking.image_ids[0] != random.ranking.image_ids[0]

    def test_groups_that_have_a_label_come_later_in_the_next(self, owned):
        """One round, not two: the features are there."""
        before, newest = owned.store.round_ids(), owned.newest()
        assert newest is not None
        owned.label(newest[1].image_ids[:BATCH])

        report, published = owned.wait_for(lambda report: report.request.round_id not in before)

        assert (report.ranking.strategy, report.request.reason) == ("typiclust", "labels")
        assert owned.store.round_ids() == [*before, report.request.round_id]
        assert not set(newest[1].image_ids[:BATCH]) & set(report.ranking.image_ids)
        assert owned.served_first("ben") == report.ranking.image_ids[0] == published.image_ids[0]

    def test_every_order_comes_out_again_from_the_cache(self, owned):
        done = owned.run("replay", "--project", str(owned.id), "--json")

        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert (done.returncode, done.stderr) == (0, "")
        assert [(one["strategy"], one["verdict"]) for one in found] == [
            ("random", "same"),
            ("typiclust", "same"),
            ("typiclust", "same"),
        ]
        assert all(one["sound"] and not one["notes"] for one in found)
