from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml_backend.images.source import FolderSource
from ml_backend.model.learner import McDropoutLearner
from tests.unit.model.phantom_films import CLASSES, OPTIONS, PROBS, labelled, pool


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGpu:
    @pytest.mark.parametrize("finetune", ["head", "full"])
    @pytest.mark.parametrize("channels_last", [True, False])
    def test_scores_as_a_cpu_does(self, films: Path, tmp_path: Path, finetune: str, *, channels_last: bool) -> None:
        changes: dict[str, Any] = {
            "finetune": finetune,
            "precision": "float32",
            "channels_last": channels_last,
            "epochs": 1,
        }
        options = OPTIONS.model_copy(update=changes)
        it = McDropoutLearner(options, FolderSource(films), tmp_path, device="cuda")
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        it.save(str(tmp_path))
        cpu = McDropoutLearner(options, FolderSource(films), tmp_path, device="cpu")
        cpu.restore(str(tmp_path))

        images = pool(films, 30, 60)
        assert np.allclose(it.outputs(images, PROBS).probs, cpu.outputs(images, PROBS).probs, atol=1e-3)

    def test_bfloat16_says_almost_the_same(self, films: Path, tmp_path: Path) -> None:
        answers = []
        for precision in ("float32", "bfloat16"):
            options = OPTIONS.model_copy(update={"finetune": "head", "precision": precision, "epochs": 5})
            it = McDropoutLearner(options, FolderSource(films), tmp_path, device="cuda")
            it.fit(labelled(films, 0, 30), labelled(films, 30, 40), CLASSES)
            answers.append(it.outputs(pool(films, 40, 60), PROBS).probs)

        plain, coarse = answers
        assert not np.array_equal(plain, coarse)
        assert np.allclose(plain, coarse, atol=0.1)
