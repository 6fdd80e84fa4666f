"""The owner chooses another strategy in mid-project, and the next image served is the first of its order."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.acquisition import CatalogStrategy
from ml_backend.analytics.history import strategy_history
from ml_backend.config import Settings
from ml_backend.demo.options import DRAWN_CLASSES, draw_images
from ml_backend.demo.readers import file_name
from ml_backend.label_studio.connect import connect_project
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore, RoundStore
from tests.system.owned import page_of

pytestmark = pytest.mark.system

FILMS = 40
PER_CLASS = 4
WITHIN_S = 60.0
OPTIONS: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    "finetune": "head",
    "image_side": 64,
    "passes": 5,
    "epochs": 5,
    "batch_size": 4,
    "reserve": 20,
    "retrain_after": 100,
    "min_labels_per_class": 2,
}


@dataclass
class Owned:
    """A trained project, and what its owner can do with it."""

    project: Any  # LiveProject
    store: ProjectStore
    settings: Settings
    backend: Any  # Backend

    @property
    def backend_url(self) -> str:
        return str(self.backend.url)

    def told(self) -> dict[str, Any]:
        """The JSON of the project's page."""
        told: dict[str, Any] = page_of(self.backend, self.store.folder.name, "application/json").json()
        return told

    def connect(self, **options: object) -> list[str]:
        return connect_project(self.settings, self.project.id, self.backend_url, OPTIONS | options, self.project.client)

    def edit_config(self, strategy: str) -> None:
        """Name another strategy in the Choices tag, in the settings of the project."""
        config = str(self.project.client.project(self.project.id)["label_config"])
        edited, times = re.subn(r'model_strategy="\w+"', f'model_strategy="{strategy}"', config)
        assert times == 1
        self.project.client.patch_project(self.project.id, {"label_config": edited})

    def newest(self) -> tuple[RoundReport, PublishedRanking]:
        published = self.store.published()
        assert published is not None
        return self.store.report(published.round_id), published

    def after(self, act: Callable[[], object]) -> tuple[RoundReport, PublishedRanking]:
        """What is served once something else is than before the act, and nothing runs any more."""
        _, before = self.newest()
        act()
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            status = self.project.follower.poll(patient=True)
            report, published = self.newest()
            if published.version != before.version and status.running is status.waiting is None:
                return report, published
            time.sleep(0.1)
        pytest.fail(f"still served after {WITHIN_S:.0f} s: {before.version}; {self.project.follower.poll()}")

    def served_first(self, name: str) -> str:
        """What a reader gets who has no image on the screen yet; another would get that one again."""
        image = self.project.reader(name).next_task(self.project.id, self.project.config)
        assert image is not None
        return str(image.image_id)


@pytest.fixture(scope="module")
def owned(live_project) -> Owned:
    films = draw_images(FILMS, seed=3, side=64)
    truth = {film.name: film.label for film in films}
    project = live_project(films, OPTIONS)
    backend = next(service for service in project.services if hasattr(service, "environ") and hasattr(service, "user"))
    key = project.follower.project
    settings = Settings.load(
        label_studio_url=project.client.url,
        label_studio_api_key=backend.environ["AL_LABEL_STUDIO_API_KEY"],
        basic_auth_user=backend.user,
        basic_auth_pass=backend.password,
    )
    store = RoundStore(Path(backend.environ["AL_DATA_DIR"])).project(key)
    owned = Owned(project, store, settings, backend)
    values: dict[str, str] = {}
    for name in DRAWN_CLASSES:
        found = [i for i, uri in project.images().items() if truth[file_name(uri)] == name]
        values |= dict.fromkeys(found[:PER_CLASS], name)
    project.label(values)
    wait_for_a_network(owned)
    return owned


def wait_for_a_network(owned: Owned) -> None:
    owned.project.start_training()
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        status = owned.project.follower.poll(patient=True)
        if status.running is status.waiting is None and owned.newest()[0].fit is not None:
            return
        time.sleep(0.1)
    pytest.fail("no network was trained")


def expected(outputs: PoolPredictions, strategy: str) -> tuple[str, ...]:
    return CatalogStrategy(strategy).rank(outputs, 4, 0).image_ids


