"""A project's tasks and annotations as they were last read: what a reading needs not ask for again. No I/O.

What a project holds now, at the cost of what changed since it was last read.
The same image in several tasks: imported twice, uploaded twice, or exported and imported again. No I/O.
The annotations and the pool of a Label Studio project.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Protocol, Self, TypeVar

import structlog
from pydantic import AwareDatetime

from ml_backend.config import ProjectOptions
from ml_backend.errors import PayloadError
from ml_backend.grouping import linked
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, read_annotation, read_image
from ml_backend.schemas import Annotation, Exclusion, FrozenModel, ImageRef, natural_order

Json = dict[str, Any]
SAID = ("id", "completed_by", "was_cancelled", "ground_truth", "result", "updated_at")
KEPT = (*SAID, "created_at", "lead_time", "parent_prediction")


class Counts(NamedTuple):
    """How much a project holds, as Label Studio's project row counts it too."""

    tasks: int
    annotations: int  # without skips
    skips: int

    @classmethod
    def of(cls, project: Mapping[str, object]) -> Self:
        """Those of a project's row.

        Raises:
            PayloadError: one is missing.
        """
        names = ("task_number", "total_annotations_number", "skipped_annotations_number")
        numbers = [number for name in names if isinstance(number := project.get(name), int)]
        if len(numbers) < len(names):
            raise PayloadError(f"project {project.get('id')} comes without {', '.join(names)}: is this Label Studio?")
        return cls(*numbers)


class KeptTask(FrozenModel):
    """What matters of a task, whatever its project's label config is."""

    data: Any = None
    annotations: tuple[Json, ...] = ()

    @classmethod
    def of(cls, task: Json) -> Self:
        """Read a task of the task list."""
        return cls(data=task.get("data"), annotations=tuple(map(_kept, task.get("annotations") or ())))


class Mirror(FrozenModel):
    """A project's tasks.

    Attributes:
        format: of the file; one of another format is no mirror, and the project is read whole.
        read_at: when Label Studio was last asked, by its own clock. All that changed before is in here.
        whole_at: when the project was last read whole, by the same clock.
        tasks: by id.
        skip_queue: of the project, which says whether a skipped task is served again; None where it was not noted.
    """

    format: Literal[2] = 2
    read_at: AwareDatetime
    whole_at: AwareDatetime
    tasks: dict[int, KeptTask]
    skip_queue: str | None = None

    def renewed(self, rows: Iterable[Json], read_at: datetime, gone: Iterable[int] = ()) -> "Mirror":
        """With tasks that were read again, and without those that are gone."""
        tasks = self.tasks | {int(row["id"]): KeptTask.of(row) for row in rows}
        for number in gone:
            del tasks[number]
        return Mirror(read_at=read_at, whole_at=self.whole_at, tasks=tasks, skip_queue=self.skip_queue)

    @cached_property
    def counts(self) -> Counts:
        skipped = [bool(item.get("was_cancelled")) for task in self.tasks.values() for item in task.annotations]
        return Counts(len(self.tasks), len(skipped) - sum(skipped), sum(skipped))

    def annotated(self) -> Iterator[Json]:
        """Every task with an annotation or a skip, by ascending id, as the task list has it."""
        return (self._row(number) for number in sorted(self.tasks) if self.tasks[number].annotations)

    def unlabelled(self, *, with_skipped: bool) -> Iterator[Json]:
        """Every task without an annotation, a skip being none, by ascending id."""
        for number in sorted(self.tasks):
            annotations = self.tasks[number].annotations
            if not annotations or (with_skipped and all(item.get("was_cancelled") for item in annotations)):
                yield self._row(number)

    def states(self, ground_truth: str = "override") -> dict[str, str]:
        """Every annotation, under its task and its own id, with a digest of what it says and when it was said.

        Args:
            ground_truth: the owner's option of that name: another value makes a change of every ground truth.
        """
        told = "" if ground_truth == "override" else f" {ground_truth}"  # as older versions noted it
        return {
            f"{number}.{item.get('id')}": _digest(item) + (told if item.get("ground_truth") else "")
            for number, task in self.tasks.items()
            for item in task.annotations
        }

    def _row(self, number: int) -> Json:
        task = self.tasks[number]
        return {"id": number, "data": task.data, "annotations": list(task.annotations)}


