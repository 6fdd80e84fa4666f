"""Reads a project's tasks and annotations from Label Studio, at the cost of what changed since the last time.

``read_project`` brings the cached tasks up to date, ``TaskImages`` finds tasks that hold the same image, and
``LabelStudioLabels`` gives a round its annotations and its pool.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Protocol, Self, TypeVar

import structlog
from pydantic import AwareDatetime

from ml_backend.config import ProjectOptions
from ml_backend.errors import PayloadError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, read_annotation, read_image
from ml_backend.schemas import Annotation, Exclusion, FrozenModel, ImageRef, linked, natural_order

# Label Studio sets a task's time before its row can be seen, and a proxy's clock is not Label Studio's.
OVERLAP = timedelta(seconds=60)
WHOLE_EVERY = timedelta(days=1)  # limits the life of an error that no count shows
TRIES = 3  # while readers label, counts and tasks disagree for a moment
SEARCHES = 60  # requests for deleted tasks, about 0.1 s each; beyond them reading the whole is cheaper
SKIPPED_IS_DONE = "IGNORE_SKIPPED"  # the project's skip queue: a skipped task is never served again
ANSWER_FIELDS = ("id", "completed_by", "was_cancelled", "ground_truth", "result", "updated_at")
CACHED_FIELDS = (*ANSWER_FIELDS, "created_at", "lead_time", "parent_prediction")
NO_DIGESTS: Final[Mapping[str, str]] = MappingProxyType({})

Json = dict[str, Any]
R = TypeVar("R", bound=FrozenModel)
log = structlog.get_logger(__name__)


class Counts(NamedTuple):
    """Size of a project, as Label Studio's project row counts it."""

    tasks: int
    annotations: int  # without skips
    skips: int

    @classmethod
    def of(cls, project: Mapping[str, object]) -> Self:
        """The counts of a project row.

        Raises:
            PayloadError: one is missing.
        """
        names = ("task_number", "total_annotations_number", "skipped_annotations_number")
        numbers = [number for name in names if isinstance(number := project.get(name), int)]
        if len(numbers) < len(names):
            raise PayloadError(f"project {project.get('id')} comes without {', '.join(names)}: is this Label Studio?")
        return cls(*numbers)


class CachedTask(FrozenModel):
    """The fields of a task that rounds read, under any label config."""

    data: Any = None
    annotations: tuple[Json, ...] = ()

    @classmethod
    def of(cls, task: Json) -> Self:
        """Read a task of the task list."""
        return cls(data=task.get("data"), annotations=tuple(map(_cached, task.get("annotations") or ())))


class TaskCache(FrozenModel):
    """A project's tasks, as they were last read.

    Attributes:
        format: of the file; a file of another format is ignored, and the project is read whole.
        read_at: time of the last request, by Label Studio's clock. All earlier changes are included.
        whole_at: time when the project was last read whole, by the same clock.
        tasks: by id.
        skip_queue: of the project; None in a file of an older version.
    """

    format: Literal[2] = 2
    read_at: AwareDatetime
    whole_at: AwareDatetime
    tasks: dict[int, CachedTask]
    skip_queue: str | None = None

    @property
    def skips_are_final(self) -> bool:
        """Whether a skipped task is never served again."""
        return self.skip_queue == SKIPPED_IS_DONE

    @cached_property
    def counts(self) -> Counts:
        skipped = [bool(item.get("was_cancelled")) for task in self.tasks.values() for item in task.annotations]
        return Counts(len(self.tasks), len(skipped) - sum(skipped), sum(skipped))

    def renewed(self, rows: Iterable[Json], read_at: datetime, gone: Iterable[int] = ()) -> "TaskCache":
        """A copy with the tasks that were read again, and without those that are ``gone``."""
        tasks = self.tasks | {int(row["id"]): CachedTask.of(row) for row in rows}
        for number in gone:
            del tasks[number]
        return TaskCache(read_at=read_at, whole_at=self.whole_at, tasks=tasks, skip_queue=self.skip_queue)

    def annotated(self) -> Iterator[Json]:
        """Every task with an annotation or a skip, by ascending id, in the form of the task list."""
        for number in sorted(self.tasks):
            if annotations := self.tasks[number].annotations:
                yield {"id": number, "data": self.tasks[number].data, "annotations": list(annotations)}

    def unlabelled(self) -> list[int]:
        """Ids of the tasks without an annotation, ascending; a skip counts as one only where skips are final."""
        return [
            number
            for number in sorted(self.tasks)
            if not (annotations := self.tasks[number].annotations)
            or (not self.skips_are_final and all(item.get("was_cancelled") for item in annotations))
        ]

    def states(self, ground_truth: str = "override") -> dict[str, str]:
        """A digest of the answer and its time for each annotation, by task id and annotation id.

        Args:
            ground_truth: the owner's option; another value changes the digest of every ground truth.
        """
        marker = "" if ground_truth == "override" else f" {ground_truth}"  # the form of older versions
        return {
            f"{number}.{item.get('id')}": _digest(item) + (marker if item.get("ground_truth") else "")
            for number, task in self.tasks.items()
            for item in task.annotations
        }


