"""What no event told, found in Label Studio."""

import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest

from ml_backend.analytics.overview import Analysis
from ml_backend.config import Settings
from ml_backend.errors import LabelStudioError, QueueError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.publisher import Serving
from ml_backend.label_studio.sync import TaskStore, read_project
from ml_backend.scheduling import LastError, QueueStatus
from ml_backend.scheduling.reconciler import Reconciler
from ml_backend.schemas import Connection, Exclusion, HandPick, ImportedVersion, ProjectKey, PublishedRanking
from ml_backend.server.status import statuses
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore
from tests.fakes import NOON, make_report
from tests.unit.label_studio.studio import LABEL_CONFIG, FakeStudio
from tests.unit.server.memory import PROJECT
from tests.unit.server.test_events import save_ranked

EVERY_OTHER = tuple(map(str, range(3, 61)))  # than the two that are labelled


@pytest.fixture
def studio():
    """60 images, of which a round has learned from 2."""
    studio = FakeStudio(images=60)
    studio.annotate(1, "normal")
    studio.annotate(2, "severe")
    return studio


@pytest.fixture
def readings(store):
    store.connect(
        Connection(project=PROJECT, hostname="http://ls", label_config=LABEL_CONFIG, extra_params={"retrain_after": 3})
    )
    return ReadingStore(store.project(PROJECT).folder)


@pytest.fixture
def publish(store, readings, reconciler, studio):
    """The round that learned from what there is now is served, with some of its images."""

    def served(image_ids=EVERY_OTHER):
        readings.keep_learned("r000001", states_of(studio))
        published = PublishedRanking(
            version="v", round_id="r000001", image_ids=image_ids, seconds={}, published_at=NOON
        )
        store.project(PROJECT).set_published(published)
        studio.model_version, studio.predictions["v"] = "v", len(image_ids)

    return served


@pytest.fixture
def reconciler(store, queue, studio, readings):
    settings = Settings(data_dir=store.root, label_studio_url="http://ls", label_studio_api_key="k")
    return Reconciler(settings, store, queue, lambda *_: studio.client())


def states_of(studio: FakeStudio) -> dict[str, str]:
    return read_project(studio.client(), 2, None).cache.states()


def quarantine(store: RoundStore, numbers: Iterable[int]) -> None:
    listed = Quarantine(store.project(PROJECT).folder)
    with listed.settled():
        for number in numbers:
            listed.enter(str(number), "file", "damaged", "it is damaged", passing=False)


class TestReaderNames:
    def test_are_read_while_the_owner_asks_for_them(self, reconciler, store, readings, studio):
        studio.annotate(3, "normal", rater=2)
        studio.users = [
            {"id": 1, "first_name": "Ada", "last_name": "Ärztin", "username": "ada"},
            {"id": 2, "first_name": "", "last_name": "", "username": "bob", "email": "bob@example.com"},
            {"id": 3, "first_name": "Of", "last_name": "Another project", "username": "eve"},
        ]
        reconciler.look()
        assert readings.reader_names() == {}

        for asked, names in ((True, {"1": "Ada Ärztin", "2": "bob"}), (False, {})):
            before = store.connection(PROJECT.id)
            store.connect(before.model_copy(update={"extra_params": {"reader_names": asked}}))
            reconciler.look()
            assert readings.reader_names() == names

    def test_that_cannot_be_read_hinder_nothing_else(self, reconciler, store, readings, studio):
        readings.keep_reader_names({"1": "Ada Ärztin"})
        connection = store.connection(PROJECT.id)
        store.connect(connection.model_copy(update={"extra_params": {"reader_names": True}}))
        studio.users = {"detail": "of another form"}
        reconciler.look()

        assert readings.problem() is None
        assert readings.reader_names() == {"1": "Ada Ärztin"}


