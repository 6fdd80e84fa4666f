"""A learner whose images several processes share out: each decodes its part, runs the backbone, and draws the passes.

Features stay where they are computed, since machines need not share a cache folder: probabilities travel, and features
or gradients where a strategy needs them. As parts are consecutive, a rank meets nearly the same images in every round,
and finds their features in its own cache.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
import structlog
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ml_backend.errors import RoundError
from ml_backend.model import inference
from ml_backend.model.distributed import SINGLE, Crew, Group, PartDone
from ml_backend.model.ensemble import EnsembleLearner
from ml_backend.model.learner import LearnerProgress, LearnerStage, McDropoutLearner
from ml_backend.predictions import ImageFeatures, LastLayerGradients, PoolPredictions, join
from ml_backend.registry import Need
from ml_backend.schemas import Exclusion, FitReport, ImageRef, Label

SLOW = 1.5  # times the median of the others' seconds an image
SLOW_S = 10.0

Network: TypeAlias = McDropoutLearner | EnsembleLearner
OpenLearner: TypeAlias = Callable[[Group, str], AbstractContextManager[tuple[Network, str]]]
"""Group and task -> the learner of a follower, and the fingerprint of its hardware."""

T = TypeVar("T")
_IMAGES = TypeAdapter(tuple[ImageRef, ...])
_LABELS = TypeAdapter(tuple[Label, ...])

log = structlog.get_logger(__name__)


class DistributedLearner:
    """Shares out the work of a learner. Satisfies ``rounds.interfaces.Learner``; use it as a context manager.

    The results are those of the learner alone, to the bit where the processes have equal hardware and versions, apart
    from a full fine-tuning. Up to a shard of images, and while a head is trained, this process works alone.

    Args:
        build: makes the learner of this process.
        crew: the followers; they are awaited when there is something to share out. None without any.
        task: what a follower needs to make the same learner.
        machine: fingerprint of the hardware of this process.
        progress: of all processes together.
    """

    def __init__(
        self,
        build: Callable[[Group, LearnerProgress], Network],
        crew: Crew | None,
        task: str,
        machine: Callable[[], str],
        progress: LearnerProgress,
    ) -> None:
        self._build = build
        self._crew = crew
        self._task = task
        self._machine = machine
        self._progress = progress
        self._part = (1, 1)  # images of this process, and of all
        self._at: tuple[LearnerStage, int, int] = ("features", 0, 1)
        self._group = SINGLE
        self._learner = build(SINGLE, self._report)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._crew is not None:
            if kind is None:
                self._group.broadcast(())  # the followers wait for the next round
            self._crew.close()
            self._crew = None

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        if self._crew is None or self._learner.head_only or self._joined().size == 1:
            return self._learner.fit(train, validation, classes)
        self._learner = self._build(self._group, self._report)
        sets = (_LABELS.dump_json(tuple(labels)).decode() for labels in (train, validation))
        self._group.broadcast(("fit", *sets, list(classes)))
        report = self._learner.fit(train, validation, classes)
        self._crew.wait(self._tick)
        return report

    def prepare(self, images: Sequence[ImageRef]) -> None:
        if self._is_alone(images):
            self._learner.prepare(images)
        else:
            self._share_out("features", ("prepare",), images, self._learner.prepare)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        if self._is_alone(images):
            return self._learner.embed(images)
        found = self._share_out("features", ("embed",), images, self._learner.embed)
        return ImageFeatures(
            tuple(image for part in found for image in part.image_ids),
            np.concatenate([part.features for part in found]),
            tuple(exclusion for part in found for exclusion in part.exclusions),
            tuple(key for part in found for key in part.keys),
        )

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        if self._is_alone(pool):
            return self._learner.outputs(pool, needs)
        command = ("outputs", sorted(needs), _saved(self._learner))
        return join(self._share_out("score", command, pool, lambda part: self._learner.outputs(part, needs)))

    def save(self, folder: str) -> None:
        self._learner.save(folder)

    def restore(self, folder: str) -> None:
        """See ``McDropoutLearner.restore``."""
        self._learner.restore(folder)

    def _is_alone(self, images: Sequence[ImageRef]) -> bool:
        return self._crew is None or len(images) <= inference.SHARD_IMAGES or self._joined().size == 1

    def _joined(self) -> Group:
        """The group, formed when first called."""
        if self._crew is not None and self._group is SINGLE:
            self._group = self._crew.form(self._tick)
            if self._group is SINGLE:
                self._crew = None
                return SINGLE
            self._group.broadcast(self._task)
            here, *others = self._group.collect(self._machine())
            for rank, machine in enumerate(others, start=1):
                if machine != here:
                    log.warning(
                        "hardware mismatch: results may differ in the last bits from those of one machine",
                        rank=rank,
                        of=self._crew.name(rank),
                        there=machine,
                        here=here,
                    )
        return self._group

    def _share_out(
        self,
        stage: LearnerStage,
        command: tuple[Any, ...],
        images: Sequence[ImageRef],
        compute: Callable[[Sequence[ImageRef]], T],
    ) -> list[T]:
        """The results of all ranks; those of a rank that could not read what this process can are computed again."""
        if self._crew is None:
            raise RoundError("the processes of this round have been dismissed")
        self._group.broadcast((*command, _IMAGES.dump_json(tuple(images)).decode()))
        parts = self._group.parts(images)
        self._part, self._at = (len(parts[0]), len(images)), (stage, 0, len(images))
        began = time.perf_counter()
        own = compute(parts[0])
        done = {0: PartDone(len(parts[0]), time.perf_counter() - began)} | self._crew.wait(self._tick)
        self._log_times(command[0], done)
        nothing: dict[str, Any] = {}
        others = [] if own is None else self._group.collect(nothing)[1:]
        found = [own]
        for rank, data in enumerate(others, start=1):
            result: Any = _unpacked(type(own), data)
            excluded = {exclusion.image_id for exclusion in result.exclusions}
            doubtful = [image for image in parts[rank] if image.id in excluded]
            # Also so that the list of unreadable images, which this process keeps, names them.
            again: Any = compute(doubtful) if doubtful else None
            if doubtful and again.image_ids:
                log.warning(
                    "a rank could not read an image that can be read here: its part is computed again",
                    rank=rank,
                    of=self._crew.name(rank),
                    image=again.image_ids[0],
                )
                result = compute(parts[rank])
            found.append(result)
        self._part = (1, 1)
        self._progress(stage, len(images), len(images))
        return found

    def _log_times(self, command: str, done: Mapping[int, PartDone]) -> None:
        seconds = [done[rank].seconds for rank in sorted(done)]
        waited = [round(max(seconds) - one, 1) for one in seconds]
        log.info("images shared out", command=command, seconds=[round(one, 1) for one in seconds], waited=waited)
        for rank in slow_ranks(done):
            name = self._crew.name(rank) if rank and self._crew else "the process of the round"
            log.warning(
                "a rank is slow, and the others wait for it", rank=rank, of=name, command=command, waited=waited
            )

    def _report(self, stage: LearnerStage, done: int, total: int) -> None:
        part, images = self._part
        if images > 1 and stage == self._at[0]:
            # Of all images, as if the others were as far. Not complete: a worker that is asked to stop may stop.
            done, total = min(round(done * images / max(part, 1)), images - 1), images
            self._at = (stage, done, total)
        self._progress(stage, done, total)

    def _tick(self) -> None:
        self._progress(*self._at)


def slow_ranks(done: Mapping[int, PartDone]) -> list[int]:
    """Ranks that took more than 1.5 times the median of the others' seconds an image, and at least 10 seconds."""
    pace = {rank: one.seconds / one.images for rank, one in done.items() if one.images}
    return [
        rank
        for rank in pace
        if done[rank].seconds >= SLOW_S
        and (others := [pace[other] for other in pace if other != rank])
        and pace[rank] > SLOW * median(others)
    ]


