"""Statistics of a study: cases worked by hand, agreement with SciPy and NumPy, and laws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from ml_backend.simulation.analysis import (
    TARGETS,
    Group,
    LabelsNeeded,
    LabelsRatio,
    PairedDifference,
    Quartiles,
    areas,
    areas_of,
    bands,
    complete_runs,
    differences_from_random,
    few_passes,
    findings,
    labels_needed,
    labels_needed_by_run,
    labels_needed_table,
    labels_ratio,
    labels_ratio_unpaired,
    learning_curves,
    metric_statistics,
    missed_classes,
    paired_difference,
    picked_median_curves,
    picked_share_curves,
    quartiles,
    random_level,
    rarest_class,
    running_median,
    tables,
    wide_spread,
)
from ml_backend.simulation.metrics import ACCURACY, METRICS, RoundMetrics, round_metrics
from ml_backend.simulation.run_log import BatchRow, StudyResults
from tests.unit.simulation.drawn_results import TRAIN, drawn_metrics, drawn_results

ENTROPY, RANDOM = Group("entropy", ""), Group("random", "")
NEVER = math.inf
HEIGHTS = st.lists(st.integers(0, 8), min_size=2, max_size=8)
VALUES = st.floats(0, 1, allow_subnormal=False)


def series(values: Sequence[float], labels: Sequence[int] | None = None) -> pd.Series:
    """One run, at 10, 20, 30 .. labels by default."""
    return pd.Series(values, labels or [10 * (place + 1) for place in range(len(values))], dtype=float)


def curves(
    runs: Mapping[Group | str, Sequence[Sequence[float] | pd.Series]], sizes: Sequence[int] = ()
) -> pd.DataFrame:
    """Runs by group, one a seed; of 200 training images by default."""
    rows: list[tuple[Any, ...]] = []
    for group, values in runs.items():
        strategy, variant = group if isinstance(group, Group) else (group, "")
        for seed, one in enumerate(values):
            run = one if isinstance(one, pd.Series) else series(one)
            rows += [(strategy, variant, seed, labels, v, sizes[seed] if sizes else 200) for labels, v in run.items()]
    return pd.DataFrame(rows, columns=["strategy", "variant", "seed", "labels", "value", "train_images"])


def flat(heights: Sequence[float]) -> list[list[float]]:
    """Constant curves, one a seed: their areas are their heights."""
    return [[height] * 3 for height in heights]


def table(heights: Sequence[float]) -> pd.DataFrame:
    [found] = tables(curves({"x": flat(heights)})).values()
    return found


def rising_to(target: float, *at: float) -> list[list[float]]:
    """Runs of ten rounds of 10 labels that are at the target from a label count on."""
    return [[target if 10 * (place + 1) >= one else 0.0 for place in range(10)] for one in at]


@st.composite
def runs(draw: st.DrawFn) -> pd.Series:
    labels = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=12)))
    return series(draw(st.lists(VALUES, min_size=len(labels), max_size=len(labels))), labels)


class TestQuartiles:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([30, 50, 90, NEVER], (45, 70, NEVER)),
            ([30, 50, NEVER], (40, 50, NEVER)),  # the median is 50 itself, not half way to infinity
            ([30, NEVER, NEVER], (NEVER, NEVER, NEVER)),
            ([NEVER], (NEVER, NEVER, NEVER)),
        ],
    )
    def test_between_a_number_and_infinity_lies_infinity(self, values, expected):
        assert quartiles(values) == expected


class TestLearningCurves:
    def test_values_by_labels(self):
        results = drawn_results(("random",), seeds=1, rounds=3)
        found = learning_curves(results, lambda row: row.metrics.accuracy)

        assert found["labels"].tolist() == [75, 95, 115]
        assert found["value"].tolist() == [row.metrics.accuracy for row in results.rounds]
        assert set(found["train_images"]) == {TRAIN}

    def test_order_of_the_rows_changes_nothing_and_groups_are_in_the_order_of_the_study(self):
        results = drawn_results(("random", "entropy"), variants=("weighted", "unweighted"))
        found = learning_curves(results, lambda row: row.epochs)

        shuffled = learning_curves(replace(results, rounds=results.rounds[::-1]), lambda row: row.epochs)
        pd.testing.assert_frame_equal(found.reset_index(drop=True), shuffled.reset_index(drop=True))
        assert list(map(str, tables(found))) == [
            "random, weighted",
            "random, unweighted",
            "entropy, weighted",
            "entropy, unweighted",
        ]

    def test_undefined_rounds_are_left_out_and_so_is_a_run_of_them(self):
        results = drawn_results(("random", "entropy"), seeds=1, rounds=3)
        undefined = {1: None, 2: math.nan, 3: 0.5}

        found = learning_curves(results, lambda row: None if row.strategy == "random" else undefined[row.round])

        assert found[["strategy", "labels"]].values.tolist() == [["entropy", 115]]

    def test_a_round_without_a_new_label_replaces_the_one_before(self):
        results = drawn_results(("random",), seeds=1, rounds=2)
        again = results.rounds[1].model_copy(update={"round": 3, "epochs": 7})

        found = learning_curves(replace(results, rounds=(*results.rounds, again)), lambda row: row.epochs)

        assert found["value"].tolist() == [results.rounds[0].epochs, 7]


class TestBands:
    def test_hand_computed(self):
        """At 10 labels 1, 2, 3, 5; the quartiles lie at places 0.75, 1.5 and 2.25 of 0 to 3."""
        values = [[1.0, 8.0], [5.0, 8.0], [2.0, 0.0], [3.0, 4.0]]
        [found] = bands(curves({"x": values}, sizes=[100, 101, 102, 103])).values()

        assert found[["q25", "median", "q75"]].values.tolist() == [[1.75, 2.5, 3.5], [3.0, 6.0, 8.0]]
        assert found["share"].tolist() == pytest.approx([10 / 101.5, 20 / 101.5])

    def test_a_short_run_ends_the_band(self):
        [found] = bands(curves({"x": [[0.1, 0.2, 0.3], [0.3, 0.4]]})).values()

        assert found["median"].to_dict() == pytest.approx({10: 0.2, 20: 0.3})

    def test_none_where_runs_share_no_label_count(self):
        found = bands(curves({"random": flat([0.5, 0.5]), "bald": [[0.5], series([0.5], [15])]}))

        assert list(found) == [RANDOM]


def test_running_median_hand_computed():
    """At the ends, means of two rounds."""
    assert running_median(series([1.0, 9.0, 1.0, 2.0, 8.0])).tolist() == [5.0, 1.0, 2.0, 2.0, 5.0]
    assert running_median(series([1.0, 9.0]), 1).tolist() == [1.0, 9.0]


class TestLabelsNeeded:
    @pytest.mark.parametrize(
        ("values", "target", "expected"),
        [
            # 0.9 at 20 labels is alone; the medians of three are 0.55, 0.6, 0.6, 0.8, 0.85, 0.825.
            ([0.2, 0.9, 0.5, 0.6, 0.8, 0.85], 0.8, 50),
            ([0.9, 0.9, 0.1, 0.9, 0.9, 0.9], 0.8, 10),
            ([0.5, 0.5, 0.5, 0.9], 0.75, NEVER),  # the ends are means of two rounds
            ([0.5, 0.5, 0.5, 0.9], 0.7, 40),
            ([0.9, 0.5, 0.5, 0.5], 0.75, NEVER),
            ([0.8, 0.8], 0.8, 10),
        ],
    )
    def test_hand_computed(self, values, target, expected):
        assert labels_needed(series(values), target) == expected

    def test_window_of_one_round(self):
        assert labels_needed(series([0.2, 0.9, 0.5]), 0.8, window=1) == 20


def needed(curves, baselines):
    return labels_needed_table(labels_needed_by_run(curves, baselines))


class TestLabelsNeededTable:
    def test_hand_computed(self):
        """Three seeds reach 0.8 at 30, 50 and 90 labels; one, whose baseline is 0.9, never gets there."""
        found = needed(
            curves({"entropy": rising_to(0.8, 50, 90, 30, 30)}),
            {("", 0): 0.8, ("", 1): 0.8, ("", 2): 0.8, ("", 3): 0.9},
        )

        assert [row.target for row in found] == list(TARGETS)
        assert found[2] == LabelsNeeded(
            ENTROPY, "baseline", Quartiles(45, 70, NEVER), Quartiles(0.225, 0.35, NEVER), runs=4, never=1
        )

    def test_targets(self):
        """Rising by 0.005 a round from 0.75: 0.95 * 0.8 = 0.76 is round 3, 0.79 is round 9, 0.8 is round 11."""
        run = [0.75 + 0.005 * place for place in range(14)]

        found = needed(curves({"entropy": [run]}), {("", 0): 0.8 - 1e-9})

        assert [row.labels.median for row in found] == [30.0, 90.0, 110.0]

    def test_variants_have_their_own_baselines(self):
        found = needed(
            curves({Group("entropy", "a"): rising_to(0.8, 40), Group("entropy", "b"): rising_to(0.6, 20)}),
            {("a", 0): 0.8, ("b", 0): 0.6},
        )

        assert [(row.group.variant, row.labels.median) for row in found if row.target == "baseline"] == [
            ("a", 40.0),
            ("b", 20.0),
        ]

    def test_share_is_of_each_runs_own_training_set(self):
        [row, *_] = needed(curves({"entropy": rising_to(0.8, 40, 40)}, sizes=[100, 400]), {("", 0): 0.8, ("", 1): 0.8})

        assert row.labels.median == 40.0
        assert row.share.median == pytest.approx((0.4 + 0.1) / 2)

    def test_runs_without_a_baseline_are_left_out(self):
        runs = curves({"entropy": flat([0.5, 0.5])})

        assert {row.runs for row in needed(runs, {("", 0): 0.9})} == {1}
        assert needed(runs, {}) == ()


class TestLabelsRatio:
    def test_hand_computed(self):
        """Ratios 0.1 .. 0.9 and 2.0: of ten, the second smallest and largest bound the median with 97.9 %."""
        needed = pd.Series([10.0 * n for n in range(1, 10)] + [200.0], range(10))
        found = labels_ratio(needed, pd.Series(100.0, range(12)))
        assert found is not None

        assert [found.median, found.low, found.high, found.pairs] == pytest.approx([0.55, 0.2, 0.9, 10])

    def test_never_counts_and_two_of_it_say_nothing(self):
        first, second = pd.Series([10, 10, 10, 10, NEVER, 30, NEVER]), pd.Series([20.0, 20, 20, 20, 20, NEVER, NEVER])

        assert labels_ratio(first, second) == LabelsRatio(0.5, 0.0, NEVER, pairs=6, never=2)
        assert labels_ratio(pd.Series([NEVER]), pd.Series([NEVER])) is None

    def test_between_never_and_a_number_lies_never(self):
        """Not half of the number: 0, 0, 0, 1, 1, 1."""
        got_there, half = pd.Series(20.0, range(6)), pd.Series([NEVER, NEVER, NEVER, 20, 20, 20])

        assert [found.median for one in (half, got_there) if (found := labels_ratio(got_there, one))] == [0.0, 1.0]
        assert [found.median for one in (half, got_there) if (found := labels_ratio(one, got_there))] == [NEVER, 1.0]

    def test_a_bound_is_not_a_ratio_of_few_runs(self):
        """The second run of the other took more labels than there were: 0.75 would be too low."""
        assert labels_ratio(pd.Series([30.0, 30]), pd.Series([20.0, NEVER])) is None
        assert labels_ratio(pd.Series([30.0, 30]), pd.Series([20.0, 20])) == LabelsRatio(1.5, None, None, pairs=2)

    def test_of_independent_runs(self):
        """Of medians; the interval narrows with the number of runs, and holds the ratio."""
        first, second = pd.Series(np.arange(40.0, 61)), pd.Series(np.arange(80.0, 121))
        found = labels_ratio_unpaired(first, second)
        assert found is not None

        assert (found.median, found.pairs) == (0.5, 21)
        assert found.low is not None
        assert found.high is not None
        assert 0.4 < found.low < 0.5 < found.high < 0.6
        assert labels_ratio_unpaired(first[:1], second) == LabelsRatio(0.4, None, None, pairs=1)
        assert labels_ratio_unpaired(pd.Series([NEVER]), pd.Series([NEVER])) is None


class TestAreas:
    def test_hand_computed(self):
        """Trapezoids of width 10 and 30: (10 * 0.5 + 30 * 0.8) / 40. The plain mean of the values is 0.666."""
        one = pd.DataFrame({0: series([0.4, 0.6, 1.0], [10, 20, 50])})

        assert areas(one).tolist() == pytest.approx([0.725])
        assert areas(one.iloc[1:]).tolist() == pytest.approx([0.8])
        assert areas(one.iloc[1:2]).tolist() == [0.6]

    def test_of_a_study_are_taken_over_the_label_counts_of_all_runs(self):
        found = areas_of(curves({"entropy": flat([0.2, 0.4, 0.8]), "random": [[0.9, 0.1]]}))
        assert found is not None

        assert (found.first, found.last) == (10, 20)
        assert found.by_group == {ENTROPY: pytest.approx((0.3, 0.4, 0.6)), RANDOM: pytest.approx((0.5, 0.5, 0.5))}

    def test_of_a_study_without_shared_label_counts(self):
        assert areas_of(curves({"entropy": [[0.2]], "random": [series([0.5], [15])]})) is None
        assert areas_of(curves({})) is None


class TestPairedDifference:
    def test_hand_computed(self):
        """Differences 0.1 to 0.4, whose ranks are all on one side: p = 2 / 2^6."""
        got = paired_difference(table([0.6, 0.6, 0.8, 0.8, 0.65, 0.75]), table([0.5, 0.4, 0.5, 0.4, 0.5, 0.4]))

        assert (got.mean, got.p) == pytest.approx((0.25, 0.03125))
        assert got.pairs == 6
        assert got.low is not None
        assert got.high is not None
        assert 0.1 <= got.low < 0.25 < got.high <= 0.4

    def test_pairs_are_made_by_seed_not_by_place(self):
        """By place, the differences would be 0.4 and -0.2; by seed all are 0.1."""
        got = paired_difference(table([0.6, 0.3] * 3), table([0.5, 0.2] * 3)[[1, 0, 3, 2, 5, 4]])

        assert got.mean == got.low == got.high == pytest.approx(0.1)

    def test_a_run_that_ended_early_is_compared_over_its_own_part(self):
        """Until 30 labels both are equal; the rest of the longer one must not count."""
        short, long = (pd.DataFrame({0: series(v)}) for v in ([0.2, 0.4, 0.6], [0.2, 0.4, 0.6, 0.9, 0.9]))

        assert paired_difference(short, long) == PairedDifference(0.0, None, None, None, 1)

    @pytest.mark.parametrize("seeds", [1, 5])
    def test_few_seeds_have_no_interval_and_no_p(self, seeds):
        got = paired_difference(table([0.6] * seeds), table([0.5] * seeds))

        assert (got.low, got.high, got.p, got.pairs) == (None, None, None, seeds)

    def test_equal_curves_have_no_p(self):
        same = table([0.6, 0.7] * 3)

        assert paired_difference(same, same) == PairedDifference(0.0, 0.0, 0.0, None, 6)

    def test_interval_is_the_percentile_bootstrap(self):
        """Half of six pairs are 0, half 1: their resampled mean is k/6, k binomial; 2.5 % and 97.5 % lie at 1 and 5."""
        got = paired_difference(table([0.0, 1.0] * 3), table([0.0] * 6))

        assert (got.low, got.high) == pytest.approx((1 / 6, 5 / 6))

    def test_refuses_runs_that_cannot_be_paired(self):
        with pytest.raises(ValueError, match="no pair of runs"):
            paired_difference(table([0.5, 0.5])[[0]], table([0.5, 0.5])[[1]])


class TestDifferencesFromRandom:
    def test_every_variant_has_its_own_random(self):
        found = differences_from_random(
            curves(
                {
                    Group("random", "a"): flat([0.5, 0.5]),
                    Group("entropy", "a"): flat([0.7, 0.7, 0.7]),
                    Group("random", "b"): flat([0.8]),
                    Group("entropy", "b"): flat([0.7, 0.7]),
                    Group("entropy", "c"): flat([0.7, 0.7]),
                }
            )
        )

        assert {group.variant: (round(one.mean, 9), one.pairs) for group, one in found.items()} == {
            "a": (0.2, 2),
            "b": (-0.1, 1),
        }

    def test_none_without_a_label_count_in_common(self):
        assert differences_from_random(curves({"entropy": [[0.5]], "random": [series([0.5], [15])]})) == {}


class TestMetricStatistics:
    def test_of_a_metric(self):
        results = drawn_results(rounds=8)
        one = metric_statistics(ACCURACY, results)

        assert list(map(str, one.groups)) == ["random", "entropy", "mean_std"]
        assert len(one.needed) == 9
        assert set(one.needed_for("baseline")) == set(one.groups)
        assert one.areas is not None
        assert (one.areas.first, one.areas.last) == (75, 215)
        assert one.baseline("") == pytest.approx(0.804)
        assert one.baseline("weighted") is None
        found = tables(one.curves)
        assert one.differences[ENTROPY] == paired_difference(found[ENTROPY], found[RANDOM])

    def test_a_metric_that_is_better_low_is_drawn_and_not_compared(self):
        one = metric_statistics(METRICS[-1], drawn_results())

        assert len(one.bands) == 3
        assert (one.needed, one.areas, one.differences) == ((), None, {})


def cut(results: StudyResults, strategy: str, seed: int, rounds: int) -> StudyResults:
    """One run that ended after so many rounds."""
    kept = [r for r in results.rounds if (r.strategy, r.seed) != (strategy, seed) or r.round <= rounds]
    return replace(results, rounds=tuple(kept))


class TestCompleteRuns:
    def test_an_incomplete_run_is_left_out_and_named(self):
        results = cut(drawn_results(rounds=20), "entropy", 1, 7)
        kept, left_out = complete_runs(results)

        assert left_out == {"entropy, seed 1": (7, 20)}
        assert len({row.run for row in kept.rounds}) == len({row.run for row in kept.batches}) == 8

    def test_a_round_more_or_less_is_the_split(self):
        results = cut(drawn_results(), "entropy", 1, 5)

        assert complete_runs(results) == (results, {})

    def test_a_strategy_that_is_shorter_throughout_stays(self):
        results = drawn_results(("random", "entropy"), seeds=2, rounds=20)

        assert complete_runs(cut(cut(results, "entropy", 0, 8), "entropy", 1, 8))[1] == {}


class TestPicks:
    RESULTS = drawn_results(("random",), seeds=1, rounds=3, batches=False)

    def with_picks(self, *picks: tuple[int, str, float]) -> StudyResults:
        rows = (
            BatchRow(
                run="random-s0", strategy="random", variant="", seed=0, round=number, rank=1, image_id="1", label=label,
                score=0.1, epistemic=0.2, aleatoric=aleatoric,
            )
            for number, label, aleatoric in picks
        )  # fmt: skip
        return replace(self.RESULTS, batches=tuple(rows))

    def test_shares_are_of_all_picks_so_far(self):
        """Round 1 picks a viral and a normal image, round 2 two viral ones, round 3 none: 1 of 2, then 3 of 4."""
        results = self.with_picks((1, "viral", 0.5), (1, "normal", 0.5), (2, "viral", 0.5), (2, "viral", 0.5))
        found = picked_share_curves(results, "viral")

        assert found[["labels", "value"]].values.tolist() == [[75, 0.5], [95, 0.75]]

    def test_values_are_medians_of_a_round(self):
        results = self.with_picks((1, "viral", 0.1), (1, "viral", 0.2), (1, "viral", 0.9), (3, "viral", 0.4))
        found = picked_median_curves(results, "aleatoric")

        assert found[["labels", "value"]].values.tolist() == [[75, 0.2], [115, 0.4]]

    def test_without_picks(self):
        assert picked_share_curves(self.RESULTS, "viral").empty
        assert picked_median_curves(self.RESULTS, "epistemic").empty


def test_rarest_class():
    results = drawn_results(classes=("normal", "diseased"))
    unknown = replace(results, summary=results.summary.model_copy(update={"labels_per_class": {}}))

    assert (rarest_class(results), rarest_class(unknown)) == ("normal", None)


class TestRandomLevel:
    @pytest.mark.parametrize(
        ("heights", "expected"),
        [
            ([0.7, 0.71, 0.73, 0.74] * 2, []),
            ([0.5, 0.51, 0.52, 0.53] * 2, ["random_ahead"]),
            ([0.65, 0.66, 0.67, 0.56] * 2, ["random_level"]),  # ahead on average, but behind in one of four by more
            ([0.55, 0.56, 0.57, 0.70] * 2, ["random_level"]),  # behind on average, but ahead in one of four
            ([0.6, 0.61, 0.62, 0.63] * 2, ["random_level"]),
            ([0.7] * 5, []),  # too few for an interval: by the difference
            ([0.5] * 5, ["random_level"]),
        ],
    )
    def test_by_the_interval(self, heights, expected):
        names = {True: "random_ahead", False: "random_level"}
        runs = curves({"entropy": flat(heights), "random": flat([0.6, 0.61, 0.62, 0.63] * 2)})

        assert [names[one["ahead"]] for one in random_level(differences_from_random(runs))] == expected


class TestWideSpread:
    @pytest.mark.parametrize(
        ("q25", "median", "q75", "found"),
        [
            (70, 100, 130, 1),
            (70, 100, 120, 0),  # half the median
            (20, 30, 40, 0),  # one batch
            (19, 30, 40, 1),
            (70, 100, NEVER, 1),
            (70, NEVER, NEVER, 1),
            (NEVER, NEVER, NEVER, 0),
        ],
    )
    def test_more_than_half_the_median_and_a_batch_of_20(self, q25, median, q75, found):
        row = LabelsNeeded(ENTROPY, "baseline", Quartiles(q25, median, q75), Quartiles(q25, median, q75), 10, 0)

        assert len(wide_spread([row], 20)) == found


def predicting(normals: int, diseased: int) -> RoundMetrics:
    """Four normal and four diseased images, so many of each predicted correctly."""
    predictions = [0] * normals + [1] * (4 - normals) + [1] * diseased + [0] * (4 - diseased)
    return round_metrics(np.eye(2)[predictions], np.array([0] * 4 + [1] * 4), ("normal", "diseased"))


class TestMissedClasses:
    BASELINE = predicting(3, 3)

    def missed(
        self,
        runs: Mapping[int, Sequence[RoundMetrics]],
        baselines: Mapping[int, RoundMetrics] | None = None,
        **changes: float,
    ) -> dict[str, dict[str, Any]]:
        """Class -> measure -> runs that miss it, runs, the worst value and its baseline."""
        drawn = drawn_results(
            ("entropy",), seeds=len(runs), rounds=max(map(len, runs.values())), classes=("normal", "diseased"),
            batches=False,
        )  # fmt: skip
        rounds = [
            row.model_copy(update={"metrics": runs[row.seed][row.round - 1]})
            for row in drawn.rounds
            if row.round <= len(runs[row.seed])
        ]
        baseline_rows = [
            row.model_copy(update={"metrics": (baselines or dict.fromkeys(runs, self.BASELINE))[row.seed]})
            for row in drawn.baselines
        ]
        found = missed_classes(replace(drawn, rounds=tuple(rounds), baselines=tuple(baseline_rows)), **changes)
        return {
            one["class_name"]: {measure: pytest.approx(tuple(values), abs=1e-3) for measure, *values in one["missed"]}
            for one in found
        }

    def test_silent_where_every_measure_gets_there(self):
        assert self.missed({0: [predicting(1, 2), predicting(3, 3), predicting(3, 3)]}) == {}

    def test_class_that_is_hardly_predicted(self):
        """Recall of normal 1/4 of 3/4; diseased: 4 of 7 predicted are, precision 0.571 of 0.75, specificity 1/4."""
        assert self.missed({0: [predicting(1, 4)] * 3}) == {
            "normal": {"recall": (1, 1, 0.25, 0.75)},
            "diseased": {"precision": (1, 1, 0.571, 0.75), "specificity": (1, 1, 0.25, 0.75)},
        }

    def test_class_that_is_never_predicted_has_a_precision_of_0(self):
        assert self.missed({0: [predicting(0, 4)]})["normal"]["precision"] == (1, 1, 0.0, 0.75)

    @pytest.mark.parametrize(("tolerance", "found"), [(0.24, 1), (0.25, 0)])
    def test_a_little_below_is_there(self, tolerance, found):
        """Recall of normal 1/2 of 3/4: 0.25 below, exactly representable."""
        assert len(self.missed({0: [predicting(2, 4)]}, tolerance=tolerance).get("normal", {})) == found

    def test_one_lucky_round_does_not_count(self):
        """Medians of 3: the highest is the first, a mean of two rounds."""
        lucky = [predicting(1, 3), predicting(3, 3), predicting(1, 3), predicting(1, 3)]

        assert self.missed({0: lucky})["normal"]["recall"] == (1, 1, 0.5, 0.75)

    @pytest.mark.parametrize(("missing", "expected"), [(1, 0), (2, 2), (4, 2)])
    def test_half_the_runs_must_miss_it(self, missing, expected):
        runs = {seed: [predicting(1, 4) if seed < missing else predicting(4, 4)] * 3 for seed in range(4)}

        assert len(self.missed(runs)) == expected

    def test_every_seed_has_its_own_baseline(self):
        """Each run reaches its own; the second would miss the first's."""
        runs = {0: [predicting(3, 3)] * 3, 1: [predicting(2, 2)] * 3}

        assert self.missed(runs, {0: predicting(3, 3), 1: predicting(2, 2)}) == {}

    def test_shares_of_picks_and_training_set(self):
        results = drawn_results(("entropy",), seeds=1, rounds=1, classes=("normal", "diseased"))
        normal = sum(row.label == "normal" for row in results.batches) / 20

        assert missed_classes(results)[0]["shares"] == pytest.approx([normal, 0.14], abs=1e-3)


