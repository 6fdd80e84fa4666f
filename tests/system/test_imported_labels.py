"""Imported labels, and images in several tasks: rounds on a real Label Studio."""

import base64
from contextlib import closing
from typing import Any

import pytest

from ml_backend.demo.options import DemoImage, draw_images
from ml_backend.demo.project import upload_images
from ml_backend.demo.readers import OpenTask, choice_result, file_name
from ml_backend.doctor.checks import CHECKS, CheckContext
from ml_backend.doctor.runner import examine
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

OPTIONS = SMALL_NETWORK | {"batch_size": 5, "min_labels_per_class": 25}
IMAGES = draw_images(12, seed=21, side=64)


def answered(project: LiveProject, *values: str, **fields: object) -> list[dict[str, Any]]:
    """Annotations as in a file to import."""
    config = project.config
    return [{"result": choice_result(value, config)} | fields for value in values]


def import_tasks(project: LiveProject, tasks: list[dict[str, Any]]) -> list[str]:
    """Import these tasks with their annotations; their ids.

    Where its SQLite database is locked, Label Studio tries an import again without the annotations
    (``retry_database_locked`` around a serializer that takes them out of its input): such tasks are imported anew.
    """
    client, before = project.client, {str(task["id"]) for task in project.client.changed_tasks(project.id)}
    for _ in range(5):
        client.send("POST", f"/api/projects/{project.id}/import", body=tasks)
        new = [task for task in client.changed_tasks(project.id) if str(task["id"]) not in before]
        if [len(task["annotations"]) for task in new] == [len(task.get("annotations", ())) for task in tasks]:
            return [str(task["id"]) for task in new]
        for task in new:
            client.send("DELETE", f"/api/tasks/{task['id']}/")
    raise AssertionError(f"five imports of {len(tasks)} tasks, and each lost annotations")


def page_of(project: LiveProject) -> str:
    return " ".join(project.page().text.split())


def doctor_of(project: LiveProject) -> dict[str, str]:
    """What two of the doctor's checks see, of which the page shows the same; without those of services."""
    names = ("settings", "Label Studio", "API key", "project", "label config", "options", "classes", "rounds on disk")
    checks = [one for one in CHECKS if one.name in (*names, "same image twice", "ground truths")]
    with closing(CheckContext(project.id, project.backend.url, lambda: project.backend.settings)) as case:
        found = {one.name: one for one in examine(case, checks)}
    assert {one.verdict for one in found.values()} == {"ok"}
    return {name: found[name].seen for name in ("same image twice", "ground truths")}


def next_round(project: LiveProject) -> Any:
    """Press the button, and wait for its round; returns the round and its ranking."""
    before = project.store.round_ids()
    project.start_training()
    return project.wait_for(lambda report: report.request.round_id not in before)


def inline(image: DemoImage) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.content).decode()}"


@pytest.fixture(scope="module")
def copies(live_project) -> LiveProject:
    project: LiveProject = live_project(IMAGES, OPTIONS)
    return project


@pytest.fixture(scope="module")
def imported(live_project) -> LiveProject:
    """Images inside the tasks themselves; two uploaded ones are unlabelled."""
    project: LiveProject = live_project(IMAGES[:2], OPTIONS)
    drawn = draw_images(22, seed=22, side=64)
    tasks = [{"data": {"image": inline(image)}} for image in drawn]
    three = [task | {"annotations": answered(project, "normal", "normal", "severe")} for task in tasks[:10]]
    one = [task | {"annotations": answered(project, "moderate")} for task in tasks[10:]]
    numbers = import_tasks(project, three + one)
    reader = project.reader("ann")
    for number, value in zip(numbers[10:], ["severe"] * 8 + ["moderate"] * 4, strict=True):
        reader.submit(project.id, OpenTask(number, ""), value, project.config)
    return project


class TestTheSameImageTwice:
    """12 images, imported again by their addresses, and uploaded again: 36 tasks. In the order of the tests."""

    def names(self, project: LiveProject, image_ids: Any) -> list[str]:
        uris = {str(task["id"]): task["data"]["image"] for task in project.client.changed_tasks(project.id)}
        return [file_name(uris[image_id]) for image_id in image_ids]

    def test_no_copy_of_a_labelled_image_is_served(self, copies):
        copies.wait_for()
        first = dict(copies.images())
        again = import_tasks(copies, [{"data": {"image": uri}} for uri in first.values()])
        client, token = copies.client, copies.backend.environ["AL_LABEL_STUDIO_API_KEY"]
        assert list(upload_images(client, token, copies.id, copies.config.image_key, IMAGES)) == [12]
        labelled = sorted(first, key=int)[:9]
        copies.label(labelled[:8])
        copies.annotate({again[8]: copies.truth[IMAGES[8].name]})
        other = "severe" if copies.truth[IMAGES[0].name] != "severe" else "normal"
        copies.annotate({again[0]: other})

        report, published = next_round(copies)

        # Before this round nobody had read the files that were uploaded again; when it is over they are known.
        assert sorted(self.names(copies, published.image_ids)) == sorted(image.name for image in IMAGES[9:])
        assert sorted(published.image_ids, key=int) == sorted(first, key=int)[9:]
        assert sum(report.labels_per_class.values()) == 9

    def test_the_next_round_knows_them_all(self, copies):
        report, published = next_round(copies)

        assert sorted(self.names(copies, report.ranking.image_ids)) == sorted(image.name for image in IMAGES[9:])
        assert set(published.image_ids) == set(report.ranking.image_ids)
        assert sum(report.labels_per_class.values()) == 9
        assert self.names(copies, report.disputed) == [IMAGES[0].name]
        assert sum("holds the same image as task" in one.reason for one in report.exclusions) == 36 - 10 - 3

    def test_the_page_and_the_doctor_count_them_alike(self, copies):
        sentence = "12 images are in two or more tasks (36 in all)"

        assert sentence in page_of(copies)
        assert doctor_of(copies)["same image twice"].startswith(sentence)


class TestGroundTruths:
    """Ten images with three imported answers, twelve with one that readers answer too."""

    SENTENCE = "22 labels are ground truths; they override 8 differing answers of readers."

    def test_by_default_they_override_and_differences_are_disputed(self, imported):
        report, _ = next_round(imported)

        assert report.labels_per_class == {"normal": 10, "moderate": 12, "severe": 0}
        assert len(report.disputed) == 10 + 8

    def test_page_doctor_and_connect_say_how_many(self, imported):
        assert self.SENTENCE in page_of(imported)
        assert doctor_of(imported)["ground truths"] == self.SENTENCE
        connected = imported.run("connect", "--project", str(imported.id), "--url", imported.backend.url).stdout
        assert "nothing to change" in connected.splitlines()
        assert self.SENTENCE in connected

    def test_as_readers_they_are_answers_among_others(self, imported):
        imported.connect(ground_truth="reader")

        report, _ = next_round(imported)

        assert report.labels_per_class == {"normal": 10, "moderate": 4, "severe": 8}
        assert len(report.disputed) == 8
        assert "42 annotations are marked as ground truth and count as answers of readers" in page_of(imported)

    def test_left_out_only_readers_count(self, imported):
        imported.connect(ground_truth="ignore")

        report, _ = next_round(imported)

        assert report.labels_per_class == {"normal": 0, "moderate": 4, "severe": 8}
        assert report.disputed == ()
        assert sum("ground_truth=ignore leaves out" in one.reason for one in report.exclusions) == 10
