"""Over httpx's own mock transport: what goes out, what is repeated, and what an error says."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from ml_backend.config import Settings
from ml_backend.errors import LabelStudioError, PayloadError, RequestRefused, SettingsError
from ml_backend.label_studio.client import PAGE, LabelStudioClient, Redirected

URL = "http://label-studio.example:8080/annotate"
PERSONAL = "head.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.signature"


class Server:
    """Answers with what a test hands it, one after the other, the last for ever; keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)


def client(server: Server, key: str = "legacy", **kwargs: Any) -> LabelStudioClient:
    return LabelStudioClient(URL, key, transport=httpx.MockTransport(server), **kwargs)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


class TestAddress:
    def test_below_the_path_that_label_studio_is_served_under(self) -> None:
        server = Server(httpx.Response(200, json={"id": 3}))

        assert client(server).project(3) == {"id": 3}
        assert str(server.requests[0].url) == f"{URL}/api/projects/3/"
        assert server.requests[0].headers["authorization"] == "Token legacy"

    def test_refuses_what_is_none(self) -> None:
        with pytest.raises(SettingsError, match="'localhost:8080'; expected http://"):
            LabelStudioClient("localhost:8080", "k")

    def test_from_settings(self) -> None:
        settings = Settings(label_studio_url=None, label_studio_api_key="k")

        assert LabelStudioClient.from_settings(settings, "http://ls/").url == "http://ls"
        with pytest.raises(SettingsError, match="AL_LABEL_STUDIO_URL"):
            LabelStudioClient.from_settings(settings)
        with pytest.raises(SettingsError, match="personal access token at http://ls/user/account"):
            LabelStudioClient.from_settings(Settings(label_studio_api_key=None), "http://ls")


class TestKey:
    def test_a_dead_access_token_is_renewed_once(self) -> None:
        """Label Studio was set up anew: 401 on a token that should still live."""
        access = httpx.Response(200, json={"access": "h.eyJpYXQiOjAsImV4cCI6MzAwfQ.s"})
        server = Server(access, httpx.Response(401), access, httpx.Response(200, json={"id": 1}))

        assert client(server, PERSONAL).project(1) == {"id": 1}
        assert [request.url.path[9:] for request in server.requests] == [
            "/api/token/refresh/",
            "/api/projects/1/",
            "/api/token/refresh/",
            "/api/projects/1/",
        ]
        assert server.requests[1].headers["authorization"].startswith("Bearer h.")
        assert "authorization" not in server.requests[0].headers

    def test_a_refused_personal_token(self) -> None:
        server = Server(httpx.Response(401, json={"detail": "Token is invalid"}))

        with pytest.raises(RequestRefused, match=r"Token is invalid; .*was it revoked.*make a personal access token"):
            client(server, PERSONAL).project(1)
        assert len(server.requests) == 1

    def test_a_refused_legacy_token(self) -> None:
        server = Server(httpx.Response(401, json={"detail": "legacy token authentication has been disabled"}))

        with pytest.raises(RequestRefused, match=r"401 to GET .*/api/projects/1/: legacy token .*off by default"):
            client(server).project(1)
        assert len(server.requests) == 1

    def test_the_key_does_not_follow_a_redirect_elsewhere(self) -> None:
        away = httpx.Response(302, headers={"location": "http://bucket.example/a.png"})
        server = Server(away, httpx.Response(200, content=b"x", headers={"content-type": "image/png"}))

        with pytest.raises(Redirected) as redirected:
            client(server).download("/tasks/1/resolve/?fileuri=eA", max_bytes=9)
        assert redirected.value.location == "http://bucket.example/a.png"
        assert len(server.requests) == 1


class TestRedirect:
    def test_an_import_that_became_a_get_says_why(self) -> None:
        there = URL.replace("http:", "https:")
        server = Server(httpx.Response(301, headers={"location": f"{there}/api"}), httpx.Response(405))

        with pytest.raises(LabelStudioError, match=rf"was redirected to {there}/api: set AL_LABEL_STUDIO_URL"):
            client(server).import_predictions(1, [{}])

    def test_what_is_only_read_follows(self) -> None:
        server = Server(httpx.Response(301, headers={"location": f"{URL}/there"}), httpx.Response(200, json={"id": 1}))

        assert client(server).project(1) == {"id": 1}


