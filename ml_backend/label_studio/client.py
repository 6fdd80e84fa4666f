"""Label Studio's API, as far as a round needs it.

On httpx and not on Label Studio's SDK: the SDK lists tasks at half the speed, cannot delete a model version, and gives
one time-out to calls that take 0.1 s and to calls that take minutes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import httpx

from ml_backend.errors import LabelStudioError, PayloadError, SettingsError
from ml_backend.label_studio.transport import Transport
from ml_backend.settings import Settings

__all__ = ["LabelStudioClient"]

PAGE = 1000  # tasks a page
IDS_IN_A_QUERY = 400  # task ids that fit into a URL beside everything else
SLOW = 20  # what Label Studio computes over a whole project may take so many times the usual time-out
Json = dict[str, Any]


class LabelStudioClient:
    """The calls, one method each.

    Every method raises LabelStudioError when Label Studio does not answer, RequestRefused when it refuses, and
    PayloadError when it answers something else.

    Args:
        url: where Label Studio is, with its path where it is served under one.
        api_key: personal access token or legacy token.
        timeout_s: seconds that an ordinary request may take; one over a whole project may take 20 times as long.
        retries: attempts at a request that may be repeated.
        patience_s: seconds for which connecting is tried on beyond that.
        transport: httpx's own; for tests.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 4,
        patience_s: float = 0.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.transport = Transport(
            url, api_key, timeout_s=timeout_s, retries=retries, patience_s=patience_s, wrapped=transport
        )

    @classmethod
    def from_settings(cls, settings: Settings, hostname: str | None = None, *, patience_s: float = 0.0) -> Self:
        """The client that the settings describe; ``hostname`` is where Label Studio says that it is.

        Raises:
            SettingsError: no address or no key is known.
        """
        url = settings.label_studio_url or hostname
        if not url:
            raise SettingsError("where is Label Studio? Set AL_LABEL_STUDIO_URL, for example http://127.0.0.1:8080")
        if settings.label_studio_api_key is None:
            raise SettingsError(
                f"AL_LABEL_STUDIO_API_KEY is not set: make a personal access token at {url}/user/account and set it"
            )
        key = settings.label_studio_api_key.get_secret_value()
        return cls(url, key, timeout_s=settings.timeout_s, patience_s=patience_s)

    @property
    def url(self) -> str:
        """Where Label Studio is, without a slash at the end."""
        return self.transport.url

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Projects

    def project(self, project_id: int) -> Json:
        return self.transport.ask("GET", f"/api/projects/{project_id}/", dict)

    def patch_project(self, project_id: int, fields: Mapping[str, object]) -> Json:
        """Change fields of a project and read the whole of it back.

        Raises:
            LabelStudioError: refused, or another value stands there afterwards.
        """
        self.transport.send("PATCH", f"/api/projects/{project_id}/", body=dict(fields))
        project = self.project(project_id)
        if wrong := {name: project.get(name) for name, value in fields.items() if project.get(name) != value}:
            raise LabelStudioError(
                f"project {project_id} was set to {dict(fields)} but holds {wrong} afterwards: "
                "somebody else changed it at the same moment, so try again"
            )
        return project

    # Tasks

    def annotated_tasks(self, project_id: int) -> list[Json]:
        """Every task with an annotation or a skip, as the JSON export writes it."""
        query = {"exportType": "JSON"}
        return self.transport.ask("GET", f"/api/projects/{project_id}/export", list, query=query, slow=SLOW)

    def unlabelled_tasks(self, project_id: int, *, with_skipped: bool = True) -> Iterator[Json]:
        """Every task without an annotation, by ascending id: its ``id`` and ``data``."""
        last = 0
        while True:
            # By id and not by page number: while readers label, the pages of a filter move under our feet.
            tasks = self._tasks(project_id, _unlabelled(last, with_skipped=with_skipped), "id,data")
            yield from tasks
            if len(tasks) < PAGE:
                return
            last = int(tasks[-1]["id"])

    def still_unlabelled(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Those of the tasks that exist and have no annotation yet."""
        ids = list(task_ids)
        found: set[int] = set()
        for start in range(0, len(ids), IDS_IN_A_QUERY):
            chosen = {"all": False, "included": ids[start : start + IDS_IN_A_QUERY]}
            tasks = self._tasks(project_id, _unlabelled(0) | {"selectedItems": chosen}, "id")
            found.update(int(task["id"]) for task in tasks)
        return found

    def _tasks(self, project_id: int, view: Mapping[str, object], include: str) -> list[Json]:
        query = {
            "project": str(project_id),
            "query": json.dumps(view, separators=(",", ":")),
            "include": include,
            "page_size": str(PAGE),
            "resolve_uri": "false",  # the URIs as they were imported, as the export has them
        }
        tasks = self.transport.ask("GET", "/api/tasks", dict, query=query, slow=SLOW).get("tasks")
        if not isinstance(tasks, list):
            raise PayloadError(f"{self.url}/api/tasks answered without a list of tasks")
        return tasks

    # Predictions

    def import_predictions(self, project_id: int, predictions: list[dict[str, object]]) -> int:
        """Import in one call, and say how many were created; Label Studio drops bad ones in silence."""
        path = f"/api/projects/{project_id}/import/predictions"
        return _number(self.transport.ask("POST", path, dict, body=predictions, slow=SLOW), "created", path)

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Predictions that the project holds, by their version."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.transport.ask("GET", path, dict, query={"extended": "true"}, slow=SLOW)
        return {str(row["model_version"]): _number(row, "count", path) for row in answer.get("static") or ()}

    def delete_model_version(self, project_id: int, version: str) -> int:
        """Delete the predictions of a version, about 16 ms each, and say how many they were."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.transport.ask("DELETE", path, dict, body={"model_version": version}, slow=SLOW)
        return _number(answer, "deleted_predictions", path)

    # Backends and webhooks

    def backends(self, project_id: int) -> list[Json]:
        """The project's ML backends. Label Studio asks each for its health and sets it up again first."""
        return self.transport.ask("GET", "/api/ml", list, query={"project": str(project_id)})

    def add_backend(self, fields: Mapping[str, object]) -> Json:
        return self.transport.ask("POST", "/api/ml", dict, body=dict(fields))

    def patch_backend(self, backend_id: int, fields: Mapping[str, object]) -> Json:
        """Change a backend; ``url`` and ``project`` must be among the fields."""
        return self.transport.ask("PATCH", f"/api/ml/{backend_id}", dict, body=dict(fields))

    def delete_backend(self, backend_id: int) -> None:
        self.transport.send("DELETE", f"/api/ml/{backend_id}")

    def train(self, backend_id: int) -> None:
        """Press "Start training": the backend gets START_TRAINING."""
        self.transport.send("POST", f"/api/ml/{backend_id}/train", body={})

    def webhooks(self, project_id: int) -> list[Json]:
        return self.transport.ask("GET", "/api/webhooks/", list, query={"project": str(project_id)})

    def add_webhook(self, fields: Mapping[str, object]) -> Json:
        return self.transport.ask("POST", "/api/webhooks/", dict, body=dict(fields))

    def patch_webhook(self, webhook_id: int, fields: Mapping[str, object]) -> Json:
        return self.transport.ask("PATCH", f"/api/webhooks/{webhook_id}/", dict, body=dict(fields))

    # Files

    def download(self, path: str, *, max_bytes: int) -> tuple[bytes, str]:
        """A file that Label Studio serves, and its content type; RequestRefused when it is larger."""
        response = self.transport.send("GET", path, max_bytes=max_bytes)
        return response.content, response.headers["content-type"]


def _unlabelled(after_id: int, *, with_skipped: bool = True) -> dict[str, object]:
    """A Data Manager view: the tasks without an annotation (a skip is none) after an id, by id."""
    wanted = [("total_annotations", "equal", 0), ("id", "greater", after_id)]
    if not with_skipped:
        wanted.append(("cancelled_annotations", "equal", 0))
    items = [
        {"filter": f"filter:tasks:{column}", "operator": operator, "type": "Number", "value": value}
        for column, operator, value in wanted
    ]
    return {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}


def _number(answer: Mapping[str, object], key: str, path: str) -> int:
    if not isinstance(number := answer.get(key), int):
        raise PayloadError(f"{path} answered {dict(answer)}; wanted is a number under {key!r}")
    return number
