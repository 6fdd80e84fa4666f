"""The owner chooses another strategy in mid-project, and the next image served is the first of its order."""

import html
import re

import httpx
import numpy as np
import pytest

from ml_backend.acquisition import CatalogStrategy
from ml_backend.analytics.history import strategy_history
from ml_backend.demo.options import DRAWN_CLASSES, draw_images
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import RoundReport
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

PER_CLASS = 4
OPTIONS = SMALL_NETWORK | {"batch_size": 4, "reserve": 20}


def edit_config(project: LiveProject, strategy: str) -> None:
    """Name another strategy in the Choices tag, in the settings of the project."""
    config = str(project.client.project(project.id)["label_config"])
    edited, times = re.subn(r'model_strategy="\w+"', f'model_strategy="{strategy}"', config)
    assert times == 1
    project.client.patch_project(project.id, {"label_config": edited})


def choose(project: LiveProject, **options: str) -> None:
    """Change options in the form of the project's page, and leave the others as it shows them."""
    page = project.page("text/html", "/options")
    form = page.text.partition("<form")[2].partition("</form")[0]
    fields = re.findall(r'name="(\w+)" value="([^"]*)"', form)
    shown = {name: html.unescape(value) for name, value in fields}
    shown["strategy"] = re.findall(r'<option value="(\w+)" selected', form)[0]
    origin = {"Origin": project.backend.url, "Accept": "text/html"}
    auth = (project.backend.user, project.backend.password)
    answer = httpx.post(str(page.url), data=shown | options, headers=origin, auth=auth, timeout=120)
    assert answer.status_code == 303, answer.text


@pytest.fixture(scope="module")
def project(live_project) -> LiveProject:
    project: LiveProject = live_project(draw_images(40, seed=3, side=64), OPTIONS)
    project.label(project.first_of_each_class(PER_CLASS))
    project.train()
    return project


def expected(outputs: PoolPredictions, strategy: str) -> tuple[str, ...]:
    return CatalogStrategy(strategy).rank(outputs, 4, 0).image_ids


class TestAnotherStrategy:
    """One story, in the order of the tests."""

    def test_in_the_labelling_config_is_served_at_once_from_the_stored_passes(self, project):
        base, before = project.newest()
        outputs = project.store.outputs(base.request.round_id)
        assert outputs is not None

        report, published = project.after(lambda: edit_config(project, "margin"))

        assert (base.request.strategy, report.request.strategy) == ("mean_std", "margin")
        assert (report.request.reason, report.base, report.fit) == ("rerank", base.request.round_id, None)
        assert report.ranking.image_ids == expected(outputs, "margin")
        assert published.image_ids == report.ranking.image_ids[: len(published.image_ids)]
        assert published.image_ids != before.image_ids
        self.the_page_knows_the_network_of(project, base)
        assert project.first_served("ann") == published.image_ids[0]

    @staticmethod
    def the_page_knows_the_network_of(project: LiveProject, base: RoundReport) -> None:
        """Though the newest round trained none."""
        data, page = project.page("application/json").json(), project.page().text
        assert (data["network"]["round_id"], data["network"]["ranks"]) == (base.request.round_id, True)
        assert (data["start"], data["standing"]["verdict"]) == (None, "waiting")
        assert "Until the" not in page
        assert "none yet" not in page

    def test_in_the_connection_is_served_at_once_by_the_saved_network(self, project):
        """Chosen on the page, by a form that the page fills with what is there."""
        base = project.newest()[0].base
        before = project.client.backends(project.id)[0]["extra_params"]

        report, published = project.after(lambda: choose(project, strategy="typiclust", batch_size="6"))

        after = project.client.backends(project.id)[0]["extra_params"]
        assert after == before | {"strategy": "typiclust", "batch_size": 6}
        page = project.page("text/html", "/options").text
        assert f"UTC, {project.backend.user}: strategy margin → typiclust, batch_size 4 → 6" in page

        assert (report.request.strategy, report.request.reason, report.base) == ("typiclust", "rerank", base)
        assert (report.ranking.strategy, report.ranking.batch_size) == ("typiclust", 6)
        assert project.client.project(project.id)["model_version"] == published.version
        assert project.first_served("ben") == report.ranking.image_ids[0] == published.image_ids[0]

    def test_the_restored_network_says_what_it_said(self, project):
        """To the bit: what its ranking kept is what the training kept."""
        report, _ = project.newest()
        again, first = project.store.outputs(report.request.round_id), project.store.outputs(str(report.base))

        assert again is not None
        assert first is not None
        assert again.image_ids == first.image_ids
        assert np.array_equal(again.probs, first.probs)

    def test_the_page_can_tell_every_change(self, project):
        history = strategy_history(project.store.summaries()[0])

        assert [(one.after, one.how) for one in history] == [
            ("mean_std", "connected"),
            ("margin", "at once"),
            ("typiclust", "at once"),
        ]

    @pytest.mark.parametrize("change", [{}, {"reserve": 21}], ids=["the same again", "no matter of the order"])
    def test_what_changes_no_order_starts_nothing(self, project, change):
        rounds, (_, before) = project.store.round_ids(), project.newest()

        project.connect(strategy="typiclust", batch_size=6, **change)

        status = project.follower.poll(patient=True)
        assert (status.running, status.waiting) == (None, None)
        assert (project.store.round_ids(), project.newest()[1]) == (rounds, before)

    def test_a_training_goes_on_with_the_strategy_of_now(self, project):
        report, _ = project.after(project.start_training)

        assert (report.request.strategy, report.base) == ("typiclust", None)
        assert report.fit is not None

    def test_going_on_without_a_class(self, project):
        """Its labels are left out, named, and back in the next training once the option is taken back."""
        project.connect(strategy="typiclust", ignore_classes="severe")

        without, _ = project.after(project.start_training)
        result = project.page("application/json").json()
        project.connect(strategy="typiclust")
        again, _ = project.after(project.start_training)

        assert without.fit is not None
        assert without.labels_per_class == {"normal": PER_CLASS, "moderate": PER_CLASS}
        assert [(one["kind"], one["count"]) for one in result["standing"]["left_out"]] == [("ignored class", PER_CLASS)]
        assert (result["network"]["round_id"], result["start"]) == (without.request.round_id, None)
        assert again.fit is not None
        assert again.labels_per_class == dict.fromkeys(DRAWN_CLASSES, PER_CLASS)
