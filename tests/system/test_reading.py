"""Annotations, the pool and the images as a real Label Studio gives them, with either kind of key."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import httpx
import pytest
from PIL import Image

from ml_backend.errors import ImageError, RequestRefused
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.labels import LabelStudioLabels
from ml_backend.records import ImageRef
from ml_backend.settings import ProjectOptions

pytestmark = pytest.mark.system
XML = (Path(__file__).parents[2] / "label_studio_config" / "severity.xml").read_text()


class Running(Protocol):
    """What the fixture ``label_studio`` offers."""

    @property
    def url(self) -> str: ...

    @property
    def api_key(self) -> str: ...


@pytest.fixture
def client(label_studio: Running) -> Iterator[LabelStudioClient]:
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        yield client


@pytest.fixture
def project_id(client: LabelStudioClient) -> Iterator[int]:
    body = {"title": "test reading", "label_config": XML}
    project = client.transport.ask("POST", "/api/projects/", dict, body=body)
    yield int(project["id"])
    client.transport.send("DELETE", f"/api/projects/{project['id']}/")


def film() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 77).save(file, "PNG")
    return file.getvalue()


def upload(label_studio: Running, project_id: int, content: bytes) -> None:
    answer = httpx.post(
        f"{label_studio.url}/api/projects/{project_id}/import",
        headers={"Authorization": f"Token {label_studio.api_key}"},
        files={"film.png": ("film 1.png", content, "image/png")},
        timeout=60,
    )
    assert answer.status_code == 201


def answered(choice: str) -> dict[str, object]:
    value = {"choices": [choice]}
    return {"result": [{"from_name": "severity", "to_name": "image", "type": "choices", "value": value}]}


def test_annotations_and_pool(client: LabelStudioClient, project_id: int) -> None:
    """One answered, one skipped, one unreadable, one without a usable image, one waiting."""
    names = ["a", "b", "c", "", "e"]
    films = [{"data": {"image": name and f"http://films.example/{name}.png", "patient_id": 7}} for name in names]
    client.transport.send("POST", f"/api/projects/{project_id}/import", body=films)
    tasks = [task["id"] for task in client.unlabelled_tasks(project_id)]
    bodies = [answered("severe"), {"result": [], "was_cancelled": True}, answered("unreadable")]
    for task, body in zip(tasks, bodies, strict=False):
        client.transport.send("POST", f"/api/tasks/{task}/annotations/", body=body)
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
    assert [image.uri for image in labels.unlabelled()[0]] == ["http://films.example/e.png"]


def test_an_uploaded_image(client: LabelStudioClient, label_studio: Running, project_id: int) -> None:
    upload(label_studio, project_id, film())
    (task,) = client.unlabelled_tasks(project_id)
    image = ImageRef(id=str(task["id"]), uri=task["data"]["image"])
    images = LabelStudioImages(client)

    assert image.uri.startswith("/data/upload/")
    assert images.fetch(image) == film()
    assert images.fetch(image.model_copy(update={"uri": client.url + image.uri})) == film()
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        LabelStudioImages(client, max_bytes=10).fetch(image)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("/data/upload/1/00000000-none.png", "Label Studio answered"),
        ("/projects/", "HTML page"),
        ("/user/login/", "HTML page"),
        ("s3://bucket/none.png", "404"),
    ],
)
def test_an_image_that_is_none(client: LabelStudioClient, project_id: int, uri: str, said: str) -> None:
    client.transport.send("POST", f"/api/projects/{project_id}/import", body=[{"data": {"image": uri}}])
    (task,) = client.unlabelled_tasks(project_id)

    assert task["data"]["image"] == uri
    with pytest.raises(ImageError, match=rf"image {task['id']} \({uri}\).*{said}"):
        LabelStudioImages(client).fetch(ImageRef(id=str(task["id"]), uri=uri))


def test_a_personal_access_token(client: LabelStudioClient, label_studio: Running, project_id: int) -> None:
    if client.transport.ask("GET", "/api/token/", list):
        pytest.skip("this Label Studio's user has a personal access token already, and may have only one")
    token = client.transport.ask("POST", "/api/token/", dict, body={})["token"]
    upload(label_studio, project_id, film())
    try:
        with LabelStudioClient(label_studio.url, token) as personal:
            (task,) = personal.unlabelled_tasks(project_id)
            image = ImageRef(id=str(task["id"]), uri=task["data"]["image"])

            assert personal.project(project_id)["id"] == project_id
            assert LabelStudioImages(personal).fetch(image) == film()
    finally:
        client.transport.send("POST", "/api/token/blacklist/", body={"refresh": token})
    with LabelStudioClient(label_studio.url, token) as revoked, pytest.raises(RequestRefused, match="was it revoked"):
        revoked.project(project_id)


def test_a_wrong_key(label_studio: Running) -> None:
    with (
        LabelStudioClient(label_studio.url, "0" * 40) as stranger,
        pytest.raises(RequestRefused, match="make a personal access token"),
    ):
        stranger.project(1)
