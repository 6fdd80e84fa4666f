"""Readers label, rounds run, and the view shows both, until enough rankings came from a trained network."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ml_backend.demo.fidelity import Served, compare
from ml_backend.demo.view import View
from ml_backend.errors import RoundError
from ml_backend.processes.process import Service
from ml_backend.queueing import Progress, QueueStatus
from ml_backend.records import AFTER_A_ROUND, STAGES, Published, RoundReport

__all__ = ["Room", "RoundBars", "Rounds", "label_until", "show_labels"]

PAUSE_S = 0.2


class Room(Protocol):
    """What is asked of the readers."""

    @property
    def served(self) -> Sequence[Served]: ...

    def turn(self) -> bool: ...

    def new_ranking(self) -> None: ...


class Rounds(Protocol):
    """What is asked about the rounds."""

    @property
    def rounds(self) -> Sequence[tuple[RoundReport, Published]]: ...

    @property
    def trained(self) -> int: ...

    @property
    def rankings(self) -> Mapping[str, Sequence[str]]: ...

    def is_newer(self, progress: Progress) -> bool: ...

    def poll(self) -> QueueStatus: ...


class _Stage(NamedTuple):
    name: str
    total: int


class RoundBars:
    """The running round's stages as bars, and a line for every published one."""

    def __init__(self, view: View, announced: int = 0) -> None:
        self._view = view
        self._stage: _Stage | None = None
        self._announced = announced

    def show(self, follower: Rounds, status: QueueStatus) -> bool:
        """Draw what is known now; True when a ranking has come out since the last time."""
        news = self._announced < len(follower.rounds)
        if news:
            self._end_stage()
            self._view.clear()
        for index in range(self._announced, len(follower.rounds)):
            self._view.say(_announcement(follower, index))
        self._announced = len(follower.rounds)
        self._draw(follower, status.progress)
        return news

    def _draw(self, follower: Rounds, progress: Progress | None) -> None:
        # A round whose ranking is out already only tidies up, or fills the caches of the first training.
        if progress is None or not (follower.is_newer(progress) or progress.stage in AFTER_A_ROUND):
            self._end_stage()
            return
        name = STAGES.get(progress.stage, progress.stage)
        if self._stage is not None and self._stage.name != name:
            self._end_stage()
        self._stage = _Stage(name, progress.total)
        self._view.step(name, progress.done, progress.total)

    def _end_stage(self) -> None:
        # The last report of a stage is seldom its end: training stops early, and we look now and then.
        if self._stage is not None:
            self._view.step(self._stage.name, self._stage.total, self._stage.total)
        self._stage = None


def label_until(
    rounds: int,
    *,
    retrain_after: int,
    room: Room,
    follower: Rounds,
    services: list[Service],
    view: View,
) -> None:
    """Let the readers label until so many rankings of a trained network are published and partly served.

    While a round runs the readers go on, by half of what starts the next one at most: that they work under the old
    order meanwhile is the point, but every ranking shall be served from.

    Raises:
        RoundError: a round failed or hangs, or the images ran out before the rounds were through.
        ServiceError: a service has ended.
    """
    bars = RoundBars(view)
    while True:
        status = follower.poll()
        for service in services:
            service.check()
        if bars.show(follower, status):
            # Readers keep the image on the screen: the one exception to the new order.
            room.new_ranking()
        # One short of the next round: the last ranking has been served from, and no round is under way at the end.
        if follower.trained >= rounds and not status.running and status.changes >= retrain_after - 1:
            return
        if not follower.rounds or _shall_wait(status, retrain_after):
            time.sleep(PAUSE_S)
            continue
        if not room.turn():
            raise RoundError(
                f"the images ran out after {follower.trained} of {rounds} rounds: give more images or fewer ROUNDS"
            )
        show_labels(view, status.changes, retrain_after)
        _show_readers(view, room, follower)


def _shall_wait(status: QueueStatus, retrain_after: int) -> bool:
    ahead = retrain_after // 2
    # Changes are counted anew when the worker takes a round.
    return status.changes >= (ahead if status.running else retrain_after + ahead)


def _announcement(follower: Rounds, index: int) -> str:
    report, published = follower.rounds[index]
    labels = ", ".join(f"{count} {name}" for name, count in report.labels_per_class.items())
    if report.fit is not None:
        how = f"validation accuracy {report.fit.validation_accuracy:.2f}"
    elif report.base is not None:
        how = f"ranked anew by {report.ranking.strategy}, with the network of {report.base}"
    else:
        how = "random order, since a class has too few labels for a network"
    images = len(published.image_ids)
    return f"round {index + 1} published: labels {labels}; {how}; the next {images} images are in order"


def show_labels(view: View, changes: int, retrain_after: int) -> None:
    """Draw how many labels of those that start the next round are given; not into a log, it changes all the time."""
    if view.is_live:
        view.step("labels until the next round", min(changes, retrain_after), retrain_after)


def _show_readers(view: View, room: Room, follower: Rounds) -> None:
    results = compare(room.served, follower.rankings).values()
    in_order, served = sum(r.in_order for r in results), sum(r.served for r in results)
    if view.is_live:
        view.step("served in exactly the chosen order", in_order, served)
