"""Warnings in words: what each is raised by, what it stays silent about, and that its numbers are the study's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.simulation.analysis import (
    Finding,
    LabelsNeeded,
    LearningCurve,
    Spread,
    few_passes,
    few_seeds,
    missed_classes,
    random_level,
    wide_spread,
)
from ml_backend.simulation.metrics import RoundMetrics, round_metrics

CLASSES = ("normal", "diseased")


def flat(heights: Sequence[float], strategy: str, variant: str = "") -> list[LearningCurve]:
    """Constant curves, one a seed: their areas are their heights."""
    return [
        LearningCurve(strategy, seed, np.array([10, 20]), np.array([height, height]), 100, variant)
        for seed, height in enumerate(heights)
    ]


def needed(median: float | None, q25: float | None, q75: float | None, **changes: Any) -> LabelsNeeded:
    spread = Spread(median=median, q25=q25, q75=q75)
    fields: dict[str, Any] = {"name": "entropy", "target": "baseline", "runs": 10, "never": 0}
    return LabelsNeeded(labels=spread, share=spread, **(fields | changes))


def predicting(normals: int, diseased: int) -> RoundMetrics:
    """Four normal and four diseased images: so many of each are predicted as what they are."""
    predictions = [0] * normals + [1] * (4 - normals) + [1] * diseased + [0] * (4 - diseased)
    return round_metrics(np.eye(2)[predictions], np.array([0] * 4 + [1] * 4), CLASSES)


def kinds(found: Sequence[Finding]) -> list[str]:
    return [finding.kind for finding in found]


class TestRandomLevel:
    RANDOM = flat([0.6, 0.61, 0.62, 0.63], "random")

    def test_silent_where_the_strategy_is_better(self):
        assert random_level(flat([0.7, 0.71, 0.73, 0.74], "entropy") + self.RANDOM) == ()

    def test_random_ahead(self):
        [finding] = random_level(flat([0.5, 0.51, 0.52, 0.53], "entropy") + self.RANDOM)

        assert finding.kind == "random_ahead"
        assert "entropy learns more slowly" in finding.message
        assert "-0.1000" in finding.message
        assert "over 4 seeds" in finding.message
        assert "dropout" in finding.check

    def test_random_level(self):
        """Ahead on average by 0.02, but behind in one seed by more."""
        [finding] = random_level(flat([0.65, 0.66, 0.67, 0.56], "entropy") + self.RANDOM)

        assert finding.kind == "random_level"
        assert "+0.0200" in finding.message

    def test_behind_on_average_is_still_level(self):
        """By 0.02, but in one seed it is ahead: the interval holds 0."""
        [finding] = random_level(flat([0.55, 0.56, 0.57, 0.70], "entropy") + self.RANDOM)

        assert finding.kind == "random_level"
        assert "-0.0200" in finding.message

    def test_equal_curves_are_level(self):
        assert kinds(random_level(flat([0.6, 0.61, 0.62, 0.63], "entropy") + self.RANDOM)) == ["random_level"]

    @pytest.mark.parametrize(("height", "expected"), [(0.7, []), (0.6, ["random_level"]), (0.5, ["random_ahead"])])
    def test_one_seed_is_decided_by_its_difference(self, height, expected):
        found = random_level(flat([height], "entropy") + flat([0.6], "random"))

        assert kinds(found) == expected
        assert all("one seed, so no interval" in finding.message for finding in found)

    def test_variants_have_their_own_random(self):
        """Unweighted entropy beats unweighted random, not the weighted one."""
        found = random_level(
            [
                *flat([0.8, 0.8], "random", "weighted"),
                *flat([0.7, 0.7], "entropy", "weighted"),
                *flat([0.5, 0.5], "random", "unweighted"),
                *flat([0.7, 0.7], "entropy", "unweighted"),
            ]
        )

        assert kinds(found) == ["random_ahead"]
        assert "entropy, weighted" in found[0].message

    def test_nothing_to_say_without_random(self):
        assert random_level(flat([0.5], "entropy")) == ()
        assert random_level(flat([0.5], "entropy", "weighted") + flat([0.9], "random", "unweighted")) == ()
        assert random_level([]) == ()

    def test_refuses_other_seeds(self):
        with pytest.raises(ValueError, match="seed 1"):
            random_level(flat([0.5, 0.5], "entropy") + flat([0.5], "random"))


class TestWideSpread:
    def test_wide(self):
        """60 between the quartiles of a median of 100 are more than half."""
        [finding] = wide_spread([needed(100, 70, 130)], 20)

        assert finding.kind == "wide_spread"
        assert "entropy, labels needed for baseline: median 100, quartiles 70 and 130; 0 of 10 runs" in finding.message
        assert "start set" in finding.check

    @pytest.mark.parametrize("q75", [119.9, 120])
    def test_half_the_median_is_not_wide(self, q75):
        assert wide_spread([needed(100, 70, q75)], 20) == ()

    def test_one_batch_is_not_wide(self):
        """With batches of 20, labels needed cannot be told apart more finely."""
        assert wide_spread([needed(30, 20, 40)], 20) == ()
        assert kinds(wide_spread([needed(30, 20, 40)], 19)) == ["wide_spread"]

    def test_some_never_get_there(self):
        assert "median 100, quartiles 70 and never" in wide_spread([needed(100, 70, None, never=3)], 20)[0].message
        [finding] = wide_spread([needed(None, 70, None, never=6)], 20)
        assert "median never, quartiles 70 and never; 6 of 10 runs never get there" in finding.message

    def test_silent_where_hardly_any_gets_there(self):
        assert wide_spread([needed(None, None, None, never=10)], 20) == ()

    def test_refuses(self):
        with pytest.raises(ValueError, match="at least 1 image, got 0"):
            wide_spread([], 0)


class TestMissedClasses:
    BASELINE = predicting(normals=3, diseased=3)

    def test_silent_where_every_measure_gets_there(self):
        rounds = {"entropy": {0: [predicting(1, 2), predicting(3, 3), predicting(3, 3)]}}

        assert missed_classes(rounds, {0: self.BASELINE}) == ()

    def test_class_that_is_hardly_predicted(self):
        """Recall of normal 1/4 of 3/4; diseased: 4 of 7 predicted are, precision 0.571 of 0.75, specificity 1/4."""
        found = missed_classes({"entropy": {0: [predicting(1, 4)] * 3}}, {0: self.BASELINE})

        assert [finding.message for finding in found] == [
            "entropy never reaches the baseline's figures of class 'normal': "
            "recall in 1 of 1 runs, at worst 0.250 of 0.750.",
            "entropy never reaches the baseline's figures of class 'diseased': "
            "precision in 1 of 1 runs, at worst 0.571 of 0.750; specificity in 1 of 1 runs, at worst 0.250 of 0.750.",
        ]
        assert kinds(found) == ["missed_class"] * 2

    def test_class_that_is_never_predicted_has_a_precision_of_0(self):
        found = missed_classes({"entropy": {0: [predicting(0, 4)]}}, {0: self.BASELINE})

        assert "precision in 1 of 1 runs, at worst 0.000 of 0.750; recall" in found[0].message

    def test_a_little_below_is_there(self):
        """Recall of normal 1/2 of 3/4: 0.25 below, exactly representable."""
        rounds, baselines = {"entropy": {0: [predicting(2, 4)]}}, {0: self.BASELINE}

        assert "recall" in missed_classes(rounds, baselines, tolerance=0.24)[0].message
        assert missed_classes(rounds, baselines, tolerance=0.25) == ()

    def test_worst_is_the_widest_gap(self):
        """One run of three stands at 0.25, the others at 0.5."""
        runs = {0: [predicting(2, 4)], 1: [predicting(1, 4)], 2: [predicting(2, 4)]}

        found = missed_classes({"entropy": runs}, dict.fromkeys(range(3), self.BASELINE))

        assert "recall in 3 of 3 runs, at worst 0.250 of 0.750" in found[0].message

    def test_one_lucky_round_does_not_count(self):
        lucky = [predicting(1, 3), predicting(3, 3), predicting(1, 3), predicting(1, 3)]

        found = missed_classes({"entropy": {0: lucky}}, {0: self.BASELINE})

        # Medians of 3: the highest is the first, a mean of two rounds.
        assert "recall in 1 of 1 runs, at worst 0.500 of 0.750" in found[0].message

    @pytest.mark.parametrize(("missing", "expected"), [(1, 0), (2, 2), (4, 2)])
    def test_half_the_runs_must_miss_it(self, missing, expected):
        runs = {seed: [predicting(1, 4) if seed < missing else predicting(4, 4)] * 3 for seed in range(4)}

        found = missed_classes({"entropy": runs}, dict.fromkeys(range(4), self.BASELINE))

        assert len(found) == expected
        assert all(f"in {missing} of 4 runs" in finding.message for finding in found)

    def test_every_seed_has_its_own_baseline(self):
        """Each run reaches its own; the second would miss the first's."""
        rounds = {"entropy": {0: [predicting(3, 3)] * 3, 1: [predicting(2, 2)] * 3}}

        assert missed_classes(rounds, {0: predicting(3, 3), 1: predicting(2, 2)}) == ()

    def test_measure_that_the_baseline_lacks_is_left_out(self):
        """It predicts no image as normal: there is no precision to reach."""
        found = missed_classes({"entropy": {0: [predicting(0, 2)]}}, {0: predicting(0, 4)})

        assert [finding.message.split("figures of ")[1] for finding in found] == [
            "class 'normal': specificity in 1 of 1 runs, at worst 0.500 of 1.000.",
            "class 'diseased': precision in 1 of 1 runs, at worst 0.333 of 0.500; "
            "recall in 1 of 1 runs, at worst 0.500 of 1.000.",
        ]

    def test_says_whether_the_strategy_passed_the_class_over(self):
        found = missed_classes(
            {"entropy": {0: [predicting(1, 4)] * 3}},
            {0: self.BASELINE},
            picked={"entropy": {"normal": 4, "diseased": 96}},
            available={"normal": 14, "diseased": 86},
        )

        assert found[0].message.endswith("The class is 4% of its picks and 14% of the training set.")
        assert found[1].message.endswith("The class is 96% of its picks and 86% of the training set.")

    def test_no_picks_yet(self):
        found = missed_classes(
            {"entropy": {0: [predicting(1, 4)]}}, {0: self.BASELINE}, picked={"entropy": {}}, available={"normal": 1}
        )

        assert found[0].message.endswith("0.750.")

    def test_no_run(self):
        assert missed_classes({"entropy": {}}, {}) == ()

    @pytest.mark.parametrize(
        ("rounds", "message"),
        [
            ({0: []}, "entropy, seed 0: no round"),
            ({7: [predicting(1, 1)]}, "entropy, seed 7: no baseline"),
            ({0: [round_metrics(np.eye(2), np.array([0, 1]), ("a", "b"))]}, "classes a, b, but .* normal, diseased"),
        ],
    )
    def test_refuses(self, rounds, message):
        with pytest.raises(ValueError, match=message):
            missed_classes({"entropy": rounds}, {0: self.BASELINE})


