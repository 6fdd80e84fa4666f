"""Rounds followed from outside, and how long readers label: a real store, a scripted queue and Label Studio."""

import io
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from rich.console import Console

from ml_backend.demo import project as demo_project
from ml_backend.demo.project import STALL_S, RoundFollower, RoundProgress, label_until
from ml_backend.demo.readers import ReadingRoom, ServedImage
from ml_backend.demo.summary import View
from ml_backend.errors import RoundError
from ml_backend.scheduling import LastError, Progress, QueueStatus
from ml_backend.schemas import PublishedRanking, RoundReport
from ml_backend.storage import RoundStore
from tests.fakes import NOON, make_report, make_request

KEY = make_request().project


def published(round_id: str = "r000001", **seconds: float) -> PublishedRanking:
    return PublishedRanking(
        version=f"al-{round_id}", round_id=round_id, image_ids=("2", "1"), seconds=seconds, published_at=NOON
    )


def progress(started_at: datetime = NOON, stage: str = "train", done: int = 0) -> Progress:
    at = started_at.timestamp()
    return Progress(generation=1, stage=stage, done=done, total=9, started=at, stage_started=at, updated=at)


class ScriptedServices:
    """A queue, a Label Studio and a clock that answer what the test sets."""

    def __init__(self) -> None:
        self.state = QueueStatus()
        self.model_version: str | None = None
        self.now = 0.0

    def status(self, _key: object) -> QueueStatus:
        return self.state

    def project(self, project_id: int) -> dict[str, Any]:
        return {"id": project_id, "model_version": self.model_version}


@pytest.fixture
def services() -> ScriptedServices:
    return ScriptedServices()


@pytest.fixture
def store(tmp_path) -> RoundStore:
    return RoundStore(tmp_path)


@pytest.fixture
def follower(services, store) -> RoundFollower:
    return RoundFollower(services, store, services, KEY, clock=lambda: services.now)


def publish(store: RoundStore, round_id: str, **seconds: float) -> None:
    project = store.project(KEY)
    if round_id not in project.round_ids():
        project.save(make_report(round_id), None, None)
    project.set_published(published(round_id, **seconds))


class TestRoundFollower:
    def test_sees_every_published_round_once(self, follower, store):
        assert follower.poll() == QueueStatus()
        for round_id, seconds in (("r000001", {}), ("r000001", {"delete": 3.0}), ("r000002", {})):
            publish(store, round_id, **seconds)
            follower.poll()

        assert follower.rankings == {"al-r000001": ("2", "1"), "al-r000002": ("2", "1")}
        assert follower.rounds[0][1].seconds == {"delete": 3.0}
        assert follower.trained == 0

    def test_notes_when_a_version_was_first_served(self, follower, services):
        assert follower.version() == ""
        services.model_version = "al-r000001"
        assert follower.version() == "al-r000001"
        first = follower.visible_at["al-r000001"]
        follower.version()

        assert follower.visible_at["al-r000001"] == first

    def test_a_failed_round_is_an_error(self, follower, services):
        services.state = QueueStatus(last_error=LastError(kind="WeightsError", message="no such file", at=1.0))

        with pytest.raises(RoundError, match=r"a round failed: no such file \(WeightsError\)"):
            follower.poll()

    def test_notes_when_the_worker_took_the_round(self, follower, services, store):
        """The process imports for 4 s before the round begins."""
        claimed = NOON - timedelta(seconds=4)
        services.state = QueueStatus(running="labels", progress=progress(claimed))
        follower.poll()
        publish(store, "r000001")
        services.state = QueueStatus()
        follower.poll()

        assert follower.claimed_at == {"al-r000001": claimed}

    def test_does_not_take_the_next_rounds_claim_for_this_one(self, follower, services, store):
        publish(store, "r000001")
        services.state = QueueStatus(running="labels", progress=progress(NOON + timedelta(seconds=9)))
        follower.poll()

        assert follower.claimed_at == {"al-r000001": NOON}

    @pytest.mark.parametrize(("seconds", "newer"), [(-4, False), (4, True)])
    def test_tells_the_running_round_from_the_published_one(self, follower, store, seconds, newer):
        publish(store, "r000001")
        follower.poll()

        assert follower.is_newer(progress(NOON + timedelta(seconds=seconds))) is newer

    def test_five_minutes_without_progress_are_an_error_unless_patient(self, follower, services):
        services.state = QueueStatus(waiting="labels", changes=20)
        follower.poll()
        services.now = STALL_S + 1

        assert follower.poll(patient=True) == services.state
        with pytest.raises(RoundError, match=r"no round has moved for 300 s \(running: None, waiting: labels"):
            follower.poll()

    def test_any_progress_counts(self, follower, services):
        for done in range(4):
            services.state = QueueStatus(running="labels", progress=progress(done=done))
            follower.poll()
            services.now += STALL_S - 1


