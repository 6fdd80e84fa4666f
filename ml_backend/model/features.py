"""Images -> backbone features, a batch at a time; those of a frozen backbone are kept on disk."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ml_backend.images.blobs import BlobFolder
from ml_backend.images.cached import ImageCache
from ml_backend.images.dataset import read_ahead
from ml_backend.images.decode import Pixels
from ml_backend.images.transforms import to_input
from ml_backend.model.backbones import Backbone
from ml_backend.model.memory import halving
from ml_backend.model.precision import autocast, precision
from ml_backend.records import Exclusion, ImageRef

__all__ = ["FeatureBatch", "FeatureExtractor"]

# Images that go through the backbone together.
_BATCH = {"cpu": 16, "cuda": 256}
_WAY_OUT = "set a smaller image_side or a smaller backbone"


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """Features of the images that could be read, on the extractor's device, and the others with the reason."""

    images: tuple[ImageRef, ...]
    features: Float32[Tensor, "images dims"]
    exclusions: tuple[Exclusion, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """An image that was read: its features where they are known, else its pixels."""

    key: str
    features: Float32[Tensor, " dims"] | None
    pixels: UInt8[Pixels, "side side"] | None


class FeatureExtractor:
    """Runs a backbone over images, in eval mode and without augmentation.

    Args:
        backbone: must not be trained any further.
        images: where pixels come from.
        device: where the backbone runs: ``cpu`` or ``cuda``.
        folder: where features are kept, by the content of the image and of the weights; None for a backbone that
            changes from round to round.
    """

    def __init__(self, backbone: Backbone, images: ImageCache, device: torch.device, folder: Path | None) -> None:
        self._images = images
        self._device = device
        self._dims = backbone.dims
        self._kept = None if folder is None else BlobFolder(folder)
        # The precision is part of the key: features of a GPU in bf16 are not those of a CPU.
        self._weights = "" if folder is None else f"{backbone.digest()}|{device.type}|{precision(device)}"
        self._backbone = backbone
        self._network: nn.Module | None = None

    def batches(self, images: Sequence[ImageRef]) -> Iterator[FeatureBatch]:
        """Features of all images, in their order; images are read ahead in threads while the backbone runs."""
        results = read_ahead(images, self._read)
        while window := list(islice(results, _BATCH[self._device.type])):
            found = [(image, result) for image, result in window if isinstance(result, _Found)]
            yield FeatureBatch(
                tuple(image for image, _ in found),
                self._features([result for _, result in found]),
                tuple(result for _, result in window if isinstance(result, Exclusion)),
            )

    def all(self, images: Sequence[ImageRef], progress: Callable[[int], None]) -> FeatureBatch:
        """The same, as one batch. ``progress`` is called with the images done."""
        batches: list[FeatureBatch] = []
        done = 0
        for batch in self.batches(images):
            batches.append(batch)
            done += len(batch.images) + len(batch.exclusions)
            progress(done)
        return FeatureBatch(
            tuple(image for batch in batches for image in batch.images),
            torch.cat([batch.features for batch in batches]) if batches else torch.empty(0, self._dims),
            tuple(exclusion for batch in batches for exclusion in batch.exclusions),
        )

    def trim(self, limit_bytes: int) -> None:
        """Drop the kept features that were not used for longest, until the rest fits."""
        if self._kept is not None:
            self._kept.trim(limit_bytes)

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
        payload = None if self._kept is None else self._kept.get(f"{key}|{self._weights}")
        if payload is None or len(payload) != 4 * self._dims:
            return None
        return torch.from_numpy(np.frombuffer(payload, "<f4").astype(np.float32))

    def _features(self, found: Sequence[_Found]) -> Float32[Tensor, "images dims"]:
        missing = [index for index, result in enumerate(found) if result.pixels is not None]
        rows = [result.features for result in found]
        if missing:
            pixels = torch.from_numpy(np.stack([cast("Pixels", found[index].pixels) for index in missing]))
            computed = self.run(pixels).cpu()
            for index, row in zip(missing, computed, strict=True):
                rows[index] = row
                if self._kept is not None:
                    self._kept.put(f"{found[index].key}|{self._weights}", row.numpy().astype("<f4").tobytes())
        if not rows:
            return torch.empty(0, self._dims, device=self._device)
        return torch.stack([row for row in rows if row is not None]).to(self._device)

    def run(self, pixels: UInt8[Tensor, "images side side"]) -> Float32[Tensor, "images dims"]:
        """Features of grey levels, on the extractor's device; nothing is looked up or kept.

        Raises:
            RoundError: the GPU's memory holds not even 2 images.
        """
        return halving(_BATCH[self._device.type], lambda batch: self._run(pixels, batch), _WAY_OUT)

    @torch.inference_mode()
    def _run(self, pixels: UInt8[Tensor, "images side side"], batch: int) -> Float32[Tensor, "images dims"]:
        if self._network is None:
            # Not before it is needed: in most rounds every feature is kept already.
            self._network = _for_scoring(self._backbone, self._device)
        parts = [torch.empty(0, self._dims, device=self._device)]
        for part in torch.split(pixels, batch):
            # Sent as bytes: a twelfth of the network's input.
            inputs = to_input(part.to(self._device)).contiguous(memory_format=torch.channels_last)
            with autocast(self._device):
                parts.append(self._network(inputs).float())
        return torch.cat(parts)


def _for_scoring(backbone: Backbone, device: torch.device) -> nn.Module:
    """A copy for scoring alone; on a CPU with the normalisations folded into the convolutions: a third faster."""
    network = copy.deepcopy(backbone.network).eval().to(device)
    if device.type == "cpu":
        network = fuse(network)
    return network.to(memory_format=torch.channels_last)
