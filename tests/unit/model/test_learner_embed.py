"""What the loaded backbone sees, for an order before any label."""

from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from ml_backend.images.cache import DiskCache
from ml_backend.model.ensemble import CommitteeLearner
from ml_backend.model.features import FOLDER, kept_row
from tests.unit.model.phantom_films import BOTH, CLASSES, labelled, learner, pool


class TestEmbed:
    @pytest.mark.parametrize("finetune", ["head", "full"])
    def test_is_of_the_backbone_as_loaded_whatever_was_fitted(self, films: Path, cache: Path, finetune: str) -> None:
        it = learner(films, cache, finetune=finetune, epochs=1)
        before = it.embed(pool(films, 30, 40))
        it.fit(labelled(films, 0, 8), labelled(films, 8, 12), CLASSES)
        after = it.embed(pool(films, 30, 40))

        assert before.features.shape == (10, 1024)
        assert before.features.dtype == np.float32
        assert np.array_equal(after.features, before.features)
        # The network's own features are others where it was trained as a whole.
        own = it.outputs(pool(films, 30, 40), BOTH).features
        assert own is not None
        assert np.allclose(own, before.features, atol=1e-5) == (finetune == "head")

    def test_unreadable_images_are_named(self, films: Path, cache: Path) -> None:
        seen = learner(films, cache).embed(pool(films, 58, 61))

        assert seen.image_ids == tuple(image.id for image in pool(films, 58, 60))
        assert [exclusion.image_id for exclusion in seen.exclusions] == ["60-normal"]

    def test_nothing_to_look_at(self, films: Path, cache: Path) -> None:
        assert learner(films, cache).embed([]).features.shape == (0, 1024)

    def test_an_untrained_backbone_is_warned_of(self, films: Path, cache: Path) -> None:
        with capture_logs() as logs:
            learner(films, cache).embed(pool(films, 0, 1))

        assert any("hardly tells which images look alike" in line["event"] for line in logs)

    def test_each_row_is_kept_under_its_key(self, films: Path, cache: Path) -> None:
        """Whether it was computed or found; and an unreadable image has none."""
        computed = learner(films, cache).embed(pool(films, 57, 61))
        found = learner(films, cache).embed(pool(films, 57, 61))

        kept = [kept_row(DiskCache(cache / FOLDER), key) for key in found.keys]
        assert found.keys == computed.keys
        assert len(set(found.keys)) == len(found.image_ids) == 3
        assert np.array_equal(np.stack([row for row in kept if row is not None]), computed.features)

    def test_a_committee_has_one_backbone(self, films: Path, cache: Path) -> None:
        members = [learner(films, cache, seed=seed) for seed in (0, 1)]
        of_all = CommitteeLearner(members, None).embed(pool(films, 0, 3))

        assert np.array_equal(of_all.features, members[1].embed(pool(films, 0, 3)).features)
