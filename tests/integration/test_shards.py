"""Several real workers score one pool on a real Valkey, with a real network."""

import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from redis import Redis
from rq import Worker

from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import QueueError
from ml_backend.images.synthetic import draw_pool
from ml_backend.model import inference
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.live import ProjectContext, open_project
from ml_backend.scheduling import JOB, connect_redis
from ml_backend.scheduling.shards import QUEUE_SHARDS, SHARD_JOB, ShardQueue
from ml_backend.schemas import Connection, ImageRef, Label
from ml_backend.storage import RoundStore
from tests.integration.processes import PROJECT, free_port, wait_until

HELPER = Path(__file__).parent / "worker_that_helps.py"
CLASSES = ("normal", "severe")
SHARD_IMAGES = 8
SHARDS = 6
NEEDS: frozenset[Need] = frozenset({"probs", "features", "gradients"})
OPTIONS = ProjectOptions(
    backbone="resnet18", weights="none", image_side=32, passes=5, finetune="full", epochs=1, train_batch=8
)
NAME = "r000001-abcd"


def boards(redis: Redis, **options: Any) -> tuple[ShardQueue, ShardQueue]:
    return ShardQueue(redis, PROJECT, **options), ShardQueue(redis, PROJECT, **options)


class TestBoard:
    def test_a_shard_is_one_worker_s(self, redis):
        one, other = boards(redis)
        one.keep_open(NAME)

        assert one.claim(NAME, 1)
        assert not other.claim(NAME, 1)
        assert other.claim(NAME, 2)
        assert one.keep(NAME, 1)
        assert not other.keep(NAME, 1)

    def test_a_claim_that_is_not_kept_is_lost(self, redis):
        one, other = boards(redis, claim_s=1)
        one.keep_open(NAME)
        one.claim(NAME, 1)

        wait_until(lambda: other.claim(NAME, 1))

        assert not one.keep(NAME, 1)
        one.release(NAME, 1)  # not its own any more
        assert other.keep(NAME, 1)

    def test_a_released_shard_is_free_and_a_finished_one_is_not(self, redis):
        one, other = boards(redis)
        one.keep_open(NAME)
        one.claim(NAME, 1)
        one.release(NAME, 1)
        assert other.claim(NAME, 1)

        other.finish(NAME, 1)

        assert not one.claim(NAME, 1)
        assert not other.keep(NAME, 1)

    def test_a_round_that_is_over_holds_nothing(self, redis):
        """Also where a helper finishes after the end."""
        one, other = boards(redis)
        one.post(NAME, 3)
        other.claim(NAME, 1)

        one.forget(NAME)

        assert not other.is_open(NAME)
        assert not other.keep(NAME, 1)
        other.finish(NAME, 1)
        assert redis.keys("al:scoring:*") == []
        assert redis.llen(f"rq:queue:{QUEUE_SHARDS}") == 0
        assert redis.keys("rq:job:shards-*") == []

    def test_a_round_that_died_is_over_by_itself(self, redis):
        one, other = boards(redis, open_s=1)
        one.post(NAME, 1)
        other.claim(NAME, 1)

        wait_until(lambda: not other.is_open(NAME))

        assert not other.keep(NAME, 1)
        assert all(redis.ttl(key) > 0 for key in redis.keys("al:scoring:*"))

    def test_redis_is_gone(self):
        board = ShardQueue(connect_redis(f"redis://127.0.0.1:{free_port()}"), PROJECT)

        with pytest.raises(QueueError, match="scored without helpers"):
            board.helpers()

    def test_counts_workers_that_live(self, redis):
        board = ShardQueue(redis, PROJECT)
        assert board.helpers() == 0
        worker = Worker([QUEUE_SHARDS], connection=redis)
        worker.register_birth()

        assert board.helpers() == 1
        redis.hset(worker.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")
        assert board.helpers() == 0

    def test_a_worker_does_not_count_itself(self, redis, monkeypatch):
        worker = Worker([QUEUE_SHARDS], connection=redis)
        worker.register_birth()

        class OwnJob:
            worker_name = worker.name

        monkeypatch.setattr("ml_backend.scheduling.shards.get_current_job", OwnJob)

        assert ShardQueue(redis, PROJECT).helpers() == 0

    def test_the_jobs_can_be_found(self):
        for path in (JOB, SHARD_JOB):
            module, _, name = path.rpartition(".")
            assert callable(getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name))


def draw(count: int) -> list[ImageRef]:
    """Films that need no server."""
    arrays, _, _ = draw_pool(count, (1, 1), seed=0, side=32)
    found = []
    for number, array in enumerate(arrays, start=1):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        found.append(ImageRef(id=str(number), uri=uri))
    return found


class Round:
    """The worker of a round, in this process. ``at_first`` is called while it scores its first shard."""

    def __init__(self, world: ProjectContext) -> None:
        self.at_first: Callable[[], None] = lambda: None
        self.first = False
        films = draw(12 + SHARDS * SHARD_IMAGES)
        self.pool = [*films[12:-1], ImageRef(id="broken", uri="data:image/png;base64,AAAA")]
        labels = [Label(image=film, value=CLASSES[index % 2], raters=1) for index, film in enumerate(films[:12])]
        self.board = ShardQueue.from_settings(world.settings, PROJECT)
        self.learner = replace(world, board=self.board).sharded(
            lambda tell: world.learner(OPTIONS, tell), OPTIONS, "r000001", self._progress
        )
        self.alone = world.learner(OPTIONS, lambda *_: None)
        for learner in (self.learner, self.alone):
            learner.fit(labels[:8], labels[8:], CLASSES)

    def _progress(self, stage: str, done: int, total: int) -> None:
        if stage == "score" and self.first:
            self.first = False
            self.at_first()

    def outputs(self) -> PoolPredictions:
        self.first = True
        return self.learner.outputs(self.pool, NEEDS)


