"""Small pictures beside rounds: no id leads out of the folder, and old ones go."""

import pytest

from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import KEPT_ROUNDS, SQUASHED, Thumbnails
from tests.fakes import make_report
from tests.unit.server.memory import PROJECT


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
