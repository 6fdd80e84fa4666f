"""What a reader waits for while a ranking is published and an old one deleted, on a Label Studio on Postgres.

    python -m tests.benchmarks.publishing 2000 80 all

The first argument is the number of tasks; the others are values of the option ``reserve``. A reader submits without a
pause. It needs Debian's ``postgresql`` and ``make setup``, and minutes.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

from ml_backend.demo.readers import Reader
from ml_backend.errors import LabelStudioError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.storage import RoundStore
from tests.system.postgres import label_studio_on_postgres
from tests.system.test_postgres import CONFIG
from tests.system.test_publisher import LiveProject, nothing


def missing(what: str) -> NoReturn:
    raise SystemExit(f"{what} is missing")


class Waits:
    """A reader who labels until the end, and the seconds of each submission."""

    def __init__(self, reader: Reader, project_id: int) -> None:
        self._reader, self._project_id = reader, project_id
        self._over = threading.Event()
        self.submits: list[float] = []
        self.asks: list[float] = []

    def _read(self) -> None:
        while not self._over.is_set():
            asked = time.perf_counter()
            task = self._reader.next_task(self._project_id, CONFIG)
            sent = time.perf_counter()
            if task is None:
                return
            with suppress(LabelStudioError):  # after 60 s without an answer, which count as long
                self._reader.submit(self._project_id, task, "normal", CONFIG)
            self.asks.append(sent - asked)
            self.submits.append(time.perf_counter() - sent)

    def during(self, work: Callable[[], object]) -> str:
        """The figures of the reader while something is done, and what it takes this process."""
        thread = threading.Thread(target=self._read)
        thread.start()
        began, cpu = time.perf_counter(), time.process_time()
        work()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        self._over.set()
        thread.join()
        self._over.clear()
        waits = ", ".join(
            f"{name}: median {statistics.median(found):.2f} s, longest {max(found):.2f} s"
            for name, found in (("submission", self.submits), ("next image", self.asks))
        )
        figures = f"{took:.1f} s, {cpu:.1f} CPU s; {len(self.submits)} read; {waits}"
        self.submits, self.asks = [], []
        return figures


def main(tasks: int, reserves: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    with (
        label_studio_on_postgres(folder, missing) as (server, _),
        LabelStudioClient(server.url, server.admin.token) as client,
    ):
        invite = str(client.request("GET", "/api/invite", dict)["invite_url"])
        with Reader("ann", server.url).sign_up(invite) as reader:
            for reserve in reserves:
                project = LiveProject(client, RoundStore(folder / reserve), tasks)
                options = {"reserve": reserve if reserve == "all" else int(reserve), "batch_size": 20}
                waits = Waits(reader, project.id)
                for name in ("the first", "another", "another, and the first deleted"):
                    project.age(timedelta(days=8))
                    report = project.report(project.tasks)
                    figures = waits.during(partial(project.publisher(**options).publish, report, nothing))
                    sys.stdout.write(f"{tasks} tasks, reserve={reserve}, {name}: {figures}\n")
                    sys.stdout.flush()
                sys.stdout.write(f"predictions held: {client.model_versions(project.id)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
