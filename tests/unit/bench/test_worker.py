"""What a worker answers, in this process and through its pipe."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ml_backend.bench import worker
from ml_backend.bench.process import BenchError, Side, side_by_side
from ml_backend.bench.worker import Worker

TASKS_FILE = """
import os
import sys
import numpy as np

def double(number):
    return lambda: 2 * number

def row(length):
    return lambda: np.arange(length)

def talk():
    print("this must not disturb the answers")
    return lambda: print("nor this")

def fail():
    return lambda: 1 / 0

def die():
    return lambda: (print("out of luck", file=sys.stderr, flush=True), os._exit(3))

def threads():
    import torch
    return torch.get_num_threads

TASKS = {task.__name__: task for task in (double, row, talk, fail, die, threads)}
"""


def array_worker() -> Worker:
    return Worker({"row": lambda length: lambda: np.arange(length), "fill": lambda mib: lambda: filled(mib)})


def filled(mib: int) -> None:
    np.ones(mib * 2**20, dtype=np.uint8).sum()


def napping(seconds: float) -> tuple[Worker, list[float]]:
    """A worker whose task sleeps, and notes every time that it does."""
    calls: list[float] = []

    def nap() -> None:
        calls.append(seconds)
        time.sleep(seconds)

    return Worker({"nap": lambda: nap}), calls


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    folder = tmp_path_factory.mktemp("side")
    (folder / "tasks.py").write_text(TASKS_FILE)
    with Side("trial", Path(sys.executable), str(folder / "tasks.py"), folder / "logs" / "log") as started:
        yield started


class TestWorker:
    def test_prepares_runs_and_forgets(self):
        one = array_worker()
        number = one.answer({"do": "prepare", "task": "row", "args": {"length": 4}})["id"]
        answer = one.answer({"do": "run", "id": number})

        assert answer["result"] == [4]
        assert answer["cpu_s"] >= 0.0
        assert one.answer({"do": "drop", "id": number}) == {}
        with pytest.raises(KeyError):
            one.answer({"do": "run", "id": number})

    def test_a_short_task_is_done_many_times_and_told_as_one(self):
        """Twenty milliseconds of sleep take twenty, however often they are slept; and they cost no processor time."""
        one, calls = napping(0.02)
        one.answer({"do": "prepare", "task": "nap", "args": {}})

        answer = one.answer({"do": "run", "id": 0})

        assert 5 < len(calls) <= 12
        assert 0.02 <= answer["wall_s"] < 0.2
        assert answer["cpu_s"] < answer["wall_s"]

    def test_a_long_task_is_done_once(self):
        one, calls = napping(0.25)
        one.answer({"do": "prepare", "task": "nap", "args": {}})

        one.answer({"do": "run", "id": 0})

        assert len(calls) == 1

    def test_writes_an_array_where_it_is_told_to(self, tmp_path):
        one = array_worker()
        one.answer({"do": "prepare", "task": "row", "args": {"length": 3}})

        assert one.answer({"do": "run", "id": 0, "save": str(tmp_path / "row.npy")})["result"] is None
        assert np.load(tmp_path / "row.npy").tolist() == [0, 1, 2]

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets the peak")
    def test_measures_the_peak_that_a_task_adds(self):
        """Freed at the end, seen all the same."""
        one = array_worker()
        one.answer({"do": "prepare", "task": "fill", "args": {"mib": 200}})
        one.answer({"do": "prepare", "task": "fill", "args": {"mib": 1}})

        assert one.answer({"do": "run", "id": 0})["extra_mib"] == pytest.approx(200, abs=20)
        assert one.answer({"do": "run", "id": 1})["extra_mib"] < 100

    def test_without_a_kernel_that_tells_the_peak_is_the_whole_process(self, monkeypatch):
        monkeypatch.setattr(worker, "_memory_before", lambda: None)
        one = array_worker()
        one.answer({"do": "prepare", "task": "row", "args": {"length": 1}})

        assert one.answer({"do": "run", "id": 0})["extra_mib"] > 10

    def test_refuses_what_it_does_not_know(self):
        with pytest.raises(ValueError, match="do='dance': expected one of prepare, run"):
            array_worker().answer({"do": "dance"})

    def test_names_versions(self):
        assert array_worker().answer({"do": "versions", "packages": ["numpy"]})["numpy"] == np.__version__


class TestSide:
    def test_runs_a_task(self, side):
        task = side.prepare("double", number=21)

        assert task.run().result == 42

    def test_saves_a_result(self, side, tmp_path):
        side.prepare("row", length=3).run(save=tmp_path / "row.npy")

        assert np.load(tmp_path / "row.npy").tolist() == [0, 1, 2]

    def test_what_a_library_prints_goes_to_the_log(self, side):
        assert side.prepare("talk").run().result is None

    def test_is_on_one_thread(self, side):
        """Torch's own count."""
        assert side.prepare("threads").run().result == 1

    def test_a_task_that_fails_is_named_and_the_side_goes_on(self, side):
        with pytest.raises(BenchError, match="trial: run failed: ZeroDivisionError"):
            side.prepare("fail").run()
        assert side.prepare("double", number=1).run().result == 2

    def test_an_unknown_task_is_named(self, side):
        with pytest.raises(BenchError, match="trial: nonsense failed: KeyError"):
            side.prepare("nonsense")

    def test_side_by_side_takes_turns(self, side):
        found = side_by_side({"a": side.prepare("double", number=1), "b": side.prepare("double", number=2)}, repeats=3)

        assert {name: [one.result for one in runs] for name, runs in found.items()} == {"a": [2] * 3, "b": [4] * 3}

    def test_a_process_that_dies_says_its_last_words(self, tmp_path):
        (tmp_path / "tasks.py").write_text(TASKS_FILE)
        with Side("trial", Path(sys.executable), str(tmp_path / "tasks.py"), tmp_path / "log") as mortal:
            task = mortal.prepare("die")
            with pytest.raises(BenchError, match=r"trial: run: the process ended \(out of luck\); see .*log"):
                task.run()
            with pytest.raises(BenchError, match="the process ended"):
                task.run()

    def test_an_interpreter_that_is_not_there(self, tmp_path):
        with pytest.raises(BenchError, match="none cannot be started: No such file"):
            Side("trial", tmp_path / "none", "tasks.py", tmp_path / "log")


class TestAlone:
    def test_needs_nothing_of_this_package(self, tmp_path):
        """The peers' interpreter has no ml_backend: an isolated one must be able to run the program."""
        (tmp_path / "tasks.py").write_text("TASKS = {'nine': lambda: lambda: 9}")
        program = (
            "import runpy, sys\n"
            "sys.modules['ml_backend'] = None\n"
            f"sys.argv = ['worker.py', {str(tmp_path / 'tasks.py')!r}]\n"
            f"runpy.run_path({worker.__file__!r}, run_name='__main__')\n"
        )
        requests = [{"do": "prepare", "task": "nine", "args": {}}, {"do": "run", "id": 0}, {"do": "run", "id": 5}]
        done = subprocess.run(
            [sys.executable, "-c", program],
            input="\n".join(map(json.dumps, requests)), capture_output=True, text=True, timeout=60, check=True,
            env={**os.environ},
        )  # fmt: skip

        answers = [json.loads(line) for line in io.StringIO(done.stdout)]
        assert answers[0] == {"id": 0}
        assert answers[1]["result"] == 9
        assert answers[2] == {"error": "KeyError: 5"}
