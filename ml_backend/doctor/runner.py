"""Runs the checks and prints the findings: text as wide as the terminal, in colour, or JSON."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from textwrap import wrap

import typer
from rich.console import Console
from rich.text import Text

from ml_backend.config import checked_address
from ml_backend.doctor.checks import CHECKS, Check, CheckContext, Result, failed, skipped
from ml_backend.errors import BackendError, MissingExtra, Unreachable

HIDDEN = "(hidden)"
SHORTEST_SECRET = 4  # characters: a shorter one would hide half of every message
COLUMNS = 80  # of text that goes to no terminal
NAME = 19  # columns of a check's name
INDENT = 6 + NAME + 1
STYLES = {"ok": "green", "skip": "yellow", "FAIL": "bold red"}


class Finding(Result):
    """The result of the check of that name."""

    name: str


def examine(context: CheckContext, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Run the checks and yield each finding as soon as it is known.

    Args:
        context: the project.
        checks: each after those that it needs. A check that needs one that is not "ok" is skipped.
    """
    passed: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name not in passed]
        result = skipped(f"needs: {', '.join(missing)}") if missing else _run(check, context)
        if result.verdict == "ok":
            passed.add(check.name)
        texts = {"seen": result.seen, "remedy": result.remedy}
        for field, text in texts.items():
            for secret in context.secrets():  # an error message of a library may hold one
                if len(secret) >= SHORTEST_SECRET:
                    text = text.replace(secret, HIDDEN)  # noqa: PLW2901
            texts[field] = " ".join(text.split())
        yield Finding(name=check.name, verdict=result.verdict, **texts)


def _run(check: Check, context: CheckContext) -> Result:
    try:
        return check.run(context)
    except MissingExtra as error:
        return skipped(str(error))
    except Unreachable as error:
        return failed(error.what, error.remedy)
    except BackendError as error:
        return failed(str(error), check.remedy)
    except Exception as error:  # noqa: BLE001 - a bug in one check must not hide the others' findings
        return failed(f"unexpected {type(error).__name__}: {error}", "this check itself is broken: please report it")


def lines_of(finding: Finding, columns: int = COLUMNS) -> list[str]:
    """A finding in lines of at most so many columns; an address or a command is never broken."""
    lines = _wrap(finding.seen, f"{finding.verdict:<4}  {finding.name:<{NAME}} ", INDENT, columns)
    return lines + _wrap(finding.remedy, " " * INDENT + "-> ", INDENT + 3, columns) if finding.remedy else lines


def _wrap(text: str, first: str, indent: int, columns: int) -> list[str]:
    # A command in backticks is one word, like an address: `wrap` breaks at ordinary spaces alone.
    no_break = "\N{NO-BREAK SPACE}"
    joined = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", no_break), text)
    lines = wrap(
        joined,
        max(columns, 2 * INDENT),
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(no_break, " ") for line in lines] or [first.rstrip()]


def summary(findings: Sequence[Finding]) -> str:
    """Numbers of passed, failed and skipped checks in a line, with the first failure."""
    failures = [finding.name for finding in findings if finding.verdict == "FAIL"]
    skips = sum(finding.verdict == "skip" for finding in findings)
    and_skips = f", {skips} skipped" if skips else ""
    if not failures:
        return f"all is well: {len(findings) - skips} checks passed{and_skips}"
    return f"{len(failures)} of {len(findings)} checks failed{and_skips}; begin with: {failures[0]}"


def as_json(project_id: int, url: str, findings: Sequence[Finding]) -> str:
    """All findings as JSON."""
    whole = {
        "project": project_id,
        "url": url,
        "well": all(finding.verdict != "FAIL" for finding in findings),
        "findings": [finding.model_dump(mode="json") for finding in findings],
    }
    return json.dumps(whole, indent=1)


def run_doctor(project_id: int, url: str, *, json: bool) -> int:
    """Check a project and print each finding as soon as it is known.

    Args:
        project_id: of Label Studio.
        url: where Label Studio reaches the backend.
        json: print all findings as JSON instead, at the end.

    Returns:
        The exit status: 0 where nothing failed, else 1.

    Raises:
        SettingsError: the address is invalid.
    """
    url = checked_address(url, "--url")
    findings: list[Finding] = []
    console = Console(highlight=False)  # without colours where NO_COLOR is set
    columns = console.width if console.is_terminal else COLUMNS
    with closing(CheckContext(project_id, url)) as context:
        for finding in examine(context):
            findings.append(finding)
            if not json:
                text = Text("\n".join(lines_of(finding, columns)))
                text.stylize(STYLES[finding.verdict], 0, len(finding.verdict))
                console.print(text, soft_wrap=True)
    sound = all(finding.verdict != "FAIL" for finding in findings)
    if json:
        typer.echo(as_json(project_id, context.url, findings))
    else:
        console.print(Text(f"\n{summary(findings)}", STYLES["ok" if sound else "FAIL"]), soft_wrap=True)
    return 0 if sound else 1
