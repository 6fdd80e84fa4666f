"""Readers label, rounds run, and the view shows both, until enough rankings came from a trained network."""

import time
from typing import NamedTuple

from ml_backend.demo.fidelity import compare
from ml_backend.demo.process import Service
from ml_backend.demo.readers import ReadingRoom
from ml_backend.demo.view import View
from ml_backend.demo.watch import RoundFollower
from ml_backend.errors import RoundError
from ml_backend.queueing import QueueStatus

__all__ = ["StageBars", "label_until"]

PAUSE_S = 0.2
STAGES = {
    "labels": "reading the labels",
    "features": "computing features",
    "train": "training the network",
    "score": "asking the network about the pool",
    "rank": "ranking",
    "save": "saving",
    "publish": "publishing the ranking",
}


class Stage(NamedTuple):
    """What a bar stands for."""

    name: str
    total: int


def label_until(
    rounds: int,
    *,
    retrain_after: int,
    room: ReadingRoom,
    follower: RoundFollower,
    services: list[Service],
    view: View,
) -> None:
    """Let the readers label until so many rankings of a trained network are published and partly served.

    While a round runs the readers go on, by half of what starts a round at most: that they work under the old order
    meanwhile is the point, but the pool is small.

    Raises:
        RoundError: a round failed or hangs, or the images ran out before the rounds were through.
        ServiceError: a service has ended.
    """
    shown = 0
    stages = StageBars(view)
    while True:
        status = follower.poll()
        for service in services:
            service.check()
        stages.show(follower, status)
        while shown < len(follower.rounds):
            _announce(view, follower, shown)
            shown += 1
            # Whoever has an image on the screen keeps it: the one exception to the new order.
            room.reload()
        fresh = len(room.submissions) - follower.labels_used
        # One short of the next round: every ranking has been served from, and none is under way at the end.
        if follower.trained >= rounds and status.changes >= retrain_after - 1:
            return
        if not follower.rounds or fresh >= retrain_after + retrain_after // 2:
            time.sleep(PAUSE_S)
            continue
        if not room.turn():
            raise RoundError(
                f"the images ran out after {follower.trained} of {rounds} rounds: give more images or fewer ROUNDS"
            )
        _show_readers(view, room, follower, fresh, retrain_after)


class StageBars:
    """A bar for each stage of the round that runs."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._running: Stage | None = None

    def show(self, follower: RoundFollower, status: QueueStatus) -> None:
        """Draw what the queue knows."""
        progress = status.progress
        # A round whose ranking is out already only tidies up.
        if progress is None or not follower.is_newer(progress):
            self._end()
            return
        name = STAGES.get(progress.stage, progress.stage)
        if self._running is not None and self._running.name != name:
            self._end()
        self._running = Stage(name, progress.total)
        self._view.step(name, progress.done, progress.total)

    def _end(self) -> None:
        # The last report of a stage is seldom its end: training stops early, and we look now and then.
        if self._running is not None:
            self._view.step(self._running.name, self._running.total, self._running.total)
        self._running = None


def _announce(view: View, follower: RoundFollower, index: int) -> None:
    report, published = follower.rounds[index]
    view.clear()
    labels = ", ".join(f"{count} {name}" for name, count in report.labels_per_class.items())
    how = (
        f"validation accuracy {report.fit.validation_accuracy:.2f}"
        if report.fit is not None
        else "random order: too few labels of a class for a network"
    )
    view.say(
        f"round {index + 1} published: labels {labels}; {how}; the next {len(published.image_ids)} images are in order"
    )


def _show_readers(view: View, room: ReadingRoom, follower: RoundFollower, fresh: int, retrain_after: int) -> None:
    results = compare(room.served, follower.rankings).values()
    in_order, served = sum(r.in_order for r in results), sum(r.served for r in results)
    if view.is_live:
        view.step("labels until the next round", min(fresh, retrain_after), retrain_after)
        view.step("served in exactly the chosen order", in_order, served)
