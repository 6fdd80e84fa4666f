"""The twin of a round's network: trained when readers have their order, and given up for whatever else wants to run."""

import pytest

from ml_backend.analytics.agreement import NOISE, Agreement
from ml_backend.demo.options import draw_images
from tests.system.owned import Owned

pytestmark = pytest.mark.system

OPTIONS: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    # Long enough to look into its training, and to ask for another round in the middle of it.
    "finetune": "full",
    "image_side": 64,
    "passes": 5,
    "epochs": 30,
    "patience": 30,
    "batch_size": 5,
    "retrain_after": 1000,
    "min_labels_per_class": 2,
    "noise_every": 1,
}


@pytest.fixture(scope="module")
def owned(live_project, backend) -> Owned:
    owned = Owned.of(live_project, backend, draw_images(60, seed=8, side=64), OPTIONS)
    owned.label(owned.some_of_each_class(5))
    return owned


def until_the_twin_trains(owned: Owned, before: list[str]) -> None:
    """Press the button, and wait until the twin of the network that comes of it has begun to train."""
    owned.project.start_training()
    owned.wait_until(
        lambda status: (
            status.progress is not None
            and status.progress.stage == "noise"
            and 0 < status.progress.done < status.progress.total
            and owned.store.round_ids()[-1] not in before
        )
    )


class TestTwin:
    """One story: the tests stand in its order."""

    def test_readers_have_their_order_before_it_trains(self, owned):
        until_the_twin_trains(owned, owned.store.round_ids())

        newest = owned.newest()
        assert newest is not None
        report, published = newest
        round_id = report.request.round_id
        assert report.fit is not None
        assert published.completes(round_id)
        assert owned.project.client.project(owned.id)["model_version"] == published.version
        assert owned.served_first("ann") == report.ranking.image_ids[0]
        assert owned.store.rounds_with(NOISE) == []
        owned.wait_for()

        noise = owned.store.record(round_id, NOISE, Agreement)
        assert noise is not None
        assert noise.images == len(report.ranking.image_ids)
        assert noise.agreed is not None
        written = (owned.store.folder / "rounds" / round_id / f"{NOISE}.json").stat().st_mtime
        assert written > published.published_at.timestamp()
        assert owned.newest() == newest  # nothing was published for it

    def test_gives_way_to_another_round_and_is_asked_after_that_one(self, owned):
        before = owned.store.round_ids()
        until_the_twin_trains(owned, before)
        *_, interrupted = owned.store.round_ids()

        owned.project.start_training()
        report, _ = owned.wait_for(lambda report: report.request.round_id > interrupted)

        assert owned.store.rounds_with(NOISE) == [before[-1], report.request.round_id]
