"""A helper on a board in memory: what it takes, what it leaves, and how it ends."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ml_backend.config import ProjectOptions
from ml_backend.errors import QueueError, WeightsError
from ml_backend.predictions import PoolPredictions
from ml_backend.scheduling import shards
from ml_backend.scheduling.queue import Shutdown
from ml_backend.scheduling.shards import ShardQueue
from ml_backend.schemas import ProjectKey
from ml_backend.storage import RoundStore, ScoringFolder, ScoringTask
from tests.fakes import CLASSES, FakeLearner, make_image

KEY = "7.1700000000"
SHARDS = [[make_image(number)] for number in range(4)]
TASK = ScoringTask(options=ProjectOptions(), needs=frozenset({"probs"}), machine="m", shards=4)


class MemoryBoard:
    """The board as this helper sees it."""

    def __init__(self) -> None:
        self.open = True
        self.silent = False
        self.holders: dict[int, str] = {}

    def is_open(self, scoring: str) -> bool:
        return self.open

    def claim(self, scoring: str, shard: int) -> bool:
        return self.holders.setdefault(shard, "mine") == "mine"

    def keep(self, scoring: str, shard: int) -> bool:
        if self.silent:
            raise QueueError("Redis does not answer")
        return self.open and self.holders.get(shard) == "mine"

    def release(self, scoring: str, shard: int) -> None:
        if self.silent:
            raise QueueError("Redis does not answer")
        self.holders.pop(shard)

    def finish(self, scoring: str, shard: int) -> None:
        self.holders[shard] = "done"


class Scorer:
    """In the place of the network; ``at`` is called with every shard before it is scored."""

    def __init__(self) -> None:
        self.scored: list[int] = []
        self.steps = 1
        self.at: Callable[[int], None] = lambda _number: None
        self.refuses: Exception | None = None

    @contextmanager
    def __call__(
        self, settings: Any, key: Any, folder: Any, progress: Any
    ) -> Iterator[Callable[[int], PoolPredictions]]:
        def score(number: int) -> PoolPredictions:
            self.at(number)
            progress("score", 1, self.steps)
            self.scored.append(number)
            return PoolPredictions((str(number),), CLASSES, np.full((1, 2, 3), number, np.float32))

        if self.refuses:
            raise self.refuses
        yield score


@pytest.fixture
def board(monkeypatch) -> MemoryBoard:
    found = MemoryBoard()
    monkeypatch.setattr(ShardQueue, "from_settings", lambda *_: found)
    monkeypatch.setattr(shards, "KEEP_INTERVAL_S", 0.0)
    return found


@pytest.fixture
def scorer(monkeypatch) -> Scorer:
    """In the place of the real one, which needs torch and Label Studio."""
    found = Scorer()
    assembly: Any = ModuleType("ml_backend.rounds.live")
    assembly.shard_scorer = found
    monkeypatch.setitem(sys.modules, "ml_backend.rounds.live", assembly)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> ScoringFolder:
    monkeypatch.setenv("AL_DATA_DIR", str(tmp_path))
    store = RoundStore(tmp_path).project(ProjectKey.parse(KEY))
    return store.begin_scoring("r000001", TASK, SHARDS, FakeLearner())


def have_results(folder: ScoringFolder) -> list[int]:
    return [number for number in range(4) if folder.has(number)]


def test_scores_all_but_the_round_s_own(board, scorer, folder):
    assert shards.run(KEY, folder.name) == {"outcome": "helped", "shards": 3}

    assert have_results(folder) == [1, 2, 3]
    assert board.holders == dict.fromkeys((1, 2, 3), "done")
    found = folder.result(2)
    assert found is not None
    assert found.probs[0, 0, 0] == 2


def test_leaves_alone_what_others_have_or_did(board, scorer, folder):
    board.holders[1] = "other"
    folder.write(2, PoolPredictions((), CLASSES, np.empty((0, 2, 3), np.float32)))

    shards.run(KEY, folder.name)

    assert scorer.scored == [3]


def test_nothing_is_left(board, scorer, folder):
    """The network is not even loaded."""
    board.holders = dict.fromkeys((1, 2, 3), "other")
    scorer.refuses = AssertionError("must not load")

    assert shards.run(KEY, folder.name) == {"outcome": "nothing left", "shards": 0}


@pytest.mark.parametrize("gone", ["folder", "board"])
def test_the_round_is_over_before_it_begins(board, scorer, folder, gone):
    if gone == "folder":
        folder.remove()
    board.open = gone == "folder"

    assert shards.run(KEY, folder.name) == {"outcome": "over", "shards": 0}
    assert board.holders == {}


def test_the_round_ends_meanwhile(board, scorer, folder):
    """Neither the shard is finished nor its claim touched."""

    def end(number: int) -> None:
        board.open = number != 2

    scorer.at = end

    assert shards.run(KEY, folder.name) == {"outcome": "called off", "shards": 1}
    assert have_results(folder) == [1]


def test_a_shard_that_was_lost_is_not_written(board, scorer, folder):
    scorer.at = lambda number: board.holders.update({number: "other"})

    assert shards.run(KEY, folder.name) == {"outcome": "called off", "shards": 0}
    assert have_results(folder) == []
    assert board.holders == {1: "other"}


def test_what_cannot_be_scored_is_left_to_others(board, scorer, folder):
    scorer.refuses = WeightsError("the network is damaged")

    assert shards.run(KEY, folder.name) == {"outcome": "failed", "shards": 0, "error": "the network is damaged"}
    assert board.holders == {}


def test_a_bug_is_raised_and_its_shard_left_to_others(board, scorer, folder):
    def bug(number: int) -> None:
        raise ZeroDivisionError("a bug")

    scorer.at = bug

    with pytest.raises(ZeroDivisionError):
        shards.run(KEY, folder.name)
    assert board.holders == {}


def test_redis_falls_silent(board, scorer, folder):
    def silence(_number: int) -> None:
        board.silent = True

    scorer.at = silence

    assert shards.run(KEY, folder.name)["outcome"] == "failed"
    assert have_results(folder) == []


def test_a_worker_that_stops_leaves_its_shard_to_others(board, scorer, folder, monkeypatch):
    shutdown = Shutdown()
    monkeypatch.setattr(shards, "SHUTDOWN", shutdown)
    scorer.at = lambda _number: shutdown.request(signal.SIGTERM, None)
    scorer.steps = 2

    assert shards.run(KEY, folder.name) == {"outcome": "called off", "shards": 0}
    assert have_results(folder) == []
    assert board.holders == {}
