"""Values of another read and of a first one, and the re-reads of a batch."""

import json
from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np
import pytest

from ml_backend.consensus.rules import median
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds.reread import closeness, label_error, read_values, with_rereads
from ml_backend.rounds.reuse import remaining_ranking
from ml_backend.schemas import Annotation, HeldOutImage, Ranking, Reread
from tests.fakes import CLASSES, make_annotation, make_image, make_report

# Of cleanlab 2.9, ``get_active_learning_scores`` without its tempering, on answers and predictions drawn at random.
RECORDED = json.loads((Path(__file__).parents[2] / "recorded" / "activelab.json").read_text())
SURE, UNSURE = (0.98, 0.01, 0.01), (0.34, 0.33, 0.33)


class TestReadValues:
    @pytest.mark.parametrize("case", RECORDED, ids=["three readers", "five readers"])
    def test_are_cleanlabs_without_an_order(self, case):
        arrays = (np.array(case[name]) for name in ("answers", "labels", "held_out", "pool"))
        found = read_values(*arrays, ordered=False)

        assert found.again == pytest.approx(np.array(case["again"]), abs=3e-6)
        assert found.first == pytest.approx(np.array(case["first"]), abs=3e-6)

    def test_a_near_miss_counts_less_than_a_far_one(self):
        """By hand: the network expects closeness 0.5 or 0 to the label 0, its reader 1, chance 0.5."""
        found = read_values(
            np.array([[0, -1], [-1, 0]]), np.array([0, 0]), np.array([[0.0, 1, 0], [0, 0, 1]]), np.eye(3), ordered=True
        )

        assert found.again == pytest.approx([1 - (0.5 + 1 + 0.5) / 3, 1 - (0.0 + 1 + 0.5) / 3])
        assert found.first == pytest.approx([1 - 1.5 / 2, 1 - (1 + 2 / 3) / 2, 1 - 1.5 / 2])

    def test_readers_who_differ_decide_where_no_prediction_is_held_out(self):
        """Label 2 of answers 0 and 2, and of 2 and 2: closeness 0 + 1 and 1 + 1 beside chance; one answer: unknown."""
        found = read_values(
            np.array([[0, 2], [2, 2], [1, -1]]), np.array([2, 2, 1]), np.full((3, 3), np.nan), np.eye(3), ordered=True
        )

        assert found.again == pytest.approx([1 - 1.5 / 3, 1 - 2.5 / 3, np.nan], nan_ok=True)

    def test_a_reader_who_answers_at_random_counts_for_little(self):
        rng = np.random.default_rng(1)
        truth = rng.integers(0, 3, 200)
        answers = np.stack([truth, truth, rng.integers(0, 3, 200)], axis=1)
        answers[100:, 1] = -1
        held_out = np.full((200, 3), 1 / 3)
        again = read_values(answers, truth, held_out, np.eye(3), ordered=True).again
        with_two_good, with_one = again[:100].mean(), again[100:].mean()

        assert with_two_good < with_one

    def test_no_label_is_read_again_for_a_network_that_knows_nothing(self):
        even = np.full((3, 3), 1 / 3)
        for ordered in (False, True):
            found = read_values(np.array([[0], [1], [2]]), np.array([0, 1, 2]), even, even, ordered=ordered)

            assert found.again.max() <= found.first.min() + 1e-12

    def test_closeness(self):
        assert closeness(3, ordered=True).tolist() == [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]]
        assert closeness(2, ordered=False).tolist() == [[1, 0], [0, 1]]


def held_out(number: int, label: str, probs: Sequence[float]) -> HeldOutImage:
    return HeldOutImage(image_id=str(number), label=label, probs=dict(zip(CLASSES, probs, strict=True)))


def test_a_label_error_is_a_surprise_of_a_sure_network():
    """Cross-entropy -log p(label) minus entropy; an even prediction gives 0 whatever the label."""
    sure = label_error(held_out(1, "severe", SURE))

    assert sure == pytest.approx(-log(0.01) + 0.98 * log(0.98) + 2 * 0.01 * log(0.01))
    assert label_error(held_out(1, "severe", (1 / 3, 1 / 3, 1 / 3))) == pytest.approx(0.0)
    assert label_error(held_out(1, "normal", SURE)) < 0.0 < sure


