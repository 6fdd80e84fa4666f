"""Publishes the last ranking again: before readers have used it up, and where Label Studio has lost it.

Behind the published images Label Studio serves a random order without a word. So when few of them are left, or their
predictions were deleted, the ranking is published again from the first image that still waits. Between rounds a job
does it; while a round trains, which may take hours, a thread beside it.
"""

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import structlog

from ml_backend.acquisition import seeded_order
from ml_backend.engine.ports import LabelSource, Publisher
from ml_backend.errors import BackendError
from ml_backend.records import Annotation, ImageRef, Published, Ranking, RoundReport

__all__ = ["RoundArchive", "TopUp", "TurnsPublisher", "beside", "topped_up"]

WATCH_INTERVAL_S = 30.0
# Kinds of exclusion for an image that was tried: learners give none.
UNREADABLE = frozenset({"", "unreadable image"})

log = structlog.get_logger(__name__)


class RoundArchive(Protocol):
    """Where rounds and what is served of them are kept."""

    def published(self) -> Published | None: ...

    def report(self, round_id: str) -> RoundReport: ...


def topped_up(report: RoundReport, annotations: Sequence[Annotation], pool: Sequence[ImageRef]) -> Ranking:
    """The ranking of a round, of the images that still wait.

    Those that it scored come in its order, then those imported since, which have no score, in seeded order; and last
    what a reader has skipped, which is there for the other readers only. An image that the round could not read stays
    out until the next round has looked again; one that it left out for what its tasks or annotations were is like new.

    Args:
        report: of the round.
        annotations: every annotation now.
        pool: every image without a label now.
    """
    ranking = report.ranking
    skipped = {annotation.image.id for annotation in annotations}
    waiting = {image.id for image in pool}
    scored = [image_id for image_id in ranking.image_ids if image_id in waiting]
    excluded = (one for one in (*report.exclusions, *ranking.exclusions) if one.kind in UNREADABLE)
    known = {*scored, *(one.image_id for one in excluded)}
    new = [image.id for image in pool if image.id not in known]
    order = [*scored, *(new[index] for index in seeded_order(new, report.request.seed))]
    order.sort(key=lambda image_id: image_id in skipped)  # stable: the rest keeps its order
    scores = dict(zip(ranking.image_ids, ranking.scores, strict=True))
    lowest = min(ranking.scores, default=0.0)
    by_chance = set(ranking.control)
    return ranking.model_copy(
        update={
            "image_ids": tuple(order),
            "scores": tuple(scores.get(image_id, lowest) for image_id in order),
            "control": tuple(image_id for image_id in order if image_id in by_chance),
        }
    )


class TopUp:
    """Publishes more of the last ranking when little of it is left, or when it holds what readers need not answer.

    Args:
        labels: of the project.
        publisher: of the project.
        rounds: its rounds, and what is served of them.
        low: images that must be left.
        guard: raises StaleRound where a newer run has begun.
        is_held: whether Label Studio holds what was published, as it was published; asked after the labels.
    """

    def __init__(
        self,
        labels: LabelSource,
        publisher: Publisher,
        rounds: RoundArchive,
        low: int,
        guard: Callable[[], None],
        *,
        is_held: Callable[[Published], bool] = lambda _: True,
    ) -> None:
        self._labels = labels
        self._publisher = publisher
        self._rounds = rounds
        self._low = low
        self._guard = guard
        self._is_held = is_held

    def run(self) -> tuple[RoundReport, Published] | None:
        """Top up, if it is time; None where it is not, or nothing is left to publish.

        Raises:
            StaleRound: from the guard.
            LabelStudioError: the old order still stands.
            StorageError: the last round cannot be read.
        """
        published = self._rounds.published()
        if published is None:
            return None
        annotations = self._labels.annotations()
        pool, barred = self._labels.unlabelled()
        report = self._rounds.report(published.round_id)
        ranking = topped_up(report, annotations, pool)
        skipped = {annotation.image.id for annotation in annotations}
        fresh = [image_id for image_id in ranking.image_ids if image_id not in skipped]
        served = set(published.image_ids)
        left = sum(image_id in served for image_id in fresh)
        # The same image has been answered in another task, say.
        needless = len(served & {one.image_id for one in barred} - {one.image.id for one in annotations})
        enough = (left >= self._low or left == len(fresh)) and not needless
        if not fresh or (enough and self._is_held(published)):
            return None
        log.info("topping up", left=left, low=self._low, waiting=len(fresh), needless=needless, lost=enough)
        more = report.model_copy(update={"ranking": ranking})
        return report, self._publisher.publish(more, self._guard)


class TurnsPublisher:
    """A publisher that two threads may call: one publishes at a time. Satisfies ``engine.ports.Publisher``."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._turn = threading.RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else publishes: what is read in here about what is served stays true."""
        with self._turn:
            yield

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> Published:
        with self._turn:
            return self._publisher.publish(report, guard)


@contextmanager
def beside(check: Callable[[], object], every_s: float = WATCH_INTERVAL_S) -> Iterator[None]:
    """Call ``check`` now and then while the block runs, in a thread; what it refuses is logged and disturbs nothing.

    What the thread logs names the project and the round of the block.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            try:
                check()
            except BackendError as error:
                log.warning("not topped up for now", error=str(error), kind=type(error).__name__)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), name="top-up", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