def _digest(item: Json) -> str:
    answer = {name: value for name, value in item.items() if name in ANSWER_FIELDS}
    if isinstance(result := answer.get("result"), list):
        answer["result"] = [*filter(_is_read, result)]
    return blake2b(json.dumps(answer, sort_keys=True).encode(), digest_size=8).hexdigest()


def _cached(item: Json) -> Json:
    """An annotation without what no round reads: outlines that a reader drew may be megabytes.

    Where no choice is left, the names and types of the other answers stay.
    """
    cached = {name: item[name] for name in CACHED_FIELDS if name in item}
    if isinstance(result := cached.get("result"), list):
        others = dict.fromkeys((part.get("from_name"), part.get("type")) for part in result if not _is_read(part))
        cached["result"] = [*filter(_is_read, result)] or [{"from_name": name, "type": kind} for name, kind in others]
    return cached


def _is_read(part: object) -> bool:
    return not isinstance(part, dict) or part.get("type") == "choices"


# Reading


class SyncedProject(NamedTuple):
    """A project after a reading: its tasks, and its row in Label Studio."""

    cache: TaskCache
    project: Json


def read_project(client: LabelStudioClient, project_id: int, cache: TaskCache | None) -> SyncedProject:
    """Read what changed since ``cache`` was read, or everything where there is none or it cannot be brought up to date.

    The cache comes back as the same object where nothing changed.

    Raises:
        LabelStudioError: see ``LabelStudioClient``.
    """
    synced = None if cache is None else _read_changes(client, project_id, cache)
    if synced is None:
        project, clock = client.project_and_clock(project_id)
        # Without Label Studio's clock later changes cannot be told: the next reading is whole again.
        start = clock or datetime(1970, 1, 1, tzinfo=UTC)
        empty = TaskCache(read_at=start, whole_at=start, tasks={})
        synced = SyncedProject(empty.renewed(client.changed_tasks(project_id), start), project)
    if (skip_queue := synced.project.get("skip_queue")) != synced.cache.skip_queue:
        return synced._replace(cache=synced.cache.model_copy(update={"skip_queue": skip_queue}))
    return synced


def _read_changes(client: LabelStudioClient, project_id: int, cache: TaskCache) -> SyncedProject | None:
    """None where the cache cannot be brought to the project's counts."""
    for _ in range(TRIES):
        project, clock = client.project_and_clock(project_id)
        # A clock that was set back gives changes a time before the last reading.
        if clock is None or not (cache.read_at <= clock and cache.whole_at <= clock < cache.whole_at + WHOLE_EVERY):
            return None
        counts = Counts.of(project)
        if changed := list(client.changed_tasks(project_id, cache.read_at - OVERLAP)):
            # An unchanged cache keeps its time: there is nothing to write, and no more to read next time.
            cache = cache.renewed(changed, clock)
        if cache.counts == counts:
            return SyncedProject(cache, project)
        if cache.counts.tasks > counts.tasks:
            gone = _find_deleted(client, project_id, sorted(cache.tasks))
            if gone is None:
                return None
            cache = cache.renewed((), clock, gone)
    log.info("reading whole: the counts differ", read=cache.counts, counted=counts)
    return None


