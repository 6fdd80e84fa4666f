"""A fitted network goes through the pool: the posterior, and whatever else a strategy asks for.

Which machine this is, as far as that decides the bits of a result.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from ml_backend.model.features import FeatureBatch, FeatureSource
from ml_backend.model.network import McDropoutClassifier
from ml_backend.predictions import LastLayerGradients, PoolPredictions, join
from ml_backend.registry import Need
from ml_backend.schemas import ImageRef

SHARD_IMAGES: Final = 2048
"""Images of a shard, the unreadable ones counted; a multiple of every ``features.BATCH``, so that no batch of the
backbone lies in two shards."""


@dataclass(frozen=True, slots=True, eq=False)
class FittedNetwork:
    """A network that can be asked about a pool.

    Attributes:
        network: in eval mode.
        classes: in the order of the network's outputs.
        extractor: turns images into its features.
        masks: of the stochastic passes.
        labelled_features: of the images that it was fitted and validated on, computed when first asked for; None
            where those are not known.
    """

    network: McDropoutClassifier
    classes: tuple[str, ...]
    extractor: FeatureSource
    masks: Bool[Tensor, "passes dims"]
    labelled_features: Callable[[], Float32[Tensor, "labelled dims"]] | None = None

    def outputs(
        self, pool: Sequence[ImageRef], needs: frozenset[Need], progress: Callable[[int], None]
    ) -> PoolPredictions:
        """What the network says about the images that can be read.

        The passes are drawn whatever is needed: suggestions and reports live on them.

        Args:
            pool: any number of images.
            needs: of the strategy.
            progress: called with the images done.

        Raises:
            RoundError: the GPU's memory is too small.
        """
        shards = [self._score(shard, needs) for shard in _in_shards(_told(self.extractor.batches(pool), progress))]
        shards = shards or [self._score(FeatureBatch((), self._no_features(), ()), needs)]
        outputs = join(shards)
        if "features" not in needs or self.labelled_features is None:
            return outputs
        return replace(outputs, labelled_features=self.labelled_features().cpu().numpy())

    def _score(self, shard: FeatureBatch, needs: frozenset[Need]) -> PoolPredictions:
        head = self.network.head
        gradients = None
        if "gradients" in needs:
            residuals, hidden = head.gradient_factors(shard.features)
            gradients = LastLayerGradients(residuals.cpu().numpy(), hidden.cpu().numpy())
        return PoolPredictions(
            image_ids=tuple(image.id for image in shard.images),
            classes=self.classes,
            probs=head.passes(shard.features, self.masks).cpu().numpy(),
            features=shard.features.cpu().numpy() if "features" in needs else None,
            gradients=gradients,
            exclusions=shard.exclusions,
        )

    def _no_features(self) -> Float32[Tensor, "0 dims"]:
        return torch.empty(0, self.network.backbone.dims, device=self.network.head.hidden.weight.device)


def _told(batches: Iterable[FeatureBatch], progress: Callable[[int], None]) -> Iterator[FeatureBatch]:
    """The same batches; the progress hears of every one."""
    done = 0
    for batch in batches:
        done += len(batch.images) + len(batch.exclusions)
        progress(done)
        yield batch


def _in_shards(batches: Iterable[FeatureBatch]) -> Iterator[FeatureBatch]:
    held: list[FeatureBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch.images) + len(batch.exclusions)
        if count == SHARD_IMAGES:
            yield FeatureBatch.join(held)
            held, count = [], 0
    if held:
        yield FeatureBatch.join(held)


def machine(device: Literal["auto", "cpu", "cuda"]) -> str:
    """What decides the bits of a result, besides the network and the image: two equal answers, equal bits.

    Args:
        device: that the installation asks for.
    """
    facts = [f"torch {torch.__version__}", f"shards of {SHARD_IMAGES}"]
    if device != "cpu" and torch.cuda.is_available():
        facts += [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"]
    else:
        # Libraries choose their kernels, and in which order these add up, by all three.
        facts += [_cpu(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return ", ".join(facts)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
