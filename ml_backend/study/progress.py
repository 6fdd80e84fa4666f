"""How far a study is: a bar with the time left on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["StudyProgress"]

LINE_EVERY_S: Final = 30.0


class StudyProgress:
    """Tells of the rounds that are done, in all runs together.

    Args:
        console: where to tell it.
        total: rounds in all, at most: a run may use its pool up earlier.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._begun = time.monotonic()
        self._told = self._begun
        self._at_start: int | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("rounds"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("rounds", total=total)

    def show(self, done: int) -> None:
        """So many rounds are done."""
        if self._at_start is None:
            # What an earlier call has done tells nothing about the pace of this one.
            self._at_start = done
            if self._bar is not None:
                self._bar.reset(self._task, total=self._total, completed=done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._told >= LINE_EVERY_S:
            self._told = now
            self.say(
                f"{done} of {self._total} rounds{_left(done - self._at_start, self._total - done, now - self._begun)}"
            )

    def say(self, line: str) -> None:
        """Something that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _left(done: int, to_do: int, seconds: float) -> str:
    if done <= 0:
        return ""
    minutes = to_do * seconds / done / 60
    return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
