import pytest

from ml_backend.errors import StorageError
from ml_backend.schemas import ImageRef
from ml_backend.storage.project_state import KEPT_ROUNDS, ReadingStore

MIRROR = ImageRef(id="1", uri="a.png")  # any record


@pytest.fixture
def store(tmp_path):
    return ReadingStore(tmp_path)


class TestMirror:
    def test_round_trip(self, store):
        assert store.mirror(ImageRef) is None

        store.keep_mirror(MIRROR)

        assert store.mirror(ImageRef) == MIRROR

    @pytest.mark.parametrize("content", [b"", b"{", b'{"id": "1"', b'{"format": 2}', b"\xff"])
    def test_a_damaged_one_is_none(self, store, tmp_path, content):
        (tmp_path / "tasks.json").write_bytes(content)

        assert store.mirror(ImageRef) is None

    def test_one_that_cannot_be_kept_stops_nothing(self, tmp_path):
        (tmp_path / "file").write_text("")

        ReadingStore(tmp_path / "file").keep_mirror(MIRROR)
        ReadingStore(tmp_path).keep_mirror(MIRROR.model_copy(update={"uri": "\ud800"}))

        assert ReadingStore(tmp_path).mirror(ImageRef) is None


class TestChangesSince:
    def test_made_changed_and_deleted_ones_count(self, store):
        store.keep_learned("r000001", {"1.1": "a", "2.2": "b", "3.3": "c"})

        assert store.changes_since("r000001", {"1.1": "a", "2.2": "other", "4.4": "d"}) == 3
        assert store.changes_since("r000001", {"1.1": "a", "2.2": "b", "3.3": "c"}) == 0

    def test_not_known(self, store, tmp_path):
        assert store.changes_since("r000001", {}) is None

        store.keep_learned("r000001", {})
        (tmp_path / "learned" / "r000001.json").write_text("{")

        assert store.changes_since("r000001", {}) is None

    def test_old_ones_are_removed(self, store, tmp_path):
        for number in range(1, KEPT_ROUNDS + 3):
            store.keep_learned(f"r{number:06d}", {})

        kept = sorted(path.stem for path in (tmp_path / "learned").iterdir())
        assert (len(kept), kept[0]) == (KEPT_ROUNDS, "r000003")

    def test_a_disk_that_refuses_is_told(self, tmp_path):
        (tmp_path / "learned").write_text("")

        with pytest.raises(StorageError, match="could not be written"):
            ReadingStore(tmp_path).keep_learned("r000001", {})


class TestProblem:
    def test_comes_and_goes(self, store):
        store.note_problem("401")
        store.note_problem("401")
        assert store.problem() == "401"

        store.note_problem(None)
        assert store.problem() is None

    def test_a_damaged_note_is_a_problem_too(self, store, tmp_path):
        (tmp_path / "reading-problem.json").write_text("{")

        assert "is damaged" in store.problem()


class TestDigests:
    """Which addresses hold the same bytes."""

    def test_are_kept(self, tmp_path):
        store = ReadingStore(tmp_path)

        assert store.keep_digests({"a": "x", "b": "x"})
        assert ReadingStore(tmp_path).digests() == {"a": "x", "b": "x"}
        assert not store.keep_digests({"a": "x", "b": "x"})

    def test_a_folder_of_an_older_version_has_none(self, tmp_path):
        assert ReadingStore(tmp_path).digests() == {}
        assert not ReadingStore(tmp_path).keep_digests({})
        assert list(tmp_path.iterdir()) == []

    def test_a_damaged_file_is_none(self, tmp_path):
        (tmp_path / "same-content.json").write_text("{")

        assert ReadingStore(tmp_path).digests() == {}
