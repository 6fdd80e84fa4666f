"""Labelled data of a training: features of a frozen backbone, cached on disk, or pixels."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ml_backend.errors import ImageError, RoundError, TooFewLabels
from ml_backend.images.cache import CacheTable, DecodedImage, ImageCache, warn_if_too_small
from ml_backend.images.dataset import load_labelled, read_ahead
from ml_backend.images.decode import Pixels
from ml_backend.images.transforms import IMAGENET, Normalisation, augment, to_input
from ml_backend.model.backbones import Backbone
from ml_backend.model.hardware import Precision, find_executable_batch_size, generator
from ml_backend.schemas import Exclusion, ImageRef, Label
from ml_backend.seeding import derive

FOLDER: Final = "features"
"""Folder of the cached features, below a learner's cache."""

BATCH = {"cpu": 16, "cuda": 256}
"""Images that go through the backbone together."""

TABLE: Final = "table"
"""Name of backbone and weights in a checkpoint whose features came from a table."""

LOOKED_UP = 2048
"""Images whose features are looked up in the cache together; a multiple of each ``BATCH``, as ``SHARD_IMAGES`` is."""

PAGE_BYTES = 2**16
"""Of the table of features: at most an eighth of a page stays empty, of 384 to 2,048 features an image."""

_Row: TypeAlias = Float32[npt.NDArray[np.float32], " dims"]

# Rows of a table that are looked up together; ``inference.SHARD_IMAGES`` is a multiple of it.
_TABLE_BATCH = 256

_NO_IMAGES = "a table of features has no images to run a backbone over: give the images themselves"


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """Features of the readable images, on the extractor's device, and the unreadable images with the reason.

    ``keys`` are those of ``ImageFeatures``; ``cached`` of the images were found in the cache.
    """

    images: tuple[ImageRef, ...]
    features: Float32[Tensor, "images dims"]
    exclusions: tuple[Exclusion, ...]
    keys: tuple[str, ...] = ()
    cached: int = 0

    @classmethod
    def join(cls, batches: Sequence[Self]) -> Self:
        """Concatenate one or more batches."""
        return cls(
            tuple(image for batch in batches for image in batch.images),
            torch.cat([batch.features for batch in batches]),
            tuple(exclusion for batch in batches for exclusion in batch.exclusions),
            tuple(key for batch in batches for key in batch.keys),
            sum(batch.cached for batch in batches),
        )

    @property
    def total(self) -> int:
        """Number of images, readable or not."""
        return len(self.images) + len(self.exclusions)


class FeatureSource(ABC):
    """Provides the features of images.

    Args:
        dims: length of a feature vector.
        device: of the returned features.
    """

    def __init__(self, dims: int, device: torch.device) -> None:
        self._dims = dims
        self._device = device

    @abstractmethod
    def batches(self, images: Sequence[ImageRef]) -> Iterator[FeatureBatch]:
        """Yield the features of all images in order, in batches of a fixed size that counts unreadable images."""

    @abstractmethod
    def run(self, pixels: UInt8[Tensor, "images side side"]) -> Float32[Tensor, "images dims"]:
        """Compute the features of grey levels; nothing is looked up or cached.

        Raises:
            RoundError: the GPU's memory is too small, or there is no backbone.
        """

    @abstractmethod
    def trim(self) -> None:
        """Delete the least recently used cached features until the rest fits into the limit."""

    def all(self, images: Sequence[ImageRef], progress: Callable[[int], None]) -> FeatureBatch:
        """The features of all images as one batch. ``progress`` is called with the number of images done."""
        batches = [FeatureBatch((), torch.empty(0, self._dims, device=self._device), ())]
        done = 0
        for batch in self.batches(images):
            batches.append(batch)
            done += batch.total
            progress(done)
        return FeatureBatch.join(batches)


