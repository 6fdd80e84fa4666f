from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from ml_backend.config import ProjectOptions
from ml_backend.errors import ImageError, RoundError, SettingsError, TooFewLabels, WeightsError
from ml_backend.images.cache import CacheTable
from ml_backend.images.source import FolderSource
from ml_backend.images.transforms import to_input
from ml_backend.model.backbones import Backbone
from ml_backend.model.checkpoint import load_checkpoint
from ml_backend.model.data import FOLDER, cached_features
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.network import McDropoutClassifier
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner
from ml_backend.schemas import ImageRef
from tests.unit.model.synthetic_images import BOTH, CLASSES, OPTIONS, PROBS, labelled, learner, pool

FINETUNE = pytest.mark.parametrize("finetune", ["head", "full"])


def fitted(image_dir: Path, cache: Path, **changes: Any) -> McDropoutLearner:
    """A learner of 20 images, validated on 10."""
    made = learner(image_dir, cache, **changes)
    made.fit(labelled(image_dir, 0, 20), labelled(image_dir, 20, 30), CLASSES)
    return made


def whole_passes(network: McDropoutClassifier, image_dir: Path, images: list[ImageRef]) -> npt.NDArray[np.float32]:
    pixels = [np.asarray(Image.open(image_dir / image.uri)) for image in images]
    return network.mc_probs(to_input(torch.from_numpy(np.stack(pixels))), OPTIONS.passes, seed=0).numpy()


