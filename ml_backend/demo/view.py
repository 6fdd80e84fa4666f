"""What the visitor sees while the demo runs: bars on a terminal, plain lines elsewhere.

Follows the rounds of one project from outside: what is published, what runs, what went wrong.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

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

from ml_backend.errors import RoundError
from ml_backend.scheduling import Progress as RoundProgress
from ml_backend.scheduling import QueueStatus
from ml_backend.schemas import ProjectKey, PublishedRanking, RoundReport
from ml_backend.storage import RoundStore


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


STALL_S = 300.0  # without any progress: the slowest step of a demo round takes a tenth of that


class ProjectReader(Protocol):
    """What is asked of Label Studio."""

    def project(self, project_id: int) -> Mapping[str, Any]: ...


class StatusReader(Protocol):
    """What is asked of the queue."""

    def status(self, project: ProjectKey) -> QueueStatus: ...


class RoundFollower:
    """What has happened to a project's rounds so far.

    Args:
        client: of the project's owner.
        store: the data folder that server and worker share.
        queue: their Redis.
        project: to follow.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: ProjectReader,
        store: RoundStore,
        queue: StatusReader,
        project: ProjectKey,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._queue = queue
        self._project = project
        self._store = store.project(project)
        self._clock = clock
        self._moved_at = clock()
        self._last_seen: object = None
        self.rounds: list[tuple[RoundReport, PublishedRanking]] = []  # oldest first
        self.visible_at: dict[str, datetime] = {}  # version -> when Label Studio was first seen to serve by it
        self.claimed_at: dict[str, datetime] = {}  # version -> when the worker took its round from the queue
        self._claim: datetime | None = None

    @property
    def rankings(self) -> dict[str, tuple[str, ...]]:
        """Version -> image ids in the order in which they should be served."""
        return {published.version: published.image_ids for _, published in self.rounds}

    @property
    def trained(self) -> int:
        """Published rounds that had a network."""
        return sum(report.trained for report, _ in self.rounds)

    def is_newer(self, progress: RoundProgress) -> bool:
        """Whether it is of a round after the newest published one."""
        return not self.rounds or progress.started > self.rounds[-1][0].started_at.timestamp()

    def version(self) -> str:
        """The version that Label Studio serves by now; empty where there is none."""
        version = str(self._client.project(self._project.id).get("model_version") or "")
        self.visible_at.setdefault(version, datetime.now(UTC))
        return version

    def poll(self, *, patient: bool = False) -> QueueStatus:
        """Look once.

        Args:
            patient: nothing has to move, because nobody may be labelling.

        Raises:
            RoundError: the last round failed, or nothing has moved for five minutes.
            QueueError, StorageError: these cannot be read.
        """
        status = self._queue.status(self._project)
        if status.last_error is not None and status.failing:
            raise RoundError(f"a round failed: {status.last_error.message} ({status.last_error.kind})")
        # Before the progress of the next round takes its place.
        if (published := self._store.published()) is not None:
            self._note(published)
        if status.progress is not None:
            self._claim = datetime.fromtimestamp(status.progress.started, UTC)
        if not patient:
            self._check_moving(status, published)
        return status

    def _note(self, published: PublishedRanking) -> None:
        if self.rounds and self.rounds[-1][1].version == published.version:
            # Written a second time with the time that the deletion of the old version took.
            self.rounds[-1] = (self.rounds[-1][0], published)
            return
        report = self._store.report(published.round_id)
        self.rounds.append((report, published))
        claimed = self._claim is not None and self._claim <= report.started_at
        self.claimed_at[published.version] = self._claim if claimed and self._claim else report.started_at

    def _check_moving(self, status: QueueStatus, published: PublishedRanking | None) -> None:
        seen = (status, published)
        if seen != self._last_seen:
            self._last_seen, self._moved_at = seen, self._clock()
        elif self._clock() - self._moved_at > STALL_S:
            state = f"running: {status.running}, waiting: {status.waiting}, changes: {status.changes}"
            raise RoundError(f"no round has moved for {STALL_S:.0f} s ({state}): see the worker's log")
