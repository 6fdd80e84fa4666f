"""Grey levels -> the network's input, with or without augmentation. On whatever device the batch lies."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

# Of the three colour channels, on the 0 to 1 scale: what torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of a network's input channels, on the 0 to 1 scale; ImageNet's by default."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return len(self.mean)


IMAGENET = Normalisation()

ROTATION_DEGREES = 10.0
TRANSLATION = 0.05  # of the side
CONTRAST = 0.1  # of the contrast, and of the full scale for the brightness


def to_input(
    pixels: UInt8[Tensor, "images side side"] | Float32[Tensor, "images side side"],
    normalisation: Normalisation = IMAGENET,
) -> Float32[Tensor, "images channels side side"]:
    """Grey levels in each of the network's channels, normalised as its weights were trained with.

    Args:
        pixels: grey levels from 0 to 255.
        normalisation: of the network.

    Returns:
        Per channel (level / 255 - mean) / std: about -2.1 to 2.6 with ImageNet's.
    """
    gray = pixels.to(torch.float32).div(255.0)[:, None]
    mean = torch.tensor(normalisation.mean, device=pixels.device)[None, :, None, None]
    std = torch.tensor(normalisation.std, device=pixels.device)[None, :, None, None]
    return (gray - mean) / std


def augment(
    pixels: UInt8[Tensor, "images side side"], generator: torch.Generator
) -> Float32[Tensor, "images side side"]:
    """Turn, shift, brighten and stretch every image a little; only in training, never while scoring.

    Rotation up to 10 degrees, translation up to 5 % of the side, brightness and contrast up to 10 %, all uniform.
    No flip: a mirrored heart is another patient. What comes in from outside is black.

    Args:
        pixels: grey levels from 0 to 255.
        generator: on the CPU, whatever the device of ``pixels``: the same images on every device.

    Returns:
        Grey levels from 0 to 255, no longer whole numbers.
    """
    count, device = len(pixels), pixels.device
    draws = (torch.rand(5, count, generator=generator) * 2 - 1).to(device)
    angle = draws[0] * math.radians(ROTATION_DEGREES)
    # affine_grid measures in half sides.
    shift_x, shift_y = draws[1] * 2 * TRANSLATION, draws[2] * 2 * TRANSLATION
    rows = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin(), shift_x], dim=1),
            torch.stack([angle.sin(), angle.cos(), shift_y], dim=1),
        ],
        dim=1,
    )
    gray = pixels.to(torch.float32)[:, None]
    grid = torch.nn.functional.affine_grid(rows, list(gray.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(gray, grid, mode="bilinear", align_corners=False)[:, 0]
    contrast = (1 + CONTRAST * draws[3])[:, None, None]
    brightness = (255.0 * CONTRAST * draws[4])[:, None, None]
    middle = moved.mean(dim=(1, 2), keepdim=True)
    return ((moved - middle) * contrast + middle + brightness).clamp(0.0, 255.0)
