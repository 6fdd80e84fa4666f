"""A real worker with real jobs, work-horses and claims; only the round itself is replaced.

It looks after rounds and Redis every second instead of every fifth.

Each round takes the next step of the Redis list ``test:plan``: ``quick`` (also when the list is empty), ``burn <s>``
(in many steps), ``deaf <s>`` (in one step),
``empty`` (a BackendError), ``away`` (one that passes by itself), ``bug`` (an unexpected error), ``kill`` (the process
is killed, as for want of memory), ``lost`` (another process of the round is).
It notes its beginning and its end in ``test:log``.
"""

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog
from rq import get_current_job

from ml_backend.config import Settings
from ml_backend.errors import EmptyPool, LabelStudioError
from ml_backend.scheduling import connect_redis, worker
from ml_backend.scheduling.worker import RoundWorker, work
from ml_backend.schemas import ProjectKey, PublishedRanking, Ranking, RoundReport, RoundRequest
from ml_backend.storage import RoundStore


def run_live_round(settings: Settings, key: ProjectKey, reason: Any, progress: Any, guard: Any, **_more: Any) -> Any:
    redis = connect_redis(settings.redis_url, patient=True)

    def note(event: str) -> None:
        line = {"event": event, "project": str(key), "reason": reason, "pid": os.getpid(), "at": time.time()}
        redis.rpush("test:log", json.dumps(line))

    planned = redis.lpop("test:plan")
    step, _, seconds = (planned.decode() if isinstance(planned, bytes) else "quick").partition(" ")
    note("begin")
    store = RoundStore(settings.data_dir)
    round_id = store.project(key).next_round_id()
    structlog.contextvars.bind_contextvars(round=round_id)
    progress("train", 0, 10)
    if step == "burn":
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            sum(range(1000))
            progress("train", 5, 10)
    elif step == "deaf":
        time.sleep(float(seconds))
    elif step == "empty":
        raise EmptyPool("no image is left")
    elif step == "away":
        raise LabelStudioError("Label Studio does not answer")
    elif step == "bug":
        raise RuntimeError("a bug")
    elif step == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif step == "lost":
        worker.end_round(get_current_job(), "rank 1 of 2 (on a host, process 9) died")
    guard()
    result = _publish(store, key, round_id, reason)
    note("end")
    return result


def _publish(store: RoundStore, key: ProjectKey, round_id: str, reason: Any) -> tuple[RoundReport, PublishedRanking]:
    project = store.project(key)
    report = RoundReport(
        request=RoundRequest(
            project=key,
            round_id=round_id,
            reason=reason,
            classes=("normal", "severe"),
            strategy="random",
            batch_size=2,
            min_labels_per_class=2,
            validation_share=0.2,
            seed=0,
        ),
        labels_per_class={"normal": 0, "severe": 0},
        fit=None,
        ranking=Ranking(strategy="random", image_ids=("1", "2"), scores=(1.0, 0.5), batch_size=2),
        seconds={"labels": 0.1},
        started_at=datetime.now(UTC),
    )
    published = PublishedRanking(
        version=f"al-{report.request.round_id}",
        round_id=report.request.round_id,
        image_ids=("1", "2"),
        seconds={"import": 0.2},
        published_at=datetime.now(UTC),
    )
    project.save(report, None, None)
    project.set_published(published)
    return report, published


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))
    rounds: Any = ModuleType("ml_backend.rounds.live")
    rounds.run_live_round = run_live_round
    sys.modules["ml_backend.rounds.live"] = rounds
    if "TEST_STOPS_AS_IT_TAKES_A_JOB" in os.environ:
        stop: Any = lambda *_, **_named: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        RoundWorker.reorder_queues = stop  # type: ignore[method-assign]
    worker.MONITORING_S = worker.MAINTENANCE_S = 1
    work(Settings.load())
    assert "torch" not in sys.modules
