"""When labelling may stop."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.analytics.agreement import Agreement, PredictionSnapshot
from ml_backend.analytics.evaluation import HoldoutEstimate, holdout_estimate
from ml_backend.analytics.stopping import CurvePoint, expected_gain, seconds_an_image, slope, stop_advice
from tests.unit.analytics.test_evaluation import answered

CLASSES = ("normal", "severe")


@dataclass
class Story:
    """Trained rounds of 1000 images: how many answers each changes, and its accuracy, 20 labels a round."""

    flips: list[int]
    accuracies: list[float]

    def marks(self) -> list[PredictionSnapshot]:
        answers, start, found = [n % 2 for n in range(1000)], 0, []
        for number, (flips, accuracy) in enumerate(zip(self.flips, self.accuracies, strict=True), start=1):
            for image in range(start, start + flips):
                answers[image % 1000] ^= 1
            start += flips
            found.append(
                PredictionSnapshot(
                    round_id=f"r{number:06d}",
                    labels=50 + 20 * number,
                    accuracy=accuracy,
                    classes=CLASSES,
                    predicted={str(image): answer for image, answer in enumerate(answers)},
                )
            )
        return found


def noise(kappa: float, round_id: str = "r000003") -> dict[str, Agreement]:
    return {round_id: Agreement(images=1000, agreed=0.5 + kappa / 2, kappa=kappa, error=0.01)}


RISING = Story([0, 200, 150, 120, 100], [0.5, 0.6, 0.68, 0.74, 0.79])
STABLE = Story([0, *[20] * 14], [0.8, 0.81, 0.8, 0.81, 0.805] * 3)


class TestStopAdvice:
    @pytest.mark.parametrize("rounds", [0, 1, 2])
    def test_too_early(self, rounds):
        advice = stop_advice(RISING.marks()[:rounds], {}, labels=20)

        assert advice.verdict == "too early"
        assert advice.sentence.startswith(f"Too early to say when to stop: {rounds} network")

    def test_go_on_while_networks_change_their_minds(self):
        """100 of 1000 answers changed: 90 % agree, kappa 0.8, where equal labels give 0.92."""
        advice = stop_advice(RISING.marks(), noise(0.92), labels=20)

        assert advice.verdict == "go on"
        assert "agree on 90 % of 1000 unlabelled images (kappa 0.80), less than" in advice.sentence
        assert "(0.92)" in advice.sentence

    def test_stable_and_level_is_stop_with_its_evidence(self):
        """20 answers changed: kappa 0.96, as of two networks of the same labels."""
        advice = stop_advice(STABLE.marks(), noise(0.96), labels=20, seconds=27.0)

        assert advice.verdict == "stop"
        assert advice.sentence == (
            "Could stop now: the last two networks agree on 98 % of 1000 unlabelled images (kappa 0.96), "
            "about as much as two networks trained on the same labels (0.96); the next 20 labels (about 9 minutes of "
            "reading) are expected to gain less than 0.1 points of accuracy."
        )
        assert advice.noise_floor == 0.96
        assert [round(point.agreement.kappa or 0, 2) for point in advice.agreements] == [0.96] * 7
        assert any("chosen and not drawn at random" in said for said in advice.evidence)
        assert advice.minutes_per_point is None

    def test_a_few_level_rounds_are_no_stop(self):
        """Fourteen of them: soon; the fifteenth makes it a stop."""
        assert stop_advice(STABLE.marks()[:14], noise(0.96), labels=20).verdict == "soon"
        assert stop_advice(STABLE.marks()[:15], noise(0.96), labels=20).verdict == "stop"

    def test_stable_but_still_gaining_a_little_is_soon(self):
        """A line of accuracy: 0.4 points a batch."""
        story = Story([0, 20, 20], [0.8, 0.804, 0.808])
        advice = stop_advice(story.marks(), noise(0.96), labels=20, seconds=60.0)

        assert advice.verdict == "soon"
        assert advice.sentence.startswith("Could stop soon: ")
        assert advice.sentence.endswith(
            "the next 20 labels (about 20 minutes of reading) are expected to gain 0.4 points of accuracy."
        )
        assert advice.minutes_per_point == pytest.approx(50)

    def test_stable_but_gaining_much_goes_on(self):
        story = Story([0, 20, 20], [0.7, 0.75, 0.8])

        assert stop_advice(story.marks(), noise(0.96), labels=20).verdict == "go on"

    @pytest.mark.parametrize("curve", ["accuracy", "AU ROC", "accuracy on randomly drawn images"])
    def test_no_end_while_a_curve_falls(self, curve):
        """However stable the networks are, and though a falling curve is expected to gain nothing."""
        falling = [0.9 - 0.01 * place for place in range(15)]
        story = Story(STABLE.flips, falling) if curve == "accuracy" else STABLE
        areas = falling if curve == "AU ROC" else [0.9] * 15
        marks = [one.model_copy(update={"auroc": area}) for one, area in zip(story.marks(), areas, strict=True)]
        control = WORSE_NOW if curve.endswith("images") else AS_GOOD_THEN
        advice = stop_advice(marks, noise(0.96), labels=20, control=control)

        assert advice.verdict == "go on"
        assert advice.sentence.startswith(
            f"Go on labelling: {curve} fell over the last rounds; against that, the last two networks agree"
        )

    def test_a_fall_within_its_interval_may_be_none(self):
        """Falling by 0.7 points a round with a standard error of 0.6."""
        story = Story([0, *[20] * 4], [0.83, 0.79, 0.81, 0.78, 0.80])
        advice = stop_advice(story.marks(), noise(0.96), labels=20)

        assert advice.sentence.startswith(
            "Go on labelling: accuracy may have fallen over the last rounds; against that, the last two"
        )

    def test_no_end_while_accuracy_rises_though_few_labels_gain_little(self):
        """0.6 points a round of 20 labels: 0.15 for 5 labels, in the unit and to the digit of the gain expected."""
        story = Story([0, 20, 20], [0.8, 0.806, 0.812])
        advice = stop_advice(story.marks(), noise(0.96), labels=5)

        assert advice.verdict == "go on"
        assert advice.sentence.startswith(
            "Go on labelling: accuracy rose by 0.15 points for every 5 labels (standard error 0) over the last 3 "
            "rounds; against that, the last two networks agree"
        )
        assert advice.sentence.endswith("the next 5 labels are expected to gain 0.15 points of accuracy.")
        assert "accuracy rose by 0.15 points for every 5 labels (standard error 0)" in " ".join(advice.evidence)
        assert "The gain expected of the next labels is by a power law through all networks" in " ".join(
            advice.evidence
        )

    def test_never_more_labels_than_images_are_left(self):
        found = {
            left: stop_advice(STABLE.marks(), noise(0.96), labels=20, left=left, seconds=60.0) for left in (0, 7, 50)
        }

        assert "the next 7 labels (about 7 minutes of reading)" in found[7].sentence
        assert "the next 20 labels (about 20 minutes of reading)" in found[50].sentence
        assert (found[0].verdict, found[0].gain) == ("done", None)
        assert (*found[0].evidence, found[50].evidence[-1]) == found[50].evidence

    def test_stability_is_measured_against_its_own_noise(self):
        """The same agreement is little where equal labels give more, and all there is where they give no more."""
        assert stop_advice(STABLE.marks(), noise(0.99), labels=20).verdict == "go on"
        assert stop_advice(STABLE.marks(), noise(0.80), labels=20).verdict == "stop"

    @pytest.mark.parametrize(("flips", "verdict"), [(26, "go on"), (24, "stop")])
    def test_networks_that_change_their_minds_are_not_stable_for_all_that_twins_differ_as_much(self, flips, verdict):
        """Successive networks begin with the same weights, and twins do not: kappa 0.948 and 0.952 beside 0.90."""
        story = Story([0, *[flips] * 14], STABLE.accuracies)
        advice = stop_advice(story.marks(), noise(0.90), labels=20)

        assert advice.verdict == verdict
        assert "about as much as two networks trained on the same labels (0.90)" in advice.sentence
        needs = "; stopping also needs 0.95, because the last two started from the same weights"
        assert (needs in advice.sentence) == (verdict == "go on")

    def test_without_a_twin_only_near_identity_counts(self):
        still = Story([0, *[3] * 14], STABLE.accuracies)

        assert stop_advice(STABLE.marks(), {}, labels=20).verdict == "go on"
        assert "was not measured yet" in stop_advice(STABLE.marks(), {}, labels=20).sentence
        assert stop_advice(still.marks(), {}, labels=20).verdict == "stop"

    def test_no_images_in_common(self):
        marks = [
            one.model_copy(update={"predicted": {f"{one.round_id} {name}": 0 for name in one.predicted}})
            for one in STABLE.marks()
        ]
        advice = stop_advice(marks, {}, labels=20)

        assert advice.verdict == "go on"
        assert "no unlabelled image in common" in advice.sentence

    def test_a_network_that_calls_everything_the_same_is_not_stable(self):
        marks = [one.model_copy(update={"predicted": dict.fromkeys(one.predicted, 0)}) for one in STABLE.marks()]
        advice = stop_advice(marks, noise(0.5), labels=20)

        assert advice.verdict == "go on"
        assert "the same class for all of them" in advice.sentence

    def test_other_classes_are_not_compared(self):
        before, *after = STABLE.marks()[:5]
        others = [before.model_copy(update={"classes": ("a", "b"), "accuracy": 0.0})]
        advice = stop_advice([*others, *after], {}, labels=20)

        assert advice == stop_advice(after, {}, labels=20)
        assert stop_advice([*others, *after[:2]], {}, labels=20).sentence == (
            "Too early to say when to stop: 2 networks trained since the classes changed, 3 are needed."
        )

    def test_says_from_the_first_network_on_what_is_needed(self):
        marks = RISING.marks()[:2]
        images = {one.round_id: 7 for one in marks}

        assert stop_advice(marks, {}, labels=20, images=images).sentence == (
            "Too early to say when to stop: 3 networks validated on 30 images or more are needed, 0 so far; the "
            "newest was validated on 7."
        )

    def test_no_promise_from_a_handful_of_validation_images(self):
        """All right, on 3, 6 and 9 images: no slope and no gain."""
        marks = Story([0, 20, 20, 20, 20], [0.6, 0.67, 0.83, 1.0, 1.0]).marks()
        few = dict(zip([one.round_id for one in marks], (3, 9, 30, 30, 30), strict=True))
        advice = stop_advice(marks[:-1], noise(0.96), labels=20, images=few)

        assert (advice.verdict, advice.gain, advice.slope) == ("too early", None, None)
        assert "3 networks validated on 30 images or more are needed, 2 so far; the newest was" in advice.sentence
        assert stop_advice(marks, noise(0.96), labels=20, images=few).verdict == "go on"

    def test_accuracies_of_few_images_do_not_count(self):
        """Beside three of 30 images, all equal, the first two are left out of slope and gain."""
        marks = Story([0, 20, 20, 20, 20], [0.2, 0.4, 0.8, 0.8, 0.8]).marks()
        images = dict(zip([one.round_id for one in marks], (3, 9, 30, 30, 30), strict=True))
        advice = stop_advice(marks, noise(0.96), labels=20, images=images)

        assert advice.slope == pytest.approx(0.0)
        assert advice.gain == pytest.approx(0.0)
        assert (advice.slope_error or 0) > 0.04
        assert advice.sentence.startswith("Go on labelling: whether accuracy still rises is not clear")

    def test_a_fall_of_the_newest_is_no_reason_to_go_on(self):
        """0.146 a round over four; residuals of 0.0377 in squares: sqrt(0.0377 / 2 / 5)."""
        advice = stop_advice(Story([0, 20, 20, 20], [0.5, 0.8, 1.0, 0.92]).marks(), noise(0.96), labels=20)

        begins = "accuracy rose by 15 points for every 20 labels (standard error 6.1) over the last 4 rounds"
        assert advice.sentence.startswith(f"Go on labelling: {begins}, though not in the newest; ")

    def test_less_than_a_minute_is_not_about(self):
        said = stop_advice(STABLE.marks(), noise(0.96), labels=20, seconds=1.0).sentence

        assert "the next 20 labels (less than a minute of reading)" in said

    @settings(deadline=None, max_examples=30)
    @given(
        st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), min_size=3, max_size=6),
        st.floats(-1, 1),
        st.lists(st.none() | st.floats(0, 1e6), max_size=4),
    )
    def test_always_a_sentence(self, rounds, kappa, lead_times):
        flips, accuracies = zip(*rounds, strict=True)
        marks = Story(list(flips), list(accuracies)).marks()
        advice = stop_advice(marks, noise(kappa), labels=20, seconds=seconds_an_image(lead_times))

        assert advice.verdict in {"go on", "soon", "stop"}
        assert advice.sentence.endswith(".")
        assert type(advice).model_validate_json(advice.model_dump_json()) == advice


def by_chance(*rounds: str) -> HoldoutEstimate | None:
    return holdout_estimate(answered(*rounds), CLASSES)


WORSE_THEN = by_chance("n" * 20 + "y" * 10, "n" * 2 + "y" * 28)
"""10 of 30 right, then 28 of 30."""
WORSE_NOW = by_chance("n" * 2 + "y" * 28, "n" * 20 + "y" * 10)
AS_GOOD_THEN = by_chance("n" * 6 + "y" * 24, "n" * 5 + "y" * 25)


def evidence(story: Story, control: HoldoutEstimate | None) -> str:
    """The one sentence of the evidence that is about randomly drawn images."""
    found = stop_advice(story.marks(), noise(0.96), labels=20, control=control).evidence
    [sentence] = [one for one in found if "randomly drawn images" in one.lower()]
    return sentence


class TestControl:
    """Validation labels were chosen: randomly drawn images confirm or contradict their accuracy."""

    @pytest.mark.parametrize(
        ("story", "control", "verdict", "begins", "ends"),
        [
            pytest.param(
                STABLE,
                WORSE_THEN,
                "soon",
                "Randomly drawn images contradict that it is level: the network was right about 28 of the last 30, "
                "since round 2, and about 10 of the 30 before (+60 points, 95 % interval ",
                "the easy ones are left.",
                id="a plateau that they contradict",
            ),
            pytest.param(
                STABLE,
                AS_GOOD_THEN,
                "stop",
                "Randomly drawn images show no clear rise either: ",
                "; a rise of up to 23 points would not show.",
                id="a plateau that they confirm",
            ),
            pytest.param(
                STABLE,
                by_chance("y" * 34),
                "stop",
                "Whether randomly drawn images confirm this is not known yet: 34 of them have a label, 60 are needed "
                "to compare two halves.",
                "",
                id="too few",
            ),
            pytest.param(
                RISING, AS_GOOD_THEN, "go on", "Randomly drawn images show no clear rise: ", "", id="never a stop"
            ),
            pytest.param(RISING, WORSE_THEN, "go on", "Randomly drawn images show a rise too: ", "", id="both rise"),
        ],
    )
    def test_verdict_and_evidence(self, story, control, verdict, begins, ends):
        advice = stop_advice(story.marks(), noise(0.96), labels=20, control=control)

        assert advice.verdict == verdict
        assert advice.sentence.endswith("on randomly drawn images accuracy still rose.") == (verdict == "soon")
        assert evidence(story, control).startswith(begins)
        assert evidence(story, control).endswith(ends)

    def test_without_a_holdout_there_is_no_such_evidence(self):
        found = stop_advice(STABLE.marks(), noise(0.92), labels=20).evidence

        assert not [one for one in found if "randomly drawn" in one]


class TestSecondsAnImage:
    def test_median_of_what_a_reader_can_have_taken(self):
        """Of 20, 30 and 40 s the middle; away for an hour, a program's 0 s and the unmeasured do not count."""
        assert seconds_an_image([20.0, 3600.0, 40.0, None, 30.0, 0.0]) == 30.0

    def test_nothing_measured(self):
        assert seconds_an_image([None, 0.0, 7200.0]) is None


