"""A real worker on a real Valkey; only the round itself is replaced (``worker_with_fake_rounds.py``)."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Worker

from ml_backend.config import Settings
from ml_backend.processes import valkey_program
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.scheduling.queue import WORKER_FRESH_S
from ml_backend.scheduling.worker import MONITORING_S
from ml_backend.schemas import Connection, ProjectKey
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Pause
from tests.integration.processes import FAKE_WORKER, PROJECT, free_port, wait_until
from tests.label_configs import config

OTHER = ProjectKey(id=3, created=1795384774)
WORKER_ALIVE = Path(__file__).parents[2] / "docker" / "worker_alive.py"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def handles(pid: int, signum: signal.Signals) -> bool:
    [caught] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


def events(log):
    return [line["event"] for line in log()]


class TestWork:
    def test_runs_a_round(self, queue, start_worker, log):
        queue.count_changes(PROJECT, 20, threshold=20)
        queue.request_round(PROJECT, "labels")
        start_worker()

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

        assert [(line["event"], line["reason"]) for line in log()] == [("begin", "labels"), ("end", "labels")]
        assert queue.status(PROJECT).changes == 0

    def test_shows_its_progress(self, queue, start_worker, plan):
        plan("burn 1")
        queue.request_round(PROJECT, "labels")
        start_worker()

        progress = wait_until(lambda: (p := queue.status(PROJECT).progress) and p.done == 5 and p)

        assert (progress.stage, progress.total) == ("train", 10)

    def test_changes_during_a_round_start_the_next(self, queue, start_worker, plan, log):
        """At once, as a waiting round, and at the latest when the first ends."""
        plan("burn 1")
        queue.request_round(PROJECT, "labels")
        start_worker()
        wait_until(lambda: queue.status(PROJECT).running)

        queue.count_changes(PROJECT, 25, threshold=20)

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 2)
        assert events(log) == ["begin", "end", "begin", "end"]
        assert queue.status(PROJECT).changes == 0

    def test_two_workers_never_run_one_project_at_once(self, queue, start_worker, plan, log):
        """The second round waits for the first, and is not lost."""
        plan("burn 2", "quick")
        start_worker()
        start_worker()
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).running)
        queue.request_round(PROJECT, "forced")

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 2)

        assert [(line["event"], line["reason"]) for line in log()] == [
            ("begin", "labels"),
            ("end", "labels"),
            ("begin", "forced"),
            ("end", "forced"),
        ]


class TestShutdown:
    """By docker, Kubernetes or systemd (SIGTERM), or on a terminal (SIGINT)."""

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_the_round_is_given_back(self, queue, start_worker, plan, tmp_path, signum):
        """At once, as no failure, and to any worker; what was labelled meanwhile counts as well."""
        plan("burn 60", "quick")
        worker = start_worker()
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).progress)
        queue.count_changes(PROJECT, 3)

        worker.send_signal(signum)

        assert worker.wait(timeout=30) == 0  # the child asserts, too, that its parent process never saw torch
        status = queue.status(PROJECT)
        assert (status.waiting, status.running, status.progress, status.changes) == ("labels", None, None, 23)
        assert (status.last_error, status.failures, status.rounds_failed) == (None, 0, 0)
        assert queue.redis.llen("rq:queue:rounds") == 1
        lines = (tmp_path / "child-0.log").read_text()
        assert f"{signum.name} at stage 'train', " in lines
        assert "round given back" in lines

        start_worker()
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)
        assert queue.status(PROJECT).changes == 0

    def test_another_worker_that_waits_goes_on(self, queue, start_worker, plan, log):
        plan("burn 60", "quick")
        workers = [start_worker(), start_worker()]
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).progress)
        busy = next(one for one in workers if os.getpgid(log()[0]["pid"]) in children(one.pid))

        busy.send_signal(signal.SIGTERM)

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)
        assert busy.wait(timeout=30) == 0
        assert events(log) == ["begin", "begin", "end"]

    def test_a_second_signal_kills_the_round(self, queue, start_worker, plan, log):
        """For whoever cannot wait for the end of a step; the round begins again as a killed worker's does."""
        plan("deaf 60")
        worker = start_worker()
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).progress)
        worker.send_signal(signal.SIGTERM)
        time.sleep(1.5)  # rq takes two within a second for one that was sent twice
        assert worker.poll() is None

        worker.send_signal(signal.SIGTERM)

        worker.wait(timeout=30)
        assert not is_alive(log()[0]["pid"])
        assert queue.status(PROJECT).running == "labels"

    def test_a_job_that_was_taken_and_not_begun_waits_for_another_worker(self, queue, redis, start):
        queue.request_round(PROJECT, "labels")
        worker = start(sys.executable, str(FAKE_WORKER), TEST_STOPS_AS_IT_TAKES_A_JOB="1")

        assert worker.wait(timeout=60) == 0
        assert redis.llen("rq:queue:rounds") == 1
        assert (queue.status(PROJECT).waiting, queue.status(PROJECT).running) == ("labels", None)

    def test_a_job_that_rq_cannot_read_does_not_come_first_again(self, queue, redis, start_worker):
        """Of another version of rq, for example: it would end one worker after another."""
        redis.hset("rq:job:unreadable", mapping={"data": "[]", "status": "of another version"})
        redis.lpush("rq:queue:rounds", "unreadable")
        queue.request_round(PROJECT, "labels")

        start_worker().wait(timeout=60)

        assert b"unreadable" not in redis.lrange("rq:queue:rounds", 0, -1)

    def test_a_worker_that_still_loads_pytorch_ends(self, start, tmp_path):
        worker = start(sys.executable, "-m", "ml_backend", "work", AL_DEVICE="cpu")
        wait_until(lambda: handles(worker.pid, signal.SIGTERM))

        worker.send_signal(signal.SIGTERM)

        assert worker.wait(timeout=30) == 0
        assert "waiting for rounds" not in (tmp_path / "child-0.log").read_text()

    def test_a_worker_that_waits_ends(self, redis, start_worker):
        worker = start_worker()
        wait_until(lambda: [one.get_state() for one in Worker.all(connection=redis)] == ["idle"])

        worker.send_signal(signal.SIGTERM)

        assert worker.wait(timeout=30) == 0
        assert not is_registered(redis)


