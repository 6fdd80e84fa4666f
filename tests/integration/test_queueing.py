"""The queue on a real Valkey."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.errors import EmptyPool, QueueError, StaleRound
from ml_backend.queueing import RoundQueue, connect_redis
from ml_backend.records import ProjectKey

PROJECT = ProjectKey(id=7, created=1795384774)
OTHER = ProjectKey(id=8, created=1795384774)


def job(redis: Redis, generation: int, project: ProjectKey = PROJECT) -> Job:
    job_id = f"round-{project.id}-{project.created}-{generation}"
    return Job.fetch(job_id, connection=redis, serializer=JSONSerializer)


def claim(queue: RoundQueue, generation: int) -> Any:
    found = queue.claim(PROJECT, generation, "labels")
    assert found is not None
    return found


class TestCountChanges:
    def test_adds_up_and_is_due_at_the_threshold(self, queue):
        assert queue.count_changes(PROJECT, 2, threshold=3) == (2, False, 0)
        assert queue.count_changes(PROJECT, 1) == (3, True, 3)

    def test_threshold_0_is_never_due(self, queue):
        assert queue.count_changes(PROJECT, 1000, threshold=0) == (1000, False, 0)

    def test_projects_do_not_mix(self, queue):
        queue.count_changes(PROJECT, 5)

        assert queue.count_changes(OTHER, 1).changes == 1

    def test_two_hundred_at_once(self, queue):
        """No change is lost, however many clients count."""
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: queue.count_changes(PROJECT, 1), range(200)))

        assert queue.status(PROJECT).changes == 200


class TestRequestRound:
    def test_enqueues_a_job_of_plain_json(self, queue, redis):
        """No pickle: whoever can write to Redis must not be able to run code in the worker."""
        assert queue.request_round(PROJECT, "forced")

        found = job(redis, 1)
        assert (found.func_name, found.args) == ("ml_backend.worker.job.run", ["7.1795384774", 1, "forced"])
        assert json.loads(found.data)

    def test_one_waits_at_most(self, queue, redis):
        with ThreadPoolExecutor(16) as pool:
            asked = list(pool.map(lambda _: queue.request_round(PROJECT, "labels"), range(40)))

        assert sum(asked) == 1
        assert redis.llen("rq:queue:rounds") == 1

    def test_another_waits_while_one_runs(self, queue):
        queue.request_round(PROJECT, "labels")
        claim(queue, 1)

        assert queue.request_round(PROJECT, "forced")
        assert not queue.request_round(PROJECT, "forced")
        assert (queue.status(PROJECT).running, queue.status(PROJECT).waiting) == ("labels", "forced")

    def test_only_if_idle(self, queue):
        """/setup asks often: once while it waits, never while it runs, and not again within the cool-down."""
        assert queue.request_round(PROJECT, "connected", only_if_idle=True)
        assert not queue.request_round(PROJECT, "connected", only_if_idle=True)
        running = claim(queue, 1)
        assert not queue.request_round(PROJECT, "connected", only_if_idle=True)
        running.fail(EmptyPool("no image"))
        assert not queue.request_round(PROJECT, "connected", only_if_idle=True)

        assert RoundQueue(queue.redis, cooldown_s=0).request_round(PROJECT, "connected", only_if_idle=True)

    def test_slot_of_a_vanished_job_heals(self, redis):
        queue = RoundQueue(redis, grace_s=0.2)
        queue.request_round(PROJECT, "labels")
        job(redis, 1).delete()
        assert not queue.request_round(PROJECT, "labels")

        time.sleep(0.3)

        assert queue.request_round(PROJECT, "labels")

    def test_slot_of_a_failed_job_heals_at_once(self, queue, redis):
        queue.request_round(PROJECT, "labels")
        redis.hset(job(redis, 1).key, "status", "failed")

        assert queue.request_round(PROJECT, "labels")


class TestClaim:
    def test_takes_the_changes_and_frees_the_slot(self, queue):
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")

        assert claim(queue, 1).changes == 20
        status = queue.status(PROJECT)
        assert (status.changes, status.waiting, status.running) == (0, None, "labels")

    def test_refuses_what_was_never_asked_for_or_is_over(self, queue):
        assert queue.claim(PROJECT, 1, "labels") is None
        queue.request_round(PROJECT, "labels")
        claim(queue, 1).finish()

        assert queue.claim(PROJECT, 1, "labels") is None

    def test_a_second_run_of_the_same_round_outdates_the_first(self, queue):
        """Rq begins a round again whose worker seems dead; should the first run live on, it must not publish."""
        queue.count_changes(PROJECT, 3)
        queue.request_round(PROJECT, "labels")
        first = claim(queue, 1)
        queue.count_changes(PROJECT, 2)
        second = claim(queue, 1)

        second.guard()
        with pytest.raises(StaleRound, match="run 1 of project"):
            first.guard()
        first.fail(RuntimeError("an orphan's"))
        assert second.changes == 5
        assert queue.status(PROJECT).running == "labels"
        assert queue.status(PROJECT).last_error is None

    def test_the_next_round_answers_for_a_dead_one(self, queue):
        queue.count_changes(PROJECT, 3)
        queue.request_round(PROJECT, "labels")
        claim(queue, 1)
        queue.request_round(PROJECT, "labels")

        assert claim(queue, 2).changes == 3


class TestEndOfARound:
    def test_finish(self, queue):
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue, 1)
        queue.count_changes(PROJECT, 4)

        running.finish()

        status = queue.status(PROJECT)
        assert (status.changes, status.running, status.waiting, status.rounds_finished) == (4, None, None, 1)

    def test_fail_gives_the_changes_back_and_keeps_the_error(self, queue):
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue, 1)
        queue.count_changes(PROJECT, 4)

        running.fail(EmptyPool("no image is left"))

        status = queue.status(PROJECT)
        assert (status.changes, status.running, status.waiting, status.rounds_failed) == (24, None, None, 1)
        assert status.last_error is not None
        assert (status.last_error.kind, status.last_error.message) == ("EmptyPool", "no image is left")

    def test_a_failed_round_comes_again_after_as_many_changes_more(self, queue):
        """Not with every further annotation: what fails for want of memory would fail all day."""
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        claim(queue, 1).fail(EmptyPool("no image is left"))

        assert not queue.count_changes(PROJECT, 19).due
        assert queue.count_changes(PROJECT, 1).due
        queue.request_round(PROJECT, "labels")
        claim(queue, 2).finish()
        assert queue.status(PROJECT).last_error is None
        assert not queue.count_changes(PROJECT, 19).due
        assert queue.count_changes(PROJECT, 1).due

    def test_many_failed_rounds_do_not_put_the_next_out_of_reach(self, queue):
        """The bar is raised four times at most: once the cause is mended, labels must start a round again."""
        for generation in range(1, 8):
            queue.request_round(PROJECT, "labels")
            claim(queue, generation).fail(EmptyPool("no image is left"))

        assert not queue.count_changes(PROJECT, 49, threshold=10).due
        assert queue.count_changes(PROJECT, 1).due

    def test_whoever_asks_for_a_round_lowers_the_bar_again(self, queue):
        for generation in range(1, 4):
            queue.request_round(PROJECT, "labels")
            claim(queue, generation).fail(EmptyPool("no image is left"))
        queue.request_round(PROJECT, "forced")
        claim(queue, 4).fail(EmptyPool("no image is left"))

        assert not queue.count_changes(PROJECT, 19, threshold=10).due
        assert queue.count_changes(PROJECT, 1).due

    @pytest.mark.parametrize("end", [lambda c: c.finish(), lambda c: c.fail(EmptyPool("none"))])
    def test_asks_for_the_next_where_enough_changed_meanwhile(self, queue, redis, end):
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue, 1)
        queue.count_changes(PROJECT, 20)

        end(running)

        assert queue.status(PROJECT).waiting == "labels"
        assert job(redis, 2).args == ["7.1795384774", 2, "labels"]

    def test_a_lost_run_gives_its_changes_back(self, queue, redis):
        """The machine died, and nobody could say so: rq moved the job to its failed ones."""
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        claim(queue, 1)
        redis.hset(job(redis, 1).key, "status", "failed")

        status = queue.status(PROJECT)

        assert (status.changes, status.running) == (20, None)
        assert status.last_error is not None
        assert status.last_error.kind == "WorkerLost"

    def test_abandon(self, queue):
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        claim(queue, 1)

        queue.abandon(PROJECT, 1, "signal 9")
        queue.abandon(PROJECT, 1, "told twice")

        status = queue.status(PROJECT)
        assert (status.changes, status.running, status.rounds_failed) == (20, None, 1)
        assert status.last_error is not None
        assert status.last_error.message == "signal 9"

    def test_abandon_asks_for_the_next_where_enough_changed_meanwhile(self, queue):
        queue.request_round(PROJECT, "labels")
        claim(queue, 1)
        queue.count_changes(PROJECT, 40, threshold=20)

        queue.abandon(PROJECT, 1, "signal 9")

        assert queue.status(PROJECT).waiting == "labels"


class TestForget:
    def test_drops_everything(self, queue, redis):
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue, 1)
        running.progress("train", 1, 2)
        queue.request_round(PROJECT, "labels")

        queue.forget(PROJECT)

        with pytest.raises(StaleRound):
            running.guard()
        assert job(redis, 2).get_status() == "canceled"
        assert queue.claim(PROJECT, 2, "labels") is None
        assert not list(redis.scan_iter("al:*"))


class TestProgress:
    def test_is_read_while_the_round_runs(self, queue):
        queue.request_round(PROJECT, "labels")
        running = claim(queue, 1)
        assert queue.status(PROJECT).progress is None

        running.progress("train", 3, 50)

        progress = queue.status(PROJECT).progress
        assert progress is not None
        assert (progress.generation, progress.stage, progress.done, progress.total) == (1, "train", 3, 50)
        running.finish()
        assert queue.status(PROJECT).progress is None


class TestRedisDown:
    def test_says_where_without_the_password(self):
        queue = RoundQueue(connect_redis("redis://:secret@127.0.0.1:1/3"))

        with pytest.raises(QueueError, match=r"127\.0\.0\.1:1/3.*AL_REDIS_URL") as caught:
            queue.count_changes(PROJECT, 1)
        assert "secret" not in str(caught.value)

    def test_progress_never_raises(self, queue):
        queue.request_round(PROJECT, "labels")
        running = claim(queue, 1)
        running.queue = RoundQueue(connect_redis("redis://127.0.0.1:1/0"))

        running.progress("train", 1, 2)
