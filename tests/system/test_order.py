"""The served order is the published ranking, with two readers, real services and real rounds."""

import io
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from ml_backend.analytics.history import Answer, answers_of
from ml_backend.analytics.order_audit import stored_fidelity
from ml_backend.config import ProjectOptions
from ml_backend.demo.options import DRAWN_CLASSES, draw_images
from ml_backend.demo.project import RoundFollower, label_until
from ml_backend.demo.readers import ReadingRoom, SimulatedLabels
from ml_backend.demo.summary import View, check_order
from ml_backend.label_studio.sync import read_project
from ml_backend.rounds.replay import replays
from ml_backend.storage import ProjectStore
from tests.system.live import SMALL_NETWORK

pytestmark = pytest.mark.system

RETRAIN_AFTER = 12
OPTIONS = SMALL_NETWORK | {
    "batch_size": RETRAIN_AFTER,
    "reserve": 40,
    "retrain_after": RETRAIN_AFTER,
    "strategy": "entropy",
}


@dataclass(frozen=True)
class Labelled:
    """The state after two readers and some rounds."""

    room: ReadingRoom
    follower: RoundFollower
    tasks: list[dict[str, Any]]  # as Label Studio exports them
    store: ProjectStore
    answers: list[Answer]  # from the synchronized annotations


@pytest.fixture(scope="module")
def labelled(live_project) -> Labelled:
    project = live_project(draw_images(100, seed=5, side=64), OPTIONS)
    labels = SimulatedLabels(project.truth, DRAWN_CLASSES, mistakes=0.05, seed=5)
    readers = [project.reader("ann"), project.reader("ben")]
    room = ReadingRoom(readers, project.id, project.config, labels, project.follower.version)
    label_until(
        3,
        retrain_after=RETRAIN_AFTER,
        room=room,
        follower=project.follower,
        services=list(project.services),
        view=View(Console(file=io.StringIO())),
    )
    mirror = read_project(project.client, project.id, None).cache
    annotations = answers_of(mirror, project.config, ProjectOptions.resolve(OPTIONS, environ={}))
    return Labelled(room, project.follower, project.exported(), project.store, annotations)


class TestServedOrder:
    def test_every_image_was_the_first_of_the_ranking_in_force(self, labelled):
        results = check_order(labelled.room.served, labelled.follower.rankings)

        assert [str(d) for result in results.values() for d in result.deviations] == []
        assert sum(result.in_order for result in results.values()) >= 40

    def test_it_went_over_at_least_two_rankings_of_a_network(self, labelled):
        results = check_order(labelled.room.served, labelled.follower.rankings)
        trained = [published.version for report, published in labelled.follower.rounds if report.fit is not None]

        assert len(trained) >= 2
        assert all(results[version].in_order >= 5 for version in trained)

    def test_only_the_image_on_a_readers_screen_outlives_its_ranking(self, labelled):
        """Each of the two readers loads the page again at every re-ranking, and keeps the image."""
        held = [result.held for result in check_order(labelled.room.served, labelled.follower.rankings).values()]

        assert held[0] == 0
        assert set(held[1:]) == {2}

    def test_what_was_published_is_what_the_strategy_ranked(self, labelled):
        for report, published in labelled.follower.rounds:
            ranked = [image for image in report.ranking.image_ids if image in set(published.image_ids)]

            assert tuple(ranked) == published.image_ids

    def test_the_rankings_differ(self, labelled):
        """Else the second ranking could be served without anybody noticing that it never came."""
        *_, (_, before), (_, last) = labelled.follower.rounds
        left = set(last.image_ids) & set(before.image_ids)

        assert [i for i in before.image_ids if i in left] != [i for i in last.image_ids if i in left]

    def test_both_readers_labelled_in_turn_and_nothing_was_labelled_twice(self, labelled):
        submitted = labelled.room.submissions

        assert {s.reader for s in submitted[::2]} == {"ann"}
        assert {s.reader for s in submitted[1::2]} == {"ben"}
        assert len({s.image_id for s in submitted}) == len(submitted)

    def test_what_is_stored_tells_the_same_as_what_was_served(self, labelled):
        """From the orders and the answers alone: what was held over a switch is explained, the rest is in order."""
        fidelity = stored_fidelity(labelled.store, labelled.answers)

        assert fidelity is not None
        assert fidelity.answered == len(labelled.room.submissions)
        assert {one.kind for one in fidelity.exceptions} <= {"held"}, fidelity.exceptions
        assert fidelity.assumed_held == 0
        assert fidelity.in_order >= 40

    def test_every_selection_comes_out_again(self, labelled):
        """Random orders and a network's, from what the worker has kept, with every hash in place."""
        found = list(replays(labelled.store, labelled.store.folder.parents[1] / "cache"))

        assert [one.verdict for one in found] == ["same"] * len(found)
        assert [one.faults for one in found] == [()] * len(found)
        assert [one.notes for one in found] == [()] * len(found)
        assert {one.strategy for one in found} == {"random", "entropy"}

    def test_label_studio_holds_the_labels_that_were_given(self, labelled):
        stored = {str(t["id"]): t["annotations"][0]["result"][0]["value"]["choices"] for t in labelled.tasks}

        assert stored == {s.image_id: [s.value] for s in labelled.room.submissions}
