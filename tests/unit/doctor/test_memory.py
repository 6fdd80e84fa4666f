"""What a training step takes, and what that means on a GPU."""

import pytest
from torchvision import models

from ml_backend.doctor.checks import BESIDE, PER_WEIGHT, fits, step_memory
from ml_backend.errors import SettingsError

GB = 10**9


class TestStepMemory:
    def test_grows_with_the_images_and_with_their_area(self):
        small, large = step_memory("resnet18", 112, half=False), step_memory("resnet18", 224, half=False)

        assert large.of(3) - large.of(2) == large.per_image
        assert large.per_image / small.per_image == pytest.approx(4.0, rel=0.02)
        assert small.fixed == large.fixed

    def test_keeps_at_least_the_input_of_every_convolution(self):
        """The first layers of a ResNet18: 3 channels in; 64 out, kept before and after normalisation, and pooled."""
        first = 4 * (3 * 224**2 + 2 * 64 * 112**2 + 64 * 56**2)

        assert first < step_memory("resnet18", 224, half=False).per_image < 20 * first

    def test_counts_every_weight_once(self):
        weights = sum(parameter.numel() for parameter in models.resnet18().parameters())

        assert step_memory("resnet18", 64, half=False).fixed == PER_WEIGHT * weights + BESIDE

    def test_half_precision_halves_what_is_kept(self):
        whole, half = (step_memory("resnet18", 64, half=half) for half in (False, True))

        assert half.per_image == whole.per_image // 2
        assert half.fixed == whole.fixed

    def test_an_unknown_network(self):
        with pytest.raises(SettingsError, match="resnet51"):
            step_memory("resnet51", 64, half=False)


class TestFits:
    def test_a_batch_that_fits(self):
        found = fits("a GPU", 8 * GB, 5 * GB, 2 * GB, 32)

        assert found.verdict == "ok"
        assert found.seen == "a GPU; train_batch=32 takes about 5.0 GB"

    def test_a_batch_that_is_halved(self):
        assert fits("a GPU", 4 * GB, 5 * GB, 2 * GB, 32).seen.endswith("5.0 GB: it will be halved until it fits")

    def test_not_even_two_images(self):
        found = fits("a GPU", 1 * GB, 5 * GB, 2 * GB, 32)

        assert found.verdict == "FAIL"
        assert "image_side" in found.remedy
