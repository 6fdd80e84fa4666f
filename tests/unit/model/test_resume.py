from pathlib import Path
from typing import Any

import pytest
import torch

from ml_backend.config import ProjectOptions
from ml_backend.errors import WeightsError
from ml_backend.model.checkpoint import FILE_NAME, earlier_network, save_checkpoint, take_up
from ml_backend.model.network import McDropoutClassifier

CLASSES = ("normal", "moderate", "severe")
OPTIONS = ProjectOptions(backbone="shufflenet_v2_x0_5", weights="none", dropout=0.3, image_side=32)


@pytest.fixture(scope="module")
def network() -> McDropoutClassifier:
    torch.manual_seed(0)
    return McDropoutClassifier(3, "shufflenet_v2_x0_5", "none", 0.3).eval()


@pytest.fixture
def saved(tmp_path: Path, network: McDropoutClassifier) -> Path:
    save_checkpoint(tmp_path / FILE_NAME, network, CLASSES, OPTIONS, 7, frozen_backbone=True)
    return tmp_path


class TestTakeUp:
    def test_what_fits(self, saved: Path, network: McDropoutClassifier) -> None:
        options = OPTIONS.model_copy(update={"dropout": 0.5, "epochs": 3, "strategy": "bald"})

        checkpoint = take_up(saved, options, head_only=True, classes=CLASSES)

        assert torch.equal(checkpoint.network.head.hidden.weight, network.head.hidden.weight)
        assert checkpoint.seed == 7

    @pytest.mark.parametrize(
        ("changes", "head_only", "says"),
        [
            ({"weights": "imagenet"}, True, "made for weights 'none', not 'imagenet'"),
            ({"image_side": 64}, True, "made for image_side 32, not 64"),
            ({}, False, "made for finetune 'head', not 'full'"),
            ({"backbone": "resnet18"}, True, "made for backbone 'shufflenet_v2_x0_5', not 'resnet18'"),
        ],
    )
    def test_what_does_not(self, saved: Path, changes: dict[str, Any], says: str, *, head_only: bool) -> None:
        with pytest.raises(WeightsError, match=says):
            take_up(saved, OPTIONS.model_copy(update=changes), head_only=head_only)


class TestEarlierNetwork:
    def test_the_last_of_this_process_comes_before_the_folder(self, saved: Path, network: McDropoutClassifier) -> None:
        assert earlier_network((network, CLASSES), saved, OPTIONS, CLASSES, head_only=True) is network
        found = earlier_network(None, saved, OPTIONS, CLASSES, head_only=True)
        assert found is not None
        assert found is not network

    def test_first_fit_of_all_needs_no_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        assert earlier_network(None, None, OPTIONS, CLASSES, head_only=True) is None
        assert caplog.text == ""

    def test_other_classes(self, network: McDropoutClassifier, caplog: pytest.LogCaptureFixture) -> None:
        """In another order they are other classes."""
        assert earlier_network((network, CLASSES), None, OPTIONS, CLASSES[::-1], head_only=True) is None
        assert "training begins from scratch: the last network was for ['normal', 'moderate', 'severe']" in caplog.text

    def test_what_does_not_fit_is_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert earlier_network(None, tmp_path / "gone", OPTIONS, CLASSES, head_only=True) is None
        assert "training begins from scratch: the checkpoint" in caplog.text
        assert "cannot be read" in caplog.text