class FeatureExtractor(FeatureSource):
    """Runs a backbone over images, in eval mode and without augmentation.

    Args:
        backbone: must not be trained any further.
        images: source of the pixels.
        precision: device and precision of the backbone.
        folder: of cached features, keyed by the content of the image and of the weights; None for a backbone that
            changes from round to round.
        limit_bytes: disk space of the cached features; None for no limit.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: ImageCache,
        precision: Precision,
        folder: Path | None,
        limit_bytes: int | None = None,
    ) -> None:
        super().__init__(backbone.dims, precision.device)
        self._images = images
        self._precision = precision
        self._cache = None if folder is None else CacheTable(folder, limit_bytes, PAGE_BYTES)
        self._limit_bytes = limit_bytes
        self._weights = "" if folder is None else f"{backbone.digest()}|{precision.name}"
        self._backbone = backbone

    def batches(self, images: Sequence[ImageRef]) -> Iterator[FeatureBatch]:
        """Yield ``BATCH`` images at a time, ``LOOKED_UP`` at once where all of them are cached.

        Threads read ahead while the backbone runs.
        """
        if self._cache is None:
            self._images.warn_if_too_small(len(images))
        else:
            warn_if_too_small("features", len(images), 4 * self._dims * 9 // 8, self._limit_bytes)
        for start in range(0, len(images), LOOKED_UP):
            part = images[start : start + LOOKED_UP]
            keys = [None] * len(part) if self._cache is None else self._images.keys(part)
            rows = self._cached(key for key in keys if isinstance(key, str))
            known = [key if isinstance(key, ImageError) or key in rows else None for key in keys]
            pairs = list(zip(part, known, strict=True))
            unknown = [image for image, key in pairs if key is None]
            read = read_ahead(unknown, self._images.read)
            size = BATCH[self._device.type] if unknown else LOOKED_UP
            for first in range(0, len(pairs), size):
                yield self._batch(pairs[first : first + size], rows, read)

    def _batch(
        self,
        pairs: Sequence[tuple[ImageRef, str | ImageError | None]],
        rows: dict[str, _Row],
        read: Iterator[tuple[ImageRef, DecodedImage | Exclusion]],
    ) -> FeatureBatch:
        """The features of images, with their keys where these are in ``rows``; computed ones are added to it."""
        found: list[tuple[ImageRef, str]] = []
        exclusions: list[Exclusion] = []
        pixels: dict[str, Pixels] = {}
        for image, key in pairs:
            if isinstance(key, ImageError):
                exclusions.append(Exclusion(image_id=image.id, reason=str(key)))
            elif key is not None:
                found.append((image, key))
            elif isinstance(result := next(read)[1], Exclusion):
                exclusions.append(result)
            else:
                found.append((image, result.key))
                pixels[result.key] = result.pixels
        rows |= self._cached(pixels)  # known by another address, or computed by another process meanwhile
        if missing := [key for key in pixels if key not in rows]:
            computed = self.run(torch.from_numpy(np.stack([pixels[key] for key in missing]))).cpu().numpy()
            rows |= zip(missing, computed, strict=True)
            if self._cache is not None:
                self._cache.put(
                    {self._key(key): row.astype("<f4").tobytes() for key, row in zip(missing, computed, strict=True)}
                )
        features = np.stack([rows[key] for _, key in found]) if found else np.empty((0, self._dims), np.float32)
        return FeatureBatch(
            tuple(image for image, _ in found),
            torch.from_numpy(features).to(self._device),
            tuple(exclusions),
            () if self._cache is None else tuple(self._key(key) for _, key in found),
            sum(isinstance(key, str) for _, key in pairs),
        )

    def trim(self) -> None:
        """See ``FeatureSource``."""
        if self._cache is not None:
            self._cache.trim()

    def run(self, pixels: UInt8[Tensor, "images side side"]) -> Float32[Tensor, "images dims"]:
        """Compute the features of grey levels, on the extractor's device; nothing is looked up or cached.

        Raises:
            RoundError: the GPU's memory holds not even 2 images.
        """
        advice = "halve image_side, which takes a quarter of the memory, or set a smaller backbone"
        return find_executable_batch_size(lambda batch: self._run(pixels, batch), BATCH[self._device.type], advice)

    def _cached(self, keys: Iterable[str]) -> dict[str, _Row]:
        """Features from the cache, by the keys of the images."""
        if self._cache is None:
            return {}
        key_of = {self._key(key): key for key in keys}
        rows = cached_features(self._cache, key_of)
        return {key_of[name]: row for name, row in rows.items() if len(row) == self._dims}

    def _key(self, image_key: str) -> str:
        return f"{image_key}|{self._weights}"

    @torch.inference_mode()
    def _run(self, pixels: UInt8[Tensor, "images side side"], batch: int) -> Float32[Tensor, "images dims"]:
        parts = [torch.empty(0, self._dims, device=self._device)]
        for part in torch.split(pixels, batch):
            # Moved as bytes: a twelfth of the size of the network's input.
            inputs = self._precision.format_images(to_input(part.to(self._device), self._backbone.normalisation))
            with self._precision.autocast():
                parts.append(self._network(inputs).float())
        return torch.cat(parts)

    @cached_property
    def _network(self) -> nn.Module:
        """A copy for inference, made on first use; on a CPU with folded normalisations, which is a third faster."""
        network = copy.deepcopy(self._backbone.network).eval().to(self._device)
        fusable = self._device.type == "cpu" and self._backbone.traceable
        return self._precision.place(fuse(network) if fusable else network)


def cached_features(cache: CacheTable, keys: Iterable[str]) -> dict[str, _Row]:
    """Features from the cache, by keys of ``ImageFeatures``; those that are not, or no longer, in it are left out."""
    found = cache.find(keys)
    return {
        key: np.frombuffer(stored, "<f4").astype(np.float32, copy=False)
        for key, stored in found.items()
        if not len(stored) % 4
    }


class FeatureTable:
    """Precomputed features, one row an image. Built once and shared by learners.

    Args:
        image_ids: of the rows.
        features: finite; copied.

    Raises:
        ValueError: no row or no column, not one id a row, a duplicate id, or a value that is not finite.
    """

    def __init__(self, image_ids: Sequence[str], features: Float32[npt.NDArray[np.float32], "images dims"]) -> None:
        if features.ndim != 2 or not features.size:
            raise ValueError(f"features must be a table [images, dims] that is not empty, got shape {features.shape}")
        if len(image_ids) != len(features):
            raise ValueError(f"{len(image_ids)} image ids, but features of {len(features)} images: give one row an id")
        self._rows = {image_id: row for row, image_id in enumerate(image_ids)}
        if len(self._rows) < len(image_ids):
            duplicate = next(image_id for row, image_id in enumerate(image_ids) if self._rows[image_id] != row)
            raise ValueError(f"image {duplicate!r} has two rows of features: leave one out")
        if not (finite := np.isfinite(features).all(axis=1)).all():
            raise ValueError(f"the features of image {image_ids[int(finite.argmin())]!r} are not all finite numbers")
        self._features: Float32[Tensor, "images dims"] = torch.tensor(features, dtype=torch.float32)

    @property
    def dims(self) -> int:
        """Length of a row."""
        return int(self._features.shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids and the features, in order."""
        digest = hashlib.sha256("\n".join(self._rows).encode())
        digest.update(f"|{tuple(self._features.shape)}|".encode())
        digest.update(self._features.numpy().data)
        return digest.hexdigest()

    def find(self, images: Sequence[ImageRef]) -> FeatureBatch:
        """The rows of these images, in order; an image without a row is an exclusion."""
        found = tuple(image for image in images if image.id in self._rows)
        return FeatureBatch(
            found,
            self._features[[self._rows[image.id] for image in found]],
            tuple(
                Exclusion(image_id=image.id, reason=f"image {image.id} has no row in the table of features")
                for image in images
                if image.id not in self._rows
            ),
        )


