"""Who may call, and errors in words."""

import re
from base64 import b64encode

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from ml_backend.config import Settings
from ml_backend.errors import QueueError, StorageError
from ml_backend.server.app import create_app
from ml_backend.server.openapi import OPEN
from tests.unit.server.memory import PROJECT, payload


def basic(user, password):
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


STRANGERS = [
    {},
    basic("ls", "wrong"),
    basic("other", "gehëim"),
    basic("", ""),
    basic("ls", ""),
    {"Authorization": "Bearer gehëim".encode()},
    {"Authorization": "Basic gehëim".encode()},
    {"Authorization": "Basic " + b64encode(b"ls:\xff").decode()},
]


FILLED_IN = {"key": str(PROJECT), "round_id": "r000001", "image_id": "2"}


def every_route(app):
    """Method, path and endpoint of everything that the app answers."""
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(\w+)>", lambda found: FILLED_IN[found[1]], rule.rule)
        for method in rule.methods:
            yield method, path, rule.endpoint


class TestAuthentication:
    @pytest.fixture
    def guarded(self, store, queue):
        settings = Settings(data_dir=store.root, basic_auth_user="ls", basic_auth_pass=SecretStr("gehëim"))
        return create_app(settings, queue).test_client()

    @pytest.mark.parametrize("headers", STRANGERS)
    def test_refuses_strangers_on_every_route(self, app, guarded, headers):
        """Every route and method of the app, so that none can be forgotten; and what is no route at all."""
        for method, path, endpoint in [*every_route(app), ("GET", "/no-such-page", ""), ("POST", "/static/x", "")]:
            response = guarded.open(path, method=method, headers=headers)

            if endpoint == "routes.health" and method != "OPTIONS":
                assert response.status_code == 200
            elif endpoint != "routes.health":
                assert response.status_code == 401, (method, path)
                assert response.headers["WWW-Authenticate"].startswith("Basic")
                assert method == "HEAD" or "ml-backend connect" in response.json["error"]
        page = guarded.get("/", headers={"Accept": "text/html"})
        assert (page.status_code, "WWW-Authenticate" in page.headers) == (401, True)
        assert "<h1>Sign in to see this page</h1>" in page.text
        assert "AL_BASIC_AUTH" not in page.text

    def test_lets_the_right_one_in_on_every_route(self, app, guarded):
        asked = 0
        for method, path, _ in every_route(app):
            response = guarded.open(path, method=method, headers=basic("ls", "gehëim"))

            # An empty body is refused where one is wanted, but not its sender; here no project is connected.
            expected = 404 if "/projects/" in path else 400 if method == "POST" else 200
            assert response.status_code == (200 if method == "OPTIONS" else expected), (method, path)
            asked += 1
        assert asked >= 20

    @pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
    def test_takes_both_encodings(self, store, queue, encoding):
        """Browsers and our webhook send UTF-8, Label Studio's own requests (``requests``) Latin-1."""
        settings = Settings(data_dir=store.root, basic_auth_user="rädio", basic_auth_pass=SecretStr("gehëim:ß %"))
        client = create_app(settings, queue).test_client()
        pair = b64encode("rädio:gehëim:ß %".encode(encoding)).decode()

        assert client.get("/versions", headers={"Authorization": f"Basic {pair}"}).status_code == 200
        assert 'charset="UTF-8"' in client.get("/versions").headers["WWW-Authenticate"]
        for wrong in (f"Basic {pair[:-4]}", f"Bearer {pair}", "Basic", "Basic é", "Basic ==", "basic"):
            assert client.get("/versions", headers={"Authorization": wrong}).status_code == 401

    def test_no_route_is_open_but_health(self, app):
        """Whoever opens another one must say so here."""
        assert OPEN == "routes.health"
        assert {endpoint for _, _, endpoint in every_route(app)} == {
            "routes.icon",
            "pages.agreement",
            "pages.agreement_table",
            "pages.change_options",
            "pages.compare",
            "pages.image_map",
            "pages.images",
            "pages.one_round",
            "pages.options",
            "pages.pause",
            "pages.picture",
            "pages.project",
            "pages.put_next",
            "pages.ranking_table",
            "pages.readers",
            "pages.resume",
            "pages.rounds_table",
            "pages.similar",
            "pages.state",
            "pages.times",
            "pages.topup",
            "pages.train",
            "routes.all_versions",
            "routes.health",
            "routes.index",
            "routes.metrics",
            "routes.openapi",
            "routes.predictions",
            "routes.setup",
            "routes.versions",
            "routes.webhook",
        }

    def test_health_tells_what_is_degraded(self, guarded, queue, monkeypatch):
        connected = guarded.post("/setup", json=payload("setup"), headers=basic("ls", "gehëim"))
        assert connected.status_code == 200
        monkeypatch.setattr(queue, "workers", lambda: 0)

        assert guarded.get("/health").json == {"status": "UP", "degraded": ["no worker runs"]}

    def test_health_fails_where_nothing_can_be_stored(self, guarded, store):
        """The folder is a file: that stops root too. The answer is for anybody, and names no folder."""
        store.root.rename(store.root.with_name("moved"))
        store.root.write_text("")
        with capture_logs() as logs:
            refused = guarded.get("/health")
        store.root.unlink()
        gone = guarded.get("/health")
        store.root.with_name("moved").rename(store.root)

        assert refused.status_code == gone.status_code == 503
        assert refused.json == {"error": "the data folder cannot be written; the backend's log says why"}
        assert f"the data folder {store.root} cannot be written by user" in logs[0]["error"]
        assert guarded.get("/health").status_code == 200

    def test_health_is_open(self, guarded):
        """A container's health check has no password."""
        assert guarded.get("/health").json == {"status": "UP", "degraded": []}

    def test_off_by_default_with_a_warning(self, store, queue):
        with capture_logs() as logs:
            client = create_app(Settings(data_dir=store.root), queue).test_client()

        assert client.get("/versions").status_code == 200
        [warning] = logs
        assert "no credentials are set" in warning["event"]
        assert "AL_BASIC_AUTH_PASS" in warning["way_out"]

    def test_a_password_is_not_logged(self, guarded):
        with capture_logs() as logs:
            guarded.get("/versions?key=gehëim", headers=basic("ls", "other-secret"))

        assert logs
        assert "other-secret" not in str(logs)
        assert "gehëim" not in str(logs)


