"""Compares every project with Label Studio, at the start of the server and every minute, for events that were lost.

Events are hints, Label Studio is the truth.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from ml_backend.analytics.overview import analyse
from ml_backend.analytics.standing import another_look
from ml_backend.config import Settings
from ml_backend.consensus import rule
from ml_backend.errors import BackendError, LabelStudioError, PayloadError, QueueError, RequestRefused, StorageError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import rater_of, training_classes
from ml_backend.label_studio.publisher import delete_in_lots, is_lost, read_serving
from ml_backend.label_studio.sync import (
    Counts,
    SyncedProject,
    TaskCache,
    TaskImages,
    annotations_in,
    read_project,
)
from ml_backend.scheduling.connections import configuration, rerank_is_due
from ml_backend.scheduling.policy import Compared, ProjectState, QueueStatus, decide, threshold
from ml_backend.scheduling.queue import RoundQueue
from ml_backend.schemas import Connection, PublishedRanking
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore

EVERY_S = 60.0

log = structlog.get_logger()
Connect = Callable[[Settings, str | None], LabelStudioClient]


class Reconciler:
    """Compares Label Studio with the stored rounds, project by project.

    Args:
        settings: of the installation.
        store: its projects.
        queue: its rounds.
        connect: makes the client of a Label Studio; a test may bring its own.
    """

    def __init__(
        self,
        settings: Settings,
        store: RoundStore,
        queue: RoundQueue,
        connect: Connect = LabelStudioClient.from_settings,
    ) -> None:
        self._settings = settings
        self._store = store
        self._queue = queue
        self._connect = connect
        self._clients: dict[str | None, LabelStudioClient] = {}
        self._over = threading.Event()
        self._deleted: set[str] = set()  # model versions, which the next publish takes off the record

    def start(self, every_s: float = EVERY_S) -> threading.Thread:
        """Look at once, and then at this interval, in a thread that ends with the process."""

        def run() -> None:
            while True:
                self.look()
                if self._over.wait(every_s):
                    return

        thread = threading.Thread(target=run, name="reconciler", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Do not look again, and close the connections."""
        self._over.set()
        for client in self._clients.values():
            client.close()

    def look(self) -> None:
        """Compare every project once. A project that cannot be read is logged and shown, and hides no other."""
        try:
            connections = self._store.connections()
        except (BackendError, OSError) as error:
            log.warning("no project could be compared with Label Studio", error=str(error))
            return
        for connection in connections:
            with structlog.contextvars.bound_contextvars(project=str(connection.project)):
                readings = ReadingStore(self._store.project(connection.project).folder)
                try:
                    self._compare(connection, readings)
                    readings.note_problem(None)
                except BackendError as error:
                    log.warning("a project could not be compared with Label Studio", error=str(error))
                    if not isinstance(error, QueueError):  # pages show that Redis does not answer by themselves
                        readings.note_problem(str(error))
                except Exception as error:
                    # A bug that one project's data reveal must not end the comparison of the others.
                    log.exception("a project could not be compared with Label Studio")
                    readings.note_problem(f"unexpected {type(error).__name__}; the log says more")

    def _compare(self, connection: Connection, readings: ReadingStore) -> None:
        # Before the reading: a change between the two is counted twice, rather than never.
        status = self._queue.status(connection.project)
        client = self._client(connection)
        before = readings.mirror(TaskCache)
        try:
            reading = read_project(client, connection.project.id, before)
        except RequestRefused as error:
            if error.status == 404 and client.is_authenticated():
                self._forget(connection)
                return
            raise
        if _created(reading) != connection.project.created:
            self._forget(connection)
            return
        if reading.cache is not before:
            readings.keep_mirror(reading.cache)
        project = self._store.project(connection.project)
        tasks, published = reading.cache.tasks.keys(), project.published()
        user = self._settings.basic_auth_user
        serving = read_serving(client, reading.project, tasks, published, project.imported_versions, user=user)
        readings.keep_serving(serving)
        if status.running is None:  # a running round has taken the counted changes, and reads the project itself
            if order_lost := is_lost(serving):
                log.warning("Label Studio does not hold the published order")
            self._act(connection, readings, reading, status, before, order_lost=order_lost)
            # Publishes write the record meanwhile, and take off it what is gone.
            if due := {one.version for one in project.imported_versions() if one.deleting} - self._deleted:
                held = client.model_versions(connection.project.id)
                self._deleted |= delete_in_lots(client, connection.project.id, {one: held.get(one, 0) for one in due})
        config, options = configuration(project.connection() or connection)
        analyse(project, config, options)  # before a page needs it
        _keep_names(readings, client, reading.cache, wanted=options.reader_names)

    def _act(
        self,
        connection: Connection,
        readings: ReadingStore,
        reading: SyncedProject,
        status: QueueStatus,
        before: TaskCache | None,
        *,
        order_lost: bool,
    ) -> None:
        project = self._store.project(connection.project)
        published, paused = project.published(), Pause(project.folder).holds
        connection = connection.model_copy(update={"label_config": str(reading.project["label_config"])})
        self._store.connect(connection)
        config, options = configuration(connection)
        automatic = bool(reading.project.get("min_annotations_to_start_training"))
        states = reading.cache.states(options.ground_truth)
        changes = readings.changes_since(published.round_id, states) if published else None
        missed = 0 if changes is None else changes - status.changes
        if missed:
            log.info("events were lost or came twice", counted=status.changes, changes=changes)
        counts = Counts.of(reading.project)
        status = self._queue.count_changes(
            connection.project,
            missed,
            threshold(options, automatic=automatic, paused=paused),
            counts.annotations + counts.skips,
        )
        images, tasks = TaskImages.of(reading.cache, config, readings.digests()), reading.cache.tasks
        pool, copies = images.waiting(reading.cache)
        waiting = frozenset(str(number) for number in pool if not tasks[number].annotations)
        quarantined = Quarantine(project.folder).listed()
        readable = waiting.difference(one.image_id for one in quarantined)
        served = frozenset(published.image_ids if published else ())
        # What reads files, or compares every task, is computed only if the decision may depend on it.
        rerank_due = labels_differ = changed = False
        if published is not None and not status.due:
            rerank_due = bool(readable) and rerank_is_due(connection, project)
            labels_differ = _labels_differ(project, published, reading, connection, images)
        if status.ran_out and before is not None:
            changed = any(tasks[int(number)] != before.tasks.get(int(number)) for number in waiting)
        found = Compared(
            automatic=automatic,
            newest_round=max(project.round_ids(), default=""),
            left=len(waiting & served),
            readable=bool(readable),
            unpublished=not readable <= served,
            copy_published=any(str(n) in served for n in copies if not tasks[n].annotations),
            order_lost=order_lost,
            picked=published is not None and _picked(project, published, readable),
            rereads_ended=not options.reread_share and bool(project.asked_again()),
            rerank_due=rerank_due,
            labels_differ=labels_differ,
            images_changed=changed,
            image_may_be_read=(status.ran_out or not readable)
            and another_look(waiting, quarantined, datetime.now(UTC)),
            now=time.time(),
        )
        action = decide(ProjectState(status, published, paused), found, options)
        if self._queue.perform(connection.project, action):
            log.info("the comparison requested a round", reason=action.request)

    def _forget(self, connection: Connection) -> None:
        """Its rounds stay on disk; a project under the same id and time of creation finds them again."""
        log.info("a project is gone from Label Studio")
        self._queue.forget(connection.project)
        self._store.project(connection.project).disconnect()

    def _client(self, connection: Connection) -> LabelStudioClient:
        hostname = self._settings.trusted_hostname(connection.hostname)
        if hostname not in self._clients:
            self._clients[hostname] = self._connect(self._settings, hostname)
        return self._clients[hostname]


