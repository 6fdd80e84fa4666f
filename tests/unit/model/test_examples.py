import pytest
import torch

from ml_backend.images.transforms import to_input
from ml_backend.model.data import PixelExamples


class TestPixelExamples:
    def test_augments_only_with_a_generator(self) -> None:
        pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
        examples = PixelExamples(pixels, torch.zeros(3, dtype=torch.int64))
        rows = torch.tensor([2, 0])

        assert torch.equal(examples.inputs(rows, None), to_input(pixels[rows]))
        assert not torch.equal(examples.inputs(rows, torch.Generator().manual_seed(0)), to_input(pixels[rows]))

    @pytest.mark.parametrize("augmentation", [None, torch.Generator()])
    def test_pixels_follow_their_targets_a_batch_at_a_time(self, augmentation: torch.Generator | None) -> None:
        pixels = torch.zeros((3, 16, 16), dtype=torch.uint8)
        examples = PixelExamples(pixels, torch.zeros(3, dtype=torch.int64, device="meta"))

        assert examples.inputs(torch.tensor([2, 0]), augmentation).device.type == "meta"
        assert examples.pixels.device.type == "cpu"