class TableFeatures(FeatureSource):
    """Looks up images in a table, by their ids."""

    def __init__(self, table: FeatureTable, device: torch.device) -> None:
        super().__init__(table.dims, device)
        self._table = table

    def batches(self, images: Sequence[ImageRef]) -> Iterator[FeatureBatch]:
        """See ``FeatureSource``."""
        for start in range(0, len(images), _TABLE_BATCH):
            batch = self._table.find(images[start : start + _TABLE_BATCH])
            yield FeatureBatch(batch.images, batch.features.to(self._device), batch.exclusions)

    def run(self, pixels: UInt8[Tensor, "images side side"]) -> Float32[Tensor, "images dims"]:
        """Always raises RoundError: there is no backbone."""
        del pixels
        raise RoundError(_NO_IMAGES)

    def trim(self) -> None:
        """Nothing is cached."""


class TableBackbone(Backbone):
    """Placeholder for the backbone of a network whose features come from a table; its digest is the table's."""

    def __init__(self, table: FeatureTable) -> None:
        # Not Backbone.__init__: there is no network to build.
        nn.Module.__init__(self)
        self.name = TABLE
        self.weights = TABLE
        self.normalisation = IMAGENET
        self.dims = table.dims
        self._table = table

    def forward(self, images: Float32[Tensor, "images channels side side"]) -> Float32[Tensor, "images dims"]:
        """Always raises RoundError: there are no images."""
        del images
        raise RoundError(_NO_IMAGES)

    def digest(self) -> str:
        """Digest of the table."""
        return self._table.digest


SoftTargets: TypeAlias = Float32[Tensor, "images classes"]
"""Probabilities of the classes; each row sums to 1."""


