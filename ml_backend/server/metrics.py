"""``/metrics``: counters and gauges for Prometheus, in a registry of the app's own."""

from collections import Counter as Tally
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ml_backend.errors import QueueError
from ml_backend.queueing import RoundQueue
from ml_backend.server.events import ACTIONS
from ml_backend.server.status import ProjectStatus, statuses
from ml_backend.storage import RoundStore

__all__ = ["Metrics"]


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

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        found = statuses(self._store, self._queue)
        yield _gauge(
            "al_unreadable_projects", "Projects whose state cannot be read", sum(s.problem is not None for s in found)
        )
        readable = [status for status in found if status.problem is None]
        yield from _queue_metrics(readable)
        yield from _failure_metrics(readable)
        yield from _round_metrics(found)
        yield from self._worker_metrics()

    def _worker_metrics(self) -> Iterator[GaugeMetricFamily]:
        try:
            yield _gauge("al_workers", "Workers that are alive", self._queue.workers())
        except QueueError:
            return  # the projects say so already


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _queue_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    depth = Tally(
        waiting=sum(s.queue.waiting is not None for s in found), running=sum(s.queue.running is not None for s in found)
    )
    queue = GaugeMetricFamily("al_queue_rounds", "Rounds that wait or run", labels=["state"])
    for state, count in depth.items():
        queue.add_metric([state], count)
    yield queue
    changes = GaugeMetricFamily("al_changes", "Changed annotations since the last round", labels=["project"])
    rounds = CounterMetricFamily("al_rounds", "Rounds that ended", labels=["project", "outcome"])
    for status in found:
        project = str(status.connection.project)
        changes.add_metric([project], status.queue.changes)
        rounds.add_metric([project, "published"], status.queue.rounds_finished)
        rounds.add_metric([project, "failed"], status.queue.rounds_failed)
    yield changes
    yield rounds


def _failure_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
    failures = GaugeMetricFamily("al_failed_rounds_in_a_row", "Rounds that failed in a row", labels=["project"])
    attempts = GaugeMetricFamily(
        "al_next_attempt_timestamp_seconds", "When a failed round is tried again", labels=["project"]
    )
    for status in found:
        project = str(status.connection.project)
        failures.add_metric([project], status.queue.failures)
        if status.queue.next_attempt is not None:
            attempts.add_metric([project], status.queue.next_attempt)
    yield failures
    yield attempts


def _round_metrics(found: list[ProjectStatus]) -> Iterator[GaugeMetricFamily]:
    seconds = GaugeMetricFamily(
        "al_last_round_seconds", "Wall time of the last round's stages", labels=["project", "stage"]
    )
    published = GaugeMetricFamily(
        "al_published_timestamp_seconds", "When the order that is served was published", labels=["project"]
    )
    for status in found:
        if status.published:
            published.add_metric([str(status.connection.project)], status.published.published_at.timestamp())
        stages = dict(status.report.seconds) if status.report else {}
        # Saving and publishing come after the report is written; the publisher times them itself.
        stages |= {f"publish_{step}": s for step, s in (status.published.seconds if status.published else {}).items()}
        for stage, value in stages.items():
            seconds.add_metric([str(status.connection.project), stage], value)
    unreadable = GaugeMetricFamily(
        "al_quarantined_images", "Images that rounds leave out because they cannot be read", labels=["project"]
    )
    for status in found:
        unreadable.add_metric([str(status.connection.project)], len(status.quarantined))
    yield seconds
    yield published
    yield unreadable
