"""Three readers, one of them poor, on the real Label Studio: labels in doubt are read again by another reader."""

import random
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from ml_backend.analytics.history import answers_of
from ml_backend.analytics.order_audit import stored_fidelity
from ml_backend.config import ProjectOptions
from ml_backend.consensus.rules import adjudication, rule
from ml_backend.demo.options import DRAWN_CLASSES, draw_images
from ml_backend.demo.readers import Reader, Submission, file_name
from ml_backend.label_studio.disagreements import DisagreementsTab
from ml_backend.label_studio.sync import TaskImages, annotations_in, read_project
from ml_backend.schemas import Annotation, PublishedRanking, RoundReport
from ml_backend.storage.project_state import ReadingStore
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

OPTIONS = SMALL_NETWORK | {
    "batch_size": 12,
    "reserve": 48,
    "reread_share": 0.5,
    "committee": 2,
    "passes": 4,
    "strategy": "entropy",
    "consensus": "ordinal",
}
SHIFTS = (-2, -1, 0, 1, 2)
GOOD, POOR = (0.0, 0.04, 0.92, 0.04, 0.0), (0.25, 0.2, 0.1, 0.2, 0.25)
"""Probability that a reader is so many classes off; beyond the scale it is its end."""
CONFUSION = {"ann": GOOD, "ben": GOOD, "cat": POOR}


