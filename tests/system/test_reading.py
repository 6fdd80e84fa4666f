"""Annotations, the pool and the images as a real Label Studio gives them, with either kind of key."""

import io
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from ml_backend.config import ProjectOptions
from ml_backend.consensus import Consensus, median
from ml_backend.errors import ImageError, RequestRefused
from ml_backend.images.decode import decode
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config, prediction, read_image, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.sync import LabelStudioLabels, TaskCache, read_project
from ml_backend.schemas import ImageRef
from tests.system.live import RunningLabelStudio
from tests.unit.label_studio.data_uris import SPELLINGS

pytestmark = pytest.mark.system
XML = (Path(__file__).parents[2] / "label_studio_config" / "severity.xml").read_text()


@pytest.fixture
def client(label_studio: RunningLabelStudio) -> Iterator[LabelStudioClient]:
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        yield client


@pytest.fixture
def project_id(client: LabelStudioClient) -> Iterator[int]:
    body = {"title": "test reading", "label_config": XML}
    project = client.request("POST", "/api/projects/", dict, body=body)
    yield int(project["id"])
    client.send("DELETE", f"/api/projects/{project['id']}/")


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 77).save(file, "PNG")
    return file.getvalue()


def upload(label_studio: RunningLabelStudio, project_id: int, content: bytes) -> None:
    answer = httpx.post(
        f"{label_studio.url}/api/projects/{project_id}/import",
        headers={"Authorization": f"Token {label_studio.api_key}"},
        files={"film.png": ("film 1.png", content, "image/png")},
        timeout=60,
    )
    assert answer.status_code == 201


def answered(choice: str) -> dict[str, Any]:
    value = {"choices": [choice]}
    return {"result": [{"from_name": "severity", "to_name": "image", "type": "choices", "value": value}]}


def test_annotations_and_pool(client: LabelStudioClient, project_id: int) -> None:
    """One answered, one skipped, one unreadable, one without a usable image, one waiting."""
    names = ["a", "b", "c", "", "e"]
    rows = [{"data": {"image": name and f"http://films.example/{name}.png", "patient_id": 7}} for name in names]
    client.send("POST", f"/api/projects/{project_id}/import", body=rows)
    tasks = [task["id"] for task in client.unlabelled_tasks(project_id)]
    bodies = [answered("severe"), {"result": [], "was_cancelled": True}, answered("unreadable")]
    for task, body in zip(tasks, bodies, strict=False):
        client.send("POST", f"/api/tasks/{task}/annotations/", body=body)
    labels = LabelStudioLabels(client, project_id, parse_label_config(XML), ProjectOptions())

    annotations = {a.image.uri: a.value for a in labels.annotations()}
    pool, exclusions = labels.unlabelled()

    assert annotations == {
        "http://films.example/a.png": "severe",
        "http://films.example/b.png": None,
        "http://films.example/c.png": None,
    }
    assert [image.uri for image in pool] == ["http://films.example/b.png", "http://films.example/e.png"]
    assert {image.patient_id for image in pool} == {"7"}
    assert [exclusion.image_id for exclusion in exclusions] == [str(tasks[3])]
    assert client.still_unlabelled(project_id, [*tasks, 10**9]) == {tasks[1], tasks[3], tasks[4]}

    client.patch_project(project_id, {"skip_queue": "IGNORE_SKIPPED"})
    labels.annotations()
    assert [image.uri for image in labels.unlabelled()[0]] == ["http://films.example/e.png"]


