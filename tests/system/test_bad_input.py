"""Bad input on real services: a clear refusal or a named exclusion, never a stopped round."""

from dataclasses import dataclass

import httpx
import pytest

from ml_backend.demo.options import draw_images
from ml_backend.errors import RequestRefused
from ml_backend.schemas import RoundReport
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system


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


@pytest.fixture(scope="module")
def troubled(live_project) -> Troubled:
    project: LiveProject = live_project(draw_images(40, seed=11, side=64), SMALL_NETWORK)
    ask = project.client.request
    for data in ({"image": ""}, {"image": "/user/login/"}):
        ask("POST", "/api/tasks/", dict, body={"project": project.id, "data": data})
    tasks = project.images()
    without_image = next(number for number, uri in tasks.items() if not uri)
    page = next(number for number, uri in tasks.items() if uri == "/user/login/")
    chosen = project.first_of_each_class(4)
    zebra = next(number for number in tasks if number not in {without_image, page, *chosen})
    # The tasks have started rounds of their own: one that begins now would see half of the labels.
    project.wait_for()
    project.label(chosen)
    project.annotate({zebra: "zebra"})
    report, published = project.train()
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
        assert "is not a file of Label Studio" in troubled.reason(troubled.page)
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
        project = live_project(draw_images(20, seed=12, side=64), SMALL_NETWORK)
        [connected] = project.client.backends(project.id)
        fields = {
            "url": connected["url"],
            "project": project.id,
            "extra_params": SMALL_NETWORK | {"strategy": "entropi"},
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