class TestCounting:
    def test_nothing_to_tell(self, reconciler, publish, queue, studio):
        publish()
        reconciler.look()
        studio.tick(600)
        reconciler.look()
        before = studio.requests

        studio.tick(600)
        reconciler.look()

        assert (queue.state.changes, queue.requests) == (0, [])
        assert studio.requests - before == 3

    def test_costs_the_same_in_a_large_project(self, reconciler, publish, studio, monkeypatch):
        """Neither requests nor steps of SQLite grow; no task is parsed."""
        publish()
        steps, connect = [0], sqlite3.connect

        def counted(*args: Any, **options: Any) -> sqlite3.Connection:
            database: sqlite3.Connection = connect(*args, **options)
            database.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 1)
            return database

        def cost() -> tuple[int, int]:
            for _ in range(2):  # the second finds what it has read, and writes nothing
                studio.tick(600)
                reconciler.look()
            with monkeypatch.context() as patched:
                patched.setattr("ml_backend.label_studio.sync.sqlite3.connect", counted)
                patched.setattr(TaskStore, "snapshot", lambda *_, **__: pytest.fail("parses the tasks"))
                steps[0], before = 0, studio.requests
                studio.tick(600)
                reconciler.look()
            return studio.requests - before, steps[0]

        small = cost()
        for _ in range(2000):
            studio.add_task()
        large = cost()

        assert small[0] == large[0] == 3
        assert 0 < large[1] < 1.1 * small[1]

    def test_re_reads_are_closed_once_they_are_off(self, reconciler, publish, queue, store):
        publish()
        store.project(PROJECT).set_asked_again([1])
        reconciler.look()

        assert queue.requests == ["topup"]

    def test_labels_of_lost_events_are_counted_once(self, reconciler, publish, queue, studio):
        publish()
        studio.annotate(3, "normal")
        studio.annotate(4, "normal")
        queue.state = QueueStatus(changes=1)  # one of the two events came

        reconciler.look()
        reconciler.look()

        assert (queue.state.changes, queue.state.threshold, queue.requests) == (2, 3, [])

    def test_the_round_that_they_earned(self, reconciler, publish, queue, studio):
        """One made, one changed, one deleted while nobody listened."""
        publish()
        studio.annotate(3, "normal")
        studio.answer(1, 0, "severe")
        studio.withdraw(2, 0)

        reconciler.look()

        assert (queue.state.changes, queue.requests) == (3, ["labels"])

    def test_events_that_came_twice_are_counted_once(self, reconciler, publish, queue, studio):
        publish()
        studio.annotate(3, "normal")
        queue.state = QueueStatus(changes=2)

        reconciler.look()

        assert queue.state.changes == 1

    def test_an_emptied_redis_learns_all_of_it_again(self, reconciler, publish, queue, studio):
        publish()
        for number in (3, 4, 5):
            studio.annotate(number, "normal")

        reconciler.look()

        assert (queue.state.threshold, queue.state.annotations, queue.requests) == (3, 5, ["labels"])

    def test_a_switched_off_toggle_starts_no_round(self, reconciler, publish, queue, studio, monkeypatch):
        publish()
        row = studio.row()
        monkeypatch.setattr(studio, "row", lambda: row | {"min_annotations_to_start_training": 0})
        for number in (3, 4, 5):
            studio.annotate(number, "normal")
        row |= {"total_annotations_number": 5}

        reconciler.look()

        assert (queue.state.threshold, queue.state.changes, queue.requests) == (0, 3, [])

    def test_a_round_that_runs_is_left_to_count_for_itself(self, reconciler, publish, queue, studio):
        publish()
        studio.annotate(3, "normal")
        queue.state = QueueStatus(running="labels")

        reconciler.look()

        assert (queue.state.changes, queue.requests) == (0, [])

    def test_what_a_round_of_an_older_version_learned_from_is_not_known(self, reconciler, store, queue, studio):
        published = PublishedRanking(version="v", round_id="r000001", image_ids=("3",), seconds={}, published_at=NOON)
        store.project(PROJECT).set_published(published)
        queue.state = QueueStatus(changes=2)

        reconciler.look()

        assert queue.state.changes == 2


