"""Runs tasks side by side, each side a process on one thread in its own environment, and checks the figures."""

import argparse
import json
import math
import operator
import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.special import entr, softmax

from ml_backend.blas import enable_deterministic_blas

ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".bench"  # by `make bench`: the peers' environment
OURS = ("torch", "torchvision", "numpy", "scipy", "pillow", "scikit-learn", "label-studio-active-learning")
PEERS = ("baal", "batchbald-redux", "scikit-activeml", "opencv-python-headless", "pyvips", "pillow", "torch")

# Each library reads one of them when it is imported.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VIPS_CONCURRENCY")
# For glibc: freed memory returns to the system at once, so that a call cannot reuse that of the call before it.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
COMPARISONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}


class BenchError(Exception):
    """A side cannot be started, or a task failed."""


class Run(NamedTuple):
    """One run of a task; ``extra_mib`` is the peak above what was resident before, None where that is unknown."""

    cpu_s: float
    wall_s: float
    extra_mib: float | None
    result: Any


class Side:
    """A process that runs ``tasks.py``.

    Args:
        python: its interpreter.
        name: of the log, which has what the libraries print.
        exact_memory: return freed memory to the system at once; for measuring memory, because it costs time.
        quick: run a short task once, instead of for a fifth of a second.
    """

    def __init__(self, python: str, name: str, *, exact_memory: bool = False, quick: bool = False) -> None:
        self.log = BUILT / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        environment = os.environ | dict.fromkeys(THREADS, "1") | (EXACT_MEMORY if exact_memory else {})
        enable_deterministic_blas(environment)
        environment |= {"PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT) if python == sys.executable else ""}
        # -P: a module of this folder must not be imported in place of a library's.
        command, pipe = [python, "-P", str(Path(__file__).with_name("tasks.py"))], subprocess.PIPE
        command += ["0"] if quick else []
        with self.log.open("wb") as stream:
            self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stream, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._child.kill()  # a task may take minutes
        self._child.communicate()

    def ask(self, request: object) -> Any:
        """Send one request of ``tasks.py`` and wait for its reply.

        Raises:
            BenchError: the task failed, or the process ended.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            pickle.dump(request, self._child.stdin)
            self._child.stdin.flush()
            reply = pickle.load(self._child.stdout)
        except (BrokenPipeError, EOFError) as error:
            last_line = "".join(self.log.read_text(errors="replace").strip().splitlines()[-1:])
            raise BenchError(f"{request}: the process ended; see {self.log}: {last_line}") from error
        if isinstance(reply, str):
            raise BenchError(reply)
        return reply


class Task:
    """A task of ``tasks.py`` with its arguments, on one side."""

    def __init__(self, side: Side, name: str, /, **arguments: object) -> None:
        self.side, self.name, self.arguments = side, name, arguments

    def run(self) -> Run:
        return Run(*self.side.ask((self.name, self.arguments, True)))


def side_by_side(tasks: Mapping[str, Task], repeats: int) -> dict[str, list[Run]]:
    """Run all tasks in turn, ``repeats`` times, so that other load of the machine affects all alike."""
    for task in tasks.values():
        task.side.ask((task.name, task.arguments, False))
    runs: dict[str, list[Run]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            runs[name].append(task.run())
    for side in {task.side for task in tasks.values()}:
        side.ask(None)  # drops what was prepared
    return runs


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Attributes:
        unit: of both values.
        baseline: what it is compared with, and that value; None where there is nothing, or it was not measured.
        target: comparison and value that the ratio has to reach.
        faster: the ratio is baseline over ours, else ours over baseline.
        absolute: the ratio is our value itself.
    """

    name: str
    unit: str
    ours: float
    baseline: tuple[str, float] | None = None
    target: tuple[str, float] | None = None
    faster: bool = False
    absolute: bool = False

    @property
    def ratio(self) -> float | None:
        if self.absolute:
            return self.ours
        if self.baseline is None:
            return None
        return self.baseline[1] / self.ours if self.faster else self.ours / self.baseline[1]

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches the target; None without a target or a ratio."""
        if self.target is None or self.ratio is None:
            return None
        return bool(COMPARISONS[self.target[0]](self.ratio, self.target[1]))

    def __str__(self) -> str:
        name = self.name if self.baseline is None else f"{self.name} / {self.baseline[0]}"
        theirs = "" if self.baseline is None else quantity(self.baseline[1], self.unit)
        ratio = "" if self.ratio is None else f"{self.ratio:.4g}"
        target = "" if self.target is None else f"{self.target[0]} {self.target[1]:.4g}"
        met = {True: "met", False: "MISSED", None: "open" if target else ""}[self.met]
        return f"  {name:62} {quantity(self.ours, self.unit):>11} {theirs:>11} {ratio:>9} {target:>9} {met}".rstrip()


@dataclass(frozen=True)
class Case:
    """What a case measured.

    Attributes:
        figures: lines of the report.
        runs: contender -> every run behind the figures.
        notes: what a reader has to know.
        differences: contender -> how far its result is from ours.
    """

    figures: Sequence[Figure]
    runs: Mapping[str, Sequence[Run]]
    notes: Sequence[str] = ()
    differences: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything but the results of the runs; of these the picks of a batch."""
        picks = {name: runs[0].result for name, runs in self.runs.items() if isinstance(runs[0].result, list)}
        figures = [vars(figure) | {"ratio": figure.ratio, "met": figure.met} for figure in self.figures]
        runs = {name: [run._replace(result=None)._asdict() for run in runs] for name, runs in self.runs.items()}
        return vars(self) | {"figures": figures, "runs": runs, "picks": picks}


@dataclass(frozen=True)
class Bench:
    """What a case works with.

    Attributes:
        peers: None where they are left out.
        sizes: name -> (as the targets are stated, tiny).
        folder: for the inputs that both sides read.
    """

    ours: Side
    peers: Side | None
    sizes: Mapping[str, tuple[Any, Any]]
    quick: bool
    repeats: int
    folder: Path

    def __getitem__(self, size: str) -> Any:
        return self.sizes[size][self.quick]

    def save(self, name: str, pool: npt.NDArray[np.float32]) -> str:
        """Write an input for both sides; returns its path."""
        np.save(self.folder / f"{name}.npy", pool)
        return str(self.folder / f"{name}.npy")

    def measure(self, tasks: Mapping[str, Task]) -> dict[str, list[Run]]:
        return side_by_side(tasks, self.repeats)


def cpu_s(runs: Sequence[Run]) -> float:
    """Median of the CPU seconds."""
    return median(run.cpu_s for run in runs)


def quantity(value: float, unit: str) -> str:
    """A value with three digits, seconds in the unit that fits."""
    for limit, factor, smaller in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")) if unit == "s" else ():
        if value < limit:
            return f"{value * factor:.3g} {smaller}"
    return f"{value:.3f} {unit}" if unit == "nats" else f"{value:.3g} {unit}"


def joint_information(
    probs: Float[npt.NDArray[np.floating], "picks passes classes"], configurations: int = 40_000, seed: int = 0
) -> tuple[float, float]:
    """Mutual information between the labels of a batch and the network, ``I(y_1 .. y_b; w) = log T - E_y H(w | y)``.

    The T passes are T equally probable networks. Exact where all ``classes ** picks`` labellings are no more than
    ``configurations``; otherwise at least that many are drawn, equally many from each network, which makes the estimate
    unbiased and keeps it between 0 and ``log T``. Shares no code with ``ml_backend.acquisition``, whose batches it
    compares.

    Args:
        probs: softmax outputs of the batch; each row sums to 1.
        configurations: labellings to draw at least.
        seed: of the drawn labellings.

    Returns:
        Nats and their standard error, 0 where every labelling was enumerated.

    Raises:
        ValueError: no pick, or no configuration.
    """
    picks, passes, classes = probs.shape
    if picks < 1 or configurations < 1:
        raise ValueError(f"at least 1 pick and 1 configuration are needed, got {picks} and {configurations}")
    exact = np.asarray(probs, dtype=np.float64)
    exact = exact / exact.sum(axis=-1, keepdims=True)
    if classes**picks <= configurations:
        log_joint = _log_joint(exact, np.indices((classes,) * picks).reshape(picks, -1))
        return math.log(passes) - float(np.exp(log_joint).mean(axis=1) @ _entropy(log_joint)), 0.0
    each = -(-configurations // passes)
    uniform = np.random.default_rng(seed).random((passes, each, picks, 1))
    thresholds = exact.cumsum(axis=-1)[..., :-1].transpose(1, 0, 2)[:, None]
    labellings = (uniform >= thresholds).sum(axis=-1).reshape(-1, picks).T
    entropies = _entropy(_log_joint(exact, labellings)).reshape(passes, each)
    # Equally many of each network: only the variance within a network's labellings is sampling error.
    error = math.sqrt(float(entropies.var(axis=1, ddof=1).mean()) / entropies.size) if each > 1 else math.inf
    return math.log(passes) - float(entropies.mean()), error


def _log_joint(
    probs: Float[npt.NDArray[np.float64], "picks passes classes"], labellings: npt.NDArray[np.integer]
) -> Float[npt.NDArray[np.float64], "labellings passes"]:
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    total = np.zeros((labellings.shape[1], probs.shape[1]))
    for pick, labels in zip(log_probs, labellings, strict=True):
        total += pick.T[labels]
    return total


def _entropy(
    log_joint: Float[npt.NDArray[np.float64], "labellings passes"],
) -> Float[npt.NDArray[np.float64], " labellings"]:
    """``H(w | y)`` of each labelling; 0 for one that every network excludes, whose weight is 0."""
    with np.errstate(invalid="ignore"):
        entropy: npt.NDArray[np.float64] = np.nan_to_num(entr(softmax(log_joint, axis=1)).sum(axis=1))
    return entropy


def main(cases: Mapping[str, Callable[[Bench], Case]], sizes: Mapping[str, tuple[Any, Any]]) -> None:
    """Run cases, and print their figures: no test, so that a missed target is no failure."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=main.__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"default: all of {', '.join(cases)}")
    parser.add_argument("--repeats", type=int, help="of every task; default 5, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="everything tiny: a trial of the benchmark itself")
    parser.add_argument("--no-peers", action="store_true", help="measure our side alone")
    parser.add_argument("--json", type=argparse.FileType("w"), help="write every run there")
    args = parser.parse_args()
    if unknown := set(args.cases) - cases.keys():
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known are {', '.join(cases)}")
    try:
        report = _report({name: cases[name] for name in args.cases or cases}, sizes, args)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    if args.json is not None:
        json.dump(report, args.json, indent=1)


def _report(
    cases: Mapping[str, Callable[[Bench], Case]], sizes: Mapping[str, tuple[Any, Any]], args: argparse.Namespace
) -> dict[str, Any]:
    load, measured = os.getloadavg()[0], dict[str, Case]()
    with ExitStack() as stack:
        ours, peers = stack.enter_context(Side(sys.executable, "ours", quick=args.quick)), None
        versions = {"ours": Task(ours, "versions", packages=OURS).run().result}
        if not args.no_peers:
            peers = stack.enter_context(Side(str(BUILT / "peers" / "bin" / "python"), "peers", quick=args.quick))
            versions["peers"] = Task(peers, "versions", packages=PEERS).run().result
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        bench = Bench(ours, peers, sizes, args.quick, args.repeats or (1 if args.quick else 5), folder)
        _say("case, figure / baseline: ours, baseline, ratio, target; medians of CPU time on one thread")
        for name, case in cases.items():
            measured[name] = found = case(bench)
            _say("\n".join([name, *map(str, found.figures), *(f"    {note}" for note in found.notes)]))
    machine = f"{_cpu()}, {os.cpu_count()} cores, load {load:.2f} -> {os.getloadavg()[0]:.2f}"
    missed = [f"{name}: {one.name}" for name, case in measured.items() for one in case.figures if one.met is False]
    _say(f"{machine}; medians of {bench.repeats}; {versions}")
    _say("quick: figures mean nothing" if args.quick else f"targets missed: {', '.join(missed) or 'none'}")
    head = {"date": datetime.now(UTC).isoformat(), "quick": args.quick, "repeats": bench.repeats, "machine": machine}
    return head | {"versions": versions, "missed": missed, "cases": {n: case.as_json() for n, case in measured.items()}}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _cpu() -> str:
    """The processor, with what decides most about a matrix product."""
    path = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in (path.read_text().splitlines() if path.exists() else [])]
    found = {name.strip(): value.strip() for name, _, value in lines}
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in found.get("flags", "").split()]
    return f"{found.get('model name') or platform.machine()} ({', '.join(units)})"
