"""The same image in several tasks: imported twice, uploaded twice, or exported and imported again. No I/O."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self

from ml_backend.errors import PayloadError
from ml_backend.grouping import linked
from ml_backend.label_studio.formats import LabelConfig, read_image
from ml_backend.label_studio.mirror import Mirror
from ml_backend.records import ImageRef, Record, natural_order

__all__ = ["NO_DIGESTS", "Duplicates", "TaskImages", "shared_digests"]

NO_DIGESTS: Final[Mapping[str, str]] = MappingProxyType({})


class Duplicates(Record):
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