def _rows_of(soft: SoftTargets | None, rows: Int64[Tensor, " images"]) -> SoftTargets | None:
    return None if soft is None else soft[rows]


def soft_targets(labels: Sequence[Label], images: Sequence[ImageRef], classes: Sequence[str]) -> SoftTargets:
    """The labels' probabilities of these images, 1 for the class of a label without any."""
    label_of = {label.image.id: label for label in labels}
    found = [label_of[image.id] for image in images]
    rows = [[(one.probabilities or {one.value: 1.0}).get(name, 0.0) for name in classes] for one in found]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(classes))


Augmentation = Callable[[Tensor], Tensor]
"""Changes a batch at random; draws from a stream of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureExamples:
    """Features of a frozen backbone. The only augmentation is dropout.

    Attributes:
        features: input of the network.
        targets: on the same device.
        dropout: rate, to 1 part in 65,536. Kept features are not scaled up: ``features`` are divided by 1 - p already.
        soft: probabilities to train on, on the device of the targets; None: the targets alone.
    """

    features: Float32[Tensor, "images dims"]
    targets: Int64[Tensor, " images"]
    dropout: float = 0.0
    soft: SoftTargets | None = None

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

    def select(self, rows: Int64[Tensor, " images"]) -> Self:
        """A copy of these rows."""
        return type(self)(self.features[rows], self.targets[rows], self.dropout, _rows_of(self.soft, rows))


@dataclass(frozen=True, slots=True, eq=False)
class PixelExamples:
    """Grey levels.

    Pixels stay on the CPU; a batch at a time moves to the device of the targets, so that any number of labels leaves
    the GPU's memory to the network.
    """

    pixels: UInt8[Tensor, "images side side"]
    targets: Int64[Tensor, " images"]
    normalisation: Normalisation = IMAGENET
    soft: SoftTargets | None = None  # see FeatureExamples

    def augmentation(self, seed: int) -> Augmentation:
        """The augmentation of one training; the same seed repeats it."""
        stream = generator(seed, "augmentation")
        return lambda pixels: augment(pixels, stream)

    def inputs(self, rows: Int64[Tensor, " batch"], augmentation: Augmentation | None) -> Tensor:
        """The network's input for these rows (indices on the CPU)."""
        pixels: Tensor = self.pixels[rows].to(self.targets.device)
        return to_input(pixels if augmentation is None else augmentation(pixels), self.normalisation)

    def select(self, rows: Int64[Tensor, " images"]) -> Self:
        """A copy of these rows."""
        return type(self)(self.pixels[rows], self.targets[rows], self.normalisation, _rows_of(self.soft, rows))


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
        *,
        soft: bool = False,
    ) -> Self:
        """Features of a frozen backbone, on the extractor's device; ``soft``: with the labels' probabilities."""
        batch = extractor.all([label.image for label in labels], progress)
        value_of = {label.image.id: label.value for label in labels}
        targets = torch.tensor([classes.index(value_of[image.id]) for image in batch.images], dtype=torch.int64)
        device = batch.features.device
        probabilities = soft_targets(labels, batch.images, classes).to(device) if soft else None
        examples = FeatureExamples(batch.features, targets.to(device), soft=probabilities)
        return cls(batch.images, examples, batch.exclusions)

    @classmethod
    def from_pixels(
        cls,
        labels: Sequence[Label],
        classes: Sequence[str],
        read: Callable[[ImageRef], DecodedImage],
        device: torch.device,
        progress: Callable[[int], None],
        *,
        normalisation: Normalisation,
        soft: bool = False,
    ) -> Self:
        """Pixels on the CPU, targets on the device of the training; the network's normalisation; ``soft`` as above."""
        loaded = load_labelled(labels, classes, read, progress)
        probabilities = soft_targets(labels, loaded.images, classes).to(device) if soft else None
        examples = PixelExamples(loaded.pixels, loaded.targets.to(device), normalisation, probabilities)
        return cls(loaded.images, examples, loaded.exclusions)

    def select(self, labels: Sequence[Label]) -> Self:
        """The part of these labels, in their order."""
        row_of = {image.id: row for row, image in enumerate(self.images)}
        ids = [label.image.id for label in labels]
        rows = torch.tensor([row_of[image_id] for image_id in ids if image_id in row_of], dtype=torch.int64)
        return type(self)(
            tuple(self.images[row] for row in rows.tolist()),
            self.examples.select(rows),
            tuple(exclusion for exclusion in self.exclusions if exclusion.image_id in set(ids)),
        )

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
