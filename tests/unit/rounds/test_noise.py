"""A twin of a round's network: when it is asked, what it is trained on, and that nothing waits or fails for it."""

from collections.abc import Sequence

import pytest

from ml_backend.errors import RoundError, StaleRound
from ml_backend.registry import Need
from ml_backend.rounds import seed_noise as noise
from ml_backend.rounds.interfaces import Learner, Progress, no_guard, no_progress
from ml_backend.rounds.seed_noise import RecordingLearner, measure_seed_noise, seed_noise_is_due
from ml_backend.schemas import FitReport, Label
from ml_backend.seeding import fixed_set
from tests.fakes import CLASSES, FakeLearner, make_image

PROBS: frozenset[Need] = frozenset({"probs"})
POOL = [make_image(number) for number in range(100, 130)]
LABELS = [Label(image=make_image(number), value=CLASSES[number % 3], raters=1) for number in range(9)]


@pytest.fixture
def witness():
    """Of a round that trained on 6 labels, validated on 3, and could not read one image of the pool."""
    seen = RecordingLearner(FakeLearner(unreadable=["100"]))
    seen.fit(LABELS[:6], LABELS[6:], CLASSES)
    seen.outputs(POOL, PROBS)
    return seen


class TellingLearner(FakeLearner):
    """Tells of ten steps."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        for step in range(10):
            self._progress("features", step, 10)
            self._progress("train", step, 10)
        return super().fit(train, validation, classes)


class TestTwinIsDue:
    @pytest.mark.parametrize(
        ("trained", "measured", "every", "due"),
        [
            (4, [], 5, False),
            (5, [], 5, True),
            (9, ["r5"], 5, False),
            (10, ["r5"], 5, True),
            (6, [], 5, True),  # given up after the fifth
            (1, [], 1, True),
            (9, [], 0, False),
        ],
    )
    def test_after_every_so_many_trained_rounds(self, trained, measured, every, due):
        trained_ids = [f"r{number:06d}" for number in range(1, trained + 1)]
        measured_ids = [f"r{int(name[1:]):06d}" for name in measured]

        assert seed_noise_is_due(trained_ids, measured_ids, every) is due


class TestAskTwin:
    def ask(self, witness, build, raise_if_preempted=no_guard, progress=no_progress, most=10):
        return measure_seed_noise(
            witness, build, seed=3, most=most, progress=progress, raise_if_preempted=raise_if_preempted
        )

    def test_same_labels_same_split_and_only_the_fixed_set(self, witness):
        twin = FakeLearner()
        found = self.ask(witness, lambda _: twin)

        assert twin.fits == witness._learner.fits
        said, of_twin = found
        assert len(said.image_ids) == 29
        readable = [image.id for image in POOL[1:]]
        assert set(of_twin.image_ids) == set(fixed_set(readable, 3, 10))

    def test_a_round_that_trained_nothing_has_no_twin(self):
        """A start set that still grows, or a saved round that is only published."""

        def build(tell: Progress) -> Learner:
            raise AssertionError("nobody asked")

        assert self.ask(RecordingLearner(FakeLearner()), build) is None

    def test_its_stage_is_told_as_one(self, witness):
        told = []
        self.ask(witness, TellingLearner, progress=lambda *step: told.append(step))

        assert {stage for stage, _, _ in told} == {"noise"}
        assert told[0] == ("noise", 0, 1)
        assert ("noise", 9, 10) in told
        assert told[-1] == ("noise", 1, 1)

    @pytest.mark.parametrize("error", [RoundError("out of memory"), StaleRound("newer"), RuntimeError("a bug")])
    def test_a_failure_is_logged_and_no_more(self, witness, error):
        def build(tell: Progress) -> Learner:
            raise error

        assert self.ask(witness, build) is None

    def test_gives_way_in_the_middle(self, witness, monkeypatch):
        """Asked before it begins, and then between the steps of its training."""
        monkeypatch.setattr(noise, "ASK_INTERVAL_S", 0.0)
        asked = []

        def raise_if_preempted() -> None:
            asked.append(1)
            if len(asked) == 4:
                raise StaleRound("a round waits")

        built = []

        def build(tell: Progress) -> Learner:
            built.append(TellingLearner(tell))
            return built[0]

        assert self.ask(witness, build, raise_if_preempted) is None
        assert built[0].fits == []
        assert len(asked) == 4

    def test_is_not_begun_where_a_round_waits(self, witness):
        def raise_if_preempted() -> None:
            raise StaleRound("a round waits")

        def build(tell: Progress) -> Learner:
            raise AssertionError("nobody asked")

        assert self.ask(witness, build, raise_if_preempted) is None