class TestRounds:
    def test_a_first_round_that_was_lost_is_asked_for_again(self, reconciler, queue):
        reconciler.look()

        assert (queue.idle_requests, queue.requests) == (["connected"], [])

    def test_images_came_after_the_pool_was_empty(self, reconciler, publish, queue, studio):
        publish()
        queue.state = QueueStatus(last_error=LastError(kind="EmptyPool", message="m", at=0.0))

        reconciler.look()

        assert queue.requests == ["images"]

    @pytest.mark.parametrize("kind", ["EmptyPool", "UnusablePool"])
    def test_images_that_cannot_be_used_start_no_round_every_minute(self, reconciler, publish, queue, store, kind):
        """Under another key: one round has said so. With the right key the next look asks."""
        publish()
        config = LABEL_CONFIG.replace("$image", "$film")
        queue.state = QueueStatus(last_error=LastError(kind=kind, message="m", at=0.0))
        reconciler.look()
        assert queue.requests == ["images"]
        queue.requests.clear()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("tests.unit.label_studio.studio.LABEL_CONFIG", config)
            reconciler.look()
            assert queue.requests == []
        reconciler.look()

        assert queue.requests == ["images"]

    def test_a_host_of_images_that_is_away_is_tried_again_after_a_pause(self, reconciler, publish, queue, studio):
        """Each try may be a training; a changed task is tried at once."""
        publish()
        queue.state = QueueStatus(last_error=LastError(kind="UnusablePool", message="m", at=time.time() - 500))
        reconciler.look()
        reconciler.look()
        assert queue.requests == []

        studio.tasks[7] |= {"data": {"image": "/mended.png"}, "updated_at": studio.tick(600)}
        reconciler.look()
        assert queue.requests == ["images"]

        queue.requests.clear()
        queue.state = QueueStatus(last_error=LastError(kind="UnusablePool", message="m", at=time.time() - 700))
        reconciler.look()
        assert queue.requests == ["images"]

    @pytest.mark.parametrize(
        ("served", "requests"), [(range(3, 61), []), (range(3, 43), []), (range(3, 42), ["topup"])]
    )
    def test_a_ranking_that_runs_out_is_topped_up(self, reconciler, publish, queue, served, requests):
        """The default reserve of 80: at least 40 must be left, or all that there are."""
        publish(tuple(map(str, served)))

        reconciler.look()

        assert queue.requests == requests

    def test_a_lost_request_for_what_was_put_next(self, reconciler, publish, queue, store):
        """Image 5 is in front already, 1 is labelled, and the round could not read 6."""
        publish()
        excluded = Exclusion(image_id="6", reason="it is damaged")
        store.project(PROJECT).save(make_report().model_copy(update={"exclusions": (excluded,)}), None, None)
        project = store.project(PROJECT)
        project.set_published(project.published().model_copy(update={"by_hand": ("5",)}))
        for picked, requests in (("5", []), ("1", []), ("6", []), ("7", ["topup"])):
            project.add_hand_pick(HandPick(at=NOON, by="owner", like="1", image_ids=(picked,)))
            reconciler.look()

            assert queue.requests == requests

    @pytest.mark.parametrize("readable", [0, 1])
    def test_images_that_cannot_be_read_ask_for_no_top_up(self, reconciler, publish, queue, store, readable):
        """39 are left; of the 19 that could be published behind them one can be read, or none."""
        publish(tuple(map(str, range(3, 42))))
        quarantine(store, range(42 + readable, 61))

        reconciler.look()

        assert queue.requests == ["topup"] * readable

    def test_a_round_that_was_saved_and_not_published_is_taken_up(self, reconciler, publish, queue, store):
        """Its next attempt was lost with Redis."""
        publish(tuple(map(str, range(3, 61))))
        store.project(PROJECT).save(make_report("r000002"), None, None)

        reconciler.look()

        assert queue.idle_requests == ["connected"]


