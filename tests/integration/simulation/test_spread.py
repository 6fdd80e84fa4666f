"""The runs of a study on workers of ours, with a real Valkey: the same numbers, also where a worker dies."""

import os
import signal
import sys
from pathlib import Path

import pytest
from redis import Redis
from rq import Worker
from rq.serializers import JSONSerializer

from ml_backend.errors import QueueError
from ml_backend.simulation.options import open_study
from ml_backend.simulation.parallel import StudyQueue, on_own_workers
from ml_backend.simulation.plan import StudyPlan
from ml_backend.simulation.run import do_run, journal_of
from tests.integration.processes import free_port
from tests.integration.studies import begin_study


def nothing() -> None:
    """Nobody watches."""


def done(plan: StudyPlan, out: Path) -> list[object]:
    """What all runs did, without how long it took."""
    seconds = {"train_seconds", "acquisition_seconds"}
    found: list[object] = []
    for run in plan.runs():
        journal = journal_of(out, run)
        baseline = journal.baseline()
        rounds, batches = journal.read()
        found += [row.model_dump(exclude=seconds) for row in rounds]
        found += batches
        found += [baseline.model_dump(exclude=seconds)] if baseline else []
    return found


def alone(folder: Path, out: Path) -> list[object]:
    """The same study, in this process."""
    plan = begin_study(folder, out)
    for run in plan.runs():
        do_run(run, open_study(plan, out), journal_of(out, run))
    return done(plan, out)


class TestOwnWorkers:
    def test_give_the_numbers_of_one_process_also_when_a_work_horse_is_killed(self, tmp_path):
        plan = begin_study(tmp_path / "data", tmp_path / "spread")
        killed: list[int] = []

        with on_own_workers(2, tmp_path / "spread", "cpu") as (queue, watch):

            def watch_and_kill() -> None:
                watch()
                if not killed and (pid := self.work_horse(queue)):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

            queue.do([run.name for run in plan.runs()], watch_and_kill)

        assert killed
        assert done(plan, tmp_path / "spread") == alone(tmp_path / "data", tmp_path / "alone")

    @staticmethod
    def work_horse(queue: StudyQueue) -> int | None:
        """Of a worker that is in the middle of a run."""
        for worker in Worker.all(connection=queue._redis, serializer=JSONSerializer):
            parent = worker.pid
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split() if parent else []
            if worker.get_current_job_id() and children:
                return int(children[0])
        return None

    def test_are_started_again_where_they_end_with_runs_left(self, tmp_path):
        """Killed with its work-horse; what it had begun is freed later, the rest goes on at once."""
        plan = begin_study(tmp_path / "data", tmp_path / "out")
        killed: list[int] = []

        with on_own_workers(1, tmp_path / "out", "cpu") as (queue, watch):

            def watch_and_kill() -> None:
                watch()
                workers = Worker.all(connection=queue._redis, serializer=JSONSerializer)
                pids = [worker.pid for worker in workers if worker.pid]
                if pids and not killed:
                    os.kill(pids[0], signal.SIGKILL)
                    killed.append(pids[0])

            queue.do([run.name for run in plan.runs()], watch_and_kill)

        assert killed
        assert all(journal_of(tmp_path / "out", run).is_done for run in plan.runs())


class TestAnyRedis:
    def test_a_run_that_was_taken_and_never_begun_is_put_back(self, tmp_path, redis, start):
        """Its worker died between the two, and was the last one."""
        plan = begin_study(tmp_path / "data", tmp_path / "out")
        queue = StudyQueue(redis, tmp_path / "out")
        first = next(iter(plan.runs()))
        taken: list[bytes] = []

        def take_once() -> None:
            if not taken:
                key = queue._queue.key
                taken.append(redis.lmove(key, queue._queue.intermediate_queue_key, "RIGHT", "LEFT"))
                start(sys.executable, "-m", "ml_backend", "work", "--study", AL_DEVICE="cpu")

        queue.do([first.name], take_once)

        assert taken[0]
        assert journal_of(tmp_path / "out", first).is_done

    def test_a_worker_elsewhere_does_the_runs(self, tmp_path, redis, start):
        plan = begin_study(tmp_path / "data", tmp_path / "out")
        start(sys.executable, "-m", "ml_backend", "work", "--study", AL_DEVICE="cpu")

        StudyQueue(redis, tmp_path / "out").do([run.name for run in plan.runs()], nothing)

        assert done(plan, tmp_path / "out") == alone(tmp_path / "data", tmp_path / "alone")

    def test_a_run_that_cannot_be_done_is_told_with_its_reason(self, tmp_path, redis, start):
        """On the worker the folder is missing: not shared."""
        start(sys.executable, "-m", "ml_backend", "work", "--study", AL_DEVICE="cpu")

        with pytest.raises(QueueError, match=r"run entropy-s0: .*gone holds no plan.json: workers need --out"):
            StudyQueue(redis, tmp_path / "gone").do(["entropy-s0"], nothing)

    def test_what_waits_is_withdrawn_when_the_command_is_stopped(self, tmp_path, redis):
        def stop() -> None:
            raise KeyboardInterrupt

        queue = StudyQueue(redis, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            queue.do(["entropy-s0", "entropy-s1"], stop)

        assert queue._queue.count == 0
        assert redis.keys("rq:job:*") == []

    def test_without_redis_it_says_so(self, tmp_path):
        with (
            Redis(port=free_port()) as nobody,
            pytest.raises(QueueError, match=r"Redis does not answer \(ConnectionError\): start it"),
        ):
            StudyQueue(nobody, tmp_path).do(["entropy-s0"], nothing)
