"""The annotations and the pool of a Label Studio project."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ml_backend.errors import PayloadError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, read_annotation, read_image
from ml_backend.label_studio.mirror import Mirror
from ml_backend.label_studio.reading import Reading, read_project
from ml_backend.records import Annotation, Exclusion, ImageRef, Record
from ml_backend.settings import ProjectOptions

__all__ = ["LabelStudioLabels", "MirrorStore", "annotations_in"]

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
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        config: LabelConfig,
        options: ProjectOptions,
        store: MirrorStore | None = None,
    ) -> None:
        self._client = client
        self._project_id = project_id
        self._config = config
        self._options = options
        self._store = store
        self._reading: Reading | None = None
        self._unreadable: list[Exclusion] = []

    def annotations(self) -> Sequence[Annotation]:
        """Every annotation of the project. What cannot be read is named among the exclusions of ``unlabelled``."""
        found, self._unreadable = annotations_in(self._read().mirror, self._config, self._options)
        return found

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The tasks without an annotation when the annotations were read; one without an image is excluded by name."""
        reading = self.reading
        pool: list[ImageRef] = []
        exclusions = list(self._unreadable)
        for task in reading.mirror.unlabelled(with_skipped=not _skips_are_final(reading)):
            try:
                pool.append(read_image(task, self._config))
            except PayloadError as error:
                exclusions.append(Exclusion(image_id=str(task["id"]), reason=str(error)))
        return pool, exclusions

    def states(self) -> dict[str, str]:
        """What ``annotations`` read last, of any question: a digest of each annotation, by its id."""
        return self.reading.mirror.states()

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
        return reading


def annotations_in(
    mirror: Mirror, config: LabelConfig, options: ProjectOptions
) -> tuple[list[Annotation], list[Exclusion]]:
    """Every annotation of a reading, and the images of those that cannot be read, with the reason."""
    found: list[Annotation] = []
    unreadable: list[Exclusion] = []
    for task in mirror.annotated():
        try:
            image = read_image(task, config)
        except PayloadError as error:
            unreadable.append(Exclusion(image_id=str(task["id"]), reason=str(error)))
            continue
        for item in task["annotations"]:
            try:
                found.append(read_annotation(item, image, config, options))
            except PayloadError as error:  # the answers beside it count all the same
                unreadable.append(Exclusion(image_id=image.id, reason=str(error)))
    return found, unreadable


def _skips_are_final(reading: Reading) -> bool:
    """Whether a skipped image is never served again."""
    return reading.project.get("skip_queue") == SKIPPED_IS_DONE
