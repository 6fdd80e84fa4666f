"""The story of a benchmark: start both sides, go through the cases, write table and JSON."""

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from ml_backend.bench.cases import CASES, FULL, QUICK, Bench
from ml_backend.bench.cases.batches import POOL_SEED
from ml_backend.bench.environment import PEERS, peers_python
from ml_backend.bench.machine import describe_machine, load
from ml_backend.bench.process import BenchError, Side
from ml_backend.bench.report import BenchReport, CaseReport, bench_table

__all__ = ["BenchOptions", "chosen_cases", "recorded", "run_bench"]

_OURS = ("torch", "torchvision", "numpy", "scipy", "pillow", "scikit-learn", "label-studio-active-learning")
_MISSING_WAY_OUT = "name a file in a folder that exists and can be written"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What the command was asked for.

    Attributes:
        only: names of cases; empty for all.
        repeats: of every task; by default 5, with ``quick`` 1.
        quick: everything tiny.
        peers: measure them too.
        folder: of the peers' environment and the logs.
        images: films of the user's for the decoding; None for drawn ones.
        json: where the report is written.
        record: where the picks of batchbald-redux are written, for a test without it.
    """

    only: tuple[str, ...] = ()
    repeats: int | None = None
    quick: bool = False
    peers: bool = True
    folder: Path = Path(".bench")
    images: Path | None = None
    json: Path | None = None
    record: Path | None = None


def run_bench(options: BenchOptions) -> BenchReport:
    """Measure every case, side by side in one run, and show the figures.

    Raises:
        BenchError: an unknown case, no environment for the peers, a task that failed, a file that cannot be written.
    """
    console = Console()
    cases = chosen_cases(options.only)
    if options.record is not None and not options.peers:
        raise BenchError("--record writes what batchbald-redux picks: leave --no-peers out")
    for path in (options.json, options.record):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchError(f"{path}: there is no folder {path.absolute().parent}: {_MISSING_WAY_OUT}")
    repeats = options.repeats or (1 if options.quick else 5)
    before = load()
    # As Ctrl-C does: the sides are ended and the drawn pools removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="ml-backend-bench-")))
        logs = options.folder / "logs"
        ours = stack.enter_context(_our_side(logs / "ours.log"))
        peers = stack.enter_context(_peers_side(options.folder, console)) if options.peers else None
        bench = Bench(
            ours=ours,
            peers=peers,
            fresh=lambda: _our_side(logs / "ours_memory.log", exact_memory=True),
            scale=QUICK if options.quick else FULL,
            repeats=repeats,
            folder=folder,
            images=options.images,
        )
        versions = {"ours": ours.versions(_OURS)} | ({} if peers is None else {"peers": peers.versions(PEERS)})
        found = [_measured(name, case, bench, console) for name, case in cases.items()]
    report = BenchReport(
        date=datetime.now(UTC),
        quick=options.quick,
        repeats=repeats,
        machine=describe_machine(),
        load_before=before,
        load_after=load(),
        versions=versions,
        cases=tuple(found),
    )
    _show(report, console)
    if options.json is not None:
        _write(options.json, report.model_dump_json(indent=2))
    if options.record is not None:
        _write(options.record, json.dumps(recorded(report), indent=1))
    return report


def chosen_cases(only: Sequence[str]) -> dict[str, Callable[[Bench], CaseReport]]:
    """The cases of those names; all for none.

    Raises:
        BenchError: there is no such case.
    """
    for name in only:
        if name not in CASES:
            raise BenchError(f"--only {name!r}: known are {', '.join(CASES)}")
    return {name: case for name, case in CASES.items() if not only or name in only}


def recorded(report: BenchReport) -> dict[str, object]:
    """What batchbald-redux picked, and from which pools; for a test that has no peers.

    Raises:
        BenchError: none of its cases was run, or not on the whole pool.
    """
    picks = {case.name: case.picks["batchbald-redux"] for case in report.cases if "batchbald-redux" in case.picks}
    if report.quick or not picks:
        raise BenchError("--record needs batch_bald_1000_k2 or _k3, and no --quick")
    return {
        "made_by": "ml-backend bench --only batch_bald_1000_k2 --only batch_bald_1000_k3 --record FILE",
        "library": f"batchbald-redux {report.versions['peers']['batchbald-redux']}",
        "num_samples": FULL.redux_configurations,
        "pool": {"generator": "near_duplicate_pool", "images": FULL.pool, "passes": FULL.passes, "seed": POOL_SEED},
        "picks": {name.removeprefix("batch_bald_1000_k"): list(batch) for name, batch in picks.items()},
    }


def _our_side(log: Path, *, exact_memory: bool = False) -> Side:
    return Side("ours", Path(sys.executable), "tasks_ours.py", log, exact_memory=exact_memory)


def _peers_side(folder: Path, console: Console) -> Side:
    with console.status("building the peers' environment (several GB of torch, unless a cache has it)"):
        python = peers_python(folder.absolute() / "peers")
    return Side("peers", python, "tasks_peers.py", folder / "logs" / "peers.log")


def _measured(name: str, case: Callable[[Bench], CaseReport], bench: Bench, console: Console) -> CaseReport:
    with console.status(f"{name} ..."):
        return case(bench)


def _show(report: BenchReport, console: Console) -> None:
    console.print(bench_table(report.cases, quick=report.quick))
    for case in report.cases:
        for note in case.notes:
            console.print(f"{case.name}: {note}", highlight=False, style="dim")
    machine = report.machine
    console.print(
        f"{machine.cpu}, {machine.cores} cores, load {_load(report.load_before)} -> {_load(report.load_after)}"
    )
    console.print(f"{_versions(report.versions)}; medians of {report.repeats}", highlight=False)
    if report.quick:
        console.print("quick: figures mean nothing", style="bold red")
    elif report.missed:
        console.print(f"floors missed: {', '.join(report.missed)}", style="bold red")
    else:
        console.print("every floor that was measured is met", style="bold green")


def _load(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _versions(versions: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(
        f"{side}: " + ", ".join(f"{package} {version}" for package, version in packages.items())
        for side, packages in versions.items()
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror or error}: {_MISSING_WAY_OUT}") from error