class TestFailures:
    def test_a_failed_round_does_not_block_the_next(self, queue, start_worker, plan):
        plan("empty", "bug", "quick")
        start_worker()
        queue.count_changes(PROJECT, 20)

        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).rounds_failed == 1)
        status = queue.status(PROJECT)
        assert status.last_error is not None
        assert (status.last_error.kind, status.last_error.message) == ("EmptyPool", "no image is left")
        assert status.changes == 20

        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).rounds_failed == 2)
        status = queue.status(PROJECT)
        assert status.last_error is not None
        assert (status.last_error.kind, status.last_error.message) == ("RuntimeError", "a bug")
        assert status.changes == 20

        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)
        assert queue.status(PROJECT).last_error is None

    def test_a_killed_process_is_begun_again(self, queue, start_worker, plan, log):
        plan("kill", "quick")
        start_worker()
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

        assert events(log) == ["begin", "begin", "end"]
        assert queue.status(PROJECT).changes == 0

    @pytest.mark.parametrize(
        ("step", "cause"),
        [("kill", "ended twice with signal 9;"), ("lost", "lost twice: rank 1 of 2 (on a host, process 9) died.")],
    )
    def test_a_process_killed_twice_is_given_up(self, queue, start_worker, plan, step, cause):
        plan(step, step, "quick")
        start_worker()
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")

        wait_until(lambda: queue.status(PROJECT).rounds_failed == 1)

        status = queue.status(PROJECT)
        assert status.last_error is not None
        assert cause in status.last_error.message
        assert "choose a smaller train_batch or image_side" in status.last_error.message
        assert (status.changes, status.running) == (20, None)
        queue.request_round(PROJECT, "forced")
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

    def test_the_work_horse_of_a_killed_worker_dies(self, queue, start_worker, plan, tmp_path, monkeypatch):
        """As an orphan it would train on, beside the run that takes its place. The page counts its worker no more."""
        # These workers send a heartbeat every second, real ones every fifth: the same number may be missed.
        assert 3 * MONITORING_S <= WORKER_FRESH_S <= 25
        monkeypatch.setattr("ml_backend.scheduling.queue.WORKER_FRESH_S", WORKER_FRESH_S / MONITORING_S)
        plan("burn 60")
        worker = start_worker()
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).progress)
        [horse] = children(worker.pid)
        assert os.getpgid(horse) != os.getpgid(worker.pid)
        page = create_app(Settings.load(data_dir=tmp_path), queue).test_client()
        RoundStore(tmp_path).connect(Connection(project=PROJECT, hostname="http://ls", label_config=config()))
        shown = lambda: page.get(f"/projects/{PROJECT}").get_json()["workers"]  # noqa: E731
        assert wait_until(shown) == 1

        worker.kill()
        worker.wait()

        wait_until(lambda: not is_alive(horse), timeout_s=10)
        wait_until(lambda: shown() == 0, timeout_s=30)

    def test_a_round_that_failed_is_tried_again_by_time_alone(self, queue, redis, start_worker, plan, log):
        """Nobody labels, nobody asks; and meanwhile another project has its round."""
        plan("away", "quick", "quick")
        start_worker()
        queue.request_round(PROJECT, "forced")
        wait_until(lambda: queue.status(PROJECT).next_attempt)

        queue.request_round(OTHER, "forced")
        wait_until(lambda: queue.status(OTHER).rounds_finished == 1)
        assert queue.status(PROJECT).rounds_finished == 0
        redis.hset(f"al:{PROJECT}", "not_before", time.time())  # as if the pause were over

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)
        assert [line["reason"] for line in log() if line["project"] == str(PROJECT)] == ["forced"] * 3

    def test_the_round_of_a_killed_worker_is_begun_by_another(self, queue, redis, start_worker, plan, log):
        """After 40 s without a sign of life, which are cut short here."""
        plan("burn 60", "quick")
        lost = start_worker()
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        wait_until(log)
        lost.kill()
        start_worker()

        running = wait_until(lambda: redis.zrange("rq:wip:rounds", 0, -1, withscores=True))
        assert running[0][1] - time.time() <= 41
        redis.zadd("rq:wip:rounds", {running[0][0]: time.time() - 1})

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)
        assert events(log) == ["begin", "begin", "end"]
        assert queue.status(PROJECT).changes == 0

    def test_a_worker_killed_in_its_maintenance_does_not_keep_others_from_theirs(self, queue, redis, start_worker):
        """The lock that it leaves is rq's, for 15 minutes."""
        redis.set("rq:clean_registries:rounds", 1, ex=899)
        start_worker()

        wait_until(lambda: 0 < redis.ttl("rq:clean_registries:rounds") <= 30, timeout_s=30)


