from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ml_backend.errors import ImageError, RoundError, SettingsError, TooFewLabels, WeightsError
from ml_backend.images.source import FolderSource
from ml_backend.images.transforms import to_input
from ml_backend.model.backbones import Backbone
from ml_backend.model.checkpoint import load_checkpoint
from ml_backend.model.learner import McDropoutLearner
from ml_backend.rounds.interfaces import Learner
from ml_backend.schemas import ImageRef
from tests.unit.model.phantom_films import BOTH, CLASSES, OPTIONS, PROBS, labelled, learner, pool


class TestHeadOnly:
    def test_learns_to_tell_the_phantoms_apart(self, films: Path, cache: Path) -> None:
        it: Learner = learner(films, cache)

        report = it.fit(labelled(films, 0, 35), labelled(films, 35, 60), CLASSES)
        outputs = it.outputs(pool(films, 45, 61), PROBS)

        assert (report.train_images, report.validation_images) == (35, 25)
        assert report.validation_auroc is not None
        # Over 60 seeds 0.72 and 0.53, with a spread of 0.03 and 0.05.
        assert report.validation_auroc > 0.6
        assert report.validation_accuracy >= 0.4
        assert list(report.class_weights) == list(CLASSES)
        assert outputs.classes == CLASSES
        assert outputs.probs.shape == (15, 6, 3)
        assert outputs.probs.dtype == np.float32
        assert outputs.probs.sum(axis=-1) == pytest.approx(np.ones((15, 6)), abs=1e-5)
        assert outputs.features is None
        assert outputs.image_ids == tuple(image.id for image in pool(films, 45, 60))
        assert [exclusion.image_id for exclusion in outputs.exclusions] == ["60-normal"]
        assert "was it a login page?" in outputs.exclusions[0].reason

    def test_unreadable_labels_are_named(self, films: Path, cache: Path) -> None:
        report = learner(films, cache).fit(labelled(films, 40, 61), labelled(films, 0, 9), CLASSES)

        assert report.train_images == 20
        assert [exclusion.image_id for exclusion in report.exclusions] == ["60-normal"]

    def test_same_seed_same_answer_in_another_process_with_another_cache(
        self, films: Path, cache: Path, tmp_path: Path
    ) -> None:
        answers = []
        for seed, folder in ((4, cache), (4, tmp_path), (5, cache)):
            torch.rand(3)
            it = learner(films, folder, seed=seed)
            it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
            answers.append(it.outputs(pool(films, 30, 40), PROBS).probs)

        assert np.allclose(answers[0], answers[1], atol=1e-5)
        assert not np.allclose(answers[0], answers[2], atol=1e-2)

    def test_every_fit_starts_from_scratch(self, films: Path, cache: Path) -> None:
        it = learner(films, cache)
        first = it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        it.fit(labelled(films, 10, 40), labelled(films, 40, 50), CLASSES)

        assert it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES) == first

    def test_alone_in_the_pool_as_among_others(self, films: Path, cache: Path) -> None:
        it = learner(films, cache)
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        together = it.outputs(pool(films, 30, 50), BOTH)

        alone = it.outputs(pool(films, 37, 38), PROBS)

        assert np.allclose(alone.probs[0], together.probs[7], atol=1e-5)
        assert together.features is not None
        assert together.features.shape == (20, 1024)

    def test_passes_are_whole_forward_passes(self, films: Path, cache: Path, tmp_path: Path) -> None:
        """What the round publishes is what the saved network says about the image, pass by pass."""
        it = learner(films, cache)
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        outputs = it.outputs(pool(films, 30, 33), PROBS)
        it.save(str(tmp_path))

        loaded = load_checkpoint(tmp_path / "model.safetensors", CLASSES, "shufflenet_v2_x0_5")
        pixels = [np.asarray(Image.open(films / image.uri)) for image in pool(films, 30, 33)]
        inputs = to_input(torch.from_numpy(np.stack(pixels)))
        assert np.allclose(loaded.network.mc_probs(inputs, 6, seed=0).numpy(), outputs.probs, atol=1e-4)

    def test_prepared_images_are_not_read_again(self, films: Path, tmp_path: Path) -> None:
        it = learner(films, tmp_path / "cache")
        it.prepare(pool(films, 0, 61))  # the unreadable one among them is no error

        def gone(image: ImageRef) -> bytes:
            raise ImageError(f"{image.id} was fetched again")

        source = FolderSource(films)
        source.fetch = gone  # type: ignore[method-assign]
        again = McDropoutLearner(OPTIONS, source, tmp_path / "cache", device="cpu")
        report = again.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        assert report.exclusions == ()

    def test_pool_that_cannot_be_read(self, films: Path, cache: Path) -> None:
        it = learner(films, cache)
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)

        outputs = it.outputs(pool(films, 60, 61), BOTH)

        assert outputs.probs.shape == (0, 6, 3)
        assert outputs.features is not None
        assert outputs.features.shape == (0, 1024)
        assert len(outputs.exclusions) == 1

    def test_progress(self, films: Path, cache: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        it = McDropoutLearner(
            OPTIONS, FolderSource(films), cache, device="cpu", progress=lambda *stage: seen.append(stage)
        )
        it.fit(labelled(films, 0, 20), labelled(films, 20, 30), CLASSES)
        it.outputs(pool(films, 30, 50), PROBS)

        assert ("features", 30, 30) in seen
        assert ("train", 30, 30) in seen
        assert seen[-1] == ("score", 20, 20)
        assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["features", "train", "score"]


class TestWhole:
    def test_trains_the_backbone_from_the_same_start(self, films: Path, tmp_path: Path) -> None:
        it = learner(films, tmp_path, finetune="full", epochs=2, train_batch=8)
        it.prepare(pool(films, 0, 12))
        first = it.fit(labelled(films, 0, 9), labelled(films, 9, 12), CLASSES)
        outputs = it.outputs(pool(films, 30, 33), PROBS)
        it.save(str(tmp_path))
        again = it.fit(labelled(films, 0, 9), labelled(films, 9, 12), CLASSES)

        assert again == first
        loaded = load_checkpoint(tmp_path / "model.safetensors", CLASSES)
        pixels = [np.asarray(Image.open(films / image.uri)) for image in pool(films, 30, 33)]
        inputs = to_input(torch.from_numpy(np.stack(pixels)))
        assert np.allclose(loaded.network.mc_probs(inputs, 6, seed=0).numpy(), outputs.probs, atol=1e-4)
        trained, untrained = loaded.network.backbone, Backbone("shufflenet_v2_x0_5")
        for name, parameter in untrained.named_parameters():
            assert not torch.equal(trained.get_parameter(name), parameter), f"{name} was not trained"
        # The head sees the features as they are, as in the paper.
        assert float(loaded.network.head.feature_mean.abs().max()) == 0.0
        assert not (tmp_path / "features").exists()


class TestRefusals:
    @pytest.mark.parametrize("finetune", ["head", "full"])
    def test_too_few_readable_labels(self, films: Path, cache: Path, finetune: str) -> None:
        it = learner(films, cache, finetune=finetune)

        with pytest.raises(TooFewLabels, match=r"to validate on, at least 2 and 1 .*1 more cannot be read.*login page"):
            it.fit(labelled(films, 0, 5), labelled(films, 60, 61), CLASSES)

    def test_nothing_fitted_yet(self, films: Path, cache: Path, tmp_path: Path) -> None:
        it = learner(films, cache)

        with pytest.raises(RoundError, match="call fit first"):
            it.outputs(pool(films, 0, 1), PROBS)
        with pytest.raises(RoundError, match="call fit first"):
            it.save(str(tmp_path))

    @pytest.mark.parametrize("finetune", ["head", "full"])
    def test_missing_weights_show_while_preparing(self, films: Path, cache: Path, finetune: str) -> None:
        it = learner(films, cache, finetune=finetune, weights="/no/such/file.pth")

        with pytest.raises(WeightsError, match=r"/no/such/file\.pth cannot be read"):
            it.prepare(pool(films, 0, 1))

    def test_options_that_contradict_each_other_show_at_once(self, films: Path, cache: Path) -> None:
        with pytest.raises(SettingsError, match="min_epochs=33 is more than epochs=30"):
            learner(films, cache, min_epochs=11)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_no_gpu(self, films: Path, cache: Path) -> None:
        with pytest.raises(SettingsError, match="no usable GPU: set AL_DEVICE=auto or cpu"):
            McDropoutLearner(OPTIONS, FolderSource(films), cache, device="cuda")
