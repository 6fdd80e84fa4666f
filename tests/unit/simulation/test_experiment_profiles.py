"""Two profiles held against each other, on results that were made by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ml_backend.simulation.experiments import BEST, PAPER, Arm, Finished, read_profiles
from ml_backend.simulation.options import SimulateOptions
from ml_backend.simulation.run_log import RoundRow, StudyResults
from tests.unit.simulation.drawn_results import drawn_results


def study(auroc: Callable[[RoundRow], float]) -> StudyResults:
    """Ten seeds; baselines at 0.9 accuracy and AU ROC."""
    results = drawn_results(("random", "entropy"), seeds=10)
    at_the_end = {"accuracy": 0.9, "auroc": 0.9}
    return replace(
        results,
        rounds=tuple(
            row.model_copy(
                update={"metrics": row.metrics.model_copy(update={"auroc": auroc(row), "accuracy": auroc(row)})}
            )
            for row in results.rounds
        ),
        baselines=tuple(
            row.model_copy(update={"metrics": row.metrics.model_copy(update=at_the_end)}) for row in results.baselines
        ),
    )


def finished(profile: str, results: StudyResults) -> Finished:
    options = SimulateOptions(labels=Path("labels.csv"), out=Path("out"), profile=profile)
    return Finished(Arm(profile, profile, options), results)


class TestReadProfiles:
    def test_ahead_in_every_seed_is_as_expected(self):
        """0.02 above, everywhere: the interval is a point, and Wilcoxon's p of ten signs alike is 2 / 2**10."""
        paper, best = study(lambda row: 0.7 + 0.01 * row.round), study(lambda row: 0.72 + 0.01 * row.round)

        reading = read_profiles([finished(PAPER, paper), finished(BEST, best)])

        assert reading.surprises == ()
        assert reading.found[0].startswith("AU ROC over the curve, random, best minus paper: +0.020")
        assert reading.found[0].endswith("p = 0.002.")
        assert [row[:2] for row in reading.rows] == [
            ("paper", "random"),
            ("best", "random"),
            ("paper", "entropy"),
            ("best", "entropy"),
        ]

    def test_level_or_behind_is_told(self):
        paper, best = study(lambda row: 0.7 + 0.01 * row.round), study(lambda row: 0.69 + 0.01 * row.round)

        level, behind = (
            read_profiles([finished(PAPER, paper), finished(BEST, other)]).surprises for other in (paper, best)
        )

        assert level == behind
        assert behind == tuple(
            f"with {strategy}, best is not ahead of paper in AU ROC by more than luck"
            for strategy in ("random", "entropy")
        )

    def test_labels_needed_are_held_to_the_papers_baselines(self):
        """Both reach 0.855, 95 % of the paper's 0.9; the better baseline of ``best`` is out of reach and not asked."""
        paper = study(lambda row: 0.8 + 0.02 * row.round)
        best = study(lambda row: 0.8 + 0.02 * row.round)
        unreachable = {"accuracy": 0.999, "auroc": 0.999}
        best = replace(
            best,
            baselines=tuple(
                row.model_copy(update={"metrics": row.metrics.model_copy(update=unreachable)}) for row in best.baselines
            ),
        )

        reading = read_profiles([finished(PAPER, paper), finished(BEST, best)])

        assert reading.rows[0][2:] == reading.rows[1][2:]
        assert "never" not in reading.rows[1][2]
