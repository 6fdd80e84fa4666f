"""Whatever helpers do, the result is that of one worker alone, to the bit."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.errors import QueueError, RoundError, StorageError
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds import sharding as sharing
from ml_backend.rounds.interfaces import Progress, no_progress
from ml_backend.rounds.sharding import ShardedLearner, cut
from ml_backend.schemas import Exclusion, FitReport, ImageRef, Label
from tests.fakes import CLASSES, FakeLearner, make_image

SIZE = 3
POOL = [make_image(number) for number in range(1, 12)]  # shards of 3, 3, 3 and 2
SHARDS = cut(POOL, SIZE)
NEEDS: frozenset[Need] = frozenset({"probs", "features"})


class SeedLearner:
    """A network that is a seed; its mind about an image is a hash of both. Notes what it has scored."""

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


class MemoryResults:
    """What a helper wrote; a StorageError stands for a damaged file."""

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
        self.results = MemoryResults()
        self.laid_out: list[list[int]] = []
        self.told: list[tuple[str, int, int]] = []
        self.learner = SeedLearner()
        self.unreadable = unreadable
        self.round = ShardedLearner(
            self._build, self.board, self._lay_out, size=SIZE, progress=lambda *step: self.told.append(step)
        )
        self.round.fit(LABELS, LABELS[:2], CLASSES)

    def _build(self, progress: Progress) -> SeedLearner:
        self.learner = SeedLearner(progress, self.unreadable)
        return self.learner

    def _lay_out(self, learner: object, shards: Sequence[Sequence[ImageRef]], needs: object) -> MemoryResults:
        self.laid_out.append([len(shard) for shard in shards])
        return self.results

    def take(self, *numbers: int) -> None:
        """The helper takes shards."""
        self.board.holders |= dict.fromkeys(numbers, "helper")

    def answer(self, number: int, **changes: Any) -> None:
        """The helper writes its result, with changes that it should not have made."""
        helper = SeedLearner(unreadable=self.unreadable)
        helper.seed = self.learner.seed
        self.results.files[number] = replace(helper.outputs(SHARDS[number], NEEDS), **changes)
        self.board.holders[number] = "done"

    def answer_all(self, *numbers: int) -> None:
        for number in numbers:
            self.answer(number)


LABELS = [Label(image=make_image(number), value=CLASSES[number % 3], raters=1) for number in range(100, 106)]


@pytest.fixture(autouse=True)
def watch_always(monkeypatch):
    monkeypatch.setattr(sharing, "WATCH_INTERVAL_S", 0.0)


def alone(unreadable: Sequence[str] = ()) -> PoolPredictions:
    learner = SeedLearner(unreadable=unreadable)
    learner.fit(LABELS, LABELS[:2], CLASSES)
    return learner.outputs(POOL, NEEDS)


def assert_as_alone(installation: Installation) -> None:
    found, wanted = installation.round.outputs(POOL, NEEDS), alone(installation.unreadable)

    assert (found.image_ids, found.classes, found.exclusions) == (wanted.image_ids, wanted.classes, wanted.exclusions)
    for name in ("probs", "features", "labelled_features"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), name


def ids(*numbers: int) -> list[str]:
    return [image.id for number in numbers for image in SHARDS[number]]


class TestWithoutHelp:
    def test_nobody_is_there(self):
        """Nothing is written, nothing is posted."""
        it = Installation(alive=0)

        assert_as_alone(it)
        assert (it.laid_out, it.board.posted) == ([], [])

    def test_a_pool_of_one_shard_asks_nobody(self):
        it = Installation(silent_from="helpers")

        found = it.round.outputs(POOL[:SIZE], NEEDS)

        assert found.image_ids == ("1", "2", "3")
        assert it.laid_out == []

    def test_an_empty_pool(self):
        assert Installation().round.outputs([], NEEDS).image_ids == ()

    def test_the_network_cannot_be_written(self, monkeypatch):
        it = Installation()

        def full_disk(*_args: object) -> MemoryResults:
            raise StorageError("no space left")

        monkeypatch.setattr(it.round, "_lay_out", full_disk)

        assert_as_alone(it)
        assert it.board.posted == []

    @pytest.mark.parametrize("method", ["helpers", "post", "keep_open", "claim", "keep", "finish", "forget"])
    def test_redis_falls_silent(self, method):
        it = Installation(silent_from=method)

        assert_as_alone(it)
        assert it.results.removed == (method != "helpers")


class TestHelp:
    def test_a_helper_does_all_that_it_may(self):
        it = Installation()
        it.board.at_post = lambda: it.answer_all(1, 2, 3)

        assert_as_alone(it)
        assert it.learner.scored == ids(0)
        assert it.laid_out == [[3, 3, 3, 2]]

    def test_no_more_are_called_than_there_are_shards(self):
        it = Installation(alive=9)
        it.round.outputs(POOL, NEEDS)

        assert it.board.posted == [3]

    def test_a_helper_that_does_nothing(self):
        it = Installation()

        assert_as_alone(it)
        assert it.learner.scored == ids(0, 1, 2, 3)

    def test_a_helper_that_dies_at_work(self):
        """Its shards are scored last, and nobody waits for its claim to expire: the latest begun first."""
        it = Installation()
        it.board.at_post = lambda: it.take(1, 2)

        assert_as_alone(it)
        assert it.learner.scored == ids(0, 3, 2, 1)

    def test_a_slower_helper_still_saves_the_rest_of_its_shard(self):
        """The round has begun the shard too, and stops where the helper's result comes."""
        it = Installation()
        it.board.at_post = lambda: it.take(1, 2, 3)
        it.board.at_watch = lambda: it.answer(3) if it.learner.scored[-1] == "10" else None

        assert_as_alone(it)
        assert it.learner.scored == [*ids(0), "10", *ids(2), *ids(1)]

    def test_an_answer_that_comes_twice(self):
        it = Installation()
        it.board.at_post = lambda: it.answer(1)
        it.board.at_watch = lambda: it.answer(1)

        assert_as_alone(it)
        assert it.learner.scored == ids(0, 2, 3)

    def test_an_answer_to_the_first_shard_is_not_looked_at(self):
        """Only the learner that fitted knows the labelled images' features."""
        it = Installation()
        it.board.at_post = lambda: it.answer(0)

        assert_as_alone(it)

    @pytest.mark.parametrize(
        "changes",
        [
            {"classes": ("normal", "severe", "moderate")},
            {"image_ids": ("1", "2", "3")},
            {"features": None},
            {"probs": np.zeros((3, 5, 3), np.float32)},
        ],
    )
    def test_an_answer_that_cannot_be_right(self, changes):
        it = Installation()
        it.board.at_post = lambda: it.answer(1, **changes)

        assert_as_alone(it)
        assert sorted(it.learner.scored) == sorted(ids(0, 1, 2, 3))

    def test_a_damaged_answer(self):
        it = Installation()
        it.take(1)
        it.results.files[1] = StorageError("00001.npz is damaged")

        assert_as_alone(it)
        assert sorted(it.learner.scored) == sorted(ids(0, 1, 2, 3))


