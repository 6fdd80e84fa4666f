"""A pool scored with helpers: whatever they do, the result is bit-identical to that of one worker."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.errors import QueueError, RoundError, StorageError
from ml_backend.predictions import ImageFeatures, LastLayerGradients, PoolPredictions, join
from ml_backend.registry import Need
from ml_backend.rounds import sharding
from ml_backend.rounds.interfaces import Progress, no_progress
from ml_backend.rounds.sharding import ShardedLearner, cut, mismatch
from ml_backend.schemas import Exclusion, FitReport, ImageRef, Label
from tests.fakes import CLASSES, FakeLearner, make_image

SIZE = 3
POOL = [make_image(number) for number in range(1, 12)]  # shards of 3, 3, 3 and 2
SHARDS = cut(POOL, SIZE)
NEEDS: frozenset[Need] = frozenset({"probs", "features"})


class SeedLearner:
    """A network that is a seed; its prediction of an image is a hash of both. Notes what it has scored."""

    def __init__(self, progress: Progress = no_progress, unreadable: Sequence[str] = ()) -> None:
        self.seed = 0
        self.fitted_here = False
        self.scored: list[str] = []
        self._progress = progress
        self._unreadable = unreadable

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        self.seed, self.fitted_here = len(train), True
        return FakeLearner().fit(train, validation, classes)

    def save(self, folder: str) -> None:
        Path(folder, "seed.txt").write_text(str(self.seed))

    def prepare(self, images: Sequence[ImageRef]) -> None:
        self._progress("features", len(images), len(images))

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        return FakeLearner().embed(images)

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        probs: list[Any] = [np.empty((0, 2, 3))]
        features: list[Any] = [np.empty((0, 4))]
        for done, image in enumerate(pool, start=1):
            draw = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{self.seed} {image.id}".encode()).digest()))
            if image.id not in self._unreadable:
                probs.append(draw.dirichlet(np.ones(3), size=(1, 2)))
                features.append(draw.normal(size=(1, 4)))
            self.scored.append(image.id)
            self._progress("score", done, len(pool))
        return PoolPredictions(
            image_ids=tuple(image.id for image in pool if image.id not in self._unreadable),
            classes=CLASSES,
            probs=np.concatenate(probs).astype(np.float32),
            features=np.concatenate(features).astype(np.float32) if "features" in needs else None,
            labelled_features=np.full((2, 4), self.seed, np.float32) if self.fitted_here else None,
            exclusions=tuple(
                Exclusion(image_id=image.id, reason="unreadable") for image in pool if image.id in self._unreadable
            ),
        )


class MemoryFolder:
    """What a helper wrote; a StorageError instead of a damaged file."""

    name = "r000001-abcd"

    def __init__(self) -> None:
        self.files: dict[int, PoolPredictions | StorageError] = {}
        self.removed = False

    def has(self, number: int) -> bool:
        return number in self.files

    def result(self, number: int) -> PoolPredictions | None:
        found = self.files.get(number)
        if isinstance(found, StorageError):
            raise found
        return found

    def remove(self) -> None:
        self.removed = True


class MemoryBoard:
    """One board for all. ``at_post`` and ``at_watch`` are when a helper gets its turn.

    Args:
        alive: other workers.
        silent_from: name of the first method that raises QueueError; all later calls do too.
    """

    def __init__(self, alive: int = 1, silent_from: str | None = None) -> None:
        self.alive = alive
        self.holders: dict[int, str] = {}
        self.posted: list[int] = []
        self.forgotten: list[str] = []
        self.at_post: Callable[[], None] = lambda: None
        self.at_watch: Callable[[], None] = lambda: None
        self._silent_from = silent_from
        self._silent = False

    def _answers(self, name: str) -> None:
        self._silent = self._silent or name == self._silent_from
        if self._silent:
            raise QueueError("Redis does not answer")

    def helpers(self) -> int:
        self._answers("helpers")
        return self.alive

    def post(self, scoring: str, helpers: int) -> None:
        self._answers("post")
        self.posted.append(helpers)
        self.at_post()

    def keep_open(self, scoring: str) -> None:
        self._answers("keep_open")
        self.at_watch()

    def claim(self, scoring: str, shard: int) -> bool:
        self._answers("claim")
        return self.holders.setdefault(shard, "round") == "round"

    def keep(self, scoring: str, shard: int) -> bool:
        self._answers("keep")
        return self.holders.get(shard) == "round"

    def finish(self, scoring: str, shard: int) -> None:
        self._answers("finish")
        self.holders[shard] = "done"

    def forget(self, scoring: str) -> None:
        self._answers("forget")
        self.forgotten.append(scoring)


class Installation:
    """A round and its helper."""

    def __init__(self, unreadable: Sequence[str] = (), **board: object) -> None:
        self.board = MemoryBoard(**board)  # type: ignore[arg-type]
        self.folder = MemoryFolder()
        self.written: list[list[int]] = []
        self.steps: list[tuple[str, int, int]] = []
        self.learner = SeedLearner()
        self.unreadable = unreadable
        self.round = ShardedLearner(
            self._build,
            self.board,
            self._write_shards,  # type: ignore[arg-type]
            size=SIZE,
            progress=lambda *step: self.steps.append(step),
        )
        self.round.fit(LABELS, LABELS[:2], CLASSES)

    def _build(self, progress: Progress) -> SeedLearner:
        self.learner = SeedLearner(progress, self.unreadable)
        return self.learner

    def _write_shards(self, learner: object, shards: Sequence[Sequence[ImageRef]], needs: object) -> MemoryFolder:
        self.written.append([len(shard) for shard in shards])
        return self.folder

    def take(self, *numbers: int) -> None:
        """The helper takes shards."""
        self.board.holders |= dict.fromkeys(numbers, "helper")

    def answer(self, number: int, **changes: Any) -> None:
        """The helper writes its result, with changes that it should not have made."""
        helper = SeedLearner(unreadable=self.unreadable)
        helper.seed = self.learner.seed
        self.folder.files[number] = replace(helper.outputs(SHARDS[number], NEEDS), **changes)
        self.board.holders[number] = "done"

    def answer_all(self, *numbers: int) -> None:
        for number in numbers:
            self.answer(number)


LABELS = [Label(image=make_image(number), value=CLASSES[number % 3], raters=1) for number in range(100, 106)]


@pytest.fixture(autouse=True)
def watch_always(monkeypatch):
    monkeypatch.setattr(sharding, "WATCH_INTERVAL_S", 0.0)


def alone(unreadable: Sequence[str] = ()) -> PoolPredictions:
    learner = SeedLearner(unreadable=unreadable)
    learner.fit(LABELS, LABELS[:2], CLASSES)
    return learner.outputs(POOL, NEEDS)


def assert_identical(found: PoolPredictions, expected: PoolPredictions) -> None:
    """To the bit."""
    assert (found.image_ids, found.classes, found.exclusions) == (
        expected.image_ids,
        expected.classes,
        expected.exclusions,
    )
    for name in ("probs", "features", "labelled_features"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), name
    assert (found.gradients is None) == (expected.gradients is None)
    if found.gradients is not None and expected.gradients is not None:
        assert found.gradients.residuals.tobytes() == expected.gradients.residuals.tobytes()
        assert found.gradients.hidden.tobytes() == expected.gradients.hidden.tobytes()


def assert_as_alone(installation: Installation) -> None:
    assert_identical(installation.round.outputs(POOL, NEEDS), alone(installation.unreadable))


def ids(*numbers: int) -> list[str]:
    return [image.id for number in numbers for image in SHARDS[number]]


class TestWithoutHelp:
    def test_without_helpers_nothing_is_written(self):
        it = Installation(alive=0)

        assert_as_alone(it)
        assert (it.written, it.board.posted) == ([], [])

    @pytest.mark.parametrize("pool", [POOL[:SIZE], []], ids=["one shard", "empty"])
    def test_a_pool_of_one_shard_asks_nobody(self, pool):
        it = Installation(silent_from="helpers")

        assert it.round.outputs(pool, NEEDS).image_ids == tuple(image.id for image in pool)
        assert it.written == []

    def test_the_network_cannot_be_written(self, monkeypatch):
        def full_disk(*_: object) -> MemoryFolder:
            raise StorageError("no space left")

        monkeypatch.setattr(Installation, "_write_shards", full_disk)
        it = Installation()

        assert_as_alone(it)
        assert it.board.posted == []

    @pytest.mark.parametrize("method", ["helpers", "post", "keep_open", "claim", "keep", "finish", "forget"])
    def test_redis_falls_silent(self, method):
        it = Installation(silent_from=method)

        assert_as_alone(it)
        assert it.folder.removed == (method != "helpers")


class TestHelp:
    @pytest.mark.parametrize(
        ("taken", "answered", "scored"),
        [
            ((), (1, 2, 3), (0,)),
            ((), (), (0, 1, 2, 3)),
            # A helper that dies: its shards are scored last, the latest begun first, without waiting for its claims.
            ((1, 2), (), (0, 3, 2, 1)),
            # Only the learner that was fitted has the labelled images' features.
            ((), (0,), (0, 1, 2, 3)),
        ],
        ids=["all that it may", "nothing", "dies", "the first shard"],
    )
    def test_a_helper_takes_and_answers(self, taken, answered, scored):
        it = Installation()

        def act() -> None:
            it.take(*taken)
            it.answer_all(*answered)

        it.board.at_post = act

        assert_as_alone(it)
        assert it.learner.scored == ids(*scored)
        assert it.written == [[3, 3, 3, 2]]

    def test_no_more_are_called_than_there_are_shards(self):
        it = Installation(alive=9)

        it.round.outputs(POOL, NEEDS)

        assert it.board.posted == [3]

    def test_a_slower_helper_still_saves_the_rest_of_its_shard(self):
        """The round has begun the shard too, and stops when the helper's result comes."""
        it = Installation()
        it.board.at_post = lambda: it.take(1, 2, 3)
        it.board.at_watch = lambda: it.answer(3) if it.learner.scored[-1] == "10" else None

        assert_as_alone(it)
        assert it.learner.scored == [*ids(0), "10", *ids(2), *ids(1)]

    def test_an_answer_that_comes_twice(self):
        it = Installation()
        it.board.at_post = it.board.at_watch = lambda: it.answer(1)

        assert_as_alone(it)
        assert it.learner.scored == ids(0, 2, 3)

    @pytest.mark.parametrize(
        "changes",
        [
            {"classes": ("normal", "severe", "moderate")},
            {"image_ids": ("1", "2", "3")},
            {"features": None},
            {"probs": np.zeros((3, 5, 3), np.float32)},
            StorageError("00001.npz is damaged"),
        ],
        ids=["classes", "images", "features", "passes", "damaged"],
    )
    def test_an_answer_that_cannot_be_right(self, changes):
        it = Installation()

        def answer() -> None:
            if isinstance(changes, StorageError):
                it.take(1)
                it.folder.files[1] = changes
            else:
                it.answer(1, **changes)

        it.board.at_post = answer

        assert_as_alone(it)
        assert sorted(it.learner.scored) == sorted(ids(0, 1, 2, 3))


