"""``/webhook``: what an event of Label Studio starts. Nothing is trained here; a round is asked for, at most.

Label Studio waits one second for the answer, never sends an event twice, and ignores what we answer.
"""

from collections.abc import Callable

import structlog

from ml_backend.config import ProjectOptions
from ml_backend.errors import BackendError
from ml_backend.label_studio.payloads import Event, ProjectRow
from ml_backend.label_studio.publisher import low_water, publication_size, remaining_published
from ml_backend.scheduling import QueueStatus, RoundQueue
from ml_backend.scheduling.reconciler import configuration, connection_of, request_rerank, request_training
from ml_backend.schemas import Connection, PublishedRanking, RoundTrigger
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause

Answer = dict[str, object]

log = structlog.get_logger()


def receive(event: Event, store: RoundStore, queue: RoundQueue, address: str = "") -> Answer:
    """Take note of an event.

    Args:
        event: of Label Studio.
        store: the projects.
        queue: their rounds.
        address: host and port at which the event came, as its sender calls them.

    Returns:
        What came of it, under ``outcome``: ``counted``, ``requested``, ``waiting`` (a round waits already), ``stored``,
        ``forgotten``, ``ignored`` or ``repeated`` (it came to another address too).

    Raises:
        PayloadError: the event names no project.
        UnknownProject: the project was never connected.
        QueueError: Redis does not answer.
        StorageError: the data folder refuses.
    """
    take = ACTIONS.get(event.action)
    if take is None:
        return {"outcome": "ignored"}
    row = event.require_project()
    connection = store.connection(row.id) if row.key is None else connection_of(row.key, store)
    structlog.contextvars.bind_contextvars(project=str(connection.project))
    if take in COUNTING and (identity := event.identity) and queue.told_before(connection.project, identity, address):
        return {"outcome": "repeated", "why": "the project holds more than one connection to this backend"}
    return take(event, connection, store, queue)


def _changed(event: Event, connection: Connection, store: RoundStore, queue: RoundQueue) -> Answer:
    row = event.require_project()
    options = _options(connection)
    threshold = _threshold(row, options, connection, store)
    counted = queue.count_changes(connection.project, event.changed, threshold, row.annotations)
    if counted.due:
        answer = _request(connection, queue, "labels")
    elif options is not None and _runs_low(store.project(connection.project).published(), row, options):
        answer = _request(connection, queue, "topup")
    else:
        answer = {"outcome": "counted"}
    return answer | {"changes": counted.changes}


def _start(event: Event, connection: Connection, _store: RoundStore, queue: RoundQueue) -> Answer:
    if _is_echo(event.require_project(), queue.status(connection.project)):
        return {"outcome": "ignored", "why": "Label Studio announces an annotation; its own event follows and counts"}
    return _request(connection, queue, "forced")


def _images(event: Event, connection: Connection, store: RoundStore, queue: RoundQueue) -> Answer:
    row = event.require_project()
    threshold = _threshold(row, _options(connection), connection, store)
    counted = queue.count_changes(connection.project, event.annotated, threshold, row.annotations)
    if event.annotated and counted.due:
        return _request(connection, queue, "labels") | {"changes": counted.changes}
    if not _wants_images(queue.status(connection.project), store.project(connection.project).published()):
        return {"outcome": "ignored", "why": "the ranking that is served has not run out"}
    # While the rounds are held, readers still get what is new.
    return _request(connection, queue, "topup" if _held(connection, store) else "images")


def _updated(event: Event, connection: Connection, store: RoundStore, queue: RoundQueue) -> Answer:
    """The owner changed something, or our own publisher did."""
    row = event.require_project()
    current = connection
    if row.label_config is not None:
        current = connection.model_copy(update={"label_config": row.label_config})
    stored = store.connect(current)
    threshold = _threshold(row, _options(current), connection, store)
    counted = queue.count_changes(connection.project, 0, threshold, row.annotations)
    held = _held(connection, store)
    if stored and not held and queue.status(connection.project).learning_failed:
        return _request(connection, queue, "connected")  # the owner has mended something
    if counted.due and not counted.threshold_before:  # switched on just now
        return _request(connection, queue, "labels")
    asked = request_training(connection, current, store, queue) if stored and not held else None
    if stored and asked is None:
        asked = request_rerank(connection, current, store, queue)
    if asked is not None:
        return {"outcome": "requested" if asked else "waiting"}
    return {"outcome": "stored" if stored else "ignored"}


def _deleted(_event: Event, connection: Connection, _store: RoundStore, queue: RoundQueue) -> Answer:
    queue.forget(connection.project)
    return {"outcome": "forgotten"}


ACTIONS: dict[str, Callable[[Event, Connection, RoundStore, RoundQueue], Answer]] = {
    "ANNOTATION_CREATED": _changed,
    "ANNOTATION_UPDATED": _changed,
    "ANNOTATIONS_CREATED": _changed,
    "ANNOTATIONS_DELETED": _changed,
    "TASKS_DELETED": _changed,  # and their annotations, of which no event tells
    "TASKS_CREATED": _images,
    "START_TRAINING": _start,
    "PROJECT_UPDATED": _updated,
    "PROJECT_DELETED": _deleted,
}
"""Every action that means something here; any other, also of a later Label Studio, is accepted and ignored."""

COUNTING = frozenset({_changed, _images})


def _request(connection: Connection, queue: RoundQueue, reason: RoundTrigger) -> Answer:
    return {"outcome": "requested" if queue.request_round(connection.project, reason) else "waiting"}


def _options(connection: Connection) -> ProjectOptions | None:
    try:
        _, options = configuration(connection)
    except BackendError as error:
        # The change counts all the same: a mistake in the options must not lose it.
        log.warning("options cannot be read", error=str(error))
        return None
    return options


def _held(connection: Connection, store: RoundStore) -> bool:
    return Pause(store.project(connection.project).folder).holds


def _threshold(
    row: ProjectRow, options: ProjectOptions | None, connection: Connection, store: RoundStore
) -> int | None:
    """Changes that start a round: 0 where the owner switched that off, None where it cannot be told just now."""
    if _held(connection, store):
        return 0
    if row.min_annotations_to_start_training == 0:
        return 0
    return None if options is None else options.retrain_after


def _runs_low(published: PublishedRanking | None, row: ProjectRow, options: ProjectOptions) -> bool:
    """Whether readers may soon have used up what is published; a top-up looks, and does nothing where they have not.

    Fewer images than that are published only where there are no more: then every further label would ask in vain.
    """
    together = publication_size(options)
    if published is None or together is None or len(published.image_ids) < together:
        return False
    return remaining_published(published, row.annotations) < low_water(options)


def _is_echo(row: ProjectRow, status: QueueStatus) -> bool:
    """Whether Label Studio sent START_TRAINING by itself, ahead of the event of an annotation just made.

    It does so for every nth annotation where the project's toggle is on (n is 1 when it was switched on by hand),
    and nothing in it tells it from the button but an annotation that we have not been told of yet.
    """
    every, annotations = row.min_annotations_to_start_training, row.annotations
    if not every or annotations is None or status.annotations is None:
        return False
    return annotations > status.annotations and annotations % every == 0


def _wants_images(status: QueueStatus, published: PublishedRanking | None) -> bool:
    """Whether new images must be ranked now, and not with the next round that labels start anyway."""
    if published is None:
        return True
    if status.ran_out:
        return True
    return status.running is None and status.changes >= len(published.image_ids)
