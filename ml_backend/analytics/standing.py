"""The state of a project's labelling: what waits, what is left out and why, and what the next training waits for."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Annotated, Final, Literal

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from pydantic import Field

from ml_backend.analytics.few_labels import TRAINABLE, can_train, seeks, sought_classes
from ml_backend.analytics.history import KnownNetwork
from ml_backend.config import ProjectOptions
from ml_backend.consensus import rule
from ml_backend.label_studio.formats import LabelConfig, training_classes
from ml_backend.label_studio.sync import TaskCache, TaskImages, annotations_in
from ml_backend.schemas import Annotation, Exclusion, ExclusionKind, FrozenModel

DRAWS: Final = 4000
"""Of the class shares: the quantiles are known to about 2 %."""
PRIOR: Final = 1.0
"""Pseudo-count of every class: without labels, every class balance is equally likely."""
MOST: Final = 1e9
"""Images: no pool holds more, and NumPy's Poisson draws overflow later."""
RARE: Final = 10
"""Times as many images as the start set needs labels: a class that takes more is rare."""

Count = Annotated[int, Field(ge=0)]


class StartEstimate(FrozenModel):
    """The labels missing until the next training, and the estimated number of images until then.

    Attributes:
        missing: class -> labels that it lacks; only classes that lack some. Two complete classes are enough.
        more: images, the median; None where there is no label to estimate the classes from. 0 where none is missing.
        low: 5th percentile, at most the pool.
        high: 95th percentile, at most the pool.
        enough: probability that the pool holds enough of two classes; None as with ``more``.
        sentence: for the owner.
        ways_out: alternatives where a class is too rare; empty as long as labelling on is enough.
    """

    missing: dict[str, Annotated[int, Field(ge=1)]]
    more: Count | None
    low: Count | None
    high: Count | None
    enough: Annotated[float, Field(ge=0.0, le=1.0)] | None
    sentence: str
    ways_out: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """The sentence and the ways out, on one line."""
        return f"{self.sentence} Otherwise: {'; or '.join(self.ways_out)}." if self.ways_out else self.sentence


def start_estimate(
    labels_per_class: Mapping[str, int],
    minimum: int,
    pool: int,
    seed: int = 0,
    *,
    random_order: bool = True,
    can_seek: bool = True,
) -> StartEstimate:
    """Estimate how many images must be labelled until two classes have their labels.

    The shares of the classes are drawn from their posterior, Dirichlet(1 + labels), and for each draw the number of
    images until the second class is complete. Both assume that images come in random order.

    Args:
        labels_per_class: labels so far, of every class.
        minimum: labels that two classes need.
        pool: images without a label.
        seed: of the draws: the same numbers give the same estimate.
        random_order: whether the order of the start is random; where not, the sentence says what the estimate assumes.
        can_seek: whether the backbone's features are trained, so that another start would seek rare classes.
    """
    missing = {name: minimum - count for name, count in labels_per_class.items() if count < minimum}
    if can_train(labels_per_class, minimum):
        sentence = f"Two classes have the {minimum} labels that the first training needs."
        return StartEstimate(missing={}, more=0, low=0, high=0, enough=1.0, sentence=sentence)
    classes = TRAINABLE - len(labels_per_class) + len(missing)  # that must still be completed
    parts = [f"{count} more '{name}'" for name, count in missing.items()]
    if len(parts) == classes:
        needed = f"{_listed(parts)} needed"
    else:
        needed = f"{_listed(parts, 'or')} needed" if classes == 1 else f"two of {_listed(parts)} needed"
    seen = any(labels_per_class[name] for name in missing)
    ways_out = _ways_out(minimum, seek=random_order and can_seek and seen and pool > 0)
    if sum(sorted(missing.values())[:classes]) > pool:
        words = {0: "no image without a label is left", 1: "the one image without a label cannot hold them"}
        why = words.get(pool, f"the {pool} images without a label cannot hold them")
        return StartEstimate(
            missing=missing, more=pool, low=pool, high=pool, enough=0.0,
            sentence=f"{needed}; {why}: import more.", ways_out=ways_out,
        )  # fmt: skip
    if not sum(labels_per_class.values()):
        sentence = f"{needed}; no label yet, so nothing is known of how many images that takes."
        return StartEstimate(missing=missing, more=None, low=None, high=None, enough=None, sentence=sentence)
    images = _images_until_complete(labels_per_class, minimum, seed)
    enough = float((images <= pool).mean())
    low, more, high = (min(ceil(value), pool) for value in np.quantile(images, (0.05, 0.5, 0.95)))
    if enough < 0.5:
        estimate = f"at the rate so far the {pool} images without a label will probably not hold enough: import more"
    else:
        estimate = f"at the rate so far about {more} more image{'' if more == 1 else 's'} ({low} to {high})"
        if enough < 0.95:
            estimate += f", and the pool of {pool} may not hold enough"
    if not random_order:
        estimate += " (estimated for a random order; the chosen one usually needs fewer)"
    rare = enough < 0.5 or more > RARE * minimum * TRAINABLE
    return StartEstimate(
        missing=missing, more=more, low=low, high=high, enough=enough, sentence=f"{needed}; {estimate}.",
        ways_out=ways_out if rare else (),
    )  # fmt: skip


