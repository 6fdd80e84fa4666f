"""Fixtures of all tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from structlog.contextvars import clear_contextvars

from ml_backend.blas import enable_deterministic_blas

# Before torch is loaded: results must not depend on the thread count.
enable_deterministic_blas()

# No law depends on the speed of the machine. In a fresh checkout the first text alone takes a second to generate.
settings.register_profile("untimed", settings(deadline=None, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent
FIGURE = "figure"


@pytest.fixture(autouse=True)
def no_context_of_another_test() -> None:
    """Forget the project of a request or a round that ran in the tests' own process."""
    clear_contextvars()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Prints a figure, of a test that passes too: at once, and again at the end of the run.

    A process of xdist has no terminal: its figures are sent with the reports of its tests.
    """

    def tell(line: str) -> None:
        record_property(FIGURE, line)
        if "PYTEST_XDIST_WORKER" not in os.environ:
            with capsys.disabled():
                sys.stdout.write(f"\n{line}")
                sys.stdout.flush()

    return tell


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH into which the example of tests/plugin is installed."""
    uv = shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")
    folder = tmp_path_factory.mktemp("plugin")
    command = [uv, "pip", "install", "-q", "--no-deps", "--target", str(folder), str(ROOT / "tests" / "plugin")]
    subprocess.run(command, check=True, timeout=300)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = list(_figures(terminalreporter))
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


def _figures(terminalreporter: pytest.TerminalReporter) -> Iterator[str]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                yield from (str(value) for name, value in report.user_properties if name == FIGURE)
