"""The study behind ``ml-backend simulate`` and every experiment: options in, results and a report out."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ml_backend.blas import enable_deterministic_blas
from ml_backend.errors import SettingsError, StorageError
from ml_backend.scheduling import connect_redis
from ml_backend.schemas import FrozenModel
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.options import SimulateOptions, make_plan
from ml_backend.simulation.parallel import run_in_processes, run_on_workers
from ml_backend.simulation.plan import StudyPlan
from ml_backend.simulation.run import do_run, open_study
from ml_backend.simulation.run_log import (
    BaselineRow,
    BatchRow,
    ColdRow,
    RoundRow,
    RunLog,
    StudyResults,
    StudySummary,
    write_results,
)
from ml_backend.simulation.tables import SIDES
from ml_backend.storage.atomic import read_record, write_record

LINE_EVERY_S: Final = 30.0
UNLIMITED: Final = 10_000  # characters of a line in a file


class _TimeSpent(FrozenModel):
    """Seconds that earlier calls have spent on a study."""

    seconds: float = 0.0


def simulate(options: SimulateOptions, console: Console | None = None) -> StudyResults:
    """Run a study, or continue one, and write its results and report to ``options.out``.

    A study in that folder goes on where it stopped. With more strategies, more seeds, a larger budget, or without its
    ``no_baseline``, it grows: only what is missing is done, with the same result as of a new study.

    Args:
        options: of the study.
        console: target of the progress; the terminal by default.

    Returns:
        The results of all runs; ``run_log.to_frame`` makes pandas frames of their rows.

    Raises:
        SettingsError: an option or a table is wrong, or the folder holds another study.
        BackendError: a run failed, or the disk or Redis refuses.
        KeyboardInterrupt: Ctrl-C; the same command continues the study.
    """
    enable_deterministic_blas()
    console = console or Console()
    plan, data = make_plan(options)
    out = options.out
    with _locked(out), _clock(out):
        plan = _same_or_new(plan, out)
        rounds = plan.rounds(len(data.classes), len(data.labels("train")))
        compared = len(plan.strategies) * len(plan.variants) * len(plan.seeds)
        baselines = len(plan.variants) * len(plan.seeds) * plan.baseline
        with StudyProgress(console, compared * rounds + baselines) as progress:
            for note in data.notes:
                progress.say(f"note: {note}")
            progress.say(f"runs: {compared}, each of at most {rounds} rounds; baselines: {baselines}")
            try:
                _do_runs(options, plan, data, progress)
            except KeyboardInterrupt:
                progress.say(f"stopped; the same command continues from here: {plan.command}")
                raise
    # Imports what only a report needs.
    from ml_backend.simulation.report import conclusion, summarized, write_figures, write_report  # noqa: PLC0415

    results = summarized(collect(plan, data, out))
    write_results(results, out)

    say = partial(print_line, console)
    say(results.summary.protocol)
    if not results.rounds:
        (out / "report.html").unlink(missing_ok=True)
        say(
            f"no network was trained: {plan.budget} {plan.unit} did not complete the start; give a larger --budget or "
            f"a smaller --{'initial' if plan.start == 'given' else 'min-labels-per-class'}"
        )
        return results
    write_report(results, out / "report.html")
    write_figures(results, out / "figures")
    print_table(conclusion(results), console)
    say(f"learning curves for a paper, as SVG and PDF: {out / 'figures'}")
    say(f"report: {out / 'report.html'}")
    return results


def collect(plan: StudyPlan, data: DataSet, out: Path) -> StudyResults:
    """The results of the runs of a study so far, in the order of the plan.

    Raises:
        StorageError: the log of a run is damaged.
    """
    counts = data.counts()
    same = (StudyPlan.model_fields.keys() & StudySummary.model_fields.keys()) - {"images"}
    summary = StudySummary(
        **plan.model_dump(include=same),
        seconds=_seconds_spent(out),
        classes=data.classes,
        images={side: sum(counts[side].values()) for side in SIDES},
        labels_per_class={side: counts[side] for side in SIDES},
        variants=plan.variants,
        protocol=protocol(plan, data),
        rounds=0,
        passes=int(str(plan.options["passes"])),
        batch_size=int(str(plan.options["batch_size"])),
        initial_per_class=plan.initial,
        notes=data.notes,
    )
    results = _read_rows(plan, summary, out)
    last = max((row.round for row in (*results.rounds, *results.cold)), default=0)
    return replace(results, summary=summary.model_copy(update={"rounds": last}))


def read_study(out: Path) -> tuple[StudyPlan, StudyResults]:
    """The plan and the results of a finished study, without its tables and images.

    Raises:
        SettingsError: the folder holds no finished study.
        StorageError: a file of it is damaged.
    """
    plan, summary = read_record(out / "plan.json", StudyPlan), read_record(out / "summary.json", StudySummary)
    if plan is None or summary is None:
        raise SettingsError(
            f"{str(out)!r} holds no finished study (no {'plan' if plan is None else 'summary'}.json): give the --out "
            "of an `ml-backend simulate` that came to its end"
        )
    return plan, _read_rows(plan, summary, out)


def _read_rows(plan: StudyPlan, summary: StudySummary, out: Path) -> StudyResults:
    rounds: list[RoundRow] = []
    cold: list[ColdRow] = []
    batches: list[BatchRow] = []
    baselines: list[BaselineRow] = []
    for run in plan.runs():
        log = RunLog.of(run, plan, out)
        if run.is_baseline:
            baselines += [row for row in [log.baseline()] if row is not None]
        else:
            done, picked = log.read()
            rounds += [row for row in done if isinstance(row, RoundRow)]
            cold += [row for row in done if isinstance(row, ColdRow)]
            batches += picked
    return StudyResults(summary, tuple(rounds), tuple(batches), tuple(baselines), tuple(cold))


def protocol(plan: StudyPlan, data: DataSet) -> str:
    """How the runs of a study start, and which labels count, in a sentence."""
    read = ""
    if plan.readers or data.ratings:
        who = f"{len(plan.readers)} synthetic readers" if plan.readers else "the readers of --ratings"
        reads = f"at most {plan.reads}" if plan.reads else "all"
        answers = "answer" if plan.reads == 1 else "answers"
        read = f" Labels: {plan.options['consensus']} of {reads} {answers} an image, by {who}."
    if plan.count == "reads":
        read += " Budget, curves and labels needed count reads, not images."
    if plan.start == "live":
        return f"Live start: every label counts, the start and the validation included.{read}"
    uncounted = f", and {n} validation labels that are not counted" if (n := len(data.labels("val"))) else ""
    start = plan.initial * len(data.classes)
    return f"Given start (the paper's protocol): {start} start images found by their true label{uncounted}.{read}"


def _do_runs(options: SimulateOptions, plan: StudyPlan, data: DataSet, progress: "StudyProgress") -> None:
    out = options.out
    logs = {run.name: RunLog.of(run, plan, out) for run in plan.runs()}

    def show() -> None:
        progress.show(sum(log.rounds_done() for log in logs.values()))

    show()
    left = [run for run in plan.in_turn() if not logs[run.name].is_done]
    names = [run.name for run in left]
    if options.redis is not None:
        with connect_redis(options.redis, patient=True) as redis:
            run_on_workers(redis, names, out, show)
    elif options.workers > 1 and len(left) > 1:
        run_in_processes(names, out, workers=options.workers, watch=show, note=progress.say)
    else:
        study = open_study(plan, out, data)
        for run in left:
            do_run(run, study, logs[run.name], show)


def _same_or_new(plan: StudyPlan, out: Path) -> StudyPlan:
    """The plan of the study in this folder: that of the command which began it, or which let it grow."""
    earlier = read_record(out / "plan.json", StudyPlan)
    if earlier is None:
        write_record(out / "plan.json", plan)
        return plan
    plan = plan.continued(earlier)
    if plan.budget > earlier.budget:
        for run in earlier.runs():
            if not run.is_baseline:
                RunLog(out, run.name).reopen()
    if plan != earlier:
        write_record(out / "plan.json", plan)
    return plan


@contextmanager
def _locked(out: Path) -> Iterator[None]:
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
        write_record(out / "spent.json", _TimeSpent(seconds=_seconds_spent(out) + time.monotonic() - begun))


def _seconds_spent(out: Path) -> float:
    return (read_record(out / "spent.json", _TimeSpent) or _TimeSpent()).seconds


def print_line(console: Console, text: str) -> None:
    """Print a text as it is: unmarked, and whole where a line is long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """Print a table without cutting a cell off: folded on a terminal, as wide as it needs elsewhere."""
    for column in table.columns:
        column.overflow = "fold"
    table.box, table.show_edge, table.pad_edge = SIMPLE_HEAD, False, False
    if not console.is_terminal:
        table.width = console.measure(table, options=console.options.update_width(UNLIMITED)).maximum
    console.print(table, markup=False, highlight=False, crop=False)


class StudyProgress(Progress):
    """Shows the rounds done in all runs together: a bar with the time left on a terminal, else a line now and then.

    Args:
        console: to print to.
        total: rounds in all, at most: a run may use its pool up earlier.
    """

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            get_time=time.monotonic,
            speed_estimate_period=3600,
        )
        self._rounds = self.add_task("rounds", total=total)
        self._printed = time.monotonic()

    def show(self, done: int) -> None:
        """Show that so many rounds are done; those of the first call are of an earlier study, without a pace."""
        self.update(self._rounds, completed=done)
        if self.disable and time.monotonic() - self._printed >= LINE_EVERY_S:
            self._printed = time.monotonic()
            words, left = f"{done} of {self.tasks[0].total} rounds", self.tasks[0].time_remaining
            if left is not None:
                words += f", about {left / 60:.0f} min left" if left >= 60 else ", less than a minute left"
            self.say(words)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=self.disable)
