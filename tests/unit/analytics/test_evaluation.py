"""The accuracy on holdout images, hand-worked and against independent means."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ml_backend.analytics.evaluation import (
    HoldoutLabel,
    by_round,
    expected_calibration_error,
    holdout_estimate,
    labels_by_origin,
    newcombe,
    picked_labels,
    running,
    trend,
    wilson,
)
from ml_backend.analytics.history import Answer, ImageInsight, RoundInsight
from ml_backend.schemas import FitReport, HandPick, Label, RoundReport
from ml_backend.storage import RoundSummary
from tests.fakes import CLASSES, make_image, make_report

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
FIT = FitReport(
    epochs=1, best_epoch=1, class_weights={}, train_images=1, validation_images=1,
    validation_loss=1.0, validation_accuracy=0.5, validation_auroc=None,
)  # fmt: skip


def label(number: int, value: str = "severe") -> Label:
    return Label(image=make_image(number), value=value, raters=1)


def control(number: int, *, right: bool = True, round_id: str = "r000002", confidence: float = 0.8) -> HoldoutLabel:
    rest = (1 - confidence) / 2
    probs = {"normal": rest, "moderate": rest, "severe": confidence}
    return HoldoutLabel(label(number, "severe" if right else "normal"), round_id, probs, NOON)


def answer(number: int, minute: float, value: str | None = "severe") -> Answer:
    return Answer(
        image_id=str(number),
        rater="ann",
        created_at=NOON + timedelta(minutes=minute),
        skipped=value is None,
        value=value,
    )


def trained(round_id: str, minute: float, strategy: str = "entropy") -> RoundReport:
    report = make_report(round_id)
    ranking = report.ranking.model_copy(update={"strategy": strategy})
    return report.model_copy(update={"fit": FIT, "ranking": ranking, "started_at": NOON + timedelta(minutes=minute)})


def insight(*control_images: int, severe: float = 0.8) -> RoundInsight:
    rest = (1 - severe) / 2
    probs = {"normal": rest, "moderate": rest, "severe": severe}
    told = tuple(
        ImageInsight(image_id=str(n), place=p, probs=probs, score=0, aleatoric=0, epistemic=0, control=True)
        for p, n in enumerate(control_images, 1)
    )
    return RoundInsight(images=9, expected=probs, predicted=dict.fromkeys(CLASSES, 3), batch=(), control=told)


REPORTS = (trained("r000002", 10), trained("r000003", 20), make_report("r000001"))
ROUNDS = [*map(RoundSummary.of, REPORTS)]
INSIGHTS = {"r000002": insight(1, 2, severe=0.6), "r000003": insight(2, 3, severe=0.9)}


class TestLabelsByOrigin:
    def origin(self, labels: list[Label], answers: list[Answer]):
        return labels_by_origin(ROUNDS, INSIGHTS, labels, answers)

    def test_by_the_newest_order_of_a_network_at_the_first_answer(self):
        labels = [label(number) for number in range(1, 6)]
        answers = [answer(5, 5), answer(1, 12), answer(2, 25), answer(3, 26), answer(4, 27)]

        found = self.origin(labels, answers)

        assert [one.image.id for one in found.start] == ["5"]
        assert [(one.label.image.id, one.round_id, one.probs["severe"]) for one in found.control] == [
            ("1", "r000002", 0.6),
            ("2", "r000003", 0.9),
            ("3", "r000003", 0.9),
        ]
        assert [one.image.id for one in found.chosen] == ["4"]

    def test_what_came_by_choice_in_a_later_round_has_been_selected(self):
        """Image 1 stood by chance in round 2 and is labelled under round 3, where it does not."""
        found = self.origin([label(1)], [answer(1, 25)])

        assert (found.control, [one.image.id for one in found.chosen]) == ((), ["1"])

    def test_what_was_put_next_before_its_first_answer_came_by_hand(self):
        """All are picked at 22: image 2 has its answer by then, and 3 is answered between its two picks."""
        labels = [label(number) for number in range(1, 5)]
        answers = [answer(4, 26), answer(1, 25), answer(2, 21), answer(3, 23)]
        picks = [
            HandPick(at=NOON + timedelta(minutes=minute), by="owner", like="9", image_ids=tuple(ids))
            for minute, ids in ((22, "1243"), (24, "3"))
        ]

        assert [one.image.id for one in picked_labels(labels, picks, answers)] == ["3", "1", "4"]

    def test_what_came_under_random_was_not_chosen(self):
        """Its network was not asked about the images either."""
        rounds = [*ROUNDS, RoundSummary.of(trained("r000004", 30, "random"))]

        found = labels_by_origin(rounds, INSIGHTS, [label(1), label(4)], [answer(4, 25), answer(1, 35)])

        assert (found.control, [one.image.id for one in found.chosen]) == ((), ["4"])
        assert [one.image.id for one in found.random] == ["1"]

    def test_until_it_is_published_an_order_chose_nothing(self):
        later = {one.round_id: one.began + timedelta(minutes=6) for one in ROUNDS}
        labels, answers = [label(1), label(4), label(5)], [answer(5, 15), answer(4, 25), answer(1, 17)]

        found = labels_by_origin(ROUNDS, INSIGHTS, labels, answers, later)

        assert [one.image.id for one in found.start] == ["5"]
        assert [one.round_id for one in found.control] == ["r000002"]
        assert labels_by_origin(ROUNDS, INSIGHTS, labels, answers).start == ()

    @pytest.mark.parametrize(
        ("image", "answers", "round_id"),
        [
            pytest.param(1, [answer(1, 25), answer(1, 12)], "r000002", id="the first answer counts, not an edit"),
            pytest.param(3, [answer(3, 12, None), answer(3, 25)], "r000003", id="a skip is no answer"),
        ],
    )
    def test_several_answers(self, image, answers, round_id):
        assert [one.round_id for one in self.origin([label(image)], answers).control] == [round_id]

    def test_a_label_without_an_answer_is_left_out(self):
        assert self.origin([label(1)], []).chosen == ()


class TestCalibrationError:
    def test_hand_worked(self):
        """Bin 0.9: two images, one right, gap |1.8 - 1|; bin 0.6: one image, right, gap |0.6 - 1|."""
        found = expected_calibration_error(np.array([0.9, 0.9, 0.6]), np.array([True, False, True]), 10)

        assert found == pytest.approx((0.8 + 0.4) / 3)

    def test_images_of_one_bin_are_averaged(self):
        """0.905, right, and 0.99, wrong, share the last of ten bins: gap |1.895 - 1|. Of 100 bins they do not."""
        confidence, correct = np.array([0.905, 0.99]), np.array([True, False])

        assert expected_calibration_error(confidence, correct, 10) == pytest.approx(0.895 / 2)
        assert expected_calibration_error(confidence, correct, 100) == pytest.approx((0.095 + 0.99) / 2)

    @pytest.mark.parametrize("correct", [True, False])
    def test_a_confidence_of_1_is_in_the_last_bin(self, correct):
        assert expected_calibration_error(np.ones(3), np.full(3, correct), 15) == (0.0 if correct else 1.0)

    def test_a_bin_is_closed_above(self):
        """0.8 and 0.75 share the bin that ends at 0.8; 0.85 does not."""
        found = expected_calibration_error(np.array([0.8, 0.75, 0.85]), np.array([True, False, False]), 10)

        assert found == pytest.approx((abs(1 - 1.55) + 0.85) / 3)


class TestEstimate:
    @pytest.mark.parametrize(
        ("images", "accuracy", "begins"),
        [
            (0, None, "No randomly drawn image has a label yet, so the accuracy on the remaining images is not known."),
            (
                12,
                1.0,
                "12 randomly drawn images have a label so far, 30 are needed to report an accuracy, then to about ±17",
            ),
        ],
    )
    def test_too_few(self, images, accuracy, begins):
        estimate = holdout_estimate([control(n) for n in range(images)], CLASSES)

        assert (estimate.n, estimate.accuracy, estimate.enough) == (images, accuracy, False)
        assert (estimate.ece, estimate.bins) == (None, ())
        assert estimate.sentence.startswith(begins)

    def test_enough(self):
        """24 of 30 right at confidence 0.95: too sure."""
        images = [control(n, right=n >= 6, confidence=0.95) for n in range(30)]

        estimate = holdout_estimate(images, CLASSES)

        assert (estimate.n, estimate.correct, estimate.accuracy, estimate.enough) == (30, 24, 0.8, True)
        assert (estimate.low, estimate.high) == wilson(24, 30)
        assert estimate.ece == pytest.approx(0.15)
        [one] = estimate.bins
        assert (one.n, one.correct) == (30, 24)
        assert one.confidence == pytest.approx(0.95)
        assert estimate.recall == {"normal": None, "moderate": None, "severe": 1.0}
        assert estimate.sentence.startswith(
            "The network was right about 24 of the last 30 randomly drawn images: 80 % (95 % interval 63 to 90 %)"
        )

    def test_is_about_the_newest_and_keeps_the_rounds(self):
        images = [control(n, right=False, round_id="r000002") for n in range(20)]
        images += [control(n, round_id="r000003") for n in range(20, 50)]

        estimate = holdout_estimate(images, CLASSES, window=30)

        assert (estimate.total, estimate.n, estimate.correct) == (50, 30, 30)
        assert [(one.round_id, one.n, one.correct) for one in estimate.by_round] == [
            ("r000002", 20, 0),
            ("r000003", 30, 30),
        ]

    def test_is_about_the_last_hundred(self):
        estimate = holdout_estimate([control(n, right=n > 0) for n in range(101)], CLASSES)

        assert (estimate.total, estimate.n, estimate.correct) == (101, 100, 100)

    @pytest.mark.parametrize(("normal", "recall"), [(9, None), (10, 0.0)])
    def test_recall_of_a_class_takes_ten_images(self, normal, recall):
        """The network calls every image severe."""
        images = [control(n, right=n >= normal) for n in range(40)]

        estimate = holdout_estimate(images, CLASSES)

        assert estimate is not None
        assert estimate.recall == {"normal": recall, "moderate": None, "severe": 1.0}

    def test_its_course_is_told_from_thirty_images_on_and_its_trend_from_sixty(self):
        images = [control(n, round_id=f"r{2 + n // 29:06d}") for n in range(60)]

        before, after = (holdout_estimate(images[:count], CLASSES) for count in (59, 60))

        assert after is not None
        assert [(one.round_id, one.n) for one in after.running] == [("r000003", 58), ("r000004", 60)]
        assert before.trend is None
        assert after.trend is not None
        assert after.trend.n == 30

    def test_other_classes_than_now_are_left_out(self):
        estimate = holdout_estimate([control(1)], ("normal", "severe"))

        assert estimate.total == 0


NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def answered(*rounds: str) -> Sequence[HoldoutLabel]:
    """A word a round, from r000001 on: "y" an image that the network had right, "n" one that it had not."""
    return [
        HoldoutLabel(
            Label(image=make_image(100 * number + place), value="severe" if said == "y" else "normal", raters=1),
            f"r{number:06d}",
            {"normal": 0.2, "severe": 0.8},
            NOON,
        )
        for number, word in enumerate(rounds, start=1)
        for place, said in enumerate(word)
    ]


def counts(told):
    return [(one.round_id, one.correct, one.n) for one in told]


class TestByRound:
    def test_each_for_itself(self):
        found = by_round(answered("yyn", "", "ny"))

        assert counts(found) == [("r000001", 2, 3), ("r000003", 1, 2)]
        assert (found[0].low, found[0].high) == wilson(2, 3)
        assert found[0].accuracy == pytest.approx(2 / 3)


class TestRunning:
    def test_of_the_newest_until_then(self):
        """The window of 4 after round 3 holds "n" of round 1, "ny" of round 2 and "y" of round 3."""
        found = running(answered("yyn", "ny", "y"), window=4, enough=2)

        assert counts(found) == [("r000001", 2, 3), ("r000002", 2, 4), ("r000003", 2, 4)]
        assert (found[2].low, found[2].high) == wilson(2, 4)

    def test_nothing_is_told_before_there_are_enough(self):
        assert counts(running(answered("yy", "n", "y"), window=9, enough=3)) == [("r000002", 2, 3), ("r000003", 3, 4)]
        assert running(answered("yy"), window=9, enough=3) == ()

    def test_a_round_in_which_none_was_labelled_has_no_point_of_its_own(self):
        assert counts(running(answered("yy", "", "n"), window=9, enough=1)) == [("r000001", 2, 2), ("r000003", 2, 3)]


class TestTrend:
    def test_the_newest_half_against_the_other(self):
        """Of "nny" "ny" "yy" the last three are "yyy", the first of round 2, and before them stand "nyn"."""
        found = trend(answered("nny", "ny", "yy"), window=9, enough=3)

        assert found is not None
        assert (found.n, found.since, found.correct, found.before) == (3, "r000002", 3, 1)
        assert found.difference == pytest.approx(2 / 3)
        assert (found.low, found.high) == newcombe(3, 3, 1, 3)

    def test_what_is_older_than_two_windows_is_left_out(self):
        found = trend(answered("yyyyy", "yn", "yn"), window=2, enough=2)

        assert found is not None
        assert (found.n, found.since, found.correct, found.before) == (2, "r000003", 1, 1)

    def test_none_where_a_half_is_too_small(self):
        assert trend(answered("yyyyy"), window=9, enough=3) is None
        assert trend(answered("yyyyyy"), window=9, enough=3) is not None

    def test_rises_only_where_luck_is_ruled_out(self):
        clearly = trend(answered("n" * 30, "y" * 30), window=100, enough=30)
        hardly = trend(answered("n" * 15 + "y" * 15, "n" * 13 + "y" * 17), window=100, enough=30)

        assert clearly is not None
        assert clearly.rises
        assert hardly is not None
        assert not hardly.rises

    def test_in_words(self):
        found = trend(answered("n" * 12 + "y" * 18, "n" * 3 + "y" * 27), window=100, enough=30)

        assert found is not None
        assert found.summary == (
            "the network was right about 27 of the last 30, since round 2, and about 18 of the 30 before "
            f"(+30 points, 95 % interval {100 * found.low:+.0f} to {100 * found.high:+.0f})"
        )


class TestWilson:
    def test_hand_worked(self):
        """40 of 50, from the formula by hand."""
        assert wilson(40, 50) == pytest.approx((0.6696, 0.8876), abs=5e-4)

    @given(n=st.integers(1, 400), data=st.data())
    def test_agrees_with_scipy(self, n, data):
        correct = data.draw(st.integers(0, n))
        interval = binomtest(correct, n).proportion_ci(method="wilson")

        assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-9)

    def test_of_nothing_everything_is_possible(self):
        assert wilson(0, 0) == (0.0, 1.0)


class TestNewcombe:
    @pytest.mark.parametrize(
        ("counted", "interval"),
        [
            ((56, 70, 48, 80), (0.0524, 0.3339)),
            ((9, 10, 3, 10), (0.1705, 0.8090)),
            ((6, 7, 2, 7), (0.0582, 0.8062)),
            ((5, 56, 0, 29), (-0.0381, 0.1926)),
            ((0, 10, 0, 10), (-0.2775, 0.2775)),
        ],
    )
    def test_the_examples_of_its_paper(self, counted, interval):
        """Newcombe 1998, table II, method 10."""
        assert newcombe(*counted) == pytest.approx(interval, abs=5e-5)

    @given(n=st.integers(1, 200), m=st.integers(1, 200), data=st.data())
    def test_holds_the_difference_and_turns_with_it(self, n, m, data):
        correct, before = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))

        low, high = newcombe(correct, n, before, m)

        assert -1 <= low <= correct / n - before / m <= high <= 1
        assert newcombe(before, m, correct, n) == pytest.approx((-high, -low))
