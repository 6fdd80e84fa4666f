"""Runs in processes and on rq workers, with a real Valkey: the same numbers, also where a worker dies."""

import os
import re
import sys
from multiprocessing import active_children
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ml_backend.errors import QueueError, RoundError, ServiceError
from ml_backend.simulation.parallel import run_in_processes, run_on_workers
from ml_backend.simulation.plan import StudyPlan
from ml_backend.simulation.run import do_run, open_study
from ml_backend.simulation.run_log import RunLog
from tests.integration.processes import free_port, wait_until
from tests.integration.studies import LIVE, begin_study

DIED = "a process died (out of memory?); not done yet:"


def nothing() -> None:
    """Nobody watches."""


def done(plan: StudyPlan, out: Path) -> list[object]:
    """What all runs did, without how long it took."""
    seconds = {"train_seconds", "acquisition_seconds"}
    found: list[object] = []
    for run in plan.runs():
        journal = RunLog(out, run.name)
        baseline = journal.baseline()
        rounds, batches = journal.read()
        found += [row.model_dump(exclude=seconds) for row in rounds]
        found += batches
        found += [baseline.model_dump(exclude=seconds)] if baseline else []
    return found


def alone(folder: Path, out: Path, **changes: object) -> list[object]:
    """The same study, in this process."""
    plan = begin_study(folder, out, **changes)
    for run in plan.runs():
        do_run(run, open_study(plan, out), RunLog(out, run.name))
    return done(plan, out)


class TestRunInProcesses:
    def test_gives_the_numbers_of_one_process_also_when_a_process_is_killed(self, tmp_path):
        plan = begin_study(tmp_path / "data", tmp_path / "out")
        names = [run.name for run in plan.runs()]
        notes: list[str] = []

        def kill_once() -> None:
            if not notes:
                kill()

        run_in_processes(names, tmp_path / "out", workers=2, watch=kill_once, note=notes.append)

        assert notes == [f"{DIED} {', '.join(names)}; they go on from their last rounds"]
        assert done(plan, tmp_path / "out") == alone(tmp_path / "data", tmp_path / "alone")
        assert active_children() == []

    def test_gives_up_where_processes_die_again_and_again(self, tmp_path):
        os.mkfifo(tmp_path / "plan.json")  # the run waits for its plan

        with pytest.raises(ServiceError, match=rf"{re.escape(DIED)} random-s0; 3 times: see .*/workers, and give"):
            run_in_processes(["random-s0"], tmp_path, workers=2, watch=kill, note=lambda _: None)

    def test_gives_the_reason_of_a_refusal(self, tmp_path):
        with pytest.raises(RoundError, match=r"run entropy-s0: .* holds no plan.json: workers need --out"):
            run_in_processes(["entropy-s0"], tmp_path, workers=2, watch=nothing, note=lambda _: None)

    def test_leaves_no_process_when_the_command_is_stopped(self, tmp_path):
        os.mkfifo(tmp_path / "plan.json")

        with pytest.raises(KeyboardInterrupt):
            run_in_processes(["random-s0", "entropy-s0"], tmp_path, workers=2, watch=stop, note=lambda _: None)

        assert active_children() == []

    def test_leaves_no_process_when_the_command_is_killed(self, tmp_path, start):
        command = f"""
import pathlib, time
from multiprocessing import active_children
from ml_backend.simulation import parallel
def tell():
    pathlib.Path({str(tmp_path)!r}, "child").write_text(str(active_children()[0].pid))
    time.sleep(60)
if __name__ == "__main__":
    parallel.run_in_processes(["r"], pathlib.Path({str(tmp_path)!r}), workers=1, watch=tell, note=print)
"""
        os.mkfifo(tmp_path / "plan.json")  # the run waits for its plan, and loads no PyTorch before it is started
        parent = start(sys.executable, "-c", command)
        pid = int(wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text()))

        parent.kill()

        wait_until(lambda: not Path(f"/proc/{pid}").exists())


def kill() -> None:
    for process in active_children():
        process.kill()


def stop() -> None:
    raise KeyboardInterrupt


class TestAnyRedis:
    def test_a_worker_elsewhere_does_the_runs(self, tmp_path, redis, start):
        """From a live start, so that a worker needs the cold start too."""
        plan = begin_study(tmp_path / "data", tmp_path / "out", **LIVE)
        start(sys.executable, "-m", "ml_backend", "work", "--study", AL_DEVICE="cpu")

        run_on_workers(redis, [run.name for run in plan.runs()], tmp_path / "out", nothing)

        assert done(plan, tmp_path / "out") == alone(tmp_path / "data", tmp_path / "alone", **LIVE)

    def test_a_run_that_cannot_be_done_is_told_with_its_reason(self, tmp_path, redis, start):
        """On the worker the folder is missing: not shared."""
        start(sys.executable, "-m", "ml_backend", "work", "--study", AL_DEVICE="cpu")

        with pytest.raises(QueueError, match=r"run entropy-s0: .*gone holds no plan.json: workers need --out"):
            run_on_workers(redis, ["entropy-s0"], tmp_path / "gone", nothing)

    def test_what_waits_is_withdrawn_when_the_command_is_stopped(self, tmp_path, redis):
        with pytest.raises(KeyboardInterrupt):
            run_on_workers(redis, ["entropy-s0", "entropy-s1"], tmp_path, stop)

        assert redis.llen("rq:queue:study") == 0
        assert redis.keys("rq:job:*") == []

    def test_a_redis_that_is_emptied_is_named(self, tmp_path, redis):
        with pytest.raises(QueueError, match=r"run entropy-s0 is gone from Redis, which was emptied"):
            run_on_workers(redis, ["entropy-s0"], tmp_path, redis.flushdb)

    def test_without_redis_it_says_so(self, tmp_path):
        with (
            Redis(port=free_port(), retry=Retry(NoBackoff(), 0)) as nobody,
            pytest.raises(QueueError, match=r"Redis does not answer \(ConnectionError\): start it"),
        ):
            run_on_workers(nobody, ["entropy-s0"], tmp_path, nothing)