def _digest(item: Json) -> str:
    """Of what is said and when; not of what is only measured beside it."""
    said = {name: value for name, value in item.items() if name in SAID}
    if isinstance(result := said.get("result"), list):
        said["result"] = [*filter(_is_read, result)]
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()


def _kept(item: Json) -> Json:
    """An annotation without what no round reads: the outlines that a reader drew may be megabytes.

    Of one without any choice, the names of the tags that it answers stay, with the types of the answers.
    """
    kept = {name: item[name] for name in KEPT if name in item}
    if isinstance(result := kept.get("result"), list):
        others = dict.fromkeys((part.get("from_name"), part.get("type")) for part in result if not _is_read(part))
        kept["result"] = [*filter(_is_read, result)] or [{"from_name": name, "type": kind} for name, kind in others]
    return kept


def _is_read(part: object) -> bool:
    return not isinstance(part, dict) or part.get("type") == "choices"


# A task's time is taken before its row can be seen, and a proxy's clock is not Label Studio's.
OVERLAP = timedelta(seconds=60)
WHOLE_EVERY = timedelta(days=1)  # an error that no count shows lives no longer
TRIES = 3  # readers who label in between make counts and tasks disagree for a moment
SEARCHES = 60  # requests for deleted tasks, about 0.1 s each; beyond them the whole is cheaper

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """A project as it was read.

    Attributes:
        mirror: its tasks.
        project: its row in Label Studio.
        rows: tasks that were transferred.
        whole: whether all of it was read.
    """

    mirror: Mirror
    project: Mapping[str, Any]
    rows: int
    whole: bool


def read_project(client: LabelStudioClient, project_id: int, kept: Mirror | None) -> Reading:
    """Read what changed since ``kept`` was, or everything.

    Args:
        client: of Label Studio.
        project_id: the project.
        kept: the mirror of the last reading; None where there is none.

    Raises:
        RequestRefused, LabelStudioError, PayloadError: see ``LabelStudioClient``.
    """
    reading = None if kept is None else _read_changes(client, project_id, kept)
    reading = reading or _read_whole(client, project_id)
    if (skip_queue := reading.project.get("skip_queue")) != reading.mirror.skip_queue:
        reading = replace(reading, mirror=reading.mirror.model_copy(update={"skip_queue": skip_queue}))
    return reading


def _read_changes(client: LabelStudioClient, project_id: int, kept: Mirror) -> Reading | None:
    """None where the mirror cannot be brought to what the project's counts say."""
    mirror, rows = kept, 0
    for _ in range(TRIES):
        project, clock = client.project_and_clock(project_id)
        if clock is None or not _usable(mirror, clock):
            return None
        counts = Counts.of(project)
        changed = list(client.changed_tasks(project_id, mirror.read_at - OVERLAP))
        rows += len(changed)
        # A mirror that nothing was added to keeps its time: there is nothing to write, and no more to read next time.
        mirror = mirror.renewed(changed, clock) if changed else mirror
        if mirror.counts == counts:
            return Reading(mirror, project, rows, whole=False)
        if mirror.counts.tasks > counts.tasks:
            gone = _deleted(client, project_id, sorted(mirror.tasks))
            if gone is None:
                return None
            mirror = mirror.renewed((), clock, gone)
    log.info("reading whole: the counts differ", read=mirror.counts, counted=counts)
    return None


def _read_whole(client: LabelStudioClient, project_id: int) -> Reading:
    project, clock = client.project_and_clock(project_id)
    # Without a clock nothing can be said about what changes from now on: the next reading is whole again.
    start = clock or datetime(1970, 1, 1, tzinfo=UTC)
    mirror = Mirror(read_at=start, whole_at=start, tasks={}).renewed(client.changed_tasks(project_id), start)
    return Reading(mirror, project, len(mirror.tasks), whole=True)


def _usable(mirror: Mirror, clock: datetime) -> bool:
    # A clock that was set back gives changes a time before the last reading.
    return mirror.read_at <= clock and mirror.whole_at <= clock < mirror.whole_at + WHOLE_EVERY


