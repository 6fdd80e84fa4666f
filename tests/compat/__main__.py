"""Runs the system tests against several releases of Label Studio, one after the other, and prints what works.

    python -m tests.compat [RELEASE ...]

A release is ``1.22.0``, or ``1.22.0+postgres`` for the same on Postgres. Each gets an environment of its own in
``.compat``, which stays until ``make clean``; the release that the lock file names runs from ``.tools/label-studio``.
The exit status is 1 where a test failed.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ml_backend.label_studio.connect import TESTED
from tests.compat.table import FILES, Outcome, cells, markdown, read_outcomes

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".compat"
RELEASES = (*TESTED, f"{TESTED[-1]}+postgres")
LOCKED = re.compile(r"^label-studio==(\S+)", re.MULTILINE)


def environment(release: str) -> Path:
    """The ``label-studio`` program of a release, whose environment is built where it is not there."""
    [locked] = LOCKED.findall((ROOT / "requirements-label-studio.lock").read_text())
    folder = ROOT / ".tools" / "label-studio" if release == locked else FOLDER / release
    program = folder / "bin" / "label-studio"
    ready = folder / ".ready"
    if not ready.exists():
        uv = shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")
        python = folder / "bin" / "python"
        for words in (
            ["venv", "-q", "--allow-existing", "--python", sys.executable, str(folder)],
            ["pip", "install", "-q", "--python", str(python), f"label-studio=={release}"],
        ):
            subprocess.run([uv, *words], check=True)
        ready.touch()
    return program


def run(target: str) -> list[Outcome]:
    """Run the tests against one release."""
    release, _, database = target.partition("+")
    results = FOLDER / f"{target}.xml"
    results.unlink(missing_ok=True)
    environ = os.environ | {
        "AL_LABEL_STUDIO_BIN": str(environment(release)),
        "AL_TEST_LABEL_STUDIO_DATABASE": database or "sqlite",
        "CI": "true",  # a missing service is a failure; what is skipped then does not apply to this release
    }
    command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={results}", *FILES]
    subprocess.run(command, cwd=ROOT, env=environ, check=False)
    return read_outcomes(results)


def main(targets: list[str]) -> int:
    """Run against each release, print the table, and return the exit status."""
    FOLDER.mkdir(exist_ok=True)
    rows = {}
    for target in targets or RELEASES:
        begin = time.monotonic()
        sys.stdout.write(f"compat: Label Studio {target}\n")
        sys.stdout.flush()
        rows[target] = run(target)
        sys.stdout.write(f"compat: {target}: {cells(rows[target])}, {time.monotonic() - begin:.0f} s\n")
    sys.stdout.write(f"\n{markdown(rows)}\n")
    return 0 if all(set(cells(outcomes).values()) == {"ok"} for outcomes in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
