"""The form of the options: what it writes into Label Studio, and what it refuses. Label Studio is in memory."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ml_backend.analytics.history import PREVIEWS, ImageInsight, StrategyPreviews
from ml_backend.config import Settings
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.server.app import create_app
from ml_backend.server.options_page import CHANGES, OptionChanges
from tests.fakes import make_report
from tests.unit.analytics.test_standing import mirror_of, said, task
from tests.unit.server.memory import PROJECT, payload

HTML = {"Accept": "text/html", "Origin": "http://localhost"}
PAGE = f"/projects/{PROJECT}/options"
PRESENT = {"strategy": "mean_std", "batch_size": "20", "reserve": "80", "control_share": "0.0"}


class Studio:
    """A project with one connection; it calls ``/setup`` after a change, as Label Studio does."""

    def __init__(self) -> None:
        self.row: dict[str, Any] = {
            "id": PROJECT.id,
            "label_config": payload("setup")["schema"],
            "created_at": datetime.fromtimestamp(PROJECT.created, UTC).isoformat(),
        }
        self.backend: dict[str, Any] = {
            "id": 4,
            "url": "http://127.0.0.1:9090",
            "title": "Active learning",
            "state": "CO",
            "extra_params": {"profile": "paper", "epochs": 7},
        }
        self.backends = [self.backend]
        self.webhooks: list[dict[str, Any]] = []
        self.refuses = False
        self.client: Any = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path = request.url.path
        if self.refuses:
            return httpx.Response(400, json={"detail": "down"})
        if path.endswith("/model-versions/"):
            return httpx.Response(200, json={"static": []})
        if path.startswith("/api/projects/"):
            self.row |= body
            return httpx.Response(200, json=self.row)
        if path.startswith("/api/webhooks"):
            if request.method == "POST":
                self.webhooks.append({"id": 1, **body})
            return httpx.Response(200, json=self.webhooks if request.method == "GET" else self.webhooks[0])
        if request.method == "PATCH":
            self.backend |= body
            told = payload("setup") | {"extra_params": json.dumps(self.backend["extra_params"])}
            assert self.client.post("/setup", json=told).status_code == 200
            return httpx.Response(200, json=self.backend)
        return httpx.Response(200, json=self.backends)


@pytest.fixture
def studio(store, queue, monkeypatch):
    found = Studio()
    made = lambda *_, **__: LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(found))  # noqa: E731
    monkeypatch.setattr(LabelStudioClient, "from_settings", made)
    found.client = create_app(Settings(data_dir=store.root), queue).test_client()
    assert found.client.post("/setup", json=payload("setup") | {"extra_params": "{}"}).status_code == 200
    return found


def send(studio, **form):
    found = re.search(r'name="token" value="(\w+)"', studio.client.get(PAGE, headers=HTML).text)
    assert found
    shown = {"retrain_after": "20", "per_patient": "2", "token": found[1]}
    return studio.client.post(PAGE, data=PRESENT | shown | form, headers=HTML)


def test_what_differs_is_written_and_the_rest_is_kept(studio, store):
    answer = send(studio, strategy="bald", control_share="0.1")

    assert (answer.status_code, answer.headers["Location"]) == (303, f"../..{PAGE}?done")
    assert studio.backend["extra_params"] == {"profile": "paper", "epochs": 7, "strategy": "bald", "control_share": 0.1}
    page = studio.client.get(f"{PAGE}?done", headers=HTML).text
    assert '<option value="bald" selected>' in page
    assert "the page: strategy mean_std → bald, control_share 0.0 → 0.1" in page
    [change] = store.project(PROJECT).project_record(CHANGES, OptionChanges).changes
    assert (change.by, change.before) == ("the page", {"strategy": "mean_std", "control_share": "0.0"})


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ({"batch_size": "0"}, "batch_size"),
        ({"batch_size": "many <b>"}, "batch_size"),
        ({"control_share": "0.9"}, "control_share"),
        ({"reserve": "-1"}, "reserve"),
        ({"retrain_after": ""}, "retrain_after"),
        ({"strategy": "best"}, "strategy"),
    ],
)
def test_a_mistake_is_told_beside_its_field_and_nothing_is_changed(studio, store, form, name):
    before = dict(studio.backend["extra_params"])

    answer = send(studio, **{"strategy": "bald"} | form)

    assert answer.status_code == 400
    assert f'id="{name}-wrong" role="alert">{name}=' in answer.text
    assert answer.text.count("-wrong") == 2  # and what names it for a screen reader
    assert "<b>" not in answer.text.partition("<form")[2].partition("</form")[0]
    assert studio.backend["extra_params"] == before
    assert store.project(PROJECT).project_record(CHANGES, OptionChanges) is None


def test_nothing_is_written_where_nothing_differs(studio, store):
    assert send(studio).status_code == 303
    assert "strategy" not in studio.backend["extra_params"]
    assert store.project(PROJECT).project_record(CHANGES, OptionChanges) is None


def test_label_studio_refuses_or_holds_no_single_connection(studio):
    studio.backends.clear()
    none = send(studio, strategy="bald")
    studio.backends += [studio.backend, studio.backend]
    two = send(studio, strategy="bald")
    studio.refuses = True
    down = send(studio, strategy="bald")

    assert none.status_code == two.status_code == down.status_code == 502
    assert f"ml-backend connect --project {PROJECT.id}" in none.text
    assert "2 connections" in two.text
    assert '<option value="bald" selected>' in down.text  # what was typed is not lost


def test_another_project_of_the_same_number_is_left_alone(studio):
    studio.row["created_at"] = "2020-01-01T00:00:00+00:00"

    assert send(studio, strategy="bald").status_code == 404
    assert "strategy" not in studio.backend["extra_params"]


def test_a_page_of_somebody_else_and_a_wrong_token(studio):
    assert send(studio, token="0" * 64, strategy="bald").status_code == 403
    wrong = studio.client.post(PAGE, data=PRESENT, headers=HTML | {"Origin": "https://evil.example"})
    assert wrong.status_code == 403


def test_the_first_images_by_each_strategy(studio, store):
    project = store.project(PROJECT)
    project.save(make_report(), None, None)
    doubt = ImageInsight(image_id="7", place=1, probs={"a": 0.6, "b": 0.4}, score=0.4, aleatoric=0.6, epistemic=0.3466)
    previewed = tuple(doubt.model_copy(update={"image_id": str(number)}) for number in range(7, 20))
    project.set_record(
        "r000001", PREVIEWS, StrategyPreviews(first=dict.fromkeys(("bald", "entropy", "mean_std"), previewed))
    )
    project.thumbnails.keep("r000001", [("7", b"jpeg")])

    page = studio.client.get(PAGE, headers=HTML).text

    assert re.findall("<h3>(.*?)</h3>", page) == ["mean_std (chosen)", "bald", "entropy"]
    assert "As of round 1" in page
    assert "badge (needs gradients of every image)" in page
    assert "batch_bald (takes minutes)" in page
    assert "its prediction varies from pass to pass, by 50 % of the maximum" in page
    assert "undecided between a 60 % and b 40 %" in page
    assert page.count("thumbs/7.jpg") == 3
    assert re.findall(r">Task (\d+)<", page)[:7] == ["7", "8", "9", "10", "11", "12", "7"]

    def open_tasks(*left):
        answered = (task(said("normal")) for _ in range(20))
        tasks = [task() if number in left else one for number, one in enumerate(answered, start=1)]
        project.readings.keep_mirror(mirror_of(*tasks))
        return studio.client.get(PAGE, headers=HTML).text

    assert re.findall(r">Task (\d+)<", open_tasks(8, 19)) == ["8", "19"] * 3
    assert open_tasks(20).count("All that the round noted were answered since") == 3
