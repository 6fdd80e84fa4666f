"""Score a pool on several workers, with a result bit-identical to that of one worker.

The round's worker writes its network and the shards of the pool into a ``ScoringFolder`` and posts a request on the
``ShardBoard``; helpers claim shards and write their predictions. Whatever fails, the round's worker scores itself.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from ml_backend.errors import QueueError, StorageError
from ml_backend.predictions import ImageFeatures, PoolPredictions, join
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner, Progress, no_progress
from ml_backend.schemas import FitReport, ImageRef, Label, Stage
from ml_backend.storage import ScoringFolder

WATCH_INTERVAL_S = 0.5

T = TypeVar("T")

log = structlog.get_logger()


class ShardBoard(Protocol):
    """Assigns shards to workers. Every method may raise QueueError: the round then continues alone."""

    def helpers(self) -> int:
        """Number of other workers that are alive."""
        ...

    def post(self, scoring: str, helpers: int) -> None:
        """Ask that many workers for help. The request expires unless ``keep_open`` is called now and then."""
        ...

    def keep_open(self, scoring: str) -> None: ...

    def claim(self, scoring: str, shard: int) -> bool:
        """Take a shard that no other worker has; the claim expires unless ``keep`` is called now and then."""
        ...

    def keep(self, scoring: str, shard: int) -> bool:
        """Renew a claim; whether this worker still holds it."""
        ...

    def finish(self, scoring: str, shard: int) -> None:
        """Close a shard: no worker needs to score it any more."""
        ...

    def forget(self, scoring: str) -> None:
        """Dismiss all helpers."""
        ...


ShardWriter = Callable[[Learner, Sequence[Sequence[ImageRef]], frozenset[Need]], ScoringFolder]
"""Writes the network and the shards for the helpers. Raises StorageError."""


def cut(pool: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a pool into consecutive shards of ``size``; the last may be smaller.

    Raises:
        ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"a shard needs at least 1 image, got size={size}")
    return [pool[start : start + size] for start in range(0, len(pool), size)]


def mismatch(shard: Sequence[ImageRef], predictions: PoolPredictions, reference: PoolPredictions) -> str | None:
    """Why these cannot be the predictions of a shard; None where they can.

    Args:
        shard: its images.
        predictions: by a helper.
        reference: predictions of another shard of the same pool, known to be right.
    """
    excluded = {exclusion.image_id for exclusion in predictions.exclusions}
    expected = tuple(image.id for image in shard if image.id not in excluded)
    if predictions.image_ids != expected or len(expected) + len(excluded) != len(shard):
        return f"other images: {len(predictions.image_ids)} scored and {len(excluded)} excluded of {len(shard)}"
    if predictions.classes != reference.classes:
        return f"other classes: {predictions.classes} instead of {reference.classes}"
    if (arrays := _array_types(predictions)) != (wanted := _array_types(reference)):
        return f"other arrays: {arrays} instead of {wanted}"
    return None


def _array_types(predictions: PoolPredictions) -> dict[str, str]:
    """Type of number and lengths of the axes, apart from the images'."""
    arrays = {"probs": predictions.probs}
    if predictions.features is not None:
        arrays["features"] = predictions.features
    if predictions.gradients is not None:
        arrays |= {"residuals": predictions.gradients.residuals, "hidden": predictions.gradients.hidden}
    return {name: f"{array.dtype}{list(array.shape[1:])}" for name, array in arrays.items()}


class ShardedLearner:
    """A learner whose pool other workers help to score. Satisfies ``Learner``.

    Args:
        build: makes the learner of this worker, with the progress that it must call. Its outputs of a pool must be
            bit-identical to those of the pool's shards joined.
        board: assigns shards; None without helpers.
        write_shards: writes what helpers need.
        size: images in a shard.
        progress: receives the progress of the whole pool.
    """

    def __init__(
        self,
        build: Callable[[Progress], Learner],
        board: ShardBoard | None,
        write_shards: ShardWriter,
        *,
        size: int,
        progress: Progress = no_progress,
    ) -> None:
        self._progress = _PoolProgress(progress)
        self._learner = build(self._progress)
        self._board = board
        self._write_shards = write_shards
        self._size = size

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        return self._learner.fit(train, validation, classes)

    def prepare(self, images: Sequence[ImageRef]) -> None:
        self._learner.prepare(images)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        return self._learner.embed(images)

    def save(self, folder: str) -> None:
        self._learner.save(folder)

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Bit-identical to those of the wrapped learner."""
        shards = cut(pool, self._size)
        folder = self._ask_for_help(shards, needs) if len(shards) > 1 else None
        if folder is None or self._board is None:
            return self._learner.outputs(pool, needs)
        try:
            return _SharedScoring(self._learner, self._progress, self._board, folder, shards, needs).run()
        finally:
            self._dismiss(self._board, folder)

    def _ask_for_help(self, shards: Sequence[Sequence[ImageRef]], needs: frozenset[Need]) -> ScoringFolder | None:
        """The folder of the helpers; None without helpers."""
        if (board := self._board) is None:
            return None
        folder: ScoringFolder | None = None
        try:
            if not (helpers := board.helpers()):
                return None
            folder = self._write_shards(self._learner, shards, needs)
            board.post(folder.name, min(helpers, len(shards) - 1))
        except (QueueError, StorageError) as error:
            log.warning("the pool is scored without help", error=str(error))
            if folder is not None:
                self._dismiss(board, folder)
            return None
        log.info("help is asked for", scoring=folder.name, shards=len(shards), helpers=helpers)
        return folder

    @staticmethod
    def _dismiss(board: ShardBoard, folder: ScoringFolder) -> None:
        try:
            board.forget(folder.name)
        except QueueError as error:
            log.warning("helpers could not be called off; they find out within a minute", error=str(error))
        folder.remove()


class _PoolProgress:
    """Reports the progress of a shard as that of the pool, and calls ``watch`` between two batches."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._shard: tuple[int, int, Callable[[], None]] | None = None

    def __call__(self, stage: Stage, done: int, total: int) -> None:
        if self._shard is None:
            self._report(stage, done, total)
            return
        before, pool, watch = self._shard
        self._report(stage, min(before + done, pool), pool)
        watch()

    @contextmanager
    def shard(self, before: int, pool: int, watch: Callable[[], None]) -> Iterator[None]:
        """While the block runs, ``before`` images of the ``pool`` are done; ``watch`` may raise."""
        self._shard = before, pool, watch
        try:
            yield
        finally:
            self._shard = None


