from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ml_backend.engine.ports import Learner
from ml_backend.errors import ImageError, RoundError, SettingsError, TooFewLabels, WeightsError
from ml_backend.images.folder import FolderSource
from ml_backend.images.phantoms import draw_pool
from ml_backend.images.transforms import to_input
from ml_backend.model.backbones import Backbone
from ml_backend.model.checkpoint import load_checkpoint
from ml_backend.model.learner import McDropoutLearner
from ml_backend.records import ImageRef, Label
from ml_backend.settings import ProjectOptions
from ml_backend.strategies import Need

CLASSES = ("normal", "moderate", "severe")
PROBS: frozenset[Need] = frozenset({"probs"})
BOTH: frozenset[Need] = frozenset({"probs", "features"})
SIDE = 64
OPTIONS = ProjectOptions(
    backbone="shufflenet_v2_x0_5", weights="none", image_side=SIDE, passes=6, epochs=10, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 phantoms, the class in the name, and a page that is no image."""
    folder = tmp_path_factory.mktemp("films")
    arrays, labels, _ = draw_pool(60, (1, 1, 1), seed=0, side=SIDE)
    for index, (array, label) in enumerate(zip(arrays, labels, strict=True)):
        Image.fromarray(array).save(folder / f"{index:02d}-{CLASSES[label]}.png")
    (folder / "60-normal.png").write_bytes(b"<!doctype html><title>Log in</title>")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def labelled(films: Path, start: int, stop: int) -> list[Label]:
    paths = sorted(films.glob("*.png"))[start:stop]
    return [Label(image=ImageRef(id=p.stem, uri=p.name), value=p.stem.split("-")[1], raters=1) for p in paths]


def pool(films: Path, start: int, stop: int) -> list[ImageRef]:
    return [label.image for label in labelled(films, start, stop)]


def learner(films: Path, cache: Path, seed: int = 0, **changes: object) -> McDropoutLearner:
    return McDropoutLearner(OPTIONS.model_copy(update=changes), FolderSource(films), cache, device="cpu", seed=seed)


class TestHeadOnly:
    def test_learns_to_tell_the_phantoms_apart(self, films: Path, cache: Path) -> None:
        it: Learner = learner(films, cache)

        report = it.fit(labelled(films, 0, 35), labelled(films, 35, 45), CLASSES)
        outputs = it.outputs(pool(films, 45, 61), PROBS)

        assert (report.train_images, report.validation_images) == (35, 10)
        assert report.validation_auroc is not None
        assert report.validation_auroc > 0.7
        assert report.validation_accuracy >= 0.5
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
