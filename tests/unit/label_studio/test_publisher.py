"""Against a small Label Studio that keeps to what the real one was seen to do; tests/system has the real one."""

import json
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.config import ProjectOptions
from ml_backend.errors import EmptyPool, LabelStudioError, RequestRefused, StaleRound
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig
from ml_backend.label_studio.publisher import (
    KEEP_AT_LEAST,
    LOT,
    LabelStudioPublisher,
    Serving,
    delete_in_lots,
    expired,
    is_lost,
    large_reserve,
    low_water,
    publication_size,
    read_serving,
    remaining_published,
    serving_problems,
)
from ml_backend.rounds.interfaces import assume_current
from ml_backend.schemas import ImportedVersion, PublishedRanking, Ranking, Reread, RoundReport
from tests.fakes import NOON, make_report

CONFIG = LabelConfig(("normal", "severe", "unreadable"), "severity", "image", "image", {})


def _nothing(step: str) -> None:
    """What happens before a step when nothing happens."""


class SmallLabelStudio:
    """One project: tasks, predictions by version, the version that orders the tasks."""

    def __init__(self, tasks: int) -> None:
        self.waiting = set(range(1, tasks + 1))
        self.labelled: dict[int, dict[str, Any]] = {}  # id -> overlap and counts of annotations
        self.deleted: set[int] = set()
        self.project: dict[str, Any] = {"model_version": "", "maximum_annotations": 1}
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.refused: set[int] = set()  # tasks whose change is refused
        self.drops = 0  # predictions of an import that vanish in silence
        self.before: Callable[[str], None] = _nothing
        self.after: Callable[[str], None] = _nothing  # done, but not answered
        self.steps: list[str] = []
        self.rows = 0  # tasks that were read, and predictions that were imported
        self.lots: list[int] = []  # predictions deleted by each request

    def served(self) -> list[int]:
        """The order in which readers get the tasks that have a place in it."""
        predictions = self.versions.get(self.project["model_version"], [])
        return [p["task"] for p in sorted(predictions, key=lambda p: p["score"]) if p["task"] in self.waiting]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        step = f"{request.method} {request.url.path.rstrip('/').rpartition('/')[2]}"
        self.before(step)
        self.steps.append(step)
        body: Any = json.loads(request.content) if request.content else None
        answers: dict[str, Callable[[], httpx.Response]] = {
            "GET 1": lambda: httpx.Response(200, json=self.project),
            "PATCH 1": lambda: self._patch(body),
            "GET tasks": lambda: self._tasks(request),
            "POST predictions": lambda: self._import(body),
            "GET model-versions": lambda: httpx.Response(
                200, json={"static": [{"model_version": v, "count": len(p)} for v, p in self.versions.items()]}
            ),
            "DELETE model-versions": lambda: self._delete(body["model_version"]),
        }
        if "/tasks/" in request.url.path:
            answer = self._patch_task(int(step.split()[1]), body)
        elif "/predictions/" in request.url.path and request.method == "DELETE":
            answer = self._delete_one(int(step.split()[1]))
        else:
            answer = answers[step]()
        self.after(step)
        return answer

    def _tasks(self, request: httpx.Request) -> httpx.Response:
        view = json.loads(request.url.params["query"])
        found = {item["filter"].rpartition(":")[2]: item["value"] for item in view["filters"]["items"]}
        if versions := found.get("predictions_model_versions"):
            held = [one for one in self.versions.get(versions[0], ()) if one["task"] > found["id"]]
            tasks = [{"id": one["task"], "predictions": [one | {"id": id(one)}]} for one in held[:100]]
            return httpx.Response(200, json={"tasks": tasks, "total": len(held)})
        chosen = set(view["selectedItems"]["included"])
        ids, labelled = self.waiting & chosen, self.labelled.keys() & chosen
        tasks = [{"id": i} for i in sorted(ids)] or [{"id": i} | self.labelled[i] for i in sorted(labelled)]
        self.rows += len(tasks)
        return httpx.Response(200, json={"tasks": tasks, "total": len(tasks)})

    def _delete_one(self, prediction_id: int) -> httpx.Response:
        for held in self.versions.values():
            for one in held:
                if id(one) == prediction_id:
                    held.remove(one)
                    self.lots.append(1)
                    return httpx.Response(204)
        return httpx.Response(404)

    def _patch_task(self, task: int, body: dict[str, Any]) -> httpx.Response:
        if task in self.refused:
            return httpx.Response(400, json={})
        self.labelled[task] |= body
        return httpx.Response(200, json={})

    def label(self, *ids: int, skips: int = 0) -> None:
        self.waiting -= {*ids}
        counts = {"overlap": 1, "is_labeled": True, "total_annotations": 1, "cancelled_annotations": skips}
        self.labelled |= {i: dict(counts) for i in ids}

    def open_again(self) -> dict[int, int]:
        """Overlap of the labelled tasks that readers may be served."""
        return {i: task["overlap"] for i, task in self.labelled.items() if not task["is_labeled"]}

    def _patch(self, body: dict[str, Any]) -> httpx.Response:
        if body["model_version"] not in self.versions:
            return httpx.Response(400, json={"detail": "Model version doesn't exist"})
        self.project |= body
        return httpx.Response(200, json=self.project)

    def _import(self, body: list[dict[str, Any]]) -> httpx.Response:
        if any(prediction["task"] in self.deleted for prediction in body):
            return httpx.Response(400, json={"detail": "Validation error"})
        taken = body[: len(body) - self.drops]
        self.rows += len(taken)
        for prediction in taken:
            self.versions.setdefault(prediction["model_version"], []).append(prediction)
        return httpx.Response(201, json={"created": len(taken)})

    def _delete(self, version: str) -> httpx.Response:
        gone = self.versions.pop(version, [])
        self.lots.append(len(gone))
        if self.project["model_version"] == version:
            self.project["model_version"] = None
        return httpx.Response(200, json={"deleted_predictions": len(gone)})


