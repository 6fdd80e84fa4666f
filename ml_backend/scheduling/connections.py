"""Projects that Label Studio has connected to this backend: their label config, their options, and ``/setup``."""

import structlog

from ml_backend.analytics.order_audit import RANKING_OPTIONS, order_state
from ml_backend.config import ProjectOptions
from ml_backend.errors import BackendError, StorageError, UnknownProject
from ml_backend.label_studio.formats import LabelConfig, SetupRequest, parse_label_config, training_classes
from ml_backend.scheduling.policy import Connected, ProjectState, QueueStatus, SettingsChange, decide
from ml_backend.scheduling.queue import RoundQueue
from ml_backend.schemas import Connection, ProjectKey
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.project_state import Pause

log = structlog.get_logger()

UNPUBLISHED = "active-learning"  # the model version of a project that has no ranking yet


def connect(setup: SetupRequest, store: RoundStore, queue: RoundQueue) -> str:
    """Store a project's label config and options, and request a round if they call for one. Fast and repeatable.

    Returns:
        The model version that Label Studio shows for the backend.

    Raises:
        PayloadError: the label config cannot be read.
        SettingsError: an option has a wrong name or value, or fewer than two classes are left.
        QueueError: Redis does not answer.
        StorageError: the data folder refuses.
    """
    now = Connection(
        project=setup.project,
        hostname=setup.hostname,
        label_config=setup.label_config,
        extra_params=setup.extra_params,
    )
    training_classes(*configuration(now))
    project = store.project(setup.project)
    before = project.connection()
    changed, published = store.connect(now), project.published()
    # The views of a settings page change nothing: they need no Redis once a ranking is served.
    if changed or published is None:
        state = ProjectState(
            queue.status(setup.project) if changed else QueueStatus(), published, paused=Pause(project.folder).holds
        )
        queue.perform(setup.project, decide(state, Connected(settings_change(before, now, project, changed=changed))))
    return version(setup.project, store)


def connection_of(project: ProjectKey, store: RoundStore) -> Connection:
    """A connected project.

    Raises:
        UnknownProject: Label Studio never called ``/setup`` for it.
    """
    connection = store.project(project).connection()
    if connection is None:
        raise UnknownProject(
            f"project {project} is not connected to this backend: run `ml-backend connect --project {project.id}`"
        )
    return connection


def configuration(connection: Connection) -> tuple[LabelConfig, ProjectOptions]:
    """A project's label config and options.

    Raises:
        PayloadError: the label config cannot be read.
        SettingsError: an option has a wrong name or value.
    """
    config = parse_label_config(connection.label_config)
    return config, ProjectOptions.resolve(connection.extra_params, config.attributes)


def version(project: ProjectKey, store: RoundStore) -> str:
    """The model version that is served now; ``UNPUBLISHED`` before the first ranking."""
    published = store.project(project).published()
    return UNPUBLISHED if published is None else published.version


def settings_change(
    before: Connection | None, now: Connection, project: ProjectStore, *, changed: bool
) -> SettingsChange:
    """What differs between a stored connection and the one that has replaced it.

    Args:
        before: the former one; None if there was none.
        now: the new one.
        project: its rounds.
        changed: whether the two differ at all.
    """
    old, new = None if before is None else _learned(before), _learned(now)
    if not changed or before is None or new is None:
        return SettingsChange(changed=changed)
    ranking = old is None or old[1:] != new[1:]
    return SettingsChange(
        changed=True,
        training=old is None or old[:1] != new[:1],
        ranking=ranking,
        cold_start=_in_cold_start(project),
        rerank_due=ranking and rerank_is_due(now, project),
    )


def rerank_is_due(connection: Connection, project: ProjectStore) -> bool:
    """Whether the newest order is not the one that the owner has chosen, and can be made without training.

    Raises:
        PayloadError, SettingsError: see ``configuration``, and ``connect``.
    """
    config, options = configuration(connection)
    try:
        return order_state(project, options, training_classes(config, options)).due
    except StorageError as error:
        log.warning("a damaged round is not ranked again", error=str(error))
        return False


def _learned(connection: Connection) -> tuple[object, ...] | None:
    """What the first training depends on, then the options that rank; None if there is a mistake in them."""
    try:
        config, options = configuration(connection)
        training = training_classes(config, options), options.min_labels_per_class, options.cold_start
    except BackendError:
        return None
    return training, *(getattr(options, name) for name in RANKING_OPTIONS)


def _in_cold_start(project: ProjectStore) -> bool:
    try:
        ids = project.round_ids()
        return bool(ids) and not project.summary(ids[-1]).by_network
    except StorageError as error:
        log.warning("a damaged round tells nothing about the first training", error=str(error))
        return False
