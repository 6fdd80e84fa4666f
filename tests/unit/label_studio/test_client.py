"""Over httpx's mock transport: what is sent, what is repeated, what errors name, and how long a key is used."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ml_backend.config import Settings
from ml_backend.errors import LabelStudioError, PayloadError, RequestRefused, SettingsError
from ml_backend.label_studio.client import PAGE, ApiKey, LabelStudioClient, Redirected, label_studio_version
from tests.unit.label_studio.studio import FakeStudio

URL = "http://label-studio.example:8080/annotate"
LIFE_S = 300
PERSONAL, LEGACY = "head.body.signature", "0" * 40
Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


POSTS: list[Callable[[LabelStudioClient], object]] = [
    lambda it: it.import_predictions(1, [{"task": 1, "result": []}]),
    lambda it: it.create_project({"title": "pool"}),
    lambda it: it.add_backend({"url": "u", "project": 1}),
    lambda it: it.add_webhook({"url": "u", "project": 1}),
    lambda it: it.train(1),
]
EVERY_CALL = """
import sys, httpx, ml_backend.server.app, ml_backend.scheduling.reconciler
from ml_backend.label_studio.client import LabelStudioClient
lists = ("GET", "/api/ml/"), ("GET", "/api/webhooks/")
answer = lambda asked: [] if (asked.method, asked.url.path) in lists else {"email": "", "created": 0}
transport = httpx.MockTransport(lambda asked: httpx.Response(200, json=answer(asked)))
with LabelStudioClient("http://ls", "k", transport=transport) as client:
    client.whoami(), list(client.projects()), client.create_project({}), client.patch_project(1, {})
    client.backends(1), client.add_backend({"url": "u", "project": 1}), client.patch_backend(1, {"url": "u"})
    client.delete_backend(1), client.train(1), client.import_predictions(1, [])
    client.webhooks(1), client.add_webhook({"url": "u"}), client.patch_webhook(1, {})
print(*sys.modules)
"""


class Server:
    """Answers with what a test hands it, one after the other, the last for ever; keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)


def client(server: Callable[[httpx.Request], httpx.Response], key: str = LEGACY, **options: Any) -> LabelStudioClient:
    return LabelStudioClient(URL, key, transport=httpx.MockTransport(server), **options)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _: None))


class TestAddress:
    def test_below_the_path_that_label_studio_is_served_under(self):
        server = Server(httpx.Response(200, json={"id": 3}))

        assert client(server).project(3) == {"id": 3}
        assert str(server.requests[0].url) == f"{URL}/api/projects/3/"
        assert server.requests[0].headers["authorization"] == f"Token {LEGACY}"

    @pytest.mark.parametrize("url", ["localhost:8080", "http://me:s3cret@label-studio.example"])
    def test_refuses_what_is_none_without_repeating_a_password(self, url):
        with pytest.raises(SettingsError, match=r"expected http://") as refused:
            LabelStudioClient(url, "key")
        assert "s3cret" not in str(refused.value)

    def test_from_settings(self):
        settings = Settings(label_studio_url=None, label_studio_api_key="k")

        assert LabelStudioClient.from_settings(settings, "http://ls/").url == "http://ls"
        with pytest.raises(SettingsError, match="AL_LABEL_STUDIO_URL"):
            LabelStudioClient.from_settings(settings)
        with pytest.raises(SettingsError, match="personal access token at http://ls/user/account"):
            LabelStudioClient.from_settings(Settings(label_studio_api_key=None), "http://ls")