def _images_until_complete(labels: Mapping[str, int], minimum: int, seed: int) -> Int64[NDArray[np.int64], " draws"]:
    """Images until the second class has its labels, for each draw of the class shares.

    Images come as a Poisson process, one a unit of time: then the classes come independently of each other, class c
    complete after a time Gamma(missing_c) / share_c. By the time that the second one is, each complete class has its
    missing images and a Poisson number of further ones, and of each other class those but the last have arrived at
    uniform times before its completion; both are exact.
    """
    rng = np.random.default_rng(seed)
    counts = np.array(list(labels.values()), dtype=np.float64)
    missing = np.maximum(minimum - counts, 0.0)
    shares = np.maximum(rng.dirichlet(PRIOR + counts, size=DRAWS), np.finfo(np.float64).tiny)
    complete = rng.standard_gamma(missing, size=shares.shape) / shares
    second = np.sort(complete, axis=1)[:, TRAINABLE - 1 : TRAINABLE]
    further = rng.poisson(np.clip(shares * (second - complete), 0.0, MOST))
    early = rng.binomial(np.maximum(missing - 1, 0).astype(np.int64), second / np.maximum(complete, second))
    arrived = np.where(complete <= second, missing + further, early)
    images: Int64[NDArray[np.int64], " draws"] = arrived.sum(axis=1).astype(np.int64)
    return images


def _listed(parts: Sequence[str], word: str = "and") -> str:
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}" if len(parts) > 1 else parts[0]


def _ways_out(minimum: int, *, seek: bool) -> tuple[str, ...]:
    """Alternatives to waiting where no second class comes."""
    ways_out = []
    if seek:
        ways_out.append("set the option cold_start=herding: images that resemble a class with few labels come first")
    if minimum > 2:
        ways_out.append(f"lower the option min_labels_per_class, {minimum} now and 2 at least")
    return tuple(ways_out)


class FewLabels(FrozenModel):
    """Classes with fewer labels than ``min_labels_per_class``.

    Attributes:
        missing: class -> labels that it lacks.
        sought: the classes whose images are sought; see ``few_labels.sought_classes``.
        sentence: for the owner.
    """

    missing: dict[str, Annotated[int, Field(ge=1)]]
    sought: tuple[str, ...] = ()
    sentence: str


def classes_with_few_labels(labels_per_class: Mapping[str, int], options: ProjectOptions) -> FewLabels | None:
    """What the owner should know of the classes with few labels; None where every class has its minimum.

    Args:
        labels_per_class: labels so far, of every class.
        options: of the project.
    """
    minimum = options.min_labels_per_class
    missing = {name: minimum - count for name, count in labels_per_class.items() if count < minimum}
    trainable = can_train(labels_per_class, minimum)
    order = options.strategy if trainable else options.cold_start
    sought = sought_classes(labels_per_class, minimum)
    parts = []
    if trainable:
        if none := [f"'{name}'" for name in missing if not labels_per_class[name]]:
            them = "it" if len(none) == 1 else "them"
            parts.append(f"No label yet of {_listed(none)}: the network cannot predict {them}.")
        if some := [f"{count} of '{name}'" for name in missing if (count := labels_per_class[name])]:
            parts.append(f"Only {_listed(some)} labelled, fewer than {minimum}.")
    if sought and seeks(order, options.weights):
        names = _listed([f"'{name}'" for name in sought])
        parts.append(f"Images that resemble those of {names} come first in half of the places.")
    elif order != "random" and not seeks(order, options.weights) and (sought or not trainable):
        parts.append(
            "Images of classes with few labels are not sought: with weights=none an untrained backbone hardly "
            "distinguishes images" + ("." if trainable else ", and the order is random.")
        )
    if not parts:
        return None
    return FewLabels(missing=missing, sought=sought if seeks(order, options.weights) else (), sentence=" ".join(parts))


