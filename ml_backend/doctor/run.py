"""The command: looks, prints, and says by its exit status how it stands."""

from contextlib import closing
from urllib.parse import urlsplit

import typer

from ml_backend.doctor.case import Case
from ml_backend.doctor.examination import examine
from ml_backend.doctor.page import as_json, lines_of, summary
from ml_backend.errors import SettingsError

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
    if "@" in urlsplit(url).netloc:
        raise SettingsError(
            "--url holds a user or a password; wanted is http://host:port, with AL_BASIC_AUTH_USER and "
            "AL_BASIC_AUTH_PASS set as they are for `ml-backend serve`"
        )
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--url {url!r}: expected http://host:port or https://host")
    findings = []
    with closing(Case(project_id, url)) as case:
        for finding in examine(case):
            findings.append(finding)
            if not json:
                typer.echo("\n".join(lines_of(finding)))
    typer.echo(as_json(project_id, case.url, findings) if json else f"\n{summary(findings)}")
    return int(any(finding.verdict == "FAIL" for finding in findings))
