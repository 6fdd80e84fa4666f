"""The doctor on a real Label Studio, backend, worker and Valkey: all well, then one thing broken after the other."""

import html
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.config import Settings
from ml_backend.demo.options import DemoImage, draw_images
from ml_backend.demo.services import Backend, Worker
from ml_backend.doctor.checks import CHECKS, CheckContext
from ml_backend.doctor.runner import Finding, examine
from ml_backend.label_studio.connect import connect_project, find_backend, find_webhook
from ml_backend.processes import Valkey
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.storage import RoundStore
from tests.system.live import LiveProject

pytestmark = pytest.mark.system
OPTIONS: dict[str, object] = {"image_side": 64, "weights": "none", "passes": 4}
WITHIN_S = 120.0
NOBODY = "http://127.0.0.1:9"  # the port of "discard", where nobody listens
Row = dict[str, Any]


@dataclass(frozen=True)
class CheckedProject:
    """A project with a published first ranking, and the environment of the doctor."""

    live: LiveProject
    backend: Backend
    environ: dict[str, str]

    @property
    def row(self) -> Row:
        found = find_backend(self.live.client, self.live.id, self.backend.url)
        assert found is not None
        return found

    @property
    def hook(self) -> Row:
        found = find_webhook(self.live.client, self.live.id, self.backend.url)
        assert found is not None
        return found

    def settings(self, **changed: object) -> Settings:
        names = {name: self.environ[f"AL_{name.upper()}"] for name in Settings.model_fields if self._is_set(name)}
        return Settings.load(**(names | changed))

    def _is_set(self, name: str) -> bool:
        return f"AL_{name.upper()}" in self.environ

    def examine(self, url: str | None = None, **changed: object) -> dict[str, Finding]:
        case = CheckContext(self.live.id, url or self.backend.url, lambda: self.settings(**changed))
        with closing(case):
            return {finding.name: finding for finding in examine(case)}

    def connect(self, options: dict[str, object] | None = None) -> list[str]:
        """What every second remedy says."""
        return connect_project(self.settings(), self.live.id, self.backend.url, options, self.live.client)

    @property
    def key(self) -> str:
        return str(self.live.follower.project)

    def data(self) -> Row:
        """The JSON of the project's page."""
        answer: Row = self.live.page("application/json").json()
        return answer

    def wait_until(self, there: Callable[[Row], bool], within_s: float = 120.0) -> Row:
        """The same, once nothing runs or waits and something is there."""
        deadline = time.monotonic() + within_s
        while (data := self.data())["queue"]["running"] or data["queue"]["waiting"] or not there(data):
            assert time.monotonic() < deadline, data
            time.sleep(0.2)
        return data

    def look(self, name: str) -> Finding:
        """One check, after those that it needs."""
        by_name = {check.name: check for check in CHECKS}
        wanted = {name}
        for check in reversed(CHECKS):
            if check.name in wanted:
                wanted |= set(by_name[check.name].needs)
        with closing(CheckContext(self.live.id, self.backend.url, self.settings)) as case:
            *_, last = examine(case, [check for check in CHECKS if check.name in wanted])
        assert last.name == name
        return last


@pytest.fixture(scope="module")
def checked(
    live_project: Callable[[Sequence[DemoImage], dict[str, object]], LiveProject], backend: Backend
) -> CheckedProject:
    live = live_project(draw_images(6, seed=4, side=64), OPTIONS)
    live.wait_for()
    return CheckedProject(live, backend, backend.environ)


def failures(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.verdict == "FAIL"}


@contextmanager
def held(worker: Worker) -> Iterator[None]:
    """Nothing is published meanwhile: the backend mends what is broken here by itself."""
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker.pid, signal.SIGCONT)