class TestPagesOfOthers:
    def test_a_page_in_a_browser_cannot_post(self, client):
        """The browser would add the password that it remembers; Label Studio sends no Origin."""
        response = client.post("/webhook", json=payload("START_TRAINING"), headers={"Origin": "https://evil.example"})

        assert response.status_code == 403
        assert client.get("/", headers={"Origin": "https://evil.example"}).status_code == 200

    def test_the_page_is_not_framed_and_runs_our_one_file_alone(self, client):
        policy = client.get("/", headers={"Accept": "text/html"}).headers["Content-Security-Policy"]

        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self';" in policy
        assert client.get("/times.js").content_type == "text/javascript; charset=utf-8"


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status"), [(QueueError("Redis is away"), 503), (StorageError("disk is full"), 500)]
    )
    def test_ours_are_told_as_json_and_in_the_status_line(self, connected, queue, monkeypatch, error, status):
        """Label Studio shows its owner the status line, and nothing of the body."""

        def refuse(*_args, **_options):
            raise error

        monkeypatch.setattr(queue, "count_changes", refuse)

        response = connected.post("/webhook", json=payload("ANNOTATION_CREATED"))

        assert (response.status_code, response.json) == (status, {"error": str(error)})
        assert response.status == f"{status} {error}"

    def test_unexpected_ones_are_logged_and_not_told(self, connected, queue, monkeypatch):
        def fail(*_args, **_options):
            raise RuntimeError("secret detail")

        monkeypatch.setattr(queue, "count_changes", fail)

        with capture_logs() as logs:
            response = connected.post("/webhook", json=payload("ANNOTATION_CREATED"))

        assert response.status_code == 500
        assert b"secret" not in response.data
        assert b"Traceback" not in response.data
        assert any(str(entry.get("exc_info")) == "secret detail" for entry in logs)

    def test_no_such_page_and_wrong_method(self, client):
        assert client.get("/no-such-page").status_code == 404
        wrong = client.get("/webhook")
        assert (wrong.status_code, wrong.headers["Allow"]) == (405, "OPTIONS, POST")
        assert "error" in wrong.json

    @pytest.mark.parametrize(
        ("path", "code", "heading"),
        [
            ("/no/such/page", 404, "There is nothing at this address"),
            (f"/projects/{PROJECT}/rounds/r9", 404, "There is nothing at this address"),
            (f"/projects/{PROJECT}/train", 405, "This address is not a page"),
            (f"/projects/{PROJECT}", 500, "That did not work"),
        ],
    )
    def test_are_pages_for_a_browser_and_lead_on(self, connected, monkeypatch, path, code, heading):
        def fail(*_):
            raise RuntimeError("secret detail")

        monkeypatch.setattr("ml_backend.server.views.overview", fail)

        page = connected.get(path, headers={"Accept": "text/html"})

        assert page.status_code == connected.get(path).status_code == code
        assert "error" in connected.get(path).json
        assert f"<h1>{heading}</h1>" in page.text
        assert "secret" not in page.text
        # Relative, as everywhere: right behind a proxy's path too.
        assert f'href="{"../" * (path.count("/") - 1) or "./"}">To all projects' in page.text
        assert ("To the project's page" in page.text) == path.endswith("r9")

    def test_the_status_line_is_one_line_of_latin_1_without_markup(self, client):
        """A header cannot be smuggled in, and Label Studio cannot be made to show a script."""
        schema = "<View>\r\nSet-Cookie: x=1\r\n\r\n<script>→</script></View>"
        body = payload("setup") | {"schema": schema, "extra_params": {"strategy": "a\r\nb→<script>"}}

        response = client.post("/setup", json=body)

        assert response.status_code == 400
        assert "Set-Cookie" not in response.headers
        assert not {"\r", "\n", "<", ">", "→"} & set(response.status)
