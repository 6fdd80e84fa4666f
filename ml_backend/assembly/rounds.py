"""A live round, and what scores the shards of another worker's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from structlog.contextvars import bind_contextvars

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.assembly.live import NotesWhatIsLearned, live_of, topped_up_or_served
from ml_backend.assembly.reranking import rerank_live
from ml_backend.assembly.sealing import SealedRounds
from ml_backend.assembly.world import lay_out, world_of
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.inputs import NotedInputs
from ml_backend.engine.ports import Progress, RoundParts, no_guard, no_progress
from ml_backend.engine.resume import unpublished_round
from ml_backend.engine.round import run_round
from ml_backend.engine.sharing import ShardedLearner
from ml_backend.engine.topup import beside
from ml_backend.errors import RoundError
from ml_backend.label_studio.formats import training_classes
from ml_backend.model import scoring
from ml_backend.model.checkpoint import FILE_NAME
from ml_backend.model.machine import machine
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.queueing import ShardQueue
from ml_backend.records import ProjectKey, Published, Reason, RoundReport, RoundRequest
from ml_backend.settings import Settings
from ml_backend.storage import ScoringFolder

__all__ = ["run_live_round", "shard_scorer"]


def run_live_round(
    settings: Settings,
    key: ProjectKey,
    reason: Reason,
    progress: Progress = no_progress,
    guard: Callable[[], None] = no_guard,
) -> tuple[RoundReport, Published]:
    """Run one round of a project that Label Studio has connected, or what learns nothing: a top-up, a re-ranking.

    What is logged from the moment that the round has a number names it, also after this.

    Returns:
        The round and what is served of it: the last round's where ``reason`` is ``topup``, or nothing was to be done.

    Raises:
        SettingsError: no API key, or an option of the project is wrong.
        UnknownProject: the project was never connected, or Label Studio has given its id to another.
        EmptyPool: a top-up or a re-ranking of a project without any round.
        BackendError: see ``run_round``, ``rerank`` and ``TopUp``.
    """
    with world_of(settings, key) as world:
        live = live_of(world, guard)
        if reason == "topup":
            return topped_up_or_served(live)
        if reason == "rerank":
            return rerank_live(live, progress)
        options = live.options
        round_id = world.project.next_round_id()
        # Not only in here: who tells how the round has ended names it too.
        bind_contextvars(round=round_id)
        warm_from = world.project.newest_network(FILE_NAME) if options.retrain == "warm" else None
        inputs = NotedInputs(live.labels, RULES[options.consensus])
        sealed = SealedRounds(world.project, inputs, settings.device)
        parts = RoundParts(
            labels=inputs,
            consensus=inputs.consensus,
            learner=ShardedLearner(
                lambda tell: world.learner(options, tell, warm_from),
                ShardQueue.from_settings(settings, key),
                lay_out(world, round_id, options),
                size=scoring.SHARD_IMAGES,
                progress=progress,
            ),
            strategy=CatalogStrategy(options.strategy),
            store=NotesWhatIsLearned(sealed, live.readings, live.labels),
            publisher=live.publisher,
            progress=progress,
            guard=guard,
            unpublished=lambda inputs: unpublished_round(world.project, inputs),
            served=live.served,
        )
        request = RoundRequest(
            project=key,
            round_id=round_id,
            reason=reason,
            classes=training_classes(live.config, options),
            strategy=options.strategy,
            batch_size=options.batch_size,
            min_labels_per_class=options.min_labels_per_class,
            control_share=options.control_share,
            validation_share=options.validation_share,
            seed=options.seed,
            options=options.model_dump(mode="json"),
        )
        # Training may take longer than readers need for what is published.
        with beside(live.top_up), world.quarantine.settled():
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
    if (here := machine(settings.device)) != task.machine:
        raise RoundError(
            f"this worker would score to other bits ({here}) than the round ({task.machine}): "
            "run the workers of one installation on equal machines, or start one worker only"
        )
    with world_of(settings, key) as world:
        learner = world.learner(task.options, progress)
        learner.restore(str(folder.folder))
        yield lambda number: learner.outputs(folder.images(number), task.needs)
