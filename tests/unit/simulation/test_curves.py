"""Learning curves: what is read off them by hand, and laws over any curve."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.simulation.analysis import (
    LearningCurve,
    area_under,
    band,
    by_name,
    labels_needed,
    running_median,
    shared_labels,
)

VALUES = st.floats(0, 1, allow_subnormal=False)


def curve(values: list[float], labels: list[int] | None = None, **changes: Any) -> LearningCurve:
    counts = [10 * (place + 1) for place in range(len(values))] if labels is None else labels
    fields: dict[str, Any] = {"strategy": "entropy", "seed": 0, "train_images": 1_000}
    return LearningCurve(labels=np.array(counts), values=np.array(values), **(fields | changes))


@st.composite
def curves(draw: st.DrawFn) -> LearningCurve:
    labels = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=12)))
    return curve(draw(st.lists(VALUES, min_size=len(labels), max_size=len(labels))), labels)


class TestLearningCurve:
    def test_shares_are_of_the_training_set(self):
        assert curve([0.5, 0.6], [25, 50], train_images=200).shares.tolist() == [0.125, 0.25]

    def test_name_tells_variants_apart(self):
        assert curve([0.5]).name == "entropy"
        assert curve([0.5], variant="unweighted").name == "entropy, unweighted"

    def test_keeps_its_own_copy(self):
        values = np.array([0.5, 0.6])
        kept = LearningCurve("entropy", 0, np.array([10, 20]), values, 100)
        values[0] = 0.9

        assert kept.values.tolist() == [0.5, 0.6]
        with pytest.raises(ValueError, match="read-only"):
            kept.values[0] = 0.9

    @pytest.mark.parametrize(
        ("values", "labels", "message"),
        [
            ([], [], "give one a round"),
            ([0.5], [10, 20], r"\(2,\) labels but \(1,\) values"),
            ([0.5, 0.6], [20, 20], r"increase within 1 to 1000, got \[20, 20\]"),
            ([0.5, 0.6], [0, 20], "increase within 1"),
            ([0.5, 0.6], [20, 1_001], "increase within 1 to 1000"),
            ([0.5, np.nan], [10, 20], "entropy, seed 0: value nan at 20 labels"),
            ([np.inf, 0.5], [10, 20], "value inf at 10 labels"),
        ],
    )
    def test_refuses(self, values, labels, message):
        with pytest.raises(ValueError, match=message):
            curve(values, labels)


class TestByName:
    def test_sorts_seeds_and_keeps_the_order_of_names(self):
        grouped = by_name(
            [
                curve([0.1], seed=7),
                curve([0.2], strategy="bald", seed=1),
                curve([0.3], seed=2),
                curve([0.4], seed=2, variant="unweighted"),
            ]
        )

        assert {name: list(runs) for name, runs in grouped.items()} == {
            "entropy": [2, 7],
            "bald": [1],
            "entropy, unweighted": [2],
        }
        assert list(grouped) == ["entropy", "bald", "entropy, unweighted"]
        assert grouped["entropy"][2].values.tolist() == [0.3]

    def test_refuses_a_run_twice(self):
        with pytest.raises(ValueError, match="entropy, seed 0: two curves"):
            by_name([curve([0.1]), curve([0.2])])


class TestRunningMedian:
    def test_hand_computed(self):
        """Inside, medians of three (9, 1, 2 gives 2); at the ends, means of the two rounds that there are."""
        assert running_median([1.0, 9.0, 1.0, 2.0, 8.0]).tolist() == [5.0, 1.0, 2.0, 2.0, 5.0]

    def test_wide_window_at_the_ends(self):
        """Five around the middle; three at the first, four at the second."""
        assert running_median([4.0, 0.0, 3.0, 1.0, 2.0], 5).tolist() == [3.0, 2.0, 2.0, 1.5, 2.0]

    def test_window_longer_than_the_run(self):
        assert running_median([1.0, 5.0], 9).tolist() == [3.0, 3.0]
        assert running_median([1.0]).tolist() == [1.0]

    @given(st.lists(VALUES, min_size=1, max_size=12), st.sampled_from([1, 3, 5]))
    @settings(deadline=None)
    def test_stays_within_its_window(self, values, window):
        got = running_median(values, window)
        half = window // 2

        for place, value in enumerate(got):
            seen = values[max(0, place - half) : place + half + 1]
            assert min(seen) <= value <= max(seen)
        assert window > 1 or got.tolist() == values

    @pytest.mark.parametrize("window", [0, -1, 2])
    def test_refuses_a_window_without_a_middle(self, window):
        with pytest.raises(ValueError, match=f"odd number of rounds .* got {window}"):
            running_median([1.0], window)

    def test_refuses_no_round(self):
        with pytest.raises(ValueError, match="no round"):
            running_median([])


class TestLabelsNeeded:
    def test_one_lucky_round_does_not_count(self):
        """0.9 at 20 labels stands alone; the medians of three are 0.55, 0.6, 0.6, 0.8, 0.85, 0.825."""
        one = curve([0.2, 0.9, 0.5, 0.6, 0.8, 0.85])

        assert labels_needed(one, 0.8) == 50
        assert labels_needed(one, 0.8, window=1) == 20

    def test_nor_does_one_unlucky_round(self):
        assert labels_needed(curve([0.9, 0.9, 0.1, 0.9, 0.9, 0.9]), 0.8) == 10

    def test_ends_are_means_of_two_rounds(self):
        assert labels_needed(curve([0.5, 0.5, 0.5, 0.9]), 0.75) is None
        assert labels_needed(curve([0.5, 0.5, 0.5, 0.9]), 0.7) == 40
        assert labels_needed(curve([0.9, 0.5, 0.5, 0.5]), 0.75) is None

    def test_exactly_at_the_target_is_enough(self):
        assert labels_needed(curve([0.8, 0.8]), 0.8) == 10

    def test_counts_are_the_curves_own(self):
        assert labels_needed(curve([0.1, 0.9, 0.9], [25, 60, 61]), 0.9) == 60

    @given(curves(), VALUES, VALUES)
    @settings(deadline=None)
    def test_a_higher_target_takes_no_fewer_labels(self, one, first, second):
        low, high = (labels_needed(one, target) for target in sorted((first, second)))

        assert high is None or (low is not None and low <= high)

    @given(curves())
    @settings(deadline=None)
    def test_bounds(self, one):
        assert labels_needed(one, float(one.values.min())) == one.labels[0]
        assert labels_needed(one, float(one.values.max()) + 1e-9) is None


class TestAreaUnder:
    def test_hand_computed(self):
        """Trapezoids of width 10 and 30: (10 * 0.5 + 30 * 0.8) / 40. The plain mean of the values is 0.666."""
        assert area_under(curve([0.4, 0.6, 1.0], [10, 20, 50])) == pytest.approx(0.725)

    def test_takes_the_counts_that_it_is_given(self):
        assert area_under(curve([0.4, 0.6, 1.0], [10, 20, 50]), np.array([20, 50])) == pytest.approx(0.8)
        assert area_under(curve([0.4, 0.6, 1.0], [10, 20, 50]), np.array([20])) == 0.6

    def test_one_round_is_its_own_mean(self):
        assert area_under(curve([0.7])) == 0.7

    @given(curves(), VALUES)
    @settings(deadline=None)
    def test_constant_curve_gives_its_height(self, one, height):
        assert area_under(curve([height] * len(one.labels), one.labels.tolist())) == pytest.approx(height)

    @given(curves(), VALUES)
    @settings(deadline=None)
    def test_lies_within_the_values_and_rises_with_them(self, one, more):
        area = area_under(one)

        assert one.values.min() - 1e-12 <= area <= one.values.max() + 1e-12
        higher = area_under(curve((one.values + more).tolist(), one.labels.tolist()))
        assert higher == pytest.approx(area + more, abs=1e-12)

    def test_size_of_the_training_set_cancels(self):
        small, large = (area_under(curve([0.4, 0.6, 1.0], train_images=size)) for size in (30, 1_000))

        assert small == pytest.approx(large)

    @pytest.mark.parametrize("labels", [[10, 15], [], [99]])
    def test_refuses_counts_that_it_does_not_have(self, labels):
        with pytest.raises(ValueError, match="entropy, seed 0: has no value at each of the labels"):
            area_under(curve([0.4, 0.6]), np.array(labels, dtype=np.int64))


class TestSharedLabels:
    def test_keeps_what_all_have(self):
        runs = [curve([0.1] * 3, [10, 20, 30]), curve([0.1] * 3, [20, 30, 40]), curve([0.1] * 3, [15, 20, 30])]

        assert shared_labels(runs).tolist() == [20, 30]

    def test_refuses_curves_that_never_meet(self):
        with pytest.raises(
            ValueError, match=r"no label count \(entropy, seed 0: 10 to 20; entropy, seed 1: 15 to 25\)"
        ):
            shared_labels([curve([0.1, 0.2], [10, 20]), curve([0.1, 0.2], [15, 25], seed=1)])
        with pytest.raises(ValueError, match="at least one"):
            shared_labels([])


class TestBand:
    def test_hand_computed(self):
        """At 10 labels 1, 2, 3, 5; the quartiles stand at places 0.75, 1.5 and 2.25 of 0 to 3."""
        values = [[1.0, 8.0], [5.0, 8.0], [2.0, 0.0], [3.0, 4.0]]
        got = band([curve(v, seed=seed, train_images=100 + seed) for seed, v in enumerate(values)])

        assert got.labels.tolist() == [10, 20]
        assert got.q25.tolist() == [1.75, 3.0]
        assert got.median.tolist() == [2.5, 6.0]
        assert got.q75.tolist() == [3.5, 8.0]
        assert got.runs == 4
        assert got.train_images == 101.5
        assert got.shares.tolist() == pytest.approx([10 / 101.5, 20 / 101.5])

    def test_a_short_run_ends_the_band(self):
        got = band([curve([0.1, 0.2, 0.3]), curve([0.3, 0.4], seed=1)])

        assert got.labels.tolist() == [10, 20]
        assert got.median.tolist() == pytest.approx([0.2, 0.3])

    def test_one_seed_is_its_own_band(self):
        got = band([curve([0.1, 0.2])])

        assert got.q25.tolist() == got.median.tolist() == got.q75.tolist() == [0.1, 0.2]

    @given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=7))
    @settings(deadline=None)
    def test_quartiles_enclose_the_median(self, values):
        got = band([curve(list(v), seed=seed) for seed, v in enumerate(values)])

        assert (got.q25 <= got.median).all()
        assert (got.median <= got.q75).all()

    def test_refuses_a_mixture(self):
        with pytest.raises(ValueError, match="one strategy and variant, got entropy, bald"):
            band([curve([0.1]), curve([0.1], strategy="bald")])
        with pytest.raises(ValueError, match="two curves"):
            band([curve([0.1]), curve([0.1])])
