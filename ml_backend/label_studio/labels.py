"""The annotations and the pool of a Label Studio project."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from ml_backend.errors import PayloadError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.duplicates import NO_DIGESTS, TaskImages
from ml_backend.label_studio.formats import LabelConfig, read_annotation
from ml_backend.label_studio.mirror import Mirror
from ml_backend.label_studio.reading import Reading, read_project
from ml_backend.records import Annotation, Exclusion, ImageRef, Record
from ml_backend.settings import ProjectOptions

__all__ = ["SKIPPED_IS_DONE", "LabelStudioLabels", "MirrorStore", "annotations_in", "skips_are_final"]

SKIPPED_IS_DONE = "IGNORE_SKIPPED"  # the project's skip queue: a skipped task is never served again

R = TypeVar("R", bound=Record)


class MirrorStore(Protocol):
    """Where the last reading is kept."""

    def mirror(self, kind: type[R]) -> R | None:
        """None where there is none that can be used."""
        ...

    def keep_mirror(self, mirror: Record) -> None:
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