@pytest.fixture
def settings(valkey_url, redis, tmp_path) -> Settings:
    return Settings(
        redis_url=valkey_url,
        data_dir=tmp_path / "data",
        device="cpu",
        label_studio_url="http://127.0.0.1:9",
        label_studio_api_key="k",
    )


@pytest.fixture
def round_(settings, monkeypatch) -> Iterator[Round]:
    monkeypatch.setattr(inference, "SHARD_IMAGES", SHARD_IMAGES)
    RoundStore(settings.data_dir).connect(Connection(project=PROJECT, hostname="http://ls", label_config="<View/>"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with open_project(settings, PROJECT) as world:
        yield Round(world)
    torch.set_num_threads(threads)


class Helper:
    """A worker of its own process."""

    def __init__(self, start: Callable[..., subprocess.Popen[bytes]], pause: Path) -> None:
        self._pause = pause
        self.pause(0)
        self.process = start(
            sys.executable, str(HELPER), AL_DEVICE="cpu", AL_LABEL_STUDIO_URL="http://127.0.0.1:9",
            AL_LABEL_STUDIO_API_KEY="k", OMP_NUM_THREADS="1",
            TEST_SHARD_IMAGES=str(SHARD_IMAGES), TEST_PAUSE=str(pause),
        )  # fmt: skip

    def pause(self, seconds: float) -> None:
        self._pause.write_text(str(seconds))

    def kill_work_horse(self) -> None:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        os.kill(int(path.read_text().split()[0]), signal.SIGKILL)


@pytest.fixture
def helpers(start, redis, tmp_path) -> Callable[[int], list[Helper]]:
    """Workers that wait for a call."""

    def begin(count: int) -> list[Helper]:
        started = [Helper(start, tmp_path / f"pause-{number}") for number in range(count)]
        wait_until(lambda: Worker.count(connection=redis) == count)
        return started

    return begin


def results(settings: Settings) -> list[str]:
    return [path.name for path in settings.data_dir.glob("projects/*/scoring/*/results/*.npz")]


def assert_same(found: PoolPredictions, wanted: PoolPredictions) -> None:
    assert (found.image_ids, found.classes, found.exclusions) == (wanted.image_ids, wanted.classes, wanted.exclusions)
    assert len(found.image_ids) == SHARDS * SHARD_IMAGES - 1
    assert found.probs.tobytes() == wanted.probs.tobytes()
    assert found.features is not None
    assert wanted.features is not None
    assert found.features.tobytes() == wanted.features.tobytes()
    assert found.gradients is not None
    assert wanted.gradients is not None
    assert found.gradients.residuals.tobytes() == wanted.gradients.residuals.tobytes()
    assert found.gradients.hidden.tobytes() == wanted.gradients.hidden.tobytes()
    assert found.labelled_features is not None
    assert wanted.labelled_features is not None
    assert found.labelled_features.tobytes() == wanted.labelled_features.tobytes()


def assert_nothing_is_left(settings: Settings, redis: Redis) -> None:
    assert list(settings.data_dir.glob("projects/*/scoring/*")) == []
    assert redis.keys("al:scoring:*") == []
    assert redis.llen(f"rq:queue:{QUEUE_SHARDS}") == 0


class TestHelp:
    def test_with_one_worker_nothing_is_posted(self, round_, settings, redis):
        assert_same(round_.outputs(), round_.alone.outputs(round_.pool, NEEDS))
        assert not (settings.data_dir / "projects" / str(PROJECT) / "scoring").exists()

    def test_a_helper_does_all_but_the_first_shard_and_its_death_costs_nothing(self, round_, helpers, settings, redis):
        (helper,) = helpers(1)
        wanted = round_.alone.outputs(round_.pool, NEEDS)
        all_but_the_first = lambda: wait_until(lambda: len(results(settings)) == SHARDS - 1)  # noqa: E731
        round_.at_first = all_but_the_first

        assert_same(round_.outputs(), wanted)
        assert_nothing_is_left(settings, redis)

        def kill() -> None:
            wait_until(lambda: claims(redis))
            helper.kill_work_horse()

        helper.pause(120)
        round_.at_first = kill
        assert_same(round_.outputs(), wanted)
        assert_nothing_is_left(settings, redis)

        # The worker itself goes on, and no round is given up for its work-horse.
        helper.pause(0)
        round_.at_first = all_but_the_first
        assert_same(round_.outputs(), wanted)
        assert redis.keys(f"al:{PROJECT}*") == []

    def test_one_of_two_helpers_is_killed_at_work(self, round_, helpers, settings, redis):
        slow, other = helpers(2)
        slow.pause(120)
        other.pause(1)

        def kill_the_slow_one() -> None:
            wait_until(lambda: len(results(settings)) == SHARDS - 2 and claims(redis))
            slow.process.kill()
            slow.process.wait()

        round_.at_first = kill_the_slow_one

        assert_same(round_.outputs(), round_.alone.outputs(round_.pool, NEEDS))
        assert_nothing_is_left(settings, redis)


def claims(redis: Redis) -> list[str]:
    """Shards that a helper has begun."""
    keys = [key for key in redis.scan_iter("al:scoring:*:*") if not key.endswith(b":jobs")]
    return [key.decode() for key in keys if redis.get(key) not in {None, b"done"}]
