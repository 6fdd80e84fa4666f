"""A reader in a real browser: the keys that the label config promises, and the order that the ranking promises."""

import time

import pytest

from ml_backend.demo.films import draw_films
from tests.system.exported import exported_tasks
from tests.system.hands import Hands

pytestmark = [pytest.mark.system, pytest.mark.browser]

KEYS = {"1": "normal", "2": "moderate", "3": "severe", "0": "unreadable"}


class TestBrowser:
    def test_hotkeys_label_the_images_in_the_order_of_the_ranking(self, browser, live_project):
        project = live_project(draw_films(12, seed=3, side=64), {"image_side": 64, "weights": "none"})
        while not project.follower.rounds:
            project.follower.poll()
            time.sleep(0.2)
        reader = project.reader("browser")

        page = Hands(browser, reader.url)
        page.log_in(reader.email, reader.password)
        page.label_all_tasks(project.id)
        seen = []
        for key in KEYS:
            seen.append(page.task_id())
            page.answer(key)

        (_, published), *_ = project.follower.rounds
        assert tuple(seen) == published.image_ids[: len(KEYS)]
        tasks = exported_tasks(project.client, project.id)
        stored = {str(task["id"]): task["annotations"][0]["result"][0]["value"]["choices"] for task in tasks}
        assert stored == dict(zip(seen, [[label] for label in KEYS.values()], strict=True))
