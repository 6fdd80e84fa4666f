"""What the demo tells people to type."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ml_backend.demo.run import by_hand, shell_path
from ml_backend.schemas import ProjectKey


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        (".", ". ./exports.sh"),  # a name without a slash is looked up in PATH
        ("demo", ". demo/exports.sh"),
        ("/tmp/a demo", ". '/tmp/a demo/exports.sh'"),
        ("demo [bold]", ". 'demo [bold]/exports.sh'"),
    ],
)
def test_the_file_for_the_shell(folder, line):
    login = SimpleNamespace(url="http://127.0.0.1:9090", user="owner", password="secret", email="a@b.c")
    services: Any = SimpleNamespace(url=login.url, admin=login, backend=login, exports=shell_path(Path(folder)))

    told = by_hand(services, 1, ProjectKey(id=1, created=2), holdout=True).plain

    assert line in map(str.strip, told.splitlines())
