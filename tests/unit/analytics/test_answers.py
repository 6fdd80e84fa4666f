"""The answers on a project's page: which is given when, and its figures. Whole sentences are in ``tests/golden``."""

from datetime import UTC, datetime

import pytest

from ml_backend.analytics.answers import (
    accuracy_answer,
    calibration_answer,
    confusion_answer,
    labelled_answer,
    learning_answer,
    next_answer,
    pays_answer,
    share_words,
)
from ml_backend.analytics.evaluation import ActiveAgainstRandom, HoldoutEstimate, holdout_estimate
from ml_backend.storage import RoundSummary
from tests.fakes import make_fit, make_report
from tests.unit.analytics.test_evaluation import answered
from tests.unit.analytics.test_standing import said, standing, task


def fit(accuracy: float, images: int = 25):
    return make_fit().model_copy(update={"validation_accuracy": accuracy, "validation_images": images})


def rounds(*accuracies: float, images: int = 25, classes: tuple[str, ...] | None = None) -> list[RoundSummary]:
    found = []
    for number, accuracy in enumerate(accuracies, start=1):
        report = make_report(f"r{number:06d}")
        changed = {"classes": classes or report.request.classes}
        request = report.request.model_copy(update=changed)
        found.append(RoundSummary.of(report.model_copy(update={"fit": fit(accuracy, images), "request": request})))
    return found


def holdout(answers: str) -> HoldoutEstimate:
    return holdout_estimate(answered(answers), ("normal", "severe"))


class TestAccuracy:
    def test_wilson_as_in_a_table(self):
        """16 of 25: 0.64, 0.4452 to 0.7975."""
        assert share_words(16 / 25, 25) == "64 % (45 to 80)"

    def test_random_images_come_first_where_they_are_enough(self):
        assert "of 25 validation images" in accuracy_answer(fit(0.64), holdout("y" * 29))
        assert "100 % (89 to 100) of the last 30 random images" in accuracy_answer(fit(0.64), holdout("y" * 30))
        assert accuracy_answer(None, None) == ""


class TestCalibration:
    @pytest.mark.parametrize(
        ("answers", "words"),
        [
            (
                "y" * 15 + "n" * 15,
                "Too sure: on average 80 % sure of its prediction, and right for 50 % (33 to 67) of the",
            ),
            ("y" * 30, "Not sure enough: "),
            ("y" * 24 + "n" * 6, "Not clearly wrong: "),
            ("y" * 29, ""),
        ],
    )
    def test_compares_confidence_with_accuracy(self, answers, words):
        found = calibration_answer(holdout(answers))

        assert found.startswith(words)
        assert bool(found) == bool(words)


class TestLabelled:
    def test_reading_that_is_left(self):
        """Three of five images at 40 s each: two minutes."""
        found = standing(*[task(said("normal"))] * 2, *[task()] * 3)

        assert labelled_answer(found, 40.0) == "2 of 5 labelled, about 2 minutes of reading left."
        assert labelled_answer(found, None) == "2 of 5 labelled, 3 left to read."

    def test_nothing_is_left(self):
        assert labelled_answer(standing(*[task(said("normal"))] * 2), 40.0) == "All 2 labelled."
        skipped = "1 of 2 labelled, 1 skipped and still offered to other readers."
        assert labelled_answer(standing(task(said("normal")), task(said(None))), 40.0) == skipped
        answered = standing(task(said("normal")), task(said("unreadable")))
        assert labelled_answer(answered, 40.0) == "1 of 2 labelled, none left to read."

    def test_of_several_readers(self):
        found = standing(*[task(said("normal"))] * 2, annotations_per_task=2)

        assert (
            labelled_answer(found, 60.0)
            == "All 2 labelled, 2 of them by too few readers, about 2 minutes of reading left."
        )
        assert labelled_answer(found, None) == "All 2 labelled, 2 of them by too few readers, 2 left to read."


class TestNext:
    @pytest.mark.parametrize(
        ("missing", "left", "begins"),
        [
            (19, 20, "Next training in 19 labels."),
            (19, None, "Next training in 19 labels."),
            (0, 5, "The next training is due."),
            (19, 18, "18 images left, too few for the 19 labels"),
            (19, 1, "1 image left"),
        ],
    )
    def test_never_promises_more_labels_than_images(self, missing, left, begins):
        assert next_answer(missing, left, trains=True).startswith(begins)

    def test_nothing_left_is_no_answer(self):
        assert next_answer(19, 0, trains=False) == ""


