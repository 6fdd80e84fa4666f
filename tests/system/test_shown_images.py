"""What Chromium shows is read, or named with a way out: every kind of file, and every spelling of a data URI."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from selenium import webdriver

from ml_backend.images.decode import UndecodableImage, decode
from tests.unit.images.kinds import KINDS, READ
from tests.unit.label_studio.data_uris import DRAWINGS, SPELLINGS

pytestmark = pytest.mark.system

FILES = READ | {kind: content for kind, (content, _, _) in KINDS.items()}
LOAD = """
const [addresses, done] = arguments;
const shown = address => new Promise(resolve => {
  const image = new Image();
  image.onload = () => resolve(image.naturalWidth > 0);
  image.onerror = () => resolve(false);
  image.src = address;
});
Promise.all(addresses.map(shown)).then(done);
"""


class Files(BaseHTTPRequestHandler):
    """Serves the table's files by their place in it, and a blank page."""

    def do_GET(self) -> None:
        place = self.path.removeprefix("/")
        kind = list(FILES)[int(place)] if place.isdecimal() else ""
        content = FILES.get(kind, b"<!doctype html>")
        self.send_response(200)
        # Label Studio goes by the file's name: a browser looks at the bytes, but for drawings.
        self.send_header("Content-Type", "image/svg+xml" if "SVG" in kind else "image/png" if kind else "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page(browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """A page beside the files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    Thread(target=server.serve_forever, daemon=True).start()
    browser.set_script_timeout(120)
    browser.get(f"http://127.0.0.1:{server.server_port}/")
    yield browser
    server.shutdown()
    server.server_close()


def test_files(page: webdriver.Chrome) -> None:
    shown = dict(zip(FILES, page.execute_async_script(LOAD, [f"/{n}" for n in range(len(FILES))]), strict=True))

    assert [kind for kind in READ if not shown[kind]] == []
    for kind in (kind for kind in KINDS if shown[kind]):
        with pytest.raises(UndecodableImage, match=r": (convert|export) it .*to PNG or JPEG|as PNG or JPEG"):
            decode(FILES[kind], 32, kind)
    # Those that the message denies to browsers are indeed not shown.
    assert [kind for kind, (_, _, words) in KINDS.items() if shown[kind] and "browsers cannot show" in words] == []


def test_data_uris(page: webdriver.Chrome) -> None:
    uris = {kind: uri for kind, (uri, _) in SPELLINGS.items()} | {f"drawing, {k}": uri for k, uri in DRAWINGS.items()}

    shown = dict(zip(uris, page.execute_async_script(LOAD, list(uris.values())), strict=True))

    assert shown == {kind: wanted for kind, (_, wanted) in SPELLINGS.items()} | {
        f"drawing, {k}": True for k in DRAWINGS
    }
