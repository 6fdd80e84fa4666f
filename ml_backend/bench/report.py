"""Figures: as records, as JSON and as a table."""

from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import Annotated, Literal

from pydantic import Field, computed_field
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ml_backend.schemas import FrozenModel

__all__ = ["BenchReport", "CaseReport", "Figure", "Floor", "Machine", "Run", "Timing", "bench_table"]


class Run(FrozenModel):
    """One repeat."""

    cpu_s: float
    wall_s: float
    extra_mib: float | None  # peak memory above what was in use before; None where the system does not say


class Timing(FrozenModel):
    """All repeats of one contender in a case."""

    name: str
    runs: Annotated[tuple[Run, ...], Field(min_length=1)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_cpu_s(self) -> float:
        return median(run.cpu_s for run in self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_wall_s(self) -> float:
        return median(run.wall_s for run in self.runs)


class Floor(FrozenModel):
    """What a figure's ratio must reach."""

    kind: Literal["at most", "at least", "more than", "less than"]
    value: float

    def met_by(self, ratio: float) -> bool:
        return {
            "at most": ratio <= self.value,
            "at least": ratio >= self.value,
            "more than": ratio > self.value,
            "less than": ratio < self.value,
        }[self.kind]

    def __str__(self) -> str:
        sign = {"at most": "≤", "at least": "≥", "more than": ">", "less than": "<"}[self.kind]
        return f"{sign} {self.value:.4g}"


class Figure(FrozenModel):
    """One line of the table. Without an anchor the ratio is the figure itself, in its unit."""

    name: str
    unit: str
    ours: float
    anchor: float | None = None
    anchor_name: str = ""
    ratio: float | None = None  # None where there is nothing to compare with
    floor: Floor | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def met(self) -> bool | None:
        """None without a floor, or where the peers were not measured."""
        return None if self.floor is None or self.ratio is None else self.floor.met_by(self.ratio)


class CaseReport(FrozenModel):
    """One case: its figures, every single repeat behind them, and what must be known to read them."""

    name: str
    figures: Annotated[tuple[Figure, ...], Field(min_length=1)]
    timings: tuple[Timing, ...] = ()
    notes: tuple[str, ...] = ()
    picks: dict[str, tuple[int, ...]] = Field(default_factory=dict)  # contender -> its picks, positions in the pool


class Machine(FrozenModel):
    """What the figures were measured on."""

    cpu: str
    cores: int
    memory_gib: float | None
    system: str


class BenchReport(FrozenModel):
    """The result of a run."""

    date: datetime
    quick: bool
    repeats: int
    machine: Machine
    load_before: float | None  # processes that were running or waiting, mean of a minute
    load_after: float | None
    versions: dict[str, dict[str, str]]  # side -> package -> version
    cases: tuple[CaseReport, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """The figures that do not reach their floor."""
        return tuple(
            f"{case.name}: {figure.name}" for case in self.cases for figure in case.figures if figure.met is False
        )


def bench_table(cases: Sequence[CaseReport], *, quick: bool) -> Table:
    """The figures as a table that fits into 80 columns: one line each, grouped by case."""
    table = Table(
        title="quick: figures mean nothing" if quick else "CPU time on one thread, medians",
        caption="open: its anchor was not measured" if _any_open(cases) else None,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_style="bold red" if quick else "bold",
    )
    table.add_column("case, figure over its anchor", overflow="fold")
    for heading in ("ours", "anchor", "ratio", "floor", "met"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in cases:
        table.add_row(f"[bold]{case.name}[/bold]")
        for index, figure in enumerate(case.figures):
            table.add_row(
                f"  {figure.name}" + (f" / {figure.anchor_name}" if figure.anchor_name else ""),
                _quantity(figure.ours, figure.unit),
                "–" if figure.anchor is None else _quantity(figure.anchor, figure.unit),
                "–" if figure.ratio is None else f"{figure.ratio:.4g}",
                "–" if figure.floor is None else str(figure.floor),
                _met(figure),
                end_section=index == len(case.figures) - 1,
            )
    return table


def _any_open(cases: Sequence[CaseReport]) -> bool:
    return any(figure.floor is not None and figure.met is None for case in cases for figure in case.figures)


def _met(figure: Figure) -> str:
    if figure.met is None:
        return "–" if figure.floor is None else "open"
    return "[green]yes[/green]" if figure.met else "[bold red]NO[/bold red]"


def _quantity(value: float, unit: str) -> str:
    if unit == "s":
        for limit, factor, smaller in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
            if value < limit:
                return f"{value * factor:.3g} {smaller}"
    return f"{value:.3f} {unit}" if unit == "nats" else f"{value:.3g} {unit}"