def _keep_names(readings: ReadingStore, client: LabelStudioClient, cache: TaskCache, *, wanted: bool) -> None:
    """Keep the names of the project's readers, and of nobody else; none where the owner does not ask for them."""
    try:
        names = client.reader_names() if wanted else {}
    except LabelStudioError as error:
        log.warning("the readers' names cannot be read", error=str(error))
        return
    readers = {rater_of(item) for task in cache.tasks.values() for item in task.annotations} if names else set()
    readings.keep_reader_names({user: name for user, name in names.items() if user in readers})


def _picked(project: ProjectStore, published: PublishedRanking, readable: frozenset[str]) -> bool:
    """Whether an image that was put next is missing in front of the order; none that its round could not read."""
    missing = readable.intersection(project.hand_picked()).difference(published.by_hand)
    try:  # a report is long, and seldom needed
        return bool(missing) and not missing <= project.report(published.round_id).unreadable()
    except StorageError as error:
        log.warning("what was put next cannot be served: the served round cannot be read", error=str(error))
        return False


def _created(reading: SyncedProject) -> int:
    try:
        return int(datetime.fromisoformat(str(reading.project["created_at"])).timestamp())
    except (KeyError, ValueError) as error:
        raise PayloadError(f"project {reading.project.get('id')} has no readable created_at: {error!r}") from None


def _labels_differ(
    project: ProjectStore,
    published: PublishedRanking,
    reading: SyncedProject,
    connection: Connection,
    images: TaskImages,
) -> bool:
    """Whether labels differ since the owner has changed the option ``ground_truth`` after the served round."""
    try:
        before = str(project.summary(published.round_id).request.options.get("ground_truth", "override"))
    except StorageError as error:
        log.warning("the options of the served round cannot be read", error=str(error))
        return False
    config, options = configuration(connection)
    if before == options.ground_truth:
        return False
    classes = training_classes(config, options)
    then, now = (
        rule(options.consensus)(annotations_in(reading.cache, config, chosen, images)[0], classes).labels
        for chosen in (options.model_copy(update={"ground_truth": before}), options)
    )
    return then != now
