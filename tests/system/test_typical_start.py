"""``cold_start=typiclust``: readers get a random order at once, and the typical one as soon as it is there."""

import json
import re

import httpx
import pytest
import torch
from torchvision.models import resnet18

from ml_backend.demo.options import draw_images
from ml_backend.rounds.cold_start import random_order
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

BATCH = 6
OPTIONS = SMALL_NETWORK | {
    "batch_size": BATCH,
    "retrain_after": BATCH,
    "min_labels_per_class": 25,
    "cold_start": "typiclust",
}


@pytest.fixture(scope="module")
def project(live_project, tmp_path_factory) -> LiveProject:
    """With weights from a file: those of ``weights=none`` would leave the order random."""
    weights = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), weights)
    project: LiveProject = live_project(draw_images(40, seed=17, side=64), OPTIONS | {"weights": str(weights)})
    project.wait_for(lambda report: report.ranking.strategy == "typiclust")
    return project


class TestTypicalStart:
    """One story, in the order of the tests."""

    def test_a_random_order_first_and_the_typical_one_after_it(self, project):
        random, typical = map(project.store.report, project.store.round_ids())

        assert (random.ranking.strategy, typical.ranking.strategy) == ("random", "typiclust")
        assert random.fit is typical.fit is None
        assert random.ranking == random_order(list(project.images()), BATCH, 0)
        served = project.store.orders()
        assert [order.round_id for order in served] == [random.request.round_id, typical.request.round_id]
        # Readers had the first while the features for the second were computed.
        assert served[0].published_at < typical.started_at < served[1].published_at
        assert typical.seconds["features"] > 0

    def test_the_next_task_is_the_first_of_the_typical_order(self, project):
        random, typical = map(project.store.report, project.store.round_ids())

        assert project.first_served("ann") == typical.ranking.image_ids[0] != random.ranking.image_ids[0]

    def test_groups_that_have_a_label_come_later_in_the_next(self, project):
        """One round, not two: the features are there."""
        before, labelled = project.store.round_ids(), project.newest()[1].image_ids[:BATCH]
        project.label(labelled)

        report, published = project.wait_for(lambda report: report.request.round_id not in before)

        assert (report.ranking.strategy, report.request.reason) == ("typiclust", "labels")
        assert project.store.round_ids() == [*before, report.request.round_id]
        assert not set(labelled) & set(report.ranking.image_ids)
        assert project.first_served("ben") == report.ranking.image_ids[0] == published.image_ids[0]

    def test_similar_images_are_put_next_and_stay_in_front_until_they_have_a_label(self, project):
        """Two neighbours of the first image; the next round has a label of one of them."""
        report, published = project.newest()
        below = f"/similar/{published.image_ids[0]}"
        page = project.page(below=below)
        chosen = re.findall(r'name="chosen" value="(\d+)"', page.text)[-2:]
        token = re.findall(r'name="token" value="(\w+)"', page.text)[0]
        assert len(re.findall(r"Label: <b>", page.text)) == 6
        form = {"token": token, "chosen": chosen}
        headers = {"Origin": project.backend.url, "Accept": "text/html"}
        auth = (project.backend.user, project.backend.password)

        again, published = project.after(lambda: httpx.post(page.url, data=form, headers=headers, auth=auth))

        assert again == report
        assert list(published.by_hand) == list(published.image_ids[:2]) == chosen
        assert project.first_served("cem") == chosen[0]
        later, published = project.after(lambda: project.label([chosen[0], *published.image_ids[-BATCH + 1 :]]))
        assert later.request.round_id > report.request.round_id
        assert (published.by_hand, published.image_ids[0]) == ((chosen[1],), chosen[1])
        assert later.ranking.by_hand == ()
        fidelity = project.page("application/json").json()["fidelity"]
        assert "1 of the images had been put next by hand." in fidelity["sentence"]

    def test_every_order_comes_out_again_from_the_cache(self, project):
        done = project.run("replay", "--project", str(project.id), "--json")

        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert (done.returncode, done.stderr) == (0, "")
        assert [(one["strategy"], one["verdict"]) for one in found] == [
            ("random", "same"),
            *[("typiclust", "same")] * 3,
        ]
        assert all(one["sound"] and not one["notes"] for one in found)
