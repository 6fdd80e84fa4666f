"""What is remembered of each round: all of its report but the images. A page of 200 rounds reads each file once."""

import threading
from collections.abc import Hashable
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from ml_backend.errors import StorageError
from ml_backend.records import FitReport, Ranking, Reason, Record, RoundReport
from ml_backend.storage import ProjectStore

__all__ = ["Remembered", "RoundLine", "RoundLines"]

KEPT_LINES = 20_000  # over all projects; about a kilobyte each

T = TypeVar("T")


class RoundLine(Record):
    """One round without its images.

    Attributes:
        strategy: that ordered the images; ``asked`` is the owner's, which waits until every class has its labels.
        classes: ordinal, least severe first.
        images: that it ranked.
        control: of them, those that stand in the order by chance.
        excluded: images that it could not use.
        started_at: ISO 8601, UTC.
        seconds: stage -> wall time.
        base: the earlier round whose network ranked, where this one only ranked anew.
        report: without what grows with the pool.
    """

    round_id: str
    reason: Reason
    strategy: str
    asked: str
    classes: tuple[str, ...]
    batch_size: int
    min_labels_per_class: int
    images: int
    control: int
    labels_per_class: dict[str, int]
    disputed: int
    excluded: int
    fit: FitReport | None
    seconds: dict[str, float]
    started_at: str
    base: str | None = None
    report: Annotated[RoundReport, Field(exclude=True, repr=False)]

    @property
    def labels(self) -> int:
        """Images with a label when the round began."""
        return sum(self.labels_per_class.values())

    @property
    def trained(self) -> bool:
        """Whether the round trained a network of its own."""
        return self.report.trained

    @property
    def by_network(self) -> bool:
        """Whether a network made the order; see ``RoundReport.by_network``."""
        return self.report.by_network

    @classmethod
    def of(cls, report: RoundReport) -> "RoundLine":
        """The line of a report."""
        request, ranking = report.request, report.ranking
        fit = None if report.fit is None else report.fit.model_copy(update={"exclusions": ()})
        short = Ranking(strategy=ranking.strategy, image_ids=(), scores=(), batch_size=ranking.batch_size)
        return cls(
            round_id=request.round_id,
            reason=request.reason,
            strategy=ranking.strategy,
            asked=request.strategy,
            classes=request.classes,
            batch_size=ranking.batch_size,
            min_labels_per_class=request.min_labels_per_class,
            images=len(ranking.image_ids),
            control=len(ranking.control),
            labels_per_class=report.labels_per_class,
            disputed=len(report.disputed),
            excluded=len(report.exclusions),
            fit=fit,
            seconds=dict(report.seconds),
            started_at=report.started_at.isoformat(timespec="seconds"),
            base=report.base,
            report=report.model_copy(
                update={"ranking": short, "disputed": (), "exclusions": (), "fit": fit},
            ),
        )


class Remembered(Generic[T]):
    """Values by key, each as long as what it was made from stays the same. Safe for several threads.

    Args:
        limit: of keys; all are forgotten where there are more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[Hashable, tuple[Hashable, T]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, state: Hashable) -> T | None:
        """The value that was made in this state; None where none was."""
        with self._lock:
            found = self._known.get(key)
        return found[1] if found is not None and found[0] == state else None

    def put(self, key: Hashable, state: Hashable, value: T) -> T:
        """Keep a value, in the place of one of another state."""
        with self._lock:
            if len(self._known) >= self._limit:
                self._known.clear()
            self._known[key] = (state, value)
        return value


class RoundLines:
    """The lines of any project's rounds; one set a process."""

    def __init__(self) -> None:
        self._lines: Remembered[RoundLine | str] = Remembered(KEPT_LINES)

    def of(self, project: ProjectStore) -> tuple[list[RoundLine], list[str]]:
        """Every round that can be read, oldest first; and what is wrong with each of the others."""
        lines: list[RoundLine] = []
        damaged: list[str] = []
        for round_id in project.round_ids():
            found = self._line(project, round_id)
            if isinstance(found, RoundLine):
                lines.append(found)
            else:
                damaged.append(f"Round {round_id} cannot be told: {found}")
        return lines, damaged

    def _line(self, project: ProjectStore, round_id: str) -> RoundLine | str:
        path = project.folder / "rounds" / round_id / "report.json"
        try:
            status = path.stat()
        except OSError as error:
            return f"{path.name} could not be read: {error.strerror}"
        state = (status.st_mtime_ns, status.st_size)
        if (known := self._lines.get(path, state)) is not None:
            return known
        try:
            line: RoundLine | str = RoundLine.of(project.report(round_id))
        except StorageError as error:
            line = str(error)
        return self._lines.put(path, state, line)
