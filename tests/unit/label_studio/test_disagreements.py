"""The Data Manager's tab of disagreements, against a small Label Studio with tabs; tests/system has the real one."""

import json
from typing import Any

import httpx
import pytest

from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.disagreements import MOST, TITLE, keep_tab
from ml_backend.storage.project_state import ReadingStore


class Tabs:
    """The tabs of one project, by id, and the requests for them."""

    def __init__(self) -> None:
        self.tabs: dict[int, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.broken = False
        self.silent: str | None = None  # no response to a PATCH, which is "done" or "lost"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.strip("/").rpartition("/")[2]
        self.requests.append(request.method)
        if self.broken:
            return httpx.Response(500, text="database is locked")
        if name == "views" and request.method == "GET":
            return httpx.Response(200, json=[{"id": i, "data": data} for i, data in self.tabs.items()])
        if name == "views":
            data = json.loads(request.content)["data"]
            number = 7 if data["title"] == TITLE else 1
            self.tabs[number] = data
            return httpx.Response(201, json={"id": number, "data": data})
        if int(name) not in self.tabs:
            return httpx.Response(404, json={"detail": "Not found."})
        if request.method == "PATCH":
            if self.silent != "lost":
                self.tabs[int(name)] = json.loads(request.content)["data"]
            if self.silent:
                raise httpx.ReadTimeout("timed out", request=request)
        return httpx.Response(200, json={"id": int(name), "data": self.tabs[int(name)]})

    def shown(self) -> list[int]:
        return [one["value"] for one in self.tabs[7]["filters"]["items"]]


@pytest.fixture
def server() -> Tabs:
    return Tabs()


@pytest.fixture
def show(server, tmp_path):
    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(server), retries=1)
    return lambda *images, folder="a": keep_tab(client, 1, [*map(str, images)], ReadingStore(tmp_path / folder))


def test_is_made_for_the_first_disagreement_and_kept_up_to_date(server, show):
    show()
    assert server.requests == []

    show(9, 4)
    assert (server.tabs[7]["title"], server.shown()) == (TITLE, [9, 4])

    server.tabs[7] |= {"title": "To decide", "hiddenColumns": {"explore": ["a"], "labeling": []}}
    show(4, 5)
    assert (server.tabs[7]["title"], server.shown()) == ("To decide", [4, 5])
    assert server.tabs[7]["hiddenColumns"] == {"explore": ["a"], "labeling": []}
    assert len(server.tabs) == 2


def test_has_the_columns_of_the_first_tab_which_it_does_not_replace(server, show):
    """The Data Manager makes a tab of all images only where a project has none."""
    show(9)
    assert [tab["title"] for tab in server.tabs.values()] == ["Default", TITLE]

    columns = {"explore": ["tasks:inner_id"], "labeling": []}
    server.tabs = {3: {"title": "Mine", "hiddenColumns": columns, "ordering": ["-tasks:id"], "filters": {"items": []}}}
    show(4, folder="b")
    assert server.tabs[7] == {"title": TITLE, "hiddenColumns": columns, "filters": server.tabs[7]["filters"]}
    assert server.shown() == [4]


def test_shows_no_image_once_all_are_decided(server, show):
    """A filter without a line would show every image."""
    show(9)
    show()
    assert server.shown() == [0]

    show(3)
    assert server.shown() == [3]


def test_costs_no_request_where_nothing_has_changed(server, show):
    show(9, 4)
    asked = len(server.requests)
    show(4, 9)

    assert len(server.requests) == asked


def test_what_the_owner_removed_or_made_his_own_is_left_alone(server, show):
    show(9)
    server.tabs[7]["filters"]["items"].append({"filter": "filter:tasks:id", "operator": "equal", "value": 1})
    show(4)
    assert server.shown() == [9, 1]

    server.tabs.clear()
    show(5)
    assert server.tabs == {}


def test_of_an_installation_whose_data_folder_is_gone_is_taken_up(server, show):
    show(9)
    show(4, folder="b")

    assert (len(server.tabs), server.shown()) == (2, [4])


def test_a_change_without_a_response_is_not_taken_for_the_owner_s(server, show):
    show(9)
    for silent, seen in [("done", [9, 4]), ("lost", [9])]:
        server.silent = silent
        show(9, 4)
        assert server.shown() == seen
        server.silent = None
        show(9)
        assert server.shown() == [9]

    server.silent = "done"
    show(4)
    server.silent = None
    server.tabs[7]["filters"]["items"].append({"filter": "filter:tasks:id", "operator": "equal", "value": 1})
    show(5)
    assert server.shown() == [4, 1]


def test_is_not_changed_where_that_cannot_be_put_on_record(server, show, monkeypatch):
    show(9)
    monkeypatch.setattr(ReadingStore, "keep_disagreements_tab", lambda *_: None)  # as on a full disk
    show(4)

    assert server.shown() == [9]


def test_tabs_without_data(server, show):
    server.tabs[3] = None
    show(9)
    assert (server.tabs[7]["title"], server.shown()) == (TITLE, [9])

    server.tabs[7] = None
    show(4)
    assert server.tabs[7] is None


def test_shows_the_widest_of_many(server, show):
    show(*range(1, MOST + 50))

    assert server.shown() == [*range(1, MOST + 1)]


def test_an_error_is_logged_and_no_more(server, show):
    server.broken = True
    show(9)

    assert server.tabs == {}
