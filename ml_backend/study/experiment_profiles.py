"""How much more a profile gives for the same labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ml_backend.simulation.compare import paired_difference
from ml_backend.simulation.curves import LearningCurve, by_name
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.study.experiment_reading import Finished, Reading, interval, is_no_luck, known, needed_words, p_words
from ml_backend.study.report_curves import curves_of
from ml_backend.study.report_words import difference_words
from ml_backend.study.rows import StudyResults

__all__ = ["BEST", "PAPER", "read_profiles"]

PAPER: Final = "paper"
BEST: Final = "best"

Metric = Callable[[RoundMetrics], float | None]


def read_profiles(finished: Sequence[Finished]) -> Reading:
    """Both profiles against each other, seed by seed; both are held to the paper's baselines.

    Args:
        finished: one study of each profile, on the same tables and seeds.
    """
    studies = {one.arm.options.profile: one.results for one in finished}
    paper, best = studies[PAPER], studies[BEST]
    found, surprises = [], []
    for name, metric in (("AU ROC", _auroc_of_rows), ("Accuracy", _accuracy)):
        ours, theirs = (_by_strategy(study, metric) for study in (best, paper))
        for strategy in paper.summary.strategies:
            gain = paired_difference(ours[strategy], theirs[strategy])
            told = f"{difference_words(gain)}, {p_words(gain)}"
            found.append(f"{name} over the curve, {strategy}, best minus paper: {told}.")
            if metric is _auroc_of_rows and not is_no_luck(gain):
                surprises.append(f"with {strategy}, best is not ahead of paper in AU ROC by more than luck")
    found.append(
        "All labels: AU ROC "
        + ", ".join(
            f"{interval([known(row.metrics.auroc) for row in study.baselines])} {name}"
            for name, study in studies.items()
        )
        + "; accuracy "
        + ", ".join(
            f"{interval([row.metrics.accuracy for row in study.baselines])} {name}" for name, study in studies.items()
        )
        + "."
    )
    accuracy, area = (
        {name: needed_words(study, metric, target, judge=paper) for name, study in studies.items()}
        for metric, target in ((_accuracy, "95 % of the baseline"), (_auroc_of_rows, "baseline - 1 point"))
    )
    rows = tuple(
        (profile, strategy, accuracy[profile][strategy], area[profile][strategy])
        for strategy in paper.summary.strategies
        for profile in studies
    )
    columns = (
        "profile",
        "strategy",
        "labels for 95 % of the paper's baseline accuracy",
        "labels for the paper's baseline AU ROC - 1 point",
    )
    return Reading(tuple(found), columns, rows, tuple(surprises))


def _accuracy(metrics: RoundMetrics) -> float:
    return metrics.accuracy


def _auroc_of_rows(metrics: RoundMetrics) -> float | None:
    return metrics.auroc


def _by_strategy(study: StudyResults, metric: Metric) -> Mapping[str, list[LearningCurve]]:
    curves = curves_of(study, lambda row: metric(row.metrics))
    return {name: list(runs.values()) for name, runs in by_name(curves).items()}
