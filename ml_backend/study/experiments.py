"""The story of ``ml-backend experiment``: what is expected, the studies, what they found.

Without tables of the user's own they run on drawn films, seen through a network that nobody has trained, so that they
run anywhere in minutes. Such figures show that the machinery works and how an answer looks; they say nothing about
films of patients.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from ml_backend.errors import SettingsError
from ml_backend.records import Record
from ml_backend.simulation.findings import few_seeds
from ml_backend.storage.files import write_record
from ml_backend.study.experiment_catalog import EXPERIMENTS, Experiment
from ml_backend.study.experiment_ground import Ground, Tables, drawn_tables, own_tables
from ml_backend.study.experiment_outlines import Outline
from ml_backend.study.experiment_reading import Finished
from ml_backend.study.results import read_results
from ml_backend.study.simulate import run_study

__all__ = ["ExperimentOptions", "ExperimentReport", "run_experiment"]

FOLDER: Final = Path("experiments")
QUICK_SEEDS: Final = 2
NOT_PATIENTS: Final = "Drawn films and a network that nobody has trained: these figures say nothing about patients."


@dataclass(frozen=True, slots=True)
class ExperimentOptions:
    """The options of ``ml-backend experiment``, as they are typed.

    Attributes:
        out: folder of the results; ``experiments/<name>`` by default, with ``-quick`` after it where it is.
        seeds: how many; by default as the experiment has it, two with ``quick``.
        quick: everything tiny: a trial of the experiment itself.
    """

    name: str
    labels: Path | None = None
    images: Path | None = None
    ratings: Path | None = None
    features: Path | None = None
    task: str | None = None
    backbone: str | None = None
    weights: str | None = None
    out: Path | None = None
    seeds: int | None = None
    quick: bool = False
    workers: int = 1
    device: str = "auto"

    def command(self) -> str:
        """The command that gives the same numbers; without what only spreads the work."""
        words = ["ml-backend", "experiment", self.name]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.name != "workers" and value != field.default:
                words += [f"--{field.name}", *([] if value is True else [str(value)])]
        return shlex.join(words)


class ExperimentReport(Record):
    """``experiment.json``: what was asked, expected and found."""

    name: str
    question: str
    command: str
    expectation: str
    drawn: bool  # no patient's films
    studies: dict[str, str]  # title -> folder, below the experiment's
    found: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    surprises: tuple[str, ...]  # what is not as expected; empty where all is
    notes: tuple[str, ...]  # what the figures cannot say


def run_experiment(options: ExperimentOptions, console: Console | None = None) -> int:
    """Do an experiment, or what is left of it: say what is expected, run its studies, say what they found.

    Args:
        options: what is asked for.
        console: where to tell it; the terminal by default.

    Returns:
        Exit status: 0, also where something was not as expected; 130 where Ctrl-C has stopped it.

    Raises:
        SettingsError: an option or a table is wrong; names the value, what is wanted and the way out.
        BackendError: a study came to nothing, see ``run_study``.
    """
    console = console or Console()
    experiment = EXPERIMENTS.get(options.name)
    if experiment is None:
        raise SettingsError(f"there is no experiment {options.name!r}; known are {', '.join(EXPERIMENTS)}")
    if options.seeds is not None and options.seeds < 1:
        raise SettingsError(f"--seeds {options.seeds}: wanted 1 or more")

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    out = options.out or FOLDER / f"{options.name}{'-quick' if options.quick else ''}"
    given = {part: getattr(options, part) for part in ("labels", "images", "ratings", "features")}
    own = own_tables(options.name, given, options.task, experiment.classes)
    _introduce(experiment.outline, options, say)
    # Where the user names no folder, experiments share the films.
    ground = Ground(
        tables=own or _drawn(experiment, (options.out or FOLDER) / "drawn", options.quick, say),
        out=out,
        seeds=options.seeds or (QUICK_SEEDS if options.quick else experiment.seeds),
        quick=options.quick,
        workers=options.workers,
        device=options.device,
        backbone=options.backbone,
        weights=options.weights,
    )
    finished = []
    for arm in experiment.arms(ground):
        if arm.title:
            say(f"\n{arm.title}")
        if status := run_study(arm.options, console):
            say(f"the whole experiment goes on with: {options.command()}")
            return status
        finished.append(Finished(arm, read_results(arm.options.out)))
    reading = experiment.read(finished)
    report = ExperimentReport(
        name=options.name,
        question=experiment.outline.question,
        command=options.command(),
        expectation=experiment.outline.expectation,
        drawn=ground.tables.drawn,
        studies={one.arm.title or options.name: one.arm.name or "." for one in finished},
        found=reading.found,
        columns=reading.columns,
        rows=reading.rows,
        surprises=reading.surprises,
        notes=(
            *([NOT_PATIENTS] if ground.tables.drawn else []),
            *(f"{one.message} {one.check}" for one in few_seeds(ground.seeds)),
        ),
    )
    write_record(out / "experiment.json", report)
    _conclude(report, console, say)
    return 0


def _drawn(experiment: Experiment, folder: Path, quick: bool, say: Callable[[str], None]) -> Tables:
    return drawn_tables(
        folder,
        films=experiment.films,
        centres=experiment.centres,
        binary=experiment.classes == 2,
        quick=quick,
        tell=say,
    )


def _introduce(outline: Outline, options: ExperimentOptions, say: Callable[[str], None]) -> None:
    say(f"{outline.name}: {outline.question}")
    say(f"command:  {options.command()}")
    say(f"runs:     {outline.runs}")
    say(f"time:     {outline.time}")
    say(f"expected: {outline.expectation}")


def _conclude(report: ExperimentReport, console: Console, say: Callable[[str], None]) -> None:
    say("")
    for sentence in report.found:
        say(sentence)
    table = Table(*report.columns)
    for row in report.rows:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)
    for note in report.notes:
        say(f"note: {note}")
    say(f"not as expected: {'; '.join(report.surprises)}" if report.surprises else "as expected")
