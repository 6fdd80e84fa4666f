"""Images -> backbone features, a batch at a time; those of a frozen backbone are kept on disk.

Features that were computed elsewhere take the place of images and of a backbone: for a study of a table.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ml_backend.errors import RoundError
from ml_backend.images.cache import DiskCache, ImageCache
from ml_backend.images.dataset import read_ahead
from ml_backend.images.decode import Pixels
from ml_backend.images.transforms import to_input
from ml_backend.model.backbones import Backbone
from ml_backend.model.hardware import Arithmetic, halving
from ml_backend.schemas import Exclusion, ImageRef

FOLDER: Final = "features"
"""Where they are kept, below the cache that a learner is given."""

BATCH = {"cpu": 16, "cuda": 256}
"""Images that go through the backbone together."""

_WAY_OUT = "halve image_side, which takes a quarter of the memory, or set a smaller backbone"


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """Features of the images that could be read, on the extractor's device, and the others with the reason.

    ``keys`` are those of ``ImageFeatures``.
    """

    images: tuple[ImageRef, ...]
    features: Float32[Tensor, "images dims"]
    exclusions: tuple[Exclusion, ...]
    keys: tuple[str, ...] = ()

    @classmethod
    def join(cls, batches: Sequence[Self]) -> Self:
        """One batch of several, at least one."""
        return cls(
            tuple(image for batch in batches for image in batch.images),
            torch.cat([batch.features for batch in batches]),
            tuple(exclusion for batch in batches for exclusion in batch.exclusions),
            tuple(key for batch in batches for key in batch.keys),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """An image that was read: its features where they are known, else its pixels."""

    key: str
    features: Float32[Tensor, " dims"] | None
    pixels: UInt8[Pixels, "side side"] | None


class FeatureSource(ABC):
    """Images -> features, from wherever they are had.

    Args:
        dims: length of a feature vector.
        device: where the features are handed out.
    """

    def __init__(self, dims: int, device: torch.device) -> None:
        self._dims = dims
        self._device = device

    @abstractmethod
    def batches(self, images: Sequence[ImageRef]) -> Iterator[FeatureBatch]:
        """Features of all images, in their order, some of them at a time, the unreadable ones counted.

        A shard of ``scoring`` is whole batches.
        """

    @abstractmethod
    def run(self, pixels: UInt8[Tensor, "images side side"]) -> Float32[Tensor, "images dims"]:
        """Features of grey levels; nothing is looked up or kept.

        Raises:
            RoundError: the GPU's memory is too small, or there is nothing that reads images.
        """

    @abstractmethod
    def trim(self) -> None:
        """Drop the kept features that were not used for longest, until the rest fits into the limit."""

    def all(self, images: Sequence[ImageRef], progress: Callable[[int], None]) -> FeatureBatch:
        """The same as ``batches``, as one. ``progress`` is called with the images done."""
        batches: list[FeatureBatch] = []
        done = 0
        for batch in self.batches(images):
            batches.append(batch)
            done += len(batch.images) + len(batch.exclusions)
            progress(done)
        none = FeatureBatch((), torch.empty(0, self._dims, device=self._device), ())
        return FeatureBatch.join([none, *batches])


class FeatureExtractor(FeatureSource):
    """Runs a backbone over images, in eval mode and without augmentation.

    Args:
        backbone: must not be trained any further.
        images: where pixels come from.
        arithmetic: where and how the backbone runs.
        folder: where features are kept, by the content of the image and of the weights; None for a backbone that
            changes from round to round.
        limit_bytes: that the kept features may take on the disk; None for no limit.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: ImageCache,
        arithmetic: Arithmetic,
        folder: Path | None,
        limit_bytes: int | None = None,
    ) -> None:
        super().__init__(backbone.dims, arithmetic.device)
        self._images = images
        self._arithmetic = arithmetic
        self._kept = None if folder is None else DiskCache(folder, limit_bytes)
        self._weights = "" if folder is None else f"{backbone.digest()}|{arithmetic.name}"
        self._backbone = backbone
        self._network: nn.Module | None = None

    def batches(self, images: Sequence[ImageRef]) -> Iterator[FeatureBatch]:
        """Features of all images, in their order, ``BATCH`` of them at a time, the unreadable ones counted.

        Images are read ahead in threads while the backbone runs.
        """
        results = read_ahead(images, self._read)
        while window := list(islice(results, BATCH[self._device.type])):
            found = [(image, result) for image, result in window if isinstance(result, _Found)]
            yield FeatureBatch(
                tuple(image for image, _ in found),
                self._features([result for _, result in found]),
                tuple(result for _, result in window if isinstance(result, Exclusion)),
                () if self._kept is None else tuple(self._key(result) for _, result in found),
            )

    def trim(self) -> None:
        """See ``FeatureSource``."""
        if self._kept is not None:
            self._kept.trim()

    def _read(self, image: ImageRef) -> _Found:
        """In a thread: the features where they are kept, else the pixels."""
        key = self._images.key(image)
        if key is not None and (features := self._find(key)) is not None:
            return _Found(key, features, None)
        decoded = self._images.read(image)
        if decoded.key != key and (features := self._find(decoded.key)) is not None:
            return _Found(decoded.key, features, None)
        return _Found(decoded.key, None, decoded.pixels)

    def _find(self, key: str) -> Float32[Tensor, " dims"] | None:
        row = None if self._kept is None else kept_row(self._kept, f"{key}|{self._weights}")
        return None if row is None or len(row) != self._dims else torch.from_numpy(row)

    def _key(self, found: _Found) -> str:
        return f"{found.key}|{self._weights}"

    def _features(self, found: Sequence[_Found]) -> Float32[Tensor, "images dims"]:
        missing = [index for index, result in enumerate(found) if result.pixels is not None]
        rows = [result.features for result in found]
        if missing:
            pixels = torch.from_numpy(np.stack([cast("Pixels", found[index].pixels) for index in missing]))
            computed = self.run(pixels).cpu()
            for index, row in zip(missing, computed, strict=True):
                rows[index] = row
                if self._kept is not None:
                    self._kept.put(self._key(found[index]), row.numpy().astype("<f4").tobytes())
        if not rows:
            return torch.empty(0, self._dims, device=self._device)
        return torch.stack([row for row in rows if row is not None]).to(self._device)

    def run(self, pixels: UInt8[Tensor, "images side side"]) -> Float32[Tensor, "images dims"]:
        """Features of grey levels, on the extractor's device; nothing is looked up or kept.

        Raises:
            RoundError: the GPU's memory holds not even 2 images.
        """
        return halving(BATCH[self._device.type], lambda batch: self._run(pixels, batch), _WAY_OUT)

    @torch.inference_mode()
    def _run(self, pixels: UInt8[Tensor, "images side side"], batch: int) -> Float32[Tensor, "images dims"]:
        if self._network is None:
            # Not before it is needed: in most rounds every feature is kept already.
            self._network = _for_scoring(self._backbone, self._arithmetic)
        parts = [torch.empty(0, self._dims, device=self._device)]
        for part in torch.split(pixels, batch):
            # Sent as bytes: a twelfth of the network's input.
            inputs = self._arithmetic.lay_out(to_input(part.to(self._device)))
            with self._arithmetic.autocast():
                parts.append(self._network(inputs).float())
        return torch.cat(parts)