def _find_deleted(client: LabelStudioClient, project_id: int, ids: Sequence[int]) -> set[int] | None:
    """Bisect for those of the tasks, in ascending order, that are deleted; None where it takes too many requests."""
    searches = 0
    gone: set[int] = set()
    ranges = [(ids, client.count_tasks(project_id, ids[0], ids[-1]))]
    while ranges:
        known, count = ranges.pop()
        if count == 0:
            gone.update(known)
        elif count != len(known):
            searches += 1
            # More tasks than are known, or fewer than none: tasks are imported or deleted at this moment.
            if searches > SEARCHES or not 0 <= count < len(known):
                return None
            left, right = known[: len(known) // 2], known[len(known) // 2 :]
            in_left = client.count_tasks(project_id, left[0], left[-1])
            ranges += [(left, in_left), (right, count - in_left)]
    return gone


# The images of tasks


class Duplicates(FrozenModel):
    """Images that two or more tasks hold.

    Attributes:
        images: their number.
        tasks: number of the tasks that hold them.
        sentence: for the owner; empty where there are none.
    """

    images: int
    tasks: int
    sentence: str


@dataclass(frozen=True, slots=True)
class TaskImages:
    """The images of a project's tasks, and which tasks hold the same one.

    The same image is in several tasks where it was imported twice, uploaded twice, or exported and imported again.

    Attributes:
        images: by task. Where an image has several patients, or one of its tasks names none, all of its tasks have
            the first patient, and so have the other images of these patients.
        refused: by task, why it has no image.
        first: by task, the lowest task of the same image; only of images that several tasks hold.
    """

    images: Mapping[int, ImageRef]
    refused: Mapping[int, str]
    first: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: TaskCache, config: LabelConfig, digests: Mapping[str, str] = NO_DIGESTS) -> Self:
        """Read every task.

        Args:
            cache: the tasks.
            config: the project's question.
            digests: address -> digest of the bytes there, where it is known; see ``shared_digests``.
        """
        images: dict[int, ImageRef] = {}
        refused: dict[int, str] = {}
        for number in sorted(cache.tasks):
            try:
                images[number] = read_image({"id": number, "data": cache.tasks[number].data}, config)
            except PayloadError as error:
                refused[number] = str(error)
        keys = {
            number: [("uri", image.uri), *([("content", digests[image.uri])] if image.uri in digests else [])]
            for number, image in images.items()
        }
        copies: dict[int, list[int]] = {}
        for number, first in linked(keys).items():
            copies.setdefault(first, []).append(number)
        several = {first: numbers for first, numbers in copies.items() if len(numbers) > 1}
        return cls(
            images | _with_one_patient(images, list(several.values())),
            refused,
            {number: first for first, numbers in several.items() for number in numbers},
        )

    def copies(self, number: int) -> int:
        """The lowest of the tasks that hold the same image as this task."""
        return self.first.get(number, number)

    def waiting(self, cache: TaskCache) -> tuple[list[int], dict[int, str]]:
        """The tasks that readers may be served, and those that need no answer, with the reason.

        An image leaves the pool with the first of its tasks that does; until then the lowest of them represents it.

        Args:
            cache: the tasks that these images belong to.

        Returns:
            Both by ascending id; tasks without an image are in neither.
        """
        unlabelled = [number for number in cache.unlabelled() if number in self.images]
        open_tasks = set(unlabelled)
        done: dict[int, int] = {}  # image -> the lowest of its tasks with an answer
        for number, image in self.first.items():
            if number not in open_tasks:
                done[image] = min(number, done.get(image, number))
        served: dict[int, int] = {}  # image -> the task that represents it
        pool: list[int] = []
        barred: dict[int, str] = {}
        for number in unlabelled:
            image = self.copies(number)
            if image in done:
                barred[number] = (
                    f"task {number} holds the same image as task {done[image]}, which has an answer or a skip"
                )
            elif (other := served.setdefault(image, number)) != number:
                barred[number] = f"task {number} holds the same image as task {other}, which represents both"
            else:
                pool.append(number)
        return pool, barred

    def count(self) -> Duplicates:
        """Number of images that two or more tasks hold."""
        images, tasks = len(set(self.first.values())), len(self.first)
        are, it = ("image is", "it") if images == 1 else ("images are", "each of them")
        sentence = (
            f"{images} {are} in two or more tasks ({tasks} in all): {it} is served once, and counts once, with the "
            "answers of all its tasks."
        )
        return Duplicates(images=images, tasks=tasks, sentence=sentence if images else "")


