"""A model class for ``label_studio_ml.api.init_app``, over the same code as the server.

It works with both generations of label-studio-ml. 1.0.9 creates a model at ``/setup`` without its project and passes
every event to ``process_event`` in a process of its own; 2.x names the project and passes training events to ``fit``.
In both the body of ``/setup`` is read from the request. Importing this module imports torch, as label-studio-ml does.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask import has_request_context, request
from label_studio_ml.model import LabelStudioMLBase

from ml_backend.config import Settings
from ml_backend.errors import PayloadError
from ml_backend.label_studio.formats import Event, SetupRequest, parse_body
from ml_backend.scheduling import RoundQueue
from ml_backend.scheduling.connections import connect
from ml_backend.server.app import predict
from ml_backend.server.webhook import receive
from ml_backend.storage import RoundStore

NAMES_PROJECT = "project_id" in inspect.signature(LabelStudioMLBase.__init__).parameters  # 2.x


class ActiveLearningBackend(LabelStudioMLBase):  # type: ignore[misc]
    """Queues rounds and predicts from the store; settings come from the environment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._settings = Settings.load()
        self._store = RoundStore(self._settings.data_dir)
        super().__init__(*args, **kwargs)
        if has_request_context() and request.path == "/setup":
            served = connect(parse_body(SetupRequest, request.get_data()), self._store, self._queue())
            if NAMES_PROJECT:
                self.set("model_version", served)

    def predict(self, tasks: Sequence[Mapping[str, Any]], **_context: Any) -> list[dict[str, object]]:
        """One prediction per task.

        Raises:
            PayloadError: neither the request, the model (2.x) nor the first task names the project.
            UnknownProject: it is not connected to this backend.
        """
        if not tasks:
            return []
        connection = self._store.connection(self._project_of(tasks[0]))
        return predict([str(task["id"]) for task in tasks], connection, self._store)

    def process_event(self, event: str, data: Mapping[str, Any], *_job: Any) -> dict[str, object]:
        """Receive any event (1.0.9)."""
        return self._receive(event, data)

    def fit(self, event: Any = None, data: Mapping[str, Any] | None = None, **_params: Any) -> dict[str, object]:
        """Receive a training event (2.x). The round runs on a worker."""
        return self._receive(event, data or {})

    def set_extra_params(self, extra_params: Any) -> None:
        """Do nothing (2.x): ``/setup`` has read them, and the method of the base class refuses an object."""

    def _project_of(self, task: Mapping[str, Any]) -> int:
        body = request.get_json(silent=True) if has_request_context() else None
        named = [body.get("project") if isinstance(body, dict) else None, getattr(self, "project_id", None)]
        for project in (*named, task.get("project")):
            number = str(project).partition(".")[0]  # Label Studio appends the time of creation
            if number.isdecimal():
                return int(number)
        raise PayloadError(
            f"no project is named for task {task.get('id')}: expected `project` (such as 7 or 7.1795384774) in the "
            "request or in the task, as Label Studio sends it"
        )

    def _receive(self, action: str, data: Mapping[str, Any]) -> dict[str, object]:
        event = parse_body(Event, json.dumps({**data, "action": action}).encode())
        return receive(event, self._store, self._queue())

    def _queue(self) -> RoundQueue:
        return RoundQueue.from_settings(self._settings)
