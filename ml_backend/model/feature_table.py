"""Features that were computed elsewhere take the place of images and of a backbone: for a study of a table."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from ml_backend.errors import RoundError
from ml_backend.model.backbones import Backbone
from ml_backend.model.features import FeatureBatch, FeatureSource
from ml_backend.records import Exclusion, ImageRef

__all__ = ["TABLE", "FeatureTable", "TableBackbone", "TableFeatures"]

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
