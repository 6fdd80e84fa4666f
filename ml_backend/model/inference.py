"""Score a pool with a fitted network: the posterior, and the features and gradients that a strategy needs.

The pool is scored in shards of a fixed size. However the shards are spread over processes that read the same cache on
the same hardware, the numbers are the same to the bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final, Literal, Self

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from ml_backend.model.data import FeatureBatch, FeatureSource
from ml_backend.model.network import McDropoutClassifier
from ml_backend.predictions import LastLayerGradients, PoolPredictions, join
from ml_backend.registry import Need
from ml_backend.schemas import ImageRef

SHARD_IMAGES: Final = 512
"""Images of a shard, unreadable ones included; a multiple of every ``features.BATCH``, so that no batch of the backbone
lies in two shards."""


@dataclass(frozen=True, slots=True, eq=False)
class FittedNetwork:
    """A trained network with what it needs to score a pool.

    Attributes:
        network: in eval mode.
        classes: in the order of the network's outputs.
        extractor: computes the features of images.
        masks: of the stochastic passes.
        labelled_features: of the training and validation images, computed when first called; None if unknown.
    """

    network: McDropoutClassifier
    classes: tuple[str, ...]
    extractor: FeatureSource
    masks: Bool[Tensor, "passes dims"]
    labelled_features: Callable[[], Float32[Tensor, "labelled dims"]] | None = None

    def outputs(
        self,
        pool: Sequence[ImageRef],
        needs: frozenset[Need],
        progress: Callable[[int], None],
        others: Sequence[Self] = (),
    ) -> PoolPredictions:
        """Score the readable images.

        Args:
            pool: any number of images.
            needs: of the strategy; the passes are drawn in any case, for pre-labels and reports.
            progress: called with the number of images done.
            others: networks with the same extractor, whose passes follow this one's.

        Raises:
            RoundError: the GPU's memory is too small.
        """
        batches = _with_progress(self.extractor.batches(pool), progress)
        networks = (self, *others)
        shards = (self._score(shard, needs, networks) for shard in _join_shards(batches))
        if (first := next(shards, None)) is None:
            none = torch.empty(0, self.network.backbone.dims, device=self.network.head.hidden.weight.device)
            first = self._score(FeatureBatch((), none, ()), needs, networks)
        outputs = join(chain([first], shards), len(pool))
        if "features" not in needs or self.labelled_features is None:
            return outputs
        return replace(outputs, labelled_features=self.labelled_features().cpu().numpy())

    def _score(self, shard: FeatureBatch, needs: frozenset[Need], networks: Sequence[Self]) -> PoolPredictions:
        head = self.network.head
        gradients = None
        if "gradients" in needs:
            residuals, hidden = head.gradient_factors(shard.features)
            gradients = LastLayerGradients(residuals.cpu().numpy(), hidden.cpu().numpy())
        return PoolPredictions(
            image_ids=tuple(image.id for image in shard.images),
            classes=self.classes,
            probs=torch.cat([each.network.head.passes(shard.features, each.masks) for each in networks], 1)
            .cpu()
            .numpy(),
            features=shard.features.cpu().numpy() if "features" in needs else None,
            gradients=gradients,
            exclusions=shard.exclusions,
        )


def _with_progress(batches: Iterable[FeatureBatch], progress: Callable[[int], None]) -> Iterator[FeatureBatch]:
    done = 0
    for batch in batches:
        done += batch.total
        progress(done)
        yield batch


def _join_shards(batches: Iterable[FeatureBatch]) -> Iterator[FeatureBatch]:
    pending: list[FeatureBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(each.total for each in pending) == SHARD_IMAGES:
            yield FeatureBatch.join(pending)
            pending = []
    if pending:
        yield FeatureBatch.join(pending)


def hardware_fingerprint(device: Literal["auto", "cpu", "cuda"]) -> str:
    """Describe what decides the bits of a result, besides network and image: equal fingerprints, equal bits.

    Args:
        device: setting of the installation.
    """
    facts = [f"torch {torch.__version__}", f"shards of {SHARD_IMAGES}"]
    if device != "cpu" and torch.cuda.is_available():
        facts += [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"]
    else:
        # All three decide which kernels run, and in which order they add.
        facts += [_cpu_model(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return ", ".join(facts)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