@contextmanager
def patched(checked: CheckedProject, **fields: object) -> Iterator[None]:
    """A project with other settings, and then with its own again."""
    before = checked.live.client.project(checked.live.id)
    path = f"/api/projects/{checked.live.id}/"
    checked.live.client.send("PATCH", path, body=fields)
    yield
    checked.live.client.send("PATCH", path, body={name: before[name] for name in fields})


def test_a_sound_installation_passes_and_nothing_is_changed(checked: CheckedProject) -> None:
    before = checked.live.client.project(checked.live.id)
    hooks, backends = checked.live.client.webhooks(checked.live.id), checked.live.client.backends(checked.live.id)
    words = ["doctor", "--project", str(checked.live.id), "--url", checked.backend.url]

    shown = CliRunner().invoke(app, words, env=checked.environ)

    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert all(len(line) <= 80 for line in lines if "://" not in line and "/" not in line)
    assert {check.name for check in CHECKS} <= {line[6:25].strip() for line in lines}
    assert "all is well: " in lines[-1]
    assert "1.23.2" in shown.output
    assert "least to most severe: normal < moderate < severe; no class: unreadable" in " ".join(shown.output.split())
    assert not any(checked.environ[name] in shown.output for name in ("AL_LABEL_STUDIO_API_KEY", "AL_BASIC_AUTH_PASS"))
    after = checked.live.client.project(checked.live.id)
    assert {**after, "updated_at": None} == {**before, "updated_at": None}
    assert checked.live.client.webhooks(checked.live.id) == hooks
    assert [row["id"] for row in checked.live.client.backends(checked.live.id)] == [row["id"] for row in backends]
    assert len(checked.live.follower.rounds) == 1


def test_json_holds_the_same(checked: CheckedProject) -> None:
    words = ["doctor", "--project", str(checked.live.id), "--url", checked.backend.url, "--json"]
    shown = CliRunner().invoke(app, words, env=checked.environ | {"AL_REDIS_URL": "redis://:secret-word@127.0.0.1:9/0"})

    data = json.loads(shown.output)
    assert shown.exit_code == 1
    assert not data["well"]
    assert [one["name"] for one in data["findings"]] == [check.name for check in CHECKS]
    assert {one["name"]: one["verdict"] for one in data["findings"] if one["verdict"] != "ok"} == {
        "Redis": "FAIL", "worker": "skip", "rounds": "skip"
    }  # fmt: skip
    assert "secret-word" not in shown.output


def test_no_backend(checked: CheckedProject) -> None:
    checked.live.client.delete_backend(int(checked.row["id"]))

    found = checked.examine()

    assert failures(found) == {"connection"}
    assert "has no backend" in found["connection"].seen
    assert "ml-backend connect" in found["connection"].remedy
    assert found["webhook"].verdict == found["event arrives"].verdict == "skip"
    checked.connect(OPTIONS)
    assert checked.look("event arrives").verdict == "ok"


def test_another_address(checked: CheckedProject) -> None:
    found = checked.examine(NOBODY)

    assert failures(found) == {"backend", "connection"}
    assert f"it has one at {checked.backend.url}" in found["connection"].seen
    assert "no answer" in found["backend"].seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_active": False}, "is switched off"),
        ({"send_payload": False}, "sends no payload"),
        ({"headers": {}}, "sends no Authorization"),
        ({"headers": {"Authorization": "Basic eDp5"}}, "sends another Authorization"),
    ],
)
def test_a_webhook_that_was_changed(checked: CheckedProject, fields: dict[str, object], message: str) -> None:
    checked.live.client.patch_webhook(int(checked.hook["id"]), {"url": checked.hook["url"], **fields})

    found = checked.examine()

    assert failures(found) == {"webhook"}
    assert message in found["webhook"].seen
    checked.connect()
    assert checked.look("event arrives").verdict == "ok"


def test_a_webhook_that_was_deleted(checked: CheckedProject) -> None:
    checked.live.client.send("DELETE", f"/api/webhooks/{checked.hook['id']}/")

    found = checked.examine()

    assert failures(found) == {"webhook"}
    assert "has no webhook" in found["webhook"].seen
    checked.connect()
    assert checked.look("event arrives").verdict == "ok"


