"""The command: looks, prints, and says by its exit status how it stands."""

from contextlib import closing

import typer

from ml_backend.doctor.case import Case
from ml_backend.doctor.examination import examine
from ml_backend.doctor.page import as_json, lines_of, summary
from ml_backend.settings import checked_address

__all__ = ["run_doctor"]


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
