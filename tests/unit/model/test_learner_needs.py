from pathlib import Path

import numpy as np
import pytest

from tests.unit.model.phantom_films import BOTH, CLASSES, PROBS, labelled, learner, pool


class TestNeeds:
    @pytest.mark.parametrize("finetune", ["head", "full"])
    def test_features_of_the_labelled_images_too(self, films: Path, tmp_path: Path, finetune: str) -> None:
        """Training's first, then validation's, the unreadable one left out; the same ones as in a pool."""
        it = learner(films, tmp_path, finetune=finetune, epochs=1, train_batch=8)
        it.fit(labelled(films, 50, 61), labelled(films, 0, 4), CLASSES)

        outputs = it.outputs(pool(films, 20, 23), BOTH)

        assert outputs.labelled_features is not None
        assert outputs.labelled_features.shape == (14, 1024)
        again = it.outputs([*pool(films, 50, 60), *pool(films, 0, 4)], BOTH).features
        assert again is not None
        assert np.allclose(outputs.labelled_features, again, rtol=1e-3, atol=1e-4)
        assert it.outputs(pool(films, 20, 23), PROBS).labelled_features is None
