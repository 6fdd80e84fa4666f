"""A reader sees a whole round or none, whatever happens while it is written."""

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from ml_backend.errors import StaleRound, StorageError, UnknownProject, UnknownRound
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import (
    Connection,
    Exclusion,
    HandPick,
    ImportedVersion,
    ProjectKey,
    PublishedRanking,
    Ranking,
    RoundReport,
)
from ml_backend.storage import ProjectStore, RankingHead, RoundStore, RoundSummary, rounds
from ml_backend.storage.atomic import write_record
from ml_backend.storage.rounds import INPUTS, RANKING, RoundInputs, ServedOrder
from tests.fakes import CLASSES, NOON, FakeLearner, make_fit, make_report

KEY = ProjectKey(id=7, created=1_700_000_000)
OUTPUTS = PoolPredictions(
    image_ids=("12", "3"),
    classes=CLASSES,
    probs=np.array([[[0.5, 0.25, 0.25]] * 2, [[0.125, 0.125, 0.75]] * 2], np.float32),
    features=np.ones((2, 4), np.float32),
    exclusions=(Exclusion(image_id="5", reason="damaged"),),
)
PUBLISHED = PublishedRanking(version="al-1", round_id="r000001", image_ids=("2", "1"), seconds={}, published_at=NOON)


def test_a_damaged_list_of_picks_hinders_no_round_and_is_not_overwritten(tmp_path):
    store = ProjectStore(tmp_path)
    picks = [HandPick(at=NOON, by="owner", like="1", image_ids=ids) for ids in (("2", "3"), ("4",))]
    for pick in picks:
        store.add_hand_pick(pick)
    assert (store.hand_picks(), store.hand_picked()) == (tuple(picks), ("4", "2", "3"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store.add_hand_pick, picks * 4))
    assert len(store.hand_picks()) == 10

    (tmp_path / "hand-picks.json").write_text("{")
    assert store.hand_picked() == ()
    with pytest.raises(StorageError):
        store.add_hand_pick(picks[0])


def as_saved_by_an_older_version(store: ProjectStore, round_id: str = "r000001") -> Path:
    """The round with its whole report and its inputs in JSON; summary and head are missing, as version 0.1 left it."""
    folder, report, inputs = store.folder / "rounds" / round_id, store.report(round_id), store.inputs(round_id)
    (folder / "report.json").write_text(report.model_dump_json(indent=1))
    (folder / RANKING).unlink()
    if inputs is not None:
        write_record(folder / "inputs.json", inputs)
        (folder / INPUTS).unlink()
    return folder


class PowerCut(BaseException):
    """The process ends here: not an Exception, so that nothing catches it by accident."""


def power_cut(*args: object, **kwargs: object) -> NoReturn:
    raise PowerCut


def do_nothing(*args: object, **kwargs: object) -> None:
    pass


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class PowerCutWhileSaving(FakeLearner):
    def save(self, folder: str) -> None:
        super().save(folder)
        raise PowerCut


def connection(project_id: int = 7, created: int = 1_700_000_000, **changes: object) -> Connection:
    fields: dict[str, object] = {
        "project": ProjectKey(id=project_id, created=created),
        "hostname": "http://127.0.0.1:8080",
        "label_config": "<View/>",
    }
    return Connection.model_validate(fields | changes)


@pytest.fixture
def store(tmp_path) -> ProjectStore:
    return RoundStore(tmp_path / "data").project(KEY)


