"""What users rely on and a rewrite must keep, as it is today: kept in ``tests/golden``.

A change that is meant is written anew by ``AL_GOLDEN=write .venv/bin/python -m pytest tests/test_golden.py``, and read
in the diff.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ml_backend.cli import app
from ml_backend.config import ProjectOptions, Settings

GOLDEN = Path(__file__).parent / "golden"


def commands(command: Any, name: str = "ml-backend") -> dict[str, Any]:
    """Every command by its words, with its parameters: spelling, default, and whether it must be given."""
    found: dict[str, Any] = {}
    if hasattr(command, "commands"):  # Typer has a Click of its own
        for word, sub in sorted(command.commands.items()):
            found |= commands(sub, f"{name} {word}")
        return found
    return {
        name: {
            " ".join((*parameter.opts, *getattr(parameter, "secondary_opts", ()))): {
                "default": None if callable(parameter.default) else parameter.default,
                "required": parameter.required,
            }
            for parameter in command.params
            if parameter.name != "help"
        }
    }


def fields(kind: type[Settings] | type[ProjectOptions]) -> dict[str, Any]:
    """Every setting, with its default."""
    return {
        name: "computed" if field.default_factory else field.default
        for name, field in sorted(kind.model_fields.items())
    }


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("commands", lambda: commands(get_command(app))),
        ("settings", lambda: fields(Settings)),
        ("options", lambda: fields(ProjectOptions)),
    ],
)
def test_stays_as_it_is(name, found):
    path = GOLDEN / f"{name}.json"
    text = json.dumps(found(), indent=1, default=str, ensure_ascii=False) + "\n"
    if os.environ.get("AL_GOLDEN") == "write":
        path.write_text(text)

    assert path.read_text() == text