class TestWhatLabelStudioHolds:
    """Anybody can delete predictions, import them twice, or choose another model version."""

    @pytest.mark.parametrize("held", [0, 57, 116])
    def test_other_predictions_than_were_published(self, reconciler, publish, queue, studio, held):
        publish()
        reconciler.look()
        assert queue.requests == []

        studio.predictions["v"] = held
        reconciler.look()
        assert queue.requests == ["topup"]

    @pytest.fixture
    def noted(self, publish, store):
        """A ranking is served that has replaced another one."""
        publish()
        replaced = ImportedVersion(version="al-r000000-random-0a1b2c", replaced_at=NOON)
        store.project(PROJECT).set_imported_versions([replaced, ImportedVersion(version="v")])

    def test_goes_on_with_a_deletion_that_a_publish_began(self, reconciler, publish, store, studio):
        """And asks no more once it is done, although only the next publish takes the version off the record."""
        publish()
        reconciler.look()
        before = studio.requests
        reconciler.look()
        idle = studio.requests - before
        versions = [ImportedVersion(version=name, replaced_at=NOON, deleting=name == "old") for name in ("old", "kept")]
        store.project(PROJECT).set_imported_versions(versions)
        studio.predictions |= {"old": 20, "kept": 20}
        requests = []
        for _ in range(3):
            studio.requests = 0
            reconciler.look()
            requests.append(studio.requests)

        assert studio.predictions.keys() == {"v", "kept"}
        assert requests == [idle + 3, idle, idle]

    @pytest.mark.usefixtures("noted")
    @pytest.mark.parametrize("version", ["", None, "Active learning", "my-resnet", "al-r000000-random-0a1b2c"])
    def test_another_model_version(self, reconciler, queue, studio, version):
        studio.predictions["my-resnet"] = 58
        studio.model_version = version

        reconciler.look()

        assert queue.requests == ["topup"]

    def test_the_ranking_of_another_installation_is_left(self, reconciler, publish, queue, studio):
        publish()
        studio.model_version = "al-r000009-bald-0a1b2c"

        reconciler.look()

        assert queue.requests == []

    def test_a_deleted_task_takes_its_prediction_along(self, reconciler, publish, queue, studio):
        publish()
        del studio.tasks[7]
        studio.predictions["v"] = 57

        reconciler.look()

        assert queue.requests == []

    def test_where_every_image_has_an_answer_nothing_is_published_again(self, reconciler, publish, queue, studio):
        publish()
        for number in range(3, 61):
            studio.annotate(number, None)
        queue.state = QueueStatus(changes=58)
        studio.predictions["v"] = 0
        row = studio.row() | {"min_annotations_to_start_training": 0}
        studio.row = lambda: row

        reconciler.look()

        assert queue.requests == []

    def test_where_no_image_that_waits_can_be_read_nothing_is_published_again(
        self, reconciler, publish, queue, studio, store
    ):
        publish()
        quarantine(store, range(3, 61))
        studio.predictions.clear()

        reconciler.look()

        assert queue.requests == []

    def test_is_noted_for_the_page_also_while_a_round_runs(self, reconciler, publish, queue, studio, readings):
        publish()
        queue.state = QueueStatus(running="labels")
        studio.predictions["v"] = 3

        reconciler.look()

        seen = readings.serving(Serving)
        assert (seen.title, seen.version, seen.held, seen.there, queue.requests) == ("Chest", "v", 3, 58, [])

    @pytest.mark.parametrize("running", [None, "labels"])
    def test_the_analysis_is_ready_for_the_page(self, reconciler, queue, store, monkeypatch, running):
        queue.state = queue.state.model_copy(update={"running": running})
        reconciler.look()
        monkeypatch.setattr(ReadingStore, "mirror", None)

        [status] = statuses(store, queue)

        assert status.standing is not None
        assert status.standing.tasks > 0

    def test_the_analysis_of_a_large_project_holds_nothing_up(self, reconciler, store, monkeypatch):
        for module in ("scheduling.reconciler", "analytics.overview"):
            monkeypatch.setattr(f"ml_backend.{module}.LARGE", 10)
        begin, folder = threading.Event(), store.project(PROJECT).folder
        real = subprocess.run
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: begin.wait(60) and real(*a, **k))
        reconciler.look()
        assert not (folder / "analysis.json").exists()

        begin.set()
        for thread in threading.enumerate():
            if thread.name == "analysis":
                thread.join(60)
        found = ReadingStore(folder).analysis(Analysis)
        assert found is not None
        assert found.standing is not None
        assert found.standing.tasks == 60

    def test_before_the_first_ranking_there_is_nothing_to_compare(self, reconciler, queue, studio, readings):
        reconciler.look()

        assert readings.serving(Serving).version is None
        assert "topup" not in queue.requests


class TestCopies:
    """The images of some tasks stand in others too."""

    def copy(self, studio, number, of):
        studio.tasks[number]["data"] = dict(studio.tasks[of]["data"])
        studio.tasks[number]["updated_at"] = studio.tick()

    def test_one_that_is_served_and_labelled_elsewhere_leaves_the_order(self, reconciler, publish, queue, studio):
        self.copy(studio, 60, of=1)
        publish()

        reconciler.look()

        assert queue.requests == ["topup"]

    def test_by_its_bytes_as_well(self, reconciler, publish, queue, studio, readings):
        publish()
        readings.keep_digests({studio.tasks[number]["data"]["image"]: "x" for number in (1, 60)})

        reconciler.look()

        assert queue.requests == ["topup"]

    def test_that_nobody_serves_are_asked_for_by_nobody(self, reconciler, publish, queue, studio):
        """All that waits in Label Studio are copies: a round, or a top-up, would find nothing each minute."""
        for number in range(3, 61):
            self.copy(studio, number, of=1)
        publish(("1", "2"))
        queue.state = QueueStatus(last_error=LastError(kind="EmptyPool", message="m", at=0.0))
        reconciler.look()
        queue.state = QueueStatus()
        reconciler.look()

        assert (queue.requests, queue.idle_requests) == ([], [])