class TestSave:
    def test_a_round_comes_back_as_it_was(self, store):
        report = make_report()

        store.save(report, OUTPUTS, FakeLearner())

        assert store.latest() == report
        again = store.outputs("r000001")
        assert again is not None
        assert (again.image_ids, again.classes) == (OUTPUTS.image_ids, OUTPUTS.classes)
        assert (again.features, again.exclusions) == (None, ())  # rounds keep what /predict and the replay need
        np.testing.assert_array_equal(again.probs, OUTPUTS.probs)
        assert (store.folder / "rounds/r000001/model.txt").read_text() == "fits: 0\n"

    def test_a_round_without_a_network_has_no_outputs(self, store):
        store.save(make_report(), None, None)

        assert store.outputs("r000001") is None

    def test_a_crash_while_saving_leaves_no_trace(self, store):
        """The next run finds the former round, and nothing that takes up room."""
        store.save(make_report("r000001"), None, None)

        with pytest.raises(PowerCut):
            store.save(make_report("r000002"), OUTPUTS, PowerCutWhileSaving())

        assert store.round_ids() == ["r000001"]
        assert names_in(store.folder / "rounds") == [".r000002", "r000001"]
        assert names_in(store.folder / "rounds/.r000002") == []
        assert store.next_round_id() == "r000003"

    def test_a_kill_before_the_rename_leaves_a_folder_that_nobody_reads(self, store, monkeypatch):
        """No clean-up runs after kill -9: the half-written folder stays, unseen, until the round is saved again."""
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", power_cut)
            patch.setattr("ml_backend.storage.rounds.shutil.rmtree", do_nothing)
            with pytest.raises(PowerCut):
                store.save(make_report(), OUTPUTS, None)

        assert len(names_in(store.folder / "rounds")) == 1
        assert store.round_ids() == []
        assert store.latest() is None

        store.save(make_report(), OUTPUTS, None)

        assert names_in(store.folder / "rounds") == ["r000001"]

    def test_a_round_is_never_overwritten(self, store):
        store.save(make_report(), None, None)

        with pytest.raises(StorageError, match="r000001"):
            store.save(make_report(), OUTPUTS, None)

        assert store.outputs("r000001") is None

    def test_the_order_of_rounds_is_their_number(self, store):
        for number in (9, 10, 100):
            store.save(make_report(f"r{number:06d}"), None, None)

        assert store.round_ids() == ["r000009", "r000010", "r000100"]
        assert store.next_round_id() == "r000101"


class TestRoundIds:
    def test_two_runs_never_have_the_same(self, store):
        """Of one process after the other, as of two at once."""
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _: store.next_round_id(), range(40)))

        assert len(set(taken)) == 40

    def test_an_orphan_neither_saves_nor_disturbs_the_newer_round(self, store):
        late, newer = store.next_round_id(), store.next_round_id()

        with pytest.raises(StaleRound, match="a newer round than r000001"):
            store.save(make_report(late), OUTPUTS, None)
        store.save(make_report(newer), None, None)

        assert store.round_ids() == [newer]
        assert store.outputs(newer) is None

    def test_what_dead_runs_left_half_written_goes_when_the_next_takes_its_number(self, store):
        left = store.folder / "rounds" / f".{store.next_round_id()}"
        (left / "model.txt").write_text("half")
        (store.folder / "rounds" / ".r000001.ab12").mkdir()  # of an older version of this backend

        assert store.next_round_id() == "r000002"

        assert names_in(store.folder / "rounds") == [".r000002"]

    def test_networks_of_the_last_three_rounds_that_trained_one_stay(self, store):
        for number in range(1, 7):
            store.save(make_report(f"r{number:06d}"), OUTPUTS, None if number == 5 else FakeLearner())

        store.next_round_id()

        kept = [
            round_id for round_id in store.round_ids() if (store.folder / "rounds" / round_id / "model.txt").exists()
        ]
        assert kept == ["r000003", "r000004", "r000006"]
        assert all(store.report(round_id) and store.outputs(round_id) for round_id in store.round_ids())

    def test_passes_of_the_last_rounds_stay_then_rankings(self, store, monkeypatch):
        """What the rest of a project needs of a round stays for good, and only what is on record is missing."""
        monkeypatch.setattr(rounds, "KEPT_ORDERS", 3)
        files = {}
        for number in range(1, 6):
            round_id = f"r{number:06d}"
            store.save(make_report(round_id), OUTPUTS, None, inputs=RoundInputs(labels=(), pool=()))
            files[round_id] = rounds.sha256_of_files(store.folder / "rounds" / round_id)
        as_saved_by_an_older_version(store, "r000002")
        store.save(make_report("r000006").model_copy(update={"base": "r000003"}), OUTPUTS, None)

        store.next_round_id(keep_rounds=3)

        ids = store.round_ids()
        assert [store.has_outputs(one) for one in ids] == [False, False, True, True, True, True]  # r000003 is a base
        assert [bool(store.inputs(one)) for one in ids] == [False, False, True, True, True, False]
        assert [one.images for one in store.summaries()[0]] == [2] * 6
        assert [len(store.head(one).batch) for one in ids] == [1] * 6
        assert [store.ranked(one) for one in ids] == [(), *[("2", "1")] * 5]
        with pytest.raises(UnknownRound, match="the ranking of round r000001 was removed: AL_KEEP_ROUNDS"):
            store.report("r000001")
        assert [store.file_faults(one, files[one]) for one in files if one != "r000002"] == [[]] * 4
        (store.folder / "rounds/r000005/ranking.npz").unlink()
        assert store.file_faults("r000005", files["r000005"]) == ["ranking.npz is gone"]

        (store.folder / "rounds/r000003/removed.json").write_text("{")
        assert store.next_round_id(keep_rounds=1) == "r000008"  # it stops no round

    def test_a_disk_that_refuses_says_so(self, store):
        store.folder.parent.mkdir(parents=True)
        store.folder.write_text("a file where a folder should be")

        with pytest.raises(StorageError, match="no round can be begun"):
            store.next_round_id()


