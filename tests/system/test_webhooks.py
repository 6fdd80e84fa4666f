"""Label Studio sends every event that a round starts on, once, with credentials, in the form that the server reads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml_backend.config import Settings
from ml_backend.demo.readers import annotation_body, choice_result, open_task
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import authorization, connect_project
from ml_backend.label_studio.formats import Event, parse_label_config, prediction
from tests.system.live import RunningLabelStudio
from tests.system.recording import RecordingBackend

pytestmark = pytest.mark.system

XML = (Path(__file__).parents[2] / "label_studio_config" / "severity.xml").read_text()
CONFIG = parse_label_config(XML)
TASK: dict[str, object] = {"data": {"image": "http://films.example/1.png"}}


class Owner:
    """A connected project, and what its owner and readers do."""

    def __init__(self, client: LabelStudioClient, recorder: RecordingBackend) -> None:
        self._client = client
        self._recorder = recorder
        body = {"title": "test webhooks", "label_config": XML}
        self.id = int(client.request("POST", "/api/projects/", dict, body=body)["id"])
        self.settings = Settings.load(label_studio_url=client.url, basic_auth_user="al", basic_auth_pass="secret")
        connect_project(self.settings, self.id, recorder.url, client=client)

    def events(self, act: Callable[[], object]) -> list[Event]:
        """Act, and return the events that Label Studio has sent by the time it answers."""
        seen = len(self._recorder.asked)
        act()
        asked = [one for one in self._recorder.asked[seen:] if one[0] == "/webhook"]
        assert {key for _, key, _ in asked} <= {authorization(self.settings)}
        return [Event.model_validate(body) for _, _, body in asked]

    def tasks(self) -> list[int]:
        return sorted(int(task["id"]) for task in self._client.unlabelled_tasks(self.id))

    def import_tasks(self, *tasks: dict[str, object]) -> None:
        self._client.send("POST", f"/api/projects/{self.id}/import", body=tasks)

    def annotate(self, number: int, value: str | None) -> int:
        """Submit an annotation, or a skip for None; returns its id."""
        task = open_task(self._client.request("GET", f"/api/tasks/{number}/", dict), CONFIG)
        answer = {"was_cancelled": True} if value is None else {}
        body = annotation_body(self.id, task, [] if value is None else choice_result(value, CONFIG)) | answer
        return int(self._client.request("POST", f"/api/tasks/{number}/annotations/", dict, body=body)["id"])

    def update(self, annotation: int, value: str) -> None:
        body = {"result": choice_result(value, CONFIG)}
        self._client.send("PATCH", f"/api/annotations/{annotation}/", body=body)

    def delete(self, annotation: int) -> None:
        self._client.send("DELETE", f"/api/annotations/{annotation}/")

    def predict(self, number: int) -> None:
        self._client.import_predictions(self.id, [prediction(str(number), 0.5, "mine", CONFIG, "severe")])

    def manage(self, action: str, *numbers: int) -> None:
        """Run an action of the Data Manager on some tasks."""
        body = {"selectedItems": {"all": False, "included": list(numbers)}, "project": str(self.id)}
        query = {"id": action, "project": str(self.id)}
        self._client.send("POST", "/api/dm/actions", query=query, body=body)

    def patch(self) -> None:
        self._client.patch_project(self.id, {"description": "changed"})

    def train(self) -> None:
        [backend] = self._client.backends(self.id)
        self._client.train(int(backend["id"]))

    def created(self) -> str:
        """The key of the project as ``/setup`` gives it: id and time of creation."""
        return next(str(body["project"]) for path, _, body in self._recorder.asked if path == "/setup")


@pytest.fixture
def owner(label_studio: RunningLabelStudio, recorder: RecordingBackend) -> Iterator[Owner]:
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        owner = Owner(client, recorder)
        yield owner
        client.send("DELETE", f"/api/projects/{owner.id}/")


def test_every_event_comes_once_and_can_be_read(owner: Owner) -> None:
    """What each action of owner and readers sends, and of how many tasks or annotations it tells."""
    annotation = 0
    given: dict[str, object] = {"annotations": [{"result": choice_result("normal", CONFIG)}]}

    def annotate(value: str | None) -> None:
        nonlocal annotation
        annotation = owner.annotate(owner.tasks()[0], value)

    seen = []
    for act in (
        lambda: owner.import_tasks(TASK, TASK, TASK, TASK),
        lambda: owner.import_tasks(TASK | given),
        lambda: annotate("severe"),
        lambda: owner.update(annotation, "moderate"),
        lambda: owner.delete(annotation),
        lambda: annotate(None),
        lambda: owner.predict(owner.tasks()[1]),
        lambda: owner.manage("predictions_to_annotations", owner.tasks()[1]),
        lambda: owner.manage("delete_tasks", *owner.tasks()[-2:]),
        owner.patch,
        owner.train,
    ):
        seen += [(one.action, one.changed, one.annotated) for one in owner.events(act)]

    assert seen == [
        ("TASKS_CREATED", 4, 0),
        ("TASKS_CREATED", 1, 1),
        ("ANNOTATION_CREATED", 1, 0),
        ("ANNOTATION_UPDATED", 1, 0),
        ("ANNOTATIONS_DELETED", 1, 0),
        ("ANNOTATION_CREATED", 1, 0),
        ("ANNOTATIONS_CREATED", 1, 0),
        ("TASKS_DELETED", 2, 0),
        ("PROJECT_UPDATED", 1, 0),
        ("START_TRAINING", 1, 0),
    ]


def test_an_event_tells_of_its_project(owner: Owner) -> None:
    """The key that ``/setup`` gave, the label config, the toggle, and the number of annotations with skips."""
    owner.import_tasks(TASK, TASK)
    owner.annotate(owner.tasks()[0], "normal")
    [event] = owner.events(lambda: owner.annotate(owner.tasks()[-1], None))

    project = event.require_project()
    assert str(project.key) == owner.created()
    assert parse_label_config(str(project.label_config)) == CONFIG
    assert project.min_annotations_to_start_training
    assert project.annotations in {1, 2}  # Label Studio counts this skip before or after it sends the event
    assert event.identity is not None