WORDS: Final[dict[ExclusionKind, tuple[str, str]]] = {
    "no image": ("task without a label has no image", "tasks without a label have no image"),
    "unreadable image": ("image cannot be read", "images cannot be read"),
    "label without image": ("labelled task has no image", "labelled tasks have no image"),
    "unreadable answer": ("task has an annotation that cannot be read", "tasks have annotations that cannot be read"),
    "no class": ("image is labelled as no class", "images are labelled as no class"),
    "ignored class": ("label is of an ignored class", "labels are of ignored classes"),
    "no answer": ("image has no answer", "images have no answer"),
    "ignored truth": ("image has ignored ground truths alone", "images have ignored ground truths alone"),
    "same image": ("task holds the image of another task", "tasks hold the images of other tasks"),
    "": ("image is left out", "images are left out"),
}
"""Of one and of several, in the order of the page."""
MENDABLE: Final[dict[ExclusionKind, str]] = {
    "no image": "correct the tasks' data, or the value of the label config's Image tag",
    "label without image": "correct the tasks' data, or the value of the label config's Image tag",
    "unreadable answer": "correct or delete the annotation in Label Studio",
    "no class": "correct or delete the annotations, or give the label config the choice that they hold",
}
"""What helps where nothing was left out on purpose. Images that cannot be read have a list of their own."""


class LeftOut(FrozenModel):
    """Tasks that no round can use, or whose label none can.

    Attributes:
        kind: what is wrong with them.
        count: number of tasks.
        first: why the first of them is left out.
        sentence: for the owner.
    """

    kind: ExclusionKind
    count: Annotated[int, Field(ge=1)]
    first: str
    sentence: str


class Standing(FrozenModel):
    """The state of the labelling.

    Attributes:
        verdict: ``no images``; ``waiting``: images wait for a reader; ``unusable``: images wait, and none of them can
            be used; ``blocked``: none waits, and fewer than two classes have the labels for a first network;
            ``labelled``: the end.
        sentence: the verdict, for the owner.
        tasks: of the project.
        images: that the tasks hold, each once.
        waiting: usable images without an answer.
        skipped: images that were only skipped, and that other readers may still be served.
        further: labelled images that wait for further readers, where an image is shown to several.
        labels_per_class: of the classes that are learned.
        left_out: by kind; each task once.
        start: what the next training waits for; None where it waits for nothing, and at the end.
        few: classes with few labels, which no training waits for; None where nothing is to be said, and at the end.
    """

    verdict: Literal["no images", "waiting", "unusable", "blocked", "labelled"]
    sentence: str
    tasks: Count
    images: Count
    waiting: Count
    skipped: Count
    further: Count
    labels_per_class: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()
    start: StartEstimate | None = None
    few: FewLabels | None = None

    @property
    def waits(self) -> bool:
        """Whether an image waits for a reader."""
        return self.verdict == "waiting" or self.skipped > 0

    @property
    def left(self) -> int:
        """Images that a reader may be served: without a label, or for a further reader."""
        return self.waiting + self.further

    @property
    def mendable(self) -> tuple[LeftOut, ...]:
        """What was left out by mistake, and can be mended."""
        return tuple(one for one in self.left_out if one.kind in MENDABLE)


