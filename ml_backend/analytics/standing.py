"""The start set: how many labels of each class are missing, and how many more images that takes.

How far the labelling of a project is: what waits, what is left out and why, and whether everything is labelled.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from math import ceil
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from pydantic import Field

from ml_backend.analytics.history import KnownNetwork
from ml_backend.config import ProjectOptions
from ml_backend.consensus import RULES
from ml_backend.label_studio.formats import LabelConfig, training_classes
from ml_backend.label_studio.sync import TaskCache, TaskImages, annotations_in
from ml_backend.schemas import Exclusion, ExclusionKind, FrozenModel
from ml_backend.storage.quarantine import QuarantinedImage

DRAWS: Final = 4000
"""Of the class shares, each with one course of the labelling: the quantiles are known to about 2 %."""
PRIOR: Final = 1.0
"""Labels that every class is taken to have had beforehand: with none at all, every mix of classes is as likely."""
MOST: Final = 1e9
"""Images: beyond it a pool does not hold enough, and NumPy's Poisson draws overflow later."""
MANY: Final = 10
"""Times as many images as the whole start set needs labels: a class that takes more hardly ever comes."""


class StartEstimate(FrozenModel):
    """What is missing until the first network, and the estimate of the images until then.

    Attributes:
        missing: class -> labels that it still lacks; only classes that lack some.
        more: images, the median; None where no label says anything about the classes yet. 0 where none is missing.
        low: 5th percentile, at most the pool.
        high: 95th percentile, at most the pool.
        enough: probability that the pool holds enough of every class; None as with ``more``.
        sentence: for the owner, as it stands.
        ways_out: what else helps where a class will hardly come; empty as long as labelling on is enough.
    """

    missing: dict[str, Annotated[int, Field(ge=1)]]
    more: Annotated[int, Field(ge=0)] | None
    low: Annotated[int, Field(ge=0)] | None
    high: Annotated[int, Field(ge=0)] | None
    enough: Annotated[float, Field(ge=0.0, le=1.0)] | None
    sentence: str
    ways_out: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """The sentence and the ways out, on one line."""
        if not self.ways_out:
            return self.sentence
        return f"{self.sentence} Otherwise: {'; or '.join(self.ways_out)}."


def start_estimate(
    labels_per_class: Mapping[str, int],
    minimum: int,
    pool: int,
    seed: int = 0,
    *,
    by_chance: bool = True,
    ignored: Sequence[str] = (),
) -> StartEstimate:
    """How much labelling is left until the first network.

    The shares of the classes are drawn from their posterior, Dirichlet(1 + labels), and for each draw the images until
    the last class is complete. Both for images that come by chance.

    Args:
        labels_per_class: labels so far, of every class.
        minimum: labels that every class needs.
        pool: images without a label.
        seed: of the draws: the same numbers give the same estimate.
        by_chance: whether the order of the start is random; where not, the sentence says that the estimate is for one.
        ignored: what the option ``ignore_classes`` holds already, which a way out must not take back.
    """
    missing = {name: minimum - count for name, count in labels_per_class.items() if count < minimum}
    if not missing:
        sentence = f"Every class has the {minimum} labels that the first training needs."
        return StartEstimate(missing={}, more=0, low=0, high=0, enough=1.0, sentence=sentence)
    needed = f"{_listed(missing)} needed"
    if sum(missing.values()) > pool:
        words = {0: "no image without a label is left", 1: "the one image without a label cannot hold them"}
        said = words.get(pool, f"the {pool} images without a label cannot hold them")
        return StartEstimate(
            missing=missing, more=pool, low=pool, high=pool, enough=0.0,
            sentence=f"{needed}; {said}: import more.", ways_out=_ways_out(labels_per_class, missing, minimum, ignored),
        )  # fmt: skip
    if not sum(labels_per_class.values()):
        sentence = f"{needed}; no label yet, so nothing is known of how many images that takes."
        return StartEstimate(missing=missing, more=None, low=None, high=None, enough=None, sentence=sentence)
    images = _images_until_complete(labels_per_class, minimum, seed)
    enough = float((images <= pool).mean())
    low, more, high = (min(ceil(value), pool) for value in np.quantile(images, (0.05, 0.5, 0.95)))
    if enough < 0.5:
        said = f"at the rate so far the {pool} images without a label will probably not hold enough: import more"
    else:
        said = f"at the rate so far about {more} more image{'' if more == 1 else 's'} ({low} to {high})"
        if enough < 0.95:
            said += f", and the pool of {pool} may not hold enough"
    if not by_chance:
        said += ", told as if images came by chance; those chosen as typical mostly take fewer"
    hardly = enough < 0.5 or more > MANY * minimum * len(labels_per_class)
    return StartEstimate(
        missing=missing, more=more, low=low, high=high, enough=enough, sentence=f"{needed}; {said}.",
        ways_out=_ways_out(labels_per_class, missing, minimum, ignored) if hardly else (),
    )  # fmt: skip


