"""A reader sees a whole round or none, whatever happens while it is written."""

from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from ml_backend.errors import StorageError, UnknownProject
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Connection, Exclusion, ProjectKey, Published
from ml_backend.storage import ProjectStore, RoundStore
from tests.fakes import CLASSES, NOON, FakeLearner, make_report

KEY = ProjectKey(id=7, created=1_700_000_000)
OUTPUTS = PoolOutputs(
    image_ids=("12", "3"),
    classes=CLASSES,
    probs=np.array([[[0.5, 0.25, 0.25]] * 2, [[0.125, 0.125, 0.75]] * 2], np.float32),
    features=np.ones((2, 4), np.float32),
    exclusions=(Exclusion(image_id="5", reason="damaged"),),
)
PUBLISHED = Published(version="al-1", round_id="r000001", image_ids=("2", "1"), seconds={}, published_at=NOON)


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
        """The next run finds the former round, and takes the same number again."""
        store.save(make_report("r000001"), None, None)

        with pytest.raises(PowerCut):
            store.save(make_report("r000002"), OUTPUTS, PowerCutWhileSaving())

        assert store.round_ids() == ["r000001"]
        assert store.next_round_id() == "r000002"
        assert names_in(store.folder / "rounds") == ["r000001"]

    def test_a_kill_before_the_rename_leaves_a_folder_that_nobody_reads(self, store, monkeypatch):
        """No clean-up runs after kill -9: the half-written folder stays, unseen, until the round is saved again."""
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", power_cut)
            patch.setattr("ml_backend.storage.files.shutil.rmtree", do_nothing)
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