class TestWithRereads:
    """Ten images of the pool, of which the network is sure; 1 and 2 are labelled against it, 3 with it."""

    ANSWERS = (make_annotation(1, "severe"), make_annotation(2, "moderate"), make_annotation(3, "normal", "ben"))
    HELD_OUT = (held_out(1, "severe", SURE), held_out(2, "moderate", SURE), held_out(3, "normal", SURE))

    def of(
        self,
        *,
        answers: Sequence[Annotation] = ANSWERS,
        share: float = 0.5,
        probs: Sequence[float] = SURE,
        predicted: Sequence[HeldOutImage] = HELD_OUT,
        control: tuple[str, ...] = (),
        counts: dict[str, int] | None = None,
        barred: frozenset[str] = frozenset(),
    ) -> Ranking:
        ids = tuple(str(number) for number in range(100, 110))
        ranking = Ranking(strategy="entropy", image_ids=ids, scores=(0.5,) * 10, batch_size=6, control=control)
        pool = PoolPredictions(ids, CLASSES, np.tile(np.array(probs, dtype=np.float32), (10, 2, 1)))
        return with_rereads(
            ranking,
            share,
            annotations=answers,
            labels=median(answers, CLASSES).labels,
            held_out=predicted,
            predictions=pool,
            counts=counts,
            barred=barred,
        )

    def test_the_likeliest_errors_come_first_and_evenly(self):
        rereads = self.of().rereads

        assert [(one.image_id, one.after, one.answers) for one in rereads] == [("1", 0, 1), ("2", 2, 1)]
        assert rereads[0].value > rereads[1].value
        assert rereads[0].label_error == pytest.approx(label_error(self.HELD_OUT[0]))

    def test_an_annotation_that_counts_for_no_label_is_no_new_one(self):
        assert [one.answers for one in self.of(counts={"1": 3}).rereads] == [3, 1]

    def test_no_more_than_the_share(self):
        assert [one.image_id for one in self.of(share=0.25).rereads] == ["1"]
        assert self.of(share=0.16).rereads == ()
        with pytest.raises(ValueError, match=r"between 0 and 0.5, got 0.6"):
            self.of(share=0.6)

    def test_none_where_the_first_reads_are_worth_more(self):
        assert self.of(probs=UNSURE, predicted=self.HELD_OUT[2:]).rereads == ()

    def test_the_holdout_is_not_displaced(self):
        """All of the batch is drawn at random: no place is left."""
        assert self.of(control=tuple(str(number) for number in range(100, 106))).rereads == ()

    def test_an_only_reader_is_never_asked_again(self):
        for rater in ("ann", "ann, task 3"):  # who answered another task of the image otherwise
            assert self.of(answers=[make_annotation(1, "severe"), make_annotation(2, "moderate", rater)]).rereads == ()

    @pytest.mark.parametrize(
        "more",
        [
            make_annotation(1, "severe", "ben"),
            make_annotation(1, None, "ben"),
            make_annotation(1, "severe", "owner").model_copy(update={"ground_truth": True}),
        ],
        ids=["answered", "skipped", "a ground truth"],
    )
    def test_an_image_that_every_reader_has_had_or_with_a_ground_truth_is_not(self, more):
        assert [one.image_id for one in self.of(answers=[*self.ANSWERS, more]).rereads] == ["2"]

    def test_an_answer_without_an_author_makes_no_reader(self):
        """An only reader is asked about the image of others; three of these are three answers to it."""

        def rereads(*raters: str) -> Sequence[Reread]:
            answers = [make_annotation(2, value, rater) for value, rater in zip(CLASSES, raters, strict=True)]
            return self.of(answers=[make_annotation(1, "severe"), *answers]).rereads

        [again] = rereads(*(f"unknown, annotation {number}" for number in (7, 8, 9)))

        assert (again.image_id, again.answers) == ("2", 3)
        assert again in [one.model_copy(update={"after": again.after}) for one in rereads("ben", "cat", "dan")]

    def test_nor_one_in_several_tasks_or_without_evidence(self):
        assert [one.image_id for one in self.of(barred=frozenset({"1"})).rereads] == ["2"]
        assert [one.image_id for one in self.of(predicted=self.HELD_OUT[1:]).rereads] == ["2"]

    def test_keep_their_places_among_what_a_top_up_publishes(self):
        """The first image of the ranking is labelled meanwhile: the second re-read follows one image fewer."""
        report = make_report().model_copy(update={"ranking": self.of()})
        pool = [make_image(number) for number in range(101, 110)]
        left = remaining_ranking(report, self.ANSWERS, pool)

        assert [(one.image_id, one.after) for one in left.rereads] == [("1", 0), ("2", 1)]

        star = make_annotation(1, "severe", "owner").model_copy(update={"ground_truth": True})
        left = remaining_ranking(report, [*self.ANSWERS, star], pool, frozenset({"9"}))

        assert [one.image_id for one in left.rereads] == ["2"]
        assert remaining_ranking(report, self.ANSWERS, pool, frozenset({"1", "2"})).rereads == ()
