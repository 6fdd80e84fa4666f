"""A real worker on a real Valkey; only the round itself is replaced (``worker_with_fake_rounds.py``)."""

import os
import signal
from pathlib import Path

from tests.integration.processes import PROJECT, wait_until


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
        plan("burn 2")
        queue.request_round(PROJECT, "labels")
        start_worker()

        progress = wait_until(lambda: (p := queue.status(PROJECT).progress) and p.done == 5 and p)

        assert (progress.stage, progress.total) == ("train", 10)

    def test_changes_during_a_round_start_the_next(self, queue, start_worker, plan, log):
        """At once, as a waiting round, and at the latest when the first ends."""
        plan("burn 2")
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

    def test_sigterm_lets_the_round_end(self, queue, start_worker, plan):
        plan("burn 2")
        worker = start_worker()
        queue.request_round(PROJECT, "labels")
        wait_until(lambda: queue.status(PROJECT).running)

        worker.send_signal(signal.SIGTERM)

        assert worker.wait(timeout=30) == 0  # the child asserts, too, that its parent process never saw torch
        assert queue.status(PROJECT).rounds_finished == 1


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

    def test_a_process_killed_twice_is_given_up(self, queue, start_worker, plan):
        plan("kill", "kill", "quick")
        start_worker()
        queue.count_changes(PROJECT, 20)
        queue.request_round(PROJECT, "labels")

        wait_until(lambda: queue.status(PROJECT).rounds_failed == 1)

        status = queue.status(PROJECT)
        assert status.last_error is not None
        assert "signal 9" in status.last_error.message
        assert (status.changes, status.running) == (20, None)
        queue.request_round(PROJECT, "forced")
        wait_until(lambda: queue.status(PROJECT).rounds_finished == 1)

    def test_the_work_horse_of_a_killed_worker_dies(self, queue, start_worker, plan, log):
        """As an orphan it would train on, beside the run that takes its place."""
        plan("burn 60")
        worker = start_worker()
        queue.request_round(PROJECT, "labels")
        wait_until(log)
        horse = log()[0]["pid"]
        assert os.getpgid(horse) != os.getpgid(worker.pid)

        worker.kill()
        worker.wait()

        wait_until(lambda: not is_alive(horse), timeout_s=10)
