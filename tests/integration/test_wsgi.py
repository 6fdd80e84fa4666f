"""``label-studio-ml start ml_backend``, as label-studio-ml's own documentation has it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ml_backend import _wsgi
from tests.integration.processes import PAYLOADS, free_port, wait_until
from tests.manual import commands_run_by

REPOSITORY = Path(_wsgi.__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture
def start_group(environ, tmp_path):
    """Start a command in a group of its own, since label-studio-ml starts a shell that starts Python."""
    children = []

    def start(*command, cwd):
        path = f"{BIN}{os.pathsep}{environ['PATH']}"
        with (tmp_path / "wsgi.log").open("wb") as log:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=environ | {"PATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        children.append(child)
        return child

    yield start
    for child in children:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(timeout=30)


def answer(url, auth):
    try:
        return httpx.get(f"{url}/versions", timeout=5, auth=auth)
    except httpx.TransportError:
        return None


class TestStart:
    def test_serves_this_backend(self, start_group, queue, tmp_path):
        port = free_port()
        url, auth = f"http://127.0.0.1:{port}", ("ls", "secret")
        options = ["-p", str(port), "--host", "127.0.0.1", "--log-level", "INFO", "--check"]
        options += ["--model-dir", str(tmp_path / "models"), "--basic-auth-user", "ls", "--basic-auth-pass", "secret"]
        shown, *others = commands_run_by(__file__)
        words = [*shown.words, *options]
        assert shown.text == "label-studio-ml start ml_backend"
        assert all(set(other.words) <= set(words) for other in others)

        start_group(*words, cwd=REPOSITORY)

        assert wait_until(lambda: answer(url, auth)).json() == {"versions": []}
        assert httpx.get(f"{url}/versions").status_code == 401
        setup = (PAYLOADS / "setup.json").read_bytes()
        assert httpx.post(f"{url}/setup", content=setup, auth=auth).json() == {"model_version": "active-learning"}
        assert (tmp_path / "models/projects/2.1795384774/connection.json").exists()

    def test_its_folder_does_not_lead_sys_path(self, environ, tmp_path):
        """Python puts a script's folder there, where our `settings` or `images` would hide another's."""
        code = (
            "import os, runpy, sys\n"
            "script = sys.argv[1]; folder = sys.path[0] = os.path.dirname(script); sys.argv = [script, '--help']\n"
            "try: runpy.run_path(script, run_name='__main__')\n"
            "except SystemExit: print('on path:', folder in sys.path)"
        )

        found = subprocess.run(
            [sys.executable, "-c", code, _wsgi.__file__],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )

        assert "--basic-auth-pass" in found.stdout
        assert found.stdout.endswith("on path: False\n")


class TestMain:
    def test_check_says_that_redis_is_down(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setenv("AL_REDIS_URL", "redis://127.0.0.1:1/0")

        assert _wsgi.main(["--check", "--model-dir", str(tmp_path)]) == 1
        assert "Redis at 127.0.0.1:1/0 does not answer" in capsys.readouterr().err

    def test_one_half_of_the_credentials(self, monkeypatch, capsys):
        monkeypatch.delenv("AL_BASIC_AUTH_USER", raising=False)

        assert _wsgi.main(["--basic-auth-pass", "secret"]) == 1
        assert "go together" in capsys.readouterr().err

    def test_app_for_a_wsgi_server(self, monkeypatch, tmp_path):
        monkeypatch.setenv("AL_DATA_DIR", str(tmp_path))

        health = _wsgi.app.test_client().get("/health").json
        assert health is not None
        assert health["status"] == "UP"
        with pytest.raises(AttributeError, match="no_such"):
            _ = _wsgi.no_such