class TestRuns:
    def test_only_the_newest_goes_on(self, store):
        with pytest.raises(StaleRound):
            store.require_newest("first")
        store.begin_run("first")
        store.require_newest("first")

        store.begin_run("second")

        store.require_newest("second")
        with pytest.raises(StaleRound, match="neither saves nor publishes"):
            store.require_newest("first")

    def test_removes_what_rounds_of_version_0_2_handed_over(self, store):
        left = store.folder / "scoring" / "r000001-ab12"
        left.mkdir(parents=True)
        (left / "model.txt").write_text("a network")

        store.begin_run("next")

        assert names_in(store.folder) == ["run.json"]


class TestRefusedWrites:
    @pytest.fixture
    def no_room(self) -> Iterator[None]:
        """The kernel refuses a write in the middle of a file, as on a full disk; here a limit on the size of files."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @pytest.mark.usefixtures("no_room")
    def test_in_the_middle_of_a_round(self, store):
        """Nothing stays, not even what takes up room; the next attempt has the room that there is."""
        probs = np.random.default_rng(0).dirichlet(np.ones(3), (200, 4)).astype(np.float32)
        outputs = PoolPredictions(tuple(map(str, range(200))), CLASSES, probs)

        with pytest.raises(StorageError, match=r"r000001 could not be saved .*File too large"):
            store.save(make_report(), outputs, FakeLearner())
        assert names_in(store.folder / "rounds/.r000001") == []

        store.save(make_report(), None, FakeLearner())
        assert store.round_ids() == ["r000001"]

    @pytest.mark.usefixtures("no_room")
    def test_of_what_is_published_keeps_the_old(self, store):
        store.set_published(PUBLISHED)
        longer = PUBLISHED.model_copy(update={"image_ids": tuple(map(str, range(2000)))})

        with pytest.raises(StorageError, match="File too large"):
            store.set_published(longer)

        assert store.published() == PUBLISHED


class TestRead:
    def test_an_unknown_round_says_what_is_known(self, store):
        store.save(make_report(), None, None)

        with pytest.raises(StorageError, match=r"no round 'r000009' .*known are r000001"):
            store.report("r000009")

    @pytest.mark.parametrize("content", [b"", b"{", b'{"request": 1}', b"\xff\xfe"])
    def test_a_damaged_report_is_named(self, store, content):
        store.save(make_report(), None, None)
        path = store.folder / "rounds/r000001/report.json"
        path.write_bytes(content)

        with pytest.raises(StorageError, match=r"report\.json is damaged .*move it away"):
            store.latest()

    def test_damaged_outputs_are_named(self, store):
        """Half a file, as a full disk leaves it."""
        store.save(make_report(), OUTPUTS, None)
        path = store.folder / "rounds/r000001/outputs.npz"
        path.write_bytes(path.read_bytes()[:40])

        with pytest.raises(StorageError, match=r"outputs\.npz"):
            store.outputs("r000001")

    def test_nothing_is_published_at_first(self, store):
        assert store.published() is None

    def test_the_last_published_counts(self, store):
        store.set_published(PUBLISHED)
        store.set_published(PUBLISHED.model_copy(update={"version": "al-2"}))

        published = store.published()

        assert published is not None
        assert published.version == "al-2"


class TestOrders:
    def test_every_version_once_as_it_was_last_noted_oldest_first(self, store):
        later = PUBLISHED.model_copy(update={"version": "al-2", "published_at": NOON + timedelta(seconds=1)})
        store.set_published(PUBLISHED)
        store.set_published(PUBLISHED.model_copy(update={"by_hand": ("1",)}))
        store.set_published(later)

        assert [(order.version, order.by_hand) for order in store.orders()] == [
            (PUBLISHED.version, ("1",)),
            ("al-2", ()),
        ]
        assert [store.order_ids(order).tolist() for order in store.orders()] == [[2, 1], [2, 1]]

    def test_the_last_are_kept(self, store, monkeypatch):
        monkeypatch.setattr(rounds, "KEPT_ORDERS", 2)
        for minute in range(4):
            store.set_published(PUBLISHED.model_copy(update={"published_at": NOON + timedelta(minutes=minute)}))

        assert [order.published_at.minute for order in store.orders()] == [2, 3]

    def test_a_damaged_one_hides_no_other(self, store):
        store.set_published(PUBLISHED)
        (store.folder / "orders/20250101T000000000000.json").write_text("{")

        [order] = store.orders()
        assert order.version == PUBLISHED.version
        columns = next((store.folder / "orders").glob("*.npy"))
        columns.write_bytes(b"\x93NUMPY")
        assert store.order_ids(order).tolist() == []

    def test_of_an_older_version(self, store):
        path = store.folder / "orders" / f"{NOON:%Y%m%dT%H%M%S%f}.json"
        write_record(path, PUBLISHED)

        [order] = store.orders()

        assert (order, store.order_ids(order).tolist()) == (ServedOrder.of(PUBLISHED), [2, 1])

    def test_a_history_that_cannot_be_written_stops_no_order(self, store):
        store.folder.mkdir(parents=True)
        (store.folder / "orders").write_text("a file where a folder should be")

        store.set_published(PUBLISHED)

        assert store.published() == PUBLISHED
        assert store.orders() == []


class TestRecords:
    def test_saved_with_the_round_or_later(self, store):
        store.save(make_report(), None, None, {"said": PUBLISHED})
        store.set_record("r000001", "later", PUBLISHED)

        assert store.record("r000001", "said", PublishedRanking) == PUBLISHED
        assert store.record("r000001", "later", PublishedRanking) == PUBLISHED
        assert store.record("r000001", "nothing", PublishedRanking) is None

    def test_none_beside_a_round_that_is_not_saved(self, store):
        """A reserved folder would be taken for a round's."""
        with pytest.raises(StorageError, match="no round 'r000001'"):
            store.set_record("r000001", "later", PUBLISHED)


