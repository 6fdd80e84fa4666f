"""What would be uploaded, and plain pip, as a user of the package has them."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BIN = Path(sys.executable).parent
# Without these, an interpreter that a virtual environment started would look at that environment.
CLEAN = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}


class Built(NamedTuple):
    """The two files of a release."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> Built:
    """Build the sdist, and the wheel from the sdist: what git does not track is in neither."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return built_in(folder)


def built_in(folder: Path) -> Built:
    """The one sdist and the one wheel of a folder."""
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel)


def pythons() -> dict[str, Path]:
    """Minor version -> interpreter: the running one, then PATH's and pyenv's, of those that the package supports."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = filter(None, (shutil.which(f"python3.{minor}") for minor in range(11, 30)))
    found: dict[str, Path] = {}
    for path in (Path(sys.executable), *map(Path, on_path), *sorted(pyenv.glob("versions/*/bin/python3"))):
        command = [str(path), "-c", "import platform; print(platform.python_version())"]
        done = subprocess.run(command, env=CLEAN, capture_output=True, text=True, check=False, timeout=60)
        version = done.stdout.strip()
        # pyenv's shims fail for a version that is not chosen.
        if done.returncode == 0 and SpecifierSet(PROJECT["requires-python"]).contains(version):
            found.setdefault(version.rpartition(".")[0], path)
    return found


class Pip:
    """A run of pip for another interpreter, which it waits for when asked.

    Args:
        python: interpreter, or folder of an environment.
        arguments: of ``pip install``.
        folder: of the log; new.
    """

    def __init__(self, python: Path, arguments: list[str], folder: Path) -> None:
        self._log = folder / "pip.log"
        self.report = folder / "report.json"
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--report", str(self.report)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *arguments], env=CLEAN, cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )

    def installed(self) -> dict[str, str]:
        """Canonical name -> version of what pip chose; an assertion with pip's words where it failed."""
        assert self._process.wait(timeout=540) == 0, self._log.read_text()[-3000:]
        rows = json.loads(self.report.read_text())["install"]
        return {row["metadata"]["name"].lower().replace("_", "-"): row["metadata"]["version"] for row in rows}

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
