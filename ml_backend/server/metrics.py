"""``/metrics``: counters and gauges for Prometheus, in a registry of the app's own."""

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from ml_backend.analytics import INSIGHT, RoundInsight
from ml_backend.analytics.overview import Analysis
from ml_backend.analytics.readers import ReaderAgreement
from ml_backend.errors import QueueError, StorageError
from ml_backend.scheduling import Progress, QueueStatus, RoundQueue
from ml_backend.schemas import FitReport
from ml_backend.server.status import ProjectStatus, statuses
from ml_backend.server.webhook import ACTIONS
from ml_backend.storage import ProjectStore, RoundStore, RoundSummary


class _Project(NamedTuple):
    """Sources of a project's metrics; None for those that it lacks or that cannot be read."""

    status: ProjectStatus
    queue: QueueStatus | None
    newest: RoundSummary | None
    fit: FitReport | None  # of the newest network
    pool: RoundInsight | None
    readers: ReaderAgreement | None

    @property
    def progress(self) -> Progress | None:
        return self.queue.progress if self.queue is not None and self.queue.running is not None else None

    @property
    def computed(self) -> dict[str, Any]:
        """Values that are not an attribute of a source."""
        status, queue, progress, published = self.status, self.queue, self.progress, self.status.published
        # Saving and publishing follow the report; the publisher times itself.
        publishing = {} if published is None else {f"publish_{step}": s for step, s in published.seconds.items()}
        return {
            "rounds": queue and {"published": queue.rounds_finished, "failed": queue.rounds_failed},
            "done": progress and {progress.stage: progress.done},
            "steps": progress and {progress.stage: progress.total},
            "failures": queue and (queue.failures if queue.failing else 0),
            "paused": status.paused is not None,
            "configuration_usable": status.mistake is None,
            "label_studio_readable": status.unreadable is None,
            "stage_seconds": ({} if status.newest is None else dict(status.newest.seconds)) | publishing,
            "published_at": published and published.published_at.timestamp(),
            "published_images": published and len(published.image_ids),
            "quarantined": len(status.quarantined),
            "reader_count": self.readers and len(self.readers.readers),
            "reader_kappa": self.readers and self.readers.kappa and self.readers.kappa.value,
            "newest_at": self.newest and self.newest.began.timestamp(),
        }


class _Metric(NamedTuple):
    """One metric of every project; a value that is None, or whose source is None, is left out.

    Attributes:
        name: without the suffix ``_total`` of a counter.
        value: field of ``_Project`` and attribute of it, or key of ``_Project.computed``.
        help: of the metric.
        label: in addition to ``project``; the value is then a mapping.
    """

    name: str
    value: str
    help: str
    label: str | None = None


COUNTER: Final = "al_rounds"
METRICS: Final = (
    _Metric("al_changes", "queue.changes", "Changed annotations since the last round"),
    _Metric(
        "al_changes_threshold", "queue.threshold", "Changed annotations that start a round; 0: none starts by itself"
    ),
    _Metric(COUNTER, "rounds", "Rounds that ended", "outcome"),
    _Metric("al_round_progress_done", "done", "Finished steps of the running round's stage", "stage"),
    _Metric("al_round_progress_steps", "steps", "Steps of the running round's stage", "stage"),
    _Metric("al_round_started_timestamp_seconds", "progress.started", "When the running round began"),
    _Metric("al_failed_rounds_in_a_row", "failures", "Rounds that failed in a row"),
    _Metric("al_next_attempt_timestamp_seconds", "queue.next_attempt", "When a failed round is retried"),
    _Metric("al_paused", "paused", "1 if the owner has paused the rounds, else 0"),
    _Metric(
        "al_configuration_usable", "configuration_usable", "1 if a round can read label config and options, else 0"
    ),
    _Metric(
        "al_label_studio_readable", "label_studio_readable", "1 if the last comparison could read Label Studio, else 0"
    ),
    _Metric("al_last_round_seconds", "stage_seconds", "Wall time of the last round's stages", "stage"),
    _Metric("al_published_timestamp_seconds", "published_at", "When the served order was published"),
    _Metric("al_published_images", "published_images", "Images in the served order"),
    _Metric("al_quarantined_images", "quarantined", "Images that rounds leave out because they cannot be read"),
    _Metric("al_readers", "reader_count", "Readers with an answer"),
    _Metric("al_reader_kappa", "reader_kappa", "Agreement over all pairs of readers: Cohen's kappa, at most 1"),
    _Metric("al_images_read_twice", "readers.images", "Images that two or more readers gave a class"),
    _Metric(
        "al_images_to_adjudicate", "readers.disputed", "Images to decide: readers are far apart, and no ground truth"
    ),
    _Metric("al_newest_round_timestamp_seconds", "newest_at", "When the newest saved round began"),
    _Metric(
        "al_labels", "newest.labels_per_class", "Images with a label of the class when the newest round began", "class"
    ),
    _Metric("al_disputed_labels", "newest.disputed", "Labels of the newest round on which readers disagree"),
    _Metric(
        "al_labels_wanted_per_class", "newest.min_labels_per_class", "Labels that two classes need before a training"
    ),
    _Metric(
        "al_validation_images", "fit.validation_images", "Labelled images that the newest network was validated on"
    ),
    _Metric("al_validation_accuracy_ratio", "fit.validation_accuracy", "Its accuracy on the validation images"),
    _Metric("al_validation_auroc_ratio", "fit.validation_auroc", "Area under its ROC curve on the validation images"),
    _Metric(
        "al_validation_recall_ratio",
        "fit.validation_recall",
        "Its recall of the class on the validation images",
        "class",
    ),
    _Metric("al_pool_images", "pool.images", "Unlabelled images that the newest network has scored"),
    _Metric("al_pool_expected_ratio", "pool.expected", "Estimated share of the class among them", "class"),
)