class TestUnreadableImages:
    def test_are_tried_here_too(self):
        it = Installation(unreadable=("4", "6"))
        it.board.at_post = lambda: it.answer(1)

        assert_as_alone(it)
        assert it.learner.scored == [*ids(0), "4", "6", *ids(2, 3)]

    def test_one_that_only_the_helper_could_not_read(self):
        """Its connection to Label Studio is broken, for example."""
        it = Installation()
        lost = SeedLearner(unreadable=("5",))
        lost.seed = len(LABELS)
        it.take(1)
        it.folder.files[1] = lost.outputs(SHARDS[1], NEEDS)

        assert_as_alone(it)


class TestLearner:
    def test_progress_is_that_of_the_pool(self):
        it = Installation()
        it.board.at_post = lambda: it.answer(2)

        it.round.outputs(POOL, NEEDS)

        assert it.steps == [("score", done, 11) for done in (1, 2, 3, 7, 8, 9, 10, 11)]

    def test_progress_of_other_stages_is_passed_on(self):
        it = Installation()

        it.round.prepare(POOL)

        assert it.steps == [("features", 11, 11)]

    def test_saves_what_the_learner_saves(self, tmp_path):
        Installation().round.save(str(tmp_path))

        assert (tmp_path / "seed.txt").read_text() == "6"

    @pytest.mark.parametrize("fails", [False, True])
    def test_cleans_up(self, fails, monkeypatch):
        it = Installation()

        def out_of_memory(*_: object) -> PoolPredictions:
            raise RoundError("out of memory")

        if fails:
            monkeypatch.setattr(it.learner, "outputs", out_of_memory)
        with pytest.raises(RoundError) if fails else nullcontext():
            it.round.outputs(POOL, NEEDS)

        assert it.folder.removed
        assert it.board.forgotten == [it.folder.name]


