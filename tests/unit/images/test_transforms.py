import pytest
import torch
from torch import Tensor

from ml_backend.images.transforms import Normalisation, augment, to_input


def film(side: int = 41) -> Tensor:
    """A bright dot right of and above the centre, on black."""
    pixels = torch.zeros(1, side, side, dtype=torch.uint8)
    pixels[0, 10:13, 28:31] = 200
    return pixels


def centre_of_mass(image: Tensor) -> tuple[float, float]:
    image = image - image.min()
    axis = torch.arange(image.shape[-1], dtype=torch.float32)
    return float((image.sum(1) * axis).sum() / image.sum()), float((image.sum(0) * axis).sum() / image.sum())


class TestToInput:
    def test_hand_computed(self) -> None:
        """White is (1 - mean) / std of each channel, black is -mean / std."""
        inputs = to_input(torch.tensor([[[255, 0]]], dtype=torch.uint8))

        assert inputs.shape == (1, 3, 1, 2)
        assert inputs[0, :, 0, 0].tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225])
        assert inputs[0, :, 0, 1].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])

    def test_one_channel(self) -> None:
        """torchxrayvision's: from -1024 to 1024."""
        inputs = to_input(torch.tensor([[[255, 0]]], dtype=torch.uint8), Normalisation((0.5,), (1 / 2048,)))

        assert inputs.tolist() == [[[[1024.0, -1024.0]]]]


class TestAugment:
    def test_stays_within_its_bounds(self) -> None:
        """A dot 12.7 pixels from the centre moves by at most 2.05 (5 %) and 2.3 (10 degrees) pixels."""
        many = augment(film().expand(200, -1, -1), torch.Generator().manual_seed(0))
        bright = torch.where(many > many.amax(dim=(1, 2), keepdim=True) * 0.5, many, torch.zeros(()))
        centres = torch.tensor([centre_of_mass(image) for image in bright])
        distance = (centres - torch.tensor([11.0, 29.0])).norm(dim=1)

        assert 3.0 < float(distance.max()) < 2.05 * 2**0.5 + 2.3 + 0.6
        # No flip: the dot never crosses the middle.
        assert bool((centres[:, 1] > 20.5).all())
        assert bool((centres[:, 0] < 20.5).all())

    def test_brightness_within_ten_percent_of_the_scale(self) -> None:
        gray = torch.full((500, 9, 9), 100, dtype=torch.uint8)
        middle = augment(gray, torch.Generator().manual_seed(1))[:, 4, 4]

        # Around the mean of an image that is all but uniform, contrast hardly counts.
        assert 70.0 < float(middle.min()) < 80.0
        assert 120.0 < float(middle.max()) < 130.0

    def test_seed_decides(self) -> None:
        batch = film().expand(4, -1, -1)
        one = augment(batch, torch.Generator().manual_seed(3))

        assert torch.equal(one, augment(batch, torch.Generator().manual_seed(3)))
        assert not torch.equal(one, augment(batch, torch.Generator().manual_seed(4)))
        assert not torch.equal(one[0], one[1])
        assert one.min() >= 0.0
        assert one.max() <= 255.0
