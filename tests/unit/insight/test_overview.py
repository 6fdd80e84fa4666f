"""What is gathered for a project's page; a damaged round is named and hides nothing."""

import os

import pytest

from ml_backend.insight.overview import Memory, overview
from ml_backend.storage import RoundStore
from tests.fakes import make_report
from tests.unit.server.memory import PROJECT


@pytest.fixture
def project(tmp_path):
    found = RoundStore(tmp_path).project(PROJECT)
    for number in (1, 2, 3):
        found.save(make_report(f"r{number:06d}"), None, None)
    return found


class TestOverview:
    def test_a_cold_start_round_shows_its_batch_without_a_network(self, project):
        found = overview(project, Memory())

        assert [line.round_id for line in found.rounds] == ["r000001", "r000002", "r000003"]
        assert found.chosen is not None
        assert [(one.image_id, one.place, one.said) for one in found.chosen.batch] == [("2", 1, None)]
        assert found.fidelity is None

    def test_shows_the_round_that_is_served(self, project):
        found = overview(project, Memory(), served="r000001")

        assert found.chosen is not None
        assert found.chosen.round_id == "r000001"

    def test_a_damaged_round_is_named_and_hides_no_other(self, project):
        (project.folder / "rounds/r000002/report.json").write_text("{")
        (project.folder / "rounds/r000003/insight.json").write_text("{")

        found = overview(project, Memory(), served="r000002")

        assert [line.round_id for line in found.rounds] == ["r000001", "r000003"]
        [damaged] = found.damaged
        assert "r000002" in damaged
        assert found.chosen is not None
        assert found.chosen.insight is None

    def test_remembers_a_report_until_its_file_changes(self, project):
        memory = Memory()
        before = overview(project, memory).rounds[0]
        assert overview(project, memory).rounds[0] is before

        path = project.folder / "rounds/r000001/report.json"
        os.utime(path, ns=(1, 1))

        assert overview(project, memory).rounds[0] is not before

    def test_a_project_without_a_round(self, tmp_path):
        assert overview(RoundStore(tmp_path).project(PROJECT), Memory()).rounds == ()
