"""Settings and a connection in, the parts of a live round out: the only place that names concrete classes.

Imports torch, so only the work-horse of a worker imports this module.
"""

from collections.abc import Callable

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.ports import Progress, RoundParts, no_guard, no_progress
from ml_backend.engine.round import run_round
from ml_backend.errors import SettingsError
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
        UnknownProject: the project was never connected.
        BackendError: see ``run_round``.
    """
    store = RoundStore(settings.data_dir)
    connection = store.connection(key.id)
    if connection.project != key:
        raise SettingsError(f"project {key} is gone: Label Studio has given its id to {connection.project}")
    config = parse_label_config(connection.label_config)
    options = ProjectOptions.resolve(connection.extra_params, config.attributes)
    classes = training_classes(config, options)
    project_store = store.project(key)
    with LabelStudioClient.from_settings(settings, connection.hostname) as client:
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
