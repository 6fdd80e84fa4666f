"""What became of the files of an import: counted by outcome and reason, and listed in a CSV file."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

Outcome: TypeAlias = Literal["taken", "skipped", "refused", "noted"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("taken", "skipped", "refused", "noted")
FILES: Final = 3  # named of each reason
# Values and numbers in a reason: what is left tells its kind.
_VALUES: Final = re.compile(r"b?'[^']*'|b?\"[^\"]*\"|0x[0-9a-f]+|\d[\d,.]*")


@dataclass(slots=True)
class Group:
    """The files with one outcome for one reason; ``first`` names some. ``noted`` files are in the project as well."""

    outcome: Outcome
    reason: str
    count: int = 0
    first: list[str] = field(default_factory=list)


class Tally:
    """Counts files, and writes a line for each into a CSV file.

    Args:
        file: of the lines; None for none.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._groups: dict[tuple[str, str], Group] = {}
        self._lines = None if file is None else csv.writer(file)
        if self._lines is not None:
            self._lines.writerow(("file", "outcome", "reason"))

    def add(self, outcome: Outcome, name: str, reason: str = "") -> None:
        """Count a file; groups take reasons for equal that differ in values and numbers."""
        # An error begins with its file, which the line names already; a path in it may hold bytes that are no text.
        for prefix in (f"image {name} ", f"image {name}: ", f"{name} "):
            reason = reason.removeprefix(prefix)
        reason = reason.encode(errors="backslashreplace").decode()
        group = self._groups.setdefault((outcome, _VALUES.sub("", reason)), Group(outcome, reason))
        group.count += 1
        group.first += [name] if len(group.first) < FILES else []
        if self._lines is not None:
            self._lines.writerow((name, outcome, reason))

    def __getitem__(self, outcome: Outcome) -> int:
        """Number of files with this outcome."""
        return sum(group.count for group in self._groups.values() if group.outcome == outcome)

    def groups(self) -> list[Group]:
        """By outcome, the largest first."""
        return sorted(self._groups.values(), key=lambda one: (OUTCOMES.index(one.outcome), -one.count))

    def as_json(self) -> dict[str, Any]:
        counts: dict[str, Any] = {outcome: self[outcome] for outcome in OUTCOMES}
        return counts | {"groups": [asdict(group) for group in self.groups()]}

    def table(self) -> Table:
        table = Table("", "files", "why", "for example", box=SIMPLE_HEAD)
        table.columns[1].justify = "right"
        for group in self.groups():
            names = ", ".join(group.first) if group.outcome != "taken" else ""
            # Not as markup: a reason or a name may hold square brackets.
            table.add_row(group.outcome, f"{group.count:,}", Text(group.reason), Text(names))
        return table


@contextmanager
def open_tally(path: Path | None) -> Iterator[Tally]:
    """A tally that writes into a file, which replaces that of an earlier import; None for no file."""
    if path is None:
        yield Tally()
        return
    path.touch(mode=0o600)
    with path.open("w", newline="", encoding="utf-8") as file:
        yield Tally(file)