def test_what_no_reader_answered(client: LabelStudioClient, project_id: int) -> None:
    """Predictions that Label Studio turned into annotations, with and without a class, and two odd imports."""
    send, region = client.send, answered("severe")["result"][0]
    odd = [[region | {"from_name": "diagnosis"}], [region | {"value": {"choices": "normal"}}]]
    rows: list[dict[str, Any]] = [{"data": {"image": f"http://films.example/{number}.png"}} for number in range(5)]
    for row, result in zip(rows, odd, strict=False):
        row["annotations"] = [{"result": result, "ground_truth": False}]
    send("POST", f"/api/projects/{project_id}/import", body=rows)
    tasks = [str(task["id"]) for task in client.changed_tasks(project_id)]
    config = parse_label_config(XML)
    served = [
        prediction(tasks[2], 0.1, "al-1", config),
        prediction(tasks[3], 0.2, "al-1", config, "severe", confidence=0.7),
    ]
    assert client.import_predictions(project_id, served) == 2
    body = {"selectedItems": {"all": True, "excluded": []}, "model_version": "al-1"}
    act = {"id": "predictions_to_annotations", "project": str(project_id)}
    assert client.request("POST", "/api/dm/actions", dict, query=act, body=body)["detail"].startswith("Created 2")
    client.delete_model_version(project_id, "al-1")  # as the next ranking does: no annotation knows its prediction then
    labels = LabelStudioLabels(client, project_id, config, ProjectOptions())

    assert {a.image.id: a.value for a in labels.annotations()} == {tasks[1]: "normal"}
    pool, exclusions = labels.unlabelled()
    assert [image.id for image in pool] == [tasks[4]]
    why = {exclusion.image_id: exclusion.reason for exclusion in exclusions}
    assert why.keys() == {tasks[0], tasks[2], tasks[3]}
    assert "from_name='severity'" in why[tasks[0]]
    assert '"Create Annotations From Predictions"' in why[tasks[2]]
    assert "a network's answers" in why[tasks[3]]

    [copied] = client.request("GET", f"/api/tasks/{tasks[3]}/annotations/", list)
    send(
        "PATCH", f"/api/annotations/{copied['id']}/", body=answered("severe") | {"lead_time": 2.5}
    )  # a reader's Update
    assert {a.image.id: a.value for a in labels.annotations()} == {tasks[1]: "normal", tasks[3]: "severe"}


def test_patients_of_several_imports(
    client: LabelStudioClient, label_studio: RunningLabelStudio, project_id: int
) -> None:
    """Label Studio reads the column as 12.0 where one cell is empty, as 12 where none is, as text where it is one."""
    tables = ["image,patient_id\nhttp://f/1.png,12\nhttp://f/2.png,\n", "image,patient_id\nhttp://f/3.png,12\n"]
    for number, table in enumerate(tables):
        answer = httpx.post(
            f"{label_studio.url}/api/projects/{project_id}/import",
            headers={"Authorization": f"Token {label_studio.api_key}"},
            files={"table.csv": (f"{number}.csv", table.encode(), "text/csv")},
            timeout=60,
        )
        assert answer.status_code == 201, answer.text
    rows = [{"data": {"image": f"http://f/{n}.png", "patient_id": patient}} for n, patient in ((4, "12 "), (5, "NaN"))]
    client.send("POST", f"/api/projects/{project_id}/import", body=rows)

    pool, _ = LabelStudioLabels(client, project_id, parse_label_config(XML), ProjectOptions()).unlabelled()

    assert [image.patient_id for image in pool] == ["12", None, "12", "12", None]


def test_readers_who_were_deleted(client: LabelStudioClient, project_id: int) -> None:
    """Two of three said normal; the network must not learn severe once Label Studio no longer knows them."""
    ask, send = client.request, client.send
    send("POST", f"/api/projects/{project_id}/import", body=[{"data": {"image": "http://films.example/a.png"}}])
    [task] = client.unlabelled_tasks(project_id)
    gone = []
    for value in ("normal", "normal", "severe"):
        name = secrets.token_hex(6)
        user = ask("POST", "/api/users/", dict, body={"username": name, "email": f"{name}@example.com"})
        send("POST", f"/api/tasks/{task['id']}/annotations/", body=answered(value) | {"completed_by": user["id"]})
        gone.append(user["id"])
    for user in gone[:2]:
        send("DELETE", f"/api/users/{user}/")

    found = LabelStudioLabels(client, project_id, parse_label_config(XML), ProjectOptions()).annotations()
    [label] = median(found, ("normal", "moderate", "severe")).labels

    assert (label.value, label.raters, label.disputed) == ("normal", 3, False)


