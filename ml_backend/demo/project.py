"""A Label Studio project with the demo's images in it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from ml_backend.demo.films import Film
from ml_backend.demo.readers import file_name
from ml_backend.errors import LabelStudioError, SettingsError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, parse_label_config
from ml_backend.label_studio.route import FAILURES, LABEL_STUDIO, Route

__all__ = ["create_project", "shipped_config", "upload"]

BATCH = 40  # files in an upload: each request stays far below Label Studio's limit of 250 MB
TIMEOUT_S = 120.0


def shipped_config(name: str) -> str:
    """The XML of a label config that comes with this project, ``severity`` for example.

    Raises:
        SettingsError: it is not there.
    """
    package = Path(__file__).parents[1]
    # Beside the package in a checkout, inside it in an installed wheel.
    for folder in (package.parent / "label_studio_config", package / "label_studio_config"):
        if (path := folder / f"{name}.xml").exists():
            return path.read_text()
    raise SettingsError(f"label_studio_config/{name}.xml is not in {package.parent}: run from a checkout")


def create_project(client: LabelStudioClient, title: str, label_config: str) -> tuple[int, LabelConfig]:
    """Make a project, and read its question back from what Label Studio kept.

    Raises:
        LabelStudioError: Label Studio refused.
    """
    body = {"title": title, "label_config": label_config}
    project = client.transport.ask("POST", "/api/projects/", dict, body=body)
    return int(project["id"]), parse_label_config(project["label_config"])


def upload(
    client: LabelStudioClient,
    token: str,
    project_id: int,
    image_key: str,
    films: Sequence[Film],
) -> Iterator[int]:
    """Upload the films and make a task of each, in their order, with the patient but without the label.

    Args:
        client: of the project's owner.
        token: legacy token of the same user.
        project_id: of a project without these films.
        image_key: under which the image stands in a task's data.
        films: with names that are unique.

    Yields:
        How many of the films are uploaded so far, after each batch.

    Raises:
        LabelStudioError: Label Studio refused, or keeps fewer than were sent.
    """
    for start in range(0, len(films), BATCH):
        batch = films[start : start + BATCH]
        uploaded = _upload_files(client, token, project_id, batch)
        tasks = [{"data": _task_data(film, image_key, uploaded[film.name])} for film in batch]
        path = f"/api/projects/{project_id}/import"
        made = client.transport.ask("POST", path, dict, query={"commit_to_project": "true"}, body=tasks)
        if made.get("task_count") != len(batch):
            raise LabelStudioError(f"project {project_id} made {made.get('task_count')} tasks of {len(batch)} images")
        yield start + len(batch)


def _task_data(film: Film, image_key: str, uri: str) -> dict[str, str]:
    return {image_key: uri} | ({} if film.patient_id is None else {"patient_id": film.patient_id})


def _upload_files(client: LabelStudioClient, token: str, project_id: int, films: Sequence[Film]) -> dict[str, str]:
    """Upload without making tasks of them; name -> the address that Label Studio gives the file."""
    url = f"{client.url}/api/projects/{project_id}/import"
    files = [(film.name, (film.name, film.content)) for film in films]
    headers = {"Authorization": f"Token {token}"}
    route, asked = Route(url, LABEL_STUDIO), f"{len(films)} images could not be uploaded to {url}"
    try:
        with route.client() as http:
            answer = http.post(
                url, params={"commit_to_project": "false"}, files=files, headers=headers, timeout=TIMEOUT_S
            ).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise LabelStudioError(f"{asked}: {error}") from error
    except FAILURES as error:
        raise route.unreachable(error, asked) from error
    query = {"ids": json.dumps(answer.json()["file_upload_ids"])}
    rows = client.transport.ask("GET", f"/api/projects/{project_id}/file-uploads", list, query=query)
    uploaded = {file_name(row["file"]): f"/data/{row['file']}" for row in rows}
    if missing := {film.name for film in films} - set(uploaded):
        raise LabelStudioError(
            f"project {project_id} lost {len(missing)} of {len(films)} images: {sorted(missing)[:3]}"
        )
    return uploaded
