"""How much memory a training step takes: counted on a network without numbers, so that it needs no GPU and no time."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ml_backend.model.backbones import last_layer

__all__ = ["StepMemory", "step_memory"]

PER_WEIGHT = 20  # bytes: weight, gradient, Adam's two moments, and the best epoch's copy, all in float32
BESIDE = 2**30  # bytes: CUDA itself and cuDNN's working memory; a round number


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What training a whole network takes.

    Attributes:
        fixed: bytes, however many images.
        per_image: bytes for every image of a step.
    """

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """Bytes of a step of so many images."""
        return self.fixed + images * self.per_image


def step_memory(backbone: str, side: int, *, half: bool) -> StepMemory:
    """An estimate: what autograd keeps of a forward pass, and the weights with all that Adam needs.

    Args:
        backbone: torchvision's name of the network.
        side: of the square input in pixels.
        half: the products are bfloat16, so that most of what is kept takes half of the room.

    Raises:
        SettingsError: no such backbone.
    """
    from torchvision import models  # noqa: PLC0415 - it takes a second

    last_layer(backbone)
    with torch.device("meta"):
        network = models.get_model(backbone, weights=None)
        images = torch.empty(2, 3, side, side)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}  # noqa: SLF001
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # By storage, since views share one; held on to, so that no other takes its place.
        storage = tensor.untyped_storage()._cdata  # noqa: SLF001
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(images)
    # Running means and other per-channel numbers are among them; they are small.
    per_image = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // len(images)
    fixed = PER_WEIGHT * sum(parameter.numel() for parameter in network.parameters())
    return StepMemory(fixed + BESIDE, per_image // 2 if half else per_image)
