"""Label Studio's API, as far as a round needs it.

On httpx and not on Label Studio's SDK: the SDK lists tasks at half the speed, cannot delete a model version, and gives
one time-out to calls that take 0.1 s and to calls that take minutes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Self

import httpx

from ml_backend.errors import LabelStudioError, PayloadError, SettingsError
from ml_backend.label_studio.transport import Transport
from ml_backend.settings import Settings

__all__ = ["HeldPredictions", "LabelStudioClient"]

PAGE = 1000  # tasks a page
IDS_IN_A_QUERY = 400  # task ids that fit into a URL beside everything else
SLOW = 20  # what Label Studio computes over a whole project may take so many times the usual time-out
# Of a task and, under the same names, of its annotations: Label Studio applies one list to both.
CHANGED = (
    "id,data,annotations,completed_by,was_cancelled,ground_truth,result,updated_at,created_at,lead_time,"
    "parent_prediction"
)
Json = dict[str, Any]
Condition = tuple[str, str, int | str]  # column of the Data Manager, operator, value


class HeldPredictions(NamedTuple):
    """The predictions of a model version that a project holds."""

    number: int
    newest: datetime | None  # when it was made, by Label Studio's clock; None: not told


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

    def knows_us(self) -> bool:
        """Whether this is a Label Studio that accepts the key: only then "not found" means that a thing is gone."""
        try:
            return "email" in self.transport.ask("GET", "/api/current-user/whoami", dict)
        except LabelStudioError:
            return False

    def whoami(self) -> Json:
        """The user whose key is sent: ``email``, ``permissions``."""
        return self.transport.ask("GET", "/api/current-user/whoami", dict)

    # Projects

    def project(self, project_id: int) -> Json:
        return self.transport.ask("GET", f"/api/projects/{project_id}/", dict)

    def project_and_clock(self, project_id: int) -> tuple[Json, datetime | None]:
        """The project, and Label Studio's own clock; None where the answer does not tell it."""
        response = self.transport.send("GET", f"/api/projects/{project_id}/")
        try:
            project = response.json()
        except ValueError:
            project = None
        if not isinstance(project, dict):
            raise PayloadError(f"{response.url} answered no project: is AL_LABEL_STUDIO_URL Label Studio's address?")
        return project, _clock(response)

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

    def unlabelled_tasks(self, project_id: int, *, with_skipped: bool = True) -> Iterator[Json]:
        """Every task without an annotation, by ascending id: its ``id`` and ``data``."""
        wanted = [("total_annotations", "equal", 0)]
        if not with_skipped:
            wanted.append(("cancelled_annotations", "equal", 0))
        yield from self._pages(project_id, wanted, {"include": "id,data"})

    def changed_tasks(self, project_id: int, since: datetime | None = None) -> Iterator[Json]:
        """Every task that changed since then, or every task, by ascending id: ``id``, ``data`` and ``annotations``.

        Label Studio renews a task's ``updated_at`` whenever an annotation of it is made, changed, skipped or deleted,
        and when its data change; not when predictions come or go.

        Args:
            project_id: the project.
            since: by Label Studio's clock, with a time zone; None for all.
        """
        moment = [] if since is None else [("updated_at", "greater_or_equal", _moment(since))]
        # Without "fields" there are no annotations; without "include" a task costs five times as much.
        yield from self._pages(project_id, moment, {"fields": "all", "include": CHANGED})

    def count_tasks(self, project_id: int, first: int, last: int) -> int:
        """How many tasks have an id from ``first`` to ``last``."""
        view = _view([("id", "greater_or_equal", first), ("id", "less_or_equal", last)])
        answer = self._ask_tasks(project_id, view, {"include": "id", "page_size": "1"})
        return _number(answer, "total", "/api/tasks")

    def still_unlabelled(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Those of the tasks that exist and have no annotation yet."""
        return self._chosen(project_id, task_ids, [("total_annotations", "equal", 0)])

    def existing(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Those of the tasks that the project still has."""
        return self._chosen(project_id, task_ids, [])

    def _chosen(self, project_id: int, task_ids: Iterable[int], wanted: list[Condition]) -> set[int]:
        ids = list(task_ids)
        found: set[int] = set()
        for start in range(0, len(ids), IDS_IN_A_QUERY):
            chosen = {"all": False, "included": ids[start : start + IDS_IN_A_QUERY]}
            tasks = self._pages(project_id, wanted, {"include": "id"}, selectedItems=chosen)
            found.update(int(task["id"]) for task in tasks)
        return found

    def _pages(
        self, project_id: int, wanted: Iterable[Condition], query: Mapping[str, str], **view: object
    ) -> Iterator[Json]:
        """Every task that meets the conditions, by ascending id."""
        last = 0
        while True:
            # By id and not by page number: while readers label, the pages of a filter move under our feet.
            conditions = _view([*wanted, ("id", "greater", last)])
            answer = self._ask_tasks(project_id, conditions | view, {"page_size": str(PAGE), **query})
            tasks = answer.get("tasks")
            if not isinstance(tasks, list):
                raise PayloadError(f"{self.url}/api/tasks answered without a list of tasks")
            yield from tasks
            # Its operator may have made Label Studio's pages smaller than ours: only the total says what is left.
            if not tasks or len(tasks) >= _number(answer, "total", "/api/tasks"):
                return
            last = int(tasks[-1]["id"])

    def _ask_tasks(self, project_id: int, view: Mapping[str, object], query: Mapping[str, str]) -> Json:
        whole = {
            "project": str(project_id),
            "query": json.dumps(view, separators=(",", ":")),
            "resolve_uri": "false",  # the URIs as they were imported, as the export has them
            **query,
        }
        return self.transport.ask("GET", "/api/tasks", dict, query=whole, slow=SLOW)

    # Predictions

    def import_predictions(self, project_id: int, predictions: list[dict[str, object]]) -> int:
        """Import in one call, and say how many were created; Label Studio drops bad ones in silence."""
        path = f"/api/projects/{project_id}/import/predictions"
        return _number(self.transport.ask("POST", path, dict, body=predictions, slow=SLOW), "created", path)

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Predictions that the project holds, by their version."""
        return {version: held.number for version, held in self.held_predictions(project_id).items()}

    def held_predictions(self, project_id: int) -> dict[str, HeldPredictions]:
        """How many predictions the project holds and when the newest was made, by their version."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self.transport.ask("GET", path, dict, query={"extended": "true"}, slow=SLOW)
        return {
            str(row["model_version"]): HeldPredictions(_number(row, "count", path), _created(row.get("latest")))
            for row in answer.get("static") or ()
        }

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


def _view(wanted: Iterable[Condition]) -> dict[str, object]:
    """A Data Manager view: the tasks that meet every condition, by id."""
    items = [
        {
            "filter": f"filter:tasks:{column}",
            "operator": operator,
            "type": "Number" if isinstance(value, int) else "Datetime",
            "value": value,
        }
        for column, operator, value in wanted
    ]
    return {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}


def _moment(time: datetime) -> str:
    """As the Data Manager's filters read it; in any other form it fails with 500."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _clock(response: httpx.Response) -> datetime | None:
    try:
        return parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


def _created(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(answer: Mapping[str, object], key: str, path: str) -> int:
    if not isinstance(number := answer.get(key), int):
        raise PayloadError(f"{path} answered {dict(answer)}; wanted is a number under {key!r}")
    return number
