"""Settings and a connection in, the parts of a live round out: the only place that names concrete classes.

Imports torch, so only a worker imports this module, and where there may be a GPU only its work-horse.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.ports import Learner, Progress, RoundParts, no_guard, no_progress
from ml_backend.engine.round import run_round
from ml_backend.engine.sharing import LayOut, ShardedLearner
from ml_backend.engine.split import fold_split
from ml_backend.errors import RoundError, UnknownProject
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.labels import LabelStudioLabels
from ml_backend.label_studio.publisher import LabelStudioPublisher
from ml_backend.model import scoring
from ml_backend.model.checkpoint import FILE_NAME
from ml_backend.model.committee import CommitteeLearner, Tell, make_learner
from ml_backend.model.learner import McDropoutLearner
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.queueing import ShardQueue
from ml_backend.records import Connection, ImageRef, ProjectKey, Published, Reason, RoundReport, RoundRequest
from ml_backend.settings import ProjectOptions, Settings
from ml_backend.storage import ProjectStore, RoundStore, ScoringFolder, ScoringTask
from ml_backend.strategies import Need

__all__ = ["run_live_round", "shard_scorer"]

PATIENCE_S = 90.0  # a restart of Label Studio takes 11 to 33 s, and must not cost the round its training
CACHE_GB = 10**9


@dataclass(frozen=True, slots=True)
class _World:
    """A project as a worker meets it."""

    settings: Settings
    store: RoundStore
    project: ProjectStore
    connection: Connection
    client: LabelStudioClient
    images: LabelStudioImages

    def learner(
        self, options: ProjectOptions, progress: Progress, warm_from: Path | None = None
    ) -> McDropoutLearner | CommitteeLearner:
        def make(options: ProjectOptions, seed: int, tell: Tell) -> McDropoutLearner:
            return McDropoutLearner(
                options=options,
                source=self.images,
                cache=self.store.cache,
                device=self.settings.device,
                seed=seed,
                progress=tell,
                warm_from=warm_from,
                cache_limit_bytes=int(self.settings.cache_gb * CACHE_GB),
            )

        return make_learner(make, options, partial(fold_split, seed=options.seed), progress)


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
    with _world(settings, key) as world:
        client, project = world.client, world.project
        config = parse_label_config(_label_config(client, key))
        options = ProjectOptions.resolve(world.connection.extra_params, config.attributes)
        round_id = project.next_round_id()
        warm_from = project.newest_network(FILE_NAME) if options.retrain == "warm" else None
        parts = RoundParts(
            labels=LabelStudioLabels(client, key.id, config, options),
            consensus=RULES[options.consensus],
            learner=ShardedLearner(
                lambda tell: world.learner(options, tell, warm_from),
                ShardQueue.from_settings(settings, key),
                _lay_out(world, round_id, options),
                size=scoring.SHARD_IMAGES,
                progress=progress,
            ),
            strategy=CatalogStrategy(options.strategy),
            store=project,
            publisher=LabelStudioPublisher(client, key.id, config, options, project),
            progress=progress,
            guard=guard,
        )
        request = RoundRequest(
            project=key,
            round_id=round_id,
            reason=reason,
            classes=training_classes(config, options),
            strategy=options.strategy,
            batch_size=options.batch_size,
            min_labels_per_class=options.min_labels_per_class,
            validation_share=options.validation_share,
            seed=options.seed,
        )
        return run_round(request, parts)


@contextmanager
def shard_scorer(
    settings: Settings, key: ProjectKey, folder: ScoringFolder, progress: Progress = no_progress
) -> Iterator[Callable[[int], PoolOutputs]]:
    """What scores the shards of another worker's round, by their numbers.

    Args:
        settings: of this worker.
        key: whose pool it is.
        folder: what the round has laid out.
        progress: told of each shard; unlike a round's it may raise, to stop.

    Raises:
        RoundError: the round is over, or this machine would give other bits than the round's.
        UnknownProject: the project was never connected.
        SettingsError: no API key.
        WeightsError: the network is gone or damaged.
    """
    task = folder.task()
    if task is None:
        raise RoundError(f"scoring {folder.name} is over")
    if (here := _machine(settings)) != task.machine:
        raise RoundError(
            f"this worker would score to other bits ({here}) than the round ({task.machine}): "
            "run the workers of one installation on equal machines, or start one worker only"
        )
    with _world(settings, key) as world:
        learner = world.learner(task.options, progress)
        learner.restore(str(folder.folder))
        yield lambda number: learner.outputs(folder.images(number), task.needs)


@contextmanager
def _world(settings: Settings, key: ProjectKey) -> Iterator[_World]:
    store = RoundStore(settings.data_dir)
    project = store.project(key)
    connection = project.connection()
    if connection is None:
        raise UnknownProject(f"project {key} is not connected: run `ml-backend connect --project {key.id}`")
    # Where no password is asked for, anybody may call /setup, and name a host that the API key would then be sent to.
    hostname = connection.hostname if settings.basic_auth_user else None
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=PATIENCE_S) as client,
        closing(LabelStudioImages(client, connection.hostname)) as images,
    ):
        yield _World(settings, store, project, connection, client, images)


def _lay_out(world: _World, round_id: str, options: ProjectOptions) -> LayOut:
    def lay_out(learner: Learner, shards: Sequence[Sequence[ImageRef]], needs: frozenset[Need]) -> ScoringFolder:
        task = ScoringTask(options=options, needs=needs, machine=_machine(world.settings), shards=len(shards))
        return world.project.begin_scoring(round_id, task, shards, learner)

    return lay_out


def _machine(settings: Settings) -> str:
    """What decides the bits of a result, besides the network and the image."""
    facts = [f"torch {torch.__version__}", f"shards of {scoring.SHARD_IMAGES}"]
    if settings.device != "cpu" and torch.cuda.is_available():
        facts += [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"]
    else:
        # Libraries choose their kernels, and in which order these add up, by all three.
        facts += [_cpu(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return ", ".join(facts)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _label_config(client: LabelStudioClient, key: ProjectKey) -> str:
    """As it stands now: the event of its change is lost where the web process was down."""
    project = client.project(key.id)
    created = int(datetime.fromisoformat(str(project["created_at"])).timestamp())
    if created != key.created:
        raise UnknownProject(f"project {key} is gone: Label Studio has given its id to {key.id}.{created}")
    return str(project["label_config"])