class TestSummary:
    """What a page reads at every request does not grow with the pool."""

    @pytest.fixture
    def large(self) -> RoundReport:
        """A batch of 250 of 400 images; of the last 250 each third was drawn at random."""
        ids = tuple(map(str, range(400)))
        ranking = Ranking(
            strategy="bald", image_ids=ids, scores=(0.5,) * 400, batch_size=250, control=ids[150::3],
            suggestions=dict.fromkeys(ids, "severe"), confidences=dict.fromkeys(ids, 0.75),
        )  # fmt: skip
        return make_report().model_copy(update={"ranking": ranking, "fit": make_fit(), "disputed": ("1", "2")})

    def test_is_the_report_without_its_images(self, store, large):
        store.save(large, None, None)

        found = store.summary("r000001")

        assert (found.images, found.control, found.disputed, found.strategy) == (400, 84, 2, "bald")
        assert (found.request, found.began, found.fit) == (large.request, large.started_at, large.fit)
        assert (found.trained, found.by_network, found.labels) == (True, True, 0)
        assert store.latest_summary() == found

    def test_the_head_holds_what_a_page_shows(self, store, large):
        store.save(large, None, None)

        head = store.head("r000001")

        assert head.strategy == "bald"
        assert [one.place for one in head.batch] == [*range(1, 201), *range(202, 251, 3)]
        assert [one.image_id for one in head.batch if one.control] == [str(n) for n in range(150, 250, 3)]
        assert [one.place for one in head.behind] == list(range(253, 401, 3))

    def test_of_an_older_version_both_are_made_once(self, store, large, monkeypatch):
        store.save(large, None, None)
        head = store.head("r000001")
        folder = as_saved_by_an_older_version(store)
        rounds._summary.cache_clear()

        found = store.summary("r000001")

        assert found == RoundSummary.of(large, (folder / "report.json").stat().st_size)
        rounds._summary.cache_clear()
        monkeypatch.setattr(ProjectStore, "report", power_cut)
        assert (store.summary("r000001"), store.head("r000001")) == (found, head)

    def test_in_a_folder_that_cannot_be_written_to(self, store, large, monkeypatch):
        store.save(large, None, None)
        as_saved_by_an_older_version(store)

        def refuse(*_: object) -> NoReturn:
            raise StorageError("read-only")

        monkeypatch.setattr(ProjectStore, "set_record", refuse)

        assert store.summary("r000001").images == 400
        assert len(store.head("r000001").batch) == 217

    @pytest.mark.parametrize("damage", ["{", '{"round_id": "r000001"}', ""])
    def test_a_damaged_one_is_made_again(self, store, large, damage):
        store.save(large, None, None)
        folder = as_saved_by_an_older_version(store)
        for name in ("summary.json", "head.json"):
            (folder / name).write_text(damage)

        assert store.summary("r000001").images == 400
        assert store.head("r000001") == RankingHead.of(large)

    def test_a_report_that_was_replaced_is_seen(self, store, large):
        store.save(make_report(), None, None)
        as_saved_by_an_older_version(store)
        assert store.summary("r000001").images == 2
        (store.folder / "rounds/r000001/report.json").write_text(large.model_dump_json())

        assert store.summary("r000001").images == 400
        assert len(store.head("r000001").batch) == 217

    def test_a_damaged_report_is_named_and_hides_no_other(self, store, large):
        store.save(large, None, None)
        store.save(make_report("r000002"), None, None)
        (store.folder / "rounds/r000001/report.json").write_text("{")

        found, damaged = store.summaries()

        assert [one.round_id for one in found] == ["r000002"]
        assert [line.startswith("Round r000001 cannot be shown") for line in damaged] == [True]

    def test_suggestions_of_the_whole_pool(self, store, large):
        """Of images in any order, and of those alone that are asked for."""
        classes = {str(n): CLASSES[n % 3] for n in range(399, -1, -1)}
        ranking = large.ranking.model_copy(update={"suggestions": classes, "image_ids": tuple(classes)})
        store.save(large.model_copy(update={"ranking": ranking}), None, None)

        found = store.suggestions("r000001")

        assert (found.classes, found.confidences) == (classes, ranking.confidences)
        assert store.suggestions("r000001", ["7", "x", "400", "3"]).classes == {"7": classes["7"], "3": classes["3"]}
        as_saved_by_an_older_version(store)
        assert store.suggestions("r000001") == found

    @pytest.mark.parametrize("content", ["{", "[]", '{"ranking": 3}', None])
    def test_suggestions_of_a_damaged_report(self, store, content):
        store.save(make_report(), None, None)
        path = store.folder / "rounds/r000001/report.json"
        path.unlink() if content is None else path.write_text(content)

        with pytest.raises(StorageError, match=r"report\.json"):
            store.suggestions("r000001")