def project_standing(
    mirror: TaskCache,
    config: LabelConfig,
    options: ProjectOptions,
    images: TaskImages | None = None,
    *,
    quarantined: Mapping[str, str],
    network: KnownNetwork | None,
    read: tuple[list[Annotation], list[Exclusion]] | None = None,
) -> Standing:
    """Determine the state of a project's labelling.

    Args:
        mirror: of the last reading.
        config: of the project.
        options: of its owner.
        images: of the mirror; by default as the addresses distinguish them.
        quarantined: image id -> why it cannot be read.
        network: the newest; None before the first training.
        read: what ``annotations_in`` has found, where it is known.

    Raises:
        SettingsError: label config and options leave no classes to learn.
    """
    classes = training_classes(config, options)
    images = TaskImages.of(mirror, config) if images is None else images
    annotations, unreadable = read or annotations_in(mirror, config, options, images)
    consensus = rule(options.consensus)(annotations, classes)
    counts = dict.fromkeys(classes, 0)
    for label in consensus.labels:
        counts[label.value] += 1

    pool, copies = images.waiting(mirror)
    offered = {str(number) for number in pool}  # those with a skip to the other readers
    unanswered = {str(number) for number in pool if not mirror.tasks[number].annotations}
    left_out = _left_out(
        [Exclusion(image_id=str(number), reason=why, kind="no image")
         for number, why in images.refused.items() if not mirror.tasks[number].annotations]
        + [Exclusion(image_id=one, reason=why, kind="unreadable image")
           for one, why in quarantined.items() if one.isdecimal() and int(one) in mirror.tasks]
        + [Exclusion(image_id=str(number), reason=why, kind="same image") for number, why in copies.items()]
        + [*unreadable, *(one for one in consensus.exclusions if one.image_id not in offered)]
    )  # fmt: skip
    waiting = len(unanswered - quarantined.keys())
    skipped = len(pool) - len(unanswered)
    further = _waiting_for_further_readers(mirror, options.annotations_per_task)
    without_image = sum(not mirror.tasks[number].annotations for number in images.refused)
    unusable = without_image + len(unanswered & quarantined.keys())
    untrained = network is None or not network.knows(classes)
    start: StartEstimate | None = None
    if mirror.tasks and (untrained or not can_train(counts, options.min_labels_per_class)):
        start = start_estimate(
            counts,
            options.min_labels_per_class,
            waiting + skipped,
            random_order=not seeks(options.cold_start, options.weights),
            can_seek=options.weights != "none",
        )

    number, labels = len({images.copies(task) for task in mirror.tasks}), sum(counts.values())
    every = "Every image is labelled" if labels + skipped >= number else "No image is left to read"
    verdict: Literal["no images", "waiting", "unusable", "blocked", "labelled"]
    if not mirror.tasks:
        verdict, sentence = "no images", "The project has no images yet: import images in Label Studio to begin."
    elif waiting or (further and not unusable):
        verdict = "waiting"
        sentence = (
            f"{waiting} of {number} images have no label yet"
            if waiting
            else f"Every one of {number} images has a label"
        )
        sentence += f"; {further} labelled ones need further readers." if further else "."
    elif unusable:
        verdict = "unusable"
        which = "1 is left out" if unusable == 1 else f"{unusable} are left out, the first"
        first = left_out[0].first if left_out else ""
        sentence = f"None of the unlabelled images can be used: {which}: {first}"
    elif untrained and start is not None and start.missing:
        verdict = "blocked"
        # More images are no help where the labels are there, and cannot be used.
        mendable = next((one.sentence for one in left_out if one.kind in MENDABLE), None)
        lacking = start.sentence if mendable is None else f"labels are left out. {mendable}"
        if not any(counts.values()):
            every = "Every image was answered or skipped"
        sentence = f"{every}, and no network can be trained yet: {lacking}"
    else:
        verdict = "labelled"
        if labels + skipped < number:
            every += f": {labels} labelled, {number - labels - skipped} left out"
        else:
            every += f": {number} image{'' if number == 1 else 's'}"
        only = f", {skipped} of them only skipped, which other readers may still be served" if skipped else ""
        sentence = f"{every}{only}."
    return Standing(
        verdict=verdict,
        sentence=sentence,
        tasks=len(mirror.tasks),
        images=number,
        waiting=waiting,
        skipped=skipped,
        further=further,
        labels_per_class=counts,
        left_out=left_out,
        start=None if verdict == "labelled" else start,
        few=classes_with_few_labels(counts, options) if verdict not in {"no images", "labelled"} else None,
    )


def _waiting_for_further_readers(mirror: TaskCache, readers: int) -> int:
    if readers < 2:
        return 0
    of_tasks = ([bool(item.get("was_cancelled")) for item in task.annotations] for task in mirror.tasks.values())
    if mirror.skips_are_final:  # a skip counts as one of the readers
        return sum(False in skips and len(skips) < readers for skips in of_tasks)
    return sum(0 < skips.count(False) < readers for skips in of_tasks)


def _left_out(exclusions: Iterable[Exclusion]) -> tuple[LeftOut, ...]:
    """Count them by kind; of several of one task the first counts."""
    first_of: dict[str, Exclusion] = {}
    for one in exclusions:
        first_of.setdefault(one.image_id, one)
    found = []
    for kind, (singular, plural) in WORDS.items():
        reasons = [one.reason for one in first_of.values() if one.kind == kind]
        if reasons:
            count, first = len(reasons), reasons[0]
            sentence = f"1 {singular}: {first}" if count == 1 else f"{count} {plural}, the first: {first}"
            found.append(LeftOut(kind=kind, count=count, first=first, sentence=sentence))
    return tuple(found)