def kept_row(folder: DiskCache, key: str) -> Float32[npt.NDArray[np.float32], " dims"] | None:
    """Features from the cache, by a key of ``ImageFeatures``; None where they are not, or no longer, in it."""
    payload = folder.get(key)
    return None if payload is None or len(payload) % 4 else np.frombuffer(payload, "<f4").astype(np.float32)


def _for_scoring(backbone: Backbone, arithmetic: Arithmetic) -> nn.Module:
    """A copy for scoring alone; on a CPU with the normalisations folded into the convolutions: a third faster."""
    network = copy.deepcopy(backbone.network).eval().to(arithmetic.device)
    if arithmetic.device.type == "cpu":
        network = fuse(network)
    return arithmetic.place(network)


TABLE: Final = "table"
"""What a checkpoint calls the backbone, and its weights, where features came from a table."""

_NO_PIXELS = "a table of features has no images to run a backbone over: give the images themselves"

# Images looked up together; ``scoring.SHARD_IMAGES`` is a multiple of it.
_BATCH = 256


class FeatureTable:
    """One row of features an image. Built once and shared by learners.

    Args:
        image_ids: of the rows.
        features: finite; copied.

    Raises:
        ValueError: no row or no column, not as many rows as ids, an id twice, or a value that is not finite.
    """

    def __init__(self, image_ids: Sequence[str], features: Float32[npt.NDArray[np.float32], "images dims"]) -> None:
        if features.ndim != 2 or not features.size:
            raise ValueError(f"features must be a table [images, dims] that is not empty, got shape {features.shape}")
        if len(image_ids) != len(features):
            raise ValueError(f"{len(image_ids)} image ids, but features of {len(features)} images: give one row an id")
        self._rows = {image_id: row for row, image_id in enumerate(image_ids)}
        if len(self._rows) < len(image_ids):
            twice = next(image_id for row, image_id in enumerate(image_ids) if self._rows[image_id] != row)
            raise ValueError(f"image {twice!r} has two rows of features: leave one out")
        if not (finite := np.isfinite(features).all(axis=1)).all():
            raise ValueError(f"the features of image {image_ids[int(finite.argmin())]!r} are not all finite numbers")
        self._features: Float32[Tensor, "images dims"] = torch.tensor(features, dtype=torch.float32)

    @property
    def dims(self) -> int:
        """Length of a row."""
        return int(self._features.shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids and the features, in their order."""
        digest = hashlib.sha256("\n".join(self._rows).encode())
        digest.update(f"|{tuple(self._features.shape)}|".encode())
        digest.update(self._features.numpy().data)
        return digest.hexdigest()

    def find(self, images: Sequence[ImageRef]) -> FeatureBatch:
        """The rows of some images, in their order; an image that has none is an exclusion."""
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
    """Looks images up in a table, by their ids.

    Args:
        table: where.
        device: where the features go.
    """

    def __init__(self, table: FeatureTable, device: torch.device) -> None:
        super().__init__(table.dims, device)
        self._table = table

    def batches(self, images: Sequence[ImageRef]) -> Iterator[FeatureBatch]:
        """See ``FeatureSource``."""
        for start in range(0, len(images), _BATCH):
            batch = self._table.find(images[start : start + _BATCH])
            yield FeatureBatch(batch.images, batch.features.to(self._device), batch.exclusions)

    def run(self, pixels: UInt8[Tensor, "images side side"]) -> Float32[Tensor, "images dims"]:
        """There is no backbone.

        Raises:
            RoundError: always.
        """
        del pixels
        raise RoundError(_NO_PIXELS)

    def trim(self) -> None:
        """Nothing is kept."""


class TableBackbone(Backbone):
    """Stands where a network keeps its backbone, and knows no more than the length of a feature vector.

    Args:
        table: that the features come from; its digest is that of the backbone.
    """

    def __init__(self, table: FeatureTable) -> None:
        # Not the backbone's own: there is no network to build.
        nn.Module.__init__(self)
        self.name = TABLE
        self.weights = TABLE
        self.dims = table.dims
        self._table = table

    def forward(self, images: Float32[Tensor, "images 3 side side"]) -> Float32[Tensor, "images dims"]:
        """There are no images.

        Raises:
            RoundError: always.
        """
        del images
        raise RoundError(_NO_PIXELS)

    def digest(self) -> str:
        """Of the table."""
        return self._table.digest