def test_two_connections(checked: CheckedProject) -> None:
    """The backend under another name of its machine; deleted, it leaves its webhook behind, as Label Studio has it."""
    client, other = checked.live.client, checked.backend.url.replace("127.0.0.1", "localhost")
    connect_project(checked.settings(), checked.live.id, other, OPTIONS, client)
    by_both = checked.examine()
    client.delete_backend(next(int(row["id"]) for row in client.backends(checked.live.id) if row["url"] == other))
    left_behind = checked.examine()
    before = checked.live.follower.poll().changes
    [task, *_] = client.unlabelled_tasks(checked.live.id)
    body = {"result": [], "was_cancelled": True, "lead_time": 1.0}
    skip = client.request("POST", f"/api/tasks/{task['id']}/annotations/", dict, body=body)
    after = checked.live.follower.poll()

    assert failures(by_both) == failures(left_behind) == {"one connection"}
    assert other in left_behind["one connection"].seen
    assert "under Webhooks" in left_behind["one connection"].remedy
    assert other in " ".join(checked.connect())
    assert (after.changes - before, after.told_twice_at is None) == (1, False)
    client.send("DELETE", f"/api/annotations/{skip['id']}/")
    hook = find_webhook(client, checked.live.id, other)
    assert hook is not None
    client.send("DELETE", f"/api/webhooks/{hook['id']}/")
    assert checked.look("one connection").verdict == "ok"


def test_what_an_earlier_connect_left(checked: CheckedProject) -> None:
    """At a host without a dot, to which Label Studio makes no webhook; its remedy takes it away."""
    client, other = checked.live.client, checked.backend.url.replace("127.0.0.1", str(0x7F000001))
    known = ("project", "title", "auth_method", "basic_auth_user", "extra_params")
    password = {"basic_auth_pass": checked.backend.password}
    client.add_backend({name: checked.row[name] for name in known} | password | {"url": other})

    found = checked.examine()
    at_it = checked.examine(other)
    changes = checked.connect(OPTIONS)

    assert failures(found) == {"one connection"}
    assert f"at {other}, which an earlier connect left" in found["one connection"].seen
    assert f"--url {checked.backend.url}" in found["one connection"].remedy
    assert failures(at_it) == {"address"}
    assert f"--url {other}" not in str(at_it)
    assert any(line.startswith(f"removed the backend {other}") for line in changes)
    assert checked.look("one connection").verdict == "ok"


def test_another_order(checked: CheckedProject, worker: Worker) -> None:
    """Sampling, readers and the model version, each as an owner's hand may set it."""
    title = checked.row["title"]
    version = checked.live.client.project(checked.live.id)["model_version"]
    changed = patched(checked, sampling="Sequential sampling", maximum_annotations=3, model_version=title)
    with held(worker), changed:
        found = checked.examine()

    assert failures(found) == {"sampling", "readers per image", "order served"}
    assert "'Sequential sampling'" in found["sampling"].seen
    assert "shown to 3 readers" in found["readers per image"].seen
    assert "the backend's title, which serves in random order" in found["order served"].seen
    assert version in found["order served"].seen
    assert checked.look("order served").verdict == "ok"


