"""Small pictures of the images that a round chose, drawn after it was published: no reader waits for them."""

from collections.abc import Iterable, Iterator
from contextlib import closing

import structlog

from ml_backend.errors import BackendError, StorageError
from ml_backend.images import ImageCache
from ml_backend.images.thumbnail import thumbnail
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, read_image
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.mirror import Mirror
from ml_backend.records import ImageRef, ProjectKey, RoundReport
from ml_backend.settings import ProjectOptions, Settings
from ml_backend.storage import RoundStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.thumbnails import Thumbnails

__all__ = ["chosen_images", "draw_thumbnails", "pictures"]

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
    connection, mirror = project.connection(), ReadingStore(project.folder).mirror(Mirror)
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
        cache = ImageCache(source, store.cache / "images", options.image_side)

        def draw(one: RoundReport) -> int:
            return thumbnails.keep(one.request.round_id, pictures(_images(one, mirror, config), cache))

        drawn = draw(report)
        for round_id in thumbnails.squashed()[:DRAWN_AGAIN]:
            try:
                draw(project.report(round_id))
            except StorageError as error:
                log.debug("not drawn again", round=round_id, error=str(error))
        return drawn


def _images(report: RoundReport, mirror: Mirror, config: LabelConfig) -> Iterator[ImageRef]:
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