def fail_at(step: str, error: BaseException) -> Callable[[str], None]:
    def fail(current: str) -> None:
        if current == step:
            raise error

    return fail


class Store(list[PublishedRanking]):
    """Keeps what was published and what was imported, like ProjectStore."""

    def __init__(self) -> None:
        super().__init__()
        self.imported: tuple[ImportedVersion, ...] = ()
        self.asked: tuple[int, ...] = ()

    def asked_again(self) -> tuple[int, ...]:
        return self.asked

    def set_asked_again(self, tasks: Sequence[int]) -> None:
        self.asked = tuple(tasks)

    def set_published(self, published: PublishedRanking) -> None:
        self.append(published)

    def imported_versions(self) -> tuple[ImportedVersion, ...]:
        return self.imported

    def set_imported_versions(self, versions: Sequence[ImportedVersion]) -> None:
        self.imported = tuple(versions)

    def age(self, by: timedelta) -> None:
        """Let time pass for everything that was replaced."""
        self.imported = tuple(
            one.model_copy(update={"replaced_at": one.replaced_at - by}) if one.replaced_at else one
            for one in self.imported
        )


def report(*image_ids: int, batch_size: int = 2, round_id: str = "r000001") -> RoundReport:
    ids = tuple(map(str, image_ids))
    made = make_report()
    return made.model_copy(
        update={
            "request": made.request.model_copy(update={"round_id": round_id}),
            "ranking": Ranking(
                strategy="entropy",
                image_ids=ids,
                scores=(0.5,) * len(ids),
                batch_size=batch_size,
                suggestions=dict.fromkeys(ids, "severe"),
                confidences=dict.fromkeys(ids, 0.75),
            ),
        }
    )


def with_expired(*sizes: int) -> tuple[SmallLabelStudio, Store]:
    """A Label Studio that holds replaced versions ``v0``, ``v1``, ..., older than a week, with so many predictions."""
    server, store = SmallLabelStudio(5), Store()
    server.versions = {
        f"v{n}": [{"task": task, "score": 0.0, "model_version": f"v{n}"} for task in range(1, size + 1)]
        for n, size in enumerate(sizes)
        if size
    }
    replaced_at = datetime.now(UTC) - timedelta(days=8)
    store.imported = tuple(ImportedVersion(version=f"v{n}", replaced_at=replaced_at) for n in range(len(sizes)))
    return server, store


def publisher(
    server: Callable[[httpx.Request], httpx.Response],
    store: Store | None = None,
    arrival_s: float = 0.0,
    deleting_s: float = 60.0,
    **options: Any,
) -> LabelStudioPublisher:
    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(server), retries=1)
    store = Store() if store is None else store
    options = {"reread_share": 0.5} | options
    return LabelStudioPublisher(
        client, 1, CONFIG, ProjectOptions(**options), store, arrival_s=arrival_s, deleting_s=deleting_s
    )


class TestPublish:
    def test_the_next_image_is_the_first_of_the_ranking(self) -> None:
        """Batch of 2 and reserve of 1 of five; equal acquisition values still make one order."""
        server, store = SmallLabelStudio(5), Store()

        published = publisher(server, store, reserve=1).publish(report(4, 2, 5, 1, 3), assume_current)

        assert server.served() == [4, 2, 5]
        assert published.image_ids == ("4", "2", "5")
        assert published.version.startswith("al-r000001-entropy-")
        assert store[-1] == published
        assert set(published.seconds) == {"import", "switch", "delete"}

    @given(st.permutations(range(1, 30)))
    @settings(deadline=None, max_examples=20)
    def test_any_ranking(self, ranking: list[int]) -> None:
        server = SmallLabelStudio(29)
        publisher(server, reserve="all").publish(report(*ranking), assume_current)
        scores = [prediction["score"] for (predictions,) in [server.versions.values()] for prediction in predictions]

        assert server.served() == ranking
        assert len(set(scores)) == 29
        assert min(scores) == 0.0
        assert max(scores) < 1.0

    def test_the_form_is_empty_unless_the_owner_asked(self) -> None:
        for prelabel, results in [(False, [0, 0]), (True, [1, 1])]:
            server = SmallLabelStudio(2)
            publisher(server, prelabel=prelabel).publish(report(1, 2), assume_current)
            (predictions,) = server.versions.values()

            assert [len(prediction["result"]) for prediction in predictions] == results

    def test_a_version_never_comes_back(self) -> None:
        """Published twice, the same report has two versions."""
        server, store = SmallLabelStudio(2), Store()
        first = publisher(server, store).publish(report(1, 2), assume_current)
        second = publisher(server, store).publish(report(1, 2), assume_current)

        assert first.version != second.version
        assert [one.version for one in store.imported] == [first.version, second.version]
        assert [one.replaced_at for one in store.imported] == [second.published_at, None]


