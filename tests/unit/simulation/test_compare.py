"""Statistics over paired seeds: cases worked by hand, agreement with SciPy and NumPy, and laws."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ml_backend.simulation.analysis import (
    TARGETS,
    LabelsNeeded,
    LearningCurve,
    PairedDifference,
    Spread,
    labels_needed_table,
    paired_difference,
    win_matrix,
)

HEIGHTS = st.lists(st.integers(0, 8), min_size=2, max_size=8)


def curve(values: Sequence[float], seed: int = 0, strategy: str = "entropy", **changes: Any) -> LearningCurve:
    fields: dict[str, Any] = {"labels": np.arange(1, len(values) + 1) * 10, "train_images": 200}
    return LearningCurve(strategy, seed, values=np.array(values), **(fields | changes))


def flat(heights: Sequence[float], strategy: str = "entropy") -> list[LearningCurve]:
    """Constant curves, one a seed: their areas are their heights."""
    return [curve([height] * 3, seed, strategy) for seed, height in enumerate(heights)]


def rising_to(target: float, at: int, seed: int, **changes: Any) -> LearningCurve:
    """Ten rounds of 10 labels that stand on the target from label count ``at`` on."""
    return curve([target if 10 * (place + 1) >= at else 0.0 for place in range(10)], seed, **changes)


class TestLabelsNeededTable:
    def test_hand_computed(self):
        """Three seeds stand on 0.8 from 30, 50 and 90 labels on; one, whose baseline is 0.9, never gets there."""
        runs = [rising_to(0.8, at, seed) for seed, at in enumerate((50, 90, 30, 30))]
        rows = labels_needed_table(runs, {("", 0): 0.8, ("", 1): 0.8, ("", 2): 0.8, ("", 3): 0.9})

        assert [row.target for row in rows] == ["95 % of the baseline", "baseline - 1 point", "baseline"]
        # 30, 50, 90 and infinity: places 0.75, 1.5 and 2.25 of 0 to 3.
        assert rows[2] == LabelsNeeded(
            name="entropy",
            target="baseline",
            labels=Spread(median=70.0, q25=45.0, q75=None),
            share=Spread(median=0.35, q25=0.225, q75=None),
            runs=4,
            never=1,
        )

    def test_targets_lie_where_they_say(self):
        """Rising by 0.005 a round from 0.75: 0.95 * 0.8 = 0.76 is round 3, 0.79 is round 9, 0.8 is round 11."""
        run = curve([0.75 + 0.005 * place for place in range(14)])
        rows = labels_needed_table([run], {("", 0): 0.8 - 1e-9})

        assert [row.labels.median for row in rows] == [30.0, 90.0, 110.0]
        assert list(TARGETS) == [row.target for row in rows]

    def test_baseline_never_reached(self):
        rows = labels_needed_table(flat([0.5, 0.5]), {("", 0): 0.9, ("", 1): 0.9})

        assert {row.never for row in rows} == {2}
        assert {row.labels.median for row in rows} == {None}
        assert rows[0].share == Spread(median=None, q25=None, q75=None)

    def test_one_seed(self):
        [row, *_] = labels_needed_table([rising_to(0.8, 40, 0)], {("", 0): 0.8})

        assert row.labels == Spread(median=40.0, q25=40.0, q75=40.0)
        assert (row.runs, row.never) == (1, 0)

    def test_variants_have_their_own_baselines(self):
        runs = [rising_to(0.8, 40, 0, variant="weighted"), rising_to(0.6, 20, 0, variant="unweighted")]
        rows = labels_needed_table(runs, {("weighted", 0): 0.8, ("unweighted", 0): 0.6})

        assert [(row.name, row.labels.median) for row in rows if row.target == "baseline"] == [
            ("entropy, weighted", 40.0),
            ("entropy, unweighted", 20.0),
        ]

    def test_share_is_of_each_runs_own_training_set(self):
        runs = [rising_to(0.8, 40, 0, train_images=100), rising_to(0.8, 40, 1, train_images=400)]
        [row, *_] = labels_needed_table(runs, {("", 0): 0.8, ("", 1): 0.8})

        assert row.labels.median == 40.0
        assert row.share.median == pytest.approx((0.4 + 0.1) / 2)

    @given(st.lists(st.sampled_from([10, 20, 40, 80, 100]), min_size=1, max_size=9))
    @settings(deadline=None)
    def test_quantiles_are_numpys_where_all_get_there(self, counts):
        runs = [rising_to(0.8, at, seed) for seed, at in enumerate(counts)]
        row = labels_needed_table(runs, {("", seed): 0.8 for seed in range(len(counts))}, window=1)[-1]

        assert [row.labels.q25, row.labels.median, row.labels.q75] == pytest.approx(
            np.quantile(counts, (0.25, 0.5, 0.75))
        )

    def test_median_that_falls_on_the_last_number_is_a_number(self):
        """30, 50, infinity: the median is 50 itself, not half way to infinity."""
        runs = [rising_to(0.8, at, seed) for seed, at in enumerate((30, 50))] + flat([0.1] * 3)[2:]
        row = labels_needed_table(runs, {("", seed): 0.8 for seed in range(3)})[-1]

        assert row.labels == Spread(median=50.0, q25=40.0, q75=None)

    def test_refuses(self):
        with pytest.raises(ValueError, match="entropy, seed 1: the baseline is nan"):
            labels_needed_table(flat([0.5, 0.5]), {("", 0): 0.9})
        with pytest.raises(ValueError, match="odd number"):
            labels_needed_table(flat([0.5]), {("", 0): 0.9}, window=2)


class TestPairedDifference:
    def test_hand_computed(self):
        """Differences 0.1, 0.2, 0.3, 0.4 whose ranks are all on one side: p = 2 / 2^4."""
        got = paired_difference(flat([0.6, 0.6, 0.8, 0.8]), flat([0.5, 0.4, 0.5, 0.4], "random"))

        assert got.mean == pytest.approx(0.25)
        assert got.p == pytest.approx(0.125)
        assert got.pairs == 4
        assert got.low is not None
        assert got.high is not None
        assert 0.1 <= got.low < 0.25 < got.high <= 0.4

    def test_pairs_are_made_by_seed_not_by_place(self):
        """In the order given, the differences would be 0.3 and -0.1; by seed both are 0.1."""
        a = flat([0.6, 0.3])
        b = flat([0.5, 0.2], "random")[::-1]

        got = paired_difference(a, b)

        assert got.mean == got.low == got.high == pytest.approx(0.1)

    def test_a_run_that_ended_early_is_compared_over_its_own_part(self):
        """Until 30 labels both are equal; the rest of the longer one must not count."""
        got = paired_difference([curve([0.2, 0.4, 0.6])], [curve([0.2, 0.4, 0.6, 0.9, 0.9], strategy="random")])

        assert got == PairedDifference(mean=0.0, low=None, high=None, p=None, pairs=1)

    def test_one_seed_has_no_interval(self):
        got = paired_difference(flat([0.6]), flat([0.5], "random"))

        assert (got.low, got.high, got.p, got.pairs) == (None, None, 1.0, 1)

    def test_equal_curves_have_no_p(self):
        got = paired_difference(flat([0.6, 0.7]), flat([0.6, 0.7], "random"))

        assert got == PairedDifference(mean=0.0, low=0.0, high=0.0, p=None, pairs=2)

    def test_of_itself(self):
        assert paired_difference(flat([0.6, 0.7]), flat([0.6, 0.7])).mean == 0.0

    def test_interval_is_the_percentile_bootstrap(self):
        """Two pairs, 0 and 1: their resampled mean is 0, 1/2 or 1 with 1/4, 1/2, 1/4, so the interval is all of it."""
        got = paired_difference(flat([0.0, 1.0]), flat([0.0, 0.0], "random"))

        assert (got.low, got.high) == (0.0, 1.0)

    def test_interval_of_many_is_that_of_the_normal_distribution(self):
        """200 differences: mean ± 1.96 standard errors, within what 9,999 resamples can tell."""
        differences = np.random.default_rng(5).normal(0.3, 0.1, 200)
        got = paired_difference(flat(differences.tolist()), flat([0.0] * 200, "random"))
        error = differences.std() / np.sqrt(200)

        assert got.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
        assert got.high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)

    def test_seeded(self):
        a, b = flat([0.6, 0.3, 0.9]), flat([0.5, 0.45, 0.1], "random")

        assert paired_difference(a, b, seed=3) == paired_difference(a, b, seed=3)

    @given(HEIGHTS, HEIGHTS)
    @settings(deadline=None, max_examples=30)
    def test_agrees_with_scipy_and_turns_round(self, first, second):
        """Zeros and ties are common in heights of eighths."""
        a = [height / 8 for height in first]
        b = [height / 8 for height in (second * 8)[: len(a)]]
        got, back = (paired_difference(flat(x), flat(y, "random")) for x, y in ((a, b), (b, a)))
        differences = np.subtract(a, b)

        assert got.mean == pytest.approx(differences.mean(), abs=1e-12)
        assert got.low is not None
        assert got.high is not None
        assert differences.min() - 1e-12 <= got.low <= got.high <= differences.max() + 1e-12
        assert back.mean == pytest.approx(-got.mean, abs=1e-12)
        if differences.any():
            assert got.p == pytest.approx(stats.wilcoxon(a, b).pvalue)
            assert back.p == pytest.approx(got.p)
        else:
            assert got.p is back.p is None

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (flat([0.5, 0.5]), flat([0.5], "random"), "random has no run of seed 1: .* seed by seed"),
            (flat([0.5]), flat([0.5] * 3, "random"), "entropy has no run of seed 1, 2"),
            (flat([0.5]), flat([0.5] * 2), "entropy has no run of seed 1"),
            ([], flat([0.5], "random"), "got no run"),
            (flat([0.5]) + flat([0.5], "bald"), flat([0.5], "random"), "got entropy, bald"),
            (flat([0.5]) * 2, flat([0.5], "random"), "two curves"),
        ],
    )
    def test_refuses(self, a, b, message):
        with pytest.raises(ValueError, match=message):
            paired_difference(a, b)


class TestWinMatrix:
    def test_hand_computed(self):
        """Seed by seed: a > b, a > b, a = b, a < b; random loses to a always, and to b but for one tie."""
        runs = flat([0.9, 0.8, 0.5, 0.4], "a") + flat([0.1, 0.3, 0.5, 0.6], "b") + flat([0.1, 0.1, 0.1, 0.1], "random")
        got = win_matrix(runs)

        assert got.names == ("a", "b", "random")
        assert got.share.tolist() == [[0.5, 0.625, 1.0], [0.375, 0.5, 0.875], [0.0, 0.125, 0.5]]
        assert got.seeds == 4

    def test_one_seed_over_the_counts_that_all_have(self):
        """The second ended early: over its part the first leads, over all of the first it would lose."""
        got = win_matrix([curve([0.5, 0.5, 0.0, 0.0], strategy="a"), curve([0.4, 0.4], strategy="b")])

        assert got.share.tolist() == [[0.5, 1.0], [0.0, 0.5]]

    @given(HEIGHTS, HEIGHTS)
    @settings(deadline=None)
    def test_row_and_column_share_the_seeds(self, first, second):
        count = min(len(first), len(second))
        got = win_matrix(flat(first[:count], "a") + flat(second[:count], "b"))

        assert got.share + got.share.T == pytest.approx(np.ones((2, 2)))

    def test_refuses(self):
        with pytest.raises(ValueError, match="b has no run of seed 1"):
            win_matrix(flat([0.1, 0.2], "a") + flat([0.1], "b"))
        with pytest.raises(ValueError, match="at least one"):
            win_matrix([])
