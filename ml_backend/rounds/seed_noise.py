"""Seed noise: how often two networks agree that differ only by the seed of their training.

Successive rounds cannot agree more than that. A round's network is compared with a seed replicate every few trained
rounds, after readers have their order; the measurement is abandoned as soon as another round is due.
"""

import time
from collections.abc import Callable, Sequence

import structlog

from ml_backend.errors import BackendError, StaleRound
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds.interfaces import Learner, Progress
from ml_backend.rounds.run import Training
from ml_backend.schemas import Stage
from ml_backend.seeding import fixed_set

CHECK_INTERVAL_S = 1.0

log = structlog.get_logger(__name__)


def seed_noise_is_due(trained: Sequence[str], measured: Sequence[str], every: int) -> bool:
    """Whether the noise is to be measured after the last of these rounds.

    Args:
        trained: ids of every round that trained.
        measured: those of them that were measured; an abandoned measurement is repeated after the next round.
        every: trained rounds from one measurement to the next; 0 for never.
    """
    last = max(measured, default="")
    return every > 0 and sum(round_id > last for round_id in trained) >= every


def measure_seed_noise(
    training: Training,
    build: Callable[[Progress], Learner],
    *,
    seed: int,
    most: int,
    progress: Progress,
    raise_if_preempted: Callable[[], None],
) -> PoolPredictions | None:
    """Train a seed replicate of a round's network and predict a fixed set of the pool with it.

    Args:
        training: of the round.
        build: makes the replicate's learner, with the progress that it must call.
        seed: of the fixed set.
        most: images of the fixed set.
        progress: receives the whole measurement as the stage ``noise``.
        raise_if_preempted: raises where another round is due; called once a second at most.

    Returns:
        Predictions of the replicate; None where the measurement was abandoned or failed, which is logged.
    """
    checked = time.monotonic()

    def report(stage: Stage, done: int, total: int) -> None:
        nonlocal checked
        if stage == "train":
            progress("noise", done, total)
        if (now := time.monotonic()) - checked >= CHECK_INTERVAL_S:
            checked = now
            raise_if_preempted()

    try:
        raise_if_preempted()
        progress("noise", 0, 1)
        learner = build(report)
        learner.fit(training.train, training.validation, training.predictions.classes)
        chosen = set(fixed_set(training.predictions.image_ids, seed, most))
        replicate = learner.outputs([image for image in training.pool if image.id in chosen], frozenset({"probs"}))
        progress("noise", 1, 1)
    except StaleRound as reason:
        log.info("the noise is measured another time: another round wants to run", reason=str(reason))
        return None
    except BackendError as error:
        log.warning("the noise could not be measured", error=str(error), kind=type(error).__name__)
        return None
    except Exception:
        log.exception("the noise could not be measured")
        return None
    return replicate
