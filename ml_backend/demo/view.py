"""What the visitor sees while the demo runs: bars on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

__all__ = ["LiveView", "PlainView", "View", "make_view"]


class View(Protocol):
    """Where the demo tells what it does."""

    @property
    def is_live(self) -> bool:
        """Whether somebody sits in front of it."""
        ...

    def say(self, what: RenderableType) -> None:
        """Something that stays: a line or a table."""
        ...

    def step(self, name: str, done: int, total: int | None) -> None:
        """A step with a bar; ``total`` None where nobody knows how long it takes. Ends when all is done."""
        ...

    def clear(self) -> None:
        """Forget all steps: something new begins."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class LiveView:
    """Bars with the time that is left, redrawn in place; needs a terminal."""

    is_live = True

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            # On a narrow terminal the bars give way, not the figures.
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _TimeColumn(table_column=Column(no_wrap=True)),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def say(self, what: RenderableType) -> None:
        _print(self._progress.console, what)

    def step(self, name: str, done: int, total: int | None) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total)
        elif done < self._done[name]:
            # It began anew: what was through is no longer.
            self._progress.reset(self._bars[name], total=total)
        self._done[name] = done
        self._progress.update(self._bars[name], completed=done, total=total)

    def clear(self) -> None:
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


class _TimeColumn(ProgressColumn):
    """Seconds so far, and those left where they can be told."""

    def render(self, task: Task) -> Text:
        so_far = f"{task.finished_time if task.finished_time is not None else task.elapsed or 0.0:.0f} s"
        left = task.time_remaining
        return Text(so_far if task.finished or left is None else f"{so_far}, {left:.0f} s left")


class PlainView:
    """A line when a step begins and one when it ends, for logs."""

    is_live = False

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun: dict[str, float] = {}
        self._ended: set[str] = set()

    def say(self, what: RenderableType) -> None:
        _print(self._console, what)

    def step(self, name: str, done: int, total: int | None) -> None:
        if name in self._ended:
            return
        if name not in self._begun:
            self._begun[name] = time.monotonic()
            _print(self._console, f"{name} ...")
        if total is not None and done >= total:
            self._ended.add(name)
            seconds = time.monotonic() - self._begun[name]
            _print(self._console, f"{name}: done ({seconds:.1f} s)")

    def clear(self) -> None:
        self._begun.clear()
        self._ended.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


def make_view(console: Console) -> View:
    """The live view on a terminal, else the plain one."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def _print(console: Console, what: RenderableType) -> None:
    # What stands in square brackets in an error or a path is no markup.
    # A line of a log stays whole; a terminal would break it in the middle of a word.
    whole = isinstance(what, str) and not console.is_terminal
    console.print(what, markup=False, highlight=False, soft_wrap=whole)
