"""A new owner, from a folder of studies to a file that predicts.

Imports, labels in a real browser up to the first network, changes the strategy, sees both on the page, and predicts new
studies with the network.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from ml_backend.demo.options import DemoImage, draw_images
from ml_backend.label_studio.connect import read_label_config
from ml_backend.schemas import round_name
from tests.command_line import run_cli
from tests.system.labeling_page import LabelingPage
from tests.system.live import SMALL_NETWORK
from tests.unit.images.test_dicom import file_of, radiograph

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


def write_studies(folder: Path, images: Sequence[DemoImage]) -> None:
    """Every other one as DICOM."""
    folder.mkdir()
    for number, image in enumerate(images):
        content = image.content
        if number % 2:
            levels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
            content = file_of(radiograph(levels, PatientID=f"P{number}"))
        (folder / f"{number:03}").write_bytes(content)


@pytest.fixture
def imported(live_project, backend, tmp_path) -> Callable[[Sequence[DemoImage]], Any]:
    """Make a project of images by ``ml-backend import``."""

    def upload(*given: Any) -> Iterator[int]:
        _, _, project_id, _, images = given
        write_studies(tmp_path / "studies", images)
        words = ("studies", "--project", str(project_id), "--url", backend.url)
        done = run_cli(["import", *words], backend.environ, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        yield len(images)

    attributes = " ".join(f'model_{name}="{value}"' for name, value in OPTIONS.items())
    config = read_label_config("severity").replace('model_strategy="mean_std"', attributes)
    return lambda images: live_project(images, OPTIONS, upload, config)


def test_from_a_folder_of_studies_to_a_file_that_predicts(browser, imported, backend, tmp_path):
    project = imported(draw_images(40, seed=9, side=64))
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

    # The network, on new studies.
    write_studies(tmp_path / "new", draw_images(6, seed=10, side=64))
    exported = run_cli(["export", "--project", str(project.id), "--out", "model"], backend.environ, tmp_path)
    assert exported.returncode == 0, exported.stderr
    predicted = run_cli(["predict", "--model", "model", "--images", "new"], backend.environ, tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [Path(row["path"]).name for row in rows] == [f"{number:03}" for number in range(6)]
    classes = ("normal", "moderate", "severe")
    assert all(sum(float(row[f"p_{name}"]) for name in classes) == pytest.approx(1, abs=1e-4) for row in rows)
