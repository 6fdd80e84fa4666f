"""A round's job: run the round of a project, publish it, then draw thumbnails of the images that it chose."""

from collections.abc import Iterable, Iterator
from contextlib import closing

import structlog

from ml_backend.config import Settings
from ml_backend.errors import BackendError, EmptyPool, StorageError, UnusablePool
from ml_backend.images import ImageCache
from ml_backend.images.source import with_plugins
from ml_backend.images.thumbnail import thumbnail
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, read_image
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.sync import TaskCache
from ml_backend.logs import set_up_logs
from ml_backend.scheduling.connections import configuration
from ml_backend.scheduling.queue import Claim, RoundQueue
from ml_backend.scheduling.shards import ShardQueue
from ml_backend.schemas import ImageRef, ProjectKey, PublishedRanking, RoundReport, RoundTrigger
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import ReadingStore, Thumbnails

MAX_THUMBNAILS = 200  # of a round
REDRAWN_ROUNDS = 3  # earlier rounds after each round: the next one waits meanwhile
PATIENCE_S = 10.0

log = structlog.get_logger()


def run(project: str, generation: int, reason: RoundTrigger) -> dict[str, str]:
    """Run a requested round; rq keeps the result for a day.

    Args:
        project: ``"<id>.<unix seconds>"``.
        generation: number of the request.
        reason: of the request, shown by rq's tools; the claim holds a stronger one that came while it waited.

    Raises:
        SettingsError: the environment is wrong.
        QueueError: Redis does not answer.
    """
    del reason
    settings = Settings.load()
    set_up_logs(settings)
    key = ProjectKey.parse(project)
    # Bound beyond this function: the process ends with the job, and rq's own last lines name project and round too.
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
        if isinstance(error, EmptyPool) and not isinstance(error, UnusablePool):
            log.info("nothing to rank", why=str(error))
            claim.fail(error)
            return {"outcome": "nothing to rank"}
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
    _show_chosen_images(settings, key, report)
    return {"outcome": "published", **outcome}


def _run_round(settings: Settings, claim: Claim) -> tuple[RoundReport, PublishedRanking]:
    # Imports torch, which only the forked process may do if there is a GPU.
    from ml_backend.rounds.live import run_live_round  # noqa: PLC0415

    project = RoundStore(settings.data_dir).project(claim.project)
    project.begin_run(claim.token)

    def ensure_current() -> None:
        claim.ensure_current()
        # An emptied Redis has forgotten newer runs, the store has not.
        project.require_newest(claim.token)

    def raise_if_preempted() -> None:
        ensure_current()
        claim.raise_if_preempted()

    return run_live_round(
        settings,
        claim.project,
        claim.reason,
        claim.progress,
        ensure_current,
        board=ShardQueue.from_settings(settings, claim.project),
        raise_if_preempted=raise_if_preempted,
        learn=claim.start_training,
    )


def _show_chosen_images(settings: Settings, key: ProjectKey, report: RoundReport) -> None:
    try:
        log.debug("thumbnails drawn", images=draw_thumbnails(settings, key, report))
    except Exception as error:  # noqa: BLE001 - the round is published and settled; only pictures are missing
        log.warning("the chosen images are not shown", error=str(error))


def draw_thumbnails(settings: Settings, key: ProjectKey, report: RoundReport) -> int:
    """Draw the images of a round's batch and of its holdout; returns the number of those drawn for this round.

    An unreadable image is left out: its page shows a placeholder. Some earlier rounds are drawn again, newest first,
    if their thumbnails are those of a version that drew every image as a square.

    Raises:
        BackendError: the project is not connected, or its options are wrong.
        OSError: the disk refuses.
    """
    store = RoundStore(settings.data_dir)
    project = store.project(key)
    connection, mirror = project.connection(), ReadingStore(project.folder).mirror(TaskCache)
    if connection is None or mirror is None:
        return 0
    config, options = configuration(connection)
    hostname = settings.trusted_hostname(connection.hostname)
    thumbnails = Thumbnails(project.folder)
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=PATIENCE_S) as client,
        closing(LabelStudioImages(client, connection.hostname, hosts=settings.allowed_image_hosts)) as source,
    ):
        cache = ImageCache(with_plugins(source), store.cache / "images", options.image_side)

        def draw(one: RoundReport) -> int:
            return thumbnails.keep(one.request.round_id, draw_images(_images(one, mirror, config), cache))

        drawn = draw(report)
        for round_id in thumbnails.squashed()[:REDRAWN_ROUNDS]:
            try:
                draw(project.report(round_id))
            except StorageError as error:
                log.debug("thumbnails not drawn again", round=round_id, error=str(error))
        return drawn


def _images(report: RoundReport, mirror: TaskCache, config: LabelConfig) -> Iterator[ImageRef]:
    """The images to draw whose tasks still exist."""
    for image_id in chosen_images(report):
        task = mirror.tasks.get(int(image_id)) if image_id.isdecimal() else None
        if task is not None:
            try:
                yield read_image({"id": int(image_id), "data": task.data}, config)
            except BackendError as error:
                log.debug("not drawn", image=image_id, error=str(error))


def chosen_images(report: RoundReport) -> list[str]:
    """Ids of the images to draw, in the order of the ranking: the batch, and the holdout anywhere in it."""
    ranking, holdout = report.ranking, set(report.ranking.control)
    batch = ranking.image_ids[: ranking.batch_size]
    return [*batch, *(name for name in ranking.image_ids[ranking.batch_size :] if name in holdout)][:MAX_THUMBNAILS]


def draw_images(images: Iterable[ImageRef], cache: ImageCache) -> Iterator[tuple[str, bytes]]:
    """Image ids with a JPEG each, in the proportions of the original; unreadable images are left out."""
    for image in images:
        try:
            read = cache.read(image, sized=True)
            yield image.id, thumbnail(read.pixels, read.size or (1, 1))
        except BackendError as error:
            log.debug("not drawn", image=image.id, error=str(error))