class TestHeadOnly:
    def test_learns_to_classify_synthetic_images(self, image_dir: Path, cache: Path) -> None:
        it: Learner = learner(image_dir, cache)

        report = it.fit(labelled(image_dir, 0, 35), labelled(image_dir, 35, 60), CLASSES)
        outputs = it.outputs(pool(image_dir, 45, 61), PROBS)

        assert (report.train_images, report.validation_images) == (35, 25)
        assert report.validation_auroc is not None
        # Over 60 seeds 0.72 and 0.53, with standard deviations of 0.03 and 0.05.
        assert report.validation_auroc > 0.6
        assert report.validation_accuracy >= 0.4
        assert list(report.class_weights) == list(CLASSES)
        assert {one.image_id: one.label for one in report.held_out} == {
            label.image.id: label.value for label in labelled(image_dir, 35, 60)
        }
        right = [one.predicted == one.label for one in report.held_out]
        assert sum(right) / len(right) == pytest.approx(report.validation_accuracy)
        assert "held_out" not in report.model_dump_json()
        assert outputs.classes == CLASSES
        assert outputs.probs.shape == (15, 6, 3)
        assert outputs.probs.dtype == np.float32
        assert outputs.probs.sum(axis=-1) == pytest.approx(np.ones((15, 6)), abs=1e-5)
        assert outputs.features is None
        assert outputs.image_ids == tuple(image.id for image in pool(image_dir, 45, 60))
        assert [exclusion.image_id for exclusion in outputs.exclusions] == ["60-normal"]
        assert "was it a login page?" in outputs.exclusions[0].reason

    def test_unreadable_labels_are_named(self, image_dir: Path, cache: Path) -> None:
        report = learner(image_dir, cache).fit(labelled(image_dir, 40, 61), labelled(image_dir, 0, 9), CLASSES)

        assert report.train_images == 20
        assert [exclusion.image_id for exclusion in report.exclusions] == ["60-normal"]

    def test_seed_decides_the_result(self, image_dir: Path, cache: Path, tmp_path: Path) -> None:
        """And neither the global generator nor the cache does."""
        probs = []
        for seed, folder in ((4, cache), (4, tmp_path), (5, cache)):
            torch.rand(3)
            probs.append(fitted(image_dir, folder, seed=seed).outputs(pool(image_dir, 30, 40), PROBS).probs)

        assert np.allclose(probs[0], probs[1], atol=1e-5)
        assert not np.allclose(probs[0], probs[2], atol=1e-2)

    def test_every_fit_starts_from_scratch(self, image_dir: Path, cache: Path) -> None:
        it = learner(image_dir, cache)
        first = it.fit(labelled(image_dir, 0, 20), labelled(image_dir, 20, 30), CLASSES)
        it.fit(labelled(image_dir, 10, 40), labelled(image_dir, 40, 50), CLASSES)

        assert it.fit(labelled(image_dir, 0, 20), labelled(image_dir, 20, 30), CLASSES) == first

    def test_probabilities_do_not_depend_on_the_pool(self, image_dir: Path, cache: Path) -> None:
        it = fitted(image_dir, cache)
        together = it.outputs(pool(image_dir, 30, 50), BOTH)

        alone = it.outputs(pool(image_dir, 37, 38), PROBS)

        assert np.allclose(alone.probs[0], together.probs[7], atol=1e-5)
        assert together.features is not None
        assert together.features.shape == (20, 1024)

    def test_passes_are_whole_forward_passes_of_the_saved_network(
        self, image_dir: Path, cache: Path, tmp_path: Path
    ) -> None:
        it = fitted(image_dir, cache)
        it.save(str(tmp_path))
        images = pool(image_dir, 30, 33)

        loaded = load_checkpoint(tmp_path / "model.safetensors", CLASSES, "shufflenet_v2_x0_5")

        assert np.allclose(whole_passes(loaded.network, image_dir, images), it.outputs(images, PROBS).probs, atol=1e-4)

    def test_prepared_images_are_not_read_again(self, image_dir: Path, tmp_path: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        source = FolderSource(image_dir)
        it = McDropoutLearner(OPTIONS, source, tmp_path / "cache", device="cpu", progress=lambda *at: seen.append(at))
        it.prepare(pool(image_dir, 0, 61))  # the unreadable one among them is no error
        images = len(pool(image_dir, 0, 61))
        assert (seen[0], seen[-1]) == (("features", 16, images), ("features", images, images))
        it.prepare(pool(image_dir, 0, 61))
        assert seen[-1] == ("features", 1, 1)  # what is left: the unreadable one

        def gone(image: ImageRef) -> bytes:
            raise ImageError(f"{image.id} was fetched again")

        source = FolderSource(image_dir)
        source.fetch = gone  # type: ignore[method-assign]
        again = McDropoutLearner(OPTIONS, source, tmp_path / "cache", device="cpu")
        report = again.fit(labelled(image_dir, 0, 20), labelled(image_dir, 20, 30), CLASSES)
        assert report.exclusions == ()

    def test_unreadable_pool(self, image_dir: Path, cache: Path) -> None:
        outputs = fitted(image_dir, cache).outputs(pool(image_dir, 60, 61), BOTH)

        assert outputs.probs.shape == (0, 6, 3)
        assert outputs.features is not None
        assert outputs.features.shape == (0, 1024)
        assert len(outputs.exclusions) == 1

    def test_progress(self, image_dir: Path, cache: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        source = FolderSource(image_dir)
        it = McDropoutLearner(OPTIONS, source, cache, device="cpu", progress=lambda *stage: seen.append(stage))
        it.fit(labelled(image_dir, 0, 20), labelled(image_dir, 20, 30), CLASSES)
        it.outputs(pool(image_dir, 30, 50), PROBS)

        assert ("features", 30, 30) in seen
        assert ("train", 30, 30) in seen
        assert seen[-1] == ("score", 20, 20)
        assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["features", "train", "score"]


@FINETUNE
def test_probabilities_of_labels_are_learned_where_the_option_says_so(
    image_dir: Path, cache: Path, finetune: str
) -> None:
    """Otherwise they change no bit. What is validated on are the classes, in either case."""
    train, validation = labelled(image_dir, 0, 20), labelled(image_dir, 20, 30)
    third = dict.fromkeys(CLASSES, 1 / 3)
    unsure = [label.model_copy(update={"raters": 3, "probabilities": third}) for label in train]
    outputs, reports = [], []
    for soft, labels in ((False, train), (False, unsure), (True, unsure)):
        it = learner(image_dir, cache, finetune=finetune, epochs=2, train_batch=8, soft_labels=soft)
        reports.append(it.fit(labels, validation, CLASSES))
        outputs.append(it.outputs(pool(image_dir, 30, 34), PROBS).probs)

    assert np.array_equal(outputs[0], outputs[1])
    assert reports[0] == reports[1]
    assert not np.allclose(outputs[1], outputs[2], atol=1e-4)
    assert reports[2].class_weights == reports[0].class_weights
    assert [one.label for one in reports[2].held_out] == [label.value for label in validation]


def test_full_finetuning_trains_the_backbone_from_the_same_start(image_dir: Path, tmp_path: Path) -> None:
    labels = labelled(image_dir, 0, 9), labelled(image_dir, 9, 12)
    images = pool(image_dir, 30, 33)
    it = learner(image_dir, tmp_path, finetune="full", epochs=2, train_batch=8)
    it.prepare(pool(image_dir, 0, 12))
    first = it.fit(*labels, CLASSES)
    outputs = it.outputs(images, PROBS)
    it.save(str(tmp_path))

    assert it.fit(*labels, CLASSES) == first
    network = load_checkpoint(tmp_path / "model.safetensors", CLASSES).network
    assert np.allclose(whole_passes(network, image_dir, images), outputs.probs, atol=1e-4)
    for name, parameter in Backbone("shufflenet_v2_x0_5").named_parameters():
        assert not torch.equal(network.backbone.get_parameter(name), parameter), f"{name} was not trained"
    # The head gets the features as they are, as in the paper.
    assert float(network.head.feature_mean.abs().max()) == 0.0
    assert not (tmp_path / "features").exists()


class TestErrors:
    @FINETUNE
    def test_too_few_readable_labels(self, image_dir: Path, cache: Path, finetune: str) -> None:
        it = learner(image_dir, cache, finetune=finetune)

        with pytest.raises(TooFewLabels, match=r"to validate on, at least 2 and 1 .*1 more cannot be read.*login page"):
            it.fit(labelled(image_dir, 0, 5), labelled(image_dir, 60, 61), CLASSES)

    def test_nothing_fitted_yet(self, image_dir: Path, cache: Path, tmp_path: Path) -> None:
        it = learner(image_dir, cache)

        with pytest.raises(RoundError, match="call fit first"):
            it.outputs(pool(image_dir, 0, 1), PROBS)
        with pytest.raises(RoundError, match="call fit first"):
            it.save(str(tmp_path))

    @FINETUNE
    def test_missing_weights_are_reported_while_preparing(self, image_dir: Path, cache: Path, finetune: str) -> None:
        it = learner(image_dir, cache, finetune=finetune, weights="/no/such/file.pth")

        with pytest.raises(WeightsError, match=r"/no/such/file\.pth cannot be read"):
            it.prepare(pool(image_dir, 0, 1))

    def test_contradicting_options_are_reported_at_once(self, image_dir: Path, cache: Path) -> None:
        with pytest.raises(SettingsError, match="min_epochs=33 is more than epochs=30"):
            learner(image_dir, cache, min_epochs=11)


class TestEmbed:
    @FINETUNE
    def test_backbone_as_loaded_after_any_fit(self, image_dir: Path, cache: Path, finetune: str) -> None:
        images = pool(image_dir, 30, 40)
        it = learner(image_dir, cache, finetune=finetune, epochs=1)
        before = it.embed(images)
        it.fit(labelled(image_dir, 0, 8), labelled(image_dir, 8, 12), CLASSES)

        assert before.features.shape == (10, 1024)
        assert before.features.dtype == np.float32
        assert np.array_equal(it.embed(images).features, before.features)
        # The network's own features differ if the whole of it was trained.
        own = it.outputs(images, BOTH).features
        assert own is not None
        assert np.allclose(own, before.features, atol=1e-5) == (finetune == "head")

    def test_unreadable_images_are_named(self, image_dir: Path, cache: Path) -> None:
        embedded = learner(image_dir, cache).embed(pool(image_dir, 58, 61))

        assert embedded.image_ids == tuple(image.id for image in pool(image_dir, 58, 60))
        assert [exclusion.image_id for exclusion in embedded.exclusions] == ["60-normal"]
        assert learner(image_dir, cache).embed([]).features.shape == (0, 1024)

    def test_warns_of_an_untrained_backbone(
        self, image_dir: Path, cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        learner(image_dir, cache).embed(pool(image_dir, 0, 1))

        assert "untrained backbone" in caplog.text

    def test_each_row_is_cached_under_its_key(self, image_dir: Path, cache: Path) -> None:
        """Computed or found; an unreadable image has no key."""
        computed = learner(image_dir, cache).embed(pool(image_dir, 57, 61))
        found = learner(image_dir, cache).embed(pool(image_dir, 57, 61))

        cached = cached_features(CacheTable(cache / FOLDER), found.keys)
        assert found.keys == computed.keys
        assert len(set(found.keys)) == len(found.image_ids) == 3
        assert np.array_equal(np.stack([cached[key] for key in found.keys]), computed.features)


@FINETUNE
def test_features_of_the_labelled_images(image_dir: Path, tmp_path: Path, finetune: str) -> None:
    """Training's first, then validation's, without the unreadable one; the same as in a pool."""
    it = learner(image_dir, tmp_path, finetune=finetune, epochs=1, train_batch=8)
    it.fit(labelled(image_dir, 50, 61), labelled(image_dir, 0, 4), CLASSES)

    outputs = it.outputs(pool(image_dir, 20, 23), BOTH)

    assert outputs.labelled_features is not None
    assert outputs.labelled_features.shape == (14, 1024)
    again = it.outputs([*pool(image_dir, 50, 60), *pool(image_dir, 0, 4)], BOTH).features
    assert again is not None
    assert np.allclose(outputs.labelled_features, again, rtol=1e-3, atol=1e-4)
    assert it.outputs(pool(image_dir, 20, 23), PROBS).labelled_features is None


class TestRestore:
    @FINETUNE
    def test_same_bits_in_another_learner(self, image_dir: Path, tmp_path: Path, finetune: str) -> None:
        changes: dict[str, Any] = {"finetune": finetune, "epochs": 2, "train_batch": 8}
        it = fitted(image_dir, tmp_path, **changes)
        needs: frozenset[Need] = frozenset({"probs", "features", "gradients"})
        expected = it.outputs(pool(image_dir, 30, 61), needs)
        it.save(str(tmp_path))

        other = learner(image_dir, tmp_path, **changes)
        other.restore(str(tmp_path))
        outputs = other.outputs(pool(image_dir, 30, 61), needs)

        assert (outputs.image_ids, outputs.classes) == (expected.image_ids, CLASSES)
        assert outputs.features is not None
        assert expected.features is not None
        assert outputs.gradients is not None
        assert expected.gradients is not None
        for ours, theirs in (
            (outputs.probs, expected.probs),
            (outputs.features, expected.features),
            (outputs.gradients.hidden, expected.gradients.hidden),
            (outputs.gradients.residuals, expected.gradients.residuals),
        ):
            assert np.array_equal(ours, theirs)
        assert outputs.labelled_features is None
        # A restored network is saved as the same file.
        (tmp_path / "copy").mkdir()
        other.save(str(tmp_path / "copy"))
        assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()

    def test_incompatible_network(self, image_dir: Path, cache: Path, tmp_path: Path) -> None:
        it = fitted(image_dir, cache, epochs=1)
        it.save(str(tmp_path))

        with pytest.raises(WeightsError, match="cannot be read"):
            it.restore(str(tmp_path / "nowhere"))
        with pytest.raises(WeightsError, match="made for weights 'none', not 'imagenet'"):
            learner(image_dir, cache, weights="imagenet").restore(str(tmp_path))
        # The previous network is still there.
        assert it.outputs(pool(image_dir, 30, 31), PROBS).probs.shape == (1, 6, 3)


class TestWarmStart:
    @FINETUNE
    def test_from_the_last_fit_or_from_a_saved_network(self, image_dir: Path, tmp_path: Path, finetune: str) -> None:
        """The same bits from both, and another network than from scratch."""
        changes: dict[str, Any] = {"finetune": finetune, "epochs": 2, "train_batch": 8}
        first = (labelled(image_dir, 0, 9), labelled(image_dir, 9, 12))
        second = (labelled(image_dir, 0, 15), labelled(image_dir, 15, 19))
        one = learner(image_dir, tmp_path, retrain="warm", **changes)
        assert one.fit(*first, CLASSES).began == "scratch"
        one.save(str(tmp_path))
        in_one = one.fit(*second, CLASSES)
        other = learner(image_dir, tmp_path, warm_from=tmp_path, retrain="warm", **changes)

        in_another = other.fit(*second, CLASSES)

        assert in_one.began == in_another.began == "warm"
        assert in_another == in_one
        images = pool(image_dir, 30, 33)
        assert np.array_equal(other.outputs(images, PROBS).probs, one.outputs(images, PROBS).probs)
        scratch = learner(image_dir, tmp_path, **changes)
        assert scratch.fit(*second, CLASSES).began == "scratch"
        assert not np.allclose(scratch.outputs(images, PROBS).probs, one.outputs(images, PROBS).probs, atol=1e-3)

    def test_continues_learning(self, image_dir: Path, cache: Path) -> None:
        """At so low a learning rate three epochs are too few, and a start from scratch would not get further."""
        labels = labelled(image_dir, 0, 35), labelled(image_dir, 35, 45)
        it = learner(image_dir, cache, retrain="warm", epochs=1, learning_rate=1e-4)

        losses = [it.fit(*labels, CLASSES).validation_loss for _ in range(2)]

        assert losses[1] < losses[0]

    def test_keeps_the_standardisation(self, image_dir: Path, cache: Path, tmp_path: Path) -> None:
        it = learner(image_dir, cache, retrain="warm")
        scratch = learner(image_dir, cache)
        means = []
        for each, start, stop in ((it, 0, 20), (it, 20, 50), (scratch, 20, 50)):
            each.fit(labelled(image_dir, start, stop), labelled(image_dir, 50, 60), CLASSES)
            each.save(str(tmp_path))
            means.append(load_checkpoint(tmp_path / "model.safetensors").network.head.feature_mean)

        assert torch.equal(means[0], means[1])
        assert not torch.equal(means[0], means[2])

    def test_a_failed_fit_loses_nothing(self, image_dir: Path, cache: Path) -> None:
        it = fitted(image_dir, cache, retrain="warm", epochs=2)
        with pytest.raises(TooFewLabels):
            it.fit(labelled(image_dir, 0, 5), [], CLASSES)

        assert it.fit(labelled(image_dir, 0, 20), labelled(image_dir, 20, 30), CLASSES).began == "warm"

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
    def test_incompatible_network_starts_from_scratch_with_a_warning(
        self,
        *,
        image_dir: Path,
        tmp_path: Path,
        changes: dict[str, Any],
        reason: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        labels = labelled(image_dir, 0, 9), labelled(image_dir, 9, 12)
        first = learner(image_dir, tmp_path, finetune="head", epochs=1)
        first.fit(*labels, CLASSES)
        first.save(str(tmp_path))
        classes = changes.get("classes", CLASSES)
        if "damaged" in changes:
            (tmp_path / "model.safetensors").write_bytes(b"half a file")
        options = {name: value for name, value in changes.items() if name in ProjectOptions.model_fields}

        with caplog.at_level("WARNING"):
            warm = learner(image_dir, tmp_path, warm_from=tmp_path, epochs=1, retrain="warm", **options)
            report = warm.fit(*labels, classes)

        assert report.began == "scratch"
        assert f"training starts from scratch: the checkpoint {tmp_path}" in caplog.text
        assert reason in caplog.text
        assert learner(image_dir, tmp_path, epochs=1, **options).fit(*labels, classes) == report

    def test_other_dropout_and_other_classes(
        self, image_dir: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        labels = labelled(image_dir, 0, 20), labelled(image_dir, 20, 30)
        fitted(image_dir, cache, epochs=1).save(str(tmp_path))
        it = learner(image_dir, cache, warm_from=tmp_path, epochs=1, retrain="warm", dropout=0.2)

        assert it.fit(*labels, CLASSES).began == "warm"
        it.save(str(tmp_path))
        assert load_checkpoint(tmp_path / "model.safetensors").network.head.dropout.p == 0.2
        assert it.fit(*labels, (*CLASSES, "unknown")).began == "scratch"
        assert "the last network was for ['normal', 'moderate', 'severe'], not" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGpu:
    @FINETUNE
    @pytest.mark.parametrize("channels_last", [True, False])
    def test_scores_as_a_cpu_does(self, image_dir: Path, tmp_path: Path, finetune: str, *, channels_last: bool) -> None:
        changes = {"finetune": finetune, "precision": "float32", "channels_last": channels_last, "epochs": 1}
        options = OPTIONS.model_copy(update=changes)
        it = McDropoutLearner(options, FolderSource(image_dir), tmp_path, device="cuda")
        it.fit(labelled(image_dir, 0, 20), labelled(image_dir, 20, 30), CLASSES)
        it.save(str(tmp_path))
        cpu = McDropoutLearner(options, FolderSource(image_dir), tmp_path, device="cpu")
        cpu.restore(str(tmp_path))

        images = pool(image_dir, 30, 60)
        assert np.allclose(it.outputs(images, PROBS).probs, cpu.outputs(images, PROBS).probs, atol=1e-3)

    def test_bfloat16_is_almost_the_same(self, image_dir: Path, tmp_path: Path) -> None:
        probs = []
        for precision in ("float32", "bfloat16"):
            options = OPTIONS.model_copy(update={"finetune": "head", "precision": precision, "epochs": 5})
            it = McDropoutLearner(options, FolderSource(image_dir), tmp_path, device="cuda")
            it.fit(labelled(image_dir, 0, 30), labelled(image_dir, 30, 40), CLASSES)
            probs.append(it.outputs(pool(image_dir, 40, 60), PROBS).probs)

        plain, coarse = probs
        assert not np.array_equal(plain, coarse)
        assert np.allclose(plain, coarse, atol=0.1)
