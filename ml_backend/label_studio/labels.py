"""The annotations and the pool of a Label Studio project."""

from collections.abc import Sequence

from ml_backend.errors import PayloadError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, read_annotation, read_image
from ml_backend.records import Annotation, Exclusion, ImageRef
from ml_backend.settings import ProjectOptions

__all__ = ["LabelStudioLabels"]

SKIPPED_IS_DONE = "IGNORE_SKIPPED"  # the project's skip queue: a skipped task is never served again


class LabelStudioLabels:
    """Satisfies ``engine.ports.LabelSource``."""

    def __init__(
        self, client: LabelStudioClient, project_id: int, config: LabelConfig, options: ProjectOptions
    ) -> None:
        self._client = client
        self._project_id = project_id
        self._config = config
        self._options = options
        self._unreadable: list[Exclusion] = []

    def annotations(self) -> Sequence[Annotation]:
        """Every annotation of the project. What cannot be read is named among the exclusions of ``unlabelled``."""
        self._unreadable = []
        found: list[Annotation] = []
        for task in self._client.annotated_tasks(self._project_id):
            try:
                image = read_image(task, self._config)
                items = task.get("annotations", ())
                found += [read_annotation(item, image, self._config, self._options) for item in items]
            except PayloadError as error:
                self._unreadable.append(Exclusion(image_id=str(task.get("id")), reason=str(error)))
        return found

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The tasks without an annotation; a task without an image is excluded by name."""
        skip_queue = self._client.project(self._project_id).get("skip_queue")
        tasks = self._client.unlabelled_tasks(self._project_id, with_skipped=skip_queue != SKIPPED_IS_DONE)
        pool: list[ImageRef] = []
        exclusions = list(self._unreadable)
        for task in tasks:
            try:
                pool.append(read_image(task, self._config))
            except PayloadError as error:
                exclusions.append(Exclusion(image_id=str(task["id"]), reason=str(error)))
        return pool, exclusions
