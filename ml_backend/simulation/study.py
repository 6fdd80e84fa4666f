"""The story of ``ml-backend simulate``: plan, runs, results, report."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console

from ml_backend.errors import SettingsError, StorageError
from ml_backend.scheduling import connect_redis
from ml_backend.schemas import FrozenModel
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.options import SimulateOptions, make_plan, open_study
from ml_backend.simulation.parallel import StudyProgress, StudyQueue, on_own_workers
from ml_backend.simulation.plan import StudyPlan
from ml_backend.simulation.run import do_run, journal_of, write_results
from ml_backend.simulation.run_log import BaselineRow, BatchRow, RoundRow, StudyResults, StudySummary
from ml_backend.simulation.tables import SIDES
from ml_backend.storage.atomic import read_record, write_record

INTERRUPTED: Final = 130  # what a shell says of a program that Ctrl-C ended


class _Spent(FrozenModel):
    """Time that earlier calls have spent on a study."""

    seconds: float = 0.0


def run_study(options: SimulateOptions, console: Console | None = None) -> int:
    """Do a study, or what is left of it, and write its results and its report.

    Args:
        options: what is asked for.
        console: where to tell how far it is; the terminal by default.

    Returns:
        Exit status: 0, or 130 where Ctrl-C has stopped it.

    Raises:
        SettingsError: an option or a table is wrong, or the folder holds another study.
        BackendError: a run came to nothing, or the disk or Redis refuses.
    """
    console = console or Console()
    if options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: wanted 1 or more")
    plan, data = make_plan(options)
    out = options.out
    with _only_one(out), _clock(out):
        plan = _same_or_new(plan, out)
        rounds = plan.rounds(len(data.classes), len(data.labels("train")))
        compared = len(plan.strategies) * len(plan.variants) * len(plan.seeds)
        total = compared * rounds + len(plan.variants) * len(plan.seeds)
        with StudyProgress(console, total) as progress:
            for note in data.notes:
                progress.say(f"note: {note}")
            progress.say(f"runs: {compared} of {rounds} rounds at most; baselines: {total - compared * rounds}")
            try:
                _do_runs(options, plan, data, progress)
            except KeyboardInterrupt:
                progress.say(f"stopped; the same command goes on from here: {plan.command}")
                return INTERRUPTED
    results = collect(plan, data, out)
    write_results(results, out)
    # Draws with what only a report needs.
    from ml_backend.simulation.report import write_report  # noqa: PLC0415

    write_report(results, out / "report.html")
    console.print(f"{out / 'report.html'} tells what came out", markup=False, highlight=False, soft_wrap=True)
    return 0


def collect(plan: StudyPlan, data: DataSet, out: Path) -> StudyResults:
    """What the runs of a study have done so far, in the order of the plan.

    Raises:
        StorageError: a journal is damaged.
    """
    rounds: list[RoundRow] = []
    batches: list[BatchRow] = []
    baselines: list[BaselineRow] = []
    for run in plan.runs():
        journal = journal_of(out, run)
        if run.is_baseline:
            baselines += [row for row in [journal.baseline()] if row is not None]
            continue
        done, chosen = journal.read()
        rounds += done
        batches += chosen
    return StudyResults(_summary(plan, data, out, rounds), tuple(rounds), tuple(batches), tuple(baselines))


def _do_runs(options: SimulateOptions, plan: StudyPlan, data: DataSet, progress: StudyProgress) -> None:
    out, runs = options.out, plan.in_turn()
    journals = {run.name: journal_of(out, run) for run in runs}

    def look() -> None:
        progress.show(sum(journal.rounds_done() for journal in journals.values()))

    look()
    left = [run for run in runs if not journals[run.name].is_done]
    names = [run.name for run in left]
    if options.redis is not None:
        with connect_redis(options.redis, patient=True) as redis:
            StudyQueue(redis, out).do(names, look)
    elif options.workers > 1 and len(left) > 1:
        with on_own_workers(min(options.workers, len(left)), out, plan.device) as (queue, watch):

            def watch_and_look() -> None:
                watch()
                look()

            queue.do(names, watch_and_look)
    else:
        study = open_study(plan, out, data)
        for run in left:
            do_run(run, study, journals[run.name], look)


def _same_or_new(plan: StudyPlan, out: Path) -> StudyPlan:
    """The plan that began the study in this folder: it says when, and by which command."""
    earlier = read_record(out / "plan.json", StudyPlan)
    if earlier is None:
        write_record(out / "plan.json", plan)
        return plan
    plan.check_same(earlier)
    return earlier


def _summary(plan: StudyPlan, data: DataSet, out: Path, rounds: list[RoundRow]) -> StudySummary:
    counts = data.counts()
    spent = read_record(out / "spent.json", _Spent) or _Spent()
    return StudySummary(
        command=plan.command,
        started_at=plan.started_at,
        seconds=spent.seconds,
        classes=data.classes,
        images={side: sum(counts[side].values()) for side in SIDES},
        labels_per_class={side: counts[side] for side in SIDES},
        strategies=plan.strategies,
        variants=plan.variants,
        seeds=plan.seeds,
        rounds=max((row.round for row in rounds), default=0),
        passes=int(str(plan.options["passes"])),
        batch_size=int(str(plan.options["batch_size"])),
        initial_per_class=plan.initial,
        profile=plan.profile,
        options=plan.options,
        versions=plan.versions,
        digests=plan.digests,
        notes=data.notes,
    )


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Two commands on one folder would do every run twice."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / "lock").open("wb")
    except OSError as error:
        raise StorageError(f"--out {str(out)!r} cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"another `ml-backend simulate` writes to {out}: wait for it, or give another --out"
            ) from error
        yield


@contextmanager
def _clock(out: Path) -> Iterator[None]:
    """Adds up the time of all calls, stopped ones too."""
    begun = time.monotonic()
    try:
        yield
    finally:
        before = read_record(out / "spent.json", _Spent) or _Spent()
        write_record(out / "spent.json", _Spent(seconds=before.seconds + time.monotonic() - begun))