curves = st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1)), min_size=0, max_size=8)


class TestSlope:
    @pytest.mark.parametrize("rounds", range(3, 16))
    def test_of_a_level_line_rounding_is_no_rise(self, rounds):
        for right in range(1, 30):
            found = slope([right / 30] * rounds)
            assert found is not None
            assert (found.per_round, found.error, found.rises, found.falls) == (0.0, 0.0, False, False)

    def test_margin_of_five_points(self):
        """Student's t of three degrees of freedom."""
        found = slope([0.5, 0.7, 0.65, 0.8, 0.78])

        assert found is not None
        assert found.margin == pytest.approx(3.182 * found.error, rel=1e-3)

    def test_hand_computed(self):
        """Through 1 2 4 goes 1.5 a round; off by 1/6, -1/3, 1/6: squares 1/6, one degree of freedom, over 2."""
        found = slope([1.0, 2.0, 4.0])

        assert found is not None
        assert found.per_round == pytest.approx(1.5)
        assert found.error == pytest.approx((1 / 6 / 2) ** 0.5)

    def test_as_numpy_has_it(self):
        values = [0.5, 0.7, 0.65, 0.8, 0.78]
        (expected, _), covariance = np.polyfit(range(5), values, 1, cov="unscaled")
        left = np.asarray(values) - np.polyval(np.polyfit(range(5), values, 1), range(5))
        found = slope(values)

        assert found is not None
        assert found.per_round == pytest.approx(expected)
        assert found.error == pytest.approx((covariance[0, 0] * (left @ left) / 3) ** 0.5)

    def test_error_is_at_least_that_of_the_images(self):
        """28 of 30 right thrice: 30 of 34 with Agresti and Coull's four; the line's ends are weighted 1/2 each."""
        found = slope([28 / 30] * 3, [30, 30, 30])

        assert found is not None
        assert found.error == pytest.approx((2 * 30 / 34 * 4 / 34 / 34) ** 0.5 / 2)
        assert slope([0.1, 0.9, 0.1], [1000] * 3) == slope([0.1, 0.9, 0.1])

    def test_two_points_say_nothing(self):
        assert slope([0.1, 0.9]) is None


