"""The headline: the study's own numbers, and honest where intervals overlap, runs never get there or seeds are few."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from ml_backend.simulation.analysis import (
    LearningCurve,
    PairedDifference,
    Spread,
    labels_needed_table,
    paired_difference,
)
from ml_backend.simulation.report import (
    Metric,
    MetricAnswer,
    difference_words,
    headline,
    in_pairs,
    metrics_of,
    share_words,
    verdict,
)
from tests.unit.simulation.drawn_results import drawn_results

ACCURACY: Metric = metrics_of(drawn_results())[0]


def steps(strategy: str, at: Sequence[int | None], variant: str = "") -> list[LearningCurve]:
    """One curve a seed, over 10, 20 .. 100 of 100 labels: 0.5, and 0.8 from ``at`` labels on."""
    labels = np.arange(10, 101, 10)
    return [
        LearningCurve(strategy, seed, labels, np.where(labels >= (1000 if a is None else a), 0.8, 0.5), 100, variant)
        for seed, a in enumerate(at)
    ]


def answered(curves: Sequence[LearningCurve], *, baseline: float | None = 0.8) -> MetricAnswer:
    baselines: Mapping[tuple[str, int], float] = (
        {} if baseline is None else {(curve.variant, curve.seed): baseline for curve in curves}
    )
    return MetricAnswer(
        metric=ACCURACY,
        curves=tuple(curves),
        bands={},
        baselines=baselines,
        needed=() if baseline is None else labels_needed_table(curves, baselines, window=1),
        areas=None,
        against_random={name: paired_difference(*pair) for name, pair in in_pairs(curves).items()},
        wins=None,
    )


class TestShareWords:
    @pytest.mark.parametrize(
        ("median", "q25", "q75", "wanted"),
        [
            (0.35, 0.28, 0.4, "35 % [28–40]"),
            (0.75, 0.45, None, "75 % [45–never]"),
            (None, 0.45, None, "never [45–never]"),
            (None, None, None, "never"),
            (0.0723, 0.0699, 0.101, "7.2 % [7.0–10]"),
        ],
    )
    def test_hand_computed(self, median, q25, q75, wanted):
        assert share_words(Spread(median=median, q25=q25, q75=q75)) == wanted


class TestDifferenceWords:
    def test_hand_computed(self):
        ten = PairedDifference(mean=0.0214, low=0.012, high=0.03, p=0.002, pairs=10)

        assert difference_words(ten) == "+0.021 [+0.012 to +0.030]"

    def test_one_seed_has_no_interval(self):
        assert (
            difference_words(PairedDifference(mean=-0.02, low=None, high=None, p=1.0, pairs=1)) == "-0.020 (one seed)"
        )


class TestHeadline:
    def test_says_who_needed_how_much(self):
        curves = steps("entropy", [20, 30, 40] * 4) + steps("random", [60, 70, 80] * 4)
        first, second = headline([answered(curves)])

        assert first == (
            "On these images, entropy needed 30 % [20–40] of the labels to come within a point of the accuracy of all "
            "labels (0.800); random needed 70 % [60–80]. The middle halves of entropy and random lie apart. "
            "(Median [quartiles] of 12 seeds.)"
        )
        assert second.startswith("Choosing images pays here: the learning curve of entropy lies +0.")

    def test_says_that_the_middle_halves_overlap(self):
        curves = steps("entropy", [20, 50, 80]) + steps("random", [30, 60, 90])

        assert "The middle halves of entropy and random overlap." in headline([answered(curves)])[0]

    def test_says_who_never_got_there(self):
        curves = steps("entropy", [20, 30, 40]) + steps("random", [None, None, 80])

        assert "; random did not get there in 2 of 3 runs." in headline([answered(curves)])[0]

    def test_random_first_where_only_random_got_there(self):
        curves = steps("entropy", [None] * 3) + steps("random", [50, 60, 70])

        assert "random needed 60 % [55–65] of the labels" in headline([answered(curves)])[0]

    def test_speaks_of_95_percent_where_nobody_came_nearer(self):
        curves = steps("entropy", [20] * 3) + steps("random", [50] * 3)

        assert "to reach 95 % of the accuracy of all labels (0.840)" in headline([answered(curves, baseline=0.84)])[0]

    def test_says_that_nobody_got_there(self):
        curves = steps("entropy", [20] * 3) + steps("random", [50] * 3)

        assert "no strategy came to 95 %" in headline([answered(curves, baseline=0.95)])[0]

    def test_without_a_baseline(self):
        assert "no network trained on all labels yet" in headline([answered(steps("entropy", [20]), baseline=None)])[0]

    def test_names_three_and_random_and_counts_the_others(self):
        curves = [c for place, name in enumerate("abcde") for c in steps(name, [20 + 10 * place] * 3)]
        sentence = headline([answered(curves + steps("random", [90] * 3))])[0]

        assert "a needed" in sentence
        assert "; c needed" in sentence
        assert "; d needed" not in sentence
        assert "The other 2 needed as many or more." in sentence

    def test_a_variant_does_not_divide_the_sentence(self):
        curves = steps("entropy", [20] * 3, "weighted") + steps("random", [50] * 3, "weighted")

        assert "entropy (weighted) needed 20 %" in headline([answered(curves)])[0]

    def test_a_second_metric_that_nobody_reached(self):
        curves = steps("entropy", [20] * 3) + steps("random", [50] * 3)
        *_, last = headline([answered(curves), answered(curves, baseline=0.95)])

        assert last == (
            "Likewise, no strategy managed in half of its runs to come within a point of the accuracy of all labels "
            "(0.950)."
        )


class TestVerdict:
    RANDOM = steps("random", [50, 60] * 5)

    def test_pays(self):
        words = verdict(answered(steps("entropy", [20, 30] * 5) + self.RANDOM))

        assert words.startswith("Choosing images pays here")
        assert "best of" not in words
        assert "p = 0.00" in words

    def test_the_best_of_several_was_lucky(self):
        curves = steps("entropy", [20, 30] * 5) + steps("bald", [30, 40] * 5)

        assert "entropy, the best of 2, lies" in verdict(answered(curves + self.RANDOM))
        assert "With 2 tried, the best is a little lucky" in verdict(answered(curves + self.RANDOM))

    def test_does_not_pay(self):
        assert "does not pay here" in verdict(answered(steps("entropy", [80, 90] * 5) + self.RANDOM))

    def test_not_shown(self):
        """Far ahead in one half of the seeds, not quite as far behind in the other."""
        words = verdict(answered(steps("entropy", [20, 80] * 5) + self.RANDOM))

        assert words.startswith("Not shown")
        assert "lies +0." in words

    def test_too_few_seeds_for_a_claim(self):
        words = verdict(answered(steps("entropy", [20] * 3) + steps("random", [60] * 3)))

        assert words.startswith("Too few seeds for a claim (10 are wanted)")

    def test_nothing_to_hold_against(self):
        assert "Nothing was held against random" in verdict(answered(steps("entropy", [20] * 3)))
