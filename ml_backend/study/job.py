"""What a worker does for a study: one of its runs, read from the plan in the shared folder."""

from pathlib import Path

import structlog

from ml_backend.errors import BackendError, SettingsError
from ml_backend.storage.files import read_record
from ml_backend.study.plan import StudyPlan

__all__ = ["run"]

log = structlog.get_logger()


def run(out: str, name: str) -> str | None:
    """Do the run of that name, or what is left of it.

    Args:
        out: folder of the study, as this machine sees it too.
        name: of the run.

    Returns:
        None where it is done, else why it cannot be: the same would happen on any worker.
    """
    from ml_backend.study.parts import open_study  # noqa: PLC0415 - torch: only the work-horse loads it
    from ml_backend.study.run import do_run, journal_of  # noqa: PLC0415

    try:
        plan = read_record(Path(out) / "plan.json", StudyPlan)
        if plan is None:
            raise SettingsError(
                f"{out} holds no plan.json: workers need --out, the tables and images in a shared folder"
            )
        one = plan.run(name)
        do_run(one, open_study(plan, Path(out)), journal_of(Path(out), one))
    except BackendError as error:
        log.error("run failed", run=name, error=str(error))  # noqa: TRY400 - told in words, not a bug of ours
        return f"run {name}: {error}"
    return None
