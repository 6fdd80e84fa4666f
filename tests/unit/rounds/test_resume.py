"""A round that was saved and not published is published, and not trained again; nor is one that is served."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ml_backend.errors import LabelStudioError, StorageError
from ml_backend.rounds.interfaces import RoundParts
from ml_backend.rounds.run import inputs_digest, run_round, served_round, unpublished_round
from ml_backend.schemas import Label, PublishedRanking, RoundReport, RoundTrigger
from tests.fakes import (
    CLASSES,
    NOON,
    FakeLabels,
    FakeLearner,
    FakePublisher,
    FakeStrategy,
    MemoryStore,
    make_annotation,
    make_image,
    make_report,
    make_request,
    one_reader,
)

POOL = tuple(make_image(number) for number in range(100, 110))
LABELS = tuple(Label(image=make_image(number), value=CLASSES[number % 3], raters=1) for number in range(12))
ANNOTATIONS = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]


def published(round_id: str, **seconds: float) -> PublishedRanking:
    return PublishedRanking(version="al-1", round_id=round_id, image_ids=("2",), seconds=seconds, published_at=NOON)


class TestInputsDigest:
    def test_neither_order_nor_number_nor_reason_matters(self):
        digest = inputs_digest(make_request(), LABELS, POOL)

        assert digest == inputs_digest(make_request(round_id="r000009", reason="forced"), LABELS[::-1], POOL[::-1])

    @pytest.mark.parametrize(
        ("request_", "labels", "pool"),
        [
            (make_request(seed=1), LABELS, POOL),
            (make_request(options={"passes": 100}), LABELS, POOL),
            (make_request(), LABELS[1:], POOL),
            (make_request(), (LABELS[0].model_copy(update={"value": CLASSES[1]}), *LABELS[1:]), POOL),
            (make_request(), LABELS, POOL[1:]),
            (make_request(), LABELS, (make_image(100, patient_id="p"), *POOL[1:])),
            (make_request(), (*LABELS, Label(image=POOL[0], value=CLASSES[0], raters=1)), POOL[1:]),
        ],
    )
    def test_all_that_decides_the_result_does(self, request_, labels, pool):
        assert inputs_digest(request_, labels, pool) != inputs_digest(make_request(), LABELS, POOL)


class Archive:
    """Keeps the last round and what is served; ``damage`` is raised instead."""

    def __init__(
        self, report: RoundReport | None, served: PublishedRanking | None, damage: Exception | None = None
    ) -> None:
        self._report, self._served, self._damage = report, served, damage

    def latest(self) -> RoundReport | None:
        if self._damage:
            raise self._damage
        return self._report

    def published(self) -> PublishedRanking | None:
        return self._served


class TestUnpublishedRound:
    LAST = make_report("r000002").model_copy(update={"inputs": "same"})

    @pytest.mark.parametrize(
        "served", [None, published("r000001", delete=1.0), published("r000002", switch=0.1)], ids=str
    )
    def test_the_last_one_that_is_not_wholly_published(self, served):
        """Deleting the order before it is the last step."""
        assert unpublished_round(Archive(self.LAST, served), "same") == self.LAST

    def test_none_that_is(self):
        assert unpublished_round(Archive(self.LAST, published("r000002", delete=0.2)), "same") is None

    def test_none_to_which_a_new_round_would_not_come(self):
        assert unpublished_round(Archive(self.LAST, None), "other") is None
        assert unpublished_round(Archive(make_report(), None), "same") is None  # saved before digests were
        assert unpublished_round(Archive(None, None), "same") is None

    def test_a_damaged_one_stops_no_round(self):
        assert unpublished_round(Archive(None, None, StorageError("report.json is damaged")), "same") is None


class TestServedRound:
    LAST = TestUnpublishedRound.LAST

    def test_the_last_one_where_a_new_round_would_come_to_it(self):
        served = published("r000002", delete=0.2)

        assert served_round(Archive(self.LAST, served), "same") == (self.LAST, served)
        assert served_round(Archive(self.LAST, served), "other") is None

    @pytest.mark.parametrize(
        "served", [None, published("r000001", delete=1.0), published("r000002", switch=0.1)], ids=str
    )
    def test_none_that_is_not_wholly_published(self, served):
        assert served_round(Archive(self.LAST, served), "same") is None

    def test_a_damaged_one_stops_no_round(self):
        assert served_round(Archive(None, None, StorageError("report.json is damaged")), "same") is None


class Unreachable(FakePublisher):
    """Label Studio is away."""

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> PublishedRanking:
        raise LabelStudioError("it is away")


class TestRunRound:
    def test_what_could_not_be_published_is_on_the_next_attempt(self):
        """The network is trained once; a label that came meanwhile has it trained again."""
        learner, store, served = FakeLearner(), MemoryStore(), FakePublisher()

        def unpublished(inputs: str) -> RoundReport | None:
            return unpublished_round(Archive(store.saved[-1][0] if store.saved else None, None), inputs)

        parts = RoundParts(
            labels=FakeLabels(ANNOTATIONS, POOL),
            consensus=one_reader,
            learner=learner,
            strategy=FakeStrategy(),
            store=store,
            publisher=Unreachable(),
            unpublished=unpublished,
        )
        with pytest.raises(LabelStudioError):
            run_round(make_request(), parts)

        report, _ = run_round(make_request(round_id="r000002"), replace(parts, publisher=served))

        assert report == store.saved[0][0] == served.published[0]
        assert (len(learner.fits), len(store.saved)) == (1, 1)
        more = FakeLabels([*ANNOTATIONS, make_annotation(100, CLASSES[0])], POOL[1:])
        report, _ = run_round(make_request(round_id="r000003"), replace(parts, labels=more, publisher=served))
        assert report.request.round_id == "r000003"
        assert len(learner.fits) == 2

    @pytest.mark.parametrize(
        ("reason", "per_class", "trained"),
        [("labels", 4, 1), ("forced", 4, 2), ("images", 4, 2), ("connected", 4, 2), ("labels", 1, 0)],
    )
    def test_what_is_served_already_is_not_trained_again(self, reason: RoundTrigger, per_class: int, trained: int):
        """Unless it is more than labels that calls for it; and a start set has no training to save."""
        learner, store, publisher = FakeLearner(), MemoryStore(), FakePublisher()

        def served(inputs: str) -> tuple[RoundReport, PublishedRanking] | None:
            if not store.saved:
                return None
            last = store.saved[-1][0]
            return served_round(Archive(last, published(last.request.round_id, delete=0.1)), inputs)

        parts = RoundParts(
            labels=FakeLabels(ANNOTATIONS[: 3 * per_class], POOL),
            consensus=one_reader,
            learner=learner,
            strategy=FakeStrategy(),
            store=store,
            publisher=publisher,
            served=served,
        )
        run_round(make_request(), parts)

        report, _ = run_round(make_request(round_id="r000002", reason=reason), parts)

        came_to_nothing = trained == 1
        assert report.request.round_id == ("r000001" if came_to_nothing else "r000002")
        assert len(learner.fits) == trained
        assert len(publisher.published) == len(store.saved) == (1 if came_to_nothing else 2)
