"""Laws of the queue under any sequence of events, on a real Valkey; ``make laws`` tries more of them."""

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_backend.errors import EmptyPool
from ml_backend.schemas import ProjectKey

PROJECT = ProjectKey(id=7, created=1795384774)
EXAMPLES = int(os.environ.get("AL_LAWS_EXAMPLES", "60"))
STEPS = st.lists(
    st.sampled_from(["count", "request", "rerank", "claim", "train", "finish", "fail", "give back", "lose", "late"]),
    min_size=12,
    max_size=60,
)


class TestLaws:
    @given(steps=STEPS)
    @settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_every_change_is_waiting_or_being_learned_or_learned(  # noqa: C901 - one branch a step
        self, queue, redis, steps
    ):
        """Whatever comes in whatever order, changes are neither lost nor made up, and one waits at most."""
        redis.flushdb()
        counted = learned = 0
        running: Any = None
        lost: Any = None
        for step in steps:
            if step == "count":
                queue.count_changes(PROJECT, 3)
                counted += 3
            elif step == "request":
                queue.request_round(PROJECT, "labels")
            elif step == "rerank":
                queue.request_round(PROJECT, "rerank")
            elif step == "claim" and running is None:
                running = queue.claim(PROJECT, int(redis.hget(f"al:{PROJECT}", "waiting") or 0))
            elif running is not None and step == "train":
                running.start_training()
            elif running is not None and step == "finish":
                learned, running = learned + running.changes, running.finish()
            elif running is not None and step == "fail":
                running = running.fail(EmptyPool("none"))
            elif running is not None and step == "give back":
                failures = queue.status(PROJECT).rounds_failed
                running = running.give_back()
                status = queue.status(PROJECT)
                assert (status.waiting is not None, status.running, status.rounds_failed) == (True, None, failures)
            elif running is not None and step == "lose":
                redis.hset(f"rq:job:round-7-1795384774-{running.generation}", "status", "failed")
                lost, running = running, None
            elif lost is not None and step == "late":
                # Its worker is alive after all, and is stopped.
                lost = lost.give_back()
            held = running.changes if running else 0
            assert queue.status(PROJECT).changes + held + learned == counted
            assert redis.llen("rq:queue:rounds") <= 1
