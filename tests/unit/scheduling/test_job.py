"""How a round ends, told to a queue in memory."""

import sys
from types import ModuleType
from typing import Any

import pytest

from ml_backend.errors import EmptyPool, StaleRound, StorageError, UnusablePool, WeightsError
from ml_backend.scheduling import Claim, LastError, Progress, QueueStatus, RoundQueue
from ml_backend.scheduling import worker as job
from ml_backend.schemas import ProjectKey, PublishedRanking, RoundTrigger
from tests.fakes import NOON, make_report

PROJECT = ProjectKey(id=2, created=1795384774)
PUBLISHED = PublishedRanking(version="al-r000001", round_id="r000001", image_ids=("2",), seconds={}, published_at=NOON)


class MemoryQueue(RoundQueue):
    """Grants a claim of generation 1 under a new token each time, and remembers how it ended."""

    def __init__(self) -> None:
        self.ends: list[LastError | None] = []
        self.reason: RoundTrigger = "labels"
        self.runs = 0

    def claim(self, project: ProjectKey, generation: int) -> Claim | None:
        self.runs += 1
        token = f"token-{self.runs}"
        return Claim(self, project, generation, token, changes=3, reason=self.reason) if generation == 1 else None

    def newest_token(self, project: ProjectKey) -> str | None:
        return None  # as in an emptied Redis

    def status(self, project: ProjectKey) -> QueueStatus:
        return QueueStatus()

    def start_training(self, project: ProjectKey, token: str, reason: RoundTrigger) -> int:
        self.reason = reason
        return 7

    def settle(self, project: ProjectKey, token: str, error: LastError | None, *, retry: bool = True) -> None:
        self.ends.append(error)

    def write_progress(self, project: ProjectKey, progress: Progress) -> None:
        pass


@pytest.fixture
def queue(monkeypatch, tmp_path):
    monkeypatch.setenv("AL_DATA_DIR", str(tmp_path))
    found = MemoryQueue()
    monkeypatch.setattr(RoundQueue, "from_settings", lambda _settings, **_options: found)
    return found


@pytest.fixture
def round_does(monkeypatch):
    """Put a round in the place of the real one, which needs torch and Label Studio."""

    def replace(run):
        assembly: Any = ModuleType("ml_backend.rounds.live")
        assembly.run_live_round = run
        monkeypatch.setitem(sys.modules, "ml_backend.rounds.live", assembly)

    return replace


