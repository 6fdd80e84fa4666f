"""``/setup``: a project tells its label config and its owner's options. Instant, however often it comes.

Events are hints, Label Studio is the truth: finds what no event told, at the start of the server and every minute.
"""

import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import NamedTuple, Self

import structlog

from ml_backend.analytics.order_audit import RANKING_OPTIONS, order_state
from ml_backend.analytics.overview import analyse
from ml_backend.analytics.standing import another_look
from ml_backend.config import ProjectOptions, Settings
from ml_backend.consensus import rule
from ml_backend.errors import BackendError, PayloadError, RequestRefused, StorageError, UnknownProject
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.label_studio.payloads import SetupRequest
from ml_backend.label_studio.publisher import is_lost, low_water, read_serving
from ml_backend.label_studio.sync import (
    Counts,
    SyncedProject,
    TaskCache,
    TaskImages,
    annotations_in,
    read_project,
)
from ml_backend.scheduling import LastError, QueueStatus, RoundQueue
from ml_backend.schemas import Connection, ProjectKey, PublishedRanking
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.project_state import Pause, ReadingStore
from ml_backend.storage.quarantine import Quarantine, QuarantinedImage

log = structlog.get_logger()

UNPUBLISHED = "active-learning"  # the model version of a project that has no ranking yet


def connect(setup: SetupRequest, store: RoundStore, queue: RoundQueue) -> str:
    """Remember a project, and ask for its first round.

    Label Studio calls this in pairs and on every view of a settings page. The round is asked for only while nothing is
    published, nothing runs or waits, and not again within a minute: rounds that fail at once must not come in a storm.
    After a round that failed, changed options ask for the next one at once, and so do other classes or another minimum
    of labels before the first training. Another strategy asks for a new order, if that takes no training.

    Returns:
        The model version that Label Studio shows for the backend.

    Raises:
        PayloadError: the label config cannot be read.
        SettingsError: an option has a wrong name or value, or fewer than two classes are left.
        QueueError: Redis does not answer.
        StorageError: the data folder refuses.
    """
    connection = Connection(
        project=setup.project,
        hostname=setup.hostname,
        label_config=setup.label_config,
        extra_params=setup.extra_params,
    )
    training_classes(*configuration(connection))
    before = store.project(setup.project).connection()
    changed = store.connect(connection)
    held = Pause(store.project(setup.project).folder).holds
    if changed and not held and queue.status(setup.project).learning_failed:
        # The owner has mended something: seen at once, and not after as many labels as failed rounds have made it.
        queue.request_round(setup.project, "connected")
    elif store.project(setup.project).published() is None:
        if not held:
            queue.request_round(setup.project, "connected", only_if_idle=True)
    elif before is not None and changed and (held or request_training(before, connection, store, queue) is None):
        request_rerank(before, connection, store, queue)
    return version(setup.project, store)


def connection_of(project: ProjectKey, store: RoundStore) -> Connection:
    """What ``/setup`` told about a project.

    Raises:
        UnknownProject: it was never called for this project.
    """
    connection = store.project(project).connection()
    if connection is None:
        raise UnknownProject(
            f"project {project} is not connected to this backend: run `ml-backend connect --project {project.id}`"
        )
    return connection


def configuration(connection: Connection) -> tuple[LabelConfig, ProjectOptions]:
    """The project's question and its owner's options.

    Raises:
        PayloadError: the label config cannot be read.
        SettingsError: an option has a wrong name or value.
    """
    config = parse_label_config(connection.label_config)
    return config, ProjectOptions.resolve(connection.extra_params, config.attributes)


def version(project: ProjectKey, store: RoundStore) -> str:
    """The model version that is served now; ``UNPUBLISHED`` where none is."""
    published = store.project(project).published()
    return UNPUBLISHED if published is None else published.version