def serve(open_learner: OpenLearner, group: Group, report: Callable[[PartDone], None]) -> None:
    """Take part in a round as a follower, until rank 0 ends it."""
    with open_learner(group, group.broadcast("")) as (learner, machine):
        group.collect(machine)
        while command := group.broadcast(()):
            name, *arguments = command
            began = time.perf_counter()
            if name == "fit":
                train, validation, classes = arguments
                learner.fit(_LABELS.validate_json(train), _LABELS.validate_json(validation), classes)
                report(PartDone(0, time.perf_counter() - began))
                continue
            part = group.share(_IMAGES.validate_json(arguments[-1]))
            result: PoolPredictions | ImageFeatures | None = None
            if name == "prepare":
                learner.prepare(part)
            elif name == "embed":
                result = learner.embed(part)
            else:
                _restore(learner, arguments[1])
                result = learner.outputs(part, frozenset(arguments[0]))
            report(PartDone(len(part), time.perf_counter() - began))
            if result is not None:
                group.collect(_packed(result))


def _saved(learner: Network) -> dict[str, Tensor]:
    """The files of a fitted network, by their paths."""
    with tempfile.TemporaryDirectory() as folder:
        learner.save(folder)
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for path in paths
        }


def _restore(learner: Network, files: Mapping[str, Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.numpy().tobytes())
        learner.restore(folder)


def _packed(result: PoolPredictions | ImageFeatures | LastLayerGradients) -> dict[str, Any]:
    """A record as ``Group`` can send it."""

    def pack(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        return _packed(value) if isinstance(value, LastLayerGradients) else value

    found = {one.name: pack(getattr(result, one.name)) for one in fields(result)}
    if "exclusions" in found:
        found["exclusions"] = [exclusion.model_dump() for exclusion in found["exclusions"]]
    return found


def _unpacked(kind: type[Any], data: Mapping[str, Any]) -> Any:
    found: dict[str, Any] = {
        name: value.numpy() if isinstance(value, Tensor) else value for name, value in data.items()
    }
    if "exclusions" in found:
        found["exclusions"] = tuple(Exclusion.model_validate(one) for one in found["exclusions"])
    if found.get("gradients"):
        found["gradients"] = _unpacked(LastLayerGradients, found["gradients"])
    return kind(**found)
