"""What the rounds have learned, for ``/metrics``: labels, how good the network is, what it says of the pool."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily

from ml_backend.errors import StorageError
from ml_backend.insight import INSIGHT, RoundInsight
from ml_backend.insight.lines import Remembered, RoundLine, RoundLines
from ml_backend.records import FitReport
from ml_backend.server.status import ProjectStatus
from ml_backend.storage import ProjectStore, RoundStore

__all__ = ["LearningMetrics"]

KEPT_POOLS = 200  # projects whose pool is remembered


class _Pool(NamedTuple):
    """What is told of a round's insight: all but its images."""

    images: int
    expected: dict[str, float]


class LearningMetrics:
    """Reads each round once.

    Args:
        store: of the installation.
        lines: what this process remembers of the rounds.
    """

    def __init__(self, store: RoundStore, lines: RoundLines) -> None:
        self._store = store
        self._lines = lines
        self._pools: Remembered[_Pool | None] = Remembered(KEPT_POOLS)

    def collect(self, found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
        """The families of all projects; a round that is damaged is left out."""
        rounds = {
            str(status.connection.project): self._lines.of(self._store.project(status.connection.project))[0]
            for status in found
        }
        yield from _round_metrics(rounds)
        trained = {
            project: fit
            for project, lines in rounds.items()
            if (fit := next((line.fit for line in reversed(lines) if line.fit), None)) is not None
        }
        yield from _validation_metrics(trained)
        pools = {
            str(status.connection.project): self._pool(self._store.project(status.connection.project))
            for status in found
        }
        yield from _pool_metrics({project: pool for project, pool in pools.items() if pool is not None})

    def _pool(self, project: ProjectStore) -> _Pool | None:
        """Of the newest round that has one."""
        path = next(iter(sorted(project.folder.glob(f"rounds/r*/{INSIGHT}.json"), reverse=True)), None)
        if path is None:
            return None
        try:
            status = path.stat()
            state = (path, status.st_mtime_ns, status.st_size)
            if (known := self._pools.get(project.folder, state)) is not None:
                return known
            insight = project.record(path.parent.name, INSIGHT, RoundInsight)
        except (StorageError, OSError):
            return None
        pool = None if insight is None else _Pool(insight.images, insight.expected)
        return self._pools.put(project.folder, state, pool)


def _round_metrics(rounds: dict[str, list[RoundLine]]) -> Iterator[GaugeMetricFamily]:
    last = {project: lines[-1] for project, lines in rounds.items() if lines}
    yield _by_project(
        "al_newest_round_timestamp_seconds",
        "When the newest round that was saved began",
        {project: line.report.started_at.timestamp() for project, line in last.items()},
    )
    yield _by_class(
        "al_labels",
        "Images with a label of the class when the newest round began",
        {project: line.labels_per_class for project, line in last.items()},
    )
    yield _by_project(
        "al_disputed_labels",
        "Labels of the newest round on which readers disagree",
        {project: line.disputed for project, line in last.items()},
    )
    yield _by_project(
        "al_labels_wanted_per_class",
        "Labels that every class needs before a network is trained",
        {project: line.min_labels_per_class for project, line in last.items()},
    )


def _validation_metrics(trained: dict[str, FitReport]) -> Iterator[GaugeMetricFamily]:
    """Of each project's newest network; what validation could not tell is left out."""
    yield _by_project(
        "al_validation_images",
        "Labelled images that the newest network was validated on",
        {project: fit.validation_images for project, fit in trained.items()},
    )
    yield _by_project(
        "al_validation_accuracy_ratio",
        "Share of the validation images that it gets right",
        {project: fit.validation_accuracy for project, fit in trained.items()},
    )
    yield _by_project(
        "al_validation_auroc_ratio",
        "Area under its ROC curve on the validation images",
        {project: fit.validation_auroc for project, fit in trained.items()},
    )
    yield _by_class(
        "al_validation_recall_ratio",
        "Share of the validation images of a class that it gets right",
        {project: fit.validation_recall for project, fit in trained.items()},
    )


def _pool_metrics(pools: dict[str, _Pool]) -> Iterator[GaugeMetricFamily]:
    yield _by_project(
        "al_pool_images",
        "Unlabelled images that the newest network has looked at",
        {project: pool.images for project, pool in pools.items()},
    )
    yield _by_class(
        "al_pool_expected_ratio",
        "Share of the class among the unlabelled images, as the newest network estimates it",
        {project: pool.expected for project, pool in pools.items()},
    )


def _by_project(name: str, told: str, values: Mapping[str, float | None]) -> GaugeMetricFamily:
    """A gauge with one value a project; None is left out."""
    gauge = GaugeMetricFamily(name, told, labels=["project"])
    for project, value in values.items():
        if value is not None:
            gauge.add_metric([project], value)
    return gauge


def _by_class(name: str, told: str, values: Mapping[str, Mapping[str, float | None]]) -> GaugeMetricFamily:
    """A gauge with one value a class of each project; None is left out."""
    gauge = GaugeMetricFamily(name, told, labels=["project", "class"])
    for project, by_class in values.items():
        for one, value in by_class.items():
            if value is not None:
                gauge.add_metric([project, one], value)
    return gauge
