"""The published ranking is what a real Label Studio serves, also after a crash between any two steps."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from ml_backend.acquisition.pointwise import entropy
from ml_backend.config import ProjectOptions
from ml_backend.errors import LabelStudioError, StaleRound
from ml_backend.images.synthetic import draw_pool
from ml_backend.images.transforms import to_input
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.label_studio.publisher import SAMPLING, LabelStudioPublisher
from ml_backend.model.checkpoint import save_checkpoint
from ml_backend.model.network import McDropoutClassifier
from ml_backend.schemas import Connection, ProjectKey, Ranking, RoundReport, RoundRequest
from ml_backend.storage import RoundStore
from ml_backend.storage.rounds import sha256_of
from tests.command_line import run_cli
from tests.manual import commands_run_by
from tests.system.live import RunningLabelStudio

pytestmark = pytest.mark.system
XML = (Path(__file__).parents[2] / "label_studio_config" / "severity.xml").read_text()
TASKS = 8


class LiveProject:
    """A project with a few tasks on a real Label Studio, ready for a ranking."""

    def __init__(self, client: LabelStudioClient, store: RoundStore, tasks: int = TASKS) -> None:
        self.client = client
        body = {"title": "test publisher", "label_config": XML, "sampling": SAMPLING}
        self.id = int(client.request("POST", "/api/projects/", dict, body=body)["id"])
        images = [{"data": {"image": f"http://films.example/{number}.png"}} for number in range(tasks)]
        client.send("POST", f"/api/projects/{self.id}/import", body=images)
        self.tasks = [str(task["id"]) for task in client.unlabelled_tasks(self.id)]
        self.store = store.project(ProjectKey(id=self.id, created=0))

    def publisher(self, **options: Any) -> LabelStudioPublisher:
        return LabelStudioPublisher(
            self.client, self.id, parse_label_config(XML), ProjectOptions(**options), self.store
        )

    def report(self, image_ids: Sequence[str], round_id: str = "r000001", suggestion: str = "severe") -> RoundReport:
        return RoundReport(
            request=RoundRequest(
                project=ProjectKey(id=self.id, created=0),
                round_id=round_id,
                reason="labels",
                classes=("normal", "moderate", "severe"),
                strategy="entropy",
                batch_size=2,
                min_labels_per_class=2,
                validation_share=0.2,
                seed=0,
            ),
            labels_per_class={},
            fit=None,
            ranking=Ranking(
                strategy="entropy",
                image_ids=tuple(image_ids),
                scores=(0.0,) * len(image_ids),
                batch_size=2,
                suggestions=dict.fromkeys(image_ids, suggestion),
                confidences=dict.fromkeys(image_ids, 0.75),
            ),
            seconds={},
            started_at=datetime.now(UTC),
        )

    def age(self, by: timedelta) -> None:
        """Let time pass for every version that was replaced."""
        self.store.set_imported_versions(
            [
                one.model_copy(update={"replaced_at": one.replaced_at - by}) if one.replaced_at else one
                for one in self.store.imported_versions()
            ]
        )

    def order(self) -> list[str]:
        """The ranked tasks in Label Studio's own view, by the score under the project's model version."""
        if not self.client.project(self.id)["model_version"]:
            return []
        view = {"ordering": ["tasks:predictions_score"]}
        query = {"project": str(self.id), "query": json.dumps(view), "fields": "all", "page_size": "100"}
        tasks = self.client.request("GET", "/api/tasks", dict, query=query)["tasks"]
        return [str(task["id"]) for task in tasks if task["predictions_score"] is not None]

    def label_next(self) -> str:
        """What a reader does; the id of the task served."""
        task = self.client.request("GET", f"/api/projects/{self.id}/next", dict)
        value = {"choices": ["normal"]}
        result = [{"from_name": "severity", "to_name": "image", "type": "choices", "value": value}]
        parent = next((one["id"] for one in task["predictions"]), None)
        body = {"result": result, "parent_prediction": parent}
        self.client.send("POST", f"/api/tasks/{task['id']}/annotations/", body=body)
        return str(task["id"])


@pytest.fixture
def project(label_studio: RunningLabelStudio, tmp_path: Path) -> Iterator[LiveProject]:
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        live = LiveProject(client, RoundStore(tmp_path))
        yield live
        client.send("DELETE", f"/api/projects/{live.id}/")


def png(levels: npt.NDArray[np.uint8]) -> str:
    """An image as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def nothing() -> None:
    """A guard that lets everything through."""


