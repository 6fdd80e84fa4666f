"""``/setup``: a project tells its label config and its owner's options. Instant, however often it comes."""

import structlog

from ml_backend.errors import BackendError, StorageError, UnknownProject
from ml_backend.insight.reranking import RANKING_OPTIONS, order_standing
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.queueing import RoundQueue
from ml_backend.records import Connection, ProjectKey
from ml_backend.server.payloads import SetupRequest
from ml_backend.settings import ProjectOptions
from ml_backend.storage import RoundStore
from ml_backend.storage.pause import Pause

__all__ = [
    "UNPUBLISHED",
    "configuration",
    "connect",
    "connection_of",
    "request_rerank",
    "request_training",
    "rerank_is_due",
    "version",
]

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
        if not ids or project.brief(ids[-1]).by_network:
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
        return order_standing(store.project(connection.project), options, training_classes(config, options)).due
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