def _images_until_complete(labels: Mapping[str, int], minimum: int, seed: int) -> Int64[NDArray[np.int64], " draws"]:
    """Images until the last class has its labels, one course a draw.

    Taken as if images came at random moments, one a unit of time: then the classes come independently of each other,
    class c complete after a time Gamma(missing_c) / share_c. Until the last one is, each other class has its missing
    images and a Poisson number of further ones, which is exact.
    """
    rng = np.random.default_rng(seed)
    counts = np.array(list(labels.values()), dtype=np.float64)
    missing = np.maximum(minimum - counts, 0.0)
    shares = np.maximum(rng.dirichlet(PRIOR + counts, size=DRAWS), np.finfo(np.float64).tiny)
    complete = rng.standard_gamma(missing, size=shares.shape) / shares
    last = complete.max(axis=1, keepdims=True)
    further = rng.poisson(np.minimum(shares * (last - complete), MOST))
    images: Int64[NDArray[np.int64], " draws"] = (missing + further).sum(axis=1).astype(np.int64)
    return images


def _ways_out(
    labels: Mapping[str, int], missing: Mapping[str, int], minimum: int, ignored: Sequence[str]
) -> tuple[str, ...]:
    """What ends the wait for classes that hardly come; two classes must be left to learn."""
    lower = f"lower the option min_labels_per_class, {minimum} now and 2 at least"
    if len(labels) == 2:
        return (lower,)
    if len(labels) - len(missing) < 2:
        names, whom = "a class that hardly comes", "it"
        option = f"{','.join(ignored)},its name" if ignored else "its name"
    else:
        names, option = " and ".join(map(repr, missing)), _option((*ignored, *missing))
        whom = "it" if len(missing) == 1 else "them"
    return (
        f"take {names} out of the choices of the label config, so that there are fewer classes",
        lower,
        f"go on without {whom}: the option ignore_classes={option} leaves the labels out until it is taken back",
    )


def _option(names: Sequence[str]) -> str:
    """Names as the option takes them; as JSON where commas would cut one."""
    return json.dumps(names, ensure_ascii=False) if any("," in name for name in names) else ",".join(names)


def _listed(missing: Mapping[str, int]) -> str:
    parts = [f"{count} more '{name}'" for name, count in missing.items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


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


class LeftOut(FrozenModel):
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


class Standing(FrozenModel):
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
    mirror: TaskCache,
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


def _images(mirror: TaskCache, images: TaskImages, quarantined: Mapping[str, str]) -> _Images:
    pool, barred = images.waiting(mirror)
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


def _wait_for_further_readers(mirror: TaskCache, readers: int) -> int:
    if readers < 2:
        return 0
    of_tasks = ([bool(item.get("was_cancelled")) for item in task.annotations] for task in mirror.tasks.values())
    if mirror.skips_are_final:  # a skip is one of the readers
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
