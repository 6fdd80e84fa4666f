"""What a network is trained or validated on: features of a frozen backbone, or pixels."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from ml_backend.images.transforms import augment, to_input

__all__ = ["Examples", "FeatureExamples", "PixelExamples"]


class Examples(Protocol):
    """What a network is trained or validated on."""

    @property
    def targets(self) -> Int64[Tensor, " images"]: ...

    def inputs(self, rows: Int64[Tensor, " batch"], augmentation: torch.Generator | None) -> Tensor:
        """The network's input for some images (rows on the CPU); augmented only with a generator."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FeatureExamples:
    """Features of a frozen backbone, for training a head. There is nothing to augment."""

    features: Float32[Tensor, "images dims"]
    targets: Int64[Tensor, " images"]

    def inputs(self, rows: Int64[Tensor, " batch"], augmentation: torch.Generator | None) -> Tensor:
        del augmentation
        return self.features[rows]


@dataclass(frozen=True, slots=True, eq=False)
class PixelExamples:
    """Grey levels, for training a whole network.

    They stay on the CPU and a batch at a time follows its targets: however many labels there are, they leave the
    GPU's memory to the network.
    """

    pixels: UInt8[Tensor, "images side side"]
    targets: Int64[Tensor, " images"]

    def inputs(self, rows: Int64[Tensor, " batch"], augmentation: torch.Generator | None) -> Tensor:
        pixels: Tensor = self.pixels[rows].to(self.targets.device)
        return to_input(pixels if augmentation is None else augment(pixels, augmentation))