def request_rerank(before: Connection, now: Connection, store: RoundStore, queue: RoundQueue) -> bool | None:
    """Ask for the order that the owner has chosen just now, if that takes no training.

    Returns:
        None where the owner has chosen no other order, or it must wait for the next training; False where a round
        waits already: it ranks as the options are when it begins.

    Raises:
        QueueError: Redis does not answer.
    """
    project, (wanted, had) = now.project, (_ranked_by(now), _ranked_by(before))
    if wanted is None or wanted == had or store.project(project).published() is None:
        return None
    # A round that runs may have begun before the choice: whether it has, is seen when it is over.
    if queue.status(project).running is None and not rerank_is_due(now, store):
        log.info("what the owner has chosen takes effect with the next round")
        return None
    return queue.request_round(project, "rerank")


def request_training(before: Connection, now: Connection, store: RoundStore, queue: RoundQueue) -> bool | None:
    """Ask for a round where the owner changed just now what the first training waits for: the classes, or the minimum.

    Returns:
        None where that did not change, or a network ranks already: the next round goes by it then. False where a round
        waits already.

    Raises:
        QueueError: Redis does not answer.
    """
    project, (wanted, had) = store.project(now.project), (_awaited(now), _awaited(before))
    if wanted is None or wanted == had or project.published() is None:
        return None
    try:
        ids = project.round_ids()
        if not ids or project.summary(ids[-1]).by_network:
            return None
    except StorageError as error:
        log.warning("the next round goes by what the owner has chosen", error=str(error))
        return None
    return queue.request_round(now.project, "connected")


def rerank_is_due(connection: Connection, store: RoundStore) -> bool:
    """Whether the newest order is another than the owner has chosen, and can be made anew without a training.

    Raises:
        PayloadError, SettingsError: see ``configuration``, and ``connect``.
    """
    config, options = configuration(connection)
    try:
        return order_state(store.project(connection.project), options, training_classes(config, options)).due
    except StorageError as error:
        log.warning("nothing is ranked anew", error=str(error))
        return False


def _awaited(connection: Connection) -> tuple[object, ...] | None:
    """What the first training waits for; None where there is a mistake in it."""
    try:
        config, options = configuration(connection)
        return training_classes(config, options), options.min_labels_per_class
    except BackendError:
        return None


def _ranked_by(connection: Connection) -> tuple[object, ...] | None:
    """What decides how outputs are ranked; None where there is a mistake in it."""
    try:
        config, options = configuration(connection)
        training_classes(config, options)
    except BackendError:
        return None
    return tuple(getattr(options, name) for name in RANKING_OPTIONS)


EVERY_S = 60.0
AGAIN_AFTER_S = 600.0  # where no image that waits could be read, and nothing has changed since

log = structlog.get_logger(__name__)
Connect = Callable[[Settings, str | None], LabelStudioClient]


