"""What a study's learning curves say, metric by metric: bands, labels needed, areas, differences from random, wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ml_backend.simulation.compare import (
    LabelsNeeded,
    PairedDifference,
    Spread,
    WinMatrix,
    labels_needed_table,
    paired_difference,
    win_matrix,
)
from ml_backend.simulation.curves import Band, LearningCurve, area_under, band, by_name, shared_labels
from ml_backend.study.report_curves import Metric, curves_of
from ml_backend.study.rows import StudyResults

__all__ = ["RANDOM", "Areas", "MetricAnswer", "answer", "bands_of", "in_pairs"]

RANDOM: Final = "random"


@dataclass(frozen=True, slots=True)
class Areas:
    """Areas under the learning curves of one metric, all over the same label counts.

    Attributes:
        first, last: the counts that they are taken between, which every run has.
        by_name: over the seeds.
    """

    first: int
    last: int
    by_name: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class MetricAnswer:
    """One metric of a study.

    Attributes:
        metric: which.
        curves: one a run.
        bands: by name.
        baselines: what all labels reach, by variant and seed; only where it is defined.
        needed: labels needed, of the runs that have a baseline; by name, then by target.
        areas: None where the runs share no label count.
        against_random: by name: of the area under the curve, over the seeds that the strategy and ``random`` of its
            variant have in common; no entry for ``random`` itself, and where there is none.
        wins: over the seeds that all names have; None where that is no seed, or there is one name only.
    """

    metric: Metric
    curves: tuple[LearningCurve, ...]
    bands: Mapping[str, Band]
    baselines: Mapping[tuple[str, int], float]
    needed: tuple[LabelsNeeded, ...]
    areas: Areas | None
    against_random: Mapping[str, PairedDifference]
    wins: WinMatrix | None

    @property
    def names(self) -> tuple[str, ...]:
        """Strategy, and variant where there is one, in the order of the study."""
        return tuple(by_name(self.curves))

    def needed_for(self, name: str, target: str) -> LabelsNeeded | None:
        """One row of the table; None where no run of this name has a baseline."""
        return next((row for row in self.needed if (row.name, row.target) == (name, target)), None)

    def baseline_of(self, variant: str) -> float | None:
        """Median over the seeds."""
        values = [value for (of, _), value in self.baselines.items() if of == variant]
        return float(np.median(values)) if values else None


def answer(metric: Metric, results: StudyResults) -> MetricAnswer:
    """Everything that is said about one metric.

    Args:
        metric: where lower is better, only curves, bands and baselines are given.
        results: finished runs, at least one in which the metric is defined.
    """
    curves = curves_of(results, lambda row: metric.of(row.metrics))
    baselines = {
        (row.variant, row.seed): value for row in results.baselines if (value := metric.of(row.metrics)) is not None
    }
    compared = curves if metric.higher_is_better else ()
    with_baseline = [curve for curve in compared if (curve.variant, curve.seed) in baselines]
    return MetricAnswer(
        metric=metric,
        curves=curves,
        bands=bands_of(curves),
        baselines=baselines,
        needed=labels_needed_table(with_baseline, baselines),
        areas=_areas(compared),
        against_random={name: paired_difference(*pair) for name, pair in in_pairs(compared).items()},
        wins=_wins(compared),
    )


def bands_of(curves: Sequence[LearningCurve]) -> dict[str, Band]:
    """Bands by name; none for a name whose runs share no label count."""
    found = {}
    for name, runs in by_name(curves).items():
        if _share_labels(list(runs.values())):
            found[name] = band(list(runs.values()))
    return found


def in_pairs(curves: Sequence[LearningCurve]) -> dict[str, tuple[list[LearningCurve], list[LearningCurve]]]:
    """Runs of every strategy with those of ``random`` of the same variant and seeds.

    A seed that one side lacks is left out, and so is one in which the two share no label count.
    """
    chance = {(curve.variant, curve.seed): curve for curve in curves if curve.strategy == RANDOM}
    found = {}
    for name, runs in by_name(curves).items():
        pairs = [
            (curve, other)
            for curve in runs.values()
            if curve.strategy != RANDOM
            and (other := chance.get((curve.variant, curve.seed))) is not None
            and _share_labels((curve, other))
        ]
        if pairs:
            found[name] = ([curve for curve, _ in pairs], [other for _, other in pairs])
    return found


def _share_labels(curves: Sequence[LearningCurve]) -> bool:
    return bool(set.intersection(*(set(curve.labels.tolist()) for curve in curves)))


def _areas(curves: Sequence[LearningCurve]) -> Areas | None:
    if not curves or not _share_labels(curves):
        return None
    labels = shared_labels(curves)
    spreads = {}
    for name, runs in by_name(curves).items():
        q25, median, q75 = np.quantile([area_under(curve, labels) for curve in runs.values()], (0.25, 0.5, 0.75))
        spreads[name] = Spread(median=median, q25=q25, q75=q75)
    return Areas(first=int(labels[0]), last=int(labels[-1]), by_name=spreads)


def _wins(curves: Sequence[LearningCurve]) -> WinMatrix | None:
    grouped = by_name(curves)
    if len(grouped) < 2:
        return None
    common = set.intersection(*(set(runs) for runs in grouped.values()))
    seeds = [seed for seed in sorted(common) if _share_labels([runs[seed] for runs in grouped.values()])]
    return win_matrix([runs[seed] for runs in grouped.values() for seed in seeds]) if seeds else None
