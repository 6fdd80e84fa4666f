"""``/webhook``: events of Label Studio are counted, and request a round at most.

Label Studio waits one second for the answer, never repeats an event, and ignores the answer.
"""

from collections.abc import Callable

import structlog

from ml_backend.config import ProjectOptions
from ml_backend.errors import BackendError
from ml_backend.label_studio.formats import Event, ProjectRow
from ml_backend.scheduling import QueueStatus, RoundQueue
from ml_backend.scheduling.connections import configuration, connection_of, settings_change
from ml_backend.scheduling.policy import (
    Action,
    AnnotationsChanged,
    ProjectState,
    ProjectUpdated,
    TasksImported,
    TrainingStarted,
    decide,
    threshold,
)
from ml_backend.schemas import Connection
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause

Answer = dict[str, object]

log = structlog.get_logger()


def receive(event: Event, store: RoundStore, queue: RoundQueue, address: str = "") -> Answer:
    """Count an event, and request the round that it calls for.

    Args:
        event: of Label Studio.
        store: the projects.
        queue: their rounds.
        address: host and port that the event was sent to, as its sender names them.

    Returns:
        Under ``outcome``: ``counted``, ``requested``, ``waiting`` (a round waits already), ``stored``, ``forgotten``,
        ``ignored`` or ``repeated`` (it was sent to another address as well).

    Raises:
        PayloadError: the event names no project.
        UnknownProject: the project was never connected.
        QueueError: Redis does not answer.
        StorageError: the data folder refuses.
    """
    handler = ACTIONS.get(event.action)
    if handler is None:
        return {"outcome": "ignored"}
    row = event.require_project()
    connection = store.connection(row.id) if row.key is None else connection_of(row.key, store)
    structlog.contextvars.bind_contextvars(project=str(connection.project))
    if (
        handler in COUNTING
        and (identity := event.identity)
        and queue.is_duplicate_event(connection.project, identity, address)
    ):
        return {"outcome": "repeated", "why": "the project holds more than one connection to this backend"}
    return handler(event, row, _Project(connection, store, queue))


class _Project:
    """The project of an event: its stored state, and its queue."""

    def __init__(self, connection: Connection, root: RoundStore, queue: RoundQueue) -> None:
        self.key = connection.project
        self.connection = connection
        self.root = root
        self.store = root.project(connection.project)
        self.queue = queue
        self.paused = Pause(self.store.folder).holds

    def options(self) -> ProjectOptions | None:
        """Its options; None if they are wrong: the event counts all the same, and the project's page shows why."""
        try:
            return configuration(self.connection)[1]
        except BackendError as error:
            log.warning("options cannot be read", error=str(error))
            return None

    def count(self, row: ProjectRow, n: int, options: ProjectOptions | None) -> QueueStatus:
        """Add changed annotations, and store the toggle and the number of annotations of the project's row."""
        automatic = row.min_annotations_to_start_training != 0
        return self.queue.count_changes(
            self.key, n, threshold(options, automatic=automatic, paused=self.paused), row.annotations
        )

    def state(self, status: QueueStatus) -> ProjectState:
        return ProjectState(status, self.store.published(), self.paused)

    def perform(self, action: Action, otherwise: str = "ignored") -> Answer:
        """Request the round of an action; ``otherwise`` is the outcome of an action without one."""
        if action.request is not None:
            return {"outcome": "requested" if self.queue.perform(self.key, action) else "waiting"}
        return {"outcome": otherwise} if action.why is None else {"outcome": otherwise, "why": action.why}


def _handle_annotation_change(event: Event, row: ProjectRow, project: _Project) -> Answer:
    options = project.options()
    status = project.count(row, event.changed, options)
    action = decide(project.state(status), AnnotationsChanged(row.annotations), options)
    return project.perform(action, otherwise="counted") | {"changes": status.changes}


def _handle_start(_event: Event, row: ProjectRow, project: _Project) -> Answer:
    started = TrainingStarted(row.annotations, every=row.min_annotations_to_start_training)
    return project.perform(decide(ProjectState(project.queue.status(project.key)), started))


def _handle_import(event: Event, row: ProjectRow, project: _Project) -> Answer:
    status = project.count(row, event.annotated, project.options())
    action = decide(project.state(status), TasksImported(event.annotated))
    counted = {"changes": status.changes} if action.request == "labels" else {}
    return project.perform(action) | counted


def _handle_update(_event: Event, row: ProjectRow, project: _Project) -> Answer:
    """The owner changed the project's settings, or this backend its model version."""
    before = project.connection
    if row.label_config is not None:
        project.connection = before.model_copy(update={"label_config": row.label_config})
    changed = project.root.connect(project.connection)
    former = project.queue.status(project.key)
    status = project.count(row, 0, project.options())
    settings = settings_change(before, project.connection, project.store, changed=changed)
    updated = ProjectUpdated(settings, switched_on=former.threshold == 0)
    return project.perform(decide(project.state(status), updated), otherwise="stored" if changed else "ignored")


def _handle_deletion(_event: Event, _row: ProjectRow, project: _Project) -> Answer:
    project.queue.forget(project.key)
    return {"outcome": "forgotten"}


ACTIONS: dict[str, Callable[[Event, ProjectRow, _Project], Answer]] = {
    "ANNOTATION_CREATED": _handle_annotation_change,
    "ANNOTATION_UPDATED": _handle_annotation_change,
    "ANNOTATIONS_CREATED": _handle_annotation_change,
    "ANNOTATIONS_DELETED": _handle_annotation_change,
    "TASKS_DELETED": _handle_annotation_change,  # and their annotations, which have no event of their own
    "TASKS_CREATED": _handle_import,
    "START_TRAINING": _handle_start,
    "PROJECT_UPDATED": _handle_update,
    "PROJECT_DELETED": _handle_deletion,
}
"""Every action that means something here; any other, also of a later Label Studio, is accepted and ignored."""

COUNTING = frozenset({_handle_annotation_change, _handle_import})