class TestFewPasses:
    def test_batch_of_20_needs_100(self):
        assert few_passes(["batch_bald"], 100, 20) == []
        [finding] = few_passes(["random", "batch_bald"], 50, 20)
        assert finding == {
            "passes": 50, "batch_size": 20, "nats": pytest.approx(3.912, abs=1e-3), "enough": 100, "smaller": 10,
        }  # fmt: skip

    def test_other_strategies_rank_images_one_by_one(self):
        assert few_passes(["bald", "power_bald"], 2, 50) == []


class TestFindings:
    def kinds(self, results: StudyResults, **incomplete: tuple[int, int]) -> dict[str, Mapping[str, Any]]:
        found = findings(results, metric_statistics(ACCURACY, results), incomplete)
        return {kind: facts[0] for kind, facts in found.items()}

    def test_a_sound_study_has_none(self):
        results = drawn_results(("random", "entropy"), seeds=20, rounds=25)
        low = drawn_metrics(0.6, results.summary.classes)
        baselines = tuple(row.model_copy(update={"metrics": low}) for row in results.baselines)

        assert self.kinds(replace(results, baselines=baselines)) == {}

    def test_seeds_are_those_that_every_strategy_ran(self):
        results = drawn_results(("random", "entropy"), seeds=20, rounds=8)
        rows = tuple(row for row in results.rounds if row.strategy == "random" or row.seed < 4)

        assert self.kinds(replace(results, rounds=rows))["few_seeds"]["seeds"] == 4

    def test_a_study_with_everything(self):
        results = drawn_results(("entropy", "batch_bald"), seeds=2, rounds=3)
        found = self.kinds(replace(results, baselines=results.baselines[:1]), run=(2, 6))

        assert list(found)[:5] == ["incomplete_runs", "no_baseline", "no_random", "few_seeds", "few_passes"]
        assert found["no_baseline"] == {"without": ["entropy, seed 1", "batch_bald, seed 1"], "runs": 4}
