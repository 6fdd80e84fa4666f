"""Settings and a connection in, the parts of a live round out: the only place that names concrete classes.

Imports torch, so only a worker imports this module, and where there may be a GPU only its work-horse.
"""

from collections.abc import Callable
from datetime import datetime

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.ports import Progress, RoundParts, no_guard, no_progress
from ml_backend.engine.round import run_round
from ml_backend.errors import UnknownProject
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.labels import LabelStudioLabels
from ml_backend.label_studio.publisher import LabelStudioPublisher
from ml_backend.model.learner import McDropoutLearner
from ml_backend.records import ProjectKey, Published, Reason, RoundReport, RoundRequest
from ml_backend.settings import ProjectOptions, Settings
from ml_backend.storage import RoundStore

__all__ = ["run_live_round"]

PATIENCE_S = 90.0  # a restart of Label Studio takes 11 to 33 s, and must not cost the round its training


def run_live_round(
    settings: Settings,
    key: ProjectKey,
    reason: Reason,
    progress: Progress = no_progress,
    guard: Callable[[], None] = no_guard,
) -> tuple[RoundReport, Published]:
    """Run one round of a project that Label Studio has connected.

    Raises:
        SettingsError: no API key, or an option of the project is wrong.
        UnknownProject: the project was never connected, or Label Studio has given its id to another.
        BackendError: see ``run_round``.
    """
    store = RoundStore(settings.data_dir)
    project_store = store.project(key)
    connection = project_store.connection()
    if connection is None:
        raise UnknownProject(f"project {key} is not connected: run `ml-backend connect --project {key.id}`")
    # Where no password is asked for, anybody may call /setup, and name a host that the API key would then be sent to.
    hostname = connection.hostname if settings.basic_auth_user else None
    with LabelStudioClient.from_settings(settings, hostname, patience_s=PATIENCE_S) as client:
        config = parse_label_config(_label_config(client, key))
        options = ProjectOptions.resolve(connection.extra_params, config.attributes)
        classes = training_classes(config, options)
        parts = RoundParts(
            labels=LabelStudioLabels(client, key.id, config, options),
            consensus=RULES[options.consensus],
            learner=McDropoutLearner(
                options=options,
                source=LabelStudioImages(client, connection.hostname),
                cache=store.cache,
                device=settings.device,
                seed=options.seed,
                progress=progress,
            ),
            strategy=CatalogStrategy(options.strategy),
            store=project_store,
            publisher=LabelStudioPublisher(client, key.id, config, options, project_store),
            progress=progress,
            guard=guard,
        )
        request = RoundRequest(
            project=key,
            round_id=project_store.next_round_id(),
            reason=reason,
            classes=classes,
            strategy=options.strategy,
            batch_size=options.batch_size,
            min_labels_per_class=options.min_labels_per_class,
            validation_share=options.validation_share,
            seed=options.seed,
        )
        return run_round(request, parts)


def _label_config(client: LabelStudioClient, key: ProjectKey) -> str:
    """As it stands now: the event of its change is lost where the web process was down."""
    project = client.project(key.id)
    created = int(datetime.fromisoformat(str(project["created_at"])).timestamp())
    if created != key.created:
        raise UnknownProject(f"project {key} is gone: Label Studio has given its id to {key.id}.{created}")
    return str(project["label_config"])