class TestRepeating:
    @pytest.mark.parametrize("first", [httpx.Response(502), httpx.ConnectError("no"), httpx.ReadError("cut")])
    def test_what_may_be_repeated_is(self, first: httpx.Response | Exception) -> None:
        server = Server(first, first, httpx.Response(200, json={"id": 1}))

        assert client(server).project(1) == {"id": 1}
        assert len(server.requests) == 3

    @pytest.mark.parametrize("first", [httpx.Response(502), httpx.ReadError("cut"), httpx.ReadTimeout("slow")])
    def test_an_import_that_may_have_arrived_is_not(self, first: httpx.Response | Exception) -> None:
        server = Server(first, httpx.Response(201, json={"created": 1}))

        with pytest.raises(LabelStudioError):
            client(server).import_predictions(1, [{}])
        assert len(server.requests) == 1

    def test_an_import_that_cannot_have_arrived_is(self) -> None:
        server = Server(httpx.ConnectError("no"), httpx.Response(201, json={"created": 1}))

        assert client(server).import_predictions(1, [{}]) == 1

    def test_gives_up_with_the_way_out(self) -> None:
        server = Server(httpx.ConnectError("refused"))

        with pytest.raises(LabelStudioError, match=r"ConnectError: refused.*AL_LABEL_STUDIO_URL"):
            client(server, retries=3).project(1)
        assert len(server.requests) == 3

    def test_outlives_a_restart_of_label_studio(self) -> None:
        """Nothing listens for half a minute: hours of training would be lost at the publish."""
        server = Server(*[httpx.ConnectError("refused")] * 20, httpx.Response(201, json={"created": 1}))

        assert client(server, patience_s=60.0).import_predictions(1, [{}]) == 1

    def test_patience_ends(self) -> None:
        server = Server(httpx.ConnectError("refused"))

        with pytest.raises(LabelStudioError, match="ConnectError"):
            client(server, patience_s=0.05).project(1)

    @pytest.mark.parametrize("first", [httpx.Response(502), httpx.ReadError("cut")])
    def test_patience_is_for_connecting_alone(self, first: httpx.Response | Exception) -> None:
        server = Server(first)

        with pytest.raises(LabelStudioError):
            client(server, retries=3, patience_s=60.0).project(1)
        assert len(server.requests) == 3

    def test_the_last_busy_answer_is_told(self) -> None:
        with pytest.raises(RequestRefused, match="503") as refused:
            client(Server(httpx.Response(503, text="maintenance"))).project(1)
        assert refused.value.status == 503


class TestAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(200, html="<html>sign in</html>"),
            httpx.Response(200, text="ok"),
            httpx.Response(200, json=[1]),
            httpx.Response(200, content=b""),
        ],
    )
    def test_something_else_than_label_studio(self, answer: httpx.Response) -> None:
        with pytest.raises(PayloadError, match="is AL_LABEL_STUDIO_URL the address of Label Studio"):
            client(Server(answer)).project(1)

    def test_a_number_is_missing(self) -> None:
        with pytest.raises(PayloadError, match="expected a number under 'created'"):
            client(Server(httpx.Response(201, json={}))).import_predictions(1, [])

    def test_an_error_repeats_the_beginning_of_the_answer(self) -> None:
        answer = {"detail": "Validation error", "validation_errors": {"model_version": ["x" * 1000]}}

        with pytest.raises(RequestRefused) as refused:
            client(Server(httpx.Response(400, json=answer))).project(1)
        assert "model_version" in str(refused.value)
        assert len(str(refused.value)) < 1000

    def test_a_patch_that_somebody_overwrote(self) -> None:
        server = Server(httpx.Response(200, json={}), httpx.Response(200, json={"model_version": "other"}))

        with pytest.raises(LabelStudioError, match=r"holds {'model_version': 'other'} afterwards"):
            client(server).patch_project(1, {"model_version": "mine"})

    def test_a_file_beyond_the_limit_is_not_read_to_its_end(self) -> None:
        with pytest.raises(RequestRefused, match="larger than 10 bytes"):
            client(Server(httpx.Response(200, content=b"x" * 11))).download("/a", max_bytes=10)


class Tasks:
    """The Data Manager's task list: filters by id, at most ``page_size``; labels a task after each page."""

    def __init__(self, count: int) -> None:
        self.ids = list(range(1, count + 1))
        self.pages = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        query = json.loads(request.url.params["query"])
        after = next(item["value"] for item in query["filters"]["items"] if item["filter"] == "filter:tasks:id")
        chosen = query.get("selectedItems", {}).get("included", self.ids)
        found = [number for number in self.ids if number > after and number in set(chosen)]
        self.pages += 1
        self.ids = self.ids[1:]
        size = int(request.url.params["page_size"])
        tasks = [{"id": number} for number in found[:size]]
        return httpx.Response(200, json={"tasks": tasks, "total": len(found)})


class TestTasks:
    def test_none_is_missed_while_readers_label(self) -> None:
        """After page one, image 1 is labelled: counted pages would skip one image."""
        tasks = Tasks(2 * PAGE)

        assert [task["id"] for task in client(Server(tasks)).unlabelled_tasks(1)] == list(range(1, 2 * PAGE + 1))

    def test_a_short_page_is_the_last(self) -> None:
        tasks = Tasks(5)

        assert len(list(client(Server(tasks)).unlabelled_tasks(1))) == 5
        assert tasks.pages == 1

    def test_still_unlabelled_asks_in_urls_of_bounded_length(self) -> None:
        tasks = Tasks(1000)
        server = Server(tasks)

        assert client(server).still_unlabelled(1, range(1, 1001)) >= set(range(4, 1001))
        assert max(len(str(request.url)) for request in server.requests) < 4096
        assert client(server).still_unlabelled(1, []) == set()

    def test_skipped_ones_can_be_left_out(self) -> None:
        server = Server(httpx.Response(200, json={"tasks": [], "total": 0}))

        list(client(server).unlabelled_tasks(1, with_skipped=False))

        assert "cancelled_annotations" in server.requests[0].url.params["query"]
