from pathlib import Path

import pytest

from ml_backend.config import ProjectOptions, Settings
from tests.unit.doctor.installation import Installation


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, *ProjectOptions.model_fields):
        monkeypatch.delenv(f"AL_{name.upper()}", raising=False)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)