def test_a_class_that_was_renamed(client: LabelStudioClient, project_id: int) -> None:
    """Label Studio lets an owner rename a class that has labels; under its alias they stay."""
    rows = [{"data": {"image": "http://films.example/a.png"}}]
    client.send("POST", f"/api/projects/{project_id}/import", body=rows)
    [task] = client.unlabelled_tasks(project_id)
    client.send("POST", f"/api/tasks/{task['id']}/annotations/", body=answered("moderate"))

    def labels(xml: str) -> Consensus:
        client.send("PATCH", f"/api/projects/{project_id}/", body={"label_config": xml})
        config = parse_label_config(str(client.project(project_id)["label_config"]))
        found = LabelStudioLabels(client, project_id, config, ProjectOptions()).annotations()
        return median(found, training_classes(config, ProjectOptions()))

    renamed = labels(XML.replace('value="moderate"', 'value="medium"'))
    assert renamed.labels == ()
    assert "alias='moderate'" in renamed.exclusions[0].reason
    kept = labels(XML.replace('value="moderate"', 'value="medium" alias="moderate"'))
    assert len(kept.labels) == 1
    assert kept.exclusions == ()


def test_what_changed_since_the_last_reading(client: LabelStudioClient, project_id: int, tmp_path: Path) -> None:
    """Whatever readers and owners do, reading the changes gives what reading everything gives."""
    send = client.send
    rows = [{"data": {"image": f"http://films.example/{number}.png"}} for number in range(12)]
    send("POST", f"/api/projects/{project_id}/import", body=rows)
    tasks = [int(task["id"]) for task in client.unlabelled_tasks(project_id)]

    def answer(task: int, body: dict[str, object]) -> int:
        return int(client.request("POST", f"/api/tasks/{task}/annotations/", dict, body=body)["id"])

    def act(name: str, task: int) -> None:
        body = {"project": str(project_id), "selectedItems": {"all": False, "included": [task]}}
        send("POST", "/api/dm/actions", query={"id": name, "project": str(project_id)}, body=body)

    def same() -> None:
        def read(folder: Path | None) -> object:
            labels = LabelStudioLabels(client, project_id, parse_label_config(XML), ProjectOptions(), folder)
            return labels.annotations(), labels.unlabelled(), labels.states()

        assert read(tmp_path) == read(None)
        kept = TaskCache.load(tmp_path)
        assert kept is not None
        assert read_project(client, project_id, kept).cache.whole_at == kept.whole_at

    same()
    label, other = answer(tasks[0], answered("severe")), answer(tasks[1], answered("normal"))
    skip, undone = (answer(task, {"result": [], "was_cancelled": True}) for task in tasks[2:4])
    same()
    send("PATCH", f"/api/annotations/{label}/", body=answered("normal"))
    send("PATCH", f"/api/annotations/{skip}/", body=answered("normal") | {"was_cancelled": False})
    send("DELETE", f"/api/annotations/{undone}/")
    same()
    send("PATCH", f"/api/annotations/{other}/", body={"ground_truth": True})
    send("PATCH", f"/api/tasks/{tasks[4]}/", body={"data": {"image": "http://films.example/retaken.png"}})
    same()
    send("DELETE", f"/api/annotations/{label}/")
    act("delete_tasks_annotations", tasks[1])
    same()
    answer(tasks[5], answered("severe"))
    act("delete_tasks", tasks[5])
    send("DELETE", f"/api/tasks/{tasks[2]}/")
    same()
    send("POST", f"/api/projects/{project_id}/import", body=[rows[0] | {"annotations": [answered("severe")]}])
    same()


def test_a_reading_costs_what_changed(client: LabelStudioClient, project_id: int) -> None:
    """Predictions come and go with every round: they are no change."""
    rows = [{"data": {"image": f"http://films.example/{number}.png"}} for number in range(4)]
    client.send("POST", f"/api/projects/{project_id}/import", body=rows)
    task, *_ = read_project(client, project_id, None).cache.tasks
    time.sleep(2)
    _, now = client.project_and_clock(project_id)
    body = [{"task": task, "result": [], "score": 0.5, "model_version": "v"}]
    client.send("POST", f"/api/projects/{project_id}/import/predictions", body=body)
    client.delete_model_version(project_id, "v")

    assert list(client.changed_tasks(project_id, now)) == []
    client.send("POST", f"/api/tasks/{task}/annotations/", body=answered("severe"))
    assert [row["id"] for row in client.changed_tasks(project_id, now)] == [task]


