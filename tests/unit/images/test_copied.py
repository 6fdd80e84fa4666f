"""Copies of files from a bucket or a web server."""

import http.server
import threading
from pathlib import Path

import pytest

from ml_backend.errors import SettingsError
from ml_backend.images.dataset import copy_files

pytest.importorskip("fsspec")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for bucket in "ab":
        (tmp_path / bucket / "in").mkdir(parents=True)
        (tmp_path / bucket / "in" / "x#1.png").write_text(bucket)
    return tmp_path


def test_a_folder_holds_the_copies_of_one_address(folders):
    names = ["in/x#1.png", "./in/x#1.png", "in/gone.png", "../a/in/x#1.png"]
    for _ in range(2):
        copy_files(f"file://{folders}/a", names, folders / "out")
    assert sorted(path.name for path in (folders / "out").rglob("*")) == [".source", "in", "x#1.png"]

    with pytest.raises(SettingsError, match=r"has copies from file://.*/a, not from file://.*/b: give another folder"):
        copy_files(f"file://{folders}/b", names, folders / "out")
    assert (folders / "out" / "in" / "x#1.png").read_text() == "a"


def test_over_http_names_are_quoted_and_signatures_kept_and_not_told(tmp_path):
    pytest.importorskip("aiohttp")
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(403 if "bad" in self.path else 200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://me:geheim@127.0.0.1:{server.server_port}/films?sig=abc"
        copy_files(address, ["x#1.png"], tmp_path / "out")
        with pytest.raises(SettingsError, match=r"films\?\.\.\. cannot be copied: .*: 403; give keys") as refused:
            copy_files(address, ["bad.png"], tmp_path / "out")
        server.shutdown()

    assert (tmp_path / "out" / "x#1.png").read_text() == "x"
    assert asked[0] == "/films/x%231.png?sig=abc"
    assert not {"geheim", "abc"} & set(str(refused.value).replace("=", " ").replace("@", " ").replace(":", " ").split())
    assert (tmp_path / "out" / ".source").read_text() == f"http://127.0.0.1:{server.server_port}/films?..."
