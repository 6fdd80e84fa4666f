"""How long each stage of a round takes, and which one it is in."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ml_backend.engine.ports import Progress, Stage

__all__ = ["Clock"]


class Clock:
    """Times the stages on their work only, and tells the progress where it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        self._progress(name, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._progress(name, 1, 1)