def test_an_uploaded_image(client: LabelStudioClient, label_studio: RunningLabelStudio, project_id: int) -> None:
    upload(label_studio, project_id, png())
    (task,) = client.unlabelled_tasks(project_id)
    image = ImageRef(id=str(task["id"]), uri=task["data"]["image"])
    images = LabelStudioImages(client)

    assert image.uri.startswith("/data/upload/")
    assert images.fetch(image) == png()
    assert images.fetch(image.model_copy(update={"uri": client.url + image.uri})) == png()
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        LabelStudioImages(client, max_bytes=10).fetch(image)


def test_an_image_that_is_none(client: LabelStudioClient, project_id: int) -> None:
    """Each address as Label Studio stores it, with the answer that it gives to it."""
    wanted = {
        "/data/upload/1/00000000-none.png": "Label Studio answered .*put the file back into media/",
        "/projects/": "is not a file of Label Studio",
        "/user/login/": "is not a file of Label Studio",
        "/home/me/films/a.png": "is not a file of Label Studio; if this is a path on a disk, upload the images",
        "C:\\films\\a.png": "is a path on a disk",
        "s3://bucket/none.png": "answered 404 .*no storage of this project reads s3://bucket: add it in Label Studio",
        "gs://bucket/none.png": r"answered 404 .*reads gs://bucket: .*\(Google Cloud Storage\)",
        "azure-blob://box/none.png": r"answered 404 .*reads azure-blob://box: .*\(Microsoft Azure\)",
        "/data/local-files/?d=none.png": "answered 40[34] .*LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
        "http://old-studio:8080/data/upload/1/a.png": "is a former address of Label Studio, write /data/upload/1/a.png",
    }
    tasks = [{"data": {"image": uri}} for uri in wanted]
    client.send("POST", f"/api/projects/{project_id}/import", body=tasks)
    stored = {task["data"]["image"]: str(task["id"]) for task in client.unlabelled_tasks(project_id)}

    assert set(stored) == set(wanted)
    for uri, message in wanted.items():
        with pytest.raises(ImageError, match=rf"image {stored[uri]} \({re.escape(repr(uri))}\).*{message}"):
            LabelStudioImages(client).fetch(ImageRef(id=stored[uri], uri=uri))


def test_images_that_stand_in_their_tasks(client: LabelStudioClient, project_id: int) -> None:
    """As Label Studio stores and returns them; ``test_shown_images`` shows them to a browser."""
    uris = {uri for uri, shown in SPELLINGS.values() if shown}
    client.send("POST", f"/api/projects/{project_id}/import", body=[{"data": {"image": uri}} for uri in sorted(uris)])
    config = parse_label_config(XML)
    images = [read_image(task, config) for task in client.unlabelled_tasks(project_id)]

    assert {image.uri for image in images} == {uri.strip() for uri in uris}
    for image in images:
        assert decode(LabelStudioImages(client).fetch(image), 32, image.id).shape == (32, 32)


def test_a_personal_access_token(client: LabelStudioClient, label_studio: RunningLabelStudio, project_id: int) -> None:
    if client.request("GET", "/api/token/", list):
        pytest.skip("this Label Studio's user has a personal access token already, and may have only one")
    token = client.request("POST", "/api/token/", dict, body={})["token"]
    upload(label_studio, project_id, png())
    try:
        with LabelStudioClient(label_studio.url, token) as personal:
            (task,) = personal.unlabelled_tasks(project_id)
            image = ImageRef(id=str(task["id"]), uri=task["data"]["image"])

            assert personal.project(project_id)["id"] == project_id
            assert LabelStudioImages(personal).fetch(image) == png()
    finally:
        client.send("POST", "/api/token/blacklist/", body={"refresh": token})
    with LabelStudioClient(label_studio.url, token) as revoked, pytest.raises(RequestRefused, match="was it revoked"):
        revoked.project(project_id)


def test_a_wrong_key(label_studio: RunningLabelStudio) -> None:
    with (
        LabelStudioClient(label_studio.url, "0" * 40) as stranger,
        pytest.raises(RequestRefused, match="make a personal access token"),
    ):
        stranger.project(1)
