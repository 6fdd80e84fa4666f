"""What needs a Label Studio with other settings than the system tests' own; tests/system has the rest."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.config import Settings
from ml_backend.errors import LabelStudioError, SettingsError, Unreachable
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import (
    NOTHING_TO_CHANGE,
    TESTED,
    authorization,
    browser_address,
    choose_project,
    connect_project,
    half_connections,
    hint,
    other_connections,
    prediction_notes,
    version_note,
    wanted_webhook,
    webhook_refusal,
)
from tests.unit.label_studio.studio import FakeStudio

XML = (Path(__file__).parents[3] / "label_studio_config" / "severity.xml").read_text()
BACKEND = "http://127.0.0.1:9090"


class GuardedLabelStudio:
    """Its protection against private addresses is on for webhooks alone: it keeps the backend, and answers 403."""

    def __init__(self) -> None:
        self.backends: list[dict[str, Any]] = []
        self.project: dict[str, Any] = {"label_config": XML, "model_version": "", "show_collab_predictions": True}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        if request.url.path.startswith("/api/projects/"):
            self.project |= body
            return httpx.Response(200, json=self.project)
        if request.method == "GET":
            return httpx.Response(200, json=self.backends)
        if request.method == "DELETE":
            self.backends.clear()
            return httpx.Response(204)
        self.backends.append({"id": 4, "url": body["url"], "state": "CO"})
        # Recorded from Label Studio 1.23.2 with LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false alone.
        detail = "URL resolves to a reserved network address (block: 127.0.0.0/8)"
        return httpx.Response(403, json={"status_code": 403, "version": "1.23.2", "detail": detail})


def test_a_half_created_backend_is_deleted_and_the_way_out_is_told() -> None:
    server = GuardedLabelStudio()
    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(server))

    with pytest.raises(LabelStudioError) as refused:
        connect_project(Settings.load(), 1, BACKEND, {"strategy": "bald"}, client=client)

    assert "reserved network address" in str(refused.value)
    assert "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false" in str(refused.value)
    assert "LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false" in str(refused.value)
    assert server.backends == []
    assert server.project["show_collab_predictions"] is True


def test_a_ranking_that_comes_meanwhile_is_no_prediction_of_the_owner_s() -> None:
    """A worker may publish before the command ends."""
    studio = FakeStudio(images=1)
    studio.predictions = {"al-r000001-random": 1}

    assert prediction_notes(studio.client(), 1, {}) == []
    [line] = prediction_notes(studio.client(), 1, {"the owner's": 1})
    assert "the owner's" in line
    assert "al-r000001" not in line


@pytest.mark.parametrize(
    ("told", "helps"),
    [
        ("Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] ...", "REQUESTS_CA_BUNDLE"),
        ("Caused by SSLError(SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number", "an http:// address"),
        ("Failed to establish a new connection: [Errno 111] Connection refused", "does it listen"),
        ("Can't resolve hostname nobody.invalid", "does not know this name"),
        ("Caused by ProxyError('Unable to connect to proxy', NewConnectionError(", "NO_PROXY"),
        ("Caused by ConnectTimeoutError(<HTTPSConnection(host='10.0.0.1', port=9090)", "firewall"),
        ("the label config has no Choices", None),
    ],
)
def test_why_label_studio_does_not_reach_the_backend(told: str, helps: str | None) -> None:
    """In the words of Label Studio 1.23.2, which are those of requests."""
    found = hint(f"Can't connect to ML backend https://b:9090, health check failed. Additional info: {told}")

    assert (found is None) if helps is None else (found is not None and helps in found)


def test_without_an_address_or_a_key() -> None:
    with pytest.raises(SettingsError, match="AL_LABEL_STUDIO_URL"):
        connect_project(Settings(label_studio_url=None), 1, BACKEND)


OLD, SAM = "http://localhost:9090", "http://sam:9090"
GUARDED = Settings(basic_auth_user="al", basic_auth_pass="pass-word")
OURS = {"Authorization": authorization(GUARDED)}


def hook(url: str, **fields: object) -> dict[str, Any]:
    return {"url": f"{url}/webhook", "is_active": True, "headers": {}, **fields}


@pytest.mark.parametrize(
    ("settings", "backends", "webhooks", "found"),
    [
        (GUARDED, [{"url": BACKEND, "title": "Active learning"}], [hook(BACKEND, headers=OURS)], []),
        (GUARDED, [{"url": f"{BACKEND}/", "title": "x", "basic_auth_user": "al"}], [], []),
        (GUARDED, [{"url": OLD, "title": "Active learning"}], [], [OLD]),
        (GUARDED, [{"url": f"{OLD}/", "title": "by hand", "basic_auth_user": "al"}], [], [OLD]),
        (GUARDED, [], [hook(OLD, headers=OURS)], [OLD]),
        (GUARDED, [], [hook(OLD, headers=OURS, is_active=False)], []),
        (GUARDED, [], [hook(OLD)], []),
        (
            GUARDED,
            [{"url": "http://sam:9090", "title": "SAM", "basic_auth_user": "sam"}],
            [hook("http://sam:9090")],
            [],
        ),
        (Settings(), [], [hook(OLD)], [OLD]),
        (Settings(), [], [hook("http://chat.example.org")], []),
        (Settings(), [{"url": SAM, "title": "SAM"}], [hook(SAM)], []),
        (Settings(), [], [hook("http://chat.example.org:99999")], []),
    ],
)
def test_other_connections(
    settings: Settings, backends: list[dict[str, Any]], webhooks: list[dict[str, Any]], found: list[str]
) -> None:
    """Ours at another address, and the webhook that stays of a backend that was deleted; never somebody else's."""
    assert other_connections(backends, webhooks, BACKEND, settings) == found


