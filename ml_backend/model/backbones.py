"""torchvision's networks without their last layer."""

import hashlib
from typing import cast

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from ml_backend.errors import SettingsError
from ml_backend.model.randomness import seeded

__all__ = ["LAST_LAYER", "Backbone", "last_layer"]

# Family -> the layer that follows global average pooling (and flattening), replaced by the identity. Families that
# do not pool (vgg, alexnet), that return several outputs (inception, googlenet) or have no convolutions are left out.
LAST_LAYER = {
    "convnext": "classifier.2",
    "densenet": "classifier",
    "efficientnet": "classifier",
    "mnasnet": "classifier",
    "mobilenet": "classifier",
    "regnet": "fc",
    "resnet": "fc",
    "resnext": "fc",
    "shufflenet": "fc",
    "wide_resnet": "fc",
}

# An untrained backbone must be the same in every round and process, or cached features would be worthless.
_UNTRAINED_SEED = 0


class Backbone(nn.Module):
    """Images -> pooled features. Untrained when built, and then the same weights every time.

    Args:
        name: as torchvision spells it: ``resnet50``, ``mobilenet_v2``, ...

    Attributes:
        dims: length of a feature vector.
        weights: which weights it was filled with, as the setting spells it.

    Raises:
        SettingsError: torchvision has no such network, or it is of no family in ``LAST_LAYER``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        # Here and not at the top: importing torchvision's models takes a second.
        from torchvision import models  # noqa: PLC0415

        self.name = name
        self.weights = "none"
        path = last_layer(name)
        with seeded(_UNTRAINED_SEED, "backbone"):
            network = cast("nn.Module", models.get_model(name, weights=None))
        parent_path, _, attribute = path.rpartition(".")
        setattr(network.get_submodule(parent_path), attribute, nn.Identity())
        self.network = network
        self.dims = _dims(network)

    def forward(self, images: Float32[Tensor, "images 3 side side"]) -> Float32[Tensor, "images dims"]:
        return cast("Tensor", self.network(images))

    def digest(self) -> str:
        """A name for exactly these weights, for cache keys and checkpoints."""
        digest = hashlib.sha256(self.name.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"|{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def last_layer(name: str) -> str:
    """Where the layer stands that is left out, as a path in torchvision's network.

    Raises:
        SettingsError: see ``Backbone``.
    """
    from torchvision import models  # noqa: PLC0415

    known = [known for known in models.list_models(module=models) if known.startswith(tuple(LAST_LAYER))]
    if name not in known:
        raise SettingsError(f"backbone={name!r} is not known; known are {', '.join(sorted(known))}")
    return LAST_LAYER[next(family for family in LAST_LAYER if name.startswith(family))]


def _dims(network: nn.Module) -> int:
    # Measured and not looked up: every family keeps the number in another place.
    network.eval()
    with torch.inference_mode():
        dims = int(network(torch.zeros(1, 3, 64, 64)).shape[1])
    network.train()
    return dims
