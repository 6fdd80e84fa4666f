"""A live round, and what scores the shards of another worker's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from structlog.contextvars import bind_contextvars

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.assembly.live import Live, NotesWhatIsLearned, live_of, topped_up_or_served
from ml_backend.assembly.reranking import rerank_live
from ml_backend.assembly.sealing import SealedRounds
from ml_backend.assembly.world import lay_out, world_of
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.inputs import NotedInputs
from ml_backend.engine.noise import Witness, ask_twin, twin_is_due
from ml_backend.engine.ports import Progress, RoundParts, no_guard, no_progress
from ml_backend.engine.resume import unpublished_round
from ml_backend.engine.round import run_round
from ml_backend.engine.sharing import ShardedLearner
from ml_backend.engine.topup import beside
from ml_backend.errors import RoundError, StorageError
from ml_backend.insight.agreement import AGREEMENT, FIXED_SET, NOISE, noise_of, rounds_with
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

log = structlog.get_logger(__name__)


def run_live_round(
    settings: Settings,
    key: ProjectKey,
    reason: Reason,
    progress: Progress = no_progress,
    guard: Callable[[], None] = no_guard,
    *,
    make_way: Callable[[], None] = no_guard,
    learn: Callable[[], Reason] = lambda: "forced",
) -> tuple[RoundReport, Published]:
    """Run one round of a project that Label Studio has connected, or what learns nothing: a top-up, a re-ranking.

    What is logged from the moment that the round has a number names it, also after this.

    Args:
        settings: of the installation.
        key: of the project.
        reason: what calls for the round.
        progress: told of every stage.
        guard: raises StaleRound where a newer run has begun.
        make_way: the same, and also where another round waits: what readers do not need is given up then.
        learn: called where a re-ranking goes on as a round that learns; gives the reason that it has from then on.

    Returns:
        The round and what is served of it: the last round's where ``reason`` is ``topup``, or nothing was to be done. A
        re-ranking that can use nothing of the last network gives way to a round that learns.

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
            if (reranked := rerank_live(live, progress)) is not None:
                return reranked
            reason = learn()
        # Training may take longer than readers need for what is published.
        with beside(live.top_up), world.quarantine.settled():
            done = _round(live, reason, progress, make_way)
            typical = live.options.cold_start == "typiclust"
            if typical and not done[0].by_network and done[0].ranking.strategy == "random":
                # Readers have an order now, and the features are there: a better one follows at once.
                done = _round(live, reason, progress, make_way)
            return live.drop_copies() or done


def _round(
    live: Live, reason: Reason, progress: Progress, make_way: Callable[[], None]
) -> tuple[RoundReport, Published]:
    world, options = live.world, live.options
    round_id = world.project.next_round_id()
    # Not only in here: who tells how the round has ended names it too.
    bind_contextvars(round=round_id)
    warm_from = world.project.newest_network(FILE_NAME) if options.retrain == "warm" else None
    learner = Witness(
        ShardedLearner(
            lambda tell: world.learner(options, tell, warm_from),
            ShardQueue.from_settings(world.settings, world.key),
            lay_out(world, round_id, options),
            size=scoring.SHARD_IMAGES,
            progress=progress,
        )
    )
    inputs = NotedInputs(live.labels, RULES[options.consensus])
    sealed = SealedRounds(world.project, inputs, world.settings.device, learner.start_features)
    parts = RoundParts(
        labels=inputs,
        consensus=inputs.consensus,
        learner=learner,
        strategy=CatalogStrategy(options.strategy),
        store=NotesWhatIsLearned(sealed, live.readings, live.labels),
        publisher=live.publisher,
        progress=progress,
        guard=live.guard,
        serving=lambda: world.project.published() is not None,
        unpublished=lambda digest: unpublished_round(world.project, digest),
        served=live.served,
        find_copies=live.find_copies,
    )
    request = RoundRequest(
        project=world.key,
        round_id=round_id,
        reason=reason,
        classes=training_classes(live.config, options),
        strategy=options.strategy,
        batch_size=options.batch_size,
        min_labels_per_class=options.min_labels_per_class,
        cold_start=options.cold_start,
        control_share=options.control_share,
        validation_share=options.validation_share,
        seed=options.seed,
        options=options.model_dump(mode="json"),
    )
    done = run_round(request, parts)
    _measure_noise(live, round_id, learner, warm_from=warm_from, progress=progress, make_way=make_way)
    return done


def _measure_noise(
    live: Live,
    round_id: str,
    witness: Witness,
    *,
    warm_from: Path | None,
    progress: Progress,
    make_way: Callable[[], None],
) -> None:
    """Now and then: how much a twin of the round's network differs from it. Readers have their order already."""
    project, options = live.world.project, live.options
    if not twin_is_due(rounds_with(project, AGREEMENT), rounds_with(project, NOISE), options.noise_every):
        return
    found = ask_twin(
        witness,
        lambda tell: live.world.learner(options, tell, warm_from, twin=True),
        seed=options.seed,
        most=FIXED_SET,
        progress=progress,
        make_way=make_way,
    )
    if found is None:
        return
    try:
        project.set_record(round_id, NOISE, noise_of(*found))
    except StorageError as error:
        log.warning("the noise was measured and could not be kept", error=str(error))


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