class TestUnreadableImages:
    def test_are_tried_here_too(self):
        it = Installation(unreadable=("4", "6"))
        it.board.at_post = lambda: it.answer(1)

        assert_as_alone(it)
        assert it.learner.scored == [*ids(0), "4", "6", *ids(2, 3)]

    def test_one_that_only_the_helper_could_not_read(self):
        """It has lost its way to Label Studio, say."""
        it = Installation()
        lost = SeedLearner(unreadable=("5",))
        lost.seed = len(LABELS)
        it.take(1)
        it.results.files[1] = lost.outputs(SHARDS[1], NEEDS)

        assert_as_alone(it)


class TestTheRest:
    def test_progress_is_the_pool_s(self):
        it = Installation()
        it.board.at_post = lambda: it.answer(2)

        it.round.outputs(POOL, NEEDS)

        assert it.told == [("score", done, 11) for done in (1, 2, 3, 7, 8, 9, 10, 11)]

    def test_progress_of_other_stages_is_handed_on(self):
        it = Installation()

        it.round.prepare(POOL)

        assert it.told == [("features", 11, 11)]

    def test_saves_what_the_learner_saves(self, tmp_path):
        Installation().round.save(str(tmp_path))

        assert (tmp_path / "seed.txt").read_text() == "6"

    @pytest.mark.parametrize("fails", [False, True])
    def test_cleans_up(self, fails, monkeypatch):
        it = Installation()
        if fails:

            def out_of_memory(*_args: object) -> PoolPredictions:
                raise RoundError("out of memory")

            monkeypatch.setattr(it.learner, "outputs", out_of_memory)
            with pytest.raises(RoundError):
                it.round.outputs(POOL, NEEDS)
        else:
            it.round.outputs(POOL, NEEDS)

        assert it.results.removed
        assert it.board.forgotten == [it.results.name]


@given(
    at_post=st.lists(st.tuples(st.sampled_from(["take", "answer", "wrong"]), st.integers(1, 3)), max_size=4),
    later=st.lists(st.tuples(st.sampled_from(["take", "answer", "wrong"]), st.integers(1, 3)), max_size=12),
    unreadable=st.lists(st.sampled_from([image.id for image in POOL]), max_size=5),
    silent_from=st.sampled_from([None, "keep_open", "claim", "keep", "finish", "forget"]),
)
@settings(deadline=None, max_examples=200)
def test_whatever_helpers_do_and_when(at_post, later, unreadable, silent_from):
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
