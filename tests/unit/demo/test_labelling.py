"""How long readers label, when they wait, and what the view is told."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from rich.console import Console

from ml_backend.demo import project as labelling
from ml_backend.demo.order_check import Served
from ml_backend.demo.project import RoundBars, label_until
from ml_backend.demo.view import PlainView
from ml_backend.errors import RoundError
from ml_backend.scheduling import Progress, QueueStatus
from ml_backend.schemas import ProjectKey, PublishedRanking, Ranking, RoundReport, RoundRequest

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PUBLISHED = (
    RoundReport(
        request=RoundRequest(
            project=ProjectKey(id=1, created=0),
            round_id="r000001",
            reason="labels",
            classes=("normal", "severe"),
            strategy="entropy",
            batch_size=1,
            min_labels_per_class=2,
            validation_share=0.2,
            seed=0,
        ),
        labels_per_class={"normal": 4, "severe": 1},
        fit=None,
        ranking=Ranking(strategy="random", image_ids=("7", "3"), scores=(0.2, 0.1), batch_size=1),
        seconds={},
        started_at=NOON,
    ),
    PublishedRanking(version="v1", round_id="r000001", image_ids=("7", "3"), seconds={}, published_at=NOON),
)


class CountingRoom:
    """Readers who count their turns; every turn is a label."""

    def __init__(self, images: int) -> None:
        self.left = images
        self.turns = 0
        self.new_rankings = 0
        self.served: list[Served] = []

    def turn(self) -> bool:
        self.turns += 1
        self.left -= 1
        return self.left >= 0

    def new_ranking(self) -> None:
        self.new_rankings += 1


class ScriptedFollower:
    """Rounds that come out when the room has given so many labels; each runs for three polls."""

    def __init__(self, room: CountingRoom, retrain_after: int) -> None:
        self._room = room
        self._retrain_after = retrain_after
        self._claimed = 0
        self._polls_left = 3
        self._running = True
        self.rounds: list[tuple[RoundReport, PublishedRanking]] = []
        self.changes_while_running: list[int] = []
        self.rankings: dict[str, Sequence[str]] = {}

    @property
    def trained(self) -> int:
        return max(0, len(self.rounds) - 1)

    def is_newer(self, progress: Progress) -> bool:
        return True

    def poll(self) -> QueueStatus:
        changes = self._room.turns - self._claimed
        if self._running:
            self.changes_while_running.append(changes)
            self._polls_left -= 1
            if self._polls_left == 0:
                self._running = False
                self.rounds.append(PUBLISHED)
        elif changes >= self._retrain_after:
            self._running, self._polls_left, self._claimed = True, 30, self._room.turns
            changes = 0
        return QueueStatus(changes=changes, running="labels" if self._running else None)


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def view(monkeypatch, out) -> PlainView:
    monkeypatch.setattr(labelling, "PAUSE_S", 0.0)
    return PlainView(Console(file=out, width=200))


class TestLabelUntil:
    def run(self, view: PlainView, images: int = 1000) -> tuple[CountingRoom, ScriptedFollower]:
        room = CountingRoom(images)
        follower = ScriptedFollower(room, retrain_after=10)
        label_until(2, retrain_after=10, room=room, follower=follower, services=[], view=view)
        return room, follower

    def test_stops_one_label_short_of_the_next_round(self, view):
        """Ten labels start the first trained round, ten the second (five while the first ran), and nine more."""
        room, follower = self.run(view)

        assert follower.trained == 2
        assert room.turns == 10 + 10 + 9

    def test_readers_go_on_while_a_round_runs_but_not_for_ever(self, view):
        _, follower = self.run(view)

        assert max(follower.changes_while_running) == 5

    def test_nobody_labels_before_the_first_ranking(self, view):
        _, follower = self.run(view)

        assert follower.changes_while_running[:3] == [0, 0, 0]

    def test_every_new_ranking_meets_readers_with_an_image_on_the_screen(self, view):
        room, _ = self.run(view)

        assert room.new_rankings == 3

    def test_too_few_images_are_an_error_with_the_way_out(self, view):
        with pytest.raises(RoundError, match="ran out after 0 of 2 rounds: give more images or fewer ROUNDS"):
            self.run(view, images=9)


class TestRoundBars:
    def test_a_stage_is_ended_when_the_next_one_begins(self, view, out):
        bars = RoundBars(view)
        follower = ScriptedFollower(CountingRoom(1), 10)
        for stage, done in (("train", 0), ("train", 3), ("score", 0)):
            progress = Progress(generation=1, stage=stage, done=done, total=9, started=0, stage_started=0, updated=0)
            bars.show(follower, QueueStatus(running="labels", progress=progress))

        lines = out.getvalue().splitlines()
        assert [line.partition(" (")[0] for line in lines] == [
            "trains the network ...",
            "trains the network: done",
            "looks at the images that have no label ...",
        ]

    @pytest.mark.parametrize(
        ("stage", "shown"),
        [
            ("features", ["prepares the images for the first training; the order is served already ..."]),
            ("publish", []),
        ],
    )
    def test_of_a_published_round_only_the_caches_are_shown(self, view, out, monkeypatch, stage, shown):
        """The readers have their order already; features are what the first training would wait for."""
        follower = ScriptedFollower(CountingRoom(1), 10)
        monkeypatch.setattr(follower, "is_newer", lambda _progress: False)
        progress = Progress(generation=1, stage=stage, done=0, total=9, started=0, stage_started=0, updated=0)

        RoundBars(view).show(follower, QueueStatus(running="connected", progress=progress))

        assert out.getvalue().splitlines() == shown

    def test_a_ranking_is_told_before_what_its_round_does_next(self, view, out):
        bars = RoundBars(view)
        follower = ScriptedFollower(CountingRoom(1), 10)
        for stage, rounds in (("publish", []), ("features", [PUBLISHED])):
            follower.rounds = rounds
            progress = Progress(generation=1, stage=stage, done=0, total=9, started=0, stage_started=0, updated=0)
            bars.show(follower, QueueStatus(running="connected", progress=progress))

        lines = [line.partition(" (")[0].partition(":")[0] for line in out.getvalue().splitlines()]
        assert lines == [
            "hands the new order to Label Studio ...",
            "hands the new order to Label Studio",
            "round 1 published",
            "prepares the images for the first training; the order is served already ...",
        ]

    def test_tells_every_ranking_once(self, view, out):
        bars = RoundBars(view, announced=1)
        follower = ScriptedFollower(CountingRoom(1), 10)
        follower.rounds = [PUBLISHED, PUBLISHED]

        assert bars.show(follower, QueueStatus()) is True
        assert bars.show(follower, QueueStatus()) is False
        assert out.getvalue() == (
            "round 2 published: labels 4 normal, 1 severe; random order, since a class has too few labels for a "
            "network; the next 2 images are in order\n"
        )
