from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml_backend.config import ProjectOptions
from ml_backend.errors import TooFewLabels
from ml_backend.images.source import FolderSource
from ml_backend.model.checkpoint import load_checkpoint
from ml_backend.model.learner import McDropoutLearner
from tests.unit.model.phantom_films import CLASSES, OPTIONS, PROBS, labelled, learner, pool


class TestWarm:
    @pytest.mark.parametrize("finetune", ["head", "full"])
    def test_goes_on_from_the_last_fit_or_from_what_it_saved(self, films: Path, tmp_path: Path, finetune: str) -> None:
        """In one process as in two, to the bit; and neither is what a fresh start gives."""
        changes: dict[str, Any] = {"finetune": finetune, "epochs": 2, "train_batch": 8}
        first, second = (
            (labelled(films, 0, 9), labelled(films, 9, 12)),
            (labelled(films, 0, 15), labelled(films, 15, 19)),
        )
        one = learner(films, tmp_path, retrain="warm", **changes)
        began = [one.fit(*first, CLASSES).began]
        one.save(str(tmp_path))
        in_one = one.fit(*second, CLASSES)
        other = McDropoutLearner(
            OPTIONS.model_copy(update={"retrain": "warm", **changes}),
            FolderSource(films),
            tmp_path,
            device="cpu",
            warm_from=tmp_path,
        )

        in_another = other.fit(*second, CLASSES)

        assert [*began, in_one.began, in_another.began] == ["scratch", "warm", "warm"]
        assert in_another == in_one
        images = pool(films, 30, 33)
        assert np.array_equal(other.outputs(images, PROBS).probs, one.outputs(images, PROBS).probs)
        scratch = learner(films, tmp_path, **changes)
        assert scratch.fit(*second, CLASSES).began == "scratch"
        assert not np.allclose(scratch.outputs(images, PROBS).probs, one.outputs(images, PROBS).probs, atol=1e-3)

    def test_learns_on(self, films: Path, cache: Path) -> None:
        """At so low a learning rate three epochs are too few; from scratch there would never be more."""
        labels = labelled(films, 0, 35), labelled(films, 35, 45)
        it = learner(films, cache, retrain="warm", epochs=1, learning_rate=1e-4)

        losses = [it.fit(*labels, CLASSES).validation_loss for _ in range(2)]

        assert losses[1] < losses[0]

    def test_keeps_the_standardisation_that_its_weights_were_fitted_under(
        self, films: Path, cache: Path, tmp_path: Path
    ) -> None:
        it = learner(films, cache, retrain="warm")
        saved = []
        for start, stop in ((0, 20), (20, 50)):
            it.fit(labelled(films, start, stop), labelled(films, 50, 60), CLASSES)
            it.save(str(tmp_path))
            saved.append(load_checkpoint(tmp_path / "model.safetensors").network.head.feature_mean)

        assert torch.equal(saved[0], saved[1])
        scratch = learner(films, cache)
        scratch.fit(labelled(films, 20, 50), labelled(films, 50, 60), CLASSES)
        scratch.save(str(tmp_path))
        assert not torch.equal(saved[0], load_checkpoint(tmp_path / "model.safetensors").network.head.feature_mean)

    def test_a_failed_fit_in_between_costs_nothing(self, films: Path, cache: Path) -> None:
        it = learner(films, cache, retrain="warm", epochs=2)
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        with pytest.raises(TooFewLabels):
            it.fit(labelled(films, 0, 5), [], CLASSES)

        assert it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES).began == "warm"

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"classes": CLASSES[::-1]}, "made for classes"),
            ({"backbone": "mobilenet_v2"}, "made for backbone 'shufflenet_v2_x0_5', not 'mobilenet_v2'"),
            ({"finetune": "full"}, "made for finetune 'head', not 'full'"),
            ({"image_side": 32}, "made for image_side 64, not 32"),
            ({"damaged": True}, "cannot be read"),
        ],
    )
    def test_what_does_not_fit_is_named_and_begins_from_scratch(
        self,
        *,
        films: Path,
        tmp_path: Path,
        changes: dict[str, Any],
        reason: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        labels = labelled(films, 0, 9), labelled(films, 9, 12)
        first = learner(films, tmp_path, finetune="head", epochs=1)
        first.fit(*labels, CLASSES)
        first.save(str(tmp_path))
        classes = changes.get("classes", CLASSES)
        if "damaged" in changes:
            (tmp_path / "model.safetensors").write_bytes(b"half a file")
        options = OPTIONS.model_copy(update={"epochs": 1, "retrain": "warm"})
        options = options.model_copy(update={k: v for k, v in changes.items() if k in ProjectOptions.model_fields})
        it = McDropoutLearner(options, FolderSource(films), tmp_path, device="cpu", warm_from=tmp_path)

        with caplog.at_level("WARNING"):
            report = it.fit(*labels, classes)

        assert report.began == "scratch"
        assert f"training begins from scratch: the checkpoint {tmp_path}" in caplog.text
        assert reason in caplog.text
        scratch = McDropoutLearner(
            options.model_copy(update={"retrain": "scratch"}), FolderSource(films), tmp_path, device="cpu"
        )
        assert scratch.fit(*labels, classes) == report

    def test_other_dropout_and_other_classes_in_one_process(
        self, films: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        labels = labelled(films, 0, 20), labelled(films, 20, 30)
        first = learner(films, cache, epochs=1)
        first.fit(*labels, CLASSES)
        first.save(str(tmp_path))
        options = OPTIONS.model_copy(update={"epochs": 1, "retrain": "warm", "dropout": 0.2})
        it = McDropoutLearner(options, FolderSource(films), cache, device="cpu", warm_from=tmp_path)

        assert it.fit(*labels, CLASSES).began == "warm"
        it.save(str(tmp_path))
        assert load_checkpoint(tmp_path / "model.safetensors").network.head.dropout.p == 0.2
        assert it.fit(*labels, (*CLASSES, "unknown")).began == "scratch"
        assert "the last network was for ['normal', 'moderate', 'severe'], not" in caplog.text
