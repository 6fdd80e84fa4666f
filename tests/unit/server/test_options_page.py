"""The form of the options: what it writes into Label Studio, and what it refuses. Label Studio is in memory."""

import html
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ml_backend.analytics.history import PREVIEWS, ImageInsight, StrategyPreviews
from ml_backend.config import Settings
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.publisher import MANY_PUBLISHED
from ml_backend.registry import STRATEGIES
from ml_backend.schemas import Ranking
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
        self.refuses = self.away = False
        self.client: Any = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path = request.url.path
        if self.away:
            raise httpx.ConnectError("refused", request=request)
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


def opened(studio) -> dict[str, str]:
    """The form as a browser would send it back."""
    text = studio.client.get(PAGE, headers=HTML).text.partition('<form method="post" class="options')[2]
    form = text.partition("</form")[0]
    fields = re.findall(r'<input[^>]*?name="(\w+)" value="([^"]*)"', form)
    [strategy] = re.findall(r'<option value="(\w+)" selected', form)
    return {name: html.unescape(value) for name, value in fields} | {"strategy": strategy}


def send(studio, **form):
    return studio.client.post(PAGE, data=opened(studio) | form, headers=HTML)


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
    assert f'id="{name}-wrong" role="alert">“{html.escape(form[name])}” is not possible: ' in answer.text
    assert "input should" not in answer.text
    assert answer.text.count("-wrong") == 2  # and what names it for a screen reader
    assert "<b>" not in answer.text.partition("<form")[2].partition("</form")[0]
    assert studio.backend["extra_params"] == before
    assert store.project(PROJECT).project_record(CHANGES, OptionChanges) is None


def test_the_values_that_each_field_takes(studio):
    page = studio.client.get(PAGE, headers=HTML).text
    found = re.findall(r'id="(\w+)-about">.*?(A (?:whole )?number from .*?)\.</p>', page)

    assert dict(found) == {
        "batch_size": "A whole number from 1 to 1000",
        "reserve": "A whole number from 0, or all",
        "control_share": "A number from 0 to 0.5",
        "retrain_after": "A whole number from 1",
        "per_patient": "A whole number from 0",
    }
    assert send(studio, control_share="0,1").headers["Location"].endswith("?done")
    assert studio.backend["extra_params"]["control_share"] == 0.1


@pytest.mark.parametrize(("labels", "strategy"), [(99, "uherding"), (100, "entropy")])
def test_the_strategy_that_is_recommended(studio, store, labels, strategy):
    store.project(PROJECT).readings.keep_mirror(mirror_of(*(task(said("normal")) for _ in range(labels)), task()))
    studio.client.get(f"/projects/{PROJECT}", headers=HTML)

    page = studio.client.get(PAGE, headers=HTML).text

    assert f"With {labels} labels we recommend <b>{strategy}</b>; chosen is mean_std." in page


def test_too_few_passes_for_a_batch_are_named(studio):
    studio.backend["extra_params"] = {"passes": 50}

    assert send(studio, strategy="batch_bald").status_code == 303
    words = "With passes=50 the last images of a batch of 20 are little better than random ones: set passes=100, or"
    assert words in studio.client.get(PAGE, headers=HTML).text
    assert send(studio, batch_size="10").status_code == 303
    assert "little better than random" not in studio.client.get(PAGE, headers=HTML).text


def test_a_reserve_that_is_costly_on_a_large_project_is_named_on_both_pages(studio, store):
    store.project(PROJECT).readings.keep_mirror(mirror_of(*(task() for _ in range(MANY_PUBLISHED + 1))))
    words = f"With reserve=all every round publishes {MANY_PUBLISHED + 1} images."
    for reserve, warned in (("80", False), ("all", True)):
        send(studio, reserve=reserve)
        for page in (f"/projects/{PROJECT}", PAGE):
            assert (words in studio.client.get(page, headers=HTML).text) == warned


def test_nothing_is_written_where_nothing_differs(studio, store):
    assert send(studio).headers["Location"].endswith("?same")
    assert send(studio, control_share="0,00", batch_size="020").headers["Location"].endswith("?same")
    assert "Nothing was changed" in studio.client.get(f"{PAGE}?same", headers=HTML).text
    assert studio.backend["extra_params"] == {"profile": "paper", "epochs": 7}
    assert store.project(PROJECT).project_record(CHANGES, OptionChanges) is None


def test_the_owners_settings_in_label_studio_are_left_alone(studio):
    """Automatic training that the owner switched off, above all."""
    own = {"min_annotations_to_start_training": 0, "sampling": "Sequential sampling", "maximum_annotations": 3}
    studio.row |= own

    assert send(studio, batch_size="30").status_code == 303
    assert studio.backend["extra_params"]["batch_size"] == 30
    assert studio.row.items() >= own.items()
    assert studio.webhooks == []


def test_what_was_changed_elsewhere_since_the_form_was_opened_stays(studio):
    form = opened(studio)
    studio.backend["extra_params"] |= {"batch_size": 50, "retrain_after": 50}

    assert studio.client.post(PAGE, data=form | {"strategy": "bald"}, headers=HTML).status_code == 303
    assert studio.backend["extra_params"] == {
        "profile": "paper", "epochs": 7, "batch_size": 50, "retrain_after": 50, "strategy": "bald",
    }  # fmt: skip


