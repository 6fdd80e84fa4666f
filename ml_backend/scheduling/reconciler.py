"""Compares every project with Label Studio, at the start of the server and every minute, for events that were lost.

Events are hints, Label Studio is the truth.
"""

import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, TypeVar

import structlog

from ml_backend.analytics.overview import LARGE, analyse
from ml_backend.config import ProjectOptions, Settings
from ml_backend.consensus import rule
from ml_backend.errors import (
    BackendError,
    LabelStudioError,
    PayloadError,
    QueueError,
    RequestRefused,
    StorageError,
    UnknownProject,
)
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, training_classes
from ml_backend.label_studio.publisher import delete_in_lots, is_lost, read_serving
from ml_backend.label_studio.sync import Counts, Json, TaskImages, TaskStore, annotations_in, sync
from ml_backend.scheduling.connections import configuration, rerank_is_due
from ml_backend.scheduling.policy import Compared, ProjectState, QueueStatus, decide, threshold
from ml_backend.scheduling.queue import RoundQueue
from ml_backend.schemas import Connection, ProjectKey, PublishedRanking
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore

EVERY_S = 60.0

log = structlog.get_logger()
Connect = Callable[[Settings, str | None], LabelStudioClient]
T = TypeVar("T")


class _Read(NamedTuple):
    """A project as it was read: its connection, its store, its row in Label Studio, and its tasks."""

    connection: Connection
    store: ProjectStore
    row: Json
    tasks: TaskStore


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
        self._computed: dict[tuple[str, str], tuple[object, object]] = {}
        self._analyses: dict[str, threading.Thread] = {}
        self._analysing = threading.Lock()  # one at a time: of a large project it takes a core for a while

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
                    if self._compare(connection, readings):
                        readings.note_problem(None)
                except BackendError as error:
                    log.warning("a project could not be compared with Label Studio", error=str(error))
                    if not isinstance(error, QueueError):  # pages show that Redis does not answer by themselves
                        readings.note_problem(str(error))
                except Exception as error:
                    # A bug that one project's data reveal must not end the comparison of the others.
                    log.exception("a project could not be compared with Label Studio")
                    readings.note_problem(f"unexpected {type(error).__name__}; the log says more")

    def _compare(self, connection: Connection, readings: ReadingStore) -> bool:
        """Returns whether it was compared; a round that reads it comes first."""
        # Before the reading: a change between the two is counted twice, rather than never.
        status = self._queue.status(connection.project)
        client = self._client(connection)
        with TaskStore.open(readings.folder) as tasks, tasks.reading() as free:
            if not free:
                log.info("a round reads the project: compared with the next look")
                return False
            before = tasks.state
            try:
                row = sync(client, connection.project.id, tasks, partial(_check_created, connection.project))
            except RequestRefused as error:
                if error.status == 404 and client.is_authenticated():
                    self._forget(connection)
                    return True
                raise
            except UnknownProject:
                self._forget(connection)
                return True
            project = self._store.project(connection.project)
            read = _Read(connection, project, row, tasks)
            published = project.published()
            existing = tasks.existing(published.image_ids) if published else ()
            user = self._settings.basic_auth_user
            serving = read_serving(client, row, existing, published, project.imported_versions, user=user)
            readings.keep_serving(serving)
            if status.running is None:  # a running round has taken the counted changes, and reads the project itself
                if order_lost := is_lost(serving):
                    log.warning("Label Studio does not hold the published order")
                self._act(read, status, None if before is None else before.generation, order_lost=order_lost)
            config, options = configuration(project.connection() or connection)
            self._keep_names(read, client, wanted=options.reader_names)
            large = tasks.counts.tasks >= LARGE
        # Publishes write the record meanwhile, and take off it what is gone.
        due = {one.version for one in project.imported_versions() if one.deleting} - self._deleted
        if due and status.running is None:
            held = client.model_versions(connection.project.id)
            self._deleted |= delete_in_lots(client, connection.project.id, {one: held.get(one, 0) for one in due})
        self._analyse(project, config, options, large=large)
        return True

    def _analyse(self, project: ProjectStore, config: LabelConfig, options: ProjectOptions, *, large: bool) -> None:
        """Refresh the analysis before a page needs it; that of a large project holds no other project up."""

        def run() -> None:
            with self._analysing:
                analyse(project, config, options, refresh=True)

        name = str(project.folder)
        if not large:
            analyse(project, config, options)
        elif name not in self._analyses or not self._analyses[name].is_alive():
            self._analyses[name] = threading.Thread(target=run, name="analysis", daemon=True)
            self._analyses[name].start()

    def _act(self, read: _Read, status: QueueStatus, known: int | None, *, order_lost: bool) -> None:
        """Decide what the project needs, and request it.

        Args:
            read: the project.
            status: of its rounds before it was read.
            known: generation of its tasks before; None before the first reading.
            order_lost: see ``Compared``.
        """
        connection, project, row, tasks = read
        published, paused = project.published(), Pause(project.folder).holds
        connection = connection.model_copy(update={"label_config": str(row["label_config"])})
        self._store.connect(connection)
        config, options = configuration(connection)
        automatic = bool(row.get("min_annotations_to_start_training"))
        changes = None if published is None else self._changes(read, published, options)
        missed = 0 if changes is None else changes - status.changes
        if missed:
            log.info("events were lost or came twice", counted=status.changes, changes=changes)
        counts = Counts.of(row)
        status = self._queue.count_changes(
            connection.project,
            missed,
            threshold(options, automatic=automatic, paused=paused),
            counts.annotations + counts.skips,
        )
        tasks.index_images(config, project.readings.digests())
        now = datetime.now(UTC)
        quarantined = {one.image_id: one.next_try > now for one in Quarantine(project.folder).listed()}
        barred = [image_id for image_id, rests in quarantined.items() if rests]
        served = frozenset(published.image_ids if published else ())
        left, copies = tasks.waiting_among(served)
        readable = tasks.waits(quarantined)
        # What reads files, or compares every task, is computed only if the decision may depend on it.
        rerank_due = labels_differ = False
        if published is not None and not status.due:
            rerank_due = readable and rerank_is_due(connection, project)
            labels_differ = self._labels_differ(read, published, config, options)
        found = Compared(
            automatic=automatic,
            newest_round=max(project.round_ids(), default=""),
            left=len(left),
            readable=readable,
            unpublished=tasks.waits(served.union(quarantined)),
            copy_published=bool(copies),
            order_lost=order_lost,
            picked=published is not None and _picked(project, published, tasks, quarantined),
            rereads_ended=not options.reread_share and bool(project.asked_again()),
            rerank_due=rerank_due,
            labels_differ=labels_differ,
            images_changed=known is not None and status.ran_out and tasks.waits(changed_after=known),
            image_may_be_read=(status.ran_out or not readable) and tasks.waits(barred),
            now=now.timestamp(),
        )
        action = decide(ProjectState(status, published, paused), found, options)
        if self._queue.perform(connection.project, action):
            log.info("the comparison requested a round", reason=action.request)

    def _once(self, read: _Read, name: str, inputs: object, compute: Callable[[], T]) -> T:
        """What is computed of a project's tasks, and computed again only where they or the inputs have changed."""
        place, inputs = (str(read.connection.project), name), (read.tasks.version, inputs)
        if place not in self._computed or self._computed[place][0] != inputs:
            self._computed[place] = inputs, compute()
        return self._computed[place][1]  # type: ignore[return-value]

    def _changes(self, read: _Read, published: PublishedRanking, options: ProjectOptions) -> int | None:
        """Number of annotations made, changed or deleted since the published round."""
        readings, round_id = read.store.readings, published.round_id

        def compute() -> int | None:
            states = read.tasks.snapshot(answered=True).states(options.ground_truth)
            return readings.changes_since(round_id, states)

        inputs = round_id, readings.learned_state(round_id), options.ground_truth
        return self._once(read, "changes", inputs, compute)

    def _labels_differ(
        self, read: _Read, published: PublishedRanking, config: LabelConfig, options: ProjectOptions
    ) -> bool:
        """Whether labels differ since the owner has changed the option ``ground_truth`` after the served round."""
        try:
            before = str(read.store.summary(published.round_id).request.options.get("ground_truth", "override"))
        except StorageError as error:
            log.warning("the options of the served round cannot be read", error=str(error))
            return False
        if before == options.ground_truth:
            return False
        classes, digests = training_classes(config, options), read.store.readings.digests()

        def compute() -> bool:
            cache = read.tasks.snapshot(answered=True)
            images = TaskImages.of(cache, config, digests)
            then, now = (
                rule(options.consensus)(annotations_in(cache, config, chosen, images)[0], classes).labels
                for chosen in (options.model_copy(update={"ground_truth": before}), options)
            )
            return then != now

        return self._once(read, "labels differ", (before, config, options, digests), compute)

    def _keep_names(self, read: _Read, client: LabelStudioClient, *, wanted: bool) -> None:
        """Keep the names of the project's readers, and of nobody else; none where the owner does not ask for them."""
        try:
            names = client.reader_names() if wanted else {}
        except LabelStudioError as error:
            log.warning("the readers' names cannot be read", error=str(error))
            return
        readers = self._once(read, "readers", None, read.tasks.raters) if names else set()
        read.store.readings.keep_reader_names({user: name for user, name in names.items() if user in readers})

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


def _picked(project: ProjectStore, published: PublishedRanking, tasks: TaskStore, quarantined: Collection[str]) -> bool:
    """Whether an image that was put next is missing in front of the order; none that its round could not read."""
    waiting, _ = tasks.waiting_among(set(project.hand_picked()).difference(published.by_hand, quarantined))
    try:  # a report is long, and seldom needed
        return bool(waiting) and not waiting <= project.report(published.round_id).unreadable()
    except StorageError as error:
        log.warning("what was put next cannot be served: the served round cannot be read", error=str(error))
        return False


def _check_created(key: ProjectKey, row: Json) -> None:
    """Raise UnknownProject where Label Studio has given the id to another project."""
    try:
        created = int(datetime.fromisoformat(str(row["created_at"])).timestamp())
    except (KeyError, ValueError) as error:
        raise PayloadError(f"project {row.get('id')} has no readable created_at: {error!r}") from None
    if created != key.created:
        raise UnknownProject(f"project {key} is gone: Label Studio has reused its id")
