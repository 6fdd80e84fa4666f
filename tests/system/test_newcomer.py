"""A new owner in a real browser: labels up to the first network, changes the strategy, and sees both on the page."""

from urllib.parse import quote, urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from ml_backend.demo.options import draw_images
from ml_backend.schemas import round_name
from tests.system.labeling_page import LabelingPage
from tests.system.live import SMALL_NETWORK

pytestmark = [pytest.mark.system, pytest.mark.browser]

OPTIONS = SMALL_NETWORK | {"batch_size": 6, "retrain_after": 6, "noise_every": 0, "strategy": "entropy"}


class OwnersPage:
    """The backend's page of a project, as its owner opens it."""

    def __init__(self, browser: webdriver.Chrome, url: str, user: str, password: str) -> None:
        parts = urlsplit(url)
        self._browser = browser
        self._home = f"{parts.scheme}://{quote(user)}:{quote(password, safe='')}@{parts.netloc}"

    def follow_the_link_to(self, project_id: int) -> None:
        self._browser.get(f"{self._home}/")
        [link] = self._browser.find_elements(By.CSS_SELECTOR, f"h2 a[href*='/projects/{project_id}.']")
        self._browser.get(f"{self._home}{urlsplit(link.get_attribute('href') or '').path}")

    def sections(self) -> dict[str, str]:
        """Heading -> text of its section."""
        found = self._browser.find_elements(By.CSS_SELECTOR, "main section")
        return {one.find_element(By.TAG_NAME, "h2").text: " ".join(one.text.split()) for one in found}


def test_from_the_first_label_to_another_strategy(browser, live_project, backend):
    project = live_project(draw_images(40, seed=9, side=64), OPTIONS)
    project.wait_for()
    owner = OwnersPage(browser, backend.url, backend.user, backend.password)
    owner.follow_the_link_to(project.id)
    before = owner.sections()
    for name in ("normal", "moderate", "severe"):
        assert f"{name} 0 of 2" in before["Until the first training"]
    assert "Is it learning?" not in before

    # Six labels, two of each class, by hotkeys.
    first, second = project.reader("first"), project.reader("second")
    page = LabelingPage(browser, first.url)
    page.log_in(first.email, first.password)
    page.label_all_tasks(project.id)
    for key in "123123":
        page.answer(key)
    held = page.task_id()
    report, by_entropy = project.wait_for(lambda report: report.fit is not None)
    owner.follow_the_link_to(project.id)
    after = owner.sections()
    assert "Until the first training" not in after
    assert "Accuracy and AU ROC" in after["Is it learning?"]
    assert "Undecided between" in after["Chosen to be labelled next"]
    assert f"Task {by_entropy.image_ids[0]} no. 1 " in after["Chosen to be labelled next"]
    assert after["Class balance"]

    # Another strategy; nobody labels.
    project.connect(strategy="mean_std")
    reranked, by_std = project.wait_for(lambda report: report.ranking.strategy == "mean_std")
    assert reranked.base == report.request.round_id
    assert by_std.image_ids != by_entropy.image_ids
    owner.follow_the_link_to(project.id)
    assert (
        f"mean_std instead of entropy since {round_name(reranked.request.round_id)}: at once"
        in owner.sections()["Strategy"]
    )

    page = LabelingPage(browser, second.url)
    browser.delete_all_cookies()
    page.log_in(second.email, second.password)
    page.label_all_tasks(project.id)
    assert page.task_id() == next(image for image in by_std.image_ids if image != held)
