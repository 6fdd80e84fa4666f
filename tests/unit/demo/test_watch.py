"""Following rounds from outside: a real store, a queue and a Label Studio that say what the test wants."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ml_backend.demo.view import STALL_S, RoundFollower
from ml_backend.errors import RoundError
from ml_backend.scheduling import LastError, Progress, QueueStatus
from ml_backend.schemas import ProjectKey, PublishedRanking, Ranking, RoundReport, RoundRequest
from ml_backend.storage import RoundStore

KEY = ProjectKey(id=3, created=1_700_000_000)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class QueueThatSays:
    """A queue whose status the test sets."""

    def __init__(self) -> None:
        self.says = QueueStatus()

    def status(self, project: ProjectKey) -> QueueStatus:
        assert project == KEY
        return self.says


class LabelStudioThatServes:
    """A Label Studio that serves by the version that the test sets."""

    def __init__(self) -> None:
        self.version: str | None = None

    def project(self, project_id: int) -> dict[str, Any]:
        return {"id": project_id, "model_version": self.version}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A follower with everything around it."""

    def __init__(self, tmp_path) -> None:
        self.store, self.queue = RoundStore(tmp_path), QueueThatSays()
        self.label_studio, self.clock = LabelStudioThatServes(), Clock()
        self.follower = RoundFollower(self.label_studio, self.store, self.queue, KEY, clock=self.clock)

    def publish(self, round_id: str, started_at: datetime, **seconds: float) -> None:
        project = self.store.project(KEY)
        if round_id not in project.round_ids():
            project.save(report(round_id, started_at), None, None)
        published = PublishedRanking(
            version=f"al-{round_id}", round_id=round_id, image_ids=("2", "1"), seconds=seconds, published_at=NOON
        )
        project.set_published(published)


@pytest.fixture
def scene(tmp_path) -> Scene:
    return Scene(tmp_path)


def report(round_id: str, started_at: datetime) -> RoundReport:
    request = RoundRequest(
        project=KEY,
        round_id=round_id,
        reason="labels",
        classes=("normal", "severe"),
        strategy="entropy",
        batch_size=1,
        min_labels_per_class=2,
        validation_share=0.2,
        seed=0,
    )
    ranking = Ranking(strategy="entropy", image_ids=("2", "1"), scores=(0.9, 0.1), batch_size=1)
    return RoundReport(
        request=request,
        labels_per_class={"normal": 1, "severe": 0},
        fit=None,
        ranking=ranking,
        seconds={"labels": 0.1},
        started_at=started_at,
    )


def progress(started_at: datetime, done: int = 0) -> Progress:
    at = started_at.timestamp()
    return Progress(generation=1, stage="train", done=done, total=9, started=at, stage_started=at, updated=at)


class TestRoundFollower:
    def test_sees_every_published_round_once(self, scene):
        assert scene.follower.poll() == QueueStatus()
        scene.publish("r000001", NOON)
        scene.follower.poll()
        scene.publish("r000001", NOON, delete=3.0)
        scene.follower.poll()
        scene.publish("r000002", NOON)
        scene.follower.poll()

        assert scene.follower.rankings == {"al-r000001": ("2", "1"), "al-r000002": ("2", "1")}
        assert scene.follower.rounds[0][1].seconds == {"delete": 3.0}
        assert scene.follower.trained == 0

    def test_notes_when_a_version_was_first_served(self, scene):
        assert scene.follower.version() == ""
        scene.label_studio.version = "al-r000001"
        assert scene.follower.version() == "al-r000001"
        first = scene.follower.visible_at["al-r000001"]
        scene.follower.version()

        assert scene.follower.visible_at["al-r000001"] == first

    def test_a_failed_round_is_told_in_words(self, scene):
        scene.queue.says = QueueStatus(last_error=LastError(kind="WeightsError", message="no such file", at=1.0))

        with pytest.raises(RoundError, match=r"a round failed: no such file \(WeightsError\)"):
            scene.follower.poll()

    def test_remembers_when_the_worker_took_the_round(self, scene):
        """The process imports for 4 s before the round begins."""
        taken = NOON - timedelta(seconds=4)
        scene.queue.says = QueueStatus(running="labels", progress=progress(taken))
        scene.follower.poll()
        scene.publish("r000001", NOON)
        scene.queue.says = QueueStatus()
        scene.follower.poll()

        assert scene.follower.claimed_at == {"al-r000001": taken}

    def test_does_not_take_the_next_rounds_claim_for_this_one(self, scene):
        scene.publish("r000001", NOON)
        scene.queue.says = QueueStatus(running="labels", progress=progress(NOON + timedelta(seconds=9)))
        scene.follower.poll()

        assert scene.follower.claimed_at == {"al-r000001": NOON}

    @pytest.mark.parametrize(("seconds", "newer"), [(-4, False), (4, True)])
    def test_tells_the_running_round_from_the_published_one(self, scene, seconds, newer):
        scene.publish("r000001", NOON)
        scene.follower.poll()

        assert scene.follower.is_newer(progress(NOON + timedelta(seconds=seconds))) is newer

    def test_what_does_not_move_is_an_error(self, scene):
        scene.queue.says = QueueStatus(waiting="labels", changes=20)
        scene.follower.poll()
        scene.clock.now = STALL_S + 1

        with pytest.raises(RoundError, match=r"no round has moved for 300 s \(running: None, waiting: labels"):
            scene.follower.poll()

    def test_any_progress_is_a_move(self, scene):
        for done in range(4):
            scene.queue.says = QueueStatus(running="labels", progress=progress(NOON, done))
            scene.follower.poll()
            scene.clock.now += STALL_S - 1

    def test_patience_waits_for_a_visitor(self, scene):
        scene.follower.poll(patient=True)
        scene.clock.now = STALL_S * 9

        assert scene.follower.poll(patient=True) == QueueStatus()
