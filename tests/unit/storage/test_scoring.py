"""What the workers that score one pool hand to each other."""

import os
import time

import numpy as np
import pytest

from ml_backend.config import ProjectOptions
from ml_backend.errors import StorageError
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import Exclusion, ProjectKey
from ml_backend.storage import ProjectStore, RoundStore, ScoringFolder, ScoringTask
from tests.fakes import CLASSES, FakeLearner, make_image

KEY = ProjectKey(id=7, created=1_700_000_000)
SHARDS = [[make_image(1, "p1"), make_image(2)], [make_image(3)]]
TASK = ScoringTask(
    options=ProjectOptions(strategy="batch_bald", seed=5), needs=frozenset({"probs"}), machine="m", shards=2
)
OUTPUTS = PoolPredictions(
    image_ids=("3",),
    classes=CLASSES,
    probs=np.full((1, 2, 3), 1 / 3, np.float32),
    features=np.ones((1, 4), np.float32),
    exclusions=(Exclusion(image_id="4", reason="damaged"),),
)


@pytest.fixture
def store(tmp_path) -> ProjectStore:
    return RoundStore(tmp_path / "data").project(KEY)


def begin(store: ProjectStore) -> ScoringFolder:
    return store.begin_scoring("r000001", TASK, SHARDS, FakeLearner())


class TestBegin:
    def test_another_worker_finds_all_that_it_needs(self, store):
        other = store.scoring(begin(store).name)

        assert other.task() == TASK
        assert [other.images(number) for number in (0, 1)] == [tuple(shard) for shard in SHARDS]
        assert (other.folder / "model.txt").read_text() == "fits: 0\n"

    def test_removes_what_dead_rounds_of_the_project_left(self, store):
        """A round that is begun again has the same number, and a name of its own."""
        dead = begin(store)

        alive = begin(store)

        assert dead.name != alive.name
        assert (dead.task(), alive.task()) == (None, TASK)

    def test_leaves_other_projects_alone_for_a_day(self, store, tmp_path):
        others = RoundStore(tmp_path / "data").project(ProjectKey(id=8, created=1))
        fresh = others.begin_scoring("r000001", TASK, SHARDS, FakeLearner())
        begin(store)
        assert fresh.task() == TASK
        long_ago = time.time() - 25 * 3600
        os.utime(fresh.folder, (long_ago, long_ago))

        begin(store)

        assert fresh.task() is None

    def test_a_full_disk(self, store):
        class FullDisk(FakeLearner):
            def save(self, folder: str) -> None:
                raise OSError(28, "No space left on device")

        with pytest.raises(StorageError, match="No space left"):
            store.begin_scoring("r000001", TASK, SHARDS, FullDisk())
        assert list((store.folder / "scoring").iterdir()) == []


class TestResults:
    def test_come_back_as_they_were(self, store):
        folder = begin(store)
        assert (folder.has(1), folder.result(1)) == (False, None)

        folder.write(1, OUTPUTS)

        again = folder.result(1)
        assert folder.has(1)
        assert again is not None
        assert (again.image_ids, again.classes, again.exclusions) == (("3",), CLASSES, OUTPUTS.exclusions)
        np.testing.assert_array_equal(again.probs, OUTPUTS.probs)

    def test_a_late_one_brings_nothing_back(self, store):
        folder = begin(store)
        folder.remove()

        with pytest.raises(StorageError, match=r"00001\.npz could not be written"):
            folder.write(1, OUTPUTS)

        assert not folder.folder.exists()
        folder.remove()

    def test_damage_is_named(self, store):
        folder = begin(store)
        folder.write(1, OUTPUTS)
        path = folder.folder / "results" / "00001.npz"
        path.write_bytes(path.read_bytes()[:50])

        with pytest.raises(StorageError, match=r"00001\.npz is damaged"):
            folder.result(1)

    @pytest.mark.parametrize("content", [None, b"[{"])
    def test_images_that_are_gone_or_damaged(self, store, content):
        folder = begin(store)
        path = folder.folder / "images" / "00001.json"
        path.unlink() if content is None else path.write_bytes(content)

        with pytest.raises(StorageError, match=r"00001\.json could not be read"):
            folder.images(1)
