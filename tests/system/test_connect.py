"""`connect` against a real Label Studio and a tiny backend that writes down what it is asked."""

import base64
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ml_backend.cli import app
from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import BackendError, LabelStudioError, PayloadError, RequestRefused, SettingsError
from ml_backend.label_studio.client import LabelStudioClient, label_studio_version
from ml_backend.label_studio.connect import (
    NOTHING_TO_CHANGE,
    TITLE,
    connect_project,
    version_note,
    webhook_refusal,
)
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

    def connect(
        self, options: dict[str, object] | None = None, profile: str | None = None, **settings: Any
    ) -> list[str]:
        own = {
            "label_studio_url": self.client.url,
            "basic_auth_user": "al",
            "basic_auth_pass": "first",
        } | settings
        return connect_project(
            Settings.load(**own), self.project_id, f"{self.recorder.url}/", options, self.client, profile=profile
        )

    def options(self) -> dict[str, object]:
        (backend,) = self.client.backends(self.project_id)
        return dict(backend["extra_params"])

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

    assert message[0] == (
        "learns 'severity', from least to most severe: normal, moderate, severe; "
        "images answered unreadable are left out"
    )
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


def test_a_new_connection_gets_the_profile_and_new_options_keep_it(case: Case) -> None:
    case.connect({"passes": "40"}, profile="best")
    assert case.options() == {"profile": "best", "passes": "40"}
    assert case.connect(profile="best")[1:] == [NOTHING_TO_CHANGE]
    case.connect({"strategy": "bald"}, profile="best")
    assert case.options() == {"profile": "best", "strategy": "bald"}
    case.connect({"profile": "paper"}, profile="best")
    assert case.options() == {"profile": "paper"}


def test_a_connection_of_before_stays_without_a_profile(case: Case) -> None:
    case.connect({"strategy": "bald"})
    case.connect({"strategy": "margin"}, profile="best")
    assert case.options() == {"strategy": "margin"}


def test_the_label_config_s_profile_wins_over_that_of_connect(case: Case) -> None:
    case.ask(XML.replace("<Choices", '<Choices model_profile="paper"'))
    case.connect(profile="best")
    assert case.options() == {}


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
    case.client.patch_webhook(webhook["id"], {"url": webhook["url"], "headers": {"X-Team": "a"}, "is_active": False})
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

    with pytest.raises(SettingsError, match="-o strategie: no such option; did you mean 'strategy'"):
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
    with pytest.raises(SettingsError, match="no project 1000000; "):
        connect_project(Settings.load(), 10**6, case.recorder.url, client=case.client)


LOOPBACK = str(int.from_bytes(bytes([127, 0, 0, 1])))  # a host without a dot that every machine resolves


def test_the_addresses_that_label_studio_takes_for_a_webhook(case: Case) -> None:
    """Our copy of its rule, against the rule itself."""
    hosts = (
        *("backend", "backend.internal", "localhost", "127.0.0.1", "[::1]", "10.0.0.7", "al.example.org", "a.b.c.d.ee"),
        *("my_backend.example.org", "my-backend.example.org", "-a.example.org", "a-.example.org", "backend.1"),
        *("backend.x", "localhost.", "backend.internal.", "bücher.example", "xn--bcher-kva.example", "a..example"),
        *("a.xn--p1ai", "a.x-y", "a.-x", "256.1.1.1", "127.1", f"{'a' * 63}.example", f"{'a' * 64}.example"),
    )
    taken = set()
    for host in hosts:
        fields = {"url": f"http://{host}:9090/webhook", "project": case.project_id, "is_active": False}
        with suppress(RequestRefused):
            case.client.add_webhook(fields)
            taken.add(host)

    assert {host for host in hosts if webhook_refusal(f"http://{host}:9090") is None} == taken
    assert "backend.internal" in taken
    assert "backend" not in taken


def test_what_an_earlier_connect_left_is_taken_away(case: Case) -> None:
    """Label Studio stores a backend at a host without a dot, and silently makes no webhook to it."""
    path = f"/api/ml?project={case.project_id}"
    left = {
        "url": case.recorder.url.replace("127.0.0.1", LOOPBACK), "project": case.project_id, "title": TITLE,
        "auth_method": "BASIC_AUTH", "basic_auth_user": "al", "basic_auth_pass": "first",
    }  # fmt: skip
    case.client.add_backend(left)
    case.client.add_backend(left | {"title": "somebody's own"})
    assert case.client.webhooks(case.project_id) == []

    message = case.connect({"strategy": "bald"})
    *_, (_, _, last) = [one for one in case.recorder.asked if one[0] == "/setup"]
    again = case.connect()

    assert last["extra_params"] == {"strategy": "bald"}
    assert [line for line in message if "removed" in line] == [
        f"removed the backend {left['url']}, which an earlier connect left: Label Studio makes no webhook to it"
    ]
    assert {row["title"] for row in case.client.request("GET", path, list)} == {TITLE, "somebody's own"}
    assert not any("removed" in line for line in again)


