"""Readers who label steadily, in a thread, until they are told to pause."""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus

from ml_backend.demo.readers import ReadingRoom, Submission
from ml_backend.errors import LabelStudioError, RequestRefused

__all__ = ["SteadyReaders"]

PACE_S = 0.4
LONGEST_S = 120.0


class SteadyReaders:
    """Two or more readers in turn. What fails while Label Studio is stopped or busy they try again.

    A request that it refuses (status 4xx) is an error: a reader at the page could not go on.

    Args:
        room: where they sit.
        first: tasks that were labelled before them, and when.
    """

    def __init__(self, room: ReadingRoom, first: dict[str, datetime]) -> None:
        self._room = room
        self._first = first
        self._reading = threading.Event()
        self._over = threading.Event()
        self._problem: Exception | None = None
        self._turn = threading.Lock()
        self.refused: list[str] = []
        self._thread = threading.Thread(target=self._run, name="readers", daemon=True)
        self._thread.start()

    @property
    def submissions(self) -> list[Submission]:
        """What Label Studio has accepted."""
        return list(self._room.submissions)

    def labelled(self) -> dict[str, datetime]:
        """Task -> when Label Studio had accepted its label."""
        return self._first | {one.image_id: one.answered_at for one in self.submissions}

    def read(self) -> None:
        """Go on labelling."""
        self._reading.set()

    def pause(self) -> None:
        """Stop labelling; whoever is at it ends the image first."""
        self._reading.clear()
        with self._turn:
            self.check()

    def submit(self, count: int) -> None:
        """Label so many images more, and pause."""
        goal = len(self._room.submissions) + count
        if count:
            self.read()
            self.wait(lambda: len(self._room.submissions) >= goal)
        self.pause()

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not until():
            self.check()
            assert time.monotonic() < deadline, f"the readers came to nothing: {self.refused[-3:]}"
            time.sleep(0.02)

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self._problem is not None:
            raise self._problem

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PACE_S):
            if not self._reading.is_set():
                continue
            with self._turn:
                try:
                    assert self._room.turn(), "no image is left to label"
                except LabelStudioError as error:
                    if isinstance(error, RequestRefused) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        self._problem = error
                        return
                    self.refused.append(str(error))
                except Exception as error:  # noqa: BLE001 - told in the test's own thread
                    self._problem = error
                    return