class TestGroundTruth:
    """The owner chooses what ground truths count as: labels that differ by it are learned at once."""

    @pytest.fixture
    def choose(self, store, readings, studio, publish):
        def chosen(before, after, answer="severe"):
            studio.tasks[1]["annotations"][0]["ground_truth"] = True
            studio.annotate(1, answer, rater=2)
            publish()
            options = {} if before is None else {"ground_truth": before}
            report = make_report("r000001")
            asked = report.request.model_copy(update={"options": options})
            store.project(PROJECT).save(report.model_copy(update={"request": asked}), None, None)
            readings.keep_learned("r000001", read_project(studio.client(), 2, None).cache.states(before or "override"))
            told = {"ground_truth": after}
            store.connect(
                Connection(project=PROJECT, hostname="http://ls", label_config=LABEL_CONFIG, extra_params=told)
            )

        return chosen

    def test_another_value_asks_for_a_round(self, reconciler, choose, queue):
        choose("override", "ignore")

        reconciler.look()

        assert queue.requests == ["labels"]
        assert queue.state.changes == 1

    def test_not_where_every_label_stays_the_same(self, reconciler, choose, queue):
        choose("override", "ignore", answer="normal")

        reconciler.look()

        assert queue.requests == []

    def test_a_round_of_an_older_version_had_the_default(self, reconciler, choose, queue):
        choose(None, "override")

        reconciler.look()

        assert queue.requests == []


class TestProjects:
    def test_one_that_is_gone_is_forgotten(self, reconciler, store, queue, studio):
        queue.state = QueueStatus(changes=9)
        studio.refusal = 404

        reconciler.look()

        assert (store.connections(), queue.state.changes) == ([], 0)

    def test_a_404_of_something_else_than_label_studio_is_not_believed(self, reconciler, store, studio, readings):
        studio.refusal = 404
        studio.row = dict

        reconciler.look()

        assert len(store.connections()) == 1
        assert "404" in readings.problem()

    def test_another_project_under_the_same_id_is_not_the_one_that_was_connected(self, reconciler, store, readings):
        other = ProjectKey(id=2, created=1)
        store.connect(Connection(project=other, hostname="http://ls", label_config=LABEL_CONFIG))

        reconciler.look()

        assert [connection.project for connection in store.connections()] == [PROJECT]

    def test_one_that_refuses_us_is_shown_and_hides_no_other(self, store, queue, studio, readings):
        refusing = FakeStudio()
        refusing.refusal = 401
        first = Connection(project=ProjectKey(id=1, created=1), hostname="http://other", label_config=LABEL_CONFIG)
        store.connect(first)

        def connect(_settings: Settings, hostname: str | None) -> LabelStudioClient:
            return (studio if hostname == "http://ls" else refusing).client()

        settings = Settings(data_dir=store.root, basic_auth_user="u", basic_auth_pass="p", label_studio_api_key="k")
        Reconciler(settings, store, queue, connect).look()

        assert "401" in str(ReadingStore(store.project(first.project).folder).problem())
        assert readings.problem() is None
        assert queue.idle_requests == ["connected"]

    def test_a_bug_in_one_project_ends_nothing(self, store, queue, readings):
        def connect(*_: object) -> LabelStudioClient:
            raise ZeroDivisionError

        Reconciler(Settings(data_dir=store.root), store, queue, connect).look()

        assert "unexpected ZeroDivisionError" in readings.problem()

    def test_a_redis_that_is_away_is_no_problem_of_label_studio(self, reconciler, readings, queue, monkeypatch):
        def refuse(_):
            raise QueueError("it is away")

        monkeypatch.setattr(queue, "status", refuse)

        reconciler.look()

        assert readings.problem() is None

    def test_without_a_key_it_says_so(self, store, queue, readings):
        Reconciler(Settings(data_dir=store.root, label_studio_url="http://ls"), store, queue).look()

        assert "AL_LABEL_STUDIO_API_KEY is not set" in readings.problem()

    def test_an_address_that_only_setup_named_gets_no_key(self, store, queue, readings):
        """Without a password anybody may call /setup."""
        Reconciler(Settings(data_dir=store.root, label_studio_api_key="k"), store, queue).look()

        assert "AL_LABEL_STUDIO_URL" in readings.problem()


