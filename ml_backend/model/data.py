"""Labelled data of a training: features of a frozen backbone, or pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from ml_backend.errors import TooFewLabels
from ml_backend.images.cache import ImageCache
from ml_backend.images.dataset import load_labelled
from ml_backend.images.transforms import augment, to_input
from ml_backend.model.features import FeatureSource
from ml_backend.model.hardware import generator
from ml_backend.schemas import Exclusion, ImageRef, Label
from ml_backend.seeding import derive

Augmentation = Callable[[Tensor], Tensor]
"""Changes a batch at random; draws from a stream of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureExamples:
    """Features of a frozen backbone. The only augmentation is dropout.

    Attributes:
        features: input of the network.
        targets: on the same device.
        dropout: rate, to 1 part in 65,536. Kept features are not scaled up: ``features`` are divided by 1 - p already.
    """

    features: Float32[Tensor, "images dims"]
    targets: Int64[Tensor, " images"]
    dropout: float = 0.0

    def augmentation(self, seed: int) -> Augmentation:
        """The dropout of one training; the same seed repeats it."""
        if not self.dropout:
            return lambda features: features
        masks = DropoutMasks(self.features.shape[1], self.dropout, seed)
        return lambda features: features.mul_(torch.from_numpy(masks.draw(len(features))).to(features.device))

    def inputs(self, rows: Int64[Tensor, " batch"], augmentation: Augmentation | None) -> Tensor:
        """The network's input for these rows (indices on the CPU)."""
        features = self.features[rows]
        return features if augmentation is None else augmentation(features)


@dataclass(frozen=True, slots=True, eq=False)
class PixelExamples:
    """Grey levels.

    Pixels stay on the CPU; a batch at a time moves to the device of the targets, so that any number of labels leaves
    the GPU's memory to the network.
    """

    pixels: UInt8[Tensor, "images side side"]
    targets: Int64[Tensor, " images"]

    def augmentation(self, seed: int) -> Augmentation:
        """The augmentation of one training; the same seed repeats it."""
        stream = generator(seed, "augmentation")
        return lambda pixels: augment(pixels, stream)

    def inputs(self, rows: Int64[Tensor, " batch"], augmentation: Augmentation | None) -> Tensor:
        """The network's input for these rows (indices on the CPU)."""
        pixels: Tensor = self.pixels[rows].to(self.targets.device)
        return to_input(pixels if augmentation is None else augmentation(pixels))


Examples: TypeAlias = FeatureExamples | PixelExamples
"""Inputs and targets of a network."""


class DropoutMasks:
    """Dropout masks from raw random bits, several times faster than ``torch.nn.functional.dropout`` on a CPU.

    Args:
        dims: length of a feature vector.
        dropout: fraction that is dropped, to 1 part in 65,536.
        seed: the same seed draws the same masks.
    """

    def __init__(self, dims: int, dropout: float, seed: int) -> None:
        self._dims = dims
        # 8 bits a feature if they represent the rate exactly, as they do 0.5, else 16.
        self._dtype = np.dtype(np.uint8 if (256 * dropout).is_integer() else np.uint16)
        levels = 256**self._dtype.itemsize
        self._threshold = self._dtype.type(min(round(dropout * levels), levels - 1))
        self._bits = np.random.PCG64DXSM(derive(seed, "dropout"))

    def draw(self, images: int) -> Bool[npt.NDArray[np.bool_], "images dims"]:
        """The features that the next images keep."""
        count = images * self._dims
        raw = np.asarray(self._bits.random_raw(-(-count * self._dtype.itemsize // 8)))
        return raw.view(self._dtype)[:count].reshape(images, self._dims) >= self._threshold


@dataclass(frozen=True, slots=True, eq=False)
class LabelledDataset:
    """The readable labelled images of training or of validation, and the unreadable ones with the reason."""

    images: tuple[ImageRef, ...]
    examples: Examples
    exclusions: tuple[Exclusion, ...]

    @classmethod
    def from_features(
        cls,
        labels: Sequence[Label],
        classes: Sequence[str],
        extractor: FeatureSource,
        progress: Callable[[int], None],
    ) -> Self:
        """Features of a frozen backbone, on the extractor's device."""
        batch = extractor.all([label.image for label in labels], progress)
        value_of = {label.image.id: label.value for label in labels}
        targets = torch.tensor([classes.index(value_of[image.id]) for image in batch.images], dtype=torch.int64)
        return cls(batch.images, FeatureExamples(batch.features, targets.to(batch.features.device)), batch.exclusions)

    @classmethod
    def from_pixels(
        cls,
        labels: Sequence[Label],
        classes: Sequence[str],
        images: ImageCache,
        device: torch.device,
        progress: Callable[[int], None],
    ) -> Self:
        """Pixels on the CPU, targets on the device of the training."""
        loaded = load_labelled(labels, classes, images.read, progress)
        return cls(loaded.images, PixelExamples(loaded.pixels, loaded.targets.to(device)), loaded.exclusions)

    def features(self, extractor: FeatureSource) -> Float32[Tensor, "images dims"]:
        """The head's input for these images."""
        if isinstance(self.examples, FeatureExamples):
            return self.examples.features
        return extractor.run(self.examples.pixels)


def require_enough(train: LabelledDataset, validation: LabelledDataset) -> None:
    """Check that there is enough to train on.

    Raises:
        TooFewLabels: fewer than 2 readable images to train on, or none to validate on; names the first unreadable one.
    """
    exclusions = train.exclusions + validation.exclusions
    if len(train.images) < 2 or not validation.images:
        unread = f"; {len(exclusions)} more cannot be read, the first: {exclusions[0].reason}" if exclusions else ""
        raise TooFewLabels(
            f"{len(train.images)} readable labelled images to train on and {len(validation.images)} to "
            f"validate on, at least 2 and 1 are needed: label more images{unread}"
        )
