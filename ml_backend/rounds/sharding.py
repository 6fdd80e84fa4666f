"""A pool in parts, and what somebody else made of one.

Scoring a pool on several workers, with the same result as on one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from ml_backend.errors import QueueError, StorageError
from ml_backend.predictions import ImageFeatures, PoolPredictions, join
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner, Progress, no_progress
from ml_backend.schemas import FitReport, ImageRef, Label, Stage

T = TypeVar("T")


def cut(pool: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a pool into consecutive shards of ``size``; the last may be smaller.

    Raises:
        ValueError: a shard would be empty.
    """
    if size < 1:
        raise ValueError(f"a shard needs at least 1 image, got size={size}")
    return [pool[start : start + size] for start in range(0, len(pool), size)]


def misfit(shard: Sequence[ImageRef], outputs: PoolPredictions, other: PoolPredictions) -> str | None:
    """Why these cannot be the outputs of the shard; None where they can.

    Args:
        shard: what was to be scored.
        outputs: what somebody made of it.
        other: outputs of another shard of the same pool, which are known to be right.
    """
    excluded = {exclusion.image_id for exclusion in outputs.exclusions}
    wanted = tuple(image.id for image in shard if image.id not in excluded)
    if outputs.image_ids != wanted or len(wanted) + len(excluded) != len(shard):
        return f"other images: {len(outputs.image_ids)} scored and {len(excluded)} excluded of {len(shard)}"
    if outputs.classes != other.classes:
        return f"other classes: {outputs.classes} instead of {other.classes}"
    if (found := _form(outputs)) != (expected := _form(other)):
        return f"other arrays: {found} instead of {expected}"
    return None


def _form(outputs: PoolPredictions) -> dict[str, str]:
    """Kind of number and lengths of the axes, apart from the images'."""
    arrays = {"probs": outputs.probs}
    if outputs.features is not None:
        arrays["features"] = outputs.features
    if outputs.gradients is not None:
        arrays |= {"residuals": outputs.gradients.residuals, "hidden": outputs.gradients.hidden}
    return {name: f"{array.dtype}{list(array.shape[1:])}" for name, array in arrays.items()}


WATCH_INTERVAL_S = 0.5

log = structlog.get_logger()


class ShardBoard(Protocol):
    """Who scores which shard. Every method may raise QueueError: the round then goes on alone."""

    def helpers(self) -> int:
        """Other workers that are alive; 0 where nobody could help."""
        ...

    def post(self, scoring: str, helpers: int) -> None:
        """Ask that many workers for help. It is forgotten by itself unless ``keep_open`` is called now and then."""
        ...

    def keep_open(self, scoring: str) -> None: ...

    def claim(self, scoring: str, shard: int) -> bool:
        """Take a shard that nobody has; it is lost again unless ``keep`` is called now and then."""
        ...

    def keep(self, scoring: str, shard: int) -> bool:
        """Whether it is still ours."""
        ...

    def finish(self, scoring: str, shard: int) -> None:
        """Nobody needs to score this shard any more."""
        ...

    def forget(self, scoring: str) -> None:
        """Call off all helpers."""
        ...


class Results(Protocol):
    """Where helpers find what they need, and leave what they made of it."""

    @property
    def name(self) -> str: ...

    def has(self, number: int) -> bool: ...

    def result(self, number: int) -> PoolPredictions | None:
        """Of one shard; None where it has not come. Raises StorageError where it is damaged."""
        ...

    def remove(self) -> None: ...


LayOut = Callable[[Learner, Sequence[Sequence[ImageRef]], frozenset[Need]], Results]
"""Writes down the network and the shards for the helpers, before they are asked. Raises StorageError."""


class ShardedLearner:
    """A learner whose pool other workers help to score. Satisfies ``engine.ports.Learner``.

    Args:
        build: makes the learner that does the work, with the progress that it must tell. Its outputs of a pool must
            be, to the bit, those of the pool's shards joined.
        board: who scores which shard; None where no other worker is asked.
        lay_out: writes down what helpers need.
        size: images in a shard.
        progress: told of the whole pool, whoever scores it.
    """

    def __init__(
        self,
        build: Callable[[Progress], Learner],
        board: ShardBoard | None,
        lay_out: LayOut,
        *,
        size: int,
        progress: Progress = no_progress,
    ) -> None:
        self._progress = _PoolProgress(progress)
        self._learner = build(self._progress)
        self._board = board
        self._lay_out = lay_out
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
        """Those of the wrapped learner, to the bit; see ``engine.ports.Learner``."""
        shards = cut(pool, self._size)
        results = self._ask_for_help(shards, needs) if len(shards) > 1 else None
        if results is None or self._board is None:
            return self._learner.outputs(pool, needs)
        try:
            return _Scoring(
                learner=self._learner,
                progress=self._progress,
                board=self._board,
                results=results,
                shards=shards,
                needs=needs,
            ).run()
        finally:
            _forget(self._board, results)

    def _ask_for_help(self, shards: Sequence[Sequence[ImageRef]], needs: frozenset[Need]) -> Results | None:
        """None where nobody can help."""
        if (board := self._board) is None:
            return None
        results: Results | None = None
        try:
            if not (helpers := board.helpers()):
                return None
            results = self._lay_out(self._learner, shards, needs)
            board.post(results.name, min(helpers, len(shards) - 1))
        except (QueueError, StorageError) as error:
            log.warning("the pool is scored without help", error=str(error))
            if results is not None:
                _forget(board, results)
            return None
        log.info("help is asked for", scoring=results.name, shards=len(shards), helpers=helpers)
        return results


