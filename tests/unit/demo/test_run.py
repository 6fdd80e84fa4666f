"""What the demo tells people to type."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from rich.console import Console

from ml_backend.demo.run import by_hand, check_or_restart, shell_path
from ml_backend.demo.services import Worker
from ml_backend.demo.summary import View
from ml_backend.errors import ServiceError
from ml_backend.processes import Service
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


class Program(Service):
    """A program that does nothing, and is ready at once."""

    def __init__(self, folder: Path) -> None:
        Service.__init__(self, "the program")
        self._folder = folder

    def start(self) -> Self:
        self._run(["sleep", "600"], os.environ, self._folder / "log")
        return self

    def is_ready(self) -> bool:
        return True

    def ends(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class Training(Program, Worker):
    """The same in the place of the worker."""


def test_a_worker_that_has_ended_is_started_again_and_another_service_ends_the_demo(tmp_path):
    text = io.StringIO()
    view = View(Console(file=text, width=200))
    for kind in (Training, Program):
        with kind(tmp_path).start() as service:
            check_or_restart(service, view)
            before = service.pid
            service.ends()
            if kind is Program:
                with pytest.raises(ServiceError, match="the program ended by itself with status -9"):
                    check_or_restart(service, view)
            else:
                check_or_restart(service, view)
                assert service.pid != before
                service.check()

    assert text.getvalue().count("The worker is started again.") == 1
