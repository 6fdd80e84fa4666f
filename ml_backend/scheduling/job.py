"""Small pictures of the images that a round chose, drawn after it was published: no reader waits for them.

The job that a work-horse runs: one round of one project.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing

import structlog

from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import BackendError, EmptyPool, StorageError
from ml_backend.images import ImageCache
from ml_backend.images.source import with_plugins
from ml_backend.images.thumbnail import thumbnail
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, read_image
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.sync import TaskCache
from ml_backend.logs import set_up_logs
from ml_backend.scheduling import Claim, RoundQueue, ShardQueue
from ml_backend.schemas import ImageRef, ProjectKey, PublishedRanking, RoundReport, RoundTrigger
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import ReadingStore, Thumbnails

MOST = 200  # pictures a round
DRAWN_AGAIN = 3  # earlier rounds, each time: the next round waits meanwhile
PATIENCE_S = 10.0

log = structlog.get_logger()


def draw_thumbnails(settings: Settings, key: ProjectKey, report: RoundReport) -> int:
    """Draw the images of a round's batch and those that stand in its order by chance; says how many were drawn.

    An image that cannot be read is left out: its page shows a placeholder. Then some earlier rounds again, the newest
    first, whose pictures are still those of a version that drew every film as a square.

    Raises:
        BackendError: the project is not connected, or its options are wrong.
        OSError: the disk refuses.
    """
    store = RoundStore(settings.data_dir)
    project = store.project(key)
    connection, mirror = project.connection(), ReadingStore(project.folder).mirror(TaskCache)
    if connection is None or mirror is None:
        return 0
    config = parse_label_config(connection.label_config)
    options = ProjectOptions.resolve(connection.extra_params, config.attributes)
    hostname = settings.trusted_hostname(connection.hostname)
    thumbnails = Thumbnails(project.folder)
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=PATIENCE_S) as client,
        closing(LabelStudioImages(client, connection.hostname, hosts=settings.allowed_image_hosts)) as source,
    ):
        cache = ImageCache(with_plugins(source), store.cache / "images", options.image_side)

        def draw(one: RoundReport) -> int:
            return thumbnails.keep(one.request.round_id, pictures(_images(one, mirror, config), cache))

        drawn = draw(report)
        for round_id in thumbnails.squashed()[:DRAWN_AGAIN]:
            try:
                draw(project.report(round_id))
            except StorageError as error:
                log.debug("not drawn again", round=round_id, error=str(error))
        return drawn


def _images(report: RoundReport, mirror: TaskCache, config: LabelConfig) -> Iterator[ImageRef]:
    """Those of a round that are to be drawn, as far as their tasks are still there."""
    for image_id in chosen_images(report):
        task = mirror.tasks.get(int(image_id)) if image_id.isdecimal() else None
        if task is not None:
            try:
                yield read_image({"id": int(image_id), "data": task.data}, config)
            except BackendError as error:
                log.debug("not drawn", image=image_id, error=str(error))


def chosen_images(report: RoundReport) -> list[str]:
    """The images that are drawn, in the order of the ranking: the batch, and what stands anywhere by chance."""
    ranking, control = report.ranking, set(report.ranking.control)
    batch = ranking.image_ids[: ranking.batch_size]
    return [*batch, *(name for name in ranking.image_ids[ranking.batch_size :] if name in control)][:MOST]


def pictures(images: Iterable[ImageRef], cache: ImageCache) -> Iterator[tuple[str, bytes]]:
    """The pictures that can be drawn, in the proportions of their films."""
    for image in images:
        try:
            read = cache.read(image, sized=True)
            yield image.id, thumbnail(read.pixels, read.size or (1, 1))
        except BackendError as error:
            log.debug("not drawn", image=image.id, error=str(error))


def run(project: str, generation: int, reason: RoundTrigger) -> dict[str, str]:
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
        from ml_backend.scheduling.job import draw_thumbnails  # noqa: PLC0415 - after the round, not before

        log.debug("thumbnails drawn", images=draw_thumbnails(settings, key, report))
    except Exception as error:  # noqa: BLE001 - whatever it is, only pictures are missing
        log.warning("the chosen images are not shown", error=str(error))


def _run_round(settings: Settings, claim: Claim) -> tuple[RoundReport, PublishedRanking]:
    # Imports torch, which where there may be a GPU only the work-horse does: its parent forks.
    from ml_backend.rounds.live import run_live_round  # noqa: PLC0415

    project = RoundStore(settings.data_dir).project(claim.project)
    project.begin_run(claim.token)

    def guard() -> None:
        claim.guard()
        # Redis forgets when it is emptied, the store does not.
        project.require_newest(claim.token)

    def raise_if_preempted() -> None:
        guard()
        claim.raise_if_preempted()

    return run_live_round(
        settings,
        claim.project,
        claim.reason,
        claim.progress,
        guard,
        board=ShardQueue.from_settings(settings, claim.project),
        raise_if_preempted=raise_if_preempted,
        learn=claim.learn,
    )