@given(
    at_post=st.lists(st.tuples(st.sampled_from(["take", "answer", "wrong"]), st.integers(1, 3)), max_size=4),
    later=st.lists(st.tuples(st.sampled_from(["take", "answer", "wrong"]), st.integers(1, 3)), max_size=12),
    unreadable=st.lists(st.sampled_from([image.id for image in POOL]), max_size=5),
    silent_from=st.sampled_from([None, "keep_open", "claim", "keep", "finish", "forget"]),
)
@settings(deadline=None, max_examples=200)
def test_any_sequence_of_helpers_actions(at_post, later, unreadable, silent_from):
    it = Installation(unreadable=unreadable, silent_from=silent_from)

    steps = iter([*at_post, *later])

    def act(times: int) -> None:
        for action, number in islice(steps, times):
            if action == "take":
                it.take(number)
            else:
                it.answer(number, **({} if action == "answer" else {"classes": ("x", "y", "z")}))

    it.board.at_post = lambda: act(len(at_post))
    it.board.at_watch = lambda: act(1)

    assert_as_alone(it)


def outputs_of(
    *numbers: int, passes: int = 2, features: bool = True, unreadable: tuple[int, ...] = ()
) -> PoolPredictions:
    """Numbers that tell images, passes and axes apart."""
    n = len(numbers)
    rows = np.array(numbers, np.float32)
    return PoolPredictions(
        image_ids=tuple(str(number) for number in numbers),
        classes=("a", "b", "c"),
        probs=(rows[:, None, None] * 100 + np.arange(passes * 3, dtype=np.float32).reshape(1, passes, 3)),
        features=rows[:, None] + np.arange(5, dtype=np.float32)[None] if features else None,
        gradients=LastLayerGradients(np.repeat(rows[:, None], 3, 1), np.repeat(rows[:, None], 4, 1)) if n else None,
        exclusions=tuple(Exclusion(image_id=str(number), reason=f"no {number}") for number in unreadable),
    )


