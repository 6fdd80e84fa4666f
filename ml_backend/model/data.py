"""What a network is trained or validated on: features of a frozen backbone, or pixels.

Labels -> what a network is trained or validated on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from ml_backend.errors import TooFewLabels
from ml_backend.images.cache import ImageCache
from ml_backend.images.dataset import load_labelled
from ml_backend.images.transforms import augment, to_input
from ml_backend.model.features import FeatureSource
from ml_backend.schemas import Exclusion, ImageRef, Label


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


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSet:
    """The readable part of the labels of training or of validation; the other images with the reason."""

    images: tuple[ImageRef, ...]
    examples: FeatureExamples | PixelExamples
    exclusions: tuple[Exclusion, ...]

    @classmethod
    def of_features(
        cls,
        labels: Sequence[Label],
        classes: Sequence[str],
        extractor: FeatureSource,
        progress: Callable[[int], None],
    ) -> Self:
        """For training a head: features of a frozen backbone, on the extractor's device."""
        batch = extractor.all([label.image for label in labels], progress)
        value_of = {label.image.id: label.value for label in labels}
        targets = torch.tensor([classes.index(value_of[image.id]) for image in batch.images], dtype=torch.int64)
        return cls(batch.images, FeatureExamples(batch.features, targets.to(batch.features.device)), batch.exclusions)

    @classmethod
    def of_pixels(
        cls,
        labels: Sequence[Label],
        classes: Sequence[str],
        images: ImageCache,
        device: torch.device,
        progress: Callable[[int], None],
    ) -> Self:
        """For training a whole network: the pixels stay on the CPU, the targets say where batches of them go."""
        loaded = load_labelled(labels, classes, images.read, progress)
        return cls(loaded.images, PixelExamples(loaded.pixels, loaded.targets.to(device)), loaded.exclusions)

    def features(self, extractor: FeatureSource) -> Float32[Tensor, "images dims"]:
        """What the head of the extractor's network sees of these images."""
        if isinstance(self.examples, FeatureExamples):
            return self.examples.features
        return extractor.run(self.examples.pixels)


def require_enough(train: LabelledSet, validation: LabelledSet) -> None:
    """Refuse what cannot be trained.

    Raises:
        TooFewLabels: fewer than 2 readable images to train on, or none to validate on; the first that cannot be
            read is named.
    """
    exclusions = train.exclusions + validation.exclusions
    if len(train.images) < 2 or not validation.images:
        unread = f"; {len(exclusions)} more cannot be read, the first: {exclusions[0].reason}" if exclusions else ""
        raise TooFewLabels(
            f"{len(train.images)} readable labelled images to train on and {len(validation.images)} to "
            f"validate on, at least 2 and 1 are needed: label more images{unread}"
        )