class TestExpectedGain:
    @pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
    def test_a_power_law_is_found_again(self, exponent):
        """Error 0.1 + 2 n^-c: what the next 20 labels take off it."""

        def error(labels):
            return 0.1 + 2 * labels**-exponent

        curve = [CurvePoint(labels, 1 - error(labels)) for labels in (50, 70, 90, 110, 150)]

        assert expected_gain(curve, 20) == pytest.approx(error(150) - error(170), rel=0.02)

    def test_a_level_curve_gains_nothing(self):
        assert expected_gain([CurvePoint(n, 0.8) for n in (50, 70, 90, 110)], 20) == pytest.approx(0.0, abs=1e-6)

    def test_few_points_make_a_line(self):
        """0.1 accuracy in 40 labels: 0.05 in the next 20."""
        assert expected_gain([CurvePoint(50, 0.6), CurvePoint(90, 0.7)], 20) == pytest.approx(0.05)

    def test_a_falling_line_is_no_loss(self):
        assert expected_gain([CurvePoint(50, 0.7), CurvePoint(90, 0.6)], 20) == 0.0

    @pytest.mark.parametrize("labels", [(50, 70, 90), (50, 70, 90, 110)])
    def test_never_above_all_right(self, labels):
        """Rising by 10 points in 20 labels, and 1 point is left."""
        curve = [CurvePoint(n, 0.99 - 0.1 * place) for place, n in enumerate(reversed(labels))][::-1]

        assert expected_gain(curve, 1000) == pytest.approx(0.01, abs=0.001)
        assert (expected_gain(curve, 1000) or 1) <= 1 - curve[-1].accuracy

    def test_nothing_can_be_told(self):
        assert expected_gain([], 20) is None
        assert expected_gain([CurvePoint(50, 0.5)] * 5, 20) is None

    @settings(deadline=None, max_examples=40)
    @given(curves, st.integers(1, 200))
    def test_always_a_share_or_nothing(self, points, more):
        found = expected_gain([CurvePoint(*point) for point in points], more)

        assert found is None or found >= 0.0
        if len({labels for labels, _ in points}) >= 4:
            assert found is not None
            assert found <= 1.0
