"""``replay`` and ``proof`` where there is nothing to show: one line with the way out, and status 1."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_backend.schemas import Connection
from ml_backend.storage import RoundStore
from tests.command_line import run_cli
from tests.fakes import make_report
from tests.integration.processes import PROJECT

NOBODY = "http://127.0.0.1:9"  # the port of "discard", where nobody listens
CONFIG = (
    '<View><Image name="i" value="$image"/><Choices name="c" toName="i">'
    '<Choice value="normal"/><Choice value="severe"/></Choices></View>'
)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(environ: dict[str, str]) -> RoundStore:
    return RoundStore(Path(environ["AL_DATA_DIR"]))


@pytest.fixture
def connected(store: RoundStore) -> RoundStore:
    """Project 2, of a Label Studio that is away."""
    store.connect(Connection(project=PROJECT, hostname=NOBODY, label_config=CONFIG))
    return store


@pytest.fixture
def run(environ: dict[str, str]) -> Run:
    def run(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return run_cli(words, environ | extra)

    return run


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on standard error, where there is nothing else but progress."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["replay", "proof"])
class TestUnknownProject:
    def test_in_a_folder_that_is_not_the_backends(self, run, store, command):
        """As in a terminal without the backend's environment."""
        said = refusal(run(command, "--project", "2"))

        assert said.startswith("ml-backend: project 2 is not connected to this backend: run `ml-backend connect")
        assert said.endswith(f"the data folder {store.root} (AL_DATA_DIR) knows no project: is it the backend's?")

    def test_beside_others(self, run, connected, command):
        said = refusal(run(command, "--project", "3"))

        assert said.endswith(f"the data folder {connected.root} (AL_DATA_DIR) knows 2")

    def test_whose_connection_is_damaged(self, run, connected, command):
        path = connected.project(PROJECT).folder / "connection.json"
        path.write_text("{")

        assert f"{path} is damaged" in refusal(run(command, "--project", "2"))


class TestReplay:
    def test_without_rounds(self, run, connected):
        said = refusal(run("replay", "--project", "2"))

        assert said.startswith("ml-backend: project 2 has no round to replay yet")
        assert "`ml-backend doctor`" in said

    def test_a_round_that_is_not_there(self, run, connected):
        connected.project(PROJECT).save(make_report(), None, None)

        said = refusal(run("replay", "--project", "2", "--round", "r000009"))

        assert "no round 'r000009'" in said
        assert said.endswith("known are r000001")

    def test_whose_files_are_gone_but_for_the_report(self, run, connected):
        """Nothing speaks against it, so that the status is 0; the line says what is missing."""
        report = make_report()
        ranking = report.ranking.model_copy(update={"strategy": "entropy"})
        connected.project(PROJECT).save(report.model_copy(update={"ranking": ranking, "base": "r000000"}), None, None)

        done = run("replay", "--project", "2")

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "r000001 entropy: cannot be replayed: the predictions of its network are not stored",
            "    note: it has no manifest, which would show whether a file was changed",
        ]


class TestProof:
    def test_without_a_key(self, run, connected):
        said = refusal(run("proof", "--project", "2", AL_LABEL_STUDIO_URL=NOBODY))

        assert f"AL_LABEL_STUDIO_API_KEY is not set: make a personal access token at {NOBODY}/user/account" in said

    def test_where_label_studio_is_away(self, run, connected):
        """A round waits a minute and a half for it, and somebody at a terminal does not."""
        begin = time.monotonic()

        said = refusal(run("proof", "--project", "2", AL_LABEL_STUDIO_URL=NOBODY, AL_LABEL_STUDIO_API_KEY="0" * 40))

        assert time.monotonic() - begin < 60
        assert f"no answer from Label Studio to GET {NOBODY}/api/projects/2/" in said
        assert "start Label Studio, or set AL_LABEL_STUDIO_URL" in said