@dataclass
class Reading:
    """What three readers did, and the orders that they did it under."""

    project: LiveProject
    readers: Mapping[str, Reader]
    submissions: list[Submission] = field(default_factory=list)
    rounds: list[tuple[RoundReport, PublishedRanking]] = field(default_factory=list)
    served: list[tuple[str, str]] = field(default_factory=list)
    due: list[tuple[str, str]] = field(default_factory=list)
    contested: set[str] = field(default_factory=set)

    def answer(self, name: str, uri: str) -> str:
        truth = DRAWN_CLASSES.index(self.project.truth[file_name(uri)])
        shift = random.Random(f"{name} {file_name(uri)}").choices(SHIFTS, CONFUSION[name])[0]
        return DRAWN_CLASSES[min(max(truth + shift, 0), len(DRAWN_CLASSES) - 1)]

    def read(self, name: str) -> str:
        """One image, from the next one served to its submission."""
        project, reader = self.project, self.readers[name]
        task = reader.next_task(project.id, project.config)
        assert task is not None, f"{name} waits although images are left"
        self.submissions.append(reader.submit(project.id, task, self.answer(name, task.uri), project.config))
        return task.image_id

    def at_once(self, each: int) -> None:
        threads = [threading.Thread(target=lambda n=name: [self.read(n) for _ in range(each)]) for name in self.readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def expected(self, names: Sequence[str], published: PublishedRanking) -> list[tuple[str, str]]:
        """The image that each reader should be served: the first of the order that is left for him."""
        had = {(one.reader, one.image_id) for one in self.submissions}
        again, served = set(published.rereads), []
        for name in names:
            read = {image_id for _, image_id in had}
            left = (i for i in published.image_ids if (name, i) not in had and (i in again or i not in read))
            image_id = next(left)
            again.discard(image_id)
            had.add((name, image_id))
            served.append((name, image_id))
        return served

    def truth(self) -> dict[str, str]:
        """Image id -> class."""
        tasks = self.project.exported()
        return {str(one["id"]): self.project.truth[file_name(one["data"]["image"])] for one in tasks}

    def annotations(self) -> list[Annotation]:
        """As a round reads them."""
        cache = read_project(self.project.client, self.project.id, None).cache
        config, options = self.project.config, ProjectOptions.resolve(OPTIONS, environ={})
        return annotations_in(cache, config, options, TaskImages.of(cache, config))[0]

    def wait_for_events(self, count: int) -> None:
        """Until the backend has counted so many changed annotations since the last round, and no more."""
        self.project.wait_until(lambda status: status.changes == count)


@pytest.fixture(scope="module")
def reading(live_project) -> Reading:
    """21 first reads by three readers, a round, 15 reads in turn, 9 at once, a round."""
    project = live_project(draw_images(60, seed=3, side=64), OPTIONS)
    project.wait_for()
    reading = Reading(project, {name: project.reader(name) for name in CONFUSION})
    for name in [*CONFUSION] * 7:
        reading.read(name)
    # Label Studio's owner contradicts three of them by two classes: in doubt, whatever the network thinks.
    other = {DRAWN_CLASSES[0]: DRAWN_CLASSES[-1], DRAWN_CLASSES[-1]: DRAWN_CLASSES[0]}
    contested = [one for one in reading.submissions if one.value in other][:3]
    project.annotate({one.image_id: other[one.value] for one in contested})
    reading.contested = {one.image_id for one in contested}
    reading.wait_for_events(21 + 3)
    reading.rounds.append(project.train())
    names = [*CONFUSION] * 5
    reading.due = reading.expected(names, reading.rounds[0][1])
    reading.served = [(name, reading.read(name)) for name in names]
    reading.at_once(3)
    reading.wait_for_events(15 + 9)
    reading.rounds.append(project.train())
    return reading


class TestRereads:
    def test_come_in_the_published_order_to_readers_who_have_not_had_them(self, reading):
        rereads = reading.rounds[0][1].rereads
        again = [(name, image_id) for name, image_id in reading.served if image_id in rereads]
        first = {one.image_id: one.reader for one in reading.submissions[:21]}

        assert reading.served == reading.due
        assert reading.contested <= {image_id for _, image_id in again}
        assert len({image_id for _, image_id in again}) == len(again) <= 6
        assert all(first[image_id] != name for name, image_id in again)

    def test_are_among_the_batch_as_ranked(self, reading):
        report, published = reading.rounds[0]

        assert published.rereads == tuple(one.image_id for one in report.ranking.rereads)
        assert set(published.rereads) < set(published.image_ids[:12])
        assert published.first_reads == 60 - 21

    def test_of_the_earlier_order_are_closed(self, reading):
        project = reading.project
        tasks = [int(task["id"]) for task in project.exported()]
        opened = {task for task, row in project.client.task_counts(project.id, tasks).items() if row["overlap"] != 1}

        assert opened == set(map(int, reading.rounds[1][1].rereads)) == set(project.store.asked_again())

    def test_are_no_exceptions_to_the_order(self, reading):
        project = reading.project
        cache = read_project(project.client, project.id, None).cache
        answers = answers_of(cache, project.config, ProjectOptions.resolve(OPTIONS, environ={}))
        begin, end = reading.submissions[21].sent_at, reading.submissions[35].answered_at
        found = stored_fidelity(project.store, [one for one in answers if one.created_at <= end])

        assert found is not None
        assert [one for one in found.exceptions if begin <= one.at <= end] == []
        # Further answers that no order asked for: the owner's three at most.
        assert found.answered - found.in_order - len(found.exceptions) <= 3


def test_the_tab_shows_what_readers_disagree_about(reading):
    project = reading.project
    tab = ReadingStore(project.store.folder).disagreements_tab(DisagreementsTab)
    assert tab is not None
    query = {"project": str(project.id), "view": str(tab.id)}
    shown = project.client.request("GET", "/api/tasks", dict, query=query)["tasks"]
    disagreed = adjudication(reading.annotations(), DRAWN_CLASSES, True)

    assert {str(task["id"]) for task in shown} == set(disagreed)
    assert reading.contested <= set(disagreed)


def test_the_label_of_an_image_with_two_readers(reading):
    """Which rule comes nearer to the truth on so few reads is chance, and printed."""
    annotations = reading.annotations()
    truth = {image_id: DRAWN_CLASSES.index(name) for image_id, name in reading.truth().items()}
    errors = {}
    for name in ("median", "ordinal"):
        labels = [label for label in rule(name)(annotations, DRAWN_CLASSES).labels if label.raters > 1]
        errors[name] = sum(abs(DRAWN_CLASSES.index(label.value) - truth[label.image.id]) for label in labels)
    sys.stdout.write(f"distance to the truth over {len(labels)} images with two readers or more: {errors}\n")

    assert len(labels) >= 3


def test_another_number_of_readers_holds_for_all_images(reading):
    """Label Studio would give it only to the images that are to be read again, were there any."""
    project = reading.project
    tasks = [*map(int, project.images()), *(int(task["id"]) for task in project.exported())]
    project.connect(reread_share=0, annotations_per_task=2)

    assert {row["overlap"] for row in project.client.task_counts(project.id, tasks).values()} == {2}