class Metrics:
    """The metrics of one app.

    Args:
        store: read at every scrape.
        queue: read at every scrape.
    """

    def __init__(self, store: RoundStore, queue: RoundQueue) -> None:
        self.registry = CollectorRegistry()
        self._webhooks = Counter("al_webhooks", "Events that Label Studio sent", ["action"], registry=self.registry)
        self.registry.register(_Collector(store, queue))

    def count_webhook(self, action: str) -> None:
        """Count an event. Unknown actions share a label: a label each would fill the memory."""
        self._webhooks.labels(action=action if action in ACTIONS else "other").inc()


class _Collector(Collector):
    def __init__(self, store: RoundStore, queue: RoundQueue) -> None:
        self._store = store
        self._queue = queue

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: without this, registering would already ask Redis."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily]:
        projects = [self._read(status) for status in statuses(self._store, self._queue, analysed=False)]
        yield InfoMetricFamily(
            "al_build",
            "Version of this backend and of the Python that runs it",
            {"version": version("label-studio-active-learning"), "python": platform.python_version()},
        )
        yield GaugeMetricFamily("al_projects", "Projects that are connected", value=len(projects))
        unreadable = sum(project.queue is None for project in projects)
        yield GaugeMetricFamily("al_unreadable_projects", "Projects whose state cannot be read", value=unreadable)
        rounds = GaugeMetricFamily("al_queue_rounds", "Rounds that wait or run", labels=["state"])
        for state in ("waiting", "running"):
            count = sum(getattr(project.queue, state, None) is not None for project in projects)
            rounds.add_metric([state], count)
        yield rounds
        for metric in METRICS:
            yield _family(metric, projects)
        try:
            yield GaugeMetricFamily("al_workers", "Workers that are alive", value=self._queue.workers())
        except QueueError:
            return  # al_unreadable_projects shows it

    def _read(self, status: ProjectStatus) -> _Project:
        project = self._store.project(status.connection.project)
        rounds = project.summaries()[0]
        return _Project(
            status=status,
            queue=status.queue if status.problem is None else None,
            newest=rounds[-1] if rounds else None,
            fit=next((one.fit for one in reversed(rounds) if one.fit), None),
            pool=_newest_insight(project),
            # Never computed here: the reconciler renews it within a minute.
            readers=analysis.readers if (analysis := project.readings.analysis(Analysis)) else None,
        )


def _newest_insight(project: ProjectStore) -> RoundInsight | None:
    rounds = project.rounds_with(INSIGHT)
    try:
        return project.cached_record(rounds[-1], INSIGHT, RoundInsight) if rounds else None
    except StorageError:
        return None


def _family(metric: _Metric, projects: Iterable[_Project]) -> GaugeMetricFamily | CounterMetricFamily:
    labels = ["project"] if metric.label is None else ["project", metric.label]
    make = CounterMetricFamily if metric.name == COUNTER else GaugeMetricFamily
    family: GaugeMetricFamily | CounterMetricFamily = make(metric.name, metric.help, labels=labels)
    source, _, attribute = metric.value.partition(".")
    for project in projects:
        key = str(project.status.connection.project)
        value = getattr(getattr(project, source), attribute, None) if attribute else project.computed[source]
        values = {(key, name): one for name, one in value.items()} if isinstance(value, Mapping) else {(key,): value}
        for label_values, one in values.items():
            if one is not None:
                family.add_metric(list(label_values), one)
    return family