class TestApiKey:
    def test_a_legacy_token_is_sent_as_it_is(self):
        assert ApiKey(" abc\n", pytest.fail).header() == "Token abc"

    def test_a_personal_token_is_exchanged_and_renewed_in_time(self, monkeypatch):
        """300 s long: kept at 209 s, renewed at 210 s; and once refused, by the first of two threads alone."""
        now, numbers = [1000.0], count(1)
        monkeypatch.setattr("ml_backend.label_studio.client.time", SimpleNamespace(monotonic=lambda: now[0]))
        key = ApiKey(PERSONAL, lambda personal: f"{personal} {next(numbers)}")

        headers = [key.header()]
        for passed_s, refused in ((209, ""), (1, ""), (0, f"Bearer {PERSONAL} 2"), (0, f"Bearer {PERSONAL} 2")):
            now[0] += passed_s
            headers.append(key.header(refused=refused))
        assert headers == [f"Bearer {PERSONAL} {number}" for number in (1, 1, 2, 3, 3)]

    def test_an_empty_key_is_refused(self):
        with pytest.raises(SettingsError, match="personal access token"):
            ApiKey("  ", str)

    @pytest.mark.parametrize(("key", "why"), [(PERSONAL, "was it revoked"), (LEGACY, "off by default")])
    def test_a_refused_key(self, key, why):
        server = Server(httpx.Response(401, json={"detail": "Token is invalid"}))

        with pytest.raises(RequestRefused, match=rf"Token is invalid; .*{why}.*make a personal access token"):
            client(server, key).project(1)
        assert len(server.requests) == 1


class ExpiringServer:
    """A Label Studio under a path in which every request takes ``step_s`` seconds, by its own clock.

    It knows which access tokens it gave out and when, refuses the older ones as the real one does, and counts.
    """

    def __init__(self, step_s: float) -> None:
        self.now = 50_000.0
        self.step_s = step_s
        self.given: dict[str, float] = {}
        self.refused = 0
        self.imported: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.now += self.step_s
        if str(request.url) == f"{URL}/api/token/refresh/":
            assert json.loads(request.content) == {"refresh": PERSONAL}
            assert "authorization" not in request.headers
            self.given[f"Bearer {self.now}"] = self.now + LIFE_S
            return httpx.Response(200, json={"access": str(self.now)})
        key = request.headers["authorization"]
        if key != f"Token {LEGACY}" and self.given.get(key, 0.0) < self.now:
            self.refused += 1
            return httpx.Response(401, json={"detail": "Token is expired"})
        if request.method == "GET":
            return httpx.Response(200, json={"id": 1})
        assert str(request.url) == f"{URL}/api/projects/1/import/predictions"
        self.imported.append(len(json.loads(request.content)))
        return httpx.Response(201, json={"created": self.imported[-1]})


def run_round(server: ExpiringServer, key: str) -> None:
    """The requests of a round, in its order: it reads, fetches images, and imports predictions."""
    studio = client(server, key, retries=1)

    assert [studio.project(1)["id"] for _ in range(4)] == [1, 1, 1, 1]
    assert {studio.download(f"/data/upload/1/{n}.png", max_bytes=99)[0] for n in range(20)} == {b'{"id":1}'}
    assert [studio.import_predictions(1, [{"task": 1, "result": []}]) for _ in range(3)] == [1, 1, 1]


