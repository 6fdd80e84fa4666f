"""The program of one side of the comparison: does tasks and says how long they took.

Stand-alone, because the peers' interpreter knows nothing of this package: ``python worker.py <tasks file>``.
It reads one JSON object a line and answers with one::

    {"do": "prepare", "task": "decode", "args": {}}   ->  {"id": 0}
    {"do": "run", "id": 0, "save": "scores.npy"}      ->  {"cpu_s": 0.1, "wall_s": 0.1, "extra_mib": 5.5, "result": ...}
    {"do": "drop", "id": 0}                           ->  {}
    {"do": "versions", "packages": ["torch"]}         ->  {"python": "3.11.4", "torch": "2.15.0"}

An array is written to ``save``; without it, and that is how it is timed, its shape is the result. The seconds are those
of one call: a task that is done in less than 0.2 s is done again for about that long, and the mean taken.

The tasks file defines ``TASKS``: name -> a function that takes ``args``, does what must not be timed, and returns what
is timed. A task that fails is answered with ``{"error": "..."}``.
"""

import gc
import importlib.metadata
import json
import math
import os
import platform
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Worker", "main"]

# A shorter task is done again and again for about that long, as timeit does it: else its figure would mostly be that
# of caches which the other side's turn has emptied, and a long task's would not.
_SHORT_S = 0.2


class Worker:
    """Prepares, runs and forgets tasks.

    Args:
        tasks: name -> function that prepares one.
    """

    def __init__(self, tasks: Mapping[str, Callable[..., Callable[[], Any]]]) -> None:
        self._tasks = tasks
        self._prepared: dict[int, Callable[[], Any]] = {}
        self._count = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what one request asks for, and return what is answered.

        Raises:
            KeyError: there is no such task, or it was not prepared.
            ValueError: there is nothing of that name to do.
        """
        answers: dict[str, Callable[..., dict[str, Any]]] = {
            "prepare": self._prepare,
            "run": self._run,
            "drop": self._drop,
            "versions": self._versions,
        }
        what = request.pop("do", "nothing")
        if what not in answers:
            raise ValueError(f"do={what!r}: expected one of {', '.join(answers)}")
        return answers[what](**request)

    def _prepare(self, task: str, args: dict[str, Any]) -> dict[str, Any]:
        self._prepared[self._count] = self._tasks[task](**args)
        self._count += 1
        return {"id": self._count - 1}

    def _run(self, id: int, save: str | None = None) -> dict[str, Any]:  # noqa: A002 - the protocol's word
        call = self._prepared[id]
        gc.collect()
        before = _memory_before()
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        extra = _extra_mib(before)
        if wall < _SHORT_S:
            cpu, wall = _of_many(call, math.ceil(_SHORT_S / max(wall, 1e-4)))
        if save is not None:
            np.save(save, result)
            result = None
        elif isinstance(result, np.ndarray):
            result = list(result.shape)
        return {"cpu_s": cpu, "wall_s": wall, "extra_mib": extra, "result": result}

    def _drop(self, id: int) -> dict[str, Any]:  # noqa: A002 - the protocol's word
        del self._prepared[id]
        return {}

    def _versions(self, packages: list[str]) -> dict[str, Any]:
        return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def main(tasks_file: str) -> None:
    """Answer requests until standard input ends."""
    # A library that prints would break the protocol: what it prints goes to the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(runpy.run_path(tasks_file)["TASKS"])
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is told to the parent, which ends
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _of_many(call: Callable[[], Any], times: int) -> tuple[float, float]:
    """Seconds of one of many calls, of the processor and on the wall."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - cpu) / times, (time.perf_counter() - wall) / times


def _memory_before() -> int | None:
    """Resident KiB before a task, once the kernel's record of the peak was reset; None where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_kib("VmRSS")
    except OSError:
        return None


def _extra_mib(before: int | None) -> float | None:
    """By how many MiB the peak stands above ``before``; without it, above nothing: the peak of the whole process."""
    if before is not None:
        return (_status_kib("VmHWM") - before) / 1024
    try:
        import resource  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main(sys.argv[1])