def shared_digests(digests: Mapping[str, str]) -> dict[str, str]:
    """The addresses whose digest another address shares: only these need to be kept."""
    addresses: dict[str, list[str]] = {}
    for address, digest in digests.items():
        addresses.setdefault(digest, []).append(address)
    return {address: digest for digest, found in addresses.items() if len(found) > 1 for address in sorted(found)}


def _with_one_patient(images: Mapping[int, ImageRef], several: Sequence[list[int]]) -> dict[int, ImageRef]:
    """The images whose patient another of their tasks names, or that have two names for it."""
    patients = [
        [patient for number in numbers if (patient := images[number].patient_id) is not None] for numbers in several
    ]
    shared: dict[str, list[Any]] = {}
    for place, names in enumerate(patients):
        for name in names:
            shared.setdefault(name, []).append(place)
    alias = linked({name: shared[name] for name in sorted(shared, key=natural_order)})
    changed = {
        number: image.model_copy(update={"patient_id": alias[image.patient_id]})
        for number, image in images.items()
        if image.patient_id is not None and alias.get(image.patient_id, image.patient_id) != image.patient_id
    }
    for numbers, names in zip(several, patients, strict=True):
        for number in numbers if names else ():
            changed[number] = images[number].model_copy(update={"patient_id": alias[names[0]]})
    return changed


# Annotations and pool


class TaskCacheStore(Protocol):
    """Keeps the tasks between two readings."""

    def mirror(self, kind: type[R]) -> R | None:
        """None where there are none that can be used."""
        ...

    def keep_mirror(self, mirror: FrozenModel) -> None:
        """Never raises."""
        ...


class LabelStudioLabels:
    """Annotations and pool of a Label Studio project. Satisfies ``rounds.interfaces.LabelSource``.

    Args:
        client: of Label Studio.
        project_id: the project.
        config: its question.
        options: of the project.
        store: keeps the tasks, so that the next reading requests changes only; None reads everything each time.
        digests: reads which addresses hold the same bytes, see ``TaskImages``.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        config: LabelConfig,
        options: ProjectOptions,
        store: TaskCacheStore | None = None,
        *,
        digests: Callable[[], Mapping[str, str]] = lambda: NO_DIGESTS,
    ) -> None:
        self._client = client
        self._project_id = project_id
        self._config = config
        self._options = options
        self._store = store
        self._digests = digests
        self._read_last: SyncedProject | None = None
        self._images = TaskImages({}, {})
        self._unreadable: list[Exclusion] = []

    def annotations(self) -> Sequence[Annotation]:
        """Read every annotation of the project. Unreadable ones are among the exclusions of ``unlabelled``."""
        found, self._unreadable = annotations_in(self._read().cache, self._config, self._options, self._images)
        return found

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The images without an annotation when the annotations were read, each once, and what is excluded.

        Excluded is a task without an image, and one whose image another task represents or has an answer to.
        """
        cache = self.reading.cache
        pool, barred = self._images.waiting(cache)
        refused = {
            number: self._images.refused[number] for number in cache.unlabelled() if number in self._images.refused
        }
        return [self._images.images[number] for number in pool], [
            *self._unreadable,
            *(Exclusion(image_id=str(number), reason=why, kind="no image") for number, why in refused.items()),
            *(Exclusion(image_id=str(number), reason=why, kind="same image") for number, why in barred.items()),
        ]

    def images(self) -> Sequence[ImageRef]:
        """The image of every task that has one."""
        if self._read_last is None:
            self._read()
        return list(self._images.images.values())

    def images_of_several_tasks(self) -> frozenset[str]:
        """Ids of the images that two tasks or more held when the annotations were read."""
        return frozenset(map(str, self._images.first))

    def states(self) -> dict[str, str]:
        """A digest of each annotation that was read last, by its id, whatever question it answers."""
        return self.reading.cache.states(self._options.ground_truth)

    @property
    def reading(self) -> SyncedProject:
        """The project as ``annotations`` read it last."""
        return self._read_last or self._read()

    def _read(self) -> SyncedProject:
        cache = self._store.mirror(TaskCache) if self._store else None
        synced = read_project(self._client, self._project_id, cache)
        if self._store and synced.cache is not cache:
            self._store.keep_mirror(synced.cache)
        self._read_last = synced
        self._images = TaskImages.of(synced.cache, self._config, self._digests())
        return synced


