"""Bad input on real parts: a clear answer or a named exclusion, never a stopped round."""

import time
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ml_backend.demo.options import draw_images
from ml_backend.demo.readers import file_name
from ml_backend.errors import RequestRefused
from ml_backend.schemas import RoundReport

pytestmark = pytest.mark.system

OPTIONS: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    "finetune": "head",
    "image_side": 64,
    "passes": 5,
    "epochs": 5,
    "retrain_after": 1000,  # only when all labels are given, by hand
    "min_labels_per_class": 2,
}
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Troubled:
    """A trained round in a project with everything wrong in it, and the tasks that are wrong."""

    report: RoundReport
    published: tuple[str, ...]
    without_image: str
    page: str
    zebra: str

    def reason(self, image_id: str) -> str:
        found = [exclusion.reason for exclusion in self.report.exclusions if exclusion.image_id == image_id]
        assert len(found) == 1, self.report.exclusions
        return found[0]


def wait_for_rounds(project: Any, trained: int) -> None:
    """Until there is an order, so many rounds have trained a network, and none runs or waits."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        status = project.follower.poll()
        idle = status.running is None and status.waiting is None
        if idle and project.follower.rounds and project.follower.trained >= trained:
            return
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


@pytest.fixture(scope="module")
def troubled(live_project) -> Troubled:
    films = draw_images(40, seed=11, side=64)
    truth = {film.name: film.label for film in films}
    project = live_project(films, OPTIONS)
    ask = project.client.request
    for data in ({"image": ""}, {"image": "/user/login/"}):
        ask("POST", "/api/tasks/", dict, body={"project": project.id, "data": data})
    tasks = project.images()
    without_image = next(number for number, uri in tasks.items() if not uri)
    page = next(number for number, uri in tasks.items() if uri == "/user/login/")
    drawn = [number for number in tasks if number not in {without_image, page}]
    of_class = {name: [n for n in drawn if truth[file_name(tasks[n])] == name] for name in project.config.classes}
    chosen = [number for numbers in of_class.values() for number in numbers[:4]]
    zebra = next(number for number in drawn if number not in chosen)
    # The tasks have called for rounds of their own: one that begins while labels are given would see half of them.
    wait_for_rounds(project, trained=0)
    project.label({number: truth[file_name(tasks[number])] for number in chosen} | {zebra: "zebra"})
    project.start_training()
    wait_for_rounds(project, trained=1)
    report, published = project.follower.rounds[-1]
    return Troubled(report, published.image_ids, without_image, page, zebra)


class TestRound:
    def test_it_is_trained_and_published_all_the_same(self, troubled):
        assert troubled.report.fit is not None
        assert len(troubled.published) > 0

    def test_a_task_without_an_image_is_named(self, troubled):
        assert "has no image" in troubled.reason(troubled.without_image)
        assert troubled.without_image not in troubled.published

    def test_an_address_that_is_no_file_is_named(self, troubled, backend):
        """A page of Label Studio, which the key must not open; and the owner finds it on the backend's page."""
        assert "is no file of Label Studio" in troubled.reason(troubled.page)
        assert troubled.page not in troubled.published
        projects = httpx.get(backend.url, auth=(backend.user, backend.password), timeout=10).json()["projects"]
        listed = [image["image_id"] for project in projects for image in project["quarantined"]["listed"]]
        assert troubled.page in listed

    def test_a_label_that_is_no_class_is_named(self, troubled):
        assert "'zebra'" in troubled.reason(troubled.zebra)
        assert "normal, moderate, severe" in troubled.reason(troubled.zebra)


class TestWrongOption:
    def test_label_studio_shows_the_key_the_value_and_what_is_allowed(self, live_project, backend):
        """As an owner meets it who adds the backend by hand and mistypes a strategy."""
        project = live_project(draw_images(20, seed=12, side=64), OPTIONS)
        [connected] = project.client.backends(project.id)
        fields = {
            "url": connected["url"],
            "project": project.id,
            "extra_params": OPTIONS | {"strategy": "entropi"},
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": backend.user,
            "basic_auth_pass": backend.password,
        }
        try:
            project.client.patch_backend(int(connected["id"]), fields)
        except RequestRefused as refusal:
            shown = str(refusal)
        else:
            [now] = project.client.backends(project.id)
            assert now["state"] == "ER"
            shown = now["error_message"]

        assert "strategy='entropi'" in shown
        assert "mean_std" in shown


class TestWebhook:
    @pytest.mark.parametrize(
        ("body", "status", "named"),
        [
            (b"{not json", 400, "JSON"),
            (b'{"action": "ANNOTATION_CREATED", "project": {"id": 987654}}', 404, "987654"),
            (b'{"action": "ANNOTATION_CREATED"}', 400, "names no project"),
        ],
        ids=["malformed", "unknown project", "no project"],
    )
    def test_answers_clearly(self, backend, body, status, named):
        auth = (backend.user, backend.password)
        answer = httpx.post(f"{backend.url}/webhook", content=body, auth=auth, timeout=10)

        assert answer.status_code == status
        assert named in answer.json()["error"]
