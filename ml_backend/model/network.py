"""The paper's network: a backbone that is deterministic when scoring, and a head with dropout that stays on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from ml_backend.model.backbones import Backbone, load_backbone
from ml_backend.model.inference import draw_masks, fold_norm, head_passes, regroup

HIDDEN = 512
# Images that go through the backbone together when scoring: 1.3 GB of activations for ResNet50 at 224 pixels.
_CHUNK = 32


class DropoutHead(nn.Module):
    """Features -> dropout -> Linear(dims, 512) -> BatchNorm -> ReLU -> Linear(512, classes): logits.

    The features are standardised first. The constants are the identity unless ``standardise`` sets them, which only
    the training on a frozen backbone does (ours): dropout on features that share a large mean is noise that drowns
    what tells the images apart.

    Args:
        dims: length of a feature vector.
        classes: number of classes.
        dropout: rate, 0 to below 1.
    """

    def __init__(self, dims: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(dims, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.output = nn.Linear(HIDDEN, classes)
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.register_buffer("feature_mean", torch.zeros(dims))
        self.register_buffer("feature_scale", torch.ones(dims))

    def standardise(self, features: Float32[Tensor, "images dims"]) -> None:
        """From now on see features relative to the mean and the spread of these; a constant one becomes 0."""
        spread = features.std(dim=0, correction=0)
        self.feature_mean.copy_(features.mean(dim=0))
        floor = 1e-6 * float(spread.max())
        self.feature_scale.copy_(torch.where(spread > floor, 1.0 / spread.clamp_min(1e-30), 0.0))

    def standard(self, features: Float32[Tensor, "images dims"]) -> Float32[Tensor, "images dims"]:
        """What dropout sees: a copy."""
        return (features - self.feature_mean) * self.feature_scale

    def forward(self, features: Float32[Tensor, "images dims"]) -> Float32[Tensor, "images classes"]:
        return cast("Tensor", self.output(self.activity(features)))

    def activity(self, features: Float32[Tensor, "images dims"]) -> Float32[Tensor, "images hidden"]:
        """What the last layer sees."""
        return torch.relu(self.norm(self.hidden(self.dropout(self.standard(features)))))

    def masks(self, passes: int, seed: int) -> Bool[Tensor, "passes dims"]:
        """Draw the masks of a posterior; see ``inference.draw_masks``."""
        return draw_masks(passes, self.hidden.in_features, self.dropout.p, seed)

    @torch.inference_mode()
    def passes(
        self, features: Float32[Tensor, "images dims"], masks: Bool[Tensor, "passes dims"]
    ) -> Float32[Tensor, "images passes classes"]:
        """Draw the passes of a posterior on features; see ``inference.head_passes``."""
        return head_passes(
            self.standard(features), masks, fold_norm(self.hidden, self.norm), self.output, self.dropout.p
        )

    @torch.inference_mode()
    def gradient_factors(
        self, features: Float32[Tensor, "images dims"]
    ) -> tuple[Float32[Tensor, "images classes"], Float32[Tensor, "images hidden"]]:
        """Gradient of the loss in the last layer's weights, were the network's own answer the label, as two factors.

        With dropout off. The gradient of an image is the outer product of its two rows.

        Returns:
            Softmax output minus 1 for the most probable class; and what the last layer sees.

        Source:
            Ash et al. 2020, arXiv:1906.03671.
        """
        with evaluating(self):
            hidden = self.activity(features)
            residuals = self.output(hidden).softmax(dim=-1)
        residuals[torch.arange(len(residuals)), residuals.argmax(dim=-1)] -= 1.0
        return residuals, hidden


class McDropoutClassifier(nn.Module):
    """A torchvision backbone, global average pooling and a ``DropoutHead``.

    Args:
        classes: number of classes, at least 2.
        backbone: torchvision's name of the network, or a backbone that is loaded already.
        weights: of the backbone: ``imagenet``, ``none`` (untrained, the same every time), or a file; not looked at
            when the backbone is loaded already.
        dropout: rate of the head.

    Raises:
        SettingsError: no such backbone.
        WeightsError: the weights cannot be had, or do not fit the backbone.
        ValueError: fewer than 2 classes.

    Source:
        Gabriel et al., arXiv:2508.21263.
    """

    def __init__(
        self, classes: int, backbone: str | Backbone = "resnet50", weights: str = "imagenet", dropout: float = 0.5
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
        self.backbone = load_backbone(backbone, weights) if isinstance(backbone, str) else backbone
        self.head = DropoutHead(self.backbone.dims, classes, dropout)

    def features(self, images: Float32[Tensor, "images 3 side side"]) -> Float32[Tensor, "images dims"]:
        """Pooled backbone features: what the head sees."""
        return cast("Tensor", self.backbone(images)).float()

    def forward(self, images: Float32[Tensor, "images 3 side side"]) -> Float32[Tensor, "images classes"]:
        """Logits."""
        return cast("Tensor", self.head(self.features(images)))

    def mc_probs(
        self, images: Tensor | Iterable[Tensor | tuple[Tensor, ...]], passes: int, seed: int = 0
    ) -> Float32[Tensor, "images passes classes"]:
        """Draw the stochastic passes, with one set of dropout masks for all images.

        Everything but the dropout is in eval mode meanwhile; the module's own mode is put back.

        Args:
            images: [images, 3, side, side], normalised (see ``images.transforms.to_input``), or a loader of such
                batches (of a tuple the first element counts).
            passes: T.
            seed: of the masks: the same whatever the size of a batch.

        Returns:
            Probabilities on the CPU; pass t of every image is the same network.
        """
        device = self.head.hidden.weight.device
        masks = self.head.masks(passes, seed)
        batches = torch.split(images, _CHUNK) if isinstance(images, Tensor) else images
        tensors = (batch if isinstance(batch, Tensor) else batch[0] for batch in batches)
        probs = [torch.empty(0, passes, self.head.output.out_features)]
        with evaluating(self), torch.inference_mode():
            features = (self.features(_lay_out(tensor.to(device))) for tensor in tensors)
            probs += [self.head.passes(chunk, masks).cpu() for chunk in regroup(features)]
        return torch.cat(probs)


def _lay_out(images: Tensor) -> Tensor:
    """On a CPU, in the layout in which a convolution takes two thirds of the time, whatever that of its weights.

    Folding the normalisations in would save a little more, but costs as much as three images at every call.
    """
    return images if images.is_cuda else images.contiguous(memory_format=torch.channels_last)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; each part gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
