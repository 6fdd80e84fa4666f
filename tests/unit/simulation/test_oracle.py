"""The oracle answers what it was asked, once, and as the data says."""

import random

import numpy as np
import pytest

from ml_backend.rounds.cold_start import random_order
from ml_backend.schemas import Annotation, ImageRef, Label
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.oracle import Oracle
from tests.fakes import NOON


def truth_of(*values: str) -> list[Label]:
    return [
        Label(image=ImageRef(id=f"{number}.png", uri=f"{number}.png"), value=value, raters=1)
        for number, value in enumerate(values)
    ]


def pool_of(oracle: Oracle) -> list[str]:
    return [image.id for image in oracle.unlabelled()[0]]


class TestReveal:
    def test_answers_in_the_order_asked(self):
        oracle = Oracle(truth_of("normal", "severe", "moderate"))

        assert oracle.annotations() == []
        oracle.reveal(["2.png", "0.png"])

        answers = oracle.annotations()
        assert [(answer.image.id, answer.value) for answer in answers] == [("2.png", "moderate"), ("0.png", "normal")]
        assert answers[0].updated_at < answers[1].updated_at
        assert pool_of(oracle) == ["1.png"]

    @pytest.mark.parametrize("asked", [["1.png", "9.png"], ["0.png"]])
    def test_an_unknown_or_labelled_image_reveals_nothing(self, asked):
        oracle = Oracle(truth_of("normal", "severe"))
        oracle.reveal(["0.png"])

        with pytest.raises(ValueError, match=r"'(9|0)\.png' is not in the oracle's pool, or was labelled before"):
            oracle.reveal(asked)

        assert oracle.revealed == ("0.png",)

    def test_the_pool_does_not_depend_on_the_order_of_the_rows(self):
        """Twelve images, so that 10.png and 11.png come after 9.png."""
        truth = truth_of(*["normal", "severe"] * 6)

        assert pool_of(Oracle(reversed(truth))) == [label.image.id for label in truth]

    def test_two_labels_of_an_image_and_an_empty_truth_are_refused(self):
        with pytest.raises(ValueError, match=r"'0\.png' has more than one true label"):
            Oracle([*truth_of("normal"), *truth_of("severe")])
        with pytest.raises(ValueError, match=r"'1\.png' has more than one true label"):
            Oracle(truth_of("normal", "severe"), always_known=truth_of("normal", "severe")[1:])
        with pytest.raises(ValueError, match="no image"):
            Oracle([])


class TestReaders:
    """``0.png`` has two readers who differ, ``1.png`` one who skipped it, ``2.png`` none."""

    RATINGS = (
        Annotation(image=ImageRef(id="0.png", uri="0.png"), rater="bob", value="severe", updated_at=NOON),
        Annotation(image=ImageRef(id="1.png", uri="1.png"), rater="ann", value=None, updated_at=NOON),
        Annotation(image=ImageRef(id="0.png", uri="0.png"), rater="ann", value="normal", updated_at=NOON),
        Annotation(image=ImageRef(id="9.png", uri="9.png"), rater="ann", value="normal", updated_at=NOON),
    )

    def test_all_answer_in_the_order_of_the_ratings_and_every_answer_is_a_read(self):
        oracle = Oracle(
            truth_of("normal", "severe", "moderate"),
            self.RATINGS,
            always_known=truth_of("normal", "severe", "mild", "mild")[3:],
        )
        assert oracle.reads == 0
        oracle.reveal(["1.png", "0.png", "2.png"])

        assert [(a.image.id, a.rater, a.value) for a in oracle.annotations()][1:] == [
            ("1.png", "ann", None),
            ("0.png", "bob", "severe"),
            ("0.png", "ann", "normal"),
            ("2.png", "oracle", "moderate"),
        ]
        assert oracle.reads == 4
        times = [a.updated_at for a in oracle.annotations()]
        assert times == sorted(set(times))

    def test_an_answer_carries_the_patient_of_the_truth(self):
        truth = Label(image=ImageRef(id="0.png", uri="0.png", patient_id="p"), value="normal", raters=1)
        oracle = Oracle([truth], self.RATINGS)

        oracle.reveal(["0.png"])

        assert {a.image.patient_id for a in oracle.annotations()} == {"p"}