def test_another_service_behind_https_is_none() -> None:
    """Neither address names a port."""
    hooks = [hook("https://chat.example.org")]

    assert other_connections([], hooks, "https://al.example.org", Settings()) == []


NO_DOT = "http://backend:9090"
LEFT = {"id": 3, "url": NO_DOT, "title": "Active learning", "basic_auth_user": "al"}


@pytest.mark.parametrize(
    ("settings", "row", "webhooks", "is_ours"),
    [
        (GUARDED, LEFT, [], True),
        (GUARDED, LEFT | {"url": f"{NO_DOT}/"}, [hook(BACKEND, headers=OURS)], True),
        (GUARDED, LEFT | {"url": BACKEND}, [], False),
        (GUARDED, LEFT | {"title": "SAM"}, [], False),
        (GUARDED, LEFT | {"basic_auth_user": "sam"}, [], False),
        (GUARDED, LEFT | {"basic_auth_user": None}, [], False),
        (GUARDED, LEFT, [hook(NO_DOT, is_active=False)], False),
        (GUARDED, LEFT, [hook("http://172.18.0.5:9090")], False),  # made by hand: it may be this backend's
        (Settings(), LEFT | {"basic_auth_user": None}, [], False),
    ],
)
def test_half_connections(
    settings: Settings, row: dict[str, Any], webhooks: list[dict[str, Any]], *, is_ours: bool
) -> None:
    """Deleted without a question: so title, user and address must all say that it is ours, and of no use."""
    other = {"id": 4, "url": BACKEND, "title": "SAM"}

    assert half_connections([row, other], webhooks, settings) == ([row] if is_ours else [])


def test_an_address_without_a_dot_is_refused_before_anything_is_asked() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(never))

    with pytest.raises(SettingsError, match=r"'backend' has no dot; nothing was changed: .*backend\.internal"):
        connect_project(Settings.load(), 1, NO_DOT, client=client)
    assert "is no valid domain name" in str(webhook_refusal("http://my_backend.example.org:9090"))