class TestRun:
    def test_a_published_round(self, queue, round_does):
        seen = []

        def run(settings, key, reason, progress, guard, **_more):
            guard()
            progress("train", 1, 2)
            seen.append((key, reason))
            return make_report(), PUBLISHED

        round_does(run)

        assert job.run("2.1795384774", 1, "labels") == {
            "outcome": "published",
            "round": "r000001",
            "version": "al-r000001",
        }
        assert seen == [(PROJECT, "labels")]
        assert queue.ends == [None]

    @pytest.mark.parametrize(("address", "logged"), [("http://mlflow", 1), ("", 0)])
    def test_a_published_round_is_logged_where_mlflow_is_named(self, queue, round_does, monkeypatch, address, logged):
        seen, tracking = [], ModuleType("ml_backend.rounds.tracking")
        vars(tracking)["track_round"] = lambda _settings, *what: seen.append((*what, list(queue.ends)))
        monkeypatch.setitem(sys.modules, "ml_backend.rounds.tracking", tracking)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        report = make_report()
        round_does(lambda *_args, **_kwargs: (report, PUBLISHED))

        job.run("2.1795384774", 1, "labels")

        # With the claim settled: nobody waits for MLflow.
        assert seen == [(PROJECT, report, job._stopping, [None])] * logged

    @pytest.mark.parametrize("error", [StorageError("damaged"), StaleRound("another round waits")])
    def test_pictures_are_drawn_though_there_are_no_previews(self, queue, round_does, monkeypatch, error):
        drawn = []

        def fails(*_: object) -> None:
            raise error

        monkeypatch.setattr(job, "keep_previews", fails)
        monkeypatch.setattr(job, "draw_thumbnails", lambda *_: drawn.append("pictures"))
        round_does(lambda *_args, **_kwargs: (make_report(), PUBLISHED))

        assert job.run("2.1795384774", 1, "labels")["outcome"] == "published"
        assert drawn == ["pictures"]

    @pytest.mark.parametrize("kind", [WeightsError, UnusablePool])
    def test_a_refused_round_is_told_and_does_not_raise(self, queue, round_does, kind):
        def run(*_args, **_kwargs):
            raise kind("it cannot go on")

        round_does(run)

        assert job.run("2.1795384774", 1, "labels") == {"outcome": "failed", "error": "it cannot go on"}
        assert [(error.kind, error.message) for error in queue.ends] == [(kind.__name__, "it cannot go on")]

    def test_an_image_that_is_missing_because_all_are_labelled_is_no_failure(self, queue, round_does, capsys):
        def run(*_args, **_kwargs):
            raise EmptyPool("all are labelled")

        round_does(run)

        assert job.run("2.1795384774", 1, "labels") == {"outcome": "nothing to rank"}
        assert [error.kind for error in queue.ends] == ["EmptyPool"]
        assert '"level": "error"' not in capsys.readouterr().out

    def test_a_bug_is_told_and_raised(self, queue, round_does):
        def run(*_args, **_kwargs):
            raise ZeroDivisionError("a bug")

        round_does(run)

        with pytest.raises(ZeroDivisionError):
            job.run("2.1795384774", 1, "labels")
        assert [(error.kind, error.message) for error in queue.ends] == [("ZeroDivisionError", "a bug")]

    def test_what_came_while_it_waited_counts(self, queue, round_does):
        """A top-up was asked for, and then labels earned a round."""
        seen = []

        def run(settings, key, reason, progress, guard, **_more):
            seen.append(reason)
            return make_report(), PUBLISHED

        round_does(run)
        job.run("2.1795384774", 1, "topup")

        assert seen == ["labels"]

    def test_a_re_ranking_that_learns_after_all_is_known_as_such(self, queue, round_does):
        queue.reason = "rerank"
        seen = []

        def run(settings, key, reason, progress, guard, *, learn, **_more):
            seen.extend([reason, learn()])
            return make_report(), PUBLISHED

        round_does(run)
        job.run("2.1795384774", 1, "rerank")

        assert seen == ["rerank", "forced"]
        assert queue.reason == "forced"

    def test_a_run_that_wakes_up_late_finds_the_newer_one_on_disk(self, queue, round_does):
        """Redis was emptied and knows of neither."""

        def newer(settings, key, reason, progress, guard, **_more):
            guard()
            return make_report(), PUBLISHED

        def late(settings, key, reason, progress, guard, **_more):
            guard()
            round_does(newer)
            job.run("2.1795384774", 1, "labels")
            guard()
            raise AssertionError("must not come so far")

        round_does(late)

        assert job.run("2.1795384774", 1, "labels")["outcome"] == "failed"
        assert [error and error.kind for error in queue.ends] == [None, "StaleRound"]

    def test_a_data_folder_that_refuses_fails_the_round_and_nothing_else(self, queue, round_does, tmp_path):
        (tmp_path / "projects").write_text("a file where a folder should be")

        assert job.run("2.1795384774", 1, "labels")["outcome"] == "failed"
        assert [error and error.kind for error in queue.ends] == ["StorageError"]

    def test_a_round_that_was_overtaken_does_nothing(self, queue, round_does):
        def run(*_args, **_kwargs):
            raise AssertionError("must not run")

        round_does(run)

        assert job.run("2.1795384774", 2, "labels") == {"outcome": "superseded"}
        assert queue.ends == []
