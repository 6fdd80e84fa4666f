"""The published ranking is what a Label Studio on Postgres serves: Postgres locks rows, and sorts NULL last.

``make compat`` runs the other tests of the order, the events and the publisher on Postgres as well.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from ml_backend.config import ProjectOptions
from ml_backend.demo.readers import OpenTask, Reader, ReadingRoom, ServedImage, SimulatedLabels, Submission
from ml_backend.demo.services import LabelStudio
from ml_backend.demo.summary import check_order
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.label_studio.publisher import read_serving, serving_problems
from ml_backend.schemas import PublishedRanking
from ml_backend.storage import RoundStore
from tests.system.postgres import Postgres, label_studio_on_postgres

# Postgres
from tests.system.test_publisher import XML, LiveProject, nothing

pytestmark = pytest.mark.system

CLASSES = ("normal", "moderate", "severe")
CONFIG = parse_label_config(XML)
TASKS = 24
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def services(
    missing: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LabelStudio, Postgres]]:
    if not LabelStudio.default_binary().exists():
        missing(f"{LabelStudio.default_binary()} (run `make setup`)")
    with label_studio_on_postgres(tmp_path_factory.mktemp("label-studio"), missing) as running:
        yield running


class Project(LiveProject):
    """A project with two dozen tasks, and its readers."""

    def __init__(self, client: LabelStudioClient, store: RoundStore, stack: ExitStack) -> None:
        super().__init__(client, store, TASKS)
        self._stack = stack
        truth = {f"{number}.png": CLASSES[number % 3] for number in range(TASKS)}
        self.labels = SimulatedLabels(truth, CLASSES, mistakes=0.0, seed=0)

    def readers(self, *names: str) -> list[Reader]:
        """New users of Label Studio, each with a session."""
        invite = self.client.request("GET", "/api/invite", dict)["invite_url"]
        return [self._stack.enter_context(Reader(name, self.client.url)).sign_up(str(invite)) for name in names]

    def version(self) -> str:
        return str(self.client.project(self.id)["model_version"] or "")

    def publish(self, ranking: list[str], round_number: int = 1, **options: object) -> PublishedRanking:
        report = self.report(ranking, f"r{round_number:06}")
        return self.publisher(**options).publish(report, nothing)

    def answer(self, reader: Reader, task: OpenTask) -> Submission:
        return reader.submit(self.id, task, self.labels.label(reader.name, task.uri), CONFIG)

    def annotated(self) -> list[str]:
        """The task of each annotation that Label Studio holds."""
        path = f"/api/projects/{self.id}/export"
        exported = self.client.request("GET", path, list, query={"exportType": "JSON"})
        return [str(task["id"]) for task in exported for _ in task["annotations"]]


@pytest.fixture
def project(services: tuple[LabelStudio, Postgres], tmp_path: Path) -> Iterator[Project]:
    with ExitStack() as stack:
        label_studio, _ = services
        client = stack.enter_context(LabelStudioClient(label_studio.url, label_studio.admin.token))
        live = Project(client, RoundStore(tmp_path), stack)
        stack.callback(client.send, "DELETE", f"/api/projects/{live.id}/")
        yield live


def shuffled(tasks: list[str], seed: int = 1) -> list[str]:
    return random.Random(seed).sample(tasks, len(tasks))


def test_two_readers_are_served_the_ranking_and_then_the_rest(
    project: Project, services: tuple[LabelStudio, Postgres]
) -> None:
    """What has no prediction comes after what has one, for both of them and in the Data Manager."""
    ranking = shuffled(project.tasks)
    published = project.publish(ranking, reserve=10)  # behind a batch of 2
    room = ReadingRoom(project.readers("ann", "ben"), project.id, CONFIG, project.labels, project.version)
    in_view = project.order()
    for _ in range(16):
        room.turn()

    _, postgres = services
    stored = postgres.query(
        f"select model_version, count(*) from prediction where project_id = {project.id} group by 1"
    )
    served = [one.image_id for one in room.served]
    assert stored == [f"{published.version}|12"]
    assert served[:12] == list(published.image_ids) == ranking[:12] == in_view
    # The reader who asks while the other one holds the last ranked image gets none: Label Studio serves no image
    # without a prediction before the last with one is answered.
    assert len(served) == 15
    assert set(served[12:]) < set(ranking[12:])


def test_predictions_without_a_score_come_last_and_are_noticed(project: Project) -> None:
    """Somebody imports them under the published version; on sqlite they would come first."""
    ranking = shuffled(project.tasks)
    published = project.publish(ranking, reserve=2)
    unscored = [
        {"task": int(task), "result": [], "model_version": published.version} for task in (*ranking[:1], *ranking[4:6])
    ]
    assert project.client.import_predictions(project.id, unscored) == 3
    [reader] = project.readers("ann")
    served = []
    for _ in range(6):
        task = reader.next_task(project.id, CONFIG)
        assert task is not None
        served.append(task.image_id)
        project.answer(reader, task)

    serving = read_serving(
        project.client, project.client.project(project.id), set(map(int, project.tasks)), published, lambda: ()
    )
    assert served[:4] == ranking[:4]
    assert set(served[4:]) == set(ranking[4:6])
    assert "predictions" in {one.aspect for one in serving_problems(serving, ProjectOptions(reserve=2), "")}


def test_readers_who_ask_at_the_same_time_get_different_images(project: Project) -> None:
    ranking = shuffled(project.tasks)
    project.publish(ranking, reserve="all")
    readers = project.readers("ann", "ben", "cleo", "dan")
    gate = threading.Barrier(len(readers))

    def ask(reader: Reader) -> str:
        gate.wait(WITHIN_S)
        task = reader.next_task(project.id, CONFIG)
        assert task is not None
        project.answer(reader, task)
        return task.image_id

    with ThreadPoolExecutor(len(readers)) as pool:
        rounds = [list(pool.map(ask, readers)) for _ in range(3)]

    for number, images in enumerate(rounds):
        assert sorted(images) == sorted(ranking[4 * number : 4 * number + 4])


class Reading:
    """Readers who label at the same time, each as fast as Label Studio answers, until the images run out."""

    def __init__(self, project: Project, names: tuple[str, ...]) -> None:
        self._project = project
        self._turn = threading.Lock()  # one is served after the other, so that the order can be told
        self._readers = project.readers(*names)
        self.served: list[ServedImage] = []
        self.submitted: list[Submission] = []

    def start(self, pool: ThreadPoolExecutor) -> list[Future[None]]:
        return [pool.submit(self._read, reader) for reader in self._readers]

    def _read(self, reader: Reader) -> None:
        while (task := self._serve(reader)) is not None:
            self.submitted.append(self._project.answer(reader, task))

    def _serve(self, reader: Reader) -> OpenTask | None:
        with self._turn:
            before = self._project.version()
            task = reader.next_task(self._project.id, CONFIG)
            after = self._project.version()
            if task is not None:
                versions = (before,) if before == after else (before, after)
                self.served.append(ServedImage(reader.name, task.image_id, versions))
            return task

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + WITHIN_S
        while len(self.submitted) < count:
            assert time.monotonic() < deadline, f"{len(self.submitted)} of {count} submitted in {WITHIN_S:.0f} s"
            time.sleep(0.02)


def test_ranked_again_while_readers_submit(project: Project) -> None:
    """Three more rankings; old versions are deleted in the midst of it, and every answer is kept."""
    rankings = {}
    first = project.publish(project.tasks, reserve="all")
    rankings[first.version] = first.image_ids
    reading = Reading(project, ("ann", "ben"))
    with ThreadPoolExecutor(2) as pool:
        readers = reading.start(pool)
        for number in (2, 3, 4):
            reading.wait_for(TASKS // 4 * (number - 1))
            project.age(timedelta(days=8))
            published = project.publish(shuffled(project.tasks, number), number, reserve="all")
            rankings[published.version] = published.image_ids
        for one in readers:
            one.result()

    checks = check_order(reading.served, rankings)
    assert [str(one) for check in checks.values() for one in check.deviations] == []
    assert sum(check.in_order for check in checks.values()) == TASKS
    assert all(checks[version].in_order for version in rankings)
    assert sorted(project.annotated()) == sorted(project.tasks)
    # Deleted is what was replaced more than a week ago: by now all but the two last.
    assert project.client.model_versions(project.id).keys() == set(list(rankings)[-2:])


def test_a_version_is_deleted_under_the_reader_who_answered_from_it(project: Project) -> None:
    """The annotation stays, the order goes on, and nothing else is deleted with the version."""
    theirs = {"task": int(project.tasks[0]), "result": [], "score": 0.5, "model_version": "theirs"}
    project.client.import_predictions(project.id, [theirs])
    old = project.publish(project.tasks, reserve="all")
    [reader] = project.readers("ann")
    task = reader.next_task(project.id, CONFIG)
    assert task is not None
    project.answer(reader, task)
    project.publish(project.tasks[::-1], 2, reserve="all")
    project.age(timedelta(days=8))

    last = project.publish(project.tasks[::-1], 3, reserve="all")

    following = reader.next_task(project.id, CONFIG)
    assert following is not None
    assert (task.image_id, following.image_id) == (project.tasks[0], last.image_ids[0])
    held = project.client.model_versions(project.id)
    assert old.version not in held
    assert held["theirs"] == 1
    assert project.annotated() == [task.image_id]