def test_predictions_that_are_gone(checked: CheckedProject, worker: Worker) -> None:
    """Deleted in the Data Manager; a top-up, which the reconciler asks for too, publishes the ranking again."""
    query = {"id": "delete_tasks_predictions", "project": str(checked.live.id)}
    chosen = {"selectedItems": {"all": True, "excluded": []}}
    checked.wait_until(lambda _: True)  # a round that the test before has called for runs in a child, which is not held
    with held(worker):
        checked.live.client.send("POST", "/api/dm/actions", query=query, body=chosen)
        found = checked.examine()

    assert failures(found) == {"predictions"}
    assert re.search(r"holds 0 predictions of al-r\d+-\S+, and 6 of its images", found["predictions"].seen)
    assert "Top up" in found["predictions"].remedy
    with connect_redis(checked.environ["AL_REDIS_URL"]) as redis:
        RoundQueue(redis).request_round(
            RoundStore(checked.settings().data_dir).connection(checked.live.id).project, "topup"
        )
    deadline = time.monotonic() + WITHIN_S
    while checked.look("predictions").verdict != "ok":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_label_config_that_is_no_single_choice(checked: CheckedProject) -> None:
    broken = checked.live.client.project(checked.live.id)["label_config"].replace("single-radio", "multiple")
    with patched(checked, label_config=broken):
        found = checked.examine()

    assert failures(found) == {"label config", "connection"}
    assert "takes several answers" in found["label config"].seen
    assert found["classes"].verdict == found["images"].verdict == "skip"
    assert checked.look("classes").verdict == checked.look("connection").verdict == "ok"


def test_an_image_that_is_gone(checked: CheckedProject) -> None:
    path = f"/api/projects/{checked.live.id}/import"
    gone = [{"data": {checked.live.config.image_key: "/data/upload/1/nowhere.png"}}]
    checked.live.client.send("POST", path, body=gone)
    number = max(int(task["id"]) for task in checked.live.client.unlabelled_tasks(checked.live.id))

    found = checked.examine()

    assert failures(found) == {"images"}
    assert "2 of 3 could be read" in found["images"].seen
    assert "nowhere.png" in found["images"].seen
    assert "delete its task" in found["images"].remedy
    checked.live.client.send("DELETE", f"/api/tasks/{number}/")
    assert checked.look("images").verdict == "ok"


def test_wrong_options(checked: CheckedProject) -> None:
    """On the Choices tag: those of the connection Label Studio has the backend judge before it takes them."""
    config = checked.live.client.project(checked.live.id)["label_config"]
    with patched(
        checked, label_config=config.replace("<Choices ", '<Choices model_epochs="0" model_strategie="bald" ')
    ):
        found = checked.examine()

    assert failures(found) == {"options", "connection"}
    assert "strategie (from Choices tag): no such option" in found["options"].seen
    assert "epochs='0' (from Choices tag)" in found["options"].seen
    assert checked.look("options").verdict == checked.look("connection").verdict == "ok"


def test_keys(checked: CheckedProject) -> None:
    """A personal access token is as good as a legacy token; an access token or a wrong one is not."""
    made = checked.live.reader("doctor")._send("POST", "/api/token/", json={}).json()
    access = checked.live.client.request("POST", "/api/token/refresh/", dict, body={"refresh": made["token"]})

    good = checked.examine(label_studio_api_key=made["token"])
    short_lived = checked.examine(label_studio_api_key=access["access"])
    wrong = checked.examine(label_studio_api_key="0" * 40)

    assert failures(good) == set()
    assert good["API key"].seen.startswith("personal access token of ")
    assert failures(short_lived) == failures(wrong) == {"API key"}
    assert "lasts five minutes" in short_lived["API key"].seen
    assert "401" in wrong["API key"].seen
    assert access["access"] not in str(short_lived)
    assert wrong["project"].verdict == wrong["images"].verdict == "skip"
    assert wrong["worker"].verdict == wrong["data folder"].verdict == "ok"


def test_label_studio_is_down(checked: CheckedProject) -> None:
    found = checked.examine(label_studio_url=NOBODY)

    assert failures(found) == {"Label Studio"}
    assert "AL_LABEL_STUDIO_URL" in found["Label Studio"].remedy
    assert found["backend"].verdict == "ok"


def test_nobody_works_here(checked: CheckedProject, valkey: Valkey) -> None:
    """Another database of the same Redis, as where worker and backend were given different ones."""
    found = checked.examine(redis_url=re.sub(r"/0$", "/9", valkey.url))

    assert failures(found) == {"worker"}
    assert "ml-backend work" in found["worker"].remedy