def _deleted(client: LabelStudioClient, project_id: int, ids: Sequence[int]) -> set[int] | None:
    """Which of these tasks, in ascending order, are gone; None where that takes too long to find out."""
    searches = 0
    gone: set[int] = set()
    open_ranges = [(ids, client.count_tasks(project_id, ids[0], ids[-1]))]
    while open_ranges:
        found, there = open_ranges.pop()
        if there == 0:
            gone.update(found)
        elif there != len(found):
            searches += 1
            # More tasks than we know, or fewer than none: somebody imports or deletes at this moment.
            if searches > SEARCHES or not 0 <= there < len(found):
                return None
            left, right = found[: len(found) // 2], found[len(found) // 2 :]
            in_left = client.count_tasks(project_id, left[0], left[-1])
            open_ranges += [(left, in_left), (right, there - in_left)]
    return gone


NO_DIGESTS: Final[Mapping[str, str]] = MappingProxyType({})


class Duplicates(FrozenModel):
    """Images that stand in two or more tasks.

    Attributes:
        images: how many.
        tasks: that hold them, together.
        sentence: for the owner; empty where there is none.
    """

    images: int
    tasks: int
    sentence: str


@dataclass(frozen=True, slots=True)
class TaskImages:
    """The images of a project's tasks, and which tasks hold the same one.

    Attributes:
        images: by task. Where an image stands under several patients, or one of its tasks names none, all of them have
            the first patient, and so have the other images of these patients.
        refused: by task, why it has no image.
        first: by task, the lowest task of the same image; only of images that stand in several.
    """

    images: Mapping[int, ImageRef]
    refused: Mapping[int, str]
    first: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, mirror: Mirror, config: LabelConfig, digests: Mapping[str, str] = NO_DIGESTS) -> Self:
        """Read every task.

        Args:
            mirror: of the last reading.
            config: the project's question.
            digests: address -> digest of the bytes there, where it is known; see ``shared_digests``.
        """
        images: dict[int, ImageRef] = {}
        refused: dict[int, str] = {}
        for number in sorted(mirror.tasks):
            try:
                images[number] = read_image({"id": number, "data": mirror.tasks[number].data}, config)
            except PayloadError as error:
                refused[number] = str(error)
        same = linked({number: _marks(image, digests) for number, image in images.items()})
        lowest: dict[int, list[int]] = {}
        for number, first in same.items():
            lowest.setdefault(first, []).append(number)
        several = {first: numbers for first, numbers in lowest.items() if len(numbers) > 1}
        return cls(
            images | _with_one_patient(images, several.values()),
            refused,
            {number: first for first, numbers in several.items() for number in numbers},
        )

    def copies(self, number: int) -> int:
        """What the tasks of one image have in common: the lowest of them."""
        return self.first.get(number, number)

    def waiting(self, mirror: Mirror, *, with_skipped: bool) -> tuple[list[int], dict[int, str]]:
        """The tasks that readers may be served, and those that need no answer, with the reason.

        An image leaves the pool with the first of its tasks that does; until then the lowest of them stands for it.

        Args:
            mirror: that these images are of.
            with_skipped: whether a skipped task waits on.

        Returns:
            Both by ascending id; tasks without an image are in neither.
        """
        waits = [int(row["id"]) for row in mirror.unlabelled(with_skipped=with_skipped) if row["id"] in self.images]
        free = set(waits)
        done: dict[int, int] = {}  # image -> the lowest of its tasks that waits no more
        for number in self.first:
            if number not in free:
                done[self.first[number]] = min(number, done.get(self.first[number], number))
        stands: dict[int, int] = {}
        pool: list[int] = []
        barred: dict[int, str] = {}
        for number in waits:
            image = self.copies(number)
            if image in done:
                barred[number] = (
                    f"task {number} holds the same image as task {done[image]}, which has an answer or a skip"
                )
            elif (other := stands.setdefault(image, number)) != number:
                barred[number] = f"task {number} holds the same image as task {other}, which stands for both"
            else:
                pool.append(number)
        return pool, barred

    def count(self) -> Duplicates:
        """How many images stand in two or more tasks."""
        images, tasks = len(set(self.first.values())), len(self.first)
        stand, it = ("image stands", "it") if images == 1 else ("images stand", "each of them")
        sentence = (
            f"{images} {stand} in two or more tasks ({tasks} in all): {it} is served once, and counts once, with the "
            "answers of all its tasks."
        )
        return Duplicates(images=images, tasks=tasks, sentence=sentence if images else "")