class TestLongRounds:
    """Rounds that outlast the access token."""

    @pytest.mark.parametrize("key", [PERSONAL, LEGACY])
    def test_a_token_is_renewed_before_it_expires(self, key, monkeypatch):
        """27 requests of 40 s are 18 minutes; renewed every 210 s, and no request is ever refused."""
        server = ExpiringServer(40)
        # Our clock and Label Studio's run alike, 49,000 s apart.
        monkeypatch.setattr(
            "ml_backend.label_studio.client.time", SimpleNamespace(monotonic=lambda: server.now - 49_000)
        )

        run_round(server, key)

        assert server.now - 50_000 > 3 * LIFE_S
        assert (len(server.given) >= 4) == (key == PERSONAL)
        assert (server.refused, server.imported) == (0, [1, 1, 1])

    def test_a_token_that_expires_in_the_middle_is_renewed_once_and_the_request_repeated(self, monkeypatch):
        """Our clock stands still, as that of a machine that was put to sleep."""
        monkeypatch.setattr("ml_backend.label_studio.client.time", SimpleNamespace(monotonic=lambda: 0.0))
        server = ExpiringServer(40)

        run_round(server, PERSONAL)

        assert server.refused >= 3
        assert len(server.given) == server.refused + 1
        assert server.imported == [1, 1, 1]  # a refused import has imported nothing

    def test_a_label_studio_that_forgot_its_tokens(self):
        server = ExpiringServer(0)
        studio = client(server, PERSONAL, retries=1)
        studio.project(1)

        server.given.clear()

        assert studio.import_predictions(1, [{}]) == 1
        assert (server.refused, server.imported) == (1, [1])

    def test_a_token_that_is_refused_when_new_is_not_tried_for_ever(self):
        server = ExpiringServer(LIFE_S + 1)

        with pytest.raises(RequestRefused, match="401"):
            client(server, PERSONAL, retries=1).project(1)
        assert server.refused == 2


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    @pytest.mark.parametrize("key", [PERSONAL, LEGACY])
    @pytest.mark.parametrize(
        "there", ["http://evil.example", "https://label-studio.example:8080", "http://label-studio.example:8081"]
    )
    def test_to_another_origin_are_not_followed(self, status, key, there):
        """A 307 would repeat the body: the personal access token, or the password of the backend."""
        server = Server(httpx.Response(status, headers={"location": f"{there}/api/?signature=s3cret"}))

        with pytest.raises(LabelStudioError, match=f"was redirected to {there}/api/: set AL_LABEL_STUDIO_URL") as error:
            client(server, key, retries=1).add_backend({"url": "u", "project": 1, "basic_auth_pass": "secret"})
        assert len(server.requests) == 1
        assert "s3cret" not in str(error.value)

    def test_of_a_file_are_reported_and_not_followed(self):
        server = Server(httpx.Response(303, headers={"location": "https://bucket.example/a.png?sig=x"}))

        with pytest.raises(Redirected) as redirected:
            client(server).download("/tasks/1/resolve/?fileuri=eA", max_bytes=9)
        assert redirected.value.location == "https://bucket.example/a.png?sig=x"
        assert "sig=x" not in str(redirected.value)
        assert len(server.requests) == 1

    def test_that_turn_an_import_into_a_get_are_an_error(self):
        server = Server(httpx.Response(301, headers={"location": f"{URL}/api"}), httpx.Response(405))

        with pytest.raises(LabelStudioError, match=rf"was redirected to {URL}/api: set AL_LABEL_STUDIO_URL"):
            client(server).import_predictions(1, [{}])

    def test_within_label_studio_are_followed(self):
        server = Server(httpx.Response(301, headers={"location": f"{URL}/there"}), httpx.Response(200, json={"id": 1}))

        assert client(server).project(1) == {"id": 1}


class TestRepeating:
    @pytest.mark.parametrize("first", [httpx.Response(502), httpx.ConnectError("no"), httpx.ReadError("cut")])
    def test_what_may_be_repeated_is(self, first):
        server = Server(first, first, httpx.Response(200, json={"id": 1}))

        assert client(server).project(1) == {"id": 1}
        assert len(server.requests) == 3

    @pytest.mark.parametrize(
        "first",
        [*map(httpx.Response, (409, 429, 500, 502, 503)), httpx.ReadError("cut"), httpx.ReadTimeout("slow")],
        ids=str,
    )
    @pytest.mark.parametrize("post", POSTS)
    def test_a_post_that_may_have_arrived_is_not(self, post, first):
        """label-studio-sdk itself repeats these, an import of predictions too."""
        server = Server(first, httpx.Response(201, json={"created": 1}))

        with pytest.raises(LabelStudioError):
            post(client(server))
        assert [request.method for request in server.requests] == ["POST"]

    @pytest.mark.parametrize(("failures", "patience_s"), [(1, 0.0), (20, 60.0)])
    def test_an_import_that_cannot_have_arrived_is(self, failures, patience_s):
        """Also while Label Studio restarts for half a minute: hours of training would be lost at the publish."""
        server = Server(*[httpx.ConnectError("refused")] * failures, httpx.Response(201, json={"created": 1}))

        assert client(server, patience_s=patience_s).import_predictions(1, [{}]) == 1

    @pytest.mark.parametrize("first", [httpx.Response(502), httpx.ReadError("cut"), httpx.ConnectError("refused")])
    def test_ends_after_as_many_attempts(self, first):
        """Patience is for connecting alone."""
        server = Server(first)

        with pytest.raises(LabelStudioError):
            client(server, retries=3, patience_s=0.0 if isinstance(first, httpx.ConnectError) else 60.0).project(1)
        assert len(server.requests) == 3

    def test_patience_ends(self):
        with pytest.raises(LabelStudioError, match=r"ConnectError: refused.*AL_LABEL_STUDIO_URL"):
            client(Server(httpx.ConnectError("refused")), patience_s=0.05).project(1)

    def test_the_last_busy_answer_is_reported(self):
        with pytest.raises(RequestRefused, match="503") as refused:
            client(Server(httpx.Response(503, text="maintenance"))).project(1)
        assert refused.value.status == 503


