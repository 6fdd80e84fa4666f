"""``/setup``: a project tells its label config and its owner's options. Instant, however often it comes."""

from ml_backend.errors import UnknownProject
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.queueing import RoundQueue
from ml_backend.records import Connection, ProjectKey
from ml_backend.server.payloads import SetupRequest
from ml_backend.settings import ProjectOptions
from ml_backend.storage import RoundStore

__all__ = ["UNPUBLISHED", "configuration", "connect", "connection_of", "version"]

UNPUBLISHED = "active-learning"  # the model version of a project that has no ranking yet


def connect(setup: SetupRequest, store: RoundStore, queue: RoundQueue) -> str:
    """Remember a project, and ask for its first round.

    Label Studio calls this in pairs and on every view of a settings page. The round is asked for only while nothing is
    published, nothing runs or waits, and not again within a minute: rounds that fail at once must not come in a storm.
    After a round that failed, changed options ask for the next one at once.

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
    changed = store.connect(connection)
    if changed and queue.status(setup.project).last_error is not None:
        # The owner has mended something: seen at once, and not after as many labels as failed rounds have made it.
        queue.request_round(setup.project, "connected")
    elif store.project(setup.project).published() is None:
        queue.request_round(setup.project, "connected", only_if_idle=True)
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
