"""The program of ``label-studio-ml start ml_backend``: ``python <folder>/_wsgi.py``, with label-studio-ml's options.

It serves this backend's app instead of label-studio-ml's, which keeps a single model for all projects and ignores
START_TRAINING. ``app`` is for WSGI servers, as in label-studio-ml's template.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # As a script, this folder is first on sys.path: its `charts`, `images` and others would hide modules of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ml_backend.config import Settings
from ml_backend.errors import BackendError
from ml_backend.logs import set_up_logs
from ml_backend.scheduling import RoundQueue
from ml_backend.server.app import create_app
from ml_backend.server.serve import serve


def __getattr__(name: str) -> Any:
    """Create ``app`` at its first use: importing this module does not read the settings."""
    if name == "app":
        settings = Settings.load()
        set_up_logs(settings)
        return create_app(settings)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stopped.

    Returns:
        1 where a setting is wrong or ``--check`` fails, with the reason on stderr; otherwise it ends by SystemExit.
    """
    options = _parse(arguments)
    given = {
        "data_dir": options.model_dir,
        "log_level": "DEBUG" if options.debug else options.log_level,
        "basic_auth_user": options.basic_auth_user,
        "basic_auth_pass": options.basic_auth_pass,
    }
    try:
        settings = Settings.load(**{name: value for name, value in given.items() if value is not None})
        if options.check:
            RoundQueue.from_settings(settings).ping()
            create_app(settings)
        serve(settings, host=options.host, port=options.port)
    except BackendError as error:
        print(f"ml-backend: {error}", file=sys.stderr)  # noqa: T201 - a command's message
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="label-studio-ml start ml_backend",
        description="Serve the active-learning backend; a worker (`ml-backend work`) runs the rounds.",
    )
    environ = os.environ
    parser.add_argument("-p", "--port", type=int, default=9090, help="port to listen on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("-d", "--debug", action="store_true", help="log at level DEBUG")
    parser.add_argument(
        "--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="least severe message logged"
    )
    parser.add_argument("--model-dir", default=environ.get("MODEL_DIR"), help="data folder, instead of AL_DATA_DIR")
    parser.add_argument("--check", action="store_true", help="do not start if Redis does not answer")
    parser.add_argument(
        "--basic-auth-user", default=environ.get("ML_SERVER_BASIC_AUTH_USER"), help="instead of AL_BASIC_AUTH_USER"
    )
    parser.add_argument(
        "--basic-auth-pass", default=environ.get("ML_SERVER_BASIC_AUTH_PASS"), help="instead of AL_BASIC_AUTH_PASS"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
