"""How far the labelling of a project is: what waits, what is left out and why, and whether everything is labelled.

By the last reading of Label Studio, so that it needs no round. The pages, ``doctor`` and the reconciler ask this.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from ml_backend.consensus import RULES
from ml_backend.insight.network import KnownNetwork
from ml_backend.insight.start import StartEstimate, start_estimate
from ml_backend.label_studio.duplicates import TaskImages
from ml_backend.label_studio.formats import LabelConfig, training_classes
from ml_backend.label_studio.labels import SKIPPED_IS_DONE, annotations_in
from ml_backend.label_studio.mirror import Mirror
from ml_backend.records import Exclusion, ExclusionKind, Record
from ml_backend.settings import ProjectOptions
from ml_backend.storage.quarantine import QuarantinedImage

__all__ = ["MENDABLE", "LeftOut", "Standing", "another_look", "project_standing"]

Verdict = Literal["no images", "waiting", "unusable", "blocked", "labelled"]
Count = Annotated[int, Field(ge=0)]

WORDS: Final[dict[ExclusionKind, tuple[str, str]]] = {
    "no image": ("task without a label has no image", "tasks without a label have no image"),
    "unreadable image": ("image cannot be read", "images cannot be read"),
    "label without image": ("labelled task has no image", "labelled tasks have no image"),
    "unreadable answer": ("task has an annotation that cannot be read", "tasks have annotations that cannot be read"),
    "no class": ("image is labelled as no class", "images are labelled as no class"),
    "ignored class": ("label is of an ignored class", "labels are of ignored classes"),
    "no answer": (
        "image was skipped, unreadable or left unanswered",
        "images were skipped, unreadable or left unanswered",
    ),
    "ignored truth": ("image has ignored ground truths alone", "images have ignored ground truths alone"),
    "same image": ("task holds the image of another task", "tasks hold the images of other tasks"),
    "": ("image is left out", "images are left out"),
}
"""In the order of the report."""
MENDABLE: Final[dict[ExclusionKind, str]] = {
    "no image": "mend the tasks' data, or the value of the label config's Image tag",
    "label without image": "mend the tasks' data, or the value of the label config's Image tag",
    "unreadable answer": "correct or delete the annotation in Label Studio",
    "no class": "correct or delete the annotations, or give the label config the choice that they hold",
}
"""What helps against what nobody left out on purpose. Images that cannot be read have a list of their own."""


class LeftOut(Record):
    """Tasks that no round can use, or whose label none can.

    Attributes:
        kind: what is wrong with them.
        count: of the tasks.
        first: why the first of them is left out.
        sentence: for the owner, as it stands.
    """

    kind: ExclusionKind
    count: Annotated[int, Field(ge=1)]
    first: str
    sentence: str


class Standing(Record):
    """How far the labelling is.

    Attributes:
        verdict: ``no images``; ``waiting``: images wait for a reader; ``unusable``: images wait, and none of them can
            be used; ``blocked``: none waits, and a class lacks the labels for a first network; ``labelled``: the end.
        sentence: the verdict, for the owner.
        tasks: of the project.
        waiting: images without an answer that can be used.
        skipped: images that were only skipped, and that other readers may still be served.
        further: labelled images that wait for further readers, where an image is shown to several.
        labels_per_class: of the classes that are learned.
        left_out: by kind; each task once.
        start: what the next training waits for; None where it waits for nothing, and at the end.
    """

    verdict: Verdict
    sentence: str
    tasks: Count
    waiting: Count
    skipped: Count
    further: Count
    labels_per_class: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()
    start: StartEstimate | None = None

    @property
    def waits(self) -> bool:
        """Whether an image waits for a reader."""
        return self.verdict == "waiting" or self.skipped > 0

    @property
    def mendable(self) -> tuple[LeftOut, ...]:
        """What nobody left out on purpose, and somebody can mend."""
        return tuple(one for one in self.left_out if one.kind in MENDABLE)


def project_standing(
    mirror: Mirror,
    config: LabelConfig,
    options: ProjectOptions,
    images: TaskImages | None = None,
    *,
    quarantined: Mapping[str, str],
    network: KnownNetwork | None,
) -> Standing:
    """Judge a project by what was last read of it.

    Args:
        mirror: what was read.
        config: the project's question.
        options: its owner's.
        images: of the mirror; by default as the addresses tell them apart.
        quarantined: image id -> why it cannot be read.
        network: that there is; None before the first training.

    Raises:
        SettingsError: label config and options leave no classes to learn.
    """
    classes = training_classes(config, options)
    images = TaskImages.of(mirror, config) if images is None else images
    annotations, unreadable = annotations_in(mirror, config, options, images)
    consensus = RULES[options.consensus](annotations, classes)
    counts = dict.fromkeys(classes, 0)
    for label in consensus.labels:
        counts[label.value] += 1

    fresh, unusable, skipped, left_out = _images(mirror, images, quarantined)
    for one in (*unreadable, *consensus.exclusions):
        left_out.setdefault(one.image_id, one)
    further = _wait_for_further_readers(mirror, options.annotations_per_task)
    minimum = options.min_labels_per_class
    untrained = network is None or not network.knows(classes)
    start: StartEstimate | None = None
    if mirror.tasks and (untrained or min(counts.values()) < minimum):
        by_chance = options.cold_start == "random"
        start = start_estimate(counts, minimum, fresh + skipped, by_chance=by_chance, ignored=options.ignore_classes)
    verdict: Verdict = "labelled"
    if not mirror.tasks:
        verdict = "no images"
    elif fresh:
        verdict = "waiting"
    elif unusable:
        verdict = "unusable"
    elif further:
        verdict = "waiting"
    elif untrained and start is not None and start.missing:
        verdict = "blocked"
    told = _told(left_out.values())
    number = len({images.copies(task) for task in mirror.tasks})
    waits = f"{fresh} of {number} images wait for a label" if fresh else f"Every one of {number} images has a label"
    beside = f", {skipped} of them only skipped, which other readers may still be served" if skipped else ""
    which = "1 is left out" if unusable == 1 else f"{unusable} are left out, the first"
    # More images are no help where the labels are there, and cannot be used.
    mendable = next((one.sentence for one in told if one.kind in MENDABLE), None)
    lacking = "" if start is None else start.sentence if mendable is None else f"labels are left out. {mendable}"
    sentences: dict[Verdict, str] = {
        "no images": "The project has no images yet: import images in Label Studio to begin.",
        "waiting": f"{waits}; {further} labelled ones wait for further readers." if further else f"{waits}.",
        "unusable": f"No image that can be used waits for a label: {which}: {told[0].first if told else ''}",
        "blocked": f"{'Every image is labelled' if any(counts.values()) else 'Every image was answered or skipped'}, "
        f"and no network can be trained yet: {lacking}",
        "labelled": f"Every image is labelled: {number} image{'' if number == 1 else 's'}{beside}.",
    }
    return Standing(
        verdict=verdict,
        sentence=sentences[verdict],
        tasks=len(mirror.tasks),
        waiting=fresh,
        skipped=skipped,
        further=further,
        labels_per_class=counts,
        left_out=told,
        start=None if verdict == "labelled" else start,
    )


def another_look(waiting: Collection[str], quarantined: Collection[QuarantinedImage], now: datetime) -> bool:
    """Whether a round may read one of the images that wait: one that is not barred, or whose time has come."""
    barred = {one.image_id for one in quarantined if one.next_try > now}
    return not barred.issuperset(waiting)


class _Images(NamedTuple):
    """Images without a label: never answered and usable, never answered and not, only skipped; and what is wrong."""

    fresh: int
    unusable: int
    skipped: int
    left_out: dict[str, Exclusion]


def _images(mirror: Mirror, images: TaskImages, quarantined: Mapping[str, str]) -> _Images:
    pool, barred = images.waiting(mirror, with_skipped=mirror.skip_queue != SKIPPED_IS_DONE)
    fresh = {str(number) for number in pool if not mirror.tasks[number].annotations}
    found = [
        Exclusion(image_id=str(number), reason=why, kind="no image")
        for number, why in images.refused.items()
        if not mirror.tasks[number].annotations
    ]
    unusable = len(found) + len(fresh & quarantined.keys())
    found += [
        Exclusion(image_id=image_id, reason=why, kind="unreadable image")
        for image_id, why in quarantined.items()
        if image_id.isdecimal() and int(image_id) in mirror.tasks
    ]
    found += [Exclusion(image_id=str(number), reason=why, kind="same image") for number, why in barred.items()]
    left_out: dict[str, Exclusion] = {}
    for one in found:
        left_out.setdefault(one.image_id, one)
    return _Images(len(fresh - quarantined.keys()), unusable, len(pool) - len(fresh), left_out)


def _wait_for_further_readers(mirror: Mirror, readers: int) -> int:
    if readers < 2:
        return 0
    of_tasks = ([bool(item.get("was_cancelled")) for item in task.annotations] for task in mirror.tasks.values())
    if mirror.skip_queue == SKIPPED_IS_DONE:  # a skip is one of the readers
        return sum(False in skips and len(skips) < readers for skips in of_tasks)
    return sum(0 < skips.count(False) < readers for skips in of_tasks)


def _told(exclusions: Iterable[Exclusion]) -> tuple[LeftOut, ...]:
    by_kind: dict[ExclusionKind, list[Exclusion]] = {kind: [] for kind in WORDS}
    for one in exclusions:
        by_kind[one.kind].append(one)
    told = []
    for kind, found in by_kind.items():
        if found:
            singular, plural = WORDS[kind]
            first, count = found[0].reason, len(found)
            sentence = f"1 {singular}: {first}" if count == 1 else f"{count} {plural}, the first: {first}"
            told.append(LeftOut(kind=kind, count=count, first=first, sentence=sentence))
    return tuple(told)
