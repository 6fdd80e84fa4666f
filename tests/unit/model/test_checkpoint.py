from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ml_backend.config import ProjectOptions
from ml_backend.errors import WeightsError
from ml_backend.model.checkpoint import FILE_NAME, load_checkpoint, load_compatible, save_checkpoint
from ml_backend.model.network import McDropoutClassifier

CLASSES = ("normal", "moderate", "severe")
OPTIONS = ProjectOptions(backbone="shufflenet_v2_x0_5", weights="none", dropout=0.3, image_side=32)


@pytest.fixture(scope="module")
def network() -> McDropoutClassifier:
    torch.manual_seed(0)
    network = McDropoutClassifier(3, "shufflenet_v2_x0_5", "none", 0.3)
    network.head.fit_standardisation(torch.randn(9, 1024))
    return network.eval()


def write(path: Path, network: McDropoutClassifier, *, frozen_backbone: bool) -> Path:
    save_checkpoint(path, network, CLASSES, OPTIONS, 7, frozen_backbone=frozen_backbone)
    return path


@pytest.mark.parametrize("frozen_backbone", [True, False])
def test_comes_back_as_it_was(tmp_path: Path, network: McDropoutClassifier, *, frozen_backbone: bool) -> None:
    path = write(tmp_path / "m.safetensors", network, frozen_backbone=frozen_backbone)
    torch.manual_seed(99)

    loaded = load_checkpoint(path, CLASSES, "shufflenet_v2_x0_5")

    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.network.mc_probs(images, 3), network.mc_probs(images, 3))
    assert (loaded.classes, loaded.options, loaded.seed) == (CLASSES, OPTIONS, 7)
    assert not loaded.network.training
    assert loaded.network.backbone.weights == "none"
    assert loaded.frozen_backbone == frozen_backbone


def test_trained_backbone_is_in_the_file(tmp_path: Path) -> None:
    trained = McDropoutClassifier(3, "shufflenet_v2_x0_5", "none", 0.3)
    with torch.no_grad():
        next(trained.backbone.parameters()).add_(1.0)

    loaded = load_checkpoint(write(tmp_path / "m.safetensors", trained, frozen_backbone=False))

    assert loaded.network.backbone.digest() == trained.backbone.digest()


def test_frozen_backbone_is_left_out(tmp_path: Path, network: McDropoutClassifier) -> None:
    head = write(tmp_path / "head.safetensors", network, frozen_backbone=True)
    whole = write(tmp_path / "whole.safetensors", network, frozen_backbone=False)

    assert all(name.startswith("head.") for name in load_file(head))
    assert any(name.startswith("backbone.") for name in load_file(whole))


def test_wrong_expectations(tmp_path: Path, network: McDropoutClassifier) -> None:
    path = write(tmp_path / "m.safetensors", network, frozen_backbone=True)

    with pytest.raises(WeightsError, match=r"made for classes \('normal', 'moderate', 'severe'\), not \('a', 'b'\)"):
        load_checkpoint(path, classes=("a", "b"))
    # The order counts: another order would swap the predictions.
    with pytest.raises(WeightsError, match="made for classes"):
        load_checkpoint(path, classes=CLASSES[::-1])
    with pytest.raises(WeightsError, match="made for backbone 'shufflenet_v2_x0_5', not 'resnet50'"):
        load_checkpoint(path, backbone="resnet50")


def test_metadata_holds_the_preprocessing(tmp_path: Path, network: McDropoutClassifier) -> None:
    with safe_open(write(tmp_path / "m.safetensors", network, frozen_backbone=True), framework="pt") as file:
        text = file.metadata()["ml_backend"]

    for part in ('"side":32', '"preprocessing":"gray-squash', '"mean":[0.485', '"dropout":0.3', '"strategy":"entropy"'):
        assert part in text


def test_head_of_other_backbone_weights(tmp_path: Path) -> None:
    other = McDropoutClassifier(3, "shufflenet_v2_x0_5", "none", 0.3)
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1.0)

    with pytest.raises(WeightsError, match="a head for other weights of shufflenet_v2_x0_5 than weights='none'"):
        load_checkpoint(write(tmp_path / "m.safetensors", other, frozen_backbone=True))


def test_invalid_files(tmp_path: Path, network: McDropoutClassifier) -> None:
    (tmp_path / "text").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    path = write(tmp_path / "m.safetensors", network, frozen_backbone=True)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"head.output.bias": torch.zeros(4)}, tmp_path / "damaged.safetensors", metadata=metadata)
    broken = load_file(path) | {"head.output.bias": torch.tensor([0.0, float("nan"), 0.0])}
    save_file(broken, tmp_path / "broken.safetensors", metadata=metadata)

    for name, message in [
        ("missing", "cannot be read"),
        ("text", "cannot be read"),
        ("foreign.safetensors", "is not a checkpoint of this backend"),
        ("damaged.safetensors", "does not hold what it says"),
        ("broken.safetensors", "holds NaN or infinity in head.output.bias"),
    ]:
        with pytest.raises(WeightsError, match=message):
            load_checkpoint(tmp_path / name)


@pytest.fixture
def saved(tmp_path: Path, network: McDropoutClassifier) -> Path:
    save_checkpoint(tmp_path / FILE_NAME, network, CLASSES, OPTIONS, 7, frozen_backbone=True)
    return tmp_path


class TestLoadCompatible:
    def test_other_options_that_fit(self, saved: Path, network: McDropoutClassifier) -> None:
        options = OPTIONS.model_copy(update={"dropout": 0.5, "epochs": 3, "strategy": "bald"})

        checkpoint = load_compatible(saved, options, head_only=True, classes=CLASSES)

        assert torch.equal(checkpoint.network.head.hidden.weight, network.head.hidden.weight)
        assert checkpoint.seed == 7

    @pytest.mark.parametrize(
        ("changes", "head_only", "message"),
        [
            ({"weights": "imagenet"}, True, "made for weights 'none', not 'imagenet'"),
            ({"image_side": 64}, True, "made for image_side 32, not 64"),
            ({}, False, "made for finetune 'head', not 'full'"),
            ({"backbone": "resnet18"}, True, "made for backbone 'shufflenet_v2_x0_5', not 'resnet18'"),
        ],
    )
    def test_options_that_do_not_fit(
        self, saved: Path, changes: dict[str, Any], message: str, *, head_only: bool
    ) -> None:
        with pytest.raises(WeightsError, match=message):
            load_compatible(saved, OPTIONS.model_copy(update=changes), head_only=head_only)
