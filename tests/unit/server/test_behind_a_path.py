"""The pages behind a proxy that serves the backend under a path of its own: every link, picture, table and button."""

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from pydantic import SecretStr
from werkzeug.serving import make_server

from ml_backend.config import Settings
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore
from tests.system.owner_data import KEY, prepare
from tests.unit.server.memory import MemoryQueue

AUTH = ("al", "päss:word")
STUDIO = "http://label-studio.example"
HTML = {"Accept": "text/html"}


class Page(HTMLParser):
    """What a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.forms: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.links += [found[name] for name in ("href", "src") if name in found]
        if found.get("http-equiv") == "refresh":
            self.links.append(found["content"].partition("url=")[2])
        if tag == "form" and found["method"] == "post":
            self.forms.append((found["action"], {}))
        elif tag == "input":
            self.forms[-1][1][found["name"]] = found["value"]


@contextmanager
def serving(server: http.server.HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def proxy(backend: str, outside: str, inside: str, **headers: str) -> Iterator[str]:
    """Puts one path in place of another, as nginx does; everything beside the path is not found."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self.path.startswith(outside):
                self._answer(404, {}, b"beside the path")
                return
            connection = http.client.HTTPConnection(urlsplit(backend).netloc, timeout=30)
            # Another Host than the browser asked, as nginx sends it by default.
            given = {name: value for name, value in self.headers.items() if name not in {"Host", "Connection"}}
            connection.request(self.command, inside + self.path.removeprefix(outside), body, given | headers)
            answer = connection.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
            connection.close()

        do_GET = do_POST = pass_on  # noqa: N815 - names of http.server

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name not in {"Content-Length", "Transfer-Encoding", "Connection", "Date", "Server"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RoundStore:
    root: Path = tmp_path_factory.mktemp("behind-a-path")
    return prepare(root, rounds=3)


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def backend(store: RoundStore, queue: MemoryQueue, stack: ExitStack, script_name: str = "") -> str:
    settings = Settings(data_dir=store.root, basic_auth_user=AUTH[0], basic_auth_pass=SecretStr(AUTH[1]))
    app = create_app(settings, queue)

    def below(environ, start_response):
        """As gunicorn does where SCRIPT_NAME is set."""
        environ["SCRIPT_NAME"] = script_name
        environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix(script_name)
        return app(environ, start_response)

    return stack.enter_context(serving(make_server("127.0.0.1", 0, below, threaded=True)))


def crawl(client: httpx.Client, start: str) -> tuple[dict[str, str], list[tuple[str, dict[str, str]]]]:
    """Everything that can be reached, and its content type; and the forms on the way."""
    found: dict[str, str] = {}
    forms: list[tuple[str, dict[str, str]]] = []
    left = [start]
    while left:
        url = left.pop()
        # One page of each tab of the images is enough.
        if url in found or url.startswith(STUDIO) or ("/images?" in url and url.count("=") > 1):
            continue
        answer = client.get(url, headers=HTML)
        assert answer.status_code == 200, url
        found[url] = answer.headers["content-type"].partition(";")[0]
        if found[url] == "text/html":
            page = Page(answer.text)
            left += [urljoin(url, link) for link in page.links]
            forms += [(urljoin(url, action), given) for action, given in page.forms]
            assert f"{STUDIO}/projects/{KEY.id}" in answer.text  # Label Studio stays where it is
    return found, forms


@pytest.mark.parametrize(
    "way",
    [
        ("/al/", "/", "", "/al/"),
        ("/tools/al/", "/", "", "/tools/al/"),
        ("/al/", "/al/", "/al", "/al/"),  # a proxy that strips nothing
    ],
)
def test_everything_a_page_refers_to(store, queue, stack, way):
    outside, inside, script_name, start = way
    url = stack.enter_context(proxy(backend(store, queue, stack, script_name), outside, inside))
    with httpx.Client(auth=AUTH) as client:
        found, forms = crawl(client, f"{url}{start}")

        kinds = list(found.values())
        assert all(address.startswith(f"{url}{start}") for address in found)
        assert {kind: kinds.count(kind) > 0 for kind in ("text/html", "image/jpeg", "text/csv")} == {
            "text/html": True, "image/jpeg": True, "text/csv": True
        }  # fmt: skip
        assert len([address for address in found if "/rounds/r" in address and "." not in address[-5:]]) == 3
        browser = {"Origin": "https://host.example", "Sec-Fetch-Site": "same-origin"} | HTML
        assert {action.rpartition("/")[2] for action, _ in forms} > {"train", "topup"}
        assert f"{url}{start}projects/{KEY}/options" in {action for action, _ in forms}
        for action, given in forms:
            if action.endswith("/options"):  # asks Label Studio
                continue
            done = client.post(action, data=given, headers=browser, follow_redirects=True)
            assert (done.status_code, done.url.path) == (200, f"{start}projects/{KEY}")
            assert "done" in done.url.query.decode()
            assert client.post(action, data=given, headers=browser | {"Sec-Fetch-Site": "same-site"}).status_code == 403
        refused = client.get(f"{url}{start}projects/9.9", headers=HTML)
        assert urljoin(str(refused.url), Page(refused.text).links[-1]) == f"{url}{start}"
        [server] = client.get(f"{url}{start}openapi.json").json()["servers"]
        assert urljoin(f"{url}{start}openapi.json", server["url"]) == f"{url}{start}"


def test_the_list_of_projects_without_the_slash_at_its_end(store, queue, stack):
    """Traefik shows /al itself; what it says of the path is taken, and nothing that leads to another host."""
    server = backend(store, queue, stack)
    url = stack.enter_context(proxy(server, "/al", "", **{"X-Forwarded-Prefix": "/al"}))
    with httpx.Client(auth=AUTH) as client:
        [link] = {link for link in Page(client.get(f"{url}/al", headers=HTML).text).links if "projects/7.1" in link}
        assert client.get(urljoin(f"{url}/al", link), headers=HTML).status_code == 200
        for hostile in ("//evil.example", "https://evil.example", "/\\evil.example", "/al//evil", 'x"><script>', "/"):
            page = client.get(f"{server}/", headers=HTML | {"X-Forwarded-Prefix": hostile}).text
            assert f"./projects/{KEY}" in Page(page).links
            assert "evil" not in page


def test_pages_with_a_slash_at_their_end(store, queue, stack):
    url = stack.enter_context(proxy(backend(store, queue, stack), "/al/", "/"))
    with httpx.Client(auth=AUTH) as client:
        for page in (f"projects/{KEY}", f"projects/{KEY}/rounds/{store.project(KEY).round_ids()[-1]}"):
            links = [
                {urljoin(there, link) for link in Page(client.get(there, headers=HTML).text).links}
                for there in (f"{url}/al/{page}", f"{url}/al/{page}/")
            ]
            assert {link.partition("?")[0].rstrip("/") for link in links[0]} == {
                link.partition("?")[0].rstrip("/") for link in links[1]
            }


def test_a_proxy_that_puts_a_slash_before_another(client):
    """As ``location /al { proxy_pass http://backend/; }`` does."""
    assert client.get("/", environ_overrides={"PATH_INFO": "//versions"}).status_code == 200
    assert client.post("/", environ_overrides={"PATH_INFO": "//webhook"}, json={}).status_code == 400
