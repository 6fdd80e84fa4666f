"""Checks of the images and their labels.

Three images are fetched and decoded as a round does it; nothing is cached, and the quarantine is not touched.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, islice

import structlog

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine, skipped
from ml_backend.errors import BackendError, ImageError, PayloadError
from ml_backend.images.decode import decode
from ml_backend.images.troubles import Trouble, trouble_of
from ml_backend.insight.ground_truths import ground_truths
from ml_backend.insight.standing import MENDABLE
from ml_backend.label_studio.formats import read_image
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.reading import read_project
from ml_backend.records import ImageRef
from ml_backend.storage.quarantine import Quarantine

__all__ = ["IMAGES_CHECKS", "ground_truth_note"]

WANTED = 3
LOOKED_THROUGH = 300  # tasks from which the images are chosen
log = structlog.get_logger(__name__)

NOT_ALLOWED = "not among the hosts that images may come from"  # as `Elsewhere` says it

MARKED = (
    "Label Studio marks every imported annotation as ground truth; the option ground_truth says what they count as."
)
UNREAD = "the backend has not read the project yet; it does so once a minute"

REMEDY: dict[Trouble, str] = {
    "missing": "put the file back, or delete its task",
    "forbidden": "let the user of AL_LABEL_STUDIO_API_KEY, or the storage connected in Label Studio, read the file",
    "refused": "open the address in a browser: it must lead to the image file; mend it, or delete its task",
    "unreachable": "start what serves the images, or let this machine reach it",
    "timed-out": "bring what serves the images nearer, or shrink them",
    "too-large": "shrink the images",
    "empty": "export the images again",
    "not-an-image": "export the images again, as PNG or JPEG",
    "unsupported": "export the images as PNG or JPEG",
    "damaged": "export the images again",
}


def _images(case: Case) -> Outcome:
    tasks = list(islice(_tasks(case), LOOKED_THROUGH))
    if not tasks:
        return skipped("the project holds no images yet")
    chosen = [tasks[place] for place in sorted({0, len(tasks) // 2, len(tasks) - 1})]
    hostname = case.stored_connection.hostname if case.stored_connection else None
    read, sizes, start = 0, 0, time.monotonic()
    problems: list[tuple[str, str]] = []
    with closing(LabelStudioImages(case.client, hostname, hosts=case.settings.allowed_image_hosts)) as source:
        for task in chosen:
            try:
                sizes += _read(source, read_image(task, case.config), case.options.image_side)
                read += 1
            except ImageError as error:
                problems.append((str(error), _remedy(error)))
            except PayloadError as error:
                problems.append((str(error), "mend the task's data, or the value of the label config's Image tag"))
    if problems:
        seen, remedy = problems[0]
        return failed(f"{read} of {len(chosen)} could be read; {seen}", remedy)
    took_s = (time.monotonic() - start) / read
    return fine(f"{read} decoded, {sizes / read / 1e6:.2f} MB and {took_s:.2f} s each on average")


def _left_out(case: Case) -> Outcome:
    if (standing := case.standing) is None:
        return skipped(UNREAD)
    told = "; ".join(one.sentence for one in standing.left_out)
    if mendable := standing.mendable:
        return failed(told, MENDABLE[mendable[0].kind])
    return fine(told or "no task and no label")


def _labelling(case: Case) -> Outcome:
    if (standing := case.standing) is None:
        return skipped(UNREAD)
    if standing.verdict == "unusable":
        return failed(standing.sentence, "mend what it names; the next round sees it")
    start = standing.start
    if standing.verdict == "blocked" and start is not None:
        if standing.mendable:
            return failed(standing.sentence, "; or ".join((MENDABLE[standing.mendable[0].kind], *start.ways_out)))
        return fine(f"{standing.sentence} To train one, {'; or '.join(('import more images', *start.ways_out))}")
    return fine(f"{standing.sentence} {start.advice}" if start is not None else standing.sentence)


def _quarantine(case: Case) -> Outcome:
    barred = Quarantine(case.kept.folder).listed()
    if not barred:
        return fine("no image is left out")
    return fine(f"{len(barred)} images are left out, such as {barred[0].image_id}: {barred[0].reason}")


def _same_image_twice(case: Case) -> Outcome:
    if case.images is None:
        return skipped(UNREAD)
    return fine(case.images.count().sentence or "every image stands in one task")


def _ground_truths(case: Case) -> Outcome:
    if case.mirror is None:
        return skipped(UNREAD)
    found = ground_truths(case.mirror, case.config, case.options, case.images)
    return fine(found.sentence or "no annotation is marked as ground truth")


def ground_truth_note(case: Case) -> str:
    """What ``connect`` says of ground truths; empty where there is none, or it cannot be told."""
    try:
        if not case.project.get("ground_truth_number"):
            return ""
        mirror = case.mirror or read_project(case.client, case.project_id, None).mirror
        return f"{ground_truths(mirror, case.config, case.options, case.images).sentence} {MARKED}"
    except BackendError as error:
        log.warning("ground truths were not counted", error=str(error))
        return ""


def _remedy(error: ImageError) -> str:
    if NOT_ALLOWED in str(error):
        return "name that host in AL_IMAGE_HOSTS, if it is to be asked; else mend the task's address"
    return REMEDY[trouble_of(error)]


def _tasks(case: Case) -> Iterator[dict[str, object]]:
    """Those that a round would score first; of a project that is labelled to the end, any."""
    waiting = case.client.unlabelled_tasks(case.project_id)
    first = next(waiting, None)
    return case.client.changed_tasks(case.project_id) if first is None else chain([first], waiting)


def _read(source: LabelStudioImages, image: ImageRef, side: int) -> int:
    """Fetch and decode; the size of the file in bytes."""
    content = source.fetch(image)
    decode(content, side, image.id)
    return len(content)


IMAGES_CHECKS = (
    Check("images", _images, needs=("options",), remedy="try again when Label Studio answers"),
    Check("quarantine", _quarantine, needs=("rounds on disk",)),
    Check("same image twice", _same_image_twice, needs=("options", "rounds on disk")),
    Check("ground truths", _ground_truths, needs=("classes", "rounds on disk")),
    Check("left out", _left_out, needs=("classes", "rounds on disk"), remedy="mend or move away what is named"),
    Check("labelling", _labelling, needs=("classes", "rounds on disk"), remedy="mend or move away what is named"),
)
