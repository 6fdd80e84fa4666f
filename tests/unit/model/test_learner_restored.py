from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.errors import WeightsError
from ml_backend.registry import Need
from tests.unit.model.phantom_films import CLASSES, PROBS, labelled, learner, pool


class TestRestore:
    @pytest.mark.parametrize("finetune", ["head", "full"])
    def test_same_bits_in_another_learner(self, films: Path, tmp_path: Path, finetune: str) -> None:
        changes: dict[str, Any] = {"finetune": finetune, "epochs": 2, "train_batch": 8}
        it = learner(films, tmp_path, **changes)
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        needs: frozenset[Need] = frozenset({"probs", "features", "gradients"})
        expected = it.outputs(pool(films, 30, 61), needs)
        it.save(str(tmp_path))

        other = learner(films, tmp_path, **changes)
        other.restore(str(tmp_path))
        outputs = other.outputs(pool(films, 30, 61), needs)

        assert outputs.image_ids == expected.image_ids
        assert outputs.classes == CLASSES
        assert np.array_equal(outputs.probs, expected.probs)
        assert outputs.features is not None
        assert expected.features is not None
        assert np.array_equal(outputs.features, expected.features)
        assert outputs.gradients is not None
        assert expected.gradients is not None
        assert np.array_equal(outputs.gradients.hidden, expected.gradients.hidden)
        assert np.array_equal(outputs.gradients.residuals, expected.gradients.residuals)
        assert outputs.labelled_features is None
        # And it can be handed on.
        (tmp_path / "on").mkdir()
        other.save(str(tmp_path / "on"))
        assert (tmp_path / "on" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()

    def test_what_does_not_fit(self, films: Path, cache: Path, tmp_path: Path) -> None:
        it = learner(films, cache, epochs=1)
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        it.save(str(tmp_path))

        with pytest.raises(WeightsError, match="cannot be read"):
            it.restore(str(tmp_path / "nowhere"))
        with pytest.raises(WeightsError, match="made for weights 'none', not 'imagenet'"):
            learner(films, cache, weights="imagenet").restore(str(tmp_path))
        # What it had before is not lost.
        assert it.outputs(pool(films, 30, 31), PROBS).probs.shape == (1, 6, 3)
