"""How much two networks of the same labels differ, by the seed of their training alone: the noise floor of agreement.

Successive rounds cannot agree more than that. Measured now and then, after readers have their order, and given up as
soon as another round wants to run.
"""

import time
from collections.abc import Callable, Sequence

import structlog

from ml_backend.errors import BackendError, StaleRound
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner, Progress
from ml_backend.rounds.start_features import Place, StartFeatures, places_of
from ml_backend.schemas import FitReport, ImageRef, Label, Stage
from ml_backend.seeding import fixed_set

ASK_INTERVAL_S = 1.0
PROBS: frozenset[Need] = frozenset({"probs"})

log = structlog.get_logger(__name__)

SeedReplicate = tuple[PoolPredictions, PoolPredictions]
"""What a round's network said of its pool, and what its twin says of the fixed set."""


class RecordingLearner:
    """A learner that remembers what it was last trained on, what it said and what it has seen.

    Satisfies ``engine.ports.Learner``.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.fitted: tuple[Sequence[Label], Sequence[Label], Sequence[str]] | None = None
        self.pool: Sequence[ImageRef] = ()
        self.said: PoolPredictions | None = None
        self._seen: dict[str, Place] = {}

    def start_features(self) -> StartFeatures | None:
        """Where the features are kept that it has seen so far; None where there are none."""
        return StartFeatures.of(self._seen)

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        self.fitted = train, validation, classes
        self.said = None
        return self._learner.fit(train, validation, classes)

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        said = self._learner.outputs(pool, needs)
        self.pool, self.said = pool, PoolPredictions(said.image_ids, said.classes, said.probs)
        return said

    def prepare(self, images: Sequence[ImageRef]) -> None:
        self._learner.prepare(images)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        seen = self._learner.embed(images)
        self._seen |= places_of(seen)
        return seen

    def save(self, folder: str) -> None:
        self._learner.save(folder)


def seed_noise_is_due(trained: Sequence[str], measured: Sequence[str], every: int) -> bool:
    """Whether the noise is measured after the last of these rounds.

    Args:
        trained: every round that trained.
        measured: those of them whose twin was asked; one that was given up is asked for again after the next round.
        every: trained rounds from one twin to the next; 0 for never.
    """
    last = max(measured, default="")
    return every > 0 and sum(round_id > last for round_id in trained) >= every


def measure_seed_noise(
    witness: RecordingLearner,
    build: Callable[[Progress], Learner],
    *,
    seed: int,
    most: int,
    progress: Progress,
    raise_if_preempted: Callable[[], None],
) -> SeedReplicate | None:
    """Train a network on what the round's was trained on, and ask it about the fixed set of the pool.

    Never raises: the round is published, and nothing of it depends on this.

    Args:
        witness: of the round.
        build: makes the twin's learner, of another seed, with the progress that it must tell.
        seed: of the project, which chooses the fixed set.
        most: images of the fixed set.
        progress: told of the stage ``noise``.
        raise_if_preempted: raises where another round wants to run; asked once a second at most.

    Returns:
        None where the round trained nothing, or the twin was given up or failed, which is logged.
    """
    if witness.fitted is None or witness.said is None:
        return None
    tell = _Tell(progress, raise_if_preempted)
    try:
        raise_if_preempted()
        progress("noise", 0, 1)
        learner = build(tell)
        learner.fit(*witness.fitted)
        chosen = set(fixed_set(witness.said.image_ids, seed, most))
        twin = learner.outputs([image for image in witness.pool if image.id in chosen], PROBS)
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
    return witness.said, twin


class _Tell:
    """The training of a twin as one stage; asks between two steps whether to go on."""

    def __init__(self, progress: Progress, raise_if_preempted: Callable[[], None]) -> None:
        self._progress = progress
        self._make_way = raise_if_preempted
        self._asked = time.monotonic()

    def __call__(self, stage: Stage, done: int, total: int) -> None:
        if stage == "train":
            self._progress("noise", done, total)
        if (now := time.monotonic()) - self._asked >= ASK_INTERVAL_S:
            self._asked = now
            self._make_way()
