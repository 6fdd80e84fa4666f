"""A live re-ranking: another strategy at once, from the passes or by the network of an earlier round."""

import structlog
from pydantic import ValidationError

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.assembly.live import Live, topped_up_or_served
from ml_backend.assembly.sealing import SealedRounds
from ml_backend.assembly.world import lay_out
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.inputs import NotedInputs
from ml_backend.engine.ports import Learner, Progress
from ml_backend.engine.rerank import RerankParts, Scorer, StoredPasses, rerank
from ml_backend.engine.sharing import ShardedLearner
from ml_backend.engine.topup import beside
from ml_backend.errors import StorageError, WeightsError
from ml_backend.insight import INSIGHT, round_insight
from ml_backend.insight.reranking import RANKING_OPTIONS, OrderStanding, order_standing
from ml_backend.label_studio.formats import training_classes
from ml_backend.model import scoring
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.queueing import ShardQueue
from ml_backend.records import Published, RoundReport, RoundRequest
from ml_backend.settings import ProjectOptions
from ml_backend.storage import ProjectStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.pause import Pause

__all__ = ["rerank_live"]

log = structlog.get_logger(__name__)


class _Unusable(Exception):
    """Nothing that the last network left behind can be used; the message says why."""


def rerank_live(live: Live, progress: Progress) -> tuple[RoundReport, Published] | None:
    """Serve what the owner has chosen, if that takes no training; otherwise top up, if it is time.

    Returns:
        None where passes and network are there and cannot be used, since they are damaged or of another version, say:
        it takes a round that learns, and the rounds are not held.

    Raises:
        EmptyPool: nothing is served yet, or no image waits.
        BackendError: see ``rerank``.
    """
    standing = order_standing(live.world.project, live.options, training_classes(live.config, live.options))
    latest = standing.latest
    if standing.verdict == "next round":
        log.info("what the owner has chosen takes effect with the next round", why=standing.why)
    if standing.verdict == "saved" and latest is not None:
        log.info("the last round was saved but not published: it is published now", round=latest.request.round_id)
        report = live.world.project.report(latest.request.round_id)
        return report, live.publisher.publish(report, live.guard)
    if not standing.due or latest is None or standing.base is None:
        return topped_up_or_served(live)
    base = live.world.project.report(standing.base.request.round_id)
    request = _request(base.request, live.options, live.world.project.next_round_id())
    try:
        scorer = _scorer(live, standing, base, request.round_id, progress)
    except _Unusable as error:
        if Pause(live.world.project.folder).holds:
            log.warning("what the owner has chosen takes effect with the next round", why=str(error))
            return topped_up_or_served(live)
        log.warning("the last network cannot rank anew: a round that learns takes its place", why=str(error))
        return None
    structlog.contextvars.bind_contextvars(round=request.round_id)
    inputs = NotedInputs(live.labels, RULES[live.options.consensus])
    rounds = SealedRounds(live.world.project, inputs, live.world.settings.device)
    parts = RerankParts(
        labels=inputs,
        consensus=inputs.consensus,
        scorer=scorer,
        strategy=CatalogStrategy(request.strategy),
        store=_KnowsWhatItsBaseLearned(rounds, live.readings, latest.request.round_id),
        publisher=live.publisher,
        progress=progress,
        guard=live.guard,
    )
    log.info("ranking anew", strategy=request.strategy, base=base.request.round_id, by=standing.verdict)
    # A network may look at the pool for an hour.
    with beside(live.top_up):
        return rerank(request, base, parts)


def _request(base: RoundRequest, options: ProjectOptions, round_id: str) -> RoundRequest:
    """The earlier round's, with what the owner has chosen since of that which needs no other network."""
    chosen = {name: getattr(options, name) for name in RANKING_OPTIONS}
    return base.model_copy(
        update={**chosen, "options": {**base.options, **chosen}, "round_id": round_id, "reason": "rerank"}
    )


def _scorer(live: Live, standing: OrderStanding, base: RoundReport, round_id: str, progress: Progress) -> Scorer:
    """The passes, else the network.

    Raises:
        _Unusable: neither can be used.
    """
    why: list[str] = []
    try:
        # As it was made: with other options it would not be the same network.
        options = ProjectOptions.model_validate(base.request.options)
        if standing.verdict == "passes":
            try:
                return _passes(live.world.project, base)
            except StorageError as error:
                why.append(str(error))
        scorer = _network(live, base.request.round_id, options, round_id, progress)
    except (StorageError, WeightsError) as error:
        raise _Unusable("; ".join([*why, str(error)])) from error
    except ValidationError as error:
        said = f"the options of round {base.request.round_id} are not those of this version"
        raise _Unusable(f"{said} ({error.error_count()} mistakes)") from error
    if why:
        log.warning("the network looks at the images once more, since its passes cannot be used", why=why[0])
    return scorer


def _passes(project: ProjectStore, base: RoundReport) -> StoredPasses:
    if (kept := project.outputs(base.request.round_id)) is None:
        raise StorageError(f"the passes of round {base.request.round_id} are gone from {project.folder}")
    return StoredPasses(base, kept)


def _network(live: Live, earlier: str, options: ProjectOptions, round_id: str, progress: Progress) -> ShardedLearner:
    world = live.world
    if (folder := world.project.network(earlier)) is None:
        raise StorageError(f"the network of round {earlier} is gone from {world.project.folder}")

    def restored(tell: Progress) -> Learner:
        learner = world.learner(options, tell)
        learner.restore(str(folder))
        return learner

    return ShardedLearner(
        restored,
        ShardQueue.from_settings(world.settings, world.key),
        lay_out(world, round_id, options),
        size=scoring.SHARD_IMAGES,
        progress=progress,
    )


class _KnowsWhatItsBaseLearned:
    """A project's rounds, where one has learned from nothing but what an earlier one has."""

    def __init__(self, rounds: SealedRounds, readings: ReadingStore, earlier: str) -> None:
        self._rounds = rounds
        self._readings = readings
        self._earlier = earlier

    def save(self, report: RoundReport, outputs: PoolOutputs | None, learner: Learner | None) -> None:
        self._readings.keep_learned_of(self._earlier, report.request.round_id)
        told = {} if outputs is None else {INSIGHT: round_insight(report, outputs)}
        self._rounds.save(report, outputs, learner, told)
