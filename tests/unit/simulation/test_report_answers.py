"""What is said about a metric: over which runs, and what is left out where runs are missing."""

from dataclasses import replace

import numpy as np
import pytest

from ml_backend.simulation.analysis import LearningCurve, band, paired_difference
from ml_backend.simulation.report import Metric, answer, bands_of, in_pairs, metrics_of
from tests.unit.simulation.drawn_results import drawn_metrics, drawn_results

ACCURACY: Metric = metrics_of(drawn_results())[0]


def curve(strategy: str, seed: int, labels: tuple[int, ...] = (10, 20), variant: str = "") -> LearningCurve:
    return LearningCurve(strategy, seed, np.array(labels), np.full(len(labels), 0.5), 100, variant)


class TestBandsOf:
    def test_none_where_runs_share_no_label_count(self):
        curves = [curve("random", 0), curve("random", 1), curve("bald", 0), curve("bald", 1, (15, 25))]

        assert list(bands_of(curves)) == ["random"]


class TestInPairs:
    def test_a_seed_that_one_side_lacks_is_left_out(self):
        curves = [curve("entropy", 0), curve("entropy", 2), curve("random", 0), curve("random", 1)]
        [(ours, chance)] = in_pairs(curves).values()

        assert [one.seed for one in ours] == [one.seed for one in chance] == [0]

    def test_a_variant_is_held_against_its_own_random(self):
        curves = [curve("entropy", 0, variant="weighted"), curve("random", 0, variant="unweighted")]

        assert in_pairs(curves) == {}

    def test_every_variant_has_its_own(self):
        curves = [
            curve(strategy, 0, variant=variant)
            for strategy in ("entropy", "random")
            for variant in ("weighted", "plain")
        ]
        found = in_pairs(curves)

        assert list(found) == ["entropy, weighted", "entropy, plain"]
        assert all(ours[0].variant == chance[0].variant for ours, chance in found.values())

    def test_a_pair_without_a_label_count_in_common_is_left_out(self):
        assert in_pairs([curve("entropy", 0), curve("random", 0, (15, 25))]) == {}


class TestAnswer:
    def test_everything_about_a_metric(self):
        results = drawn_results(rounds=8)
        one = answer(ACCURACY, results)

        assert one.names == ("random", "entropy", "mean_std")
        assert len(one.needed) == 9
        assert one.areas is not None
        assert (one.areas.first, one.areas.last) == (75, 215)
        assert set(one.against_random) == {"entropy", "mean_std"}
        assert one.wins is not None
        assert one.wins.seeds == 3
        assert one.baseline_of("") == pytest.approx(0.804)
        assert one.baseline_of("weighted") is None

    def test_a_metric_that_is_better_low_is_drawn_and_not_compared(self):
        one = answer(metrics_of(drawn_results())[-1], drawn_results())

        assert set(one.bands) == {"random", "entropy", "mean_std"}
        assert (one.needed, one.areas, one.wins) == ((), None, None)

    def test_agrees_with_the_statistics_that_it_is_made_of(self):
        one = answer(ACCURACY, drawn_results(rounds=8))
        entropy, chance = ([c for c in one.curves if c.strategy == name] for name in ("entropy", "random"))

        assert one.against_random["entropy"] == paired_difference(entropy, chance)
        assert one.bands["entropy"].median.tolist() == band(entropy).median.tolist()

    def test_areas_are_medians_and_quartiles_of_the_runs(self):
        """Three runs, flat at 0.2, 0.4 and 0.8."""
        results = drawn_results(("random",), seeds=3)
        heights = (0.2, 0.4, 0.8)
        rows = [
            row.model_copy(update={"metrics": drawn_metrics(heights[row.seed], results.summary.classes)})
            for row in results.rounds
        ]
        areas = answer(ACCURACY, replace(results, rounds=tuple(rows))).areas
        assert areas is not None

        found = areas.by_name["random"]
        assert (found.q25, found.median, found.q75) == pytest.approx((0.3, 0.4, 0.6))

    def test_runs_without_a_baseline_have_no_labels_needed(self):
        results = drawn_results(("random", "entropy"))
        one = answer(ACCURACY, replace(results, baselines=results.baselines[:2]))

        assert {row.runs for row in one.needed} == {2}
        assert answer(ACCURACY, replace(results, baselines=())).needed == ()

    def test_no_wins_without_a_seed_that_all_ran(self):
        results = drawn_results(("random", "entropy"), seeds=2)
        rows = [row for row in results.rounds if (row.strategy == "random") == (row.seed == 0)]
        one = answer(ACCURACY, replace(results, rounds=tuple(rows)))

        assert one.wins is None
        assert one.against_random == {}
        assert one.areas is not None