class TestSdk:
    """What label-studio-sdk makes of our arguments, and of Label Studio's answers."""

    def test_time_outs_are_ours(self):
        """60 s by default and 20 times that for an import, not the 5 s of httpx."""
        server = Server(httpx.Response(200, json={"access": "a", "created": 1}))
        studio = client(server, PERSONAL)
        studio.project(1)
        studio.import_predictions(1, [])

        waits = [request.extensions["timeout"] for request in server.requests]
        assert [(wait["connect"], wait["read"]) for wait in waits] == [(10.0, 60.0), (10.0, 60.0), (10.0, 1200.0)]

    def test_a_change_sends_its_fields_alone(self):
        fields = {"model_version": "", "show_collab_predictions": False, "sampling": None}
        server = Server(httpx.Response(200, json=fields))

        assert client(server).patch_project(1, fields) == fields
        assert json.loads(server.requests[0].content) == fields

    def test_a_row_is_what_label_studio_sent(self):
        """Other releases lack fields, have more, or give them other types than the SDK's model."""
        row = {"id": 3, "created_at": 5, "sampling": ["?"], "task_number": "7", "is_draft": "no", "new": {"a": 1.0}}
        server = Server(httpx.Response(200, json=row), httpx.Response(200, json=[row]))

        assert client(server).project(3) == row
        assert client(server).backends(3) == client(server).webhooks(3) == [row]

    def test_projects_end_with_the_last_page(self):
        """Label Studio answers 404 to the page behind it."""
        pages = [{"results": [{"id": n, "title": "pool"}], "next": n < 2 or None} for n in (1, 2)]
        server = Server(*(httpx.Response(200, json=page) for page in pages), httpx.Response(404))

        assert [*client(server).projects("po")] == [{"id": 1, "title": "pool"}, {"id": 2, "title": "pool"}]
        assert [request.url.params["page"] for request in server.requests] == ["1", "2"]

    def test_a_wrong_argument_is_not_blamed_on_label_studio(self):
        with pytest.raises(TypeError, match="url"):
            client(Server(httpx.Response(200))).add_backend({"project": 1})

    def test_the_web_process_loads_none_of_its_heavy_parts(self):
        """``from label_studio_sdk import LabelStudio`` takes two seconds and 110 MB, most of it pandas."""
        done = subprocess.run(
            [sys.executable, "-c", EVERY_CALL], capture_output=True, text=True, check=True, timeout=60
        )

        loaded = set(done.stdout.split())
        assert {"label_studio_sdk.ml", "label_studio_sdk.projects", "label_studio_sdk.webhooks"} <= loaded
        heavy = {"pandas", "cv2", "nltk", "lxml", "requests", "faker", "jsonschema", "datamodel_code_generator"}
        heavy |= {f"label_studio_sdk.{part}" for part in ("converter", "label_interface", "_legacy", "_extensions")}
        assert loaded & heavy == set()


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
    def test_of_another_server(self, answer):
        with pytest.raises(PayloadError, match="is AL_LABEL_STUDIO_URL the address of Label Studio"):
            client(Server(answer)).project(1)

    def test_a_number_is_missing(self):
        with pytest.raises(PayloadError, match="expected a number under 'created'"):
            client(Server(httpx.Response(201, json={}))).import_predictions(1, [])

    def test_an_error_repeats_the_beginning_of_the_answer(self):
        answer = {"detail": "Validation error", "validation_errors": {"model_version": ["x" * 1000]}}

        with pytest.raises(RequestRefused) as refused:
            client(Server(httpx.Response(400, json=answer))).project(1)
        assert "model_version" in str(refused.value)
        assert len(str(refused.value)) < 1000

    def test_a_patch_that_somebody_overwrote(self):
        server = Server(httpx.Response(200, json={}), httpx.Response(200, json={"model_version": "other"}))

        with pytest.raises(LabelStudioError, match=r"holds {'model_version': 'other'} afterwards"):
            client(server).patch_project(1, {"model_version": "mine"})

    def test_a_patch_that_was_overwritten_once_is_sent_again(self):
        """By a request that Label Studio answered at the same moment, with the row that it had read before."""
        rows = [{}, {"model_version": "other"}, {}, {"model_version": "mine"}]
        server = Server(*(httpx.Response(200, json=row) for row in rows))

        assert client(server).patch_project(1, {"model_version": "mine"}) == {"model_version": "mine"}

    def test_a_file_beyond_the_limit_is_not_read_to_its_end(self):
        with pytest.raises(RequestRefused, match="larger than 10 bytes") as refused:
            client(Server(httpx.Response(200, content=b"x" * 11))).download("/a", max_bytes=10)
        assert refused.value.status == 413