class _ScoredElsewhere(Exception):
    """A helper has finished the shard that is being scored here."""


@dataclass(slots=True)
class _SharedScoring:
    """One pool, scored by this worker and its helpers."""

    learner: Learner
    progress: _PoolProgress
    board: ShardBoard
    folder: ScoringFolder
    shards: Sequence[Sequence[ImageRef]]
    needs: frozenset[Need]
    found: dict[int, PoolPredictions] = field(default_factory=dict)
    # Shards whose results are ignored. The first is never a helper's: only here are the labelled images' features
    # known, and all other shards are compared with it.
    refused: set[int] = field(default_factory=lambda: {0})
    scored_here: int = 0
    board_answers: bool = True
    watched: float = field(default_factory=time.monotonic)

    def run(self) -> PoolPredictions:
        self._score(0)
        while missing := self._collect():
            # Where all are claimed: the last was begun last, so that most of it is left.
            number = next((n for n in missing if self._ask(self.board.claim, n) is not False), missing[-1])
            self._score(number)
        log.info("pool scored", shards=len(self.shards), by_helpers=len(self.found) - self.scored_here)
        return join([self.found[number] for number in range(len(self.shards))])

    def _collect(self) -> list[int]:
        """Take over the results that have come; the shards that are still missing."""
        missing = []
        for number in range(len(self.shards)):
            if number in self.found:
                continue
            if number not in self.refused and (predictions := self._fetch(number)) is not None:
                self.found[number] = predictions
            else:
                missing.append(number)
        return missing

    def _score(self, number: int) -> None:
        try:
            self.found[number] = self._predict(self.shards[number], number)
        except _ScoredElsewhere:
            return
        self.scored_here += 1
        self._ask(self.board.finish, number)

    def _predict(self, images: Sequence[ImageRef], number: int) -> PoolPredictions:
        """Predictions of images; while they are made, the claim of shard ``number`` is kept."""
        done = sum(len(self.shards[found]) for found in self.found)
        with self.progress.shard(done, sum(map(len, self.shards)), lambda: self._watch(number)):
            return self.learner.outputs(images, self.needs)

    def _watch(self, number: int) -> None:
        """Keep request and claim alive; stop where a helper has scored the shard meanwhile."""
        if (now := time.monotonic()) - self.watched < WATCH_INTERVAL_S:
            return
        self.watched = now
        self._ask(self.board.keep_open)
        self._ask(self.board.keep, number)
        if number not in self.refused and self.folder.has(number):
            raise _ScoredElsewhere

    def _fetch(self, number: int) -> PoolPredictions | None:
        """A helper's result; None where there is none, or it cannot be this shard's: then it is refused."""
        try:
            predictions = self.folder.result(number)
            reason = None
        except StorageError as error:
            predictions, reason = None, str(error)
        if predictions is not None:
            reason = self._fault(number, predictions)
        if reason is None:
            return predictions
        self.refused.add(number)
        log.warning("a helper's shard is scored again", scoring=self.folder.name, shard=number, reason=reason)
        return None

    def _fault(self, number: int, predictions: PoolPredictions) -> str | None:
        if reason := mismatch(self.shards[number], predictions, self.found[0]):
            return reason
        # An image that only the helper could not read: its connection to Label Studio may be broken.
        excluded = {exclusion.image_id for exclusion in predictions.exclusions}
        if doubtful := [image for image in self.shards[number] if image.id in excluded]:
            readable = self._predict(doubtful, 0).image_ids
            return f"image {readable[0]} can be read here" if readable else None
        return None

    def _ask(self, question: Callable[..., bool | None], *number: int) -> bool | None:
        """Call the board; None once it has not answered, without another attempt: each takes seconds."""
        if not self.board_answers:
            return None
        try:
            return question(self.folder.name, *number)
        except QueueError as error:
            log.warning("the rest of the pool is scored without help", error=str(error))
            self.board_answers = False
            return None
