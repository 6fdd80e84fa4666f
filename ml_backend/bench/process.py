"""One side of the comparison: a process of its own, on one thread; see ``worker`` for what it is told."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ml_backend.bench.report import Run
from ml_backend.errors import BackendError

__all__ = ["BenchError", "Measured", "Prepared", "Side", "side_by_side"]

_HERE = Path(__file__).parent

# Each library reads one of them when it is imported; torch all that it needs from the first.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VIPS_CONCURRENCY"), "1"
)

_EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""For glibc: what is freed goes back to the system at once, so that a call cannot hide in memory of the one before."""


class BenchError(BackendError):
    """The comparison cannot be made: a side did not start, or one of its tasks failed."""


class Measured(NamedTuple):
    """One run of a task and what it returned."""

    run: Run
    result: Any


class Side:
    """A worker process.

    Args:
        name: what an error calls it.
        python: its interpreter.
        tasks: file with its tasks.
        log: where what it prints is kept.
        exact_memory: give freed memory back at once, which costs time: for measuring memory, not time.

    Raises:
        BenchError: the process cannot be started.
    """

    def __init__(self, name: str, python: Path, tasks: str, log: Path, *, exact_memory: bool = False) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **_ONE_THREAD,
            **(_EXACT_MEMORY if exact_memory else {}),
            "PYTHONWARNINGS": "ignore",
        }
        # -P: a module of ours must not stand in for one that a library imports by the same name.
        command = [str(python), "-P", str(_HERE / "worker.py"), str(_HERE / tasks)]
        try:
            with log.open("wb") as stream:
                self._child = subprocess.Popen(  # noqa: S603 - our own program
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment, text=True
                )
        except OSError as error:
            raise BenchError(f"{name}: {python} cannot be started: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._child.kill()  # a task may be in the middle of minutes of work
        self._child.communicate()

    def prepare(self, task: str, **args: object) -> "Prepared":
        """Everything of a task that must not be timed: reading its input, building its network."""
        return Prepared(self, self.ask({"do": "prepare", "task": task, "args": args})["id"])

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Of its Python and of the packages, as installed there."""
        found: dict[str, str] = self.ask({"do": "versions", "packages": list(packages)})
        return found

    def ask(self, request: Mapping[str, object]) -> Any:
        """Send one request and wait for its answer.

        Raises:
            BenchError: the task failed, or the process ended.
        """
        what = f"{self.name}: {request.get('task', request['do'])}"
        try:
            assert self._child.stdin is not None and self._child.stdout is not None  # noqa: S101, PT018 - both are pipes
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(f"{what}: the process ended{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{what} failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f" ({lines[-1]}); see {self._log}" if lines else ""


class Prepared:
    """A task that only needs to be run."""

    def __init__(self, side: Side, number: int) -> None:
        self._side = side
        self._number = number

    def run(self, save: Path | None = None) -> Measured:
        """Run it once.

        Args:
            save: where its result, an array, is written (.npy); by default the result is returned.
        """
        answer = self._side.ask({"do": "run", "id": self._number, "save": None if save is None else str(save)})
        result = answer.pop("result")
        return Measured(Run.model_validate(answer), result)

    def drop(self) -> None:
        """Let go of its memory."""
        self._side.ask({"do": "drop", "id": self._number})


def side_by_side(tasks: Mapping[str, Prepared], repeats: int) -> dict[str, list[Measured]]:
    """Run each in turn, and that ``repeats`` times: what else the machine does meets all of them alike."""
    found: dict[str, list[Measured]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            found[name].append(task.run())
    for task in tasks.values():
        task.drop()
    return found