class CountingRoom(ReadingRoom):
    """Readers whose every turn is a label."""

    def __init__(self, images: int) -> None:
        self.left = images
        self.turns = 0
        self.new_rankings = 0
        self.served: list[ServedImage] = []

    def turn(self) -> bool:
        self.turns += 1
        self.left -= 1
        return self.left >= 0

    def new_ranking(self) -> None:
        self.new_rankings += 1


class ScriptedFollower(RoundFollower):
    """Publishes a round for every ten labels; the first runs for three polls, the others for thirty."""

    def __init__(self, room: CountingRoom) -> None:
        self._room = room
        self._claimed = 0
        self._polls_left = 3
        self._running = True
        self.rounds: list[tuple[RoundReport, PublishedRanking]] = []
        self.changes_while_running: list[int] = []

    @property
    def trained(self) -> int:
        return max(0, len(self.rounds) - 1)

    def poll(self, *, patient: bool = False) -> QueueStatus:
        changes = self._room.turns - self._claimed
        if self._running:
            self.changes_while_running.append(changes)
            self._polls_left -= 1
            if self._polls_left == 0:
                self._running = False
                self.rounds.append((make_report(), published()))
        elif changes >= 10:
            self._running, self._polls_left, self._claimed = True, 30, self._room.turns
            changes = 0
        return QueueStatus(changes=changes, running="labels" if self._running else None)


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def view(monkeypatch, out) -> View:
    monkeypatch.setattr(demo_project, "PAUSE_S", 0.0)
    return View(Console(file=out, width=200))


class TestLabelUntil:
    def run(self, view: View, images: int = 1000) -> tuple[CountingRoom, ScriptedFollower]:
        room = CountingRoom(images)
        follower = ScriptedFollower(room)
        label_until(2, retrain_after=10, room=room, follower=follower, services=[], view=view)
        return room, follower

    def test_hand_computed(self, view):
        """Ten labels start the first trained round, ten the second (five while the first ran), and nine more.

        Nobody labels before the first ranking. Each of the three rankings meets readers with an image on the screen.
        """
        room, follower = self.run(view)

        assert follower.trained == 2
        assert room.turns == 10 + 10 + 9
        assert max(follower.changes_while_running) == 5
        assert follower.changes_while_running[:3] == [0, 0, 0]
        assert room.new_rankings == 3

    def test_too_few_images_are_an_error_with_the_way_out(self, view):
        with pytest.raises(RoundError, match="ran out after 0 of 2 rounds: give more images or fewer ROUNDS"):
            self.run(view, images=9)


class TestRoundProgress:
    @pytest.fixture
    def follower(self, follower) -> RoundFollower:
        follower.rounds = []
        return cast("RoundFollower", follower)

    @staticmethod
    def lines(out: io.StringIO) -> list[str]:
        return [line.partition(" (")[0].partition(":")[0] for line in out.getvalue().splitlines()]

    def test_a_stage_ends_when_the_next_one_begins(self, view, out, follower):
        bars = RoundProgress(view)
        for stage, done in (("train", 0), ("train", 3), ("score", 0)):
            bars.show(follower, QueueStatus(running="labels", progress=progress(stage=stage, done=done)))

        assert self.lines(out) == [
            "trains the network ...",
            "trains the network",
            "scores the images without a label ...",
        ]

    @pytest.mark.parametrize(("stage", "shown"), [("features", 1), ("publish", 0)])
    def test_of_a_published_round_only_the_preparation_of_the_first_training_is_shown(
        self, view, out, follower, stage, shown
    ):
        follower.rounds = [(make_report(), published())]

        status = QueueStatus(running="connected", progress=progress(NOON - timedelta(seconds=4), stage))
        RoundProgress(view, announced=1).show(follower, status)

        assert len(out.getvalue().splitlines()) == shown

    def test_a_ranking_is_announced_before_the_next_stage_of_its_round(self, view, out, follower):
        bars = RoundProgress(view)
        for stage, rounds in (("publish", []), ("features", [(make_report(), published())])):
            follower.rounds = rounds
            bars.show(follower, QueueStatus(running="connected", progress=progress(stage=stage)))

        publishing, published_now, announced, features = self.lines(out)
        assert publishing == f"{published_now} ..."
        assert announced == "round 1 published"
        assert "features of the images" in features

    def test_announces_every_ranking_once(self, view, out, follower):
        bars = RoundProgress(view, announced=1)
        follower.rounds = [(make_report(), published())] * 2

        assert bars.show(follower, QueueStatus()) is True
        assert bars.show(follower, QueueStatus()) is False
        assert out.getvalue().startswith("round 2 published: labels 0 normal, 0 moderate, 0 severe; random order")