class Reconciler:
    """Compares Label Studio with what was learned, project by project.

    Args:
        settings: of the installation.
        store: its projects.
        queue: its rounds.
        connect: makes the client of a Label Studio; of the settings unless a test brings its own.
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

    def start(self, every_s: float = EVERY_S) -> threading.Thread:
        """Look at once, and every so many seconds, in a thread that ends with the process."""

        def run() -> None:
            while True:
                self.look()
                if self._over.wait(every_s):
                    return

        thread = threading.Thread(target=run, name="reconciler", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Do not look again, and hang up."""
        self._over.set()
        for client in self._clients.values():
            client.close()

    def look(self) -> None:
        """Look at every project once. A project that cannot be read is logged and shown, and hides no other."""
        try:
            connections = self._store.connections()
        except (BackendError, OSError) as error:
            log.warning("no project could be compared with Label Studio", error=str(error))
            return
        for connection in connections:
            with structlog.contextvars.bound_contextvars(project=str(connection.project)):
                self._look_at(connection)

    def _look_at(self, connection: Connection) -> None:
        readings = ReadingStore(self._store.project(connection.project).folder)
        try:
            self._compare(connection, readings)
            readings.note_problem(None)
        except Exception as error:
            # Even a bug that one project's data bring to light must not end the watch over the others.
            known = isinstance(error, BackendError)
            log.warning(
                "a project could not be compared with Label Studio",
                error=str(error),
                exc_info=not known,
            )
            readings.note_problem(str(error) if known else f"unexpected {type(error).__name__}; the log says more")

    def _compare(self, connection: Connection, readings: ReadingStore) -> None:
        # Before the reading: a change that comes between the two is counted twice, and not never.
        status = self._queue.status(connection.project)
        client = self._client(connection)
        kept = readings.mirror(TaskCache)
        try:
            reading = read_project(client, connection.project.id, kept)
        except RequestRefused as error:
            if error.status == 404 and client.is_authenticated():
                self._forget(connection)
                return
            raise
        if _created(reading) != connection.project.created:
            self._forget(connection)
            return
        if reading.cache is not kept:
            readings.keep_mirror(reading.cache)
        rounds = self._store.project(connection.project)
        tasks, published = reading.cache.tasks.keys(), rounds.published()
        user = self._settings.basic_auth_user
        serving = read_serving(client, reading.project, tasks, published, rounds.imported_versions, user=user)
        readings.keep_serving(serving)
        if status.running is None:  # a round that runs has taken the count, and sees for itself what there is
            self._act(connection, readings, reading, status, lost=is_lost(serving), before=kept)
        analyse(rounds, *configuration(rounds.connection() or connection))  # before a page needs it

    def _act(
        self,
        connection: Connection,
        readings: ReadingStore,
        reading: SyncedProject,
        status: QueueStatus,
        *,
        lost: bool,
        before: TaskCache | None,
    ) -> None:
        project, queue = connection.project, self._queue
        rounds = self._store.project(project)
        published, newest = rounds.published(), max(rounds.round_ids(), default="")
        fresh = connection.model_copy(update={"label_config": str(reading.project["label_config"])})
        self._store.connect(fresh)
        config, options = configuration(fresh)
        states = reading.cache.states(options.ground_truth)
        changes = readings.changes_since(published.round_id, states) if published else None
        missed = 0 if changes is None else changes - status.changes
        counts = Counts.of(reading.project)
        held = Pause(rounds.folder).holds
        by_itself = reading.project.get("min_annotations_to_start_training") and not held
        threshold = options.retrain_after if by_itself else 0
        if missed:
            log.info("events had not told", counted=status.changes, changes=changes)
        counted = queue.count_changes(project, missed, threshold, counts.annotations + counts.skips)
        error = status.last_error.kind if status.last_error else None
        tasks = TaskImages.of(reading.cache, config, readings.digests())
        barred = Quarantine(rounds.folder).listed()
        waiting = _Waiting.of(reading, tasks, barred)
        wanting = published is not None and (
            _top_up_is_due(published, waiting, options) or (lost and bool(waiting.readable))
        )
        if lost:
            log.warning("Label Studio does not hold the published order")
        if held:
            if published is not None and not (waiting.readable and self._ranks_anew(fresh)) and wanting:
                queue.request_round(project, "topup")
            return
        due = counted.due or bool(
            by_itself
            and error is None
            and published
            and _other_labels(rounds, published, reading, config, options, images=tasks)
        )
        images = status.ran_out and _another_look(waiting, barred, reading, before, status.last_error)
        self._ask(fresh, waiting, published, wanting=wanting, newest=newest, error=error, due=due, images=images)

    def _ask(
        self,
        connection: Connection,
        waiting: "_Waiting",
        published: PublishedRanking | None,
        *,
        wanting: bool,
        newest: str,
        error: str | None,
        due: bool,
        images: bool,
    ) -> None:
        """Ask for the round that is earned, if any.

        Args:
            connection: of the project.
            waiting: what readers may be served.
            published: what was published last.
            wanting: whether readers need the published ranking, or more of it, to be published again.
            newest: round on disk.
            error: kind of the error by which the last round failed.
            due: whether enough labels changed.
            images: whether the last round found no image to rank, and the next may find one.
        """
        project, queue = connection.project, self._queue
        if due:
            queue.request_round(project, "labels")
        elif published is None and error is None:
            queue.request_round(project, "connected", only_if_idle=True)  # it was lost with Redis, say
        elif images:
            queue.request_round(project, "images")
        elif published is not None and waiting.readable and self._ranks_anew(connection):
            log.info("an order that the owner has chosen is asked for")
        elif published is not None and error is None and newest > published.round_id:
            # Saved and not published, and its next attempt was lost with Redis.
            queue.request_round(project, "connected", only_if_idle=True)
        elif wanting:
            queue.request_round(project, "topup")

    def _ranks_anew(self, connection: Connection) -> bool:
        """Whether another order was chosen than is served, and a worker was asked for it just now."""
        if not rerank_is_due(connection, self._store):
            return False
        return self._queue.request_round(connection.project, "rerank", only_if_idle=True)

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