class TestConnections:
    def test_says_whether_it_is_new(self, tmp_path):
        """Label Studio repeats /setup at every page view."""
        store = RoundStore(tmp_path)

        assert store.connect(connection()) is True
        assert store.connect(connection()) is False
        assert store.connect(connection(label_config="<View></View>")) is True
        assert store.connection(7).label_config == "<View></View>"

    def test_of_two_projects_under_one_id_the_later_counts(self, tmp_path):
        """Label Studio on sqlite gives a deleted project's id to the next one."""
        store = RoundStore(tmp_path)
        store.connect(connection(created=900))
        store.connect(connection(created=1_000))

        assert store.connection(7).project.created == 1_000
        assert [c.project.created for c in store.connections()] == [900, 1_000]

    def test_a_damaged_one_hides_no_other(self, tmp_path):
        store = RoundStore(tmp_path)
        store.connect(connection(7))
        store.connect(connection(8))
        (store.project(KEY).folder / "connection.json").write_text("{")

        assert [c.project.id for c in store.connections()] == [8]
        assert store.connection(8).project.id == 8
        with pytest.raises(StorageError, match=r"connection\.json is damaged"):
            store.connection(7)

    def test_an_unknown_project_says_how_to_connect_it(self, tmp_path):
        with pytest.raises(UnknownProject, match=r"ml-backend connect --project 9"):
            RoundStore(tmp_path).connection(9)