def test_another_data_folder(checked: CheckedProject, tmp_path: Any) -> None:
    found = checked.examine(data_dir=tmp_path)

    assert failures(found) == {"rounds on disk"}
    assert "AL_DATA_DIR" in found["rounds on disk"].remedy
    assert found["order served"].verdict == "skip"


def test_wrong_credentials(checked: CheckedProject) -> None:
    """The password of `serve` was changed, and nobody ran `connect` again."""
    found = checked.examine(basic_auth_pass="another")

    assert failures(found) == {"backend", "webhook"}
    assert "AL_BASIC_AUTH_PASS" in found["backend"].remedy
    assert "another" not in found["backend"].seen


def test_all_is_well_again(checked: CheckedProject) -> None:
    """Every breakage above was mended by its remedy."""
    found = checked.examine()

    assert {name: finding.seen for name, finding in found.items() if finding.verdict != "ok"} == {}


def test_images_under_another_key_are_named_and_not_called_for(checked: CheckedProject) -> None:
    """The owner changes the Image tag's value: at once, and after a round that could use none of the images."""
    config = checked.live.client.project(checked.live.id)["label_config"]
    with patched(checked, label_config=config.replace('value="$image"', 'value="$film"')):
        found = checked.examine()
        first = min(checked.data()["standing"]["left_out"][0]["first"], found["left out"].seen, key=len)
        checked.live.start_training()
        data = checked.wait_until(lambda data: data["queue"]["last_error"] is not None)
        page = " ".join(html.unescape(checked.live.page().text).split())
        after = checked.examine()

    assert failures(found) == {"images", "left out", "labelling"}
    assert failures(after) == {"images", "left out", "labelling", "rounds"}
    assert re.fullmatch(r"task \d+ has no image under 'film'; its data holds \['image', .*\]", first)
    assert data["state"] == "failed"
    assert (data["queue"]["last_error"]["kind"], data["standing"]["verdict"]) == ("UnusablePool", "unusable")
    for message in (data["queue"]["last_error"]["message"], data["standing"]["sentence"], page):
        assert first in message
        assert "mport images" not in message
    assert "6 were left out, the first: " in page
    checked.wait_until(lambda data: data["state"] == "idle")
    assert checked.look("labelling").verdict == checked.look("rounds").verdict == "ok"


def test_everything_is_labelled(checked: CheckedProject) -> None:
    """Before a network there are ways out, and after one of them it is the end, also for a round that finds nothing."""
    images = sorted(checked.live.images())
    checked.connect(OPTIONS | {"min_labels_per_class": 5})
    checked.live.annotate(dict(zip(images, ["normal", "moderate", "severe"] * 2, strict=True)))
    blocked = checked.examine()
    checked.live.start_training()
    stuck = checked.wait_until(lambda data: data["queue"]["last_error"] is not None)
    checked.connect(OPTIONS | {"min_labels_per_class": 2})
    done = checked.wait_until(lambda data: data["standing"]["verdict"] == "labelled" and data["state"] == "done")
    words = ["doctor", "--project", str(checked.live.id), "--url", checked.backend.url]
    shown = CliRunner().invoke(app, words, env=checked.environ)
    page = " ".join(checked.live.page().text.split())

    assert failures(blocked) == set()
    assert "lower the option min_labels_per_class, 5 now" in blocked["labelling"].seen
    assert (stuck["state"], stuck["standing"]["verdict"]) == ("done", "blocked")
    assert stuck["queue"]["last_error"]["kind"] == done["queue"]["last_error"]["kind"] == "EmptyPool"
    assert shown.exit_code == 0, shown.output
    assert "Every image is labelled: 6 images." in " ".join(shown.output.split())
    assert "Every image is labelled: 6 images." in page
    assert "Complete" in page
    assert 'class="headline wrong"' not in page
