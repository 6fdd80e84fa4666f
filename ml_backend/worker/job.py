"""The job that a work-horse runs: one round of one project."""

import structlog

from ml_backend.errors import BackendError, EmptyPool
from ml_backend.logs import set_up_logs
from ml_backend.queueing import Claim, RoundQueue
from ml_backend.records import ProjectKey, Published, Reason, RoundReport
from ml_backend.settings import Settings
from ml_backend.storage import RoundStore

__all__ = ["run"]

log = structlog.get_logger()


def run(project: str, generation: int, reason: Reason) -> dict[str, str]:
    """Run a round that was requested, and say how it ended; rq keeps the answer for a day.

    Args:
        project: ``"<id>.<unix seconds>"``.
        generation: number of the request.
        reason: what called for it, for rq's own tools; the claim says whether a stronger one came while it waited.

    Raises:
        SettingsError: the environment is wrong.
        QueueError: Redis does not answer.
    """
    del reason
    settings = Settings.load()
    set_up_logs(settings)
    key = ProjectKey.parse(project)
    # Not only for the block: the process ends with the job, and what rq tells of its end names project and round.
    structlog.contextvars.unbind_contextvars("round")
    structlog.contextvars.bind_contextvars(project=project, generation=generation)
    claim = RoundQueue.from_settings(settings, patient=True).claim(key, generation)
    if claim is None:
        log.info("nothing to do: the round was run already, or a newer one has taken its place")
        return {"outcome": "superseded"}
    log.info("round begins", reason=claim.reason, changes=claim.changes)
    try:
        report, published = _run_round(settings, claim)
    except BackendError as error:
        if type(error) is EmptyPool:
            log.info("nothing to rank", why=str(error))
            claim.fail(error)
            return {"outcome": "nothing to rank"}
        # Told in words, and settled: the next round is free to begin.
        log.error("round failed", error=str(error), kind=type(error).__name__)  # noqa: TRY400 - not a bug of ours
        claim.fail(error)
        return {"outcome": "failed", "error": str(error)}
    except Exception as error:
        log.exception("round failed", kind=type(error).__name__)
        claim.fail(error)
        raise
    claim.finish()
    outcome = {"round": report.request.round_id, "version": published.version}
    structlog.contextvars.bind_contextvars(round=report.request.round_id)
    log.info("round published", **outcome, seconds=dict(report.seconds))
    _draw(settings, key, report)
    return {"outcome": "published", **outcome}


def _draw(settings: Settings, key: ProjectKey, report: RoundReport) -> None:
    """Show the owner what was chosen. The round is published and settled: nothing here can harm it."""
    try:
        from ml_backend.worker.thumbnails import draw_thumbnails  # noqa: PLC0415 - after the round, not before

        log.debug("thumbnails drawn", images=draw_thumbnails(settings, key, report))
    except Exception as error:  # noqa: BLE001 - whatever it is, only pictures are missing
        log.warning("the chosen images are not shown", error=str(error))


def _run_round(settings: Settings, claim: Claim) -> tuple[RoundReport, Published]:
    # Imports torch, which where there may be a GPU only the work-horse does: its parent forks.
    from ml_backend.assembly import run_live_round  # noqa: PLC0415

    project = RoundStore(settings.data_dir).project(claim.project)
    project.begin_run(claim.token)

    def guard() -> None:
        claim.guard()
        # Redis forgets when it is emptied, the store does not.
        project.require_newest(claim.token)

    def make_way() -> None:
        guard()
        claim.make_way()

    return run_live_round(
        settings, claim.project, claim.reason, claim.progress, guard, make_way=make_way, learn=claim.learn
    )