def test_looks_at_once_and_again_until_it_is_stopped(store, queue, readings):
    looks = []

    def connect(*_: object) -> LabelStudioClient:
        looks.append(1)
        if len(looks) == 2:
            watch.stop()
        raise LabelStudioError("not there")

    watch = Reconciler(Settings(data_dir=store.root), store, queue, connect)

    watch.start(every_s=0.001).join(30)

    assert len(looks) == 2


class TestAnotherStrategy:
    """Chosen while nobody listened, or asked for in vain."""

    @pytest.fixture
    def ranked(self, store, readings, studio):
        """A network has ranked by the options of now, and readers are served that."""
        readings.keep_learned("r000001", states_of(studio))
        save_ranked(store, ("normal", "severe"))
        store.connect(Connection(project=PROJECT, hostname="http://ls", label_config=LABEL_CONFIG))
        return store

    def choose(self, store, **options: object) -> None:
        store.connect(
            Connection(project=PROJECT, hostname="http://ls", label_config=LABEL_CONFIG, extra_params=options)
        )

    def test_nothing_is_asked_for_while_the_order_is_as_chosen(self, reconciler, ranked, queue):
        reconciler.look()

        assert "rerank" not in queue.requests + queue.idle_requests

    def test_in_the_connection(self, reconciler, ranked, queue):
        """Only where nothing runs, and not again at once after a failure: see the queue."""
        self.choose(ranked, strategy="bald", batch_size=20)

        reconciler.look()

        assert (queue.requests, queue.idle_requests) == ([], ["rerank"])

    def test_in_the_label_config(self, reconciler, ranked, queue, studio, monkeypatch):
        row, named = studio.row(), LABEL_CONFIG.replace("<Choices ", '<Choices model_strategy="bald" ')
        monkeypatch.setattr(studio, "row", lambda: row | {"label_config": named})

        reconciler.look()

        assert queue.idle_requests == ["rerank"]

    def test_one_that_was_saved_and_never_published(self, reconciler, ranked, queue):
        report = ranked.project(PROJECT).report("r000001")
        asked = report.request.model_copy(update={"round_id": "r000002", "strategy": "bald", "reason": "rerank"})
        again = report.model_copy(update={"request": asked, "fit": None, "base": "r000001"})
        ranked.project(PROJECT).save(again, None, None)
        self.choose(ranked, strategy="bald", batch_size=20)

        reconciler.look()

        assert queue.idle_requests == ["rerank"]

    def test_not_where_no_image_that_waits_can_be_read(self, reconciler, ranked, queue):
        """Every attempt would fail alike."""
        self.choose(ranked, strategy="bald", batch_size=20)
        quarantine(ranked, range(3, 61))

        reconciler.look()

        assert (queue.requests, queue.idle_requests) == ([], [])

    def test_while_it_is_not_asked_for_again_the_old_order_is_topped_up(self, reconciler, ranked, queue):
        self.choose(ranked, strategy="bald", batch_size=20)
        queue.refuses_idle = True

        reconciler.look()

        assert (queue.requests, queue.idle_requests) == (["topup"], ["rerank"])


class TestPause:
    """The owner holds the rounds by a file; readers go on being served."""

    @pytest.fixture
    def pause(self, store, readings):
        pause = Pause(store.project(PROJECT).folder)
        pause.begin(threshold=3)
        return pause

    def test_labels_are_counted_and_start_nothing_until_it_ends(self, reconciler, publish, queue, studio, pause):
        publish()
        for number in (3, 4, 5):
            studio.annotate(number, "normal")

        reconciler.look()
        assert (queue.state.changes, queue.state.threshold, queue.requests, queue.idle_requests) == (3, 0, [], [])

        pause.end()
        reconciler.look()
        assert (queue.state.threshold, queue.requests) == (3, ["labels"])

    def test_one_that_cannot_be_read_holds_as_well(self, reconciler, publish, queue, studio, store):
        publish()
        (store.project(PROJECT).folder / "paused.json").write_text("{")
        for number in (3, 4, 5):
            studio.annotate(number, "normal")

        reconciler.look()

        assert (queue.state.threshold, queue.requests) == (0, [])
