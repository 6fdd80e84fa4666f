"""What is kept of a project besides its rounds."""

import pytest

from ml_backend.errors import StorageError
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import KEPT_ROUNDS, SQUASHED, ReadingStore, Thumbnails
from tests.fakes import make_report
from tests.unit.server.memory import PROJECT


@pytest.fixture
def store(tmp_path):
    return ReadingStore(tmp_path)


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


@pytest.fixture
def project(tmp_path):
    found = RoundStore(tmp_path).project(PROJECT)
    found.save(make_report(), None, None)
    return found


class TestThumbnails:
    def test_are_found_again(self, project):
        thumbnails = Thumbnails(project.folder)

        assert thumbnails.keep("r000001", [("2", b"jpeg")]) == 1
        assert thumbnails.of_round("r000001") == {"2"}
        assert thumbnails.read("r000001", "2") == b"jpeg"
        assert thumbnails.read("r000001", "3") is None

    @pytest.mark.parametrize("name", ["../report", "..", "", "a/b", "a\x00b", "a.b", "x" * 65, "2\n"])
    def test_an_id_that_no_file_may_be_called(self, project, name):
        thumbnails = Thumbnails(project.folder)

        assert thumbnails.keep("r000001", [(name, b"jpeg")]) == 0
        assert thumbnails.read("r000001", name) is None
        assert thumbnails.read(name, "2") is None
        assert thumbnails.of_round(name) == frozenset()

    def test_a_round_that_is_not_saved_gets_none(self, project):
        assert Thumbnails(project.folder).keep("r000009", [("2", b"jpeg")]) == 0
        assert not (project.folder / "rounds/r000009").exists()

    def test_the_last_rounds_keep_theirs(self, project):
        thumbnails = Thumbnails(project.folder)
        for number in range(2, KEPT_ROUNDS + 3):
            project.save(make_report(f"r{number:06d}"), None, None)
        for round_id in project.round_ids():
            thumbnails.keep(round_id, [("2", b"jpeg")])

        kept = [round_id for round_id in project.round_ids() if thumbnails.of_round(round_id)]
        assert kept == project.round_ids()[-KEPT_ROUNDS:]


class TestAnEarlierVersion:
    """It drew every film as a square."""

    @pytest.fixture
    def squashed(self, project):
        def keep(*round_ids):
            for round_id in round_ids:
                folder = project.folder / "rounds" / round_id / SQUASHED
                folder.mkdir()
                (folder / "2.jpg").write_bytes(b"squashed")

        project.save(make_report("r000002"), None, None)
        return keep

    def test_its_pictures_are_shown_until_they_are_drawn_again(self, project, squashed):
        squashed("r000001", "r000002")
        thumbnails = Thumbnails(project.folder)
        assert thumbnails.squashed() == ["r000002", "r000001"]
        assert thumbnails.of_round("r000002") == {"2"}
        assert thumbnails.read("r000002", "2") == b"squashed"

        thumbnails.keep("r000002", [("3", b"jpeg")])

        assert thumbnails.squashed() == ["r000001"]
        assert thumbnails.of_round("r000002") == {"3"}
        assert thumbnails.read("r000002", "2") is None
        assert not (project.folder / "rounds/r000002" / SQUASHED).exists()

    def test_they_go_with_their_round(self, project, squashed):
        squashed("r000001")
        thumbnails = Thumbnails(project.folder)
        for number in range(3, KEPT_ROUNDS + 3):
            project.save(make_report(f"r{number:06d}"), None, None)
            thumbnails.keep(f"r{number:06d}", [("2", b"jpeg")])

        assert thumbnails.of_round("r000001") == frozenset()
        assert thumbnails.squashed() == []
