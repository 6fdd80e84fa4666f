"""The page for a second screen: what it shows, what it keeps from readers, and what it costs."""

import re
from datetime import UTC, datetime
from html import unescape

import pytest
from flask.testing import FlaskClient

from ml_backend.analytics.overview import analyse
from ml_backend.errors import QueueError
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.scheduling import QueueStatus
from ml_backend.scheduling.connections import configuration
from ml_backend.schemas import ProjectKey
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause
from tests.unit.server.memory import PROJECT

PAGE = f"/projects/{PROJECT}/readers"


def keep_tasks(store: RoundStore, answers: int, tasks: int = 30, at: datetime | None = None) -> None:
    """The first tasks have an answer of 7 s, by default of now, the others none."""
    at = at or datetime.now(UTC)  # not of the import: midnight may lie between
    value = {"choices": ["severe"]}
    region = {"from_name": "severity", "to_name": "image", "type": "choices", "value": value}
    body = {"completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": [region], "lead_time": 7.2}
    kept = {
        number: CachedTask(
            data={"image": f"/data/upload/{number}.png"},
            annotations=(body | {"id": number, "created_at": at.isoformat(), "updated_at": at.isoformat()},)
            if number <= answers
            else (),
        )
        for number in range(1, tasks + 1)
    }
    store.project(PROJECT).readings.keep_mirror(TaskCache(read_at=at, whole_at=at, tasks=kept))


def reconciled(store: RoundStore, answers: int, at: datetime | None = None) -> None:
    """What the reconciler leaves when these answers have come."""
    keep_tasks(store, answers, at=at)
    analyse(store.project(PROJECT), *configuration(store.connection(PROJECT.id)))


def figures(client: FlaskClient) -> dict[str, str]:
    page = client.get(PAGE)
    assert page.status_code == 200
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.text, re.DOTALL)
    return {head: " ".join(unescape(re.sub("<[^>]+>", " ", body)).split()) for head, body in found}


class TestReaders:
    def test_figures(self, connected, store, queue):
        reconciled(store, answers=9)
        queue.state = QueueStatus(changes=8, threshold=20)

        assert figures(connected) == {
            "Images read today": "9",
            "Images read in all": "9",
            "Images left": "21",
            "Seconds an image": "7",
            "Next ranking": "12 more labels",
        }

    def test_yesterdays_labels(self, connected, store, queue):
        reconciled(store, answers=9, at=datetime(2026, 1, 2, 12, tzinfo=UTC))

        assert [figures(connected)[name] for name in ("Images read today", "Images read in all")] == ["0", "9"]

    def test_before_anything_is_read(self, connected):
        assert set(figures(connected).values()) == {"–", "– not known yet"}

    def test_nothing_that_biases_or_distracts(self, connected, store, queue):
        reconciled(store, answers=9)

        page = connected.get(PAGE).text.lower()

        for word in ("normal", "moderate", "severe", "accuracy", "auroc", "recall", "<script", "reader 1", "@"):
            assert word not in page

    def test_a_view_computes_nothing(self, connected, store, monkeypatch):
        """Not even where labels came since: the reconciler renews the analysis within a minute."""
        reconciled(store, answers=9)
        keep_tasks(store, answers=10)
        monkeypatch.setattr(
            "ml_backend.label_studio.sync.TaskCache.annotated", lambda _: pytest.fail("reads the tasks")
        )

        assert figures(connected)["Images read in all"] == "9"

    @pytest.mark.parametrize(
        "case",
        [
            (9, {"running": "labels"}, "now it is being computed"),
            (9, {"waiting": "labels"}, "soon it waits to be computed"),
            (9, {"changes": 19, "threshold": 20}, "1 more label"),
            (9, {"changes": 25, "threshold": 20}, "soon it is due"),
            (20, {"changes": 2, "threshold": 20}, "– too few images are left for another one"),
            (30, {"changes": 2, "threshold": 20}, "– no image waits for a label"),
            (9, {"changes": 2, "threshold": 0}, "– not known yet"),
            (9, {"changes": 2, "threshold": 0, "annotations": 9}, "– the owner starts it"),
        ],
    )
    def test_the_next_ranking(self, case, connected, store, queue):
        answers, state, told = case
        reconciled(store, answers)
        queue.state = QueueStatus(**state)

        assert figures(connected)["Next ranking"] == told

    def test_a_paused_project(self, connected, store, queue):
        reconciled(store, answers=9)
        queue.state = QueueStatus(changes=2, threshold=0)
        Pause(store.project(PROJECT).folder).begin(20)

        assert figures(connected)["Next ranking"] == "– paused: the order stays as it is"

    def test_goes_on_without_redis(self, connected, store, queue, monkeypatch):
        """An error's page would not reload by itself."""
        reconciled(store, answers=9)

        def fails(_: ProjectKey) -> QueueStatus:
            raise QueueError("Redis does not answer")

        monkeypatch.setattr(queue, "status", fails)

        assert figures(connected)["Next ranking"] == "– not known at the moment"
        assert figures(connected)["Images read in all"] == "9"

    def test_its_owner_finds_it(self, connected):
        page = connected.get(f"/projects/{PROJECT}", headers={"Accept": "text/html"}).text

        assert f'href="../projects/{PROJECT}/readers"' in page