def test_a_title_is_compared_as_label_studio_stores_it() -> None:
    """Without the blanks around it: otherwise every run would make another project."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.params["title"]) == ("GET", "Chest X-rays")
        return httpx.Response(200, json={"count": 1, "results": [{"id": 7, "title": "Chest X-rays"}], "next": None})

    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(answer))

    assert choose_project(client, None, " Chest X-rays ", "severity")[0] == 7


def test_a_backend_whose_adding_timed_out_is_completed_by_another_run() -> None:
    """Label Studio may have added it, and shows no predictions until then."""
    server = GuardedLabelStudio()

    def slow(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            raise httpx.ReadTimeout("timed out", request=request)
        return server(request)

    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(slow))

    with pytest.raises(Unreachable, match="run `connect` again"):
        connect_project(Settings.load(), 1, BACKEND, client=client)


def test_a_change_of_the_readers_per_image_that_was_interrupted_is_completed() -> None:
    """Label Studio goes over all images twice, which may take long."""
    row: dict[str, Any] = {"label_config": XML, "model_version": "", "maximum_annotations": 1}
    options = {"annotations_per_task": "2"}
    backend = {"id": 4, "url": BACKEND, "title": "Active learning", "state": "CO", "extra_params": options}
    hooks = [{"id": 5} | wanted_webhook(Settings(), BACKEND, None)]
    patches: list[tuple[dict[str, Any], float]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/model-versions/"):
            return httpx.Response(200, json={"static": []})
        if not request.url.path.startswith("/api/projects/"):
            return httpx.Response(200, json=hooks if "webhooks" in request.url.path else [backend])
        if request.method == "PATCH":
            body = json.loads(request.content)
            patches.append((body, request.extensions["timeout"]["read"]))
            if body.keys() == {"overlap_cohort_percentage"} and len(patches) == 2:
                raise httpx.ReadTimeout("timed out", request=request)
            row.update(body)
        return httpx.Response(200, json=row)

    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(answer), timeout_s=60)
    with pytest.raises(Unreachable):
        connect_project(Settings(), 1, BACKEND, client=client)
    assert (row["maximum_annotations"], row["overlap_cohort_percentage"]) == (2, 99)

    assert "set overlap_cohort_percentage: 99 -> 100" in connect_project(Settings(), 1, BACKEND, client=client)
    assert patches[1:] == [({"overlap_cohort_percentage": 100}, 1200)] * 2
    assert patches[0][1] == 1200
    assert connect_project(Settings(), 1, BACKEND, client=client)[1:] == [NOTHING_TO_CHANGE]


def test_says_which_releases_are_tested() -> None:
    assert version_note("1.23.2") == "tested, as are 1.19.0, 1.20.0, 1.21.0, 1.22.0, 1.23.0"
    for release in ("1.22.1", "1.24.0", "1.23.2.dev1", "2.0", "nightly"):
        assert version_note(release).startswith(f"NOT tested; tested are {', '.join(TESTED)}"), release
    assert version_note("1.18.0").endswith("1.23.2: if something fails, upgrade it to 1.23.2")
    assert "upgrade" not in version_note("1.22.1") + version_note("1.24.0")


@pytest.mark.parametrize(
    ("url", "hostname", "expected"),
    [
        ("http://label-studio:8080", "http://localhost:8080", "http://localhost:8080"),
        ("http://label-studio.internal:8080", "https://ls.example.org/", "https://ls.example.org"),
        ("https://ls.example.org", "http://localhost:8080", "https://ls.example.org"),
        ("https://ls.example.org/path", None, "https://ls.example.org/path"),
        ("http://10.0.0.7:8080", "https://ls.example.org", "https://ls.example.org"),
        ("http://label-studio:8080", "", "http://label-studio:8080"),
    ],
)
def test_where_a_browser_finds_label_studio(url: str, hostname: str | None, expected: str) -> None:
    assert browser_address(url, hostname) == expected
