"""`connect` against a real Label Studio and a tiny backend that writes down what it is asked."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import LabelStudioError, PayloadError, SettingsError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import NOTHING_TO_CHANGE, connect_project
from ml_backend.label_studio.formats import parse_label_config, prediction, question, training_classes
from ml_backend.label_studio.sync import LabelStudioLabels
from tests.label_configs import LEARNED, REFUSED
from tests.system.live import RunningLabelStudio
from tests.system.recording import RecordingBackend

pytestmark = pytest.mark.system
ADDRESS = "http://images.example/1.png"
# What the label configs of the table ask for; Label Studio refuses one whose keys a task lacks.
KEYS = ("image", "side", "my-image", "größe", "gr", "my", "text", "x", "options", "5")
DATA = dict.fromkeys(KEYS, ADDRESS) | {"images": [ADDRESS], "study": {"image": ADDRESS}}
OPTIONS = ProjectOptions.resolve(environ={})
XML = (Path(__file__).parents[2] / "label_studio_config" / "severity.xml").read_text()


@dataclass(frozen=True)
class Case:
    """A project that is not connected yet."""

    client: LabelStudioClient
    project_id: int
    recorder: RecordingBackend

    def connect(self, options: dict[str, object] | None = None, **settings: Any) -> list[str]:
        own = {
            "label_studio_url": self.client.url,
            "basic_auth_user": "al",
            "basic_auth_pass": "first",
        } | settings
        return connect_project(
            Settings.load(**own), self.project_id, f"{self.recorder.url}/", options, client=self.client
        )

    def project(self) -> dict[str, Any]:
        return self.client.project(self.project_id)

    def ask(self, label_config: str) -> str:
        """Change the label config as its owner would; what Label Studio holds then."""
        body = {"label_config": label_config}
        return str(self.client.request("PATCH", f"/api/projects/{self.project_id}/", dict, body=body)["label_config"])

    def import_task(self) -> int:
        self.client.send("POST", f"/api/projects/{self.project_id}/import", body=[{"data": DATA}])
        [task] = self.client.unlabelled_tasks(self.project_id)
        return int(task["id"])


@pytest.fixture
def case(label_studio: RunningLabelStudio, recorder: RecordingBackend) -> Iterator[Case]:
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        body = {"title": "test connect", "label_config": XML}
        project = client.request("POST", "/api/projects/", dict, body=body)
        yield Case(client, int(project["id"]), recorder)
        client.send("DELETE", f"/api/projects/{project['id']}/")


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'al:{password}'.encode()).decode()}"


def test_connects_once_and_then_changes_nothing(case: Case) -> None:
    message = case.connect({"strategy": "bald"})

    assert message[0] == "learns Choices 'severity': normal < moderate < severe; no class: unreadable"
    assert any("added the backend" in line and "bald" in line for line in message)
    assert any("webhook" in line and "headers" in line for line in message)
    assert any("'Sequential sampling' -> 'Uncertainty sampling'" in line for line in message)
    assert case.connect({"strategy": "bald"})[1:] == [NOTHING_TO_CHANGE]
    assert case.connect()[1:] == [NOTHING_TO_CHANGE]
    project = case.project()
    assert project["sampling"] == "Uncertainty sampling"
    assert project["maximum_annotations"] == 1
    assert project["start_training_on_annotation_update"] is True
    assert project["show_collab_predictions"] is True
    assert project["model_version"] == ""  # and not the backend's title, which serves in random order
    assert len(case.client.webhooks(case.project_id)) == 1


def test_everything_comes_with_the_options_and_the_credentials(case: Case) -> None:
    case.connect({"strategy": "bald"})
    case.recorder.asked.clear()
    (backend,) = case.client.backends(case.project_id)
    case.client.train(int(backend["id"]))
    case.client.patch_project(case.project_id, {"description": "x"})

    assert case.recorder.actions() == [("START_TRAINING", basic("first")), ("PROJECT_UPDATED", basic("first"))]
    setups = [(key, body["extra_params"]) for path, key, body in case.recorder.asked if path == "/setup"]
    assert setups[0] == (basic("first"), {"strategy": "bald"})


def test_new_options_and_a_new_password_reach_the_old_connection(case: Case) -> None:
    case.connect({"strategy": "bald"})
    message = case.connect({"annotations_per_task": 2}, basic_auth_pass="second")
    case.client.patch_project(case.project_id, {"description": "x"})

    assert len(case.client.backends(case.project_id)) == 1
    assert "maximum_annotations: 1 -> 2" in " ".join(message)
    assert case.recorder.asked[-1][1] == basic("second") == case.recorder.actions()[-1][1]
    assert [body["extra_params"] for path, _, body in case.recorder.asked if path == "/setup"][-1] == {
        "annotations_per_task": 2
    }
    assert case.connect(basic_auth_pass="second")[1:] == [NOTHING_TO_CHANGE]


def test_without_credentials_nothing_is_taken_away(case: Case) -> None:
    case.connect()

    assert case.connect(basic_auth_user=None, basic_auth_pass=None)[1:] == [NOTHING_TO_CHANGE]
    assert case.client.webhooks(case.project_id)[0]["headers"] == {"Authorization": basic("first")}


def test_mends_what_others_changed(case: Case) -> None:
    """The webhook gone, another header on the new one kept, the sampling lost, the title as model version."""
    case.connect()
    (webhook,) = case.client.webhooks(case.project_id)
    case.client.send("DELETE", f"/api/webhooks/{webhook['id']}/")
    case.client.patch_project(case.project_id, {"sampling": "Uniform sampling", "model_version": "Active learning"})

    message = " ".join(case.connect())

    assert "added the webhook" in message
    assert "'Uniform sampling' -> 'Uncertainty sampling'" in message
    assert case.project()["model_version"] == ""
    (webhook,) = case.client.webhooks(case.project_id)
    case.client.patch_webhook(webhook["id"], webhook | {"headers": {"X-Team": "a"}, "is_active": False})
    assert "headers, is_active" in " ".join(case.connect())
    (webhook,) = case.client.webhooks(case.project_id)
    assert webhook["headers"] == {"X-Team": "a", "Authorization": basic("first")}


def test_a_published_ranking_survives(case: Case) -> None:
    """Connecting again while readers are served by a ranking leaves them their order."""
    case.connect()
    images = [{"data": {"image": "http://films.example/1.png"}}]
    case.client.send("POST", f"/api/projects/{case.project_id}/import", body=images)
    (task,) = case.client.unlabelled_tasks(case.project_id)
    case.client.import_predictions(
        case.project_id, [{"task": task["id"], "result": [], "score": 0.0, "model_version": "al-1"}]
    )
    case.client.patch_project(case.project_id, {"model_version": "al-1"})

    case.connect({"strategy": "margin"})

    assert case.project()["model_version"] == "al-1"
    case.client.send(
        "POST",
        f"/api/dm/actions?id=delete_tasks_predictions&project={case.project_id}",
        body={"selectedItems": {"all": True, "excluded": []}},
    )
    _, nothing, lost = case.connect()
    assert nothing == NOTHING_TO_CHANGE
    assert "no predictions of the project's model version 'al-1'" in lost


def test_says_what_becomes_of_the_owners_predictions(case: Case) -> None:
    images = [{"data": {"image": "http://films.example/1.png"}}]
    case.client.send("POST", f"/api/projects/{case.project_id}/import", body=images)
    (task,) = case.client.unlabelled_tasks(case.project_id)
    mine = {"task": task["id"], "result": [], "score": 0.0, "model_version": "al-r50-imagenet"}
    case.client.import_predictions(case.project_id, [mine])

    assert "'al-r50-imagenet' (1) stay" in case.connect()[-1]
    assert case.connect()[1:] == [NOTHING_TO_CHANGE]


def test_a_wrong_option_changes_nothing(case: Case) -> None:
    before = case.project()

    with pytest.raises(SettingsError, match=r"strategie \(from extra_params\): no such option"):
        case.connect({"strategie": "bald"})
    assert case.client.backends(case.project_id) == []
    assert case.project() == before


def test_what_could_never_be_learned_changes_nothing(case: Case) -> None:
    """Label Studio accepts each of these label configs."""
    case.import_task()
    before = case.project()

    for name, refused in REFUSED.items():
        case.ask(refused.xml)
        with pytest.raises(PayloadError) as error:
            case.connect()
        assert refused.reason in str(error.value), name
        assert refused.way_out in str(error.value), name

    assert case.client.backends(case.project_id) == case.client.webhooks(case.project_id) == []
    after = case.project()
    assert {key for key in before if before[key] != after[key]} <= {
        "label_config",
        "parsed_label_config",
        "control_weights",
    }


def test_what_is_learned_can_be_published(case: Case) -> None:
    """Label Studio accepts each of these label configs, and imports every class as a pre-label, unless it is a path."""
    number = case.import_task()

    for name, learned in LEARNED.items():
        config = parse_label_config(case.ask(learned.xml))
        assert training_classes(config, OPTIONS) == learned.classes, name
        each = [prediction(str(number), 0.5, name, config, choice) for choice in config.classes]
        assert case.client.import_predictions(case.project_id, each) == len(each), name

    assert case.connect()[0] == question(config, OPTIONS)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("alias", {"0": "0", "normal": "0", "Unreadable": None, "9": None}),
        ("allowNested and nested", {("pneumonia", "viral"): "viral", ("normal",): "normal"}),
    ],
)
def test_answers_as_label_studio_holds_them(case: Case, name: str, answers: dict[object, str | None]) -> None:
    """As Chromium was seen to post them, and as an import may: Label Studio keeps both as they come."""
    number = case.import_task()
    config = parse_label_config(case.ask(LEARNED[name].xml))
    answer = {"from_name": "label", "to_name": "image", "type": "choices"}
    for choice in answers:
        result = [answer | {"value": {"choices": [choice]}}]
        case.client.send("POST", f"/api/tasks/{number}/annotations/", body={"result": result})

    read = LabelStudioLabels(case.client, case.project_id, config, OPTIONS).annotations()

    assert sorted(str(one.value) for one in read) == sorted(map(str, answers.values()))


def test_a_backend_that_refuses_is_not_left_behind(case: Case) -> None:
    case.recorder.setup_status = 400
    before = case.project()

    with pytest.raises(LabelStudioError, match="batch: no such option; known are batch_size, reserve"):
        case.connect({"strategy": "bald"})
    assert case.client.backends(case.project_id) == []
    assert case.project()["show_collab_predictions"] == before["show_collab_predictions"]


def test_a_backend_that_fails_later_is_told(case: Case) -> None:
    case.connect()
    case.recorder.setup_status = 401

    with pytest.raises(
        LabelStudioError, match=r"batch: no such option.*set AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS as they are set"
    ):
        case.connect()


def test_a_project_that_is_none(case: Case) -> None:
    with pytest.raises(LabelStudioError, match="404"):
        connect_project(Settings.load(), 10**6, case.recorder.url, client=case.client)
