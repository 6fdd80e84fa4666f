"""The seed replicate of a round's network: when it is due, what it is trained on, and that no round waits for it."""

from collections.abc import Callable, Sequence

import pytest

from ml_backend.errors import RoundError, StaleRound
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds import live as seed_noise
from ml_backend.rounds.interfaces import Learner, Progress, assume_current, no_progress
from ml_backend.rounds.live import measure_seed_noise, seed_noise_is_due
from ml_backend.rounds.run import Training
from ml_backend.schemas import FitReport, Label
from ml_backend.seeding import fixed_set
from tests.fakes import CLASSES, FakeLearner, make_image

POOL = [make_image(number) for number in range(100, 130)]
LABELS = [Label(image=make_image(number), value=CLASSES[number % 3], raters=1) for number in range(9)]


@pytest.mark.parametrize(
    ("trained", "measured", "every", "due"),
    [
        (4, [], 5, False),
        (5, [], 5, True),
        (9, [5], 5, False),
        (10, [5], 5, True),
        (6, [], 5, True),  # abandoned after the fifth
        (1, [], 1, True),
        (9, [], 0, False),
    ],
)
def test_is_due_after_every_so_many_trained_rounds(trained, measured, every, due):
    ids = [f"r{number:06d}" for number in range(1, trained + 1)]

    assert seed_noise_is_due(ids, [f"r{number:06d}" for number in measured], every) is due


@pytest.fixture
def training() -> Training:
    """Of a round that trained on 6 labels, validated on 3, and could not read one image of the pool."""
    learner = FakeLearner(unreadable=["100"])
    learner.fit(LABELS[:6], LABELS[6:], CLASSES)
    return Training(LABELS[:6], LABELS[6:], POOL, learner.outputs(POOL, frozenset({"probs"})))


class TellingLearner(FakeLearner):
    """Reports ten steps."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        for step in range(10):
            self._progress("features", step, 10)
            self._progress("train", step, 10)
        return super().fit(train, validation, classes)


def measure(
    training: Training,
    build: Callable[[Progress], Learner],
    raise_if_preempted: Callable[[], None] = assume_current,
    progress: Progress = no_progress,
) -> PoolPredictions | None:
    return measure_seed_noise(
        training, build, seed=3, most=10, progress=progress, raise_if_preempted=raise_if_preempted
    )


def test_same_labels_same_split_and_only_the_fixed_set(training):
    learner = FakeLearner()

    replicate = measure(training, lambda _: learner)

    assert learner.fits == [([str(n) for n in range(6)], [str(n) for n in range(6, 9)])]
    assert replicate is not None
    assert set(replicate.image_ids) == set(fixed_set([image.id for image in POOL[1:]], 3, 10))


def test_is_reported_as_one_stage(training):
    steps = []

    measure(training, TellingLearner, progress=lambda *step: steps.append(step))

    assert {stage for stage, _, _ in steps} == {"noise"}
    assert steps[0] == ("noise", 0, 1)
    assert ("noise", 9, 10) in steps
    assert steps[-1] == ("noise", 1, 1)


@pytest.mark.parametrize("error", [RoundError("out of memory"), StaleRound("newer"), RuntimeError("a bug")])
def test_a_failure_is_only_logged(training, error):
    def build(progress: Progress) -> Learner:
        raise error

    assert measure(training, build) is None


@pytest.mark.parametrize(("call", "built"), [(1, 0), (4, 1)])
def test_is_abandoned_where_a_round_is_due(training, monkeypatch, call, built):
    """Checked before it begins, and then between the steps of its training."""
    monkeypatch.setattr(seed_noise, "CHECK_INTERVAL_S", 0.0)
    calls, learners = [], []

    def raise_if_preempted() -> None:
        calls.append(1)
        if len(calls) == call:
            raise StaleRound("a round is due")

    def build(progress: Progress) -> Learner:
        learners.append(TellingLearner(progress))
        return learners[-1]

    assert measure(training, build, raise_if_preempted) is None
    assert len(calls) == call
    assert [learner.fits for learner in learners] == [[]] * built