class TestDisk:
    def test_a_folder_that_cannot_be_made_is_a_storage_error(self, store):
        store.folder.parent.mkdir(parents=True)
        store.folder.write_text("a file where a folder should be")

        with pytest.raises(StorageError, match="could not be written"):
            store.set_published(PUBLISHED)
        with pytest.raises(StorageError, match="could not be read"):
            store.published()

    def test_a_learner_that_cannot_save_is_a_storage_error(self, store):
        class FullDisk(FakeLearner):
            def save(self, folder: str) -> None:
                raise OSError(28, "No space left on device")

        with pytest.raises(StorageError, match=r"r000001 could not be saved .*No space left"):
            store.save(make_report(), None, FullDisk())


class TestNewestNetwork:
    def test_of_the_rounds_that_hold_one(self, store):
        assert store.newest_network("model.txt") is None
        store.save(make_report("r000001"), OUTPUTS, FakeLearner())
        store.save(make_report("r000002"), OUTPUTS, FakeLearner())
        store.save(make_report("r000003"), None, None)

        assert store.newest_network("model.txt") == store.folder / "rounds/r000002"


class TestImportedVersions:
    """Which model versions may be deleted from Label Studio."""

    def published(self, version: str, second: int) -> PublishedRanking:
        at = NOON + timedelta(seconds=second)
        return PublishedRanking(version=version, round_id="r000001", image_ids=("1",), seconds={}, published_at=at)

    def test_of_a_data_folder_that_notes_only_what_was_served(self, store: ProjectStore) -> None:
        """As version 0.1 has left it."""
        for second, version in enumerate(["al-a", "al-b", "al-c"]):
            store.set_published(self.published(version, second))

        assert store.imported_versions() == (
            ImportedVersion(version="al-a", replaced_at=NOON + timedelta(seconds=1)),
            ImportedVersion(version="al-b", replaced_at=NOON + timedelta(seconds=2)),
            ImportedVersion(version="al-c"),
        )

    def test_as_they_were_noted(self, store: ProjectStore) -> None:
        store.set_published(self.published("al-a", 0))
        noted = (ImportedVersion(version="al-b", replaced_at=NOON), ImportedVersion(version="al-c"))
        store.set_imported_versions(noted)

        assert store.imported_versions() == noted

    def test_none_at_first(self, store: ProjectStore) -> None:
        assert store.imported_versions() == ()
