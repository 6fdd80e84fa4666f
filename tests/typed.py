"""A command of ours typed in the tests' own process, which has loaded PyTorch already: a new one needs seconds for it.

What only a process of its own shows (signals, its end, its log) is for tests that start one.
"""

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from ml_backend.cli import main

__all__ = ["type_here"]


def type_here(words: Sequence[str], environ: Mapping[str, str], folder: Path | None = None) -> CompletedProcess[str]:
    """Run ``ml-backend`` to its end.

    Args:
        words: after the name of the program.
        environ: all that the command sees of the environment.
        folder: where it is typed; default: where the tests are.

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