class _Answer(NamedTuple):
    task: int
    annotation: Annotation


def annotations_in(
    cache: TaskCache, config: LabelConfig, options: ProjectOptions, images: TaskImages | None = None
) -> tuple[list[Annotation], list[Exclusion]]:
    """Every annotation that counts, and the images that get no label, with the reason.

    The answers in all tasks of one image are answers about the lowest of these tasks. The option ``ground_truth``
    decides what an annotation marked as ground truth counts as.

    Args:
        cache: the tasks.
        config: the project's question.
        options: of the project.
        images: of the tasks; by default told apart by their addresses.
    """
    images = TaskImages.of(cache, config) if images is None else images
    answers: dict[int, list[_Answer]] = {}
    unreadable: list[Exclusion] = []
    for task in cache.annotated():
        number = int(task["id"])
        if number in images.refused:
            reason = images.refused[number]
            unreadable.append(Exclusion(image_id=str(number), reason=reason, kind="label without image"))
            continue
        for item in task["annotations"]:
            try:
                annotation = read_annotation(item, images.images[number], config, options)
            except PayloadError as error:  # the other answers of the task count all the same
                unreadable.append(Exclusion(image_id=str(number), reason=str(error), kind="unreadable answer"))
                continue
            # The lowest task that has answers comes first, and gives the image its id.
            of_image = answers.setdefault(images.copies(number), [])
            image = of_image[0].annotation.image if of_image else annotation.image
            of_image.append(_Answer(number, annotation.model_copy(update={"image": image})))
    found: list[Annotation] = []
    for of_image in answers.values():
        counted = _with_ground_truth(of_image, options)
        found += _told_apart(counted)
        if not counted:
            image = of_image[0].annotation.image
            reason = (
                f"image {image.id} has no answer but {len(of_image)} marked as ground truth, which "
                "ground_truth=ignore leaves out: let readers answer it, or set ground_truth to override or reader"
            )
            unreadable.append(Exclusion(image_id=image.id, kind="ignored truth", reason=reason))
    return found, unreadable


def _with_ground_truth(answers: Sequence[_Answer], options: ProjectOptions) -> list[_Answer]:
    """The answers about one image that count.

    As readers' answers, several ground truths of one user count each: Label Studio gives imported annotations without
    ``completed_by`` to the user who imports them.
    """
    if options.ground_truth == "override":
        return list(answers)
    if options.ground_truth == "ignore":
        return [one for one in answers if not one.annotation.ground_truth]
    truths = Counter(one.annotation.rater for one in answers if one.annotation.ground_truth)
    counted: list[_Answer] = []
    for place, (task, annotation) in enumerate(answers, start=1):
        rater = annotation.rater
        if annotation.ground_truth and truths[rater] > 1:
            rater = f"{rater}, ground truth {place}"
        counted.append(_Answer(task, annotation.model_copy(update={"rater": rater, "ground_truth": False})))
    return counted


def _told_apart(answers: Sequence[_Answer]) -> list[Annotation]:
    """The answers about one image; different answers of one reader in several tasks count each.

    A later answer in another task corrects nothing.
    """
    latest: dict[str, dict[int, Annotation]] = {}
    for task, annotation in sorted(answers, key=lambda one: one.annotation.updated_at):
        latest.setdefault(annotation.rater, {})[task] = annotation
    differing = {rater for rater, by_task in latest.items() if len({one.value for one in by_task.values()}) > 1}
    return [
        annotation.model_copy(update={"rater": f"{annotation.rater}, task {task}"})
        if annotation.rater in differing
        else annotation
        for task, annotation in answers
    ]
