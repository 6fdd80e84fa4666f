"""What a live round is put together from; the round itself is replaced."""

from typing import Any

import httpx
import pytest

from ml_backend import assembly
from ml_backend.errors import SettingsError, UnknownProject
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.records import Connection, ProjectKey
from ml_backend.settings import Settings
from ml_backend.storage import RoundStore

KEY = ProjectKey(id=2, created=1795384774)
CHOICES = '<View><Image name="i" value="$image"/><Choices name="c" toName="i">{}</Choices></View>'
TOLD = CHOICES.format('<Choice value="old"/><Choice value="older"/>')
NOW = CHOICES.format('<Choice value="normal"/><Choice value="severe"/>')
PROJECT = {"id": 2, "created_at": "2026-11-22T21:59:34.027258Z", "label_config": NOW}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Begins a round of project 2, which ``/setup`` has connected, and hands on what the round is asked."""
    calls: dict[str, Any] = {"project": PROJECT}

    def answer(request: httpx.Request) -> httpx.Response:
        calls["url"] = str(request.url)
        return httpx.Response(200, json=calls["project"])

    class Client(LabelStudioClient):
        def __init__(self, url: str, api_key: str, **options: Any) -> None:
            calls["options"] = options
            super().__init__(url, api_key, transport=httpx.MockTransport(answer), **options)

    monkeypatch.setattr(assembly, "LabelStudioClient", Client)
    monkeypatch.setattr(assembly, "run_round", lambda request, _parts: request)
    RoundStore(tmp_path).connect(Connection(project=KEY, hostname="http://told", label_config=TOLD))

    def begin(project: dict[str, Any] = PROJECT, key: ProjectKey = KEY, **settings: Any) -> Any:
        calls["project"] = project
        defaults = {"label_studio_url": "http://ls", "label_studio_api_key": "k", "device": "cpu"}
        return assembly.run_live_round(Settings(data_dir=tmp_path, **(defaults | settings)), key, "labels"), calls

    return begin


def test_the_label_config_is_the_one_that_stands_now(run):
    """The event of its change is lost where the web process was down."""
    request, _ = run()

    assert request.classes == ("normal", "severe")


def test_outlives_a_restart_of_label_studio(run):
    _, calls = run()

    assert calls["options"]["patience_s"] >= 60


def test_a_project_that_was_made_anew_under_the_same_id_is_left_alone(run):
    with pytest.raises(UnknownProject, match=r"project 2\.1795384774 is gone: .* to 2\.1798070400"):
        run(PROJECT | {"created_at": "2026-12-24T00:00:00Z"})


def test_a_project_that_was_never_connected(run):
    with pytest.raises(UnknownProject, match="ml-backend connect --project 3"):
        run(key=ProjectKey(id=3, created=1))


class TestWhereLabelStudioIs:
    def test_where_the_settings_say(self, run):
        assert run()[1]["url"].startswith("http://ls/")

    def test_else_where_setup_said_if_only_label_studio_can_have_said_it(self, run):
        _, calls = run(label_studio_url=None, basic_auth_user="al", basic_auth_pass="secret")

        assert calls["url"].startswith("http://told/")

    def test_the_key_goes_to_no_host_that_anybody_may_have_named(self, run):
        with pytest.raises(SettingsError, match="Set AL_LABEL_STUDIO_URL"):
            run(label_studio_url=None)