def shared_digests(digests: Mapping[str, str]) -> dict[str, str]:
    """Of the addresses with a known digest, those that share it with another: all that has to be kept."""
    addresses: dict[str, list[str]] = {}
    for address, digest in digests.items():
        addresses.setdefault(digest, []).append(address)
    return {address: digest for digest, found in addresses.items() if len(found) > 1 for address in sorted(found)}


def _marks(image: ImageRef, digests: Mapping[str, str]) -> list[tuple[str, str]]:
    digest = digests.get(image.uri)
    return [("uri", image.uri), *([] if digest is None else [("content", digest)])]


def _with_one_patient(images: Mapping[int, ImageRef], several: Collection[list[int]]) -> dict[int, ImageRef]:
    """The images whose patient another of their tasks names, or that have two names for it."""
    named = [[images[number].patient_id for number in numbers] for numbers in several]
    patients = [[one for one in names if one is not None] for names in named]
    marks: dict[str, list[Any]] = {}
    for place, names in enumerate(patients):
        for name in names:
            marks.setdefault(name, []).append(place)
    alias = linked({name: marks[name] for name in sorted(marks, key=natural_order)})
    changed = {
        number: image.model_copy(update={"patient_id": alias[image.patient_id]})
        for number, image in images.items()
        if image.patient_id is not None and alias.get(image.patient_id, image.patient_id) != image.patient_id
    }
    for numbers, names in zip(several, patients, strict=True):
        for number in numbers if names else ():
            changed[number] = images[number].model_copy(update={"patient_id": alias[names[0]]})
    return changed


SKIPPED_IS_DONE = "IGNORE_SKIPPED"  # the project's skip queue: a skipped task is never served again

R = TypeVar("R", bound=FrozenModel)


class MirrorStore(Protocol):
    """Where the last reading is kept."""

    def mirror(self, kind: type[R]) -> R | None:
        """None where there is none that can be used."""
        ...

    def keep_mirror(self, mirror: FrozenModel) -> None:
        """Never raises."""
        ...


class LabelStudioLabels:
    """Satisfies ``engine.ports.LabelSource``.

    Args:
        client: of Label Studio.
        project_id: the project.
        config: its question.
        options: its owner's.
        store: keeps what was read, so that the next reading asks for changes alone; None reads everything each time.
        digests: reads which addresses hold the same bytes, see ``TaskImages``.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        config: LabelConfig,
        options: ProjectOptions,
        store: MirrorStore | None = None,
        *,
        digests: Callable[[], Mapping[str, str]] = lambda: NO_DIGESTS,
    ) -> None:
        self._client = client
        self._project_id = project_id
        self._config = config
        self._options = options
        self._store = store
        self._digests = digests
        self._reading: Reading | None = None
        self._images = TaskImages({}, {})
        self._unreadable: list[Exclusion] = []

    def annotations(self) -> Sequence[Annotation]:
        """Every annotation of the project. What cannot be read is named among the exclusions of ``unlabelled``."""
        mirror = self._read().mirror
        found, self._unreadable = annotations_in(mirror, self._config, self._options, self._images)
        return found

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The images without an annotation when the annotations were read, each once.

        A task without an image, and one whose image has an answer in another task or stands for it there, is excluded
        by name.
        """
        reading = self.reading
        with_skipped = not skips_are_final(reading)
        pool, barred = self._images.waiting(reading.mirror, with_skipped=with_skipped)
        waits = (int(task["id"]) for task in reading.mirror.unlabelled(with_skipped=with_skipped))
        refused = {number: self._images.refused[number] for number in waits if number in self._images.refused}
        return [self._images.images[number] for number in pool], [
            *self._unreadable,
            *(Exclusion(image_id=str(number), reason=why, kind="no image") for number, why in refused.items()),
            *(Exclusion(image_id=str(number), reason=why, kind="same image") for number, why in barred.items()),
        ]

    def images(self) -> Sequence[ImageRef]:
        """Of every task that has one, as it was read last."""
        if self._reading is None:
            self._read()
        return list(self._images.images.values())

    def states(self) -> dict[str, str]:
        """What ``annotations`` read last, of any question: a digest of each annotation, by its id."""
        return self.reading.mirror.states(self._options.ground_truth)

    @property
    def reading(self) -> Reading:
        """The project as ``annotations`` read it last."""
        return self._reading or self._read()

    def _read(self) -> Reading:
        kept = self._store.mirror(Mirror) if self._store else None
        reading = read_project(self._client, self._project_id, kept)
        if self._store and reading.mirror is not kept:
            self._store.keep_mirror(reading.mirror)
        self._reading = reading
        self._images = TaskImages.of(reading.mirror, self._config, self._digests())
        return reading