def asks_again(*places: tuple[int, int], answers: int = 1, round_id: str = "r000001") -> RoundReport:
    """A ranking of 1, 2, 3, with re-reads: an image and the number of images before it."""
    again = tuple(Reread(image_id=str(i), after=after, value=0.5, answers=answers) for i, after in places)
    made = report(1, 2, 3, round_id=round_id)
    return made.model_copy(update={"ranking": made.ranking.model_copy(update={"rereads": again})})


class TestRereads:
    def test_take_their_places_and_are_opened_to_one_more_reader(self) -> None:
        server, store = SmallLabelStudio(6), Store()
        server.label(4, 5)

        published = publisher(server, store).publish(asks_again((5, 0), (4, 2)), assume_current)

        assert published.image_ids == ("5", "1", "2", "4", "3")
        assert (published.rereads, published.first_reads) == (("5", "4"), 3)
        assert server.open_again() == {4: 2, 5: 2}
        assert store.asked == (5, 4)

    def test_a_skip_takes_a_place_where_label_studio_counts_it(self) -> None:
        for skip_queue, overlap in [("REQUEUE_FOR_OTHERS", 2), ("REQUEUE_FOR_ME", 3), ("IGNORE_SKIPPED", 3)]:
            server = SmallLabelStudio(4)
            server.project["skip_queue"] = skip_queue
            server.label(4, skips=1)
            publisher(server).publish(asks_again((4, 0), answers=2), assume_current)

            assert server.open_again() == {4: overlap}

    def test_read_again_deleted_or_without_an_answer_meanwhile_are_left_out(self) -> None:
        server = SmallLabelStudio(6)
        server.label(4, 5)
        server.labelled[4]["total_annotations"] = 2
        server.labelled[5]["total_annotations"] = 0

        published = publisher(server).publish(asks_again((4, 0), (5, 1), (9, 1)), assume_current)

        assert published.image_ids == ("1", "2", "3")
        assert not published.rereads
        assert server.open_again() == {}

    def test_of_an_earlier_order_are_put_back(self) -> None:
        server, store = SmallLabelStudio(6), Store()
        server.label(4, 5)
        publisher(server, store).publish(asks_again((4, 0)), assume_current)
        publisher(server, store).publish(asks_again((5, 1), round_id="r000002"), assume_current)

        assert server.open_again() == {5: 2}
        assert list(store.asked) == [5]

        publisher(server, store).publish(report(1, 2, 3, round_id="r000003"), assume_current)

        assert server.open_again() == {}
        assert {task["overlap"] for task in server.labelled.values()} == {1}
        assert list(store.asked) == []

    @pytest.mark.parametrize("times_out", [False, True])
    def test_a_task_that_cannot_be_changed_stops_no_publish(self, times_out: bool) -> None:
        """It is not listed where it cannot be opened, and stays on record where it cannot be closed."""
        server, store = SmallLabelStudio(6), Store()
        server.label(4, 5)
        if times_out:
            server.before = fail_at("PATCH 4", httpx.ReadTimeout("busy"))
        else:
            server.refused = {4}
        first = publisher(server, store).publish(asks_again((5, 0), (4, 1)), assume_current)

        assert (first.image_ids, first.rereads) == (("5", "1", "2", "3"), ("5",))
        assert list(store.asked) == [5, 4]

        server.before, server.refused = (_nothing, set())
        publisher(server, store).publish(asks_again((4, 1), round_id="r000002"), assume_current)
        server.refused = {4}
        last = publisher(server, store).publish(report(1, 2, 3, round_id="r000003"), assume_current)

        assert last.completes("r000003")
        assert list(store.asked) == [4]

        server.refused = set()
        publisher(server, store).put_back((), assume_current)

        assert not store.asked_again()
        assert server.open_again() == {}

    def test_are_closed_where_they_are_switched_off(self) -> None:
        """A top-up publishes the ranking of the last round, which has them; Label Studio has two readers an image."""
        server, store = SmallLabelStudio(6), Store()
        server.label(4, 5)
        publisher(server, store).publish(asks_again((4, 0), (5, 0)), assume_current)
        server.project["maximum_annotations"], server.labelled[5]["total_annotations"] = 2, 2
        off = publisher(server, store, reread_share=0, annotations_per_task=3)

        assert not off.publish(asks_again((4, 0)), assume_current).rereads
        assert store.asked == ()
        assert [server.labelled[i]["overlap"] for i in (4, 5)] == [2, 2]
        assert server.open_again() == {4: 2}

    def test_a_run_that_is_superseded_closes_nothing_of_the_newer_one(self) -> None:
        server, store = SmallLabelStudio(6), Store()
        server.label(4, 5, 6)
        publisher(server, store).publish(asks_again((4, 0), (5, 0)), assume_current)

        def newer_run(step: str) -> None:
            if step == "PATCH 4":
                store.set_asked_again([*store.asked_again(), 6])

        server.after = newer_run
        publisher(server, store).put_back(("5",), assume_current)

        assert store.asked == (5, 6)

        def guard() -> None:
            raise StaleRound

        with pytest.raises(StaleRound):
            publisher(server, store).put_back((), guard)
        assert server.open_again() == {5: 2}

    def test_an_image_that_is_new_again_is_served_once(self) -> None:
        """Its answer was deleted since the round; it is given again between two requests."""
        server = SmallLabelStudio(3)
        server.after = lambda step: server.label(3) if step == "GET tasks" else None
        published = publisher(server).publish(asks_again((3, 0)), assume_current)

        assert (published.image_ids, published.rereads) == (("1", "2", "3"), ())

    @pytest.mark.parametrize("step", ["PATCH 4", "PATCH 5", "POST predictions", "PATCH 1", "GET model-versions"])
    @pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
    def test_a_kill_at_any_step_leaves_no_other_overlap_in_the_end(self, step: str, done: bool) -> None:
        """The next publish is of another round: its re-reads alone are open then."""
        server, store = SmallLabelStudio(6), Store()
        server.label(4, 5)
        publisher(server, store).publish(asks_again((4, 0)), assume_current)
        server.labelled[4] |= {"overlap": 1, "is_labeled": True}  # so that it is opened once more
        setattr(server, "after" if done else "before", fail_at(step, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            publisher(server, store).publish(asks_again((5, 0), (4, 1), round_id="r000002"), assume_current)
        server.before = server.after = _nothing
        publisher(server, store).publish(asks_again((5, 0), round_id="r000003"), assume_current)

        assert server.open_again() == {5: 2}
        assert server.labelled[4]["overlap"] == 1
        assert store.asked == (5,)
        assert server.served()[:2] == [1, 2]

    def test_are_no_reserve_for_an_only_reader(self) -> None:
        server = SmallLabelStudio(6)
        server.label(4, 5)
        published = publisher(server).publish(asks_again((4, 0), (5, 0)), assume_current)

        assert remaining_published(published.model_copy(update={"annotations": 2}), 4) == 1


class TestReplacedVersions:
    """Label Studio refuses an answer that names a deleted prediction, and a reader may hold an image for a day."""

    def test_stay_as_long_as_a_reader_may_hold_an_image_of_theirs(self) -> None:
        server, store = SmallLabelStudio(3), Store()
        versions = [publisher(server, store).publish(report(1, 2, 3), assume_current).version for _ in range(20)]

        assert list(server.versions) == versions
        assert server.project["model_version"] == versions[-1]

    def test_are_deleted_in_the_end(self) -> None:
        server, store = SmallLabelStudio(2), Store()
        old = publisher(server, store).publish(report(1, 2), assume_current)
        between = publisher(server, store).publish(report(1, 2), assume_current)
        store.age(timedelta(days=8))
        new = publisher(server, store).publish(report(2, 1), assume_current)

        assert old.version not in server.versions
        assert list(server.versions) == [between.version, new.version] == [one.version for one in store.imported]

    def test_of_somebody_else_are_never_deleted(self) -> None:
        """Neither those that have a name like ours: of an installation whose data folder is gone, or of the owner."""
        server, store = SmallLabelStudio(2), Store()
        mine = [{"task": 1, "score": 0.1, "model_version": "mv1"}]
        theirs = {"mv1", "al-r50-imagenet", "al-r000009-bald-0a1b2c", "al-dente", "INITIAL"}
        server.versions = dict.fromkeys(theirs, mine)

        for _ in range(3):
            publisher(server, store).publish(report(1, 2), assume_current)
            store.age(timedelta(days=8))
        last = publisher(server, store).publish(report(1, 2), assume_current)

        assert {name for name in server.versions if name not in {one.version for one in store.imported}} == theirs
        assert server.project["model_version"] == last.version

    def test_of_an_attempt_that_died_are_deleted_too(self) -> None:
        """It was noted before it was imported."""
        server, store = SmallLabelStudio(2), Store()

        server.before = fail_at("PATCH 1", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            publisher(server, store).publish(report(1, 2), assume_current)
        [dead] = server.versions
        server.before = _nothing
        publisher(server, store).publish(report(1, 2), assume_current)
        store.age(timedelta(days=8))
        publisher(server, store).publish(report(1, 2), assume_current)

        assert dead not in server.versions

    @pytest.mark.parametrize(
        ("ages_h", "sizes", "kept"),
        [
            ([30, 20, 10], [4000, 4000, 4000], [20, 10]),  # within a day nothing is deleted, whatever its size
            ([100, 80, 60, 30], [1000, 1000, 1000, 1000], [100, 80, 60, 30]),
            ([100, 80, 60, 30], [1000, 2000, 2000, 2000], [60, 30]),  # 5,000 at most
            ([170, 30], [1, 1], [30]),  # a week at most
            ([25, 24], [9000, 9000], [25, 24]),
            ([26], [9000], []),
            ([60], [0], [60]),  # an import that never arrived
        ],
    )
    def test_kept_beyond_a_day_while_they_are_few(self, ages_h: list[int], sizes: list[int], kept: list[int]) -> None:
        now = datetime.now(UTC)
        versions = [ImportedVersion(version=f"v{age}", replaced_at=now - timedelta(hours=age)) for age in ages_h]
        held = {one.version: size for one, size in zip(versions, sizes, strict=True)}

        begun = ImportedVersion(version="begun", replaced_at=now, deleting=True)
        gone = expired([*versions, begun, ImportedVersion(version="served")], held, now)

        assert "begun" in gone
        assert {one.version for one in versions} - set(gone) == {f"v{age}" for age in kept}
        assert "served" not in gone

    def test_large_ones_are_deleted_in_lots_while_there_is_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every submission waits while a lot is deleted; what is left is on record, and the next publish goes on."""
        server, store = with_expired(70, 70, 0)
        now = 0.0

        def take_a_second(step: str) -> None:
            nonlocal now
            now += step.startswith("DELETE")

        server.before = take_a_second
        clock = SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now)
        monkeypatch.setattr("ml_backend.label_studio.publisher.time", clock)
        left = []
        for _ in range(3):
            publisher(server, store, deleting_s=30.0).publish(report(1, 2), assume_current)
            left.append([len(server.versions.get(f"v{n}", ())) for n in range(3)])
            assert [one.version for one in store.imported if one.deleting] == [f"v{n}" for n in range(2) if left[-1][n]]

        assert left == [[39, 70, 0], [0, 49, 0], [0, 0, 0]]
        assert max(server.lots) == LOT

    def test_a_lot_is_no_larger_where_an_earlier_count_was_lower(self) -> None:
        """An import behind a time-out has added predictions since."""
        server, _ = with_expired(100, 0)

        client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(server), retries=1)

        assert delete_in_lots(client, 1, {"v0": 5}) == {"v0"}
        assert max(server.lots) == LOT

    def test_a_day_is_longer_than_label_studios_lock(self) -> None:
        assert timedelta(seconds=86_400) < KEEP_AT_LEAST


def test_publishing_costs_what_is_published() -> None:
    costs = []
    for pool in (1_000, 50_000):
        server, _ = with_expired(100)
        server.waiting = set(range(1, pool + 1))
        publisher(server, batch_size=20, reserve=80).publish(report(*server.waiting, batch_size=20), assume_current)
        costs.append((len(server.steps), server.rows))

    assert costs[0] == costs[1]
    assert costs[0][1] == 2 * 100  # read as still unlabelled, and imported


class TestWhatHappenedMeanwhile:
    def test_labelled_images_make_room_for_the_next_of_the_ranking(self) -> None:
        server = SmallLabelStudio(6)
        server.waiting -= {4, 2, 1}

        published = publisher(server, reserve=0).publish(report(4, 2, 5, 1, 3, 6), assume_current)

        assert published.image_ids == ("5", "3")

    def test_a_task_deleted_under_the_import_costs_its_own_place_only(self) -> None:
        server = SmallLabelStudio(5)

        def delete(step: str) -> None:
            if step == "POST predictions":
                server.deleted.add(2)
                server.waiting.discard(2)

        server.before = delete
        published = publisher(server, reserve=1).publish(report(4, 2, 5, 1, 3), assume_current)

        assert published.image_ids == ("4", "5", "1")
        assert server.steps.count("POST predictions") == 2

    def test_another_refusal_is_told_as_it_is(self) -> None:
        server = SmallLabelStudio(2)
        server.deleted = {1}  # refused, although the task list still shows it

        with pytest.raises(RequestRefused, match="400"):
            publisher(server).publish(report(1, 2), assume_current)
        assert server.steps.count("POST predictions") == 1

    def test_nothing_is_left(self) -> None:
        server = SmallLabelStudio(0)

        with pytest.raises(EmptyPool, match="all 2 ranked images"):
            publisher(server).publish(report(1, 2), assume_current)

    def test_predictions_dropped_in_silence_are_no_ranking(self) -> None:
        server = SmallLabelStudio(3)
        server.drops = 1

        with pytest.raises(LabelStudioError, match=r"took 2 of 3 predictions of version al-r000001"):
            publisher(server).publish(report(1, 2, 3), assume_current)
        assert server.versions == {}
        assert server.project["model_version"] == ""


class TestImportWithoutAnAnswer:
    """A time-out, or a proxy that answers for Label Studio: what counts is what Label Studio holds."""

    def test_that_was_done_is_switched_to(self) -> None:
        server = SmallLabelStudio(3)

        server.after = fail_at("POST predictions", httpx.ReadTimeout("no answer"))
        published = publisher(server).publish(report(3, 1, 2), assume_current)

        assert server.served() == [3, 1, 2]
        assert [len(held) for held in server.versions.values()] == [3]
        assert server.project["model_version"] == published.version

    def test_that_is_done_in_a_while_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        server = SmallLabelStudio(2)
        late: list[dict[str, Any]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("import/predictions"):
                late.extend(json.loads(request.content))
                return httpx.Response(504, text="<html>gateway time-out</html>", headers={"content-type": "text/html"})
            return server(request)

        def arrive(_seconds: float) -> None:
            server.versions[late[0]["model_version"]] = late

        monkeypatch.setattr(
            "ml_backend.label_studio.publisher.time",
            SimpleNamespace(sleep=arrive, monotonic=time.monotonic, perf_counter=time.perf_counter),
        )
        publisher(answer, arrival_s=60.0).publish(report(2, 1), assume_current)

        assert server.served() == [2, 1]

    def test_that_never_arrives_leaves_the_old_order(self) -> None:
        server = SmallLabelStudio(2)
        publisher(server).publish(report(1, 2), assume_current)

        server.before = fail_at("POST predictions", httpx.ReadTimeout("no answer"))
        with pytest.raises(LabelStudioError, match="no answer"):
            publisher(server).publish(report(2, 1), assume_current)
        assert server.served() == [1, 2]

    def test_that_arrives_after_all_is_cleared_away_in_time(self) -> None:
        """It lies under a version of its own, so that no image is in the order twice."""
        server, store = SmallLabelStudio(2), Store()
        lost: list[str] = []

        def lose(step: str) -> None:
            if step == "POST predictions" and not lost:
                lost.append(step)
                raise httpx.ReadTimeout("no answer")

        server.before = lose
        with pytest.raises(LabelStudioError):
            publisher(server, store).publish(report(2, 1), assume_current)
        [late] = store.imported
        server.versions[late.version] = [{"task": 1, "score": 0.0}]
        publisher(server, store).publish(report(2, 1), assume_current)
        assert server.served() == [2, 1]

        store.age(timedelta(days=8))
        publisher(server, store).publish(report(2, 1), assume_current)
        assert late.version not in server.versions

    def test_that_was_done_twice_is_no_ranking(self) -> None:
        """As a proxy does that repeats what it got no answer to."""
        server = SmallLabelStudio(2)

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("import/predictions"):
                server(request)
            return server(request)

        with pytest.raises(LabelStudioError, match="took 4 of 2 predictions"):
            publisher(answer).publish(report(2, 1), assume_current)
        assert server.versions == {}


class TestSwitchedAway:
    def test_by_a_dead_runs_late_request_is_switched_back(self) -> None:
        """It comes through while an old version is deleted, and deleting what is served leaves a random order."""
        server, store = SmallLabelStudio(2), Store()
        old = publisher(server, store).publish(report(1, 2), assume_current)
        publisher(server, store).publish(report(1, 2), assume_current)
        store.age(timedelta(days=8))

        def come_late(step: str) -> None:
            if step == "DELETE model-versions":
                server.project["model_version"] = old.version

        server.before = come_late
        new = publisher(server, store).publish(report(2, 1), assume_current)

        assert (server.project["model_version"], server.served()) == (new.version, [2, 1])

    def test_by_a_newer_run_stays(self) -> None:
        server, store = SmallLabelStudio(2), Store()
        publisher(server, store).publish(report(1, 2), assume_current)
        newer = [{"task": 1, "score": 0.0}, {"task": 2, "score": 0.5}]
        calls = 0

        def overtake(step: str) -> None:
            if step == "GET model-versions" and calls == 3:
                server.versions["al-r000009-bald-0a1b2c"] = newer
                server.project["model_version"] = "al-r000009-bald-0a1b2c"

        def guard() -> None:
            nonlocal calls
            calls += 1
            if calls > 3:
                raise StaleRound

        server.before = overtake
        with pytest.raises(StaleRound):
            publisher(server, store).publish(report(2, 1), guard)
        assert server.served() == [1, 2]


class TestCrash:
    @pytest.mark.parametrize(
        "crash", ["GET model-versions", "GET tasks", "POST predictions", "PATCH 1", "DELETE model-versions"]
    )
    def test_before_any_step_leaves_one_whole_order_and_is_made_good(self, crash: str) -> None:
        server, store = SmallLabelStudio(4), Store()
        oldest = publisher(server, store).publish(report(3, 2, 1, 4), assume_current)
        old = publisher(server, store).publish(report(1, 2, 3, 4), assume_current)
        store.age(timedelta(days=8))

        server.before = fail_at(crash, KeyboardInterrupt())
        new = report(4, 3, 2, 1, round_id="r000002")
        with pytest.raises(KeyboardInterrupt):
            publisher(server, store).publish(new, assume_current)
        switched = crash == "DELETE model-versions"
        assert server.served() == ([4, 3, 2, 1] if switched else [1, 2, 3, 4])
        assert (store[-1].version != old.version) == switched

        server.before = _nothing
        again = publisher(server, store).publish(new, assume_current)
        assert server.served() == [4, 3, 2, 1]
        assert old.version in server.versions
        assert oldest.version not in server.versions
        assert set(server.versions) <= {one.version for one in store.imported}
        assert again.version in server.versions

    def test_between_two_lots_is_made_good(self) -> None:
        server, store = with_expired(70)

        def crash(_step: str) -> None:
            if len(server.lots) == 5:
                raise KeyboardInterrupt

        server.before = crash
        with pytest.raises(KeyboardInterrupt):
            publisher(server, store).publish(report(4, 3, 2, 1), assume_current)
        assert server.served() == [4, 3, 2, 1]
        assert (len(server.versions["v0"]), store.imported[0].deleting) == (65, True)

        server.before = _nothing
        again = publisher(server, store).publish(report(1, 2, 3, 4), assume_current)
        assert server.served() == [1, 2, 3, 4]
        assert "v0" not in server.versions
        assert {one.version for one in store.imported} == {store[0].version, again.version}

    @pytest.mark.parametrize("calls", [1, 2, 3])
    def test_a_stale_run_changes_nothing_more(self, calls: int) -> None:
        """The guard stands before the import, before the switch, before the deletion."""
        server, store = SmallLabelStudio(2), Store()
        publisher(server, store).publish(report(1, 2), assume_current)
        count = 0

        def guard() -> None:
            nonlocal count
            count += 1
            if count == calls:
                raise StaleRound

        with pytest.raises(StaleRound):
            publisher(server, store).publish(report(2, 1), guard)
        assert server.served() == ([2, 1] if calls == 3 else [1, 2])
        assert len(server.versions) == (1 if calls == 1 else 2)

    def test_an_old_version_that_cannot_be_deleted_fails_no_round(self) -> None:
        server, store = SmallLabelStudio(2), Store()
        old = publisher(server, store).publish(report(1, 2), assume_current)
        publisher(server, store).publish(report(1, 2), assume_current)
        store.age(timedelta(days=8))

        server.before = fail_at("DELETE model-versions", httpx.ReadTimeout("the database is locked"))
        with structlog.testing.capture_logs() as logs:
            published = publisher(server, store).publish(report(2, 1), assume_current)
        assert server.project["model_version"] == published.version
        assert logs[0]["version"] == old.version

        server.before = _nothing
        publisher(server, store).publish(report(2, 1), assume_current)
        assert old.version not in server.versions


# The reserve


@pytest.mark.parametrize(
    ("batch_size", "reserve", "low", "together"),
    [(20, 80, 40, 100), (20, 0, 10, 20), (1, 0, 1, 1), (20, "all", 0, None)],
)
def test_low_water(batch_size, reserve, low, together):
    options = ProjectOptions(batch_size=batch_size, reserve=reserve)

    assert (low_water(options), publication_size(options)) == (low, together)


@pytest.mark.parametrize(
    ("reserve", "images", "published"),
    [(80, 50_000, 0), ("all", 2000, 0), ("all", 2001, 2001), (1980, 50_000, 0), (5000, 50_000, 5020), (5000, 900, 0)],
)
def test_a_large_reserve_is_warned_of(reserve: int | str, images: int, published: int) -> None:
    warning = large_reserve(ProjectOptions(batch_size=20, reserve=reserve), images)

    assert bool(warning) == bool(published)
    assert f"{published or ''}" in warning


@pytest.mark.parametrize(
    ("at_publish", "annotations", "left"),
    [(10, 10, 3), (10, 12, 1), (10, 14, -1), (10, 9, 3), (10, None, 3), (None, 1000, 3)],
)
def test_remaining_published(at_publish, annotations, left):
    published = ranking("al-1", "1", "2", "3").model_copy(update={"annotations": at_publish})

    assert remaining_published(published, annotations) == left


# What readers are served


def ranking(version: str, *image_ids: str, imported_at: datetime | None = None) -> PublishedRanking:
    return PublishedRanking(
        version=version, round_id="r1", image_ids=image_ids, seconds={}, published_at=NOON, imported_at=imported_at
    )


def read(
    row: dict[str, Any],
    published: PublishedRanking | None,
    versions: list[dict[str, Any]],
    *,
    tasks: Collection[int] = (1,),
    backends: list[dict[str, Any]] | None = None,
    imported: Callable[[], Collection[ImportedVersion]] = list,
    user: str | None = None,
) -> Serving:
    """Read the serving of a project with these model versions and backends."""
    answers = {"/api/ml/": [{"id": 1}] if backends is None else backends}
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, json=answers.get(request.url.path, {"static": versions}))
    )
    client = LabelStudioClient("http://ls", "k", transport=transport)
    return read_serving(client, {"id": 7} | row, tasks, published, imported, user=user)


WHOLE = Serving(
    version="al-1",
    there=3,
    held=3,
    model_version="al-1",
    sampling="Uncertainty sampling",
    maximum_annotations=1,
    show_collab_predictions=True,
)


@pytest.mark.parametrize(
    ("change", "aspect", "words", "mended"),
    [
        ({"sampling": "Sequential sampling"}, "sampling", "'Sequential sampling'", False),
        ({"sampling": None}, "sampling", "None", False),
        ({"maximum_annotations": 3}, "readers per image", "shown to 3 readers", False),
        ({"show_collab_predictions": False}, "predictions on", "switched off", False),
        ({"model_version": ""}, "order served", "model_version is ''; the published ranking is al-1", True),
        ({"model_version": "Active learning"}, "order served", "the backend's title, which serves in random", True),
        ({"model_version": "my-resnet"}, "order served", "'my-resnet'", True),
        ({"held": 0}, "predictions", "holds 0 predictions of al-1, and 3 of its images are there", True),
        ({"held": 6}, "predictions", "holds 6 predictions", True),
        ({"there": 2}, "predictions", "2 of its images", True),
        ({"imported_again": True}, "predictions", "predictions of al-1 were imported again", True),
    ],
)
def test_each_problem_alone(change, aspect, words, mended):
    serving = WHOLE.model_copy(update=change)

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning")

    assert (problem.aspect, problem.mended, is_lost(serving)) == (aspect, mended, mended)
    assert words in problem.seen


def test_the_whole_ranking_has_none():
    assert serving_problems(WHOLE, ProjectOptions(), "Active learning") == []
    assert not is_lost(WHOLE)


@pytest.mark.parametrize("change", [{"model_version": ""}, {"held": 0}, {"model_version": "Active learning"}])
def test_where_no_image_waits_nobody_misses_a_lost_ranking(change):
    serving = WHOLE.model_copy(update=change | {"sampling": None})

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning", waits=False)

    assert problem.aspect == "sampling"


def test_readers_per_image_are_as_many_as_the_owner_chose():
    options = ProjectOptions(annotations_per_task=3)

    three = WHOLE.model_copy(update={"maximum_annotations": 3})
    assert serving_problems(three, options, "t") == []
    [problem] = serving_problems(three.model_copy(update={"overlap_cohort_percentage": 99}), options, "t")
    assert "only 99 % of the images are shown to more than one reader" in problem.seen
    one = WHOLE.model_copy(update={"overlap_cohort_percentage": 99})
    assert serving_problems(one, ProjectOptions(), "t") == []
    [problem] = serving_problems(WHOLE, options, "t")
    assert "shown to 1 readers, and annotations_per_task is 3" in problem.seen


@pytest.mark.parametrize(("model_version", "problems"), [("", 0), ("my-resnet", 0), ("Active learning", 1)])
def test_before_the_first_ranking(model_version, problems):
    """Nothing of ours can be lost; the backend's title costs three requests an image."""
    serving = WHOLE.model_copy(update={"version": None, "held": 0, "there": 0, "model_version": model_version})

    assert len(serving_problems(serving, ProjectOptions(), "Active learning")) == problems
    assert not is_lost(serving)


@pytest.mark.parametrize("change", [{"model_version": "my-resnet"}, {"held": 0}])
def test_of_a_project_without_a_backend_nothing_is_mended(change):
    """Its owner has removed the backend; what is said stays true."""
    serving = WHOLE.model_copy(update=change | {"connected": False})

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning")

    assert not problem.mended
    assert not is_lost(serving)
    assert "does not have this ML backend any more" in problem.seen


def test_of_another_installation_the_ranking_is_left_and_named():
    """Two that publish in one project would replace each other's ranking every minute."""
    serving = WHOLE.model_copy(update={"model_version": "al-r000009-bald-0a1b2c", "foreign": True})

    [problem] = serving_problems(serving, ProjectOptions(), "Active learning")

    assert (problem.mended, problem.foreign) == (False, True)
    assert not is_lost(serving)
    assert "another installation" in problem.seen


@pytest.mark.parametrize(
    ("model_version", "foreign"),
    [
        ("al-r000009-bald-0a1b2c", True),
        ("al-r1000009-mean_std-0a1b2c", True),
        ("al-r000001-entropy-aaaaaa", False),  # of this installation
        ("al-r50-imagenet", False),
        ("my-resnet", False),
        ("", False),
    ],
)
def test_another_installation_is_known_by_the_name_of_its_ranking(model_version, foreign):
    on_record = [ImportedVersion(version="al-r000001-entropy-aaaaaa")]

    assert read({"model_version": model_version}, None, [], imported=lambda: on_record).foreign == foreign


def test_the_published_ranking_is_our_own_whatever_is_on_record():
    """A data folder of an earlier version may lack it; what is lost is published again all the same."""
    name = "al-r000009-bald-0a1b2c"

    serving = read({"model_version": name}, ranking(name, "1"), [], imported=pytest.fail)

    assert (serving.foreign, is_lost(serving)) == (False, True)


OURS, SAM = {"id": 1, "basic_auth_user": "al"}, {"id": 2, "basic_auth_user": None}


@pytest.mark.parametrize(
    ("held", "backends", "user", "connected"),
    [
        (1, [], "al", False),
        (1, [OURS], "al", True),
        (1, [SAM, OURS], "al", True),
        (1, [SAM], "al", False),
        (1, [SAM], None, True),  # without credentials any of them may be this backend
        (2, [], "al", True),
    ],
)
def test_backends_are_read_only_where_the_ranking_is_lost(held, backends, user, connected):
    versions = [{"model_version": "al-1", "count": held}]

    serving = read(
        {"model_version": "al-1"}, ranking("al-1", "1", "3"), versions, tasks=(1, 3), backends=backends, user=user
    )

    assert serving.connected == connected


def test_is_read_from_the_project_and_its_versions():
    """Of the images 1, 2 and 3 the project has 1 and 3 still."""
    row = {"model_version": "al-1", "sampling": "Uncertainty sampling", "maximum_annotations": 1}
    versions = [{"model_version": "al-1", "count": 2}, {"model_version": "al-0", "count": 9}]

    serving = read(row, ranking("al-1", "1", "2", "3"), versions, tasks=(1, 3, 9))

    assert (serving.version, serving.there, serving.held) == ("al-1", 2, 2)
    assert (serving.model_version, serving.show_collab_predictions) == ("al-1", False)


@pytest.mark.parametrize(
    ("imported_at", "newest", "again"),
    [
        (NOON, "2026-01-01T12:00:00.000001Z", True),  # deleted and imported over: as many as before
        (NOON, "2026-01-01T12:00:00Z", False),
        (NOON, "2026-01-01T11:59:59.9Z", False),  # the newest one is deleted with its task
        (NOON, None, False),
        (None, "2026-01-01T12:00:01Z", False),  # published by an older version of this backend
    ],
)
def test_as_many_predictions_need_not_be_the_published_ones(imported_at, newest, again):
    versions = [{"model_version": "al-1", "count": 1, "latest": newest}]

    serving = read({"model_version": "al-1"}, ranking("al-1", "1", imported_at=imported_at), versions)

    assert serving.imported_again == again
