"""The peers' environment: built once from ``peers.lock``, in a folder of the benchmark's; never the project's."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_backend.bench.process import BenchError

__all__ = ["PEERS", "peers_python"]

PEERS = (
    "baal",
    "batchbald-redux",
    "scikit-activeml",
    "opencv-python-headless",
    "pyvips",
    "pillow",
    "torch",
    "torchvision",
)
"""The packages whose versions a report names."""

_LOCK = Path(__file__).parent / "peers.lock"
_BUILT_S = 3600.0  # several GB of torch over a slow line


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' environment; builds it first where it is not there or another lock made it.

    Args:
        folder: the environment's; made where it is not there.

    Raises:
        BenchError: it cannot be built; the message has the last line of what the installer said.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    marker = folder / ".ready"
    # Of this interpreter too: an environment that another one built may not run any more.
    wanted = hashlib.sha256(_LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if marker.is_file() and marker.read_text() == wanted and python.is_file():
        return python
    marker.unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = _uv()
    for command in _with_uv(uv, folder, python) if uv else _with_pip(folder, python):
        _run(command)
    marker.write_text(wanted)
    return python


def _uv() -> str | None:
    """On PATH, or where `make setup` puts it."""
    return shutil.which("uv") or shutil.which("uv", path=str(Path.cwd() / ".tools" / "uv" / "bin"))


def _with_uv(uv: str, folder: Path, python: Path) -> list[Sequence[str]]:
    return [
        [uv, "venv", "-q", "--allow-existing", "--python", sys.executable, str(folder)],
        [uv, "pip", "sync", "-q", "--python", str(python), "--require-hashes", str(_LOCK)],
    ]


def _with_pip(folder: Path, python: Path) -> list[Sequence[str]]:
    return [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        # The lock is complete, but for what peers-left-out.txt takes out on purpose.
        [str(python), "-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", str(_LOCK)],
    ]


def _run(command: Sequence[str]) -> None:
    # A variable that names the project's environment would make uv install into it.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    }
    # Files are linked from uv's cache where that is possible: torch's gigabytes are there once.
    environment.setdefault("UV_LINK_MODE", "hardlink")
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, env=environment, capture_output=True, text=True, check=False, timeout=_BUILT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(
            f"the peers' environment cannot be built: {error}; --no-peers measures without them"
        ) from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        raise BenchError(
            f"the peers' environment cannot be built: {Path(command[0]).name} ended with {done.returncode}: {said}; "
            "it needs the package registry; --no-peers measures without them"
        )