def _created(reading: SyncedProject) -> int:
    try:
        return int(datetime.fromisoformat(str(reading.project["created_at"])).timestamp())
    except (KeyError, ValueError) as error:
        raise PayloadError(f"project {reading.project.get('id')} does not say when it was created: {error!r}") from None


class _Waiting(NamedTuple):
    """Tasks that nobody has answered or skipped.

    Attributes:
        ids: those that readers may be served.
        readable: of them, those whose image no round has failed to read: a top-up publishes no others.
        needless: those whose image is served by another task.
    """

    ids: frozenset[str]
    readable: frozenset[str]
    needless: frozenset[str]

    @classmethod
    def of(cls, reading: SyncedProject, images: TaskImages, quarantined: Collection[QuarantinedImage]) -> Self:
        pool, barred = images.waiting(reading.cache)
        tasks = reading.cache.tasks
        ids = frozenset(str(number) for number in pool if not tasks[number].annotations)
        return cls(
            ids,
            ids.difference(one.image_id for one in quarantined),
            frozenset(str(number) for number in barred if not tasks[number].annotations),
        )


def _another_look(
    waiting: _Waiting,
    quarantined: Collection[QuarantinedImage],
    reading: SyncedProject,
    before: TaskCache | None,
    error: LastError | None,
) -> bool:
    """Whether a round may find an image that the last one did not."""
    tasks = reading.cache.tasks
    if before is not None and any(tasks[int(n)] != before.tasks.get(int(n)) for n in waiting.ids):
        return True  # its file may be another, which no quarantine bars
    if error is not None and error.kind == "UnusablePool" and time.time() - error.at < AGAIN_AFTER_S:
        return False  # the host of the images is away, say: a round a minute would train each time
    return another_look(waiting.ids, quarantined, datetime.now(UTC))


def _top_up_is_due(published: PublishedRanking, waiting: _Waiting, options: ProjectOptions) -> bool:
    """Whether a top-up would publish something that readers need; one that would not is asked for every minute else."""
    left = len(waiting.ids.intersection(published.image_ids))
    runs_low = left < low_water(options) and not waiting.readable.issubset(published.image_ids)
    needless = not waiting.needless.isdisjoint(published.image_ids)
    return runs_low or (needless and bool(waiting.readable))


def _other_labels(
    rounds: ProjectStore,
    published: PublishedRanking,
    reading: SyncedProject,
    config: LabelConfig,
    options: ProjectOptions,
    *,
    images: TaskImages,
) -> bool:
    """Whether the owner has chosen since the served round what ground truths count as, and labels differ by that."""
    try:
        before = str(rounds.summary(published.round_id).request.options.get("ground_truth", "override"))
    except StorageError as error:
        log.warning("what the served round was asked is not known", error=str(error))
        return False
    if before == options.ground_truth:
        return False
    classes = training_classes(config, options)
    then, now = (
        rule(options.consensus)(annotations_in(reading.cache, config, chosen, images)[0], classes).labels
        for chosen in (options.model_copy(update={"ground_truth": before}), options)
    )
    return then != now