class TestVersion:
    def version(self, answer: Answer) -> str:
        return label_studio_version("http://ls", httpx.MockTransport(Server(answer)))

    def test_its_release(self):
        assert self.version(httpx.Response(200, json={"release": "1.23.2", "edition": "Community"})) == "1.23.2"

    def test_no_connection(self):
        with pytest.raises(LabelStudioError, match="no answer from http://ls: ConnectError: Connection refused"):
            self.version(httpx.ConnectError("Connection refused"))

    def test_a_redirect_is_reported_without_secrets_and_not_followed(self):
        there = httpx.Response(301, headers={"location": "https://me:pass@studio.example/api/version?token=x"})

        with pytest.raises(LabelStudioError, match=r"redirects to https://studio\.example/api/version$"):
            self.version(there)

    @pytest.mark.parametrize("answer", [{"json": {"version": 5}}, {"json": []}, {"text": "<html>hello"}])
    def test_another_server(self, answer):
        with pytest.raises(PayloadError, match="is no Label Studio: 200 to GET /api/version"):
            self.version(httpx.Response(200, **answer))


class TestTasks:
    def test_none_is_missed_while_readers_label(self):
        """After page one, image 1 is labelled: counted pages would skip one image."""
        studio = FakeStudio(2 * PAGE)
        studio.meanwhile.append(lambda: studio.annotate(1, "severe"))

        assert [task["id"] for task in studio.client().unlabelled_tasks(1)] == list(range(1, 2 * PAGE + 1))

    def test_a_short_page_is_the_last(self):
        studio = FakeStudio(5)

        assert len(list(studio.client().unlabelled_tasks(1))) == 5
        assert studio.requests == 1

    def test_still_unlabelled_asks_in_urls_of_bounded_length(self):
        def all_of_them(request: httpx.Request) -> httpx.Response:
            tasks = [{"id": number} for number in json.loads(request.url.params["query"])["selectedItems"]["included"]]
            return httpx.Response(200, json={"tasks": tasks, "total": len(tasks)})

        server = Server(all_of_them)

        assert client(server).still_unlabelled(1, range(1, 1001)) == set(range(1, 1001))
        assert max(len(str(request.url)) for request in server.requests) < 4096
        assert client(server).still_unlabelled(1, []) == set()
