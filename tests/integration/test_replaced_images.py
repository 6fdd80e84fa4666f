"""A bad image that is replaced at its address, on a real web server: the next round reads it, at the cost of a HEAD."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.config import ImageHosts
from ml_backend.errors import ImageError
from ml_backend.images.cache import ImageCache
from ml_backend.images.quarantine import QuarantinedSource
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.schemas import ImageRef
from ml_backend.storage.project_state import Quarantine

HALF_A_FILM = b"\x89PNG\r\n\x1a\n half a film"
OTHER_HALF = b"\x89PNG\r\n\x1a\n another one, no better"


def film(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 40), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Archive(ThreadingHTTPServer):
    """Serves films with an ETag of their content, also at ``/moved/...`` by a redirect, and notes what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.films: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.knows_head = True
        self.slow_s = 0.0
        self.elsewhere = ""
        self.over = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Archive

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        self._answer(whole=True)

    def do_HEAD(self) -> None:
        self.server.asked.append(f"HEAD {self.path}")
        self.server.over.wait(self.server.slow_s)
        if self.server.knows_head:
            self._answer(whole=False)
        else:
            self.send_error(405)

    def _answer(self, *, whole: bool) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere or self.path.removeprefix("/moved"))
            self.end_headers()
            return
        content = self.server.films[self.path]
        self.send_response(200)
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if whole:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


@contextmanager
def serving() -> Iterator[Archive]:
    with Archive() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def archive() -> Iterator[Archive]:
    with serving() as server:
        yield server


class Rounds:
    """Rounds over images of an archive, which read each of them once."""

    def __init__(self, archive: Archive, folder: Path, hosts: str) -> None:
        self.now = datetime(2026, 11, 23, tzinfo=UTC)
        self._archive = archive
        self._folder = folder
        self._hosts = ImageHosts.parse(hosts)
        self.quarantine = Quarantine(folder / "project", lambda: self.now)

    def read(self, *paths: str) -> dict[str, int]:
        """A round; path -> grey level of what could be read."""
        found = {}
        self._archive.asked.clear()
        client = LabelStudioClient("http://label-studio.example", "secret", retries=1)
        images = LabelStudioImages(client, hosts=self._hosts)
        source = QuarantinedSource(images, self.quarantine, version=images.version)
        cache = ImageCache(source, self._folder / "cache", 32)
        with self.quarantine.settled():
            for path in paths:
                try:
                    pixels = cache.read(ImageRef(id=path, uri=f"http://{self._archive.host}{path}")).pixels
                except ImageError:
                    continue
                found[path] = int(pixels[0, 0])
        images.close()
        client.close()
        return found


@pytest.fixture
def rounds(archive: Archive, tmp_path: Path) -> Rounds:
    return Rounds(archive, tmp_path, archive.host)


@pytest.mark.parametrize("path", ["/a.png", "/moved/a.png"])
def test_is_read_in_the_next_round(archive: Archive, rounds: Rounds, path: str) -> None:
    archive.films["/a.png"] = HALF_A_FILM
    assert rounds.read(path) == {}
    archive.films["/a.png"] = film(77)

    assert rounds.read(path) == {path: 77}
    assert rounds.quarantine.listed() == ()


def test_is_asked_about_and_not_fetched_while_it_is_the_same(archive: Archive, rounds: Rounds) -> None:
    archive.films["/a.png"] = HALF_A_FILM
    rounds.read("/a.png")

    assert rounds.read("/a.png") == {}

    assert archive.asked == ["HEAD /a.png"]


def test_one_that_is_no_better_is_left_in_peace_again(archive: Archive, rounds: Rounds) -> None:
    archive.films["/a.png"] = HALF_A_FILM
    rounds.read("/a.png")
    archive.films["/a.png"] = OTHER_HALF
    rounds.read("/a.png")

    rounds.read("/a.png")

    assert archive.asked == ["HEAD /a.png"]
    assert [entry.times for entry in rounds.quarantine.listed()] == [1]


def test_a_host_that_says_nothing_is_asked_for_the_file_after_the_pause(archive: Archive, rounds: Rounds) -> None:
    archive.knows_head = False
    archive.films["/a.png"] = HALF_A_FILM
    rounds.read("/a.png")
    archive.films["/a.png"] = film(77)

    assert rounds.read("/a.png") == {}
    assert archive.asked == []
    rounds.now += timedelta(seconds=60)
    assert rounds.read("/a.png") == {"/a.png": 77}


def test_a_host_that_is_slow_to_say_costs_a_round_one_wait(
    archive: Archive, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"/{number}.png" for number in range(5)]
    archive.films.update(dict.fromkeys(paths, HALF_A_FILM))
    rounds.read(*paths)
    archive.slow_s = 60.0
    monkeypatch.setattr("ml_backend.label_studio.images.VERSION_S", 0.2)

    assert rounds.read(*paths) == {}

    assert archive.asked == ["HEAD /0.png"]
    assert len(rounds.quarantine.listed()) == 5


def test_a_redirect_is_judged_like_that_of_a_file(archive: Archive, tmp_path: Path) -> None:
    """The other archive stands for what is in the own network and named by nobody."""
    rounds = Rounds(archive, tmp_path, archive.host)
    archive.films["/a.png"] = HALF_A_FILM
    rounds.read("/moved/a.png")
    with serving() as hidden:
        hidden.films["/a.png"] = film(77)
        archive.elsewhere = f"http://{hidden.host}/a.png"

        assert rounds.read("/moved/a.png") == {}

        assert archive.asked == ["HEAD /moved/a.png"]
        assert hidden.asked == []
