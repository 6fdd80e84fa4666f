"""A pool that several workers score: the network and the images for all, the results from each.

::

    <round>-<token>/task.json            ScoringTask
                    model.*              what the learner saved
                    images/00003.json    a shard of the pool
                    results/00003.npz    what a worker made of it
"""

import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from ml_backend.config import ProjectOptions
from ml_backend.errors import StorageError
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.schemas import FrozenModel, ImageRef
from ml_backend.storage.atomic import folder_beside, read_record, write_record
from ml_backend.storage.outputs import read_outputs, write_outputs

OTHERS_LEFTOVERS_AFTER_S = 24 * 3600.0

_IMAGES = TypeAdapter(tuple[ImageRef, ...])


class _SavesItself(Protocol):
    def save(self, folder: str) -> None: ...


class ScoringTask(FrozenModel):
    """What a worker must know to get the same bits as the round that asks for its help."""

    options: ProjectOptions
    needs: frozenset[Need]
    machine: str  # what decides the bits of a result there; a worker on another must not help
    shards: Annotated[int, Field(ge=1)]


class ScoringFolder:
    """One pool that is being scored. Whoever finds it gone has nothing left to do.

    Args:
        folder: where it is, or was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(
        cls,
        parent: Path,
        round_id: str,
        task: ScoringTask,
        shards: Sequence[Sequence[ImageRef]],
        learner: _SavesItself,
    ) -> "ScoringFolder":
        """Lay out everything that a worker needs; removes what dead rounds left behind.

        Args:
            parent: of this project's scoring folders.
            round_id: the round whose pool it is.
            task: for all workers.
            shards: parts of the pool, in their order.
            learner: its network is saved.

        Raises:
            StorageError: the disk refuses.
        """
        _sweep(parent)
        # Drawn, since a round that is begun again has the same number, and orphans may still write for the first.
        target = parent / f"{round_id}-{secrets.token_hex(4)}"
        try:
            with folder_beside(target) as folder:
                learner.save(str(folder))
                (folder / "images").mkdir()
                (folder / "results").mkdir()
                for number, images in enumerate(shards):
                    (folder / "images" / f"{number:05d}.json").write_bytes(_IMAGES.dump_json(tuple(images)))
                write_record(folder / "task.json", task)
        except OSError as error:
            raise StorageError(f"{target} could not be written: {error}") from error
        return cls(target)

    @property
    def name(self) -> str:
        """Tells this scoring apart from all others, of this project and of others."""
        return self.folder.name

    @property
    def round_id(self) -> str:
        """The round whose pool it is."""
        return self.name.rpartition("-")[0]

    def task(self) -> ScoringTask | None:
        """What all shards have in common; None where the folder is gone.

        Raises:
            StorageError: the file is damaged.
        """
        return read_record(self.folder / "task.json", ScoringTask)

    def images(self, number: int) -> tuple[ImageRef, ...]:
        """One shard of the pool.

        Raises:
            StorageError: it is gone or damaged.
        """
        path = self.folder / "images" / f"{number:05d}.json"
        try:
            return _IMAGES.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise StorageError(f"{path} could not be read: {error}") from error

    def write(self, number: int, outputs: PoolPredictions) -> None:
        """Hand over the result of one shard.

        Raises:
            StorageError: the folder is gone, or the disk refuses.
        """
        path = self._result(number)
        try:
            write_outputs(path, outputs, compress=False)
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error}") from error

    def has(self, number: int) -> bool:
        """Whether the result of a shard is there."""
        return self._result(number).is_file()

    def result(self, number: int) -> PoolPredictions | None:
        """The result of one shard; None where there is none yet.

        Raises:
            StorageError: it is damaged.
        """
        return read_outputs(self._result(number))

    def remove(self) -> None:
        """The pool is scored, or given up. Never raises: what stays behind the next round removes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _result(self, number: int) -> Path:
        return self.folder / "results" / f"{number:05d}.npz"


def _sweep(parent: Path) -> None:
    """Remove what dead rounds left behind: each holds a network.

    This project's all, since only one of its rounds runs, and the others' after a day.
    """
    yesterday = time.time() - OTHERS_LEFTOVERS_AFTER_S
    for left in parent.parent.parent.glob("*/scoring/*"):
        if left.parent == parent or _modified(left) < yesterday:
            shutil.rmtree(left, ignore_errors=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed by its own round meanwhile
        return time.time()
