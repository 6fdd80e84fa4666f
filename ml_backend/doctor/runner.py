"""All checks, one after the other; one that fails hides none that does not need it.

What is printed of an examination: plain text of at most 80 columns, or JSON.
The command: looks, prints, and says by its exit status how it stands.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from textwrap import wrap

import typer

from ml_backend.config import checked_address
from ml_backend.doctor.checks import (
    CONNECTION_CHECKS,
    IMAGES_CHECKS,
    MACHINE_CHECKS,
    ORDER_CHECKS,
    STUDIO_CHECKS,
    WORKER_CHECKS,
    Case,
    Check,
    Finding,
    Outcome,
    failed,
    skipped,
)
from ml_backend.errors import BackendError, Unreachable

CHECKS: tuple[Check, ...] = (
    *STUDIO_CHECKS,
    *CONNECTION_CHECKS,
    *ORDER_CHECKS,
    *IMAGES_CHECKS,
    *WORKER_CHECKS,
    *MACHINE_CHECKS,
)
HIDDEN = "(hidden)"
SHORTEST_SECRET = 4  # characters: what is shorter would hide half of every message


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Look at a project, check by check.

    Args:
        case: the project.
        checks: each after those that it needs.

    Yields:
        What came of each, as soon as it is known. A check that needs one that is not "ok" is skipped.
    """
    sound: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name not in sound]
        outcome = skipped(f"needs: {', '.join(missing)}") if missing else _looked(check, case)
        if outcome.verdict == "ok":
            sound.add(check.name)
        yield Finding(
            name=check.name,
            verdict=outcome.verdict,
            seen=_hidden(outcome.seen, case),
            remedy=_hidden(outcome.remedy, case),
        )


def _looked(check: Check, case: Case) -> Outcome:
    try:
        return check.look(case)
    except Unreachable as error:
        return failed(error.what, error.remedy)
    except BackendError as error:
        return failed(str(error), check.remedy)
    except Exception as error:  # noqa: BLE001 - a bug in one check must not hide what the others find
        return failed(f"unexpected {type(error).__name__}: {error}", "this check itself is broken: please report it")


def _hidden(text: str, case: Case) -> str:
    """Without secrets, should a message of somebody else's repeat one; and on one line."""
    for secret in case.secrets():
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return " ".join(text.split())


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


def run_doctor(project_id: int, url: str, *, json: bool) -> int:
    """Check a project and print what was found, each finding as soon as it is known.

    Args:
        project_id: of Label Studio.
        url: where Label Studio reaches the backend.
        json: print all of it as JSON instead, when the last is known.

    Returns:
        0 where nothing failed, else 1.

    Raises:
        SettingsError: the address cannot be one.
    """
    url = checked_address(url, "--url")
    findings = []
    with closing(Case(project_id, url)) as case:
        for finding in examine(case):
            findings.append(finding)
            if not json:
                typer.echo("\n".join(lines_of(finding)))
    typer.echo(as_json(project_id, case.url, findings) if json else f"\n{summary(findings)}")
    return int(any(finding.verdict == "FAIL" for finding in findings))
