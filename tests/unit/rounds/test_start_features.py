"""Where features are kept is noted, and they are found again to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ml_backend.images.cache import DiskCache
from ml_backend.predictions import ImageFeatures
from ml_backend.rounds.seed_noise import RecordingLearner
from ml_backend.rounds.start_features import FeaturesLost, StartFeatures, found_again, places_of
from ml_backend.schemas import natural_order
from tests.fakes import FakeLearner, make_image

ROWS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
SEEN = ImageFeatures(("12", "3", "7"), ROWS, keys=("a1|side|weights", "b1|side|weights", "c1|side|weights"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    kept = DiskCache(tmp_path / "features")
    for key, row in zip(SEEN.keys, ROWS, strict=True):
        kept.put(key, row.astype("<f4").tobytes())
    return tmp_path


def note(seen: ImageFeatures = SEEN) -> StartFeatures:
    found = StartFeatures.of(places_of(seen))
    assert found is not None
    return found


class TestNote:
    def test_holds_each_image_once_and_what_all_keys_end_in_once(self):
        found = note()

        assert found.ending == "|side|weights"
        assert list(found.kept) == sorted(SEEN.image_ids, key=natural_order)
        assert [told.split()[0] for told in found.kept.values()] == ["b1", "c1", "a1"]

    def test_comes_back_from_its_file(self):
        assert StartFeatures.model_validate_json(note().model_dump_json()) == note()

    def test_without_a_cache_there_is_none(self):
        """As of features that come from a table."""
        assert StartFeatures.of(places_of(replace(SEEN, keys=()))) is None

    def test_of_a_learner_that_saw_pool_and_labelled_images(self):
        class Keeping(FakeLearner):
            def embed(self, images):
                seen = super().embed(images)
                return replace(seen, keys=tuple(f"{image_id}|weights" for image_id in seen.image_ids))

        learner = RecordingLearner(Keeping(unreadable=["11"]))
        assert learner.start_features() is None
        learner.embed([make_image(10), make_image(11)])
        learner.embed([make_image(2)])

        found = learner.start_features()

        assert found is not None
        assert set(found.kept) == {"2", "10"}
        assert found.place("10").key == "10|weights"


class TestFoundAgain:
    def test_to_the_bit_in_the_order_that_is_asked_for(self, cache):
        assert found_again(note(), ["3", "12"], cache).tobytes() == ROWS[[1, 0]].tobytes()

    def test_whose_keys_end_in_nothing_together(self, tmp_path):
        seen = replace(SEEN, keys=("a|one", "b|two", "c"))
        for key, row in zip(seen.keys, ROWS, strict=True):
            DiskCache(tmp_path / "features").put(key, row.tobytes())

        assert found_again(note(seen), seen.image_ids, tmp_path).tobytes() == ROWS.tobytes()

    def test_another_row_under_the_key_is_not_taken_for_it(self, cache):
        """One last bit is another."""
        row = ROWS[1].copy()
        row[4] = np.nextafter(row[4], np.float32(9))
        DiskCache(cache / "features").put(SEEN.keys[1], row.tobytes())

        with pytest.raises(FeaturesLost, match=r"^1 of 3 are others by now \(image 3 first\)$"):
            found_again(note(), SEEN.image_ids, cache)

    def test_an_image_that_was_not_noted(self, cache):
        with pytest.raises(ValueError, match="image 8: where its features are kept was not noted"):
            found_again(note(), ["12", "8"], cache)