class TestFewPasses:
    def test_batch_of_20_needs_100(self):
        assert few_passes(["batch_bald"], 100, 20) == ()
        [finding] = few_passes(["random", "batch_bald"], 50, 20)
        assert finding.kind == "few_passes"
        assert "batches of 20 with 50 passes" in finding.message
        assert "3.9 nats" in finding.message
        assert finding.check == "Draw 100 passes or more, or pick batches of 10 or less."

    def test_other_strategies_rank_images_one_by_one(self):
        assert few_passes(["bald", "power_bald"], 2, 50) == ()

    def test_too_few_passes_for_any_batch(self):
        assert few_passes(["batch_bald"], 4, 1)[0].check == "Draw 5 passes or more."

    @given(st.integers(1, 500), st.integers(1, 100))
    @settings(deadline=None)
    def test_its_own_advice_silences_it(self, passes, batch):
        if few_passes(["batch_bald"], passes, batch):
            assert few_passes(["batch_bald"], 5 * batch, batch) == ()
            assert passes < 5 or few_passes(["batch_bald"], passes, passes // 5) == ()

    def test_refuses(self):
        with pytest.raises(ValueError, match="got 0 and 20"):
            few_passes(["batch_bald"], 0, 20)


class TestFewSeeds:
    def test_ten_are_enough(self):
        assert few_seeds(10) == ()
        assert kinds(few_seeds(9)) == ["few_seeds"]

    def test_says_what_the_test_can_give_at_best(self):
        """Five differences on one side: 2 of 2^5 sign patterns are as extreme."""
        assert "5 seeds: Wilcoxon's test cannot give less than p = 0.062" in few_seeds(5)[0].message
        assert few_seeds(1)[0].message.startswith("1 seed: Wilcoxon's test cannot give less than p = 1,")

    def test_refuses(self):
        with pytest.raises(ValueError, match="at least 1 seed, got 0"):
            few_seeds(0)


def test_findings_survive_json():
    [finding] = few_seeds(3)

    assert Finding.model_validate_json(finding.model_dump_json()) == finding