def test_the_served_order_is_the_ranking(project: LiveProject) -> None:
    """Reversed, then re-ranked after three labels: every image in its place."""
    ranking = project.tasks[::-1]
    first = project.publisher().publish(project.report(ranking), nothing)
    served = [project.label_next() for _ in range(3)]
    second_ranking = project.tasks[1:5] + project.tasks[:1]
    second = project.publisher().publish(project.report(second_ranking, "r000002"), nothing)

    assert served == ranking[:3]
    assert first.image_ids == tuple(ranking)
    assert [project.label_next() for _ in range(5)] == second_ranking == list(second.image_ids)
    assert project.client.model_versions(project.id) == {first.version: TASKS, second.version: 5}
    assert project.store.published() == second


@pytest.mark.parametrize(
    "step", ["still_unlabelled", "import_predictions", "held_predictions", "patch_project", "delete_model_version"]
)
def test_a_crash_before_any_step_leaves_one_whole_order(
    project: LiveProject, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_order, new_order = project.tasks, project.tasks[::-1]
    oldest = project.publisher().publish(project.report(new_order), nothing)
    old = project.publisher().publish(project.report(old_order), nothing)
    project.age(timedelta(days=8))
    report = project.report(new_order, "r000002")

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(project.client, step, crash)
        with pytest.raises(KeyboardInterrupt):
            project.publisher().publish(report, nothing)
    switched = step == "delete_model_version"
    published = project.store.published()
    assert published is not None
    assert project.order() == (new_order if switched else old_order)
    assert (published.version == old.version) != switched
    assert published.version == project.client.project(project.id)["model_version"]

    again = project.publisher().publish(report, nothing)
    held = project.client.model_versions(project.id)
    assert project.order() == new_order
    assert {old.version, again.version} <= held.keys() <= {one.version for one in project.store.imported_versions()}
    assert oldest.version not in held
    assert project.label_next() == new_order[0]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_stale_run_leaves_one_whole_order(project: LiveProject, calls: int) -> None:
    count = 0

    def guard() -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise StaleRound

    project.publisher().publish(project.report(project.tasks), nothing)
    with pytest.raises(StaleRound):
        project.publisher().publish(project.report(project.tasks[::-1]), guard)

    assert project.order() == (project.tasks[::-1] if calls == 3 else project.tasks)


def test_nobody_elses_predictions_are_deleted(project: LiveProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those that have a name like ours; also of a version that is deleted in several lots."""
    monkeypatch.setattr("ml_backend.label_studio.publisher.LOT", 3)
    single = Mock(wraps=project.client.delete_prediction)
    monkeypatch.setattr(project.client, "delete_prediction", single)
    theirs = {"theirs", "al-r50-imagenet", "al-r000009-bald-0a1b2c"}
    for version in theirs:
        prediction = {"task": int(project.tasks[0]), "result": [], "score": 0.5, "model_version": version}
        project.client.import_predictions(project.id, [prediction])
    for _ in range(3):
        last = project.publisher().publish(project.report(project.tasks), nothing)
        project.age(timedelta(days=8))
    last = project.publisher().publish(project.report(project.tasks), nothing)

    held = project.client.model_versions(project.id)
    assert theirs < held.keys()
    assert last.version in held
    assert len(held) == len(theirs) + 2  # and the one that the last has replaced just now
    assert single.call_count == 2 * (TASKS - 3)


@pytest.mark.parametrize("prelabel", [False, True])
def test_an_image_held_across_many_rankings_can_be_answered(project: LiveProject, prelabel: bool) -> None:
    """The page sends the id of the prediction that it opened the image from; a deleted one is refused."""
    project.publisher(prelabel=prelabel).publish(project.report(project.tasks), nothing)
    held = project.client.request("GET", f"/api/projects/{project.id}/next", dict)
    [prediction] = held["predictions"]
    for number in range(4):
        project.publisher(prelabel=prelabel).publish(project.report(project.tasks[::-1], f"r00001{number}"), nothing)

    def answer(choice: str) -> dict[str, object]:
        region = {"from_name": "severity", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        return {"result": [region], "parent_prediction": prediction["id"]}

    path = f"/api/tasks/{held['id']}/annotations/"
    annotation = project.client.request("POST", path, dict, body=answer("normal"))
    project.client.send("PATCH", f"/api/annotations/{annotation['id']}/", body=answer("severe"))

    [stored] = project.client.request("GET", path, list)
    assert stored["result"][0]["value"]["choices"] == ["severe"]


def test_a_task_deleted_under_the_import(project: LiveProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """We looked, it was there; at the import it is gone, and Label Studio refuses the whole import."""
    gone, look = project.tasks[3], project.client.still_unlabelled

    def look_then_lose(project_id: int, ids: Any) -> set[int]:
        found = look(project_id, ids)
        if int(gone) in found:
            project.client.send("DELETE", f"/api/tasks/{gone}/")
        return found

    monkeypatch.setattr(project.client, "still_unlabelled", look_then_lose)
    published = project.publisher().publish(project.report(project.tasks), nothing)

    assert published.image_ids == tuple(task for task in project.tasks if task != gone)
    assert project.order() == list(published.image_ids)


def test_what_label_studio_drops_in_silence_is_no_ranking(project: LiveProject) -> None:
    region = {"from_name": "severity", "to_name": "image", "type": "choices", "value": {"choices": ["zebra"]}}
    unknown = {"task": int(project.tasks[0]), "result": [region], "score": 0.5, "model_version": "probe"}
    if project.client.import_predictions(project.id, [unknown]):
        pytest.skip("this Label Studio imports predictions unchecked, and so drops none")
    project.publisher().publish(project.report(project.tasks), nothing)
    versions = project.client.model_versions(project.id)
    report = project.report(project.tasks[::-1], suggestion="zebra")

    with pytest.raises(LabelStudioError, match=r"took 0 of 8 predictions of version al-r000001-entropy-"):
        project.publisher(prelabel=True).publish(report, nothing)
    assert project.client.model_versions(project.id) == versions
    assert project.order() == project.tasks


def test_an_import_that_was_done_without_an_answer(project: LiveProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Label Studio holds is counted: nothing is sent twice, and the new order stands."""
    project.publisher().publish(project.report(project.tasks), nothing)
    send = project.client.import_predictions

    def send_and_lose_the_answer(project_id: int, predictions: Any) -> int:
        send(project_id, predictions)
        raise LabelStudioError("no answer within 60 s")

    monkeypatch.setattr(project.client, "import_predictions", send_and_lose_the_answer)
    published = project.publisher().publish(project.report(project.tasks[::-1], "r000002"), nothing)

    assert project.order() == project.tasks[::-1]
    assert project.client.model_versions(project.id)[published.version] == TASKS


def test_prelabelled(project: LiveProject) -> None:
    project.publisher(prelabel=True, reserve=1).publish(project.report(project.tasks), nothing)
    task = project.client.request("GET", f"/api/tasks/{project.tasks[2]}/", dict)

    [answer] = task["predictions"][0]["result"]
    assert (answer["value"], answer["score"]) == ({"choices": ["severe"]}, 0.75)
    assert project.order() == project.tasks[:3]


def test_an_exported_model_predicts_a_project(
    project: LiveProject, label_studio: RunningLabelStudio, tmp_path: Path
) -> None:
    """As an order, and then as pre-labels; what others have written stays, and so does what a reader may hold."""
    arrays, _, _ = draw_pool(5, (1, 1, 1), seed=0, side=64)
    client, pixels = project.client, np.stack(arrays)
    client.send("POST", f"/api/projects/{project.id}/import", body=[{"data": {"image": png(one)}} for one in arrays])
    images = [str(task["id"]) for task in client.unlabelled_tasks(project.id)][TASKS:]
    foreign = {"task": int(images[0]), "result": [], "score": 0.5, "model_version": "al-r000001-entropy-abcdef"}
    client.import_predictions(project.id, [foreign])
    client.patch_project(project.id, {"sampling": "Sequential sampling"})
    options = ProjectOptions(backbone="timm/test_resnet", weights="none", image_side=64, passes=5)
    network = McDropoutClassifier(3, "timm/test_resnet", "none").eval()
    with torch.no_grad():  # otherwise all are "severe", for each image alike
        network.head.output.weight.mul_(30)
    for name, classes in (("", ("normal", "moderate", "severe")), ("other-", ("normal", "pneumonia", "severe"))):
        path = tmp_path / f"{name}model" / "model.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, network, classes, options, 3, frozen_backbone=False)
        (path.parent / "card.json").write_text(json.dumps({"files": {path.name: sha256_of(path)}}))
    created = datetime.fromisoformat(client.project(project.id)["created_at"])
    key = ProjectKey(id=project.id, created=int(created.timestamp()))
    project.store = RoundStore(tmp_path).predictions(key)
    environ = {"AL_DATA_DIR": str(tmp_path), "AL_DEVICE": "cpu", "AL_LABEL_STUDIO_URL": label_studio.url}
    environ["AL_LABEL_STUDIO_API_KEY"] = label_studio.api_key

    def predict(*more: str) -> CompletedProcess[str]:
        [command] = commands_run_by(__file__)
        words = [str(project.id) if word == "9" else word for word in command.words[1:]]
        return run_cli([*words, *more], environ, tmp_path)

    ordered = predict()
    order, first = project.order(), client.project(project.id)["model_version"]
    prelabelled = predict("--as", "prelabels")

    probs = network.mc_probs(to_input(torch.from_numpy(pixels), network.backbone.normalisation), 5, 3)
    by_entropy = entropy(probs).argsort(descending=True).tolist()
    assert order == [images[place] for place in by_entropy]
    assert client.project(project.id)["sampling"] == SAMPLING
    assert ordered.returncode == 1
    assert ordered.stdout == f"5 tasks of project {project.id} have predictions: {first}\n"
    assert [line.split(":")[1].strip() for line in ordered.stderr.splitlines()] == project.tasks
    assert "films.example" in ordered.stderr
    second = client.project(project.id)["model_version"]
    assert second in prelabelled.stdout
    for place, task_id in enumerate(images):
        task = client.request("GET", f"/api/tasks/{task_id}/", dict)
        [answer] = [one["result"][0] for one in task["predictions"] if one["model_version"] == second]
        mean = probs[place].mean(dim=0)
        assert answer["value"]["choices"] == [("normal", "moderate", "severe")[int(mean.argmax())]]
        assert answer["score"] == pytest.approx(float(mean.max()), abs=1e-4)
    assert client.model_versions(project.id) == {foreign["model_version"]: 1, first: 5, second: 5}

    project.age(timedelta(days=8))
    predict()

    third = client.project(project.id)["model_version"]
    assert client.model_versions(project.id) == {foreign["model_version"]: 1, second: 5, third: 5}
    refused = predict("--model", "other-model", "--as", "prelabels")
    assert (
        f"project {project.id} asks for normal, moderate, severe, unreadable, and the model also predicts pneumonia"
        in refused.stderr
    )
    RoundStore(tmp_path).connect(Connection(project=key, hostname=label_studio.url, label_config=XML))
    assert f"project {project.id} is connected to an ML backend" in predict().stderr
    assert client.project(project.id)["model_version"] == third
