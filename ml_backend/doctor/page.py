"""What is printed of an examination: plain text of at most 80 columns, or JSON."""

import json
import re
from collections.abc import Sequence
from textwrap import wrap

from ml_backend.doctor.check import Finding

__all__ = ["as_json", "lines_of", "summary"]

COLUMNS = 80
NAME = 19  # columns of a check's name
INDENT = 6 + NAME + 1
GLUE = "\N{NO-BREAK SPACE}"


def lines_of(finding: Finding) -> list[str]:
    """A finding: its verdict, its name, what was seen, what helps; no address and no command is broken in two."""
    first = f"{finding.verdict:<4}  {finding.name:<{NAME}} "
    lines = _wrapped(finding.seen, first)
    return lines + _wrapped(finding.remedy, " " * INDENT + "-> ", INDENT + 3) if finding.remedy else lines


def summary(findings: Sequence[Finding]) -> str:
    """How it stands, in a line."""
    failures = [finding.name for finding in findings if finding.verdict == "FAIL"]
    skips = sum(finding.verdict == "skip" for finding in findings)
    beside = f", {skips} skipped" if skips else ""
    if not failures:
        return f"all is well: {len(findings) - skips} checks passed{beside}"
    return f"{len(failures)} of {len(findings)} checks failed{beside}; begin with: {failures[0]}"


def as_json(project_id: int, url: str, findings: Sequence[Finding]) -> str:
    """The whole examination."""
    well = all(finding.verdict != "FAIL" for finding in findings)
    whole = {
        "project": project_id,
        "url": url,
        "well": well,
        "findings": [finding.model_dump(mode="json") for finding in findings],
    }
    return json.dumps(whole, indent=1)


def _wrapped(text: str, first: str, indent: int = INDENT) -> list[str]:
    # A command in backticks is there to be copied, like an address; `wrap` breaks at ordinary spaces alone.
    glued = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", GLUE), text)
    lines = wrap(
        glued,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(GLUE, " ") for line in lines] or [first.rstrip()]
