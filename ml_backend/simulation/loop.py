"""Rounds without Label Studio: ``engine.round.run_round``, and a reader who labels the batch at once."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count, islice

from ml_backend.errors import EmptyPool
from ml_backend.rounds.interfaces import (
    ConsensusRule,
    Learner,
    Progress,
    ReportStore,
    RoundParts,
    Splitter,
    Strategy,
    no_progress,
)
from ml_backend.rounds.run import run_round
from ml_backend.rounds.split import stable_split
from ml_backend.schemas import PublishedRanking, RoundReport, RoundRequest
from ml_backend.simulation.oracle import Oracle


class OracleReader:
    """Labels the batch of a ranking, first image first. Satisfies ``engine.ports.Publisher``.

    Args:
        oracle: what the reader knows.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> PublishedRanking:
        """Label the first ``batch_size`` images of the ranking, in its order."""
        guard()
        batch = report.ranking.image_ids[: report.ranking.batch_size]
        self._oracle.reveal(batch)
        return PublishedRanking(
            version=f"simulated-{report.request.round_id}",
            round_id=report.request.round_id,
            image_ids=batch,
            seconds={},
            published_at=datetime.now(UTC),
        )


def reveal_start(oracle: Oracle, per_class: int, seed: int) -> None:
    """Label the start set, but for what of it is labelled already.

    Raises:
        ValueError: a class has too few images.
    """
    known = set(oracle.revealed)
    oracle.reveal(image_id for image_id in oracle.start_set(per_class, seed) if image_id not in known)


def simulated_rounds(request: RoundRequest, parts: RoundParts, first: int = 1) -> Iterator[RoundReport]:
    """Run round after round, each when it is asked for, until the pool is used up.

    Args:
        request: of every round; its ``round_id`` is counted up from that of ``first``.
        parts: whose publisher labels the batch.
        first: number of the first round; above 1 where a simulation goes on.

    Raises:
        EmptyPool: round 1 found no image to rank: what never began must not look like what ended.
        TooFewLabels, WeightsError, StorageError: see ``run_round``.
    """
    for number in count(first):
        try:
            report, _ = run_round(request.model_copy(update={"round_id": f"r{number:06d}"}), parts)
        except EmptyPool:
            if number == 1:
                raise
            return
        yield report


def simulate(
    request: RoundRequest,
    oracle: Oracle,
    *,
    consensus: ConsensusRule,
    learner: Learner,
    strategy: Strategy,
    store: ReportStore,
    rounds: int,
    split: Splitter = stable_split,
    progress: Progress = no_progress,
) -> tuple[RoundReport, ...]:
    """Draw a start set, then run round after round until ``rounds`` are done or the pool is used up.

    Args:
        request: of every round; its ``round_id`` is counted up from ``r000001``, and ``min_labels_per_class``
            images of every class are the start set, so that the first round already trains.
        oracle: the truth; images that it has revealed already stay so and make the start set larger.
        consensus: rule of every round.
        learner: trained in every round.
        strategy: ranks the pool; what ``request.strategy`` names.
        store: where every round is kept.
        rounds: rounds at most.
        split: which labels are validation.
        progress: told the stages of every round.

    Returns:
        What every round did, the first round first.

    Raises:
        ValueError: ``rounds`` is below 1, or a class has too few images for the start set.
        EmptyPool: the first round found no image to rank.
        TooFewLabels, WeightsError, StorageError: see ``run_round``.
    """
    if rounds < 1:
        raise ValueError(f"a simulation needs at least 1 round, got {rounds}")
    parts = RoundParts(
        labels=oracle,
        consensus=consensus,
        learner=learner,
        strategy=strategy,
        store=store,
        publisher=OracleReader(oracle),
        split=split,
        progress=progress,
    )
    reveal_start(oracle, request.min_labels_per_class, request.seed)
    return tuple(islice(simulated_rounds(request, parts), rounds))