@dataclass(frozen=True)
class Command:
    """``ml-backend connect`` with the environment of an installation."""

    client: LabelStudioClient
    environ: dict[str, str]
    url: str

    def __call__(self, *words: str, url: str | None = None) -> Result:
        return CliRunner().invoke(app, ["connect", *words, "--url", url or self.url], env=self.environ)

    def refused(self, *words: str, url: str | None = None) -> str:
        """The one line of a command that must change nothing."""
        before = [row["id"] for row in self.client.projects()]
        error = self(*words, url=url).exception
        assert isinstance(error, BackendError), error
        assert [row["id"] for row in self.client.projects()] == before
        return str(error)


@pytest.fixture
def command(label_studio: RunningLabelStudio, recorder: RecordingBackend, tmp_path: Path) -> Iterator[Command]:
    environ = {
        "AL_LABEL_STUDIO_URL": label_studio.url,
        "AL_LABEL_STUDIO_API_KEY": label_studio.api_key,
        "AL_BASIC_AUTH_USER": "al",
        "AL_BASIC_AUTH_PASS": "first",
        "AL_DATA_DIR": str(tmp_path),
        "AL_PUBLIC_URL": "https://al.example.org/",
    }
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        before = {row["id"] for row in client.projects()}
        yield Command(client, environ, recorder.url)
        for row in client.projects():
            if row["id"] not in before:
                client.send("DELETE", f"/api/projects/{row['id']}/")


class TestCommand:
    def test_makes_a_project_once(self, command: Command) -> None:
        first = command("--create", "Films of a test", "--config", "severity", "--option", "strategy=bald")
        again = command("--create", "Films of a test", "--config", "severity", "--option", "strategy=bald")

        assert first.exit_code == again.exit_code == 0, (first.exception, again.exception)
        [row] = command.client.projects("films of a TEST")
        project = command.client.project(row["id"])
        assert project["label_config"].split() == XML.split()
        assert project["sampling"] == "Uncertainty sampling"
        [backend] = command.client.backends(row["id"])
        assert (backend["url"], backend["extra_params"]) == (command.url, {"profile": "best", "strategy": "bald"})
        lines = first.output.splitlines()
        release = label_studio_version(command.client.url)
        assert lines[0] == f"Label Studio {release}: {version_note(release)}"
        assert lines[1] == f"created project {row['id']} 'Films of a test' with the label config severity"
        assert lines[-2] == f"the project in Label Studio: {command.client.url}/projects/{row['id']}/data"
        created = int(datetime.fromisoformat(project["created_at"]).timestamp())
        assert lines[-1] == f"the owner's page: https://al.example.org/projects/{row['id']}.{created}"
        assert again.output.splitlines()[1] == (
            f"found project {row['id']} 'Films of a test', whose label config stays as it is"
        )
        assert NOTHING_TO_CHANGE in again.output.splitlines()

    def test_of_a_file(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "own.xml").write_text(XML.replace("moderate", "mäßig"), encoding="utf-8")

        assert command("--create", "Own", "--config", str(tmp_path / "own.xml")).exit_code == 0

        [row] = command.client.projects("own")
        assert "mäßig" in command.client.project(row["id"])["label_config"]

    def test_what_creates_nothing(self, command: Command, case: Case, tmp_path: Path) -> None:
        """A line for each mistake, and the project that is there stays as it was."""
        title, new = case.project()["title"], ("--create", "New")
        for name, xml in {
            "empty": "",
            "many": XML.replace("single-radio", "multiple"),
            "astray": XML.replace("</View>", '<TextArea name="why" toName="nowhere"/></View>'),
        }.items():
            (tmp_path / f"{name}.xml").write_text(xml)

        assert f"{case.project_id} {title!r}" in command.refused()
        stranger = command.refused("--project", "999999")
        assert f"no project 999999; {command.client.url} has {case.project_id} {title!r}" in stranger
        page = {**command.environ, "AL_LABEL_STUDIO_URL": f"{command.client.url}/projects/{case.project_id}"}
        assert "is the address of a page" in replace(command, environ=page).refused("--project", str(case.project_id))
        assert "no label config 'severty'" in command.refused(*new, "--config", "severty")
        away = command.refused("--project", str(case.project_id), url="http://127.0.0.1:1")
        assert away.startswith("Label Studio cannot reach the backend http://127.0.0.1:1 (Connection refused): does ")
        assert "leave out --create" in command.refused("--project", str(case.project_id), *new)
        assert "one of normal_diseased, severity" in command.refused(*new)
        assert "no label config 'grave' (No such file" in command.refused(*new, "--config", "grave")
        assert "XML" in command.refused(*new, "--config", str(tmp_path / "empty.xml"))
        assert "takes several answers" in command.refused(*new, "--config", str(tmp_path / "many.xml"))
        assert "Label Studio answered 400" in command.refused(*new, "--config", str(tmp_path / "astray.xml"))
        assert "at least 3 characters" in command.refused("--create", "N", "--config", "severity")
        assert "no such option" in command.refused(*new, "--config", "severity", "--option", "strategie=bald")
        dotless = command.refused(*new, "--config", "severity", url="http://backend:9090")
        assert "nothing was changed: give --url a name with a dot" in dotless
        assert case.client.backends(case.project_id) == []

    def test_of_two_projects_of_a_title_neither_is_taken(self, command: Command) -> None:
        ids = [command.client.create_project({"title": "Twice", "label_config": XML})["id"] for _ in range(2)]

        assert all(f"--project {number}" in command.refused("--create", "Twice") for number in ids)