class TestAlwaysKnown:
    def test_is_answered_first_and_never_in_the_pool_nor_in_the_start_set(self):
        """Of six images the last two are known."""
        truth = truth_of("normal", "severe", "normal", "severe", "normal", "severe")
        oracle = Oracle(truth[:4], always_known=reversed(truth[4:]))

        assert pool_of(oracle) == ["0.png", "1.png", "2.png", "3.png"]
        assert sorted(oracle.start_set(2, seed=0)) == ["0.png", "1.png", "2.png", "3.png"]
        with pytest.raises(ValueError, match=r"'4\.png' is not in the oracle's pool"):
            oracle.reveal(["4.png"])
        oracle.reveal(["1.png"])
        assert [(a.image.id, a.value) for a in oracle.annotations()] == [
            ("4.png", "normal"), ("5.png", "severe"), ("1.png", "severe"),
        ]  # fmt: skip
        assert oracle.revealed == ("1.png",)

    def test_of_a_data_set_is_the_validation_side_and_the_test_side_is_left_out(self):
        truth = truth_of(*["normal", "severe"] * 3)
        images = tuple(label.image for label in truth)
        data = DataSet(
            ("normal", "severe"),
            images,
            {label.image.id: label.value for label in truth},
            dict(zip([i.id for i in images], ("train", "train", "val", "val", "test", "test"), strict=True)),
        )

        oracle = Oracle.of(data)
        pool = pool_of(oracle)
        oracle.reveal(pool)

        assert pool == ["0.png", "1.png"]
        assert [a.image.id for a in oracle.annotations()] == ["2.png", "3.png", "0.png", "1.png"]


class TestStartSet:
    TRUTH = truth_of(*["normal"] * 4, *["moderate"] * 8, *["severe"] * 12)

    def test_holds_so_many_of_every_class_and_reveals_nothing(self):
        oracle = Oracle(self.TRUTH)
        value_of = {label.image.id: label.value for label in self.TRUTH}

        start = oracle.start_set(3, seed=1)

        assert sorted(value_of[image_id] for image_id in start) == ["moderate"] * 3 + ["normal"] * 3 + ["severe"] * 3
        assert oracle.revealed == ()

    def test_depends_on_the_seed_and_not_on_the_order_of_the_rows(self):
        oracle, shuffled = Oracle(self.TRUTH), Oracle(random.Random(5).sample(self.TRUTH, len(self.TRUTH)))

        assert shuffled.start_set(3, seed=1) == oracle.start_set(3, seed=1)
        assert len({oracle.start_set(3, seed) for seed in range(5)}) == 5

    def test_a_class_that_is_too_small_is_named(self):
        with pytest.raises(ValueError, match="'normal' has 4 images but the start set needs 5"):
            Oracle(self.TRUTH).start_set(5, seed=1)

    def test_leaves_the_strategy_random_a_fair_pool(self):
        """The same seed draws both: of 100 rare and 900 frequent images, a quarter and a thirty-sixth start.

        Drawn by one order, no rare image would come in the first quarter of the rest.
        """
        truth = truth_of(*["rare"] * 100 + ["frequent"] * 900)
        value_of = {label.image.id: label.value for label in truth}
        shares = []
        for seed in range(5):
            oracle = Oracle(truth)
            oracle.reveal(oracle.start_set(25, seed))
            front = random_order([image.id for image in oracle.unlabelled()[0]], 1, seed).image_ids[:200]
            shares.append(np.mean([value_of[image_id] == "rare" for image_id in front]))

        assert np.mean(shares) == pytest.approx(75 / 950, abs=0.02)