class TestCut:
    def test_an_empty_shard_is_refused(self):
        with pytest.raises(ValueError, match="size=0"):
            cut([1], 0)

    @given(st.lists(st.integers()), st.integers(1, 20))
    @settings(deadline=None)
    def test_nothing_is_lost_and_all_but_the_last_are_full(self, pool, size):
        shards = cut(pool, size)

        assert [one for shard in shards for one in shard] == pool
        assert all(len(shard) == size for shard in shards[:-1])
        assert all(shards)


class TestJoin:
    def test_by_hand(self):
        labelled = np.ones((2, 5), np.float32)
        first = replace(outputs_of(1, 2, unreadable=(8,)), labelled_features=labelled)

        joined = join([first, outputs_of(3, unreadable=(9,))])

        assert_identical(joined, replace(outputs_of(1, 2, 3, unreadable=(8, 9)), labelled_features=labelled))

    @given(st.lists(st.integers(0, 99), min_size=1, unique=True), st.integers(1, 7))
    @settings(deadline=None)
    def test_undoes_a_cut(self, numbers, size):
        parts = [outputs_of(*part) for part in cut(numbers, size)]

        assert_identical(join(parts), outputs_of(*numbers))

    def test_a_shard_of_unreadable_images_changes_nothing(self):
        empty = PoolPredictions(
            image_ids=(),
            classes=("a", "b", "c"),
            probs=np.empty((0, 2, 3), np.float32),
            features=np.empty((0, 5), np.float32),
            gradients=LastLayerGradients(np.empty((0, 3), np.float32), np.empty((0, 4), np.float32)),
        )

        assert_identical(join([outputs_of(1), empty, outputs_of(2)]), outputs_of(1, 2))

    @pytest.mark.parametrize(
        ("shards", "words"),
        [
            ([], "at least one"),
            ([outputs_of(1), replace(outputs_of(2), classes=("a", "c", "b"))], "different networks"),
            ([outputs_of(1), outputs_of(2, features=False)], "features of some shards only"),
        ],
    )
    def test_what_cannot_be_joined(self, shards, words):
        with pytest.raises(ValueError, match=words):
            join(shards)


class TestMismatch:
    SHARD = (make_image(1), make_image(2), make_image(3))

    def test_what_fits(self):
        assert mismatch(self.SHARD, outputs_of(1, 2, 3), outputs_of(9)) is None
        assert mismatch(self.SHARD, outputs_of(1, 3, unreadable=(2,)), outputs_of(9)) is None

    @pytest.mark.parametrize(
        ("outputs", "reason"),
        [
            (outputs_of(1, 2), "other images: 2 scored and 0 excluded of 3"),
            (outputs_of(1, 3, 2), "other images"),
            (outputs_of(1, 2, 3, unreadable=(4,)), "other images"),
            (replace(outputs_of(1, 2, 3), classes=("a", "b", "d")), "other classes"),
            (outputs_of(1, 2, 3, passes=3), r"other arrays"),
            (outputs_of(1, 2, 3, features=False), "other arrays"),
            (replace(outputs_of(1, 2, 3), gradients=None), "other arrays"),
        ],
    )
    def test_what_does_not(self, outputs, reason):
        assert reason in str(mismatch(self.SHARD, outputs, outputs_of(9)))