def test_a_wrong_option_is_shown_and_can_be_corrected(studio, store):
    """Of an older version, for example, whose strategy is gone."""
    studio.backend["extra_params"] |= {"strategy": "nope", "batch_size": 12}
    [connection] = store.connections()
    store.connect(connection.model_copy(update={"extra_params": studio.backend["extra_params"]}))

    assert (opened(studio)["strategy"], opened(studio)["batch_size"]) == ("nope", "12")
    assert send(studio, batch_size="30").status_code == 400
    assert send(studio, strategy="bald").status_code == 303
    assert studio.backend["extra_params"] == {"profile": "paper", "epochs": 7, "strategy": "bald", "batch_size": 12}


def test_a_change_that_cannot_be_recorded_is_made(studio, store):
    store.project(PROJECT).set_project_record(CHANGES, OptionChanges())
    [path] = store.root.rglob(f"{CHANGES}*")
    path.write_bytes(b"{")

    assert send(studio, strategy="bald").status_code == 303
    assert studio.backend["extra_params"]["strategy"] == "bald"


def test_shown_values_that_are_none(studio):
    answer = send(studio, shown="[]", strategy="bald")

    assert answer.status_code == 400
    assert "expected a JSON object" in answer.text
    assert "strategy" not in studio.backend["extra_params"]


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
    studio.away = True
    away = send(studio, strategy="bald")
    assert away.status_code == 502
    assert "Not saved. Label Studio does not answer." in away.text
    assert "AL_LABEL_STUDIO_URL" in away.text.partition("<summary>Details for your operator</summary>")[2]
    assert "AL_LABEL_STUDIO_URL" not in away.text.partition("<summary>Details for your operator</summary>")[0]


def test_another_project_of_the_same_number_is_left_alone(studio):
    studio.row["created_at"] = "2020-01-01T00:00:00+00:00"

    assert send(studio, strategy="bald").status_code == 404
    assert "strategy" not in studio.backend["extra_params"]


def test_a_page_of_somebody_else_and_a_wrong_token(studio):
    assert send(studio, token="0" * 64, strategy="bald").status_code == 403
    wrong = studio.client.post(PAGE, data=PRESENT, headers=HTML | {"Origin": "https://evil.example"})
    assert wrong.status_code == 403


def test_the_first_images_by_each_strategy(studio, store, monkeypatch):
    added = replace(STRATEGIES["entropy"], name="added", target="plugin:added")
    monkeypatch.setitem(STRATEGIES, "added", added)
    project = store.project(PROJECT)
    ranking = Ranking(strategy="x", image_ids=("6", "7"), scores=(1, 1), batch_size=1, control=("7",))
    project.save(make_report().model_copy(update={"ranking": ranking}), None, None)
    doubt = ImageInsight(image_id="7", place=1, probs={"a": 0.6, "b": 0.4}, score=0.4, aleatoric=0.6, epistemic=0.3466)
    previewed = tuple(doubt.model_copy(update={"image_id": str(number)}) for number in range(7, 20))
    project.set_record(
        "r000001", PREVIEWS, StrategyPreviews(first=dict.fromkeys(("bald", "entropy", "mean_std"), previewed))
    )
    project.thumbnails.keep("r000001", [("7", b"jpeg")])

    page = studio.client.get(PAGE, headers=HTML).text

    assert re.findall("<h3 .*?>(.*?)</h3>", page) == ["mean_std (chosen)", "bald", "entropy"]
    assert "As of round 1" in page
    listed = dict(re.findall('<dt id="about-(.*?)">.*?No preview: (.*?)\\.</span>', page.replace("</dd>", "\n")))
    assert listed["badge"] == "needs gradients of every image"
    assert listed["batch_bald"] == "takes minutes"
    assert listed["added"] == "an added function, which may take long: previewed once a round has ranked by it"
    assert re.findall('<dt id="about-(.*?)"', page) == list(STRATEGIES)
    assert "Its prediction varies from pass to pass, by 50\u00a0% of the maximum" in page
    assert "Undecided between a 60\u00a0% and b 40\u00a0%" in page
    assert page.count("thumbs/7.jpg") == 3
    assert page.count("7.jpg") == page.count("; no. 2 of the served order, drawn at random</p>")
    assert page.count("of the served order") == 3
    assert 'images?tab=chosen">the batch that is served</a>.' in page
    assert re.findall(r">Task (\d+)<", page)[:7] == ["7", "8", "9", "10", "11", "12", "7"]

    def open_tasks(*left):
        answered = (task(said("normal")) for _ in range(20))
        tasks = [task() if number in left else one for number, one in enumerate(answered, start=1)]
        project.readings.keep_mirror(mirror_of(*tasks))
        return studio.client.get(PAGE, headers=HTML).text

    assert re.findall(r">Task (\d+)<", open_tasks(8, 19)) == ["8", "19"] * 3
    assert open_tasks(20).count("All that the round noted were answered since") == 3
    project.save(make_report("r000002").model_copy(update={"base": "r000001"}), None, None)
    project.set_record("r000002", PREVIEWS, StrategyPreviews(first={"bald": previewed}))
    assert "As of round 2, by the network of round 1:" in studio.client.get(PAGE, headers=HTML).text
