"""The second network that measures noise: trained after readers have their order, and interrupted by another round."""

import pytest

from ml_backend.analytics.agreement import NOISE, Agreement
from ml_backend.demo.options import draw_images
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

OPTIONS = SMALL_NETWORK | {
    # Long enough to request another round in the middle of the training.
    "finetune": "full",
    "epochs": 12,
    "patience": 12,
    "batch_size": 5,
    "noise_every": 1,
}


@pytest.fixture(scope="module")
def project(live_project) -> LiveProject:
    project: LiveProject = live_project(draw_images(60, seed=8, side=64), OPTIONS)
    project.label(project.first_of_each_class(5))
    return project


def start_second_training(project: LiveProject, before: list[str]) -> None:
    """Press the button, and wait until the second training has begun."""
    project.start_training()
    project.wait_until(
        lambda status: (
            status.progress is not None
            and status.progress.stage == "noise"
            and 0 < status.progress.done < status.progress.total
            and project.store.round_ids()[-1] not in before
        )
    )


class TestSecondNetwork:
    """One story, in the order of the tests."""

    def test_readers_have_their_order_before_it_trains(self, project):
        start_second_training(project, project.store.round_ids())

        newest = report, published = project.newest()
        round_id = report.request.round_id
        assert report.fit is not None
        assert published.completes(round_id)
        assert project.client.project(project.id)["model_version"] == published.version
        assert project.first_served("ann") == report.ranking.image_ids[0]
        assert project.store.rounds_with(NOISE) == []
        project.wait_for()

        noise = project.store.record(round_id, NOISE, Agreement)
        assert noise is not None
        assert noise.images == len(report.ranking.image_ids)
        assert noise.agreed is not None
        written = (project.store.folder / "rounds" / round_id / f"{NOISE}.json").stat().st_mtime
        assert written > published.published_at.timestamp()
        assert project.newest() == newest  # nothing was published for it

    def test_another_round_interrupts_it_and_is_followed_by_one(self, project):
        before = project.store.round_ids()
        start_second_training(project, before)
        *_, interrupted = project.store.round_ids()

        project.start_training()
        report, _ = project.wait_for(lambda report: report.request.round_id > interrupted)

        assert project.store.rounds_with(NOISE) == [before[-1], report.request.round_id]