class TestLearning:
    @pytest.mark.parametrize(
        ("curve", "images", "begins"),
        [
            pytest.param([0.4, 0.6, 0.8], 50, "Yes", id="20 of 50, then 40 of 50"),
            pytest.param([0.8, 0.6, 0.4], 50, "No", id="the other way round"),
            pytest.param([0.6, 0.8], 20, "Not clear yet", id="12 of 20, then 16 of 20"),
            pytest.param([0.66, *[0.6 + 0.02 * n for n in range(11)]], 50, "Probably", id="a long line upwards"),
            pytest.param([0.6] * 8, 50, "Not clear yet", id="the same eight times"),
            pytest.param([0.60, 0.65, 0.70, 0.75], 50, "Not clear yet", id="a line that 50 images draw by chance"),
            pytest.param([0.2, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7], 50, "Yes", id="a fall within two standard errors"),
            pytest.param([0.2, *[0.95 - 0.02 * n for n in range(15)]], 50, "Not lately", id="a fall beyond them"),
            pytest.param(
                [0.2, *[0.95 - 0.02 * n + 0.08 * (n % 2) for n in range(15)]], 50, "Not lately", id="by four of them"
            ),
            pytest.param([0.5], 20, "Too early to tell", id="one network"),
        ],
    )
    def test_which_answer(self, curve, images, begins):
        assert learning_answer(rounds(*curve, images=images)).startswith(f"{begins}: ")

    def test_says_how_many_images_would_show_a_gain(self):
        """12 of 20, then 80 %: Wilson's upper end of 0.6 is 0.7812, so that 0.0188 are left below the lower of 80 %."""
        assert "against the first network's 20 images a gain of this size shows from about 110 on." in learning_answer(
            rounds(0.6, 0.8, images=20)
        )
        assert "network's 20 images no gain of this size can show" in learning_answer(rounds(0.7, 0.8, images=20))
        assert "of this size" not in learning_answer(rounds(0.8, 0.8, images=20))
        assert "as often as the first network" in learning_answer(rounds(0.8, 0.8, images=20))

    @pytest.mark.parametrize(
        ("curve", "images", "lately"),
        [
            pytest.param([0.5, 0.7, 0.9], 50, "; lately it rose by 20 points a round.", id="a rise"),
            pytest.param([0.5, 0.7, 0.9], 29, " interval +18 to +60).", id="too few images for a slope"),
            pytest.param([0.5, 0.8, 1.0, 0.92], 50, "a round, though not in the newest round.", id="a newest fall"),
        ],
    )
    def test_lately(self, curve, images, lately):
        assert learning_answer(rounds(*curve, images=images)).endswith(lately)

    def test_a_difference_is_that_of_the_shares_that_the_page_shows(self):
        """12.1 points, of 72 and 60 %; of 72.9 and 60.4 %, 13. The interval's ends bear a minus, not a hyphen."""
        fell = learning_answer(rounds(0.725, 0.604, images=96))

        assert "of 96 validation images, 12 points less than" in fell
        assert "13 points less than" in learning_answer(rounds(70 / 96, 58 / 96, images=96))
        assert "(95 % interval −25 to +1)" in fell

    def test_networks_of_other_classes_do_not_count(self):
        before, after = rounds(0.1, images=100, classes=("a", "b")), rounds(0.8, 0.8, images=100)

        assert learning_answer([*before, *after]) == learning_answer(after)
        assert learning_answer([]) == ""


class TestConfusion:
    def test_names_the_most_frequent_mistake(self):
        found = {"normal": {"normal": 9, "severe": 3}, "severe": {"normal": 2, "severe": 6}}

        assert confusion_answer(found) == "Most often it takes 'normal' for 'severe': 3 of 12 images of 'normal'."
        ties = {"normal": {"normal": 9, "severe": 3}, "severe": {"normal": 3, "severe": 6}}
        assert confusion_answer(ties) == (
            "Most often it takes 'normal' for 'severe': 3 of 12 images of 'normal', and 'severe' for 'normal': 3 of 9 "
            "images of 'severe'."
        )
        assert "all 1 images" in confusion_answer({"normal": {"normal": 1, "severe": 0}})


PROOF = ActiveAgainstRandom(
    images=40, labels=(50,), chosen=(20,), active_correct=30, random_correct=25, only_active=9, only_random=4,
    difference=0.125, low=-0.02, high=0.27, p=0.27, seed=0, made_at=datetime(2026, 11, 1, tzinfo=UTC), sentence="",
)  # fmt: skip


class TestPays:
    def answer(
        self,
        control: HoldoutEstimate | None = None,
        proof: ActiveAgainstRandom | None = None,
        *,
        share: float = 0.1,
        strategy: str = "bald",
        left: int | None = 500,
    ) -> str:
        return pays_answer(control, proof, control_share=share, strategy=strategy, left=left)

    @pytest.mark.parametrize(
        ("low", "high", "begins"), [(0.01, 0.24, "Yes"), (-0.02, 0.27, "Not clear yet"), (-0.2, -0.1, "No")]
    )
    def test_by_the_comparison(self, low, high, begins):
        found = self.answer(proof=PROOF.model_copy(update={"low": low, "high": high}))

        assert found.startswith(f"{begins}: ")
        assert "75 % of 40 random images, on as many random labels for 62 %: +12 points" in found

    def test_says_what_is_missing_in_numbers(self):
        """Twelve more at one in ten: 120 labels."""
        assert "18 random images have a label, 30 are needed to compare, about 120 more" in self.answer(
            holdout("y" * 18)
        )
        assert self.answer(holdout("y" * 30)).startswith("Ready to compare: 30 random images")
        assert self.answer(strategy="random").startswith("Nothing to compare")

    @pytest.mark.parametrize(
        ("share", "left", "option"),
        [
            (0.0, None, "control_share=0.1, about 300 more"),
            (0.0, 300, "control_share=0.1, about 300 more"),
            (0.0, 299, "control_share=0.3, about 100 more"),
            (0.1, 100, "control_share=0.3, about 100 more"),
            (0.1, 77, "control_share=0.5, about 60 more"),
            (0.4, 74, "control_share=0.5, about 60 more"),
        ],
    )
    def test_recommends_a_share_at_which_the_images_left_are_enough(self, share, left, option):
        assert self.answer(share=share, left=left).startswith("Not measured: ")
        assert option in self.answer(share=share, left=left)

    @pytest.mark.parametrize(("share", "left"), [(0.0, 59), (0.1, 59), (0.5, 0)])
    def test_recommends_no_share_where_none_is_enough(self, share, left):
        found = self.answer(share=share, left=left)

        assert found.startswith(f"Cannot be measured with the {left} images left: 0 random images have a label, 30 are")
        assert "Importing more images" in found
