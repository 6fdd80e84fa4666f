"""A project's tasks and annotations as they were last read: what a reading needs not ask for again. No I/O."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime

from ml_backend.errors import PayloadError
from ml_backend.records import Record

__all__ = ["Counts", "KeptTask", "Mirror"]

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


class KeptTask(Record):
    """What matters of a task, whatever its project's label config is."""

    data: Any = None
    annotations: tuple[Json, ...] = ()

    @classmethod
    def of(cls, task: Json) -> Self:
        """Read a task of the task list."""
        return cls(data=task.get("data"), annotations=tuple(map(_kept, task.get("annotations") or ())))


class Mirror(Record):
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