def annotations_in(
    mirror: Mirror, config: LabelConfig, options: ProjectOptions, images: TaskImages | None = None
) -> tuple[list[Annotation], list[Exclusion]]:
    """Every annotation of a reading that counts, and the images that get no label, with the reason.

    The answers of all tasks that hold one image are answers about the lowest of these tasks. What an annotation marked
    as ground truth counts as, ``options.ground_truth`` says.

    Args:
        mirror: of the last reading.
        config: the project's question.
        options: its owner's.
        images: of the mirror; by default as the addresses tell them apart.
    """
    images = TaskImages.of(mirror, config) if images is None else images
    answers: dict[int, list[_Answer]] = {}
    unreadable: list[Exclusion] = []
    for task in mirror.annotated():
        number = int(task["id"])
        if number in images.refused:
            why = images.refused[number]
            unreadable.append(Exclusion(image_id=str(number), reason=why, kind="label without image"))
            continue
        for item in task["annotations"]:
            try:
                read = read_annotation(item, images.images[number], config, options)
            except PayloadError as error:  # the answers beside it count all the same
                unreadable.append(Exclusion(image_id=str(number), reason=str(error), kind="unreadable answer"))
                continue
            # The lowest task that has answers comes first, and gives the image its id.
            of_image = answers.setdefault(images.copies(number), [])
            image = of_image[0].annotation.image if of_image else read.image
            of_image.append(_Answer(number, read.model_copy(update={"image": image})))
    found: list[Annotation] = []
    for of_image in answers.values():
        counted = _with_ground_truth(of_image, options)
        if not counted:
            unreadable.append(_only_ignored(of_image))
        found += _of_several_tasks(counted)
    return found, unreadable


class _Answer(NamedTuple):
    task: int
    annotation: Annotation


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


def _of_several_tasks(answers: Sequence[_Answer]) -> list[Annotation]:
    """The answers about one image; those of a reader who answered its tasks differently count each.

    Nobody corrects an answer in another task: the later of the two is not the better one.
    """
    latest: dict[str, dict[int, Annotation]] = {}
    for task, annotation in sorted(answers, key=lambda one: one.annotation.updated_at):
        latest.setdefault(annotation.rater, {})[task] = annotation
    unlike = {rater for rater, of_task in latest.items() if len({one.value for one in of_task.values()}) > 1}
    return [
        one.annotation.model_copy(update={"rater": f"{one.annotation.rater}, task {one.task}"})
        if one.annotation.rater in unlike
        else one.annotation
        for one in answers
    ]


def _only_ignored(answers: Sequence[_Answer]) -> Exclusion:
    image = answers[0].annotation.image
    return Exclusion(
        image_id=image.id,
        kind="ignored truth",
        reason=f"image {image.id} has no answer but {len(answers)} marked as ground truth, which ground_truth=ignore "
        "leaves out: let readers answer it, or set ground_truth to override or reader",
    )


def skips_are_final(reading: Reading) -> bool:
    """Whether a skipped image is never served again."""
    return reading.project.get("skip_queue") == SKIPPED_IS_DONE
