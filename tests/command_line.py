"""Programs as the tests run them: ``ml-backend`` in their own process, and shell lines as services."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Self
from unittest.mock import patch

import pytest

from ml_backend.cli import main
from ml_backend.processes import Service


def run_cli(words: Sequence[str], environ: Mapping[str, str], folder: Path | None = None) -> CompletedProcess[str]:
    """Run ``ml-backend`` to its end in this process, which has loaded PyTorch already: a new one needs seconds for it.

    Args:
        words: after the name of the program.
        environ: the whole environment of the command.
        folder: working directory; default: that of the tests.

    Returns:
        As of ``subprocess.run``; a traceback is an error of the test.
    """
    out, err, typed = io.StringIO(), io.StringIO(), ["ml-backend", *words]
    with (
        patch.dict(os.environ, environ, clear=True),
        patch.object(sys, "argv", typed),
        contextlib.chdir(folder or Path()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert isinstance(ended.value.code, int)
    return CompletedProcess(typed, ended.value.code, out.getvalue(), err.getvalue())


class ShellService(Service):
    """A line of the shell as a service.

    Args:
        line: what the shell runs.
        log: file of its output.
        ready: whether it answers; default: at once.
        environ: its environment; default: that of the tests.
    """

    grace_s = 1.0

    def __init__(
        self, line: str, log: Path, ready: Callable[[], bool] = lambda: True, environ: Mapping[str, str] = os.environ
    ) -> None:
        super().__init__(line)
        self._command = ["bash", "-euc", line]
        self._file = log
        self._ready = ready
        self._environ = environ

    def start(self) -> Self:
        self._run(self._command, self._environ, self._file, cwd=self._file.parent)
        return self

    def is_ready(self) -> bool:
        return self._ready()
