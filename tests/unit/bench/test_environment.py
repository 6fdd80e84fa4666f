"""The peers' environment: found again, built anew when the lock changed, and errors that say a way out."""

import re
import sys
from pathlib import Path

import pytest

from ml_backend.bench import environment
from ml_backend.bench.environment import peers_python
from ml_backend.bench.process import BenchError

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "ml_backend" / "bench" / "peers.lock"


def pins(path: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+==\S+)", path.read_text(), re.MULTILINE))


class Commands:
    """Stands in for the installers: remembers what was to be run, and makes the interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: list[list[str]] = []

    def __call__(self, command: list[str]) -> None:
        self.run.append(command)
        python = self.folder / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()


class TestBuild:
    @pytest.mark.parametrize("uv", ["/bin/uv", None])
    def test_is_built_once(self, tmp_path, monkeypatch, uv):
        commands = Commands(tmp_path / "peers")
        monkeypatch.setattr(environment, "_run", commands)
        monkeypatch.setattr(environment, "_uv", lambda: uv)

        assert (
            peers_python(tmp_path / "peers")
            == peers_python(tmp_path / "peers")
            == tmp_path / "peers" / "bin" / "python"
        )
        assert commands.run[0][0] == (uv or sys.executable)
        assert len(commands.run) == 2
        assert "--require-hashes" in commands.run[1]

    def test_is_built_anew_for_another_lock(self, tmp_path, monkeypatch):
        commands = Commands(tmp_path / "peers")
        monkeypatch.setattr(environment, "_run", commands)
        peers_python(tmp_path / "peers")
        (tmp_path / "other.lock").write_text("torch==1")
        monkeypatch.setattr(environment, "_LOCK", tmp_path / "other.lock")
        peers_python(tmp_path / "peers")

        assert len(commands.run) == 4

    def test_a_failed_build_is_one_line_and_leaves_no_marker(self, tmp_path, monkeypatch):
        lock = tmp_path / "broken.lock"
        lock.write_text("this-is-no-requirement !!\n")
        monkeypatch.setattr(environment, "_LOCK", lock)

        with pytest.raises(BenchError, match="--no-peers measures without them") as caught:
            peers_python(tmp_path / "peers")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "peers" / ".ready").exists()

    def test_an_installer_that_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr(environment, "_uv", lambda: str(tmp_path / "uv"))

        with pytest.raises(BenchError, match=r"cannot be built: .*No such file"):
            peers_python(tmp_path / "peers")


class TestLock:
    def test_has_the_peers_that_performance_was_measured_against(self):
        assert {"baal==2.1.0", "batchbald-redux==2.0.5", "scikit-activeml==1.0.1"} <= pins(LOCK)

    def test_shares_its_arithmetic_with_the_project(self):
        """Another torch would be compared, and the cache that has ours would not do."""
        names = ("torch", "torchvision", "numpy", "pillow", "scipy")
        shared = {pin for pin in pins(ROOT / "requirements.lock") if pin.partition("==")[0] in names}

        assert shared
        assert shared <= pins(LOCK)

    def test_every_pin_has_hashes_and_no_address(self):
        blocks = re.split(r"^(?=[a-z0-9])", LOCK.read_text(), flags=re.MULTILINE)[1:]

        assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []
        assert "://" not in LOCK.read_text()
        assert "index-url" not in LOCK.read_text()