class TestAnotherStrategy:
    """One story: the tests stand in its order."""

    def test_in_the_labelling_config_is_served_at_once_from_the_stored_passes(self, owned):
        base, before = owned.newest()
        outputs = owned.store.outputs(base.request.round_id)
        assert outputs is not None

        report, published = owned.after(lambda: owned.edit_config("margin"))

        assert (base.request.strategy, report.request.strategy) == ("mean_std", "margin")
        assert (report.request.reason, report.base, report.fit) == ("rerank", base.request.round_id, None)
        assert report.ranking.image_ids == expected(outputs, "margin")
        assert published.image_ids == report.ranking.image_ids[: len(published.image_ids)]
        assert published.image_ids != before.image_ids
        self.the_page_knows_the_network_of(owned, base)
        assert owned.served_first("ann") == published.image_ids[0]

    @staticmethod
    def the_page_knows_the_network_of(owned: Owned, base: RoundReport) -> None:
        """Though the newest round trained none."""
        told, page = owned.told(), page_of(owned.backend, owned.store.folder.name).text
        assert (told["network"]["round_id"], told["network"]["ranks"]) == (base.request.round_id, True)
        assert (told["start"], told["standing"]["verdict"]) == (None, "waiting")
        assert "Until the" not in page
        assert "none yet" not in page

    def test_in_the_connection_is_served_at_once_by_the_saved_network(self, owned):
        base = owned.newest()[0].base

        report, published = owned.after(lambda: owned.connect(strategy="typiclust", batch_size=6))

        assert (report.request.strategy, report.request.reason, report.base) == ("typiclust", "rerank", base)
        assert (report.ranking.strategy, report.ranking.batch_size) == ("typiclust", 6)
        assert owned.project.client.project(owned.project.id)["model_version"] == published.version
        assert owned.served_first("ben") == report.ranking.image_ids[0] == published.image_ids[0]

    def test_the_restored_network_says_what_it_said(self, owned):
        """To the bit: what its ranking kept is what the training kept."""
        report, _ = owned.newest()
        again, first = owned.store.outputs(report.request.round_id), owned.store.outputs(str(report.base))

        assert again is not None
        assert first is not None
        assert again.image_ids == first.image_ids
        assert np.array_equal(again.probs, first.probs)

    def test_the_page_can_tell_every_change(self, owned):
        history = strategy_history(owned.store.report(round_id) for round_id in owned.store.round_ids())

        assert [(one.after, one.how) for one in history] == [
            ("mean_std", "connected"),
            ("margin", "at once"),
            ("typiclust", "at once"),
        ]

    @pytest.mark.parametrize("change", [{}, {"reserve": 21}], ids=["the same again", "no matter of the order"])
    def test_what_changes_no_order_starts_nothing(self, owned, change):
        rounds, (_, before) = owned.store.round_ids(), owned.newest()

        owned.connect(strategy="typiclust", batch_size=6, **change)

        status = owned.project.follower.poll(patient=True)
        assert (status.running, status.waiting) == (None, None)
        assert (owned.store.round_ids(), owned.newest()[1]) == (rounds, before)

    def test_a_training_goes_on_with_the_strategy_of_now(self, owned):
        report, _ = owned.after(owned.project.start_training)

        assert (report.request.strategy, report.base) == ("typiclust", None)
        assert report.fit is not None

    def test_going_on_without_a_class(self, owned):
        """Its labels are left out, named, and back in the next training once the option is taken back."""
        owned.connect(strategy="typiclust", ignore_classes="severe")

        without, _ = owned.after(owned.project.start_training)
        told = owned.told()
        owned.connect(strategy="typiclust")
        again, _ = owned.after(owned.project.start_training)

        assert without.fit is not None
        assert without.labels_per_class == {"normal": PER_CLASS, "moderate": PER_CLASS}
        assert [(one["kind"], one["count"]) for one in told["standing"]["left_out"]] == [("ignored class", PER_CLASS)]
        assert (told["network"]["round_id"], told["start"]) == (without.request.round_id, None)
        assert again.fit is not None
        assert again.labels_per_class == dict.fromkeys(DRAWN_CLASSES, PER_CLASS)