class TestPause:
    """The owner holds the rounds by a file in the data folder, where every worker looks."""

    @pytest.fixture
    def pause(self, environ):
        pause = Pause(RoundStore(Path(environ["AL_DATA_DIR"])).project(PROJECT).folder)
        pause.begin(threshold=20)
        return pause

    def test_a_round_that_failed_is_not_tried_again_until_it_ends(self, queue, start_worker, plan, log, pause):
        """Another project's is, by the same look at both."""
        plan("away", "away")
        start_worker()
        queue.request_round(PROJECT, "forced")
        queue.request_round(OTHER, "forced")
        wait_until(lambda: queue.status(PROJECT).next_attempt and queue.status(OTHER).next_attempt)
        for project in (PROJECT, OTHER):
            queue.redis.hset(f"al:{project}", "not_before", time.time())

        wait_until(lambda: queue.status(OTHER).rounds_finished == 1)
        assert [line["event"] for line in log() if line["project"] == str(PROJECT)] == ["begin"]
        assert queue.status(PROJECT).waiting is None

        pause.end()
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

    def test_what_trains_nothing_and_what_its_owner_asks_for_runs_all_the_same(self, queue, start_worker, log, pause):
        start_worker()
        for reason in ("rerank", "topup", "forced"):
            queue.request_round(PROJECT, reason)
            wait_until(lambda: queue.status(PROJECT).waiting is queue.status(PROJECT).running is None)

        assert [line["reason"] for line in log() if line["event"] == "end"] == ["rerank", "topup", "forced"]
        assert pause.holds


class TestRedis:
    def test_emptied_under_a_round(self, queue, redis, start_worker, plan, environ):
        """The round is published, the worker stays registered and runs the next."""
        plan("burn 4")
        start_worker()
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).running)
        store = RoundStore(Path(environ["AL_DATA_DIR"])).project(PROJECT)

        redis.flushdb()

        wait_until(lambda: is_registered(redis), timeout_s=10)
        check = [sys.executable, str(WORKER_ALIVE)]
        assert subprocess.run(check, env=environ, check=False, timeout=30).returncode == 0
        unwritable = environ | {"AL_DATA_DIR": str(WORKER_ALIVE / "data")}  # below a file
        assert subprocess.run(check, env=unwritable, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode == 1
        wait_until(store.published)
        wait_until(lambda: queue.request_round(PROJECT, "forced"))
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)
        assert store.round_ids() == ["r000001", "r000002"]

    def test_emptied_under_a_worker_that_waits(self, queue, redis, start_worker):
        start_worker()
        wait_until(lambda: is_registered(redis))

        redis.flushdb()

        wait_until(lambda: is_registered(redis), timeout_s=20)

    def test_restarted_under_a_round(self, own_valkey, start, tmp_path):
        """It is away for two seconds; the round and the worker live on, and the log says so."""
        url, restart = own_valkey
        queue = RoundQueue(connect_redis(url, patient=True))
        queue.redis.rpush("test:plan", "burn 4")
        start(sys.executable, str(FAKE_WORKER), AL_REDIS_URL=url)
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).running)

        restart(2.0)

        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)
        queue.request_round(PROJECT, "forced")
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 2)
        assert "Redis does not answer" in (tmp_path / "child-0.log").read_text()


def is_registered(redis: Redis) -> bool:
    return any(worker.hostname == socket.gethostname() for worker in Worker.all(connection=redis))


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[tuple[str, Callable[[float], None]]]:
    """A Valkey that keeps what it is told, and what restarts it after so many seconds."""
    folder, port = tmp_path / "valkey", free_port()
    folder.mkdir()
    options = ("--bind", "127.0.0.1", "--port", str(port), "--appendonly", "yes", "--dir", str(folder))

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen([valkey_program(), *options], stdout=subprocess.DEVNULL)

    running = begin()

    def restart(away_s: float) -> None:
        nonlocal running
        running.kill()
        running.wait()
        time.sleep(away_s)
        running = begin()

    yield f"redis://127.0.0.1:{port}/0", restart
    running.kill()
    running.wait()
