"""What the rounds have learned, for ``/metrics``: labels, how good the network is, what it says of the pool.

``/metrics``: counters and gauges for Prometheus, in a registry of the app's own.
"""

import platform
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from ml_backend.analytics import INSIGHT, RoundInsight
from ml_backend.errors import QueueError, StorageError
from ml_backend.scheduling import RoundQueue
from ml_backend.schemas import FitReport
from ml_backend.server.status import ProjectStatus, statuses
from ml_backend.server.webhook import ACTIONS
from ml_backend.storage import ProjectStore, RoundStore, RoundSummary


def learning_metrics(store: RoundStore, found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
    """The families of all projects; a round that is damaged is left out."""
    projects = {str(status.connection.project): store.project(status.connection.project) for status in found}
    rounds = {name: project.summaries()[0] for name, project in projects.items()}
    yield from _round_metrics(rounds)
    trained = {
        name: fit
        for name, found_rounds in rounds.items()
        if (fit := next((one.fit for one in reversed(found_rounds) if one.fit), None)) is not None
    }
    yield from _validation_metrics(trained)
    insights = {name: _newest_insight(project) for name, project in projects.items()}
    yield from _pool_metrics({name: insight for name, insight in insights.items() if insight is not None})


def _newest_insight(project: ProjectStore) -> RoundInsight | None:
    rounds = project.rounds_with(INSIGHT)
    try:
        return project.cached_record(rounds[-1], INSIGHT, RoundInsight) if rounds else None
    except StorageError:
        return None


def _round_metrics(rounds: dict[str, list[RoundSummary]]) -> Iterator[GaugeMetricFamily]:
    last = {project: lines[-1] for project, lines in rounds.items() if lines}
    yield _by_project(
        "al_newest_round_timestamp_seconds",
        "When the newest round that was saved began",
        {project: line.began.timestamp() for project, line in last.items()},
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


def _pool_metrics(pools: dict[str, RoundInsight]) -> Iterator[GaugeMetricFamily]:
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


Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily


class Metrics:
    """The figures of one app.

    Args:
        store: read at every scrape.
        queue: read at every scrape.
    """

    def __init__(self, store: RoundStore, queue: RoundQueue) -> None:
        self.registry = CollectorRegistry()
        self._webhooks = Counter("al_webhooks", "Events that Label Studio sent", ["action"], registry=self.registry)
        self.registry.register(_Projects(store, queue))

    def count_webhook(self, action: str) -> None:
        # Anybody may send any action: a label of its own for each would fill the memory.
        self._webhooks.labels(action=action if action in ACTIONS else "other").inc()


class _Projects(Collector):
    """What store and queue say at the moment of the scrape."""

    def __init__(self, store: RoundStore, queue: RoundQueue) -> None:
        self._store = store
        self._queue = queue

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: without this, registering would already ask Redis."""
        return ()

    def collect(self) -> Iterator[Family]:
        found = statuses(self._store, self._queue, analysed=False)
        yield InfoMetricFamily(
            "al_build",
            "Version of this backend and of the Python that runs it",
            {"version": version("label-studio-active-learning"), "python": platform.python_version()},
        )
        yield GaugeMetricFamily("al_projects", "Projects that are connected", value=len(found))
        yield GaugeMetricFamily(
            "al_unreadable_projects",
            "Projects whose state cannot be read",
            value=sum(status.problem is not None for status in found),
        )
        readable = [status for status in found if status.problem is None]
        yield from _queue_metrics(readable)
        yield from _progress_metrics(readable)
        yield from _failure_metrics(readable)
        yield from _project_metrics(found)
        yield from _order_metrics(found)
        yield from learning_metrics(self._store, found)
        yield from self._worker_metrics()

    def _worker_metrics(self) -> Iterator[GaugeMetricFamily]:
        try:
            yield GaugeMetricFamily("al_workers", "Workers that are alive", value=self._queue.workers())
        except QueueError:
            return  # the projects say so already


def _queue_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    depth = Tally(
        waiting=sum(s.queue.waiting is not None for s in found), running=sum(s.queue.running is not None for s in found)
    )
    queue = GaugeMetricFamily("al_queue_rounds", "Rounds that wait or run", labels=["state"])
    for state, count in depth.items():
        queue.add_metric([state], count)
    yield queue
    changes = GaugeMetricFamily("al_changes", "Changed annotations since the last round", labels=["project"])
    threshold = GaugeMetricFamily(
        "al_changes_threshold", "Changed annotations that start a round; 0: none starts by itself", labels=["project"]
    )
    rounds = CounterMetricFamily("al_rounds", "Rounds that ended", labels=["project", "outcome"])
    for status in found:
        project = str(status.connection.project)
        changes.add_metric([project], status.queue.changes)
        threshold.add_metric([project], status.queue.threshold)
        rounds.add_metric([project, "published"], status.queue.rounds_finished)
        rounds.add_metric([project, "failed"], status.queue.rounds_failed)
    yield changes
    yield threshold
    yield rounds


def _progress_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
    """Of rounds that run; none where none does."""
    done = GaugeMetricFamily(
        "al_round_progress_done", "Steps that the running round has done of its stage", labels=["project", "stage"]
    )
    steps = GaugeMetricFamily(
        "al_round_progress_steps", "Steps of the running round's stage, done or not", labels=["project", "stage"]
    )
    started = GaugeMetricFamily(
        "al_round_started_timestamp_seconds", "When the running round began", labels=["project"]
    )
    for status in found:
        progress, project = status.queue.progress, str(status.connection.project)
        if progress is None or status.queue.running is None:
            continue
        done.add_metric([project, progress.stage], progress.done)
        steps.add_metric([project, progress.stage], progress.total)
        started.add_metric([project], progress.started)
    yield done
    yield steps
    yield started


def _failure_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
    failures = GaugeMetricFamily("al_failed_rounds_in_a_row", "Rounds that failed in a row", labels=["project"])
    attempts = GaugeMetricFamily(
        "al_next_attempt_timestamp_seconds", "When a failed round is tried again", labels=["project"]
    )
    for status in found:
        project = str(status.connection.project)
        failures.add_metric([project], status.queue.failures if status.queue.failing else 0)
        if status.queue.next_attempt is not None:
            attempts.add_metric([project], status.queue.next_attempt)
    yield failures
    yield attempts


def _project_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
    """What its owner or an operator has to see to."""
    paused = GaugeMetricFamily("al_paused", "1 where the owner holds the rounds, else 0", labels=["project"])
    usable = GaugeMetricFamily(
        "al_configuration_usable",
        "1 where the next round can read label config and options, else 0",
        labels=["project"],
    )
    readable = GaugeMetricFamily(
        "al_label_studio_readable", "1 where Label Studio could be read when last looked at, else 0", labels=["project"]
    )
    for status in found:
        project = str(status.connection.project)
        paused.add_metric([project], status.paused is not None)
        usable.add_metric([project], status.mistake is None)
        readable.add_metric([project], status.unreadable is None)
    yield paused
    yield usable
    yield readable


def _order_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
    seconds = GaugeMetricFamily(
        "al_last_round_seconds", "Wall time of the last round's stages", labels=["project", "stage"]
    )
    published = GaugeMetricFamily(
        "al_published_timestamp_seconds", "When the order that is served was published", labels=["project"]
    )
    images = GaugeMetricFamily("al_published_images", "Images in the order that is served", labels=["project"])
    unreadable = GaugeMetricFamily(
        "al_quarantined_images", "Images that rounds leave out because they cannot be read", labels=["project"]
    )
    for status in found:
        project = str(status.connection.project)
        if status.published:
            published.add_metric([project], status.published.published_at.timestamp())
            images.add_metric([project], len(status.published.image_ids))
        stages = dict(status.newest.seconds) if status.newest else {}
        # Saving and publishing come after the report is written; the publisher times them itself.
        stages |= {f"publish_{step}": s for step, s in (status.published.seconds if status.published else {}).items()}
        for stage, value in stages.items():
            seconds.add_metric([project, stage], value)
        unreadable.add_metric([project], len(status.quarantined))
    yield seconds
    yield published
    yield images
    yield unreadable