class _CalledOff(Exception):
    """A helper was faster."""


class _PoolProgress:
    """Tells the progress of a shard as that of the pool, and watches between two batches."""

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self._shard: tuple[int, int, Callable[[], None]] | None = None

    def __call__(self, stage: Stage, done: int, total: int) -> None:
        if self._shard is None:
            self._tell(stage, done, total)
            return
        before, pool, watch = self._shard
        self._tell(stage, min(before + done, pool), pool)
        watch()

    @contextmanager
    def shard(self, before: int, pool: int, watch: Callable[[], None]) -> Iterator[None]:
        """While the block runs, ``before`` images of the ``pool`` are done; ``watch`` may raise."""
        self._shard = before, pool, watch
        try:
            yield
        finally:
            self._shard = None


@dataclass(slots=True)
class _Scoring:
    """One pool, scored here and by whoever helps."""

    learner: Learner
    progress: _PoolProgress
    board: ShardBoard
    results: Results
    shards: Sequence[Sequence[ImageRef]]
    needs: frozenset[Need]
    found: dict[int, PoolPredictions] = field(default_factory=dict)
    # Shards whose results are not looked at. The first is never a helper's: the labelled images' features are known
    # only here, and all others are held against it.
    refused: set[int] = field(default_factory=lambda: {0})
    scored_here: int = 0
    board_answers: bool = True
    watched: float = field(default_factory=time.monotonic)

    def run(self) -> PoolPredictions:
        self._score(0)
        while missing := self._collect():
            # All are taken: the last was begun last, so that most of it is left to do.
            number = next((shard for shard in missing if self._claim(shard)), missing[-1])
            self._score(number)
        log.info("pool scored", shards=len(self.shards), by_helpers=len(self.found) - self.scored_here)
        return join([self.found[number] for number in range(len(self.shards))])

    def _collect(self) -> list[int]:
        """Take what has come; which shards are missing still."""
        for number in self._missing():
            if number not in self.refused and (outputs := self._fetched(number)) is not None:
                self.found[number] = outputs
        return self._missing()

    def _missing(self) -> list[int]:
        return [number for number in range(len(self.shards)) if number not in self.found]

    def _score(self, number: int) -> None:
        try:
            with self._as_part_of_the_pool(lambda: self._watch(number)):
                self.found[number] = self.learner.outputs(self.shards[number], self.needs)
        except _CalledOff:
            return
        self.scored_here += 1
        self._tell(lambda: self.board.finish(self.results.name, number))

    def _watch(self, number: int) -> None:
        """Say that this round lives; stop scoring what somebody else has scored meanwhile."""
        if (now := time.monotonic()) - self.watched < WATCH_INTERVAL_S:
            return
        self.watched = now
        self._tell(lambda: self.board.keep_open(self.results.name))
        self._tell(lambda: self.board.keep(self.results.name, number))
        if number not in self.refused and self.results.has(number):
            raise _CalledOff

    def _fetched(self, number: int) -> PoolPredictions | None:
        """A helper's result, where it has come and can be this pool's."""
        try:
            if (outputs := self.results.result(number)) is None:
                return None
            damage = None
        except StorageError as error:
            outputs, damage = None, str(error)
        if outputs is not None and (damage := self._wrong(number, outputs)) is None:
            return outputs
        self.refused.add(number)
        log.warning("a helper's shard is scored again", scoring=self.results.name, shard=number, reason=damage)
        return None

    def _wrong(self, number: int, outputs: PoolPredictions) -> str | None:
        if reason := misfit(self.shards[number], outputs, self.found[0]):
            return reason
        # One that only the helper could not read: it may have lost its way to Label Studio.
        excluded = {exclusion.image_id for exclusion in outputs.exclusions}
        if doubtful := [image for image in self.shards[number] if image.id in excluded]:
            with self._as_part_of_the_pool(lambda: self._watch(0)):
                readable = self.learner.outputs(doubtful, self.needs).image_ids
            return f"image {readable[0]} can be read here" if readable else None
        return None

    def _claim(self, number: int) -> bool:
        return self._tell(lambda: self.board.claim(self.results.name, number)) is not False

    def _tell(self, ask: Callable[[], bool | None]) -> bool | None:
        """Ask the board; None where it does not answer, and then it is not asked again: each attempt takes seconds."""
        if not self.board_answers:
            return None
        try:
            return ask()
        except QueueError as error:
            log.warning("the rest of the pool is scored without help", error=str(error))
            self.board_answers = False
            return None

    def _as_part_of_the_pool(self, watch: Callable[[], None]) -> AbstractContextManager[None]:
        done = sum(len(self.shards[number]) for number in self.found)
        return self.progress.shard(done, sum(map(len, self.shards)), watch)


def _forget(board: ShardBoard, results: Results) -> None:
    try:
        board.forget(results.name)
    except QueueError as error:
        log.warning("helpers could not be called off; they find out within a minute", error=str(error))
    results.remove()
